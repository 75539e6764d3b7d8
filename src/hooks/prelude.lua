-- The part of the sandbox that is Lua: shims over what of Lua's own library a script could use to run for ever, to
-- reach another script, or to leave the sandbox. Runs once a state, before any script, with the state's real globals;
-- gives back what makes a script's environment. It must not know what the hooks are for.
local rust, most = ...
local check, locate, find_raw, match_raw, step_raw, gsub_raw =
  rust.check, rust.locate, rust.find, rust.match, rust.step, rust.gsub
local traceback, xpcall = rust.traceback, xpcall
local type, error, pcall, select, next, tostring, rawget = type, error, pcall, select, next, tostring, rawget
local setmetatable, getmetatable = setmetatable, getmetatable
local mtype, concat = math.type, table.concat

-- Rust functions answer `true, values` or `false, why`: so a script catches a string that says where, not a userdata.
local function finish(ok, ...)
  if ok then return ... end
  error((...), 0)
end
local function guard(f)
  return function(...) return finish(f(...)) end
end
local function fail(...)
  return error(locate() .. concat({ ... }), 0)
end

local base = {}
for _, name in next, { "assert", "error", "getmetatable", "ipairs", "next", "pairs", "pcall", "rawequal", "rawget",
  "rawlen", "rawset", "select", "tonumber", "tostring", "type", "_VERSION" } do
  base[name] = _G[name]
end

-- The handler runs after the stack is unwound: Lua's own runs it with the deadline switched off.
function base.xpcall(f, handler, ...)
  local kind = type(handler)
  if kind ~= "function" then fail("bad argument #2 to 'xpcall' (function expected, got ", kind, ")") end
  local function after(ok, ...)
    if ok then return true, ... end
    return false, select(2, pcall(handler, ...))
  end
  return after(pcall(f, ...))
end

-- Finalizers run with the deadline switched off. Lua looks for __gc here and never again.
function base.setmetatable(t, mt)
  if type(mt) == "table" and rawget(mt, "__gc") ~= nil then fail("setmetatable: __gc is not available in scripts") end
  return setmetatable(t, mt)
end

local lib = { string = {}, table = {}, math = {}, utf8 = {}, coroutine = {}, os = {} }
for name, copy in next, lib do
  for key, value in next, _G[name] or {} do copy[key] = value end
end
lib.os = { time = os.time, clock = os.clock, difftime = os.difftime }
function lib.os.date(format, ...)
  if type(format) == "string" and #format > 1024 then fail("os.date: the format is longer than 1024 bytes") end
  return os.date(format, ...)
end
lib.string.dump = nil

-- Strings: the matcher is Rust, because Lua's cannot be stopped.
local sub = string.sub
local step = guard(step_raw)
lib.string.match = guard(match_raw)
-- A plain text in a short one is found by Lua's own, which is quick there: without a pattern it cannot run for long.
local find, cfind = guard(find_raw), string.find
function lib.string.find(s, pattern, init, plain)
  if type(s) == "string" and type(pattern) == "string" and #s <= 4096 and #pattern <= 4096
    and (plain or not cfind(pattern, "[%^%$%*%+%?%.%(%[%%%-]")) then
    return cfind(s, pattern, init, true)
  end
  return find(s, pattern, init, plain)
end
local gsub_string = guard(gsub_raw)

-- Nothing, repeated as often as an integer can say, is a loop in C.
local rep = string.rep
function lib.string.rep(s, n, separator)
  if s == "" and (separator == nil or separator == "") then return "" end
  return rep(s, n, separator)
end

-- Each letter of a format is a step in C: no format that somebody wrote is as long as this.
local LONGEST = 65536
for _, name in next, { "pack", "packsize", "unpack" } do
  local of = string[name]
  lib.string[name] = function(format, ...)
    if type(format) == "string" and #format > LONGEST then
      fail("string.", name, ": the format is longer than ", LONGEST, " bytes")
    end
    return of(format, ...)
  end
end

local function text(value, n, name)
  local kind = type(value)
  if kind == "string" then return value end
  if kind == "number" then return tostring(value) end
  fail("bad argument #", n, " to '", name, "' (string expected, got ", kind == "nil" and "no value" or kind, ")")
end

function lib.string.gmatch(s, pattern, init)
  s, pattern = text(s, 1, "gmatch"), text(pattern, 2, "gmatch")
  if init ~= nil and mtype(init) ~= "integer" then fail("bad argument #3 to 'gmatch' (integer expected)") end
  local at, last = init or 1, nil
  if at < 0 then at = at + #s + 1 end
  if at < 1 then at = 1 end
  local function advance(from, to, ...)
    if not from then
      at = #s + 2
      return nil
    end
    at, last = to, to
    return ...
  end
  return function() return advance(step(s, pattern, at, last, false)) end
end

function lib.string.gsub(s, pattern, by, most_times)
  local kind = type(by)
  if kind == "string" or kind == "number" then return gsub_string(s, pattern, by, most_times) end
  if kind ~= "function" and kind ~= "table" then
    fail("bad argument #3 to 'gsub' (string/function/table expected, got ", kind, ")")
  end
  s, pattern = text(s, 1, "gsub"), text(pattern, 2, "gsub")
  if most_times ~= nil and mtype(most_times) ~= "integer" then fail("bad argument #4 to 'gsub' (integer expected)") end
  local out, n, at, last, times = {}, 0, 1, nil, 0
  local anchored = sub(pattern, 1, 1) == "^"
  local function put(piece)
    n = n + 1
    out[n] = piece
  end
  local function replace(from, to, first, ...)
    if not from then return false end
    local value
    if kind == "function" then value = by(first, ...) else value = by[first] end
    if from > at then put(sub(s, at, from - 1)) end
    if not value then
      put(sub(s, from, to - 1))
    elseif type(value) == "string" or type(value) == "number" then
      put(value)
    else
      fail("invalid replacement value (a ", type(value), ")")
    end
    at, last, times = to, to, times + 1
    return true
  end
  local limit = most_times or #s + 1
  while times < limit and replace(step(s, pattern, at, last, true, kind == "table")) do
    if anchored then break end
  end
  put(sub(s, at))
  return concat(out, "", 1, n), times
end

-- A long text is counted in pieces, each of which ends before a letter begins.
local count, byte = utf8.len, string.byte
function lib.utf8.len(s, first, last, lax)
  if type(s) ~= "string" or #s <= LONGEST or first ~= nil and mtype(first) ~= "integer"
    or last ~= nil and mtype(last) ~= "integer" then
    return count(s, first, last, lax)
  end
  first, last = first or 1, last or -1
  if first < 0 then first = first + #s + 1 end
  if last < 0 then last = last + #s + 1 end
  -- What is out of bounds is Lua's to say.
  if first < 1 or first > #s + 1 or last > #s then return count(s, first, last, lax) end
  local n = 0
  while first <= last do
    local upto = first + LONGEST
    if upto > last then upto = last
    else
      while upto < last and byte(s, upto + 1) & 0xC0 == 0x80 do upto = upto + 1 end
    end
    local found, bad = count(s, first, upto, lax)
    if not found then return found, bad end
    n, first = n + found, upto + 1
  end
  return n
end

-- Tables: with a metatable the C functions loop as long as `__len` says and call C functions as `__index`, unseen by
-- the deadline; so such tables are worked on in Lua. Plain tables are as long as their memory.
local ctable = table
local function plain(t) return type(t) == "table" and getmetatable(t) == nil end
local function sized(t, name)
  if type(t) ~= "table" then fail("bad argument #1 to '", name, "' (table expected, got ", type(t), ")") end
  local n = #t
  if mtype(n) ~= "integer" then fail("object length is not an integer") end
  return n
end

function lib.table.insert(t, ...)
  if plain(t) then return ctable.insert(t, ...) end
  local n = sized(t, "insert") + 1
  local count = select("#", ...)
  if count == 1 then
    t[n] = ...
  elseif count == 2 then
    local at, value = ...
    if mtype(at) ~= "integer" or at < 1 or at > n then fail("bad argument #2 to 'insert' (position out of bounds)") end
    for i = n, at + 1, -1 do t[i] = t[i - 1] end
    t[at] = value
  else
    fail("wrong number of arguments to 'insert'")
  end
end

function lib.table.remove(t, at)
  if plain(t) then
    if at == nil then return ctable.remove(t) end
    return ctable.remove(t, at)
  end
  local n = sized(t, "remove")
  if at == nil then at = n
  elseif mtype(at) ~= "integer" or (n + 1 ~= at and (at < 1 or at > n + 1) and not (n == 0 and at == 0)) then
    fail("bad argument #2 to 'remove' (position out of bounds)")
  end
  local value = t[at]
  while at < n do
    t[at] = t[at + 1]
    at = at + 1
  end
  if at <= n or at == n then t[at] = nil end
  return value
end

function lib.table.move(from, first, last, to, into)
  if plain(from) and (into == nil or plain(into)) then
    local counted = mtype(first) == "integer" and mtype(last) == "integer" and last >= first
    if counted and (last - first < 0 or last - first > most) then
      fail("bad argument #3 to 'move' (too many elements to move)")
    end
    return ctable.move(from, first, last, to, into)
  end
  into = into or from
  if mtype(first) ~= "integer" or mtype(last) ~= "integer" or mtype(to) ~= "integer" then
    fail("bad argument to 'move' (integer expected)")
  end
  if to > last or to <= first or from ~= into then
    for i = 0, last - first do into[to + i] = from[first + i] end
  else
    for i = last - first, 0, -1 do into[to + i] = from[first + i] end
  end
  return into
end

function lib.table.concat(t, separator, first, last)
  if plain(t) then return ctable.concat(t, separator, first or 1, last or #t) end
  local copy, n = {}, 0
  for i = first or 1, last or sized(t, "concat") do
    local value = t[i]
    if type(value) ~= "string" and type(value) ~= "number" then
      fail("invalid value (at index ", tostring(i), ") in table for 'concat'")
    end
    n = n + 1
    copy[n] = value
  end
  return ctable.concat(copy, separator, 1, n)
end

-- The comparison is always a Lua function, so that the deadline is seen between any two.
function lib.table.sort(t, less)
  if less ~= nil and type(less) ~= "function" then
    fail("bad argument #2 to 'sort' (function expected, got ", type(less), ")")
  end
  local compare = less and function(a, b) return (less(a, b)) end or function(a, b) return a < b end
  if plain(t) then return ctable.sort(t, compare) end
  local copy, n = {}, sized(t, "sort")
  for i = 1, n do copy[i] = t[i] end
  ctable.sort(copy, compare)
  for i = 1, n do t[i] = copy[i] end
end

function lib.table.unpack(t, first, last)
  if plain(t) then return ctable.unpack(t, first or 1, last or #t) end
  return ctable.unpack(t, first or 1, last or sized(t, "unpack"))
end

-- Coroutines: each switch looks at the deadline, or a tree of short ones would never be seen.
local create, resume, close, status = coroutine.create, coroutine.resume, coroutine.close, coroutine.status
local function checked(...)
  check()
  return ...
end
function lib.coroutine.create(f)
  check()
  return create(f)
end
function lib.coroutine.resume(co, ...)
  check()
  return checked(resume(co, ...))
end
function lib.coroutine.close(co)
  check()
  return checked(close(co))
end
function lib.coroutine.wrap(f)
  check()
  local co = create(f)
  local function after(ok, ...)
    if ok then return ... end
    local why = ...
    if status(co) == "dead" then
      local closed, other = close(co)
      check()
      if not closed and other ~= nil then why = other end
    end
    error(why, 0)
  end
  return function(...)
    check()
    return after(checked(resume(co, ...)))
  end
end

-- What a string's methods are: scripts can neither see nor change this table.
local meta = getmetatable("")
local methods = {}
for key, value in next, lib.string do methods[key] = value end
meta.__index = methods
meta.__metatable = false

-- Whatever a script may not have does not exist for anybody.
for _, name in next, { "load", "loadfile", "dofile", "collectgarbage", "print", "warn", "xpcall", "setmetatable" } do
  _G[name] = nil
end

-- Each script has its own copies: what it changes in them, it changes for itself.
local function environment()
  local env = {}
  for key, value in next, base do env[key] = value end
  for name, of in next, lib do
    local copy = {}
    for key, value in next, of do copy[key] = value end
    env[name] = copy
  end
  env._G = env
  return env
end

-- Runs a handler: `true, values`, or `false, why, traceback`. Protected, so that what a script is to close is closed
-- when it fails; the traceback is taken where the error is raised, the text of an error object only after, under the
-- deadline.
local function run(f, ...)
  local trace
  local function after(ok, ...)
    if ok then return true, ... end
    local why = ...
    if type(why) ~= "string" then
      local fine, said = pcall(tostring, why)
      why = fine and said or "an error object without a text"
    end
    return false, why, trace
  end
  return after(xpcall(f, function(e)
    trace = traceback()
    return e
  end, ...))
end

return environment, guard, run
