-- Tells a web server when the daemon stops, and when a stop or a crash cut a conversation off.
--
--   [hooks]
--   allow = ["http"]
--
--   [hooks.config.webhook]
--   url = "https://example.org/ostler"
--   timeout = "3s"                               # of one request
--   headers = { Authorization = "Bearer …" }     # more headers
--
-- The body is JSON: {"event", "event_id", "at", "boot_id", "attempt", "test", …}. The header Idempotency-Key is the
-- event's id and the same in every repetition: what arrives twice can be told. Any answer but 2xx is a failure.
--
-- Interrupted sessions come with session_end, which is journalled: a failure here is an error, and the daemon
-- delivers again with growing pauses, over restarts too. `shutdown` is not journalled, and a daemon that stops
-- cannot wait: what did not get through is kept in kv and posted after the next start, then every five minutes
-- until it did.

local settings = ostler.config.webhook or {}
if type(settings.url) ~= "string" then error("webhook.lua: hooks.config.webhook.url: a URL expected", 0) end
local request = ostler.http.request -- not there without leave: better said now than when a daemon stops

local OWED, MOST = "webhook:owed", 20

--- Posts a notice; an error if the other side did not take it.
local function post(notice)
  local headers = { ["Content-Type"] = "application/json", ["Idempotency-Key"] = notice.event_id }
  for name, value in pairs(settings.headers or {}) do headers[name] = value end
  local answer, why = request { url = settings.url, headers = headers, body = ostler.json.encode(notice),
    timeout = settings.timeout or "3s" }
  if not answer then error(settings.url .. ": " .. why, 0) end
  if answer.status < 200 or answer.status > 299 then error(settings.url .. ": status " .. answer.status, 0) end
end

local function notice(ev, fields)
  for _, name in ipairs { "event", "event_id", "at", "boot_id", "attempt", "test", "reason" } do
    fields[name] = ev[name]
  end
  return fields
end

--- Changes what is owed, over what other threads may have done meanwhile.
local function change(how)
  for _ = 1, 10 do
    local old = ostler.kv.get(OWED)
    local new = how(old and ostler.json.decode(ostler.json.encode(old)) or ostler.json.array())
    if ostler.kv.set(OWED, new, { only_if = old or ostler.json.null }) then return end
  end
  error("webhook.lua: kv changes all the time", 0)
end

ostler.on("session_end", function(ev)
  if not ev.resume_pending and ev.reason ~= "crash" then return end
  post(notice(ev, { key = ev.key, session_id = ev.session_id, epoch = ev.epoch, redelivered = ev.redelivered,
    resume_pending = ev.resume_pending ~= nil }))
end, { name = "interrupted", timeout = "10s" })

ostler.on("shutdown", function(ev)
  local told = notice(ev, { running = ev.running, live = ev.live, deadline_ms = ev.deadline_ms })
  -- Kept first: whatever cuts us off from here on, the notice is not lost.
  change(function(owed)
    if #owed < MOST then owed[#owed + 1] = told end
    return owed
  end)
  post(told)
  change(function(owed)
    for i = #owed, 1, -1 do
      if owed[i].event_id == told.event_id then table.remove(owed, i) end
    end
    return owed
  end)
end, { name = "shutdown", timeout = "5s" })

--- Posts what is owed, oldest first, until one fails.
local function settle()
  local owed = ostler.kv.get(OWED) or {}
  for _, late in ipairs(owed) do
    late.late = true
    post(late)
    change(function(left)
      for i = #left, 1, -1 do
        if left[i].event_id == late.event_id then table.remove(left, i) end
      end
      return left
    end)
  end
end

ostler.on("daemon_start", settle, { name = "owed", timeout = "30s" })
ostler.every("5m", settle, { name = "owed", timeout = "30s" })
