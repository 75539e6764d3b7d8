local function message(text, key)
  local fired = fire("message", { key = key or "telegram:1", text = text })
  delivered(fired)
  return fired
end

test("a key has so many messages a minute", function()
  start { config = { filter = { per_minute = 3, unlimited = { "local:*" } } } }
  -- A minute may end between two messages: seven in a row pass the limit in one of two minutes.
  local refused = 0
  for _ = 1, 7 do
    local fired = message("hi")
    if fired.refuse then
      refused = refused + 1
      assert(fired.refuse:find("more than 3 messages a minute: try again in %d+ s"), fired.refuse)
    end
  end
  assert(refused >= 1 and refused <= 4, refused)
  equal(message("hi", "telegram:2").refuse, nil) -- another key has its own
  for _ = 1, 7 do equal(message("hi", "local:a").refuse, nil) end
end)

test("words are refused in any case of letters, and as plain text", function()
  start { config = { filter = { refuse = { "drop (all)" } } } }
  assert(message("please DROP (All) tables").refuse)
  equal(message("drop all").refuse, nil)
end)

test("secrets are taken out", function()
  start { config = { filter = { mask = { "sk%-%w+", "ghp_%w+" } } } }
  equal(message("key sk-abc123, ghp_x and sk-9").text, "key [removed], [removed] and [removed]")
  equal(message("nothing to hide").text, nil)
end)

test("long messages are refused", function()
  start { config = { filter = { longest = 10 } } }
  equal(message("0123456789").refuse, nil)
  equal(message("0123456789a").refuse, "the message has 11 bytes, 10 are allowed")
end)

test("with nothing configured everything passes", function()
  start {}
  local fired = message("anything")
  equal(fired.text, nil)
  equal(fired.refuse, nil)
end)

test("a mistake in the configuration keeps it from being loaded", function()
  refused({ config = { filter = { per_minute = 0 } } }, "per_minute: a number above zero expected")
  refused({ config = { filter = { mask = { "[a" } } } }, "mask: [a: ")
end)
