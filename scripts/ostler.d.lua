---@meta ostler
-- What scripts of ostler may call, and what events have: type annotations for editors with the Lua language server
-- (LuaLS). Put into the hooks directory's .luarc.json, or your editor's settings:
--
--   { "runtime.version": "Lua 5.4", "workspace.library": ["/usr/share/doc/ostler/examples"],
--     "runtime.builtin": { "debug": "disable", "io": "disable", "os": "disable", "package": "disable" } }
--
-- The libraries that are disabled there are those of which a script has less than Lua has; what it has stands here.
-- This file is no script: the daemon does not load it. It is compared with the daemon's API whenever ostler is tested.

-- Words -------------------------------------------------------------------------------------------------------------

---@alias ostler.EventName
---| "daemon_start"
---| "session_start"
---| "message"
---| "before_turn"
---| "turn_start"
---| "turn_end"
---| "permission"
---| "session_end"
---| "session_closed"
---| "shutdown"
---| "stopped"
---| "reload"

---@alias ostler.EndReason
---| "parked"
---| "shutdown"
---| "restart"
---| "crash"
---| "suspended"
---| "reset"
---| "idle"
---| "daily"
---| "expired"
---| "deleted"
---| "new"

---@alias ostler.StartReason
---| "new"
---| "reset"
---| "idle"
---| "daily"
---| "expired"
---| "suspended"
---| "message"
---| "resume"

---@alias ostler.Actor
---| "user"
---| "operator"
---| "policy"
---| "supervisor"
---| "crash"

---@alias ostler.MarkReason
---| "shutdown_timeout"
---| "restart_timeout"
---| "crash"

---@alias ostler.Outcome
---| "completed"
---| "failed"
---| "cancelled"
---| "interrupted"

---@alias ostler.StopReason
---| "shutdown"
---| "restart"

---@alias ostler.Role
---| "user"
---| "agent"
---| "tool"
---| "system"

-- Parts of events ---------------------------------------------------------------------------------------------------

---@class ostler.Entry
---@field seq integer Its place in the transcript.
---@field turn_id string? The turn that it belongs to.
---@field role ostler.Role Who speaks.
---@field text string
---@field at string RFC 3339.

---@class ostler.Mark
---@field reason ostler.MarkReason
---@field marked_at string RFC 3339.

---@class ostler.Recovered
---@field deaths integer Unclean ends of the daemon since the last clean one.
---@field activations integer Activations that were closed for the boot before.
---@field interrupted integer Turns that were cut off.
---@field suspended integer Sessions that were suspended for it.

---@class ostler.Peer
---@field uid integer? The user on the other side of the unix socket.
---@field pid integer? The process there.
---@field address string? The address on the other side of TCP.

---@class ostler.Location
---@field path string
---@field line integer?

---@class ostler.Option
---@field option_id string
---@field name string
---@field kind string allow_once, allow_always, reject_once, reject_always.

---@class ostler.Report
---@field boot_id string
---@field reason ostler.StopReason
---@field urgency string graceful, fast or now.
---@field clean boolean
---@field started_at string RFC 3339.
---@field ended_at string RFC 3339.
---@field phases table[]
---@field sessions table[]

-- Results of handlers that the daemon waits for ---------------------------------------------------------------------

---@class ostler.MessageResult
---@field text string? The message from here on: the rewritten text alone is stored.
---@field refuse string? Refuses it, and tells the sender why.

---@class ostler.BeforeTurnResult
---@field context string? Put before the prompt, and kept with the role system.

-- Events ------------------------------------------------------------------------------------------------------------

---What every event has.
---@class ostler.Event
---@field event ostler.EventName
---@field event_id string The same in every delivery of one event.
---@field at string When it became true: RFC 3339.
---@field boot_id string
---@field attempt integer Which delivery this is, from 1.
---@field redelivered boolean This handler may have seen it before.
---@field test boolean Sent by `ostler hooks fire`.

---@class ostler.TranscriptOptions
---@field after integer? Only entries behind this one.
---@field limit integer? At most so many: 1 to 10000, 1000 where nothing is said.

---An event of a session, which can be read up to where it stood.
---@class ostler.SessionEvent : ostler.Event
local SessionEvent = {}

---@param options ostler.TranscriptOptions?
---@return ostler.Entry[]
function SessionEvent:transcript(options) end

---After READY, before anything journalled is delivered.
---@class ostler.DaemonStart : ostler.Event
---@field version string The daemon's version.
---@field recovered ostler.Recovered What this boot found.

---An activation opens. Journalled: delivered at least once.
---@class ostler.SessionStart : ostler.SessionEvent
---@field key string
---@field session_id string
---@field epoch integer Counts the session's activations, from 1.
---@field reason ostler.StartReason
---@field previous_id string? The session before it under the key.
---@field agent string The agent's name in the configuration.
---@field cwd string The agent's working directory.

---Before a message is accepted. The daemon waits.
---@class ostler.Message : ostler.Event
---@field key string
---@field text string As the handlers before this one left it.
---@field id string? The sender's id for it.
---@field origin string How it came: api.
---@field peer ostler.Peer Who sent it.

---Just before a prompt. The daemon waits.
---@class ostler.BeforeTurn : ostler.SessionEvent
---@field key string
---@field session_id string
---@field turn_id string
---@field text string The message.
---@field first boolean The first turn of this activation.
---@field resumed boolean
---@field continues string? The turn that was cut off.

---A turn began.
---@class ostler.TurnStart : ostler.SessionEvent
---@field key string
---@field session_id string
---@field turn_id string
---@field resumed boolean It goes on where another was cut off.
---@field continues string? The turn that was cut off.

---A turn ended.
---@class ostler.TurnEnd : ostler.SessionEvent
---@field key string
---@field session_id string
---@field turn_id string
---@field resumed boolean It went on where another was cut off.
---@field continues string? The turn that was cut off.
---@field outcome ostler.Outcome
---@field duration_ms integer
---@field text string The answer, or as much as there was of it.

---An agent asks for permission. The daemon waits.
---@class ostler.Permission : ostler.SessionEvent
---@field key string
---@field session_id string
---@field turn_id string
---@field request_id string
---@field tool string The tool call's id.
---@field title string? What it would do, for people.
---@field kind string? read, edit, delete, move, search, execute, think, fetch, other.
---@field input any What the tool is given. What is too long is { truncated = true, bytes =, head = }, here and below.
---@field content any The agent's own words, and diffs: a list of tables, each with its type.
---@field locations ostler.Location[]? The files that it touches, as the agent says.
---@field options ostler.Option[]

---An activation closes. Journalled: delivered at least once.
---@class ostler.SessionEnd : ostler.SessionEvent
---@field key string
---@field session_id string
---@field epoch integer
---@field reason ostler.EndReason
---@field final boolean The session is over too.
---@field actor ostler.Actor
---@field agent string
---@field cwd string
---@field started_at string RFC 3339.
---@field ended_at string RFC 3339.
---@field turns integer In this activation.
---@field messages integer In this activation.
---@field previous_id string?
---@field next_id string? The session that takes its place.
---@field resume_pending ostler.Mark? It was cut off, and goes on after the next start.

---A session is over, live or parked. Journalled: delivered at least once.
---@class ostler.SessionClosed : ostler.SessionEvent
---@field key string
---@field session_id string
---@field reason ostler.EndReason
---@field actor ostler.Actor
---@field previous_id string?
---@field next_id string?
---@field epochs integer How many activations it had.
---@field turns integer
---@field messages integer
---@field created_at string RFC 3339.
---@field ended_at string RFC 3339.

---A stop begins.
---@class ostler.Shutdown : ostler.Event
---@field reason ostler.StopReason
---@field deadline_ms integer What is left for the hooks.
---@field running string[] The keys with a turn in progress.
---@field live integer How many sessions are live.

---Last of all: every session has ended.
---@class ostler.Stopped : ostler.Event
---@field reason ostler.StopReason
---@field clean boolean
---@field report ostler.Report The stop report.

---After a successful reload.
---@class ostler.Reload : ostler.Event
---@field changed string[] The configuration keys that changed.

-- Registration ------------------------------------------------------------------------------------------------------

---@alias ostler.OnMessage fun(ev: ostler.Message): ostler.MessageResult?
---@alias ostler.OnBeforeTurn fun(ev: ostler.BeforeTurn): ostler.BeforeTurnResult?
---@alias ostler.OnPermission fun(ev: ostler.Permission): string? An option's id, "allow" or "deny".

---@class ostler.OnOptions
---@field timeout string? A duration such as "2s"; hooks.timeout where nothing is said.
---@field priority integer? Higher is called first; 0 where nothing is said.
---@field name string? By which its events are owed to it; its ordinal for the event in the file where nothing is said.
---@field on_error "pass"|"refuse"|nil Of handlers that the daemon waits for: what a failure means.

---@class ostler.EveryOptions
---@field name string? By which its runs are remembered.
---@field timeout string?

ostler = {}

---What the operator put into [hooks.config].
---@type table<string, any>
ostler.config = {}

---@type string
ostler.version = ""

---Registers a handler; only while the script is loaded.
---@overload fun(event: "daemon_start", handler: (fun(ev: ostler.DaemonStart)), options?: ostler.OnOptions)
---@overload fun(event: "session_start", handler: (fun(ev: ostler.SessionStart)), options?: ostler.OnOptions)
---@overload fun(event: "message", handler: ostler.OnMessage, options?: ostler.OnOptions)
---@overload fun(event: "before_turn", handler: ostler.OnBeforeTurn, options?: ostler.OnOptions)
---@overload fun(event: "turn_start", handler: (fun(ev: ostler.TurnStart)), options?: ostler.OnOptions)
---@overload fun(event: "turn_end", handler: (fun(ev: ostler.TurnEnd)), options?: ostler.OnOptions)
---@overload fun(event: "permission", handler: ostler.OnPermission, options?: ostler.OnOptions)
---@overload fun(event: "session_end", handler: (fun(ev: ostler.SessionEnd)), options?: ostler.OnOptions)
---@overload fun(event: "session_closed", handler: (fun(ev: ostler.SessionClosed)), options?: ostler.OnOptions)
---@overload fun(event: "shutdown", handler: (fun(ev: ostler.Shutdown)), options?: ostler.OnOptions)
---@overload fun(event: "stopped", handler: (fun(ev: ostler.Stopped)), options?: ostler.OnOptions)
---@overload fun(event: "reload", handler: (fun(ev: ostler.Reload)), options?: ostler.OnOptions)
---@param event ostler.EventName
---@param handler fun(ev: ostler.Event): any
---@param options ostler.OnOptions?
function ostler.on(event, handler, options) end

---Runs a function every day at a local time ("04:00"), or at an interval ("1h"): once a due time over all states, and
---once at the next start for what was missed. Only while the script is loaded.
---@param when string
---@param run fun()
---@param options ostler.EveryOptions?
function ostler.every(when, run, options) end

-- Log ---------------------------------------------------------------------------------------------------------------

---A line in the daemon's log, with the handler and the event's key; `fields` are added.
ostler.log = {}

---@param text string
---@param fields table<string, any>?
function ostler.log.debug(text, fields) end

---@param text string
---@param fields table<string, any>?
function ostler.log.info(text, fields) end

---@param text string
---@param fields table<string, any>?
function ostler.log.warn(text, fields) end

---@param text string
---@param fields table<string, any>?
function ostler.log.error(text, fields) end

-- JSON --------------------------------------------------------------------------------------------------------------

ostler.json = {}

---What `null` is when it is decoded; in events what is null is absent.
---@type lightuserdata
ostler.json.null = nil

---@param value any
---@return string
function ostler.json.encode(value) end

---@param text string
---@return any
function ostler.json.decode(text) end

---Makes a table an array, also an empty one.
---@generic T : table
---@param list T?
---@return T
function ostler.json.array(list) end

-- Values that last --------------------------------------------------------------------------------------------------

---Durable values that all scripts share: JSON up to 64 KiB, keys up to 512 bytes; each call is one transaction.
ostler.kv = {}

---@class ostler.KvSetOptions
---@field ttl string? A duration, after which it is gone.
---@field only_if any Only if this is the value there; `ostler.json.null`: only if there is none.

---@class ostler.KvIncrOptions
---@field ttl string? Counted from when there was no value.

---@param key string
---@return any
function ostler.kv.get(key) end

---@param key string
---@param value any
---@param options ostler.KvSetOptions?
---@return boolean done False: the condition did not hold.
function ostler.kv.set(key, value, options) end

---@param key string
---@return boolean
function ostler.kv.delete(key) end

---@param key string
---@param by integer? 1 where nothing is said.
---@param options ostler.KvIncrOptions?
---@return integer sum
function ostler.kv.incr(key, by, options) end

-- Sessions ----------------------------------------------------------------------------------------------------------

---@class ostler.SendOptions
---@field id string? Sent again with the same id, it is not run again; where nothing is said, a redelivery has the same.

---@class ostler.Sent
---@field session_id string
---@field turn_id string
---@field message_id string
---@field duplicate boolean
---@field deferred boolean It is answered after the next start.
---@field queued integer Messages waiting before it.

---@class ostler.SessionInfo
---@field key string
---@field id string
---@field state "live"|"parked"|"suspended"|"ended"
---@field epoch integer
---@field agent string
---@field turn table? `id`, `state`, `started_at`, `tool`, `continues` of the turn that is queued or running.
---@field queued integer
---@field resume_pending ostler.Mark?
---@field unclean integer
---@field created_at string
---@field updated_at string
---@field ended_at string?
---@field end_reason ostler.EndReason?
---@field previous_id string?
---@field next_id string?
---@field turns integer
---@field messages integer
---@field permissions ostler.OpenPermission[] What its agent waits for, oldest first.

---What an agent waits for. Each field may be cut, as in `ostler.Permission`.
---@class ostler.OpenPermission
---@field request_id string
---@field turn_id string
---@field tool_call_id string
---@field title string?
---@field kind string?
---@field input any
---@field content any
---@field locations ostler.Location[]?
---@field options ostler.Option[]
---@field since string RFC 3339.

---@class ostler.Session
---@field key string
local Session = {}

---Sends a message under the key, past the `message` handlers.
---@param text string
---@param options ostler.SendOptions?
---@return ostler.Sent
function Session:send(text, options) end

---@param options ostler.TranscriptOptions?
---@return ostler.Entry[]
function Session:transcript(options) end

---@return ostler.SessionInfo? info Nothing, if there is no session.
function Session:info() end

---The conversation under a key, or the session with an id.
---@param key string
---@return ostler.Session
function ostler.session(key) end

-- Outside, with leave in [hooks] allow ------------------------------------------------------------------------------

---@class ostler.HttpRequest
---@field url string
---@field method string? GET, or POST where there is a body.
---@field headers table<string, string|integer>?
---@field body string?
---@field timeout string? A duration; 30s where nothing is said, never beyond the handler's.

---@class ostler.HttpAnswer
---@field status integer
---@field headers table<string, string> By names in small letters.
---@field body string

---Needs leave for "http".
ostler.http = {}

---A GET or HEAD follows redirects, without the headers where they lead to another host; any other method has the redirect
---as its answer.

---@param request ostler.HttpRequest
---@return ostler.HttpAnswer? answer
---@return string? why
function ostler.http.request(request) end

---@class ostler.ExecRequest
---@field argv (string|integer)[] The program and its arguments; there is no shell.
---@field stdin string?
---@field timeout string? A duration; 30s where nothing is said, never beyond the handler's.

---@class ostler.ExecResult
---@field status integer? Nothing, if a signal ended it.
---@field signal integer?
---@field stdout string
---@field stderr string

---Needs leave for "exec".
---@param request ostler.ExecRequest
---@return ostler.ExecResult? result
---@return string? why
function ostler.exec(request) end

---@class ostler.File
local File = {}

---@param ... string|integer "l", "L", "n", "a" or a count of bytes.
---@return any ...
function File:read(...) end

---@param ... string|number
---@return ostler.File? file
---@return string? why
function File:write(...) end

---@param ... string|integer
---@return fun(): any
function File:lines(...) end

---@return boolean
function File:flush() end

---@param whence "set"|"cur"|"end"|nil
---@param offset integer?
---@return integer
function File:seek(whence, offset) end

---@return boolean
function File:close() end

---Needs leave for "fs", and reaches only below hooks.fs_roots.
io = {}

---@param path string
---@param mode string?
---@return ostler.File? file
---@return string? why
function io.open(path, mode) end

---@param path string
---@param ... string|integer
---@return fun(): any
function io.lines(path, ...) end

-- What there is of Lua's own os and package -------------------------------------------------------------------------

os = {}

---@param at table?
---@return integer
function os.time(at) end

---@param format string? At most 1024 bytes.
---@param at integer?
---@return string|table
function os.date(format, at) end

---@return number
function os.clock() end

---@param later integer
---@param earlier integer
---@return number
function os.difftime(later, earlier) end

---A module: a file in `lib` below the hooks directory, run once in each state.
---@param name string
---@return any
function require(name) end
