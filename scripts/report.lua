-- Counts what happens and reports it every day: in the log, to a web server, and to an agent that may make
-- something of it.
--
--   [hooks.config.report]
--   at = "07:00"                                 # local time; the report is about the day before
--   key = "local:operator"                       # a session that gets it as a message; absent: none
--   url = "https://example.org/report"           # posted there as {"day", "text", "counts"}; needs allow = ["http"]
--
-- A report that is due while the daemon is down comes once at the next start, and covers each day since the last
-- one, seven at most. The message has an id made of its day: the agent gets a day's report once, whatever happens
-- in between. Counts live in kv for ten days. A delivery that is repeated is counted once.

local settings = ostler.config.report or {}
local request = settings.url and ostler.http.request -- an error here and now if there is no leave for it
local TTL = "10d"

local COUNTED = { "turns", "messages", "sessions begun", "sessions over", "interrupted", "crashes", "turns failed" }

local function day(back)
  local now = os.date("*t")
  -- At noon: no day is so short or long that this is another one.
  return os.date("%Y-%m-%d", os.time { year = now.year, month = now.month, day = now.day - back, hour = 12 })
end

local function count(what, by)
  if by > 0 then ostler.kv.incr(("report:%s:%s"):format(day(0), what), by, { ttl = TTL }) end
end

--- True the first time that an event is seen; what `ostler hooks fire` sends did not happen.
local function is_new(ev)
  return not ev.test and ostler.kv.set("report:seen:" .. ev.event_id, true, { only_if = ostler.json.null, ttl = "2d" })
end

ostler.on("session_end", function(ev)
  if not is_new(ev) then return end
  count("turns", ev.turns)
  count("messages", ev.messages)
  if ev.resume_pending then count("interrupted", 1) end
  if ev.reason == "crash" then count("crashes", 1) end
end, { name = "count" })

ostler.on("session_start", function(ev)
  if ev.epoch == 1 and is_new(ev) then count("sessions begun", 1) end
end, { name = "count" })

ostler.on("session_closed", function(ev)
  if is_new(ev) then count("sessions over", 1) end
end, { name = "count" })

-- Not journalled: a death may swallow one, which is good enough for a count.
ostler.on("turn_end", function(ev)
  if ev.outcome == "failed" and not ev.test then count("turns failed", 1) end
end, { name = "count" })

local function report(of)
  local counts, lines = {}, {}
  for _, what in ipairs(COUNTED) do
    local n = ostler.kv.get(("report:%s:%s"):format(of, what)) or 0
    counts[what], lines[#lines + 1] = n, ("%s: %d"):format(what, n)
  end
  local text = ("ostler on %s\n%s"):format(of, table.concat(lines, "\n"))
  ostler.log.info("daily report", { day = of, turns = counts.turns, interrupted = counts.interrupted })
  if settings.key then ostler.session(settings.key):send(text, { id = "report-" .. of }) end
  if request then
    local answer, why = request { url = settings.url, headers = { ["Content-Type"] = "application/json" },
      body = ostler.json.encode { day = of, text = text, counts = counts }, timeout = "10s" }
    if not answer or answer.status > 299 then
      ostler.log.error("daily report not posted", { why = why or answer.status })
    end
  end
end

ostler.every(settings.at or "07:00", function()
  local last = ostler.kv.get("report:last")
  for back = 7, 1, -1 do
    local of = day(back)
    if last and of > last or not last and back == 1 then
      report(of)
      ostler.kv.set("report:last", of)
    end
  end
end, { name = "daily", timeout = "2m" })
