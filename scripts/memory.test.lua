local talk = { { "user", "my dog is called Rex" }, { "tool", "looked up dogs" }, { "agent", "A fine name." } }

local function closed(key, id, fields)
  fields = fields or {}
  fields.key, fields.session_id = key, id
  return fire("session_closed", fields)
end

local function first_turn(key, id, fields)
  fields = fields or {}
  fields.key, fields.session_id, fields.first, fields.continues = key, id, true, fields.continues or null
  local fired = fire("before_turn", fields)
  delivered(fired)
  return fired.context
end

test("what was said last is given before the first turn of the next session, once", function()
  start {}
  transcript("S1", talk)
  delivered(closed("local:a", "S1", { reason = "idle" }))
  session("S2", { id = "S2", previous_id = "S1" })
  local context = first_turn("local:a", "S2")
  assert(context:find("User: my dog is called Rex\nYou: A fine name.", 1, true), context)
  equal(first_turn("local:a", "S2"), nil) -- parked and back again: it is in the transcript already
  equal(first_turn("local:b", "S9"), nil) -- another key has no memory of it
end)

test("only the newest entries are kept, and no more than so many bytes, cut between characters", function()
  start { config = { memory = { entries = 2, bytes = 200 } } }
  transcript("S1", { { "user", "first" }, { "agent", "second" }, { "user", ("ä"):rep(300) } })
  delivered(closed("local:a", "S1"))
  local kept = kv.get("memory:local:a").text
  assert(not kept:find("first", 1, true) and kept:find("You: second\nUser: ä", 1, true), kept)
  assert(#kept <= 203 and utf8.len(kept), #kept)
end)

test("a command makes the summary", function()
  start { config = { memory = { command = { "sh", "-c", "grep -c . ; echo summary" } } }, allow = { "exec" } }
  transcript("S1", talk)
  delivered(closed("local:a", "S1"))
  equal(kv.get("memory:local:a").text, "2\nsummary")
  equal(kv.get("memory:local:a").of, "S1")
end)

test("a command that fails fails the delivery, so that it is made again", function()
  start { config = { memory = { command = { "sh", "-c", "echo oops >&2; exit 3" } } }, allow = { "exec" } }
  transcript("S1", talk)
  failed(closed("local:a", "S1"), "status 3: oops")
  equal(kv.get("memory:local:a"), nil)
end)

test("a message that is faster than the summary gets the newest entries", function()
  start { config = { memory = { command = { "true" } } }, allow = { "exec" } }
  kv.set("memory:local:a", { of = "S0", text = "older" })
  transcript("S1", talk)
  session("S1", { id = "S1", state = "ended", end_reason = "reset" })
  session("S2", { id = "S2", previous_id = "S1" })
  local context = first_turn("local:a", "S2")
  assert(context:find("my dog is called Rex", 1, true) and not context:find("older", 1, true), context)
end)

test("what is deleted is not remembered, neither before nor after it is told", function()
  start {}
  transcript("S1", talk)
  session("S1", { id = "S1", state = "ended", end_reason = "deleted" })
  session("S2", { id = "S2", previous_id = "S1" })
  equal(first_turn("local:a", "S2"), nil)
  delivered(closed("local:a", "S0", { reason = "reset" }))
  delivered(closed("local:a", "S1", { reason = "deleted" }))
  equal(kv.get("memory:local:a"), nil)
end)

test("later turns, continuations and empty sessions have none of it", function()
  start {}
  transcript("S1", talk)
  delivered(closed("local:a", "S1"))
  equal(fire("before_turn", { key = "local:a", first = false, continues = null }).context, nil)
  equal(first_turn("local:a", "S2", { continues = "T1" }), nil)
  delivered(closed("local:a", "S3", { turns = 0 }))
  equal(kv.get("memory:local:a").of, "S1")
end)

test("a command without leave is an error at load", function()
  refused({ config = { memory = { command = { "true" } } } }, 'add "exec" to allow')
end)
