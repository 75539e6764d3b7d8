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
  for _, path in ipairs { "/srv/work/../../etc/passwd", "/srv/work/..", "work/a", "./a", "../a", "/srv/a\0b", "" } do
    equal(asked("read", { path }), "ask")
  end
end)

test("there is no other way to write a path that is denied", function()
  policy({ { path = { "/home/*/.ssh/**", "**/.env" }, decide = "deny" } }, "allow")
  for _, path in ipairs { "/home/u/.ssh/id", "/home/u//.ssh/id", "//home/u/.ssh/id", "/home/u/./.ssh/id",
    "/home/u/x/../.ssh/id", "/home/u/.ssh/./id", "/home/u/.ssh//id", "/srv/work/.env/", "/srv/work/.env/.",
    "/srv/a/../b", "../.env", "notes", "" } do
    equal(asked("read", { path }), "deny")
    equal(asked("read", { "/srv/fine", path }), "deny")
  end
  for _, path in ipairs { "/home/u/.sshd/id", "/home/u/ssh/id", "/srv/..env", "/srv/a..b/c", "/srv/.envs", "/srv//a/./b" } do
    equal(asked("read", { path }), "allow")
  end
end)

test("a path that climbs or is relative is asked about where any file is", function()
  policy({ { path = "**/.env", decide = "ask" }, { kind = "read", decide = "allow" } }, "deny")
  equal(asked("read", { "/srv/a" }), "allow")
  equal(asked("read", { "/srv/x/../.env" }), "ask")
  equal(asked("read", { "/srv/a", ".env" }), "ask")
end)

test("a list of files that was cut is every file", function()
  local function cut(locations)
    local fired = fire("permission", { key = "local:a", kind = "read", locations = locations })
    delivered(fired)
    return fired.choice or "ask"
  end
  local whole = { truncated = true, bytes = 40000, head = '[{"path":"/srv/work/a"' }
  local part = array { { path = "/srv/work/a" }, { truncated = true } }
  for _, locations in ipairs { whole, part } do
    policy({ { path = "**/.env", decide = "deny" } }, "allow")
    equal(cut(locations), "deny")
    policy({ { path = "**/.env", decide = "ask" } }, "allow")
    equal(cut(locations), "ask")
    policy({ { path = "/srv/**", decide = "allow" } }, "ask")
    equal(cut(locations), "ask")
    policy({ { kind = "edit", path = "**/.env", decide = "deny" } }, "allow")
    equal(cut(locations), "allow")
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
