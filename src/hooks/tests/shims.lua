-- What the shims of the prelude do is what Lua's own functions do.
ostler.on("session_end", function()
  -- xpcall
  local ok, why = xpcall(function(a, b) error(a .. b, 0) end, function(e) return "<" .. e .. ">" end, "x", "y")
  assert(not ok and why == "<xy>")
  assert(select("#", xpcall(function() return 1, nil, 3 end, print)) == 4)
  assert(not pcall(xpcall, print))
  local ok, why = xpcall(error, function() error("in the handler", 0) end)
  assert(not ok and why == "in the handler")
  -- coroutines
  local co = coroutine.wrap(function(a) local b = coroutine.yield(a + 1) error("boom" .. b, 0) end)
  assert(co(1) == 2)
  local ok, why = pcall(co, "!")
  assert(not ok and why == "boom!")
  assert(not pcall(co) )
  local seen = {}
  local co = coroutine.create(function() local x <close> = setmetatable({}, { __close = function() seen[1] = true end })
    coroutine.yield(1, 2) end)
  assert(select("#", coroutine.resume(co)) == 3 and coroutine.status(co) == "suspended")
  assert(coroutine.close(co) and seen[1] and coroutine.status(co) == "dead")
  assert(coroutine.isyieldable() and coroutine.running())
  local closed
  local co = coroutine.wrap(function() local x <close> = setmetatable({}, { __close = function() closed = true end }) error("e") end)
  assert(not pcall(co) and closed)
  -- tables with and without a metatable
  for _, t in ipairs{ { 3, 1, 2 }, setmetatable({ 3, 1, 2 }, { __name = "x" }) } do
    table.sort(t) assert(table.concat(t, ",") == "1,2,3")
    table.sort(t, function(a, b) return a > b end) assert(table.concat(t, ",", 1, 2) == "3,2")
    table.insert(t, 9) table.insert(t, 1, 8) assert(table.concat(t) == "83219")
    assert(table.remove(t) == 9 and table.remove(t, 1) == 8 and #t == 3)
    assert(table.remove({}) == nil and table.remove(setmetatable({}, {})) == nil)
    assert(select("#", table.unpack(t)) == 3 and table.unpack(t, 2, 2) == 2)
    assert(table.concat(table.move(t, 1, 3, 2), "") == "3321" and #table.move(t, 1, 2, 1, {}) == 2)
    assert(not pcall(table.insert, t, 99, 1) and not pcall(table.insert, t) and not pcall(table.remove, t, 99))
  end
  assert(not pcall(table.sort, {}, 7) and not pcall(table.sort, 7))
  local proxied = setmetatable({}, { __index = function(_, i) return i <= 3 and i * 10 or nil end, __len = function() return 3 end })
  assert(table.concat(proxied, " ") == "10 20 30" and select("#", table.unpack(proxied)) == 3)
  -- strings
  assert(("x"):rep(3, ",") == "x,x,x" and (""):rep(5) == "" and (""):rep(3, "-") == "--" and ("ab"):rep(0) == "")
  assert(("hello world"):find("o w") == 5 and ("hello"):find("l+") == 3 and ("a.b"):find(".", 1, true) == 2)
  assert(select("#", ("key=value"):match("(%w+)=(%w+)")) == 2 and ("  x "):match("^%s*(.-)%s*$") == "x")
  assert(("abc"):match("()b()") == 2 and ("THE (quick) fox"):find("%((%a+)%)") == 5)
  assert(("THE (quick) fox"):gsub("%f[%a]%a+", string.lower) == "the (quick) fox")
  assert(("abc"):gsub("", "-") == "-a-b-c-" and ("abc"):gsub("%w", "%0%0") == "aabbcc")
  assert(("hello world"):gsub("o", { o = "0" }) == "hell0 w0rld" and ("abc"):gsub("b", false and 1 or {}) == "abc")
  assert(select(2, ("aaa"):gsub("a", "b", 2)) == 2 and ("aaa"):gsub("^a", "b") == "baa")
  assert(("x=1,y=2"):gsub("(%w)=(%w)", "%2=%1") == "1=x,2=y" and ("abc"):gsub("b", "%%") == "a%c")
  assert(("abc"):gsub("(b)", function(c) return nil end) == "abc" and ("5"):gsub("%d", 7) == "7")
  local words = {} for w in ("one two  three"):gmatch("%a+") do words[#words + 1] = w end
  assert(table.concat(words, ",") == "one,two,three")
  local pairs_of = {} for k, v in ("a=1, b=2"):gmatch("(%w+)=(%w+)") do pairs_of[k] = v end
  assert(pairs_of.a == "1" and pairs_of.b == "2")
  local n = 0 for _ in ("abc"):gmatch("") do n = n + 1 end assert(n == 4)
    assert(string.find(12345, 34) == 3 and ("abc"):find("b", -1) == nil and ("abc"):find("", 10) == nil and ("abc"):find("", 4) == 4)
  -- what is short and plain goes another way than what is long
  local long = ("a"):rep(5000) .. "x.y"
  for _, s in ipairs{ "aax.y", long } do
    local at = #s - 2
    assert(select("#", s:find("x.y", 1, true)) == 2 and s:find("x.y", 1, true) == at and select(2, s:find("x.y", 1, true)) == #s)
    assert(s:find("x.", 1, true) == at and s:find("x") == at and s:find(".y", -2, true) == #s - 1 and s:find("x", -1) == nil)
    assert(s:find("z") == nil and s:find("", #s + 1) == #s + 1 and s:find("", #s + 2) == nil and s:find("x%.y") == at)
    assert(not pcall(s.find, s, "x", {}) and not pcall(s.find, s, nil) and not pcall(s.find, nil, "x"))
  end
  -- a table is asked for the first capture alone, as in Lua
  assert(("abc"):gsub("(a)(b", { a = "x" }) == "xc" and not pcall(string.gsub, "abc", "(a", { a = "x" }))
  assert(not pcall(string.gsub, "abc", "(a)(b", function() end) and ("abc"):gsub("(a)(b", "x") == "xc")
  -- long texts are counted in pieces, long formats refused
  for _, letter in ipairs{ "x", "ä", "€", "\u{10ffff}", "aä" } do
    local text = letter:rep(100000)
    assert(utf8.len(text) == utf8.len(letter) * 100000 and utf8.len(text, -#letter) == utf8.len(letter))
    assert(utf8.len(text, #letter + 1, -#letter - 1) == utf8.len(letter) * 99998 and utf8.len(text, #text + 1) == 0)
    local bad, at = utf8.len(text .. "\xff" .. text)
    assert(bad == nil and at == #text + 1)
    assert(not pcall(utf8.len, text, #text + 2) and not pcall(utf8.len, text, 1, #text + 1) and not pcall(utf8.len, text, {}))
  end
  assert(utf8.len(("€"):rep(50000), 2) == nil and select(2, utf8.len(("€"):rep(50000), 2)) == 2)
  assert(string.unpack("<i4", string.pack("<i4", 7)) == 7 and string.packsize("i4") == 4)
  for _, f in ipairs{ string.pack, string.unpack, string.packsize } do
    local ok, why = pcall(f, ("b"):rep(65537), "x")
    assert(not ok and why:find("the format is longer than 65536 bytes", 1, true), why)
  end
  -- the rest is Lua's own
  assert(os.date("!%Y", 0) == "1970" and os.time() > 0 and os.clock() >= 0)
  assert(utf8.len("äö") == 2 and math.type(2^53 | 0) == "integer" and 9007199254740993 == 9007199254740993)
  assert(getmetatable(setmetatable({}, { __metatable = 5 })) == 5)
  -- JSON
  local json = ostler.json
  assert(json.encode({}) == "{}" and json.encode(json.array()) == "[]" and json.encode(json.array{ 1 }) == "[1]")
  assert(json.encode(json.decode("[]")) == "[]" and json.encode(json.decode("{}")) == "{}")
  assert(json.decode("9007199254740993") == 9007199254740993 and json.encode(9007199254740993) == "9007199254740993")
  assert(json.encode(1.0) == "1.0" and json.encode({ a = json.null }) == '{"a":null}')
  assert(json.decode('{"a":[1,null,3]}').a[2] == json.null and #json.decode("[1,null,3]") == 3)
  assert(json.encode({ b = 1, a = { true, false } }) == '{"a":[true,false],"b":1}')
end)
