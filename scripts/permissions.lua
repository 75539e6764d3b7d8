-- Decides what agents may do, by the kind of the tool, the files that it touches and the key that it is for.
--
--   [agent.default]
--   permission = "ask"                           # or hooks are not asked
--
--   [hooks.config.permissions]
--   otherwise = "ask"                            # what no rule decides: allow, deny, or ask the client
--
--   [[hooks.config.permissions.rule]]            # the first rule that matches decides
--   path = ["/home/*/.ssh/**", "**/.env"]
--   decide = "deny"
--
--   [[hooks.config.permissions.rule]]
--   kind = ["read", "search"]                    # read, edit, delete, move, search, execute, think, fetch, other
--   path = "/srv/work/**"                        # * within one directory, ** through all
--   decide = "allow"
--
--   [[hooks.config.permissions.rule]]
--   kind = "execute"
--   key = "telegram:*"                           # * is any characters
--   decide = "deny"
--
-- A rule with `path` that denies matches if any file of the call does; one that allows only if all do, and there
-- is at least one. Paths are taken as the agent names them, with // and /./ taken out: this keeps a well-meaning
-- agent in bounds; against another one only a sandbox around its process does. A path that is not absolute or climbs
-- with .. can be any file: it is never allowed by `path`, and every rule with `path` that denies or asks matches it. So
-- it is with a call whose list of files is too long to be shown whole. If this script fails, permission is denied.

local settings = ostler.config.permissions or {}
local DECISIONS = { allow = "allow", deny = "deny", ask = "ask" }

local function decision(value, where)
  if DECISIONS[value] then return value end
  error(("permissions.lua: %s: allow, deny or ask expected, got %s"):format(where, tostring(value)), 0)
end

--- A Lua pattern from one with * and **; `one` is what a single * stands for.
local function pattern(glob, one)
  local escaped = glob:gsub("[%^%$%(%)%%%.%[%]%+%-%?]", "%%%0")
  escaped = escaped:gsub("%*%*", "\0"):gsub("%*", one):gsub("%z", ".*")
  return "^" .. escaped .. "$"
end

--- A text or a list of texts as a list of what `make` makes of each.
local function list(value, where, make)
  if value == nil then return nil end
  local made = {}
  for _, item in ipairs(type(value) == "table" and value or { value }) do
    if type(item) ~= "string" then error(("permissions.lua: %s: a text expected"):format(where), 0) end
    made[#made + 1] = make(item)
  end
  return made
end

-- Read once, when the script is loaded: a mistake keeps the daemon (or a reload) from going on with half a policy.
local rules = {}
local KNOWN = { kind = true, path = true, key = true, decide = true }
for i, rule in ipairs(settings.rule or {}) do
  local where = ("rule %d"):format(i)
  for name in pairs(rule) do
    if not KNOWN[name] then error(("permissions.lua: %s: unknown field '%s'"):format(where, name), 0) end
  end
  rules[i] = {
    number = i,
    decide = decision(rule.decide, where .. ".decide"),
    kinds = list(rule.kind, where .. ".kind", function(kind) return kind end),
    paths = list(rule.path, where .. ".path", function(glob) return pattern(glob, "[^/]*") end),
    keys = list(rule.key, where .. ".key", function(glob) return pattern(glob, ".*") end),
  }
end
local otherwise = decision(settings.otherwise or "ask", "otherwise")

local function any(patterns, text)
  for _, p in ipairs(patterns) do
    if text:find(p) then return true end
  end
  return false
end

--- A path without what says nothing: // and /./, and x/.. as well, which is what is matched, beside being unsound.
local function plain(path)
  local parts = {}
  for part in path:gmatch("[^/]+") do
    if part == ".." then parts[#parts] = nil
    elseif part ~= "." then parts[#parts + 1] = part end
  end
  return (path:sub(1, 1) == "/" and "/" or "") .. table.concat(parts, "/")
end

--- Whether a path says which file it is: from the root, and without a way back, which a link may lead elsewhere.
local function sound(path)
  return path:sub(1, 1) == "/" and not (path .. "/"):find("/../", 1, true) and not path:find("\0", 1, true)
end

--- Whether a rule's paths match the files of a call.
local function touches(rule, locations)
  if not rule.paths then return true end
  -- What was cut can name any file.
  if locations.truncated then return rule.decide ~= "allow" end
  local all = #locations > 0
  for _, location in ipairs(locations) do
    local sure, match = not location.truncated and sound(location.path), nil
    if sure then match = any(rule.paths, plain(location.path)) else match = rule.decide ~= "allow" end
    if rule.decide == "deny" and match then return true end
    if rule.decide == "ask" and not sure then return true end
    all = all and match
  end
  return rule.decide ~= "deny" and all
end

local function matches(rule, ev)
  if rule.keys and not any(rule.keys, ev.key) then return false end
  if rule.kinds then
    local found = false
    for _, kind in ipairs(rule.kinds) do found = found or kind == (ev.kind or "other") end
    if not found then return false end
  end
  return touches(rule, ev.locations or {})
end

ostler.on("permission", function(ev)
  local decide, by = otherwise, "otherwise"
  for _, rule in ipairs(rules) do
    if matches(rule, ev) then
      decide, by = rule.decide, "rule " .. rule.number
      break
    end
  end
  ostler.log.info("permission", { decide = decide, by = by, kind = ev.kind, title = ev.title })
  if decide ~= "ask" then return decide end
end, { name = "policy", on_error = "refuse" })
