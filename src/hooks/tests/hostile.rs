//! Hostile scripts: none of them outlives its deadline by more than a moment, and after each the same hooks go on.

use super::*;

/// Shorter than the grace allows is enough; on a busy machine a stop takes its time.
const TIMEOUT: &str = "100ms";

/// Bodies of a handler that would never end, or eat everything.
const ENDLESS: &[(&str, &str)] = &[
    ("loop", "while true do end"),
    ("repeat", "repeat until false"),
    ("goto", "::a:: goto a"),
    ("recursion", "local function f() return f() end f()"),
    ("pcall", "while true do pcall(function() while true do end end) end"),
    (
        "pcall_nested",
        "local function f(n) while true do pcall(n > 0 and f or function() while true do end end, n - 1) end end f(50)",
    ),
    ("pcall_error", "while true do pcall(error, {}) end"),
    ("xpcall", "while true do xpcall(function() error(1) end, function() while true do end end) end"),
    (
        "xpcall_in_gsub",
        "('x'):gsub('.', function() xpcall(function() while true do end end, function() while true do end end) end)",
    ),
    ("coroutine", "local co = coroutine.wrap(function() while true do end end) co()"),
    (
        "coroutines",
        "while true do local co = coroutine.create(function() while true do end end) coroutine.resume(co) end",
    ),
    ("coroutine_pcall", "while true do pcall(coroutine.wrap(function() while true do end end)) end"),
    (
        "coroutine_ping",
        "local co = coroutine.wrap(function() while true do coroutine.yield() end end) while true do co() end",
    ),
    ("coroutine_tree", "local function f(n) for i = 1, 30 do if n > 0 then coroutine.wrap(f)(n - 1) end end end f(12)"),
    (
        "coroutine_forest",
        "local cos = {} for i = 1, 2000 do cos[i] = coroutine.create(function() while true do for j = 1, 15 do end \
        coroutine.yield() end end) end while true do for i = 1, #cos do coroutine.resume(cos[i]) end end",
    ),
    ("close", "local x <close> = setmetatable({}, { __close = function() while true do end end })"),
    ("close_error", "local x <close> = setmetatable({}, { __close = function() while true do end end }) error('x')"),
    (
        "close_coroutine",
        "local co = coroutine.create(function() local x <close> = setmetatable({}, { __close = function() \
        while true do end end }) coroutine.yield() end) coroutine.resume(co) coroutine.close(co) while true do end",
    ),
    (
        "close_wrap",
        "while true do pcall(coroutine.wrap(function() local x <close> = setmetatable({}, { __close = function() \
        while true do end end }) error('x') end)) end",
    ),
    ("gsub_function", "('x'):gsub('.', function() while true do end end)"),
    ("gsub_pcall", "('x'):gsub('.', function() while true do pcall(function() while true do end end) end end)"),
    ("gsub_table", "('x'):gsub('.', setmetatable({}, { __index = function() while true do end end }))"),
    ("gsub_long", "while true do (('x'):rep(1e6)):gsub('x', 'y') end"),
    ("gsub_empty_captures", "(('a'):rep(1e6)):gsub('(b*)', ('%1'):rep(1e6))"),
    ("sort", "local t = {} for i = 1, 100 do t[i] = i end table.sort(t, function() while true do end end)"),
    (
        "sort_pcall",
        "local t = {} for i = 1, 100 do t[i] = i end table.sort(t, function() while true do pcall(function() \
        while true do end end) end end)",
    ),
    ("sort_liar", "table.sort(setmetatable({}, { __len = function() return (1 << 31) - 2 end }), rawequal)"),
    (
        "sort_long_strings",
        "local a, b = ('x'):rep(5e6) .. 'a', ('x'):rep(5e6) .. 'b' local t = {} for i = 1, 10000 do \
        t[i] = i % 2 == 0 and a or b end table.sort(t) while true do end",
    ),
    (
        "index",
        "local t = setmetatable({}, { __index = function(t, k) return t[k + 1] end }) pcall(function() return t[1] end) while true do end",
    ),
    ("index_loop", "local t = setmetatable({}, { __index = function() while true do end end }) return t.x"),
    ("newindex", "local t = setmetatable({}, { __newindex = function() while true do end end }) t.x = 1"),
    ("concat_meta", "local t = setmetatable({}, { __concat = function() while true do end end }) return t .. 'x'"),
    (
        "eq_meta",
        "local m = { __eq = function() while true do end end } return setmetatable({}, m) == setmetatable({}, m)",
    ),
    ("len_meta", "return #setmetatable({}, { __len = function() while true do end end })"),
    ("tostring_meta", "tostring(setmetatable({}, { __tostring = function() while true do end end }))"),
    ("print_meta", "print(setmetatable({}, { __tostring = function() while true do end end }))"),
    ("format_meta", "('%s'):format(setmetatable({}, { __tostring = function() while true do end end }))"),
    (
        "error_object",
        "error(setmetatable({}, { __tostring = function() while true do pcall(function() while true do end end) end end }))",
    ),
    (
        "pairs_meta",
        "for _ in pairs(setmetatable({}, { __pairs = function() return function() return 1 end end })) do end",
    ),
    ("for_iterator", "for _ in function() return 1 end do end"),
    ("for_pcall", "for _ in pcall, function() while true do end end do end"),
    ("rep_empty", "while true do (''):rep(1e18) end"),
    ("rep_big", "while true do ('x'):rep(4e6) end"),
    ("concat_big", "local s = ('x'):rep(4e6) while true do local t = s .. 'y' end"),
    ("move_range", "while true do pcall(table.move, {}, 1, 2^53 | 0, 2) end"),
    ("move_meta", "table.move(setmetatable({}, { __index = function() return 1 end }), 1, 2^53 | 0, 1, {})"),
    ("insert_liar", "table.insert(setmetatable({}, { __len = function() return 2^53 | 0 end }), 1, 1)"),
    ("remove_liar", "table.remove(setmetatable({}, { __len = function() return 2^53 | 0 end }), 1)"),
    ("concat_liar", "table.concat(setmetatable({}, { __index = table.concat }), '', 1, 2^53 | 0)"),
    (
        "unpack_liar",
        "while true do pcall(table.unpack, setmetatable({}, { __len = function() return 2^53 | 0 end })) end",
    ),
    ("unpack_big", "while true do pcall(table.unpack, {}, 1, 900000) end"),
    ("pattern", "string.find(('a'):rep(30000), ('.-'):rep(8) .. 'b')"),
    ("pattern_match", "string.match(('a'):rep(30000), ('a?'):rep(60) .. ('a'):rep(60) .. '$b')"),
    ("pattern_gmatch", "for _ in string.gmatch(('a'):rep(30000), ('.*'):rep(8) .. 'b') do end"),
    ("pattern_gsub", "(('a'):rep(30000)):gsub(('.+'):rep(8) .. 'b', '')"),
    ("pattern_pcall", "while true do pcall(string.find, ('a'):rep(30000), ('.-'):rep(8) .. 'b') end"),
    ("pattern_method", "(('a'):rep(30000)):find(('.-'):rep(8) .. 'b')"),
    ("pattern_balance", "while true do (('('):rep(30000)):find('%b()') end"),
    ("plain_quadratic", "while true do (('a'):rep(2e6)):find(('a'):rep(1e6) .. 'b', 1, true) end"),
    ("date_format", "while true do pcall(os.date, ('%c'):rep(1e5)) os.date(('%c'):rep(500)) end"),
    ("collisions", "local t = {} for i = 1, 1e9 do t[i * 65536 * 65537] = i if i % 100000 == 0 then t = {} end end"),
    (
        "rehash",
        "local t = {} for i = 1, 65536 do t[i .. ''] = i end local i = 0 while true do t[i .. 'x'] = nil i = i + 1 t[i .. 'x'] = 1 end",
    ),
    (
        "next_empty",
        "local t = {} for i = 1, 1e5 do t[i .. ''] = i end for i = 1, 1e5 do t[i .. ''] = nil end while true do next(t) end",
    ),
    ("json_dag", "local t = {} for i = 1, 60 do t = { t, t } end while true do pcall(ostler.json.encode, t) end"),
    ("json_big", "local s = ('x'):rep(1e6) while true do pcall(ostler.json.encode, { s, s }) end"),
    ("log_loop", "while true do ostler.log.debug('x', { a = 1 }) end"),
    ("kv_loop", "while true do ostler.kv.get('x') end"),
    ("garbage", "while true do local t = { {}, {}, {} } end"),
    (
        "closures",
        "local f = function() end while true do local g = f f = function() return g end if math.random() < 1e-5 then f = nil end f = f or function() end end",
    ),
    ("yield_loop", "while true do coroutine.wrap(coroutine.yield)() end"),
    ("require_loop", "while true do pcall(require, 'nope') end"),
];

/// Bodies of a handler that fail by themselves: each with what the failure says.
const FAILING: &[(&str, &str, &str)] = &[
    ("deep", "local function f() return 1 + f() end f()", "overflow|memory"),
    ("deep_c", "local function f() ('x'):gsub('.', f) end f()", "overflow"),
    ("deep_sort", "local function f() table.sort({ 1, 2, 3 }, f) end f()", "overflow"),
    ("deep_coroutine", "local function f() coroutine.wrap(f)() end f()", "overflow"),
    ("deep_pcall", "local function f() local ok, e = pcall(f) if not ok then error(e, 0) end end f()", "overflow"),
    (
        "deep_meta",
        "local t = setmetatable({}, {}) getmetatable(t).__index = function(t, k) return t[k .. 'x'] end return t.x",
        "overflow",
    ),
    (
        "deep_tostring",
        "local t = setmetatable({}, { __tostring = function(t) return tostring(t) end }) tostring(t)",
        "overflow",
    ),
    ("index_cycle", "local t = {} setmetatable(t, { __index = t }) return t.x.y", "index"),
    ("memory_string", "local s = 'x' while true do s = s .. s end", "memory"),
    ("memory_rep", "return ('x'):rep(1e9)", "memory"),
    ("memory_table", "local t = {} for i = 1, 1e9 do t[i] = { i } end", "memory"),
    ("memory_gsub", "return (('a'):rep(1e6)):gsub('a', ('b'):rep(1000))", "memory"),
    (
        "memory_concat",
        "local t = {} local s = ('x'):rep(1e6) for i = 1, 1e4 do t[i] = s end return table.concat(t)",
        "memory",
    ),
    (
        "memory_pcall",
        "local t = {} pcall(function() for i = 1, 1e9 do t[i] = { i } end end) for i = 1, 1e9 do t[-i] = { i } end",
        "memory",
    ),
    ("memory_format", "return ('%s'):rep(3):format(('x'):rep(12e6), ('y'):rep(12e6), ('z'):rep(12e6))", "memory"),
    ("memory_global", "keep = keep or {} for i = 1, 1e9 do keep[i] = ('x'):rep(1000) .. i end", "memory"),
    ("rep_overflow", "return ('xx'):rep(math.maxinteger)", "too large"),
    ("error_nil", "error(nil)", "nil"),
    ("error_table", "error({ a = 1 })", "table"),
    ("error_function", "error(print)", "function"),
    ("error_bytes", "error('\\xff\\xfe')", ""),
    ("error_long", "error(('x'):rep(1e6))", "xxx"),
    ("error_meta", "error(setmetatable({}, { __tostring = function() error('again') end }))", ""),
    ("error_meta_nil", "error(setmetatable({}, { __tostring = function() return nil end }))", ""),
    ("error_level", "error('x', 1e9)", "x"),
    ("yield", "coroutine.yield(1)", "yielded"),
    ("gc", "setmetatable({}, { __gc = function() while true do end end })", "__gc"),
    ("string_meta", "getmetatable('').__index = nil", "index"),
    ("string_setmeta", "setmetatable('', {})", "table expected"),
    ("string_assign", "local s = 'x' s.rep = 1", "index"),
    ("nan_key", "local t = {} t[0/0] = 1", "NaN"),
    ("nan_json", "ostler.json.encode(0/0)", "no JSON form"),
    ("inf_json", "ostler.json.encode({ a = { b = 1/0 } })", "field 'b'"),
    ("cycle_json", "local t = {} t.t = t ostler.json.encode(t)", "contains itself"),
    ("deep_json", "local t = {} for i = 1, 1000 do t = { t } end ostler.json.encode(t)", "nested deeper"),
    ("deep_decode", "ostler.json.decode(('['):rep(100000))", "recursion limit"),
    ("bad_decode", "ostler.json.decode('{')", "json.decode: EOF"),
    ("function_json", "ostler.json.encode({ print })", "a function has no JSON form"),
    ("mixed_json", "ostler.json.encode({ 1, 2, x = 3 })", "both a sequence"),
    ("bytes_json", "ostler.json.encode('\\xff')", "not UTF-8"),
    ("key_json", "ostler.json.encode({ [1.5] = 1 })", "key: a string expected"),
    ("load", "load('return 1')", "global 'load'"),
    ("loadfile", "loadfile('/etc/passwd')", "global 'loadfile'"),
    ("dofile", "dofile('/etc/passwd')", "global 'dofile'"),
    ("dump", "string.dump(function() end)", "field 'dump'"),
    ("collectgarbage", "collectgarbage('stop')", "global 'collectgarbage'"),
    ("debug", "debug.sethook()", "global 'debug'"),
    ("package", "package.loadlib('x', 'y')", "global 'package'"),
    ("io", "io.popen('true')", "global 'io'"),
    ("execute", "os.execute('true')", "field 'execute'"),
    ("exit", "os.exit(1)", "field 'exit'"),
    ("remove", "os.remove('/tmp/x')", "field 'remove'"),
    ("getenv", "os.getenv('HOME')", "field 'getenv'"),
    ("setlocale", "os.setlocale('C')", "field 'setlocale'"),
    ("tmpname", "os.tmpname()", "field 'tmpname'"),
    ("require_os", "require('os')", "not found"),
    ("require_up", "require('../../etc/passwd')", "not found"),
    ("pattern_bad", "('x'):find('[a')", "malformed pattern"),
    ("pattern_deep", "(('('):rep(40)):find(('('):rep(40))", "too many captures"),
    ("pattern_complex", "string.match(('x'):rep(300), ('x?'):rep(300))", "too complex"),
    ("gsub_bad", "('x'):gsub('x', '%')", "invalid use of '%'"),
    ("gsub_bad_value", "('x'):gsub('x', function() return {} end)", "invalid replacement value (a table)"),
    ("gsub_capture", "('x'):gsub('x', '%2')", "invalid capture index %2"),
    ("session_bad", "ostler.session(7)", "key: a string expected"),
    ("transcript_bad", "ev:transcript{ limit = 0 }", "limit: 1 to 10000"),
    ("version_write", "error(ostler.versoin)", "ostler.versoin: there is no such thing"),
];

fn handler(body: &str, timeout: &str) -> String {
    format!(
        "ostler.on('session_end', function(ev) if not ev.hostile then return end {body} end, {{ timeout = '{timeout}' }})\n\
         ostler.on('session_start', function(ev) local t = {{}} for i = 1, 100 do t[i] = ('a%d'):format(i):gsub('%d', '') end \
         assert(#t == 100) end)"
    )
}

/// Runs a hostile body, then looks whether the same hooks still work. Gives what became of the body.
fn survive(name: &str, body: &str, timeout: &str) -> (Delivered, Duration) {
    let (hooks, _) =
        hooks_with(&[("a.lua", &handler(body, timeout))], Tuning { grace: PATIENCE, ..SHORT }, |settings| {
            settings.threads = 1;
            settings.memory = 64 * 1024 * 1024;
            settings.timeout = PATIENCE;
        });
    let began = Instant::now();
    let hostile = deliver(&hooks, event(HookEvent::SessionEnd, "local:a", json!({ "hostile": true })));
    let took = began.elapsed();
    assert_eq!(deliver(&hooks, event(HookEvent::SessionStart, "local:a", json!({}))), Delivered::Done, "after {name}");
    assert_eq!(deliver(&hooks, event(HookEvent::SessionEnd, "local:a", json!({}))), Delivered::Done, "after {name}");
    assert_eq!(hooks.close(Instant::now() + PATIENCE), 0, "after {name}");
    assert_eq!(hooks.lost(), 0, "after {name}");
    (hostile, took)
}

#[test]
fn what_never_ends_is_stopped_soon_after_its_deadline() {
    let mut late = Vec::new();
    for (name, body) in ENDLESS {
        let (hostile, took) = survive(name, body, TIMEOUT);
        let Delivered::TimedOut(why) = hostile else { panic!("{name}: {hostile:?}") };
        assert!(why.contains("a.lua:1: session_end of local:a: stopped after 100ms"), "{name}: {why}");
        // A second of grace is what a thread has before it is given up.
        if took > Duration::from_millis(1000) {
            late.push((name, took));
        }
    }
    assert!(late.is_empty(), "{late:?}");
}

#[test]
fn what_fails_says_why_and_costs_nothing() {
    for (name, body, what) in FAILING {
        let body = format!("ev.hostile = nil {body}");
        let (hostile, _) = survive(name, &body, "20s");
        let Delivered::Failed(why) = hostile else { panic!("{name}: {hostile:?}") };
        assert!(why.starts_with("a.lua:1: session_end of local:a: "), "{name}: {why}");
        assert!(what.split('|').any(|what| why.contains(what)), "{name}: {why}");
    }
}

#[test]
fn one_script_cannot_reach_another() {
    let (hooks, _) = hooks_with(
        &[
            (
                "10-evil.lua",
                r#"
                string.format = nil  table.insert = nil  _G.print = nil  ostler.log = 1  ostler.config.colour = "blue"
                math.huge = 1  pairs = nil  secret = 1  ostler.json.encode = nil  ostler.kv.get = nil
                rawset(string, "find", function() return "evil" end)
                rawset(_G, "tostring", function() return "evil" end)
                rawset(ostler, "version", "evil")
                coroutine.wrap = nil  utf8.char = nil  os.time = nil
                if getmetatable("") then error("the strings' metatable is to be had") end
                local ok = pcall(rawset, getmetatable(ostler.json.array()), "x", 1)
                if ok then error("the arrays' metatable is to be had") end
                "#,
            ),
            (
                "20-good.lua",
                r#"
                ostler.on("message", function(ev)
                  assert(secret == nil and print and pairs and ostler.log.info and math.huge > 1 and os.time() > 0)
                  assert(("%d"):format(5) == "5" and string.format("%d", 5) == "5" and ("abc"):find("b") == 2)
                  assert(tostring(5) == "5" and ostler.version == "1.2.3" and ostler.config.colour == "red")
                  assert(ostler.json.encode({ 1 }) == "[1]" and ostler.kv.get("x") == nil and utf8.char(65) == "A")
                  assert(_G._G == _G and _ENV == _G and _G.ostler == ostler)
                  return { text = "good" }
                end, { on_error = "refuse" })
                "#,
            ),
        ],
        SHORT,
        |_| {},
    );
    assert_eq!(message(&hooks, "a"), Verdict::Pass(Some("good".to_owned())));
}

#[test]
fn the_shims_do_what_lua_does() {
    let (hooks, _) = hooks(include_str!("shims.lua"));
    assert_eq!(deliver(&hooks, event(HookEvent::SessionEnd, "a:b", json!({}))), Delivered::Done);
}
