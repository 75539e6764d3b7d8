local function policy(rules, otherwise) start { config = { permissions = { rule = rules, otherwise = otherwise } } } end

--- What is decided of a tool call on files.
local function asked(kind, paths, key)
  local locations = {}
  for i, path in ipairs(paths or {}) do locations[i] = { path = path } end
  local fired = fire("permission", { key = key or "local:a", kind = kind, locations = array(locations) })
  delivered(fired)
  return fired.choice or "ask"
end

local work = {
  { path = { "/home/*/.ssh/**", "**/.env" }, decide = "deny" },
  { kind = { "read", "search" }, path = "/srv/work/**", decide = "allow" },
  { kind = "execute", key = "telegram:*", decide = "deny" },
}

test("the first rule that matches decides, by kind and path", function()
  policy(work)
  equal(asked("read", { "/srv/work/a/b.txt" }), "allow")
  equal(asked("edit", { "/srv/work/a/b.txt" }), "ask")
  equal(asked("read", { "/srv/works" }), "ask")
  equal(asked("read", { "/srv/work/.env" }), "deny")
  equal(asked("read", { "/home/bob/.ssh/id" }), "deny")
  equal(asked("read", { "/home/bob/x/.ssh/id" }), "ask") -- a single * stays in one directory
end)

test("by key", function()
  policy(work)
  equal(asked("execute", {}, "telegram:7"), "deny")
  equal(asked("execute", {}, "local:telegram"), "ask")
end)

test("to allow, every file must match, and there must be one; to deny, any does", function()
  policy(work)
  equal(asked("read", { "/srv/work/a", "/etc/passwd" }), "ask")
  equal(asked("read", {}), "ask")
  equal(asked("read", { "/srv/work/a", "/srv/work/.env" }), "deny")
end)

test("a path that climbs or is relative is never allowed", function()
  policy { { path = "**", decide = "allow" } }
  equal(asked("read", { "/srv/work/a" }), "allow")
  for _, path in ipairs { "/srv/work/../../etc/passwd", "/srv/work/..", "work/a", "./a", "/srv/./a" } do
    equal(asked("read", { path }), "ask")
  end
end)

test("what no rule decides", function()
  policy({}, "deny")
  equal(asked("other"), "deny")
  policy({}, "allow")
  equal(asked("other"), "allow")
  policy()
  equal(asked("other"), "ask")
end)

test("characters that mean something in Lua patterns mean themselves", function()
  policy { { path = "/srv/a.b-c%d(1)[x]+?/*", decide = "allow" } }
  equal(asked("read", { "/srv/a.b-c%d(1)[x]+?/f" }), "allow")
  equal(asked("read", { "/srv/axb-c%d(1)[x]+?/f" }), "ask")
end)

test("a call that makes it fail is denied", function()
  policy { { path = "/srv/**", decide = "allow" } }
  local fired = fire("permission", { kind = "read", locations = array { { file = "no path" } } })
  failed(fired, "permissions.lua")
  assert(fired.hook_failed)
end)

test("a mistake in the policy keeps it from being loaded", function()
  refused({ config = { permissions = { otherwise = "maybe" } } }, "otherwise: allow, deny or ask expected, got maybe")
  refused({ config = { permissions = { rule = { { decide = "alow" } } } } }, "rule 1.decide")
  refused({ config = { permissions = { rule = { { decide = "allow", paths = "x" } } } } }, "unknown field 'paths'")
  local number = { decide = "allow", kind = { 7 } }
  refused({ config = { permissions = { rule = { number } } } }, "rule 1.kind: a text expected")
end)
