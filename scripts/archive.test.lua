local config = { archive = { dir = dir } }

test("a session's end writes its transcript as Markdown and JSON Lines", function()
  start { config = config, allow = { "fs" } }
  transcript("S1", { { "user", "hello\nthere" }, { "agent", "hi" } })
  delivered(fire("session_end", { key = "telegram:4711/x", session_id = "S1", reason = "parked" }))

  local found = files()
  local md = found["telegram%3A4711%2Fx-S1.md"]
  assert(md:find("# telegram:4711/x\n", 1, true) and md:find("ended: parked", 1, true), md)
  assert(md:find("## user, .-\n\nhello\nthere\n.*## agent, .-\n\nhi\n"), md)
  local first = found["telegram%3A4711%2Fx-S1.jsonl"]:match("^(.-)\n")
  assert(first:find('"text":"hello\\nthere"', 1, true) and first:find('"seq":1', 1, true), first)
end)

test("the next end of the same session writes the files anew, whole", function()
  start { config = config, allow = { "fs" } }
  transcript("S1", { { "user", "one" } })
  delivered(fire("session_end", { key = "local:a", session_id = "S1", epoch = 1 }))
  transcript("S1", { { "user", "one" }, { "agent", "two" } })
  for _ = 1, 2 do delivered(fire("session_end", { key = "local:a", session_id = "S1", epoch = 2 })) end
  local _, count = files()["local%3Aa-S1.jsonl"]:gsub("\n", "")
  equal(count, 2)
end)

test("a conversation that is longer than a page is archived to its end", function()
  start { config = config, allow = { "fs" } }
  local said = {}
  for i = 1, 1001 do said[i] = { "user", "entry " .. i } end
  transcript("S1", said)
  delivered(fire("session_end", { key = "local:a", session_id = "S1" }))
  local _, count = files()["local%3Aa-S1.jsonl"]:gsub("\n", "")
  equal(count, 1001)
end)

test("what is deleted is deleted here too, unless it is to be kept", function()
  for _, keep in ipairs { false, true } do
    start { config = { archive = { dir = dir, keep_deleted = keep } }, allow = { "fs" } }
    transcript("S1", { { "user", "secret" } })
    delivered(fire("session_end", { key = "local:a", session_id = "S1", reason = "shutdown" }))
    delivered(fire("session_end", { key = "local:a", session_id = "S1", reason = "deleted", final = true }))
    delivered(fire("session_closed", { key = "local:a", session_id = "S1", reason = "deleted" }))
    equal(files()["local%3Aa-S1.md"]:find("secret", 1, true) ~= nil, keep)
  end
end)

test("a sample event leaves nothing behind", function()
  start { config = config, allow = { "fs" } }
  delivered(fire("session_end", { test = true }))
  equal(next(files()), nil)
end)

test("a directory that is not there fails the delivery, so that it is made again", function()
  start { config = { archive = { dir = dir .. "/none" } }, allow = { "fs" } }
  failed(fire("session_end", { session_id = "S1" }), "none")
end)

test("without leave or directory it is not loaded, and says why", function()
  refused({ config = config }, 'add "fs" to allow')
  refused({ config = {}, allow = { "fs" } }, "archive.dir: the archive's directory expected")
end)
