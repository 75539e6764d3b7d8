-- Hands on what a conversation was about: when a session is over (reset, idle, daily, …), what matters of it is
-- kept, and given as context before the first turn of the next session under the same key.
--
--   [hooks.config.memory]
--   entries = 12                                 # without a command: the newest messages and answers …
--   bytes = 4000                                 # … and how much of them at most
--   keep = "30d"                                 # then it is forgotten
--   command = ["/usr/local/bin/summarise"]       # transcript on stdin, summary on stdout; needs allow = ["exec"]
--
-- The summary is made at session_closed, which is journalled: a command that fails is run again later. If the next
-- message is faster than that, before_turn takes the newest entries instead of keeping the sender waiting. A
-- deleted conversation is not remembered, nor is one that was suspended.

local settings = ostler.config.memory or {}
local ENTRIES, BYTES, KEEP = settings.entries or 12, settings.bytes or 4000, settings.keep or "30d"
local WHO = { user = "User", agent = "You" } -- tool calls and notes of the daemon are left out
local exec = settings.command and ostler.exec -- an error here and now if there is no leave for it

local function kept_under(key) return "memory:" .. key end

--- Cuts at the end of a character, not within.
local function cut(text, bytes)
  if #text <= bytes then return text end
  while bytes > 0 and text:byte(bytes + 1) // 64 == 2 do bytes = bytes - 1 end
  return text:sub(1, bytes) .. "…"
end

--- The newest entries, as they were said. `read` gives a page of a transcript.
local function newest(read)
  local tail, after = {}, 0
  repeat
    local page = read { after = after, limit = 500 }
    for _, e in ipairs(page) do
      after = e.seq
      if WHO[e.role] then
        tail[#tail + 1] = WHO[e.role] .. ": " .. e.text
        if #tail > ENTRIES then table.remove(tail, 1) end
      end
    end
  until #page < 500
  local each = math.max(BYTES // math.max(#tail, 1), 80)
  for i, text in ipairs(tail) do tail[i] = cut(text, each) end
  return cut(table.concat(tail, "\n"), BYTES)
end

--- What the command makes of the whole transcript.
local function summary(ev)
  local all, after = {}, 0
  repeat
    local page = ev:transcript { after = after, limit = 500 }
    for _, e in ipairs(page) do
      after = e.seq
      if WHO[e.role] then all[#all + 1] = WHO[e.role] .. ": " .. e.text end
    end
  until #page < 500
  local ran, why = exec { argv = settings.command, stdin = table.concat(all, "\n\n"), timeout = "2m" }
  if not ran then error(why, 0) end
  if ran.status ~= 0 then error(("%s: status %s: %s"):format(settings.command[1], ran.status, ran.stderr), 0) end
  return cut(ran.stdout:match("^%s*(.-)%s*$"), BYTES)
end

ostler.on("session_closed", function(ev)
  if ev.reason == "deleted" then
    ostler.kv.delete(kept_under(ev.key))
    return
  end
  if ev.turns == 0 then return end -- nothing was said; what is kept of the one before stays
  local text = exec and summary(ev) or newest(function(page) return ev:transcript(page) end)
  if text ~= "" then
    ostler.kv.set(kept_under(ev.key), { of = ev.session_id, text = text }, { ttl = KEEP })
  end
end, { name = "remember", timeout = "3m" })

--- What is kept for a session that begins: of the one before it, be it that session_closed has not come yet.
local function recall(ev)
  local kept = ostler.kv.get(kept_under(ev.key))
  local info = ostler.session(ev.session_id):info()
  local previous = info and info.previous_id
  if not previous or kept and kept.of == previous then return kept end
  local before = ostler.session(previous)
  local was = before:info()
  if not was or was.state ~= "ended" or was.end_reason == "deleted" then return kept end
  local text = newest(function(page) return before:transcript(page) end)
  return text ~= "" and { of = previous, text = text } or kept
end

ostler.on("before_turn", function(ev)
  -- `first` is the first turn of an activation; a parked session that goes on knows itself what was said.
  if not ev.first or ev.resumed or ev.continues then return end
  local given = "memory:given:" .. ev.session_id
  if ostler.kv.get(given) then return end
  local kept = recall(ev)
  ostler.kv.set(given, true, { ttl = KEEP })
  if kept and kept.of ~= ev.session_id then
    return { context = "From your last conversation with this user, for what it is worth:\n" .. kept.text }
  end
end, { name = "recall" })
