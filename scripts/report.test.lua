local function day(back) return os.date("%Y-%m-%d", os.time() - back * 86400) end

test("events are counted by day", function()
  start {}
  delivered(fire("session_start", { epoch = 1 }))
  delivered(fire("session_start", { epoch = 2 }))
  delivered(fire("session_end", { turns = 3, messages = 4, resume_pending = null }))
  delivered(fire("session_end", { turns = 2, messages = 2, reason = "crash" }))
  delivered(fire("session_closed"))
  delivered(fire("turn_end", { outcome = "failed" }))
  delivered(fire("turn_end", { outcome = "completed" }))
  local function counted(what) return kv.get("report:" .. day(0) .. ":" .. what) end
  equal(counted("turns"), 5)
  equal(counted("messages"), 6)
  equal(counted("sessions begun"), 1)
  equal(counted("sessions over"), 1)
  equal(counted("interrupted"), 1)
  equal(counted("crashes"), 1)
  equal(counted("turns failed"), 1)
end)

test("a delivery that is repeated is counted once", function()
  start {}
  for attempt = 1, 3 do
    delivered(fire("session_end", { event_id = "E1", turns = 3, attempt = attempt, redelivered = attempt > 1 }))
  end
  equal(kv.get("report:" .. day(0) .. ":turns"), 3)
end)

test("what `ostler hooks fire` sends is not counted", function()
  start {}
  delivered(fire("session_end", { turns = 3, test = true }))
  equal(kv.get("report:" .. day(0) .. ":turns"), nil)
end)

test("yesterday is reported, to a session and a web server", function()
  start { config = { report = { key = "local:operator", url = url .. "/report" } }, allow = { "http" } }
  kv.set("report:" .. day(1) .. ":turns", 12)
  tick("daily")
  local message = sent()[1]
  equal(message.key, "local:operator")
  equal(message.id, "report-" .. day(1))
  assert(message.text:find("^ostler on " .. day(1):gsub("-", "%%-") .. "\nturns: 12\nmessages: 0\n"), message.text)
  local posted = requests()[1]
  equal(posted.line, "POST /report HTTP/1.1")
  equal(posted.json.counts.turns, 12)
  equal(posted.json.day, day(1))
end)

test("a day is reported once; days that were missed are made up for", function()
  start { config = { report = { key = "local:operator" } } }
  tick("daily")
  tick("daily")
  equal(#sent(), 1)
  kv.set("report:last", day(4))
  tick("daily")
  local ids = {}
  for i, message in ipairs(sent()) do ids[i] = message.id end
  -- The report of yesterday has its id from before: it is not sent twice.
  equal(table.concat(ids, " "), ("report-%s report-%s report-%s"):format(day(1), day(3), day(2)))
end)

test("a server that does not answer does not keep the next day's report", function()
  start { config = { report = { url = url } }, allow = { "http" } }
  answers(500)
  tick("daily")
  equal(#requests(), 1)
  equal(kv.get("report:last"), day(1))
end)

test("a time of day that is none is an error at load", function()
  refused({ config = { report = { at = "25:00" } } }, "25:00")
end)
