-- Archives conversations: at each session_end the transcript is written as Markdown, to read, and as JSON Lines, to
-- search, below a directory.
--
--   [hooks]
--   allow = ["fs"]
--   fs_roots = ["/var/lib/ostler-archive"]       # the only place where scripts may then open files
--
--   [hooks.config.archive]
--   dir = "/var/lib/ostler-archive"              # must exist; the unit needs it in ReadWritePaths
--   keep_deleted = false                         # true: what a user deletes stays in the archive
--
-- One pair of files a session, CHANNEL%3ANAME-SESSION_ID.md and .jsonl. A session ends several times (parked, a
-- restart) before it is over; each time its files are written anew, from the first entry on. So a delivery that is
-- repeated changes nothing, and one that failed half-way (a full disk) is made good by the next: session_end is
-- journalled, an error here makes the daemon deliver it again, and `ostler hooks failed` lists what kept failing.

local settings = ostler.config.archive or {}
local dir = settings.dir
if not io then error('archive.lua opens files: add "fs" to allow in [hooks]', 0) end
if type(dir) ~= "string" then error("archive.lua: hooks.config.archive.dir: the archive's directory expected", 0) end

local PAGE = 500 -- entries read at once: a long conversation never lies in memory as a whole

--- A key as part of a file's name.
local function encoded(key)
  return (key:gsub("[^%w_-]", function(c) return ("%%%02X"):format(c:byte()) end)):sub(1, 150)
end

local function path(ev, ending)
  return ("%s/%s-%s.%s"):format(dir, encoded(ev.key), ev.session_id, ending)
end

--- Writes a whole file. What cannot be written is an error, so that the event is delivered again.
local function write(name, produce)
  local file <close> = assert(io.open(name, "w"))
  produce(function(text) assert(file:write(text)) end)
  assert(file:flush())
end

--- Calls a function with each entry up to where the session stood at the event.
local function each(ev, entry)
  local after = 0
  repeat
    local page = ev:transcript { after = after, limit = PAGE }
    for _, e in ipairs(page) do
      entry(e)
      after = e.seq
    end
  until #page < PAGE
end

local function markdown(ev, put)
  local head = "# %s\n\nSession %s, %s to %s, ended: %s\n"
  put(head:format(ev.key, ev.session_id, ev.started_at, ev.ended_at, ev.reason))
  each(ev, function(e) put(("\n## %s, %s\n\n%s\n"):format(e.role, e.at, e.text)) end)
end

local function lines(ev, put)
  each(ev, function(e)
    put(ostler.json.encode { key = ev.key, session_id = ev.session_id, turn_id = e.turn_id, seq = e.seq, role = e.role,
      at = e.at, text = e.text } .. "\n")
  end)
end

ostler.on("session_end", function(ev)
  if ev.test or ev.reason == "deleted" then return end -- a sample is none; session_closed says the rest
  write(path(ev, "jsonl"), function(put) lines(ev, put) end)
  write(path(ev, "md"), function(put) markdown(ev, put) end)
  ostler.log.info("archived", { file = path(ev, "md") })
end, { name = "archive", timeout = "30s" })

-- Scripts cannot remove files; what is left of a deleted conversation is two empty ones.
ostler.on("session_closed", function(ev)
  if ev.reason ~= "deleted" or settings.keep_deleted then return end
  for _, ending in ipairs { "md", "jsonl" } do
    if io.open(path(ev, ending)) then write(path(ev, ending), function() end) end
  end
end, { name = "forget" })
