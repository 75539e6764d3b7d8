//! What is loaded, and what is refused with file and line.

use std::os::unix::fs::PermissionsExt;

use super::*;

fn refused(script: &str) -> LoadError {
    let dir = scripts(&[("10-a.lua", "local fine = 1"), ("20-b.lua", script)]);
    let mut settings = settings(dir.path());
    settings.timeout = Duration::from_millis(200);
    load(&settings, "1").expect_err(script)
}

#[test]
fn registration_is_strict_and_names_file_and_line() {
    for (script, line, what) in [
        ("\nostler.on('nope', function() end)", 2, "unknown event 'nope'"),
        ("ostler.on('message')", 1, "handler: a function expected"),
        ("ostler.on('message', 7)", 1, "handler: a function expected"),
        ("ostler.on(function() end)", 1, "event: a string expected"),
        ("ostler.on('message', print, 7)", 1, "options: a table expected"),
        ("ostler.on('message', print, { timout = '1s' })", 1, "unknown option 'timout'"),
        ("ostler.on('message', print, { timeout = 5 })", 1, "timeout: a string expected"),
        ("ostler.on('message', print, { timeout = 'soon' })", 1, "timeout: 'soon'"),
        ("ostler.on('message', print, { timeout = '2h' })", 1, "the longest is 1h"),
        ("ostler.on('message', print, { priority = 'high' })", 1, "priority: an integer expected"),
        ("ostler.on('message', print, { priority = 1.5 })", 1, "priority: an integer expected"),
        ("ostler.on('message', print, { name = '' })", 1, "name: 1 to 64 bytes"),
        ("ostler.on('message', print, { on_error = 'explode' })", 1, "'pass' or 'refuse'"),
        ("ostler.on('session_end', print, { on_error = 'refuse' })", 1, "is not synchronous"),
        ("ostler.on('message', print, {}, 1)", 1, "three arguments"),
        ("ostler.on('stopped', print, {name='x'})\nostler.on('stopped', print, {name='x'})", 2, "registered in line 1"),
        ("ostler.every('soon', print)", 1, "when: 'soon'"),
        ("ostler.every('25:00', print)", 1, "when: '25:00'"),
        ("ostler.every('1h', print, {}, 1)", 1, "three arguments"),
        ("ostler.every('1h', print, { nme = 'x' })", 1, "unknown option 'nme'"),
        ("ostler.every('1h')", 1, "handler: a function expected"),
        ("ostler.onn('message', print)", 1, "ostler.onn: no such function"),
        ("ostler.http.request{}", 1, "not allowed here"),
        ("ostler.exec{}", 1, "not allowed here"),
        ("io.open('x')", 1, "attempt to index a nil value (global 'io')"),
        ("ostler.kv.get('x')", 1, "not while a script loads"),
        ("ostler.session('a:b'):send('x')", 1, "not while a script loads"),
        ("x =", 1, "unexpected symbol"),
        ("\n\nerror('on purpose')", 3, "on purpose"),
        ("while true do end", 1, "ran longer than 200ms while loading"),
        ("require('nope')", 1, "module 'nope' not found"),
        ("require('../10-a')", 1, "not found"),
        ("require('lib.x')", 1, "not found"),
        ("require(7)", 1, "module: a string expected"),
        ("coroutine.yield()", 0, "coroutine.yield"),
    ] {
        let e = refused(script);
        assert!(e.message.contains(what), "{script}: {e}");
        assert!(e.script.ends_with("20-b.lua"), "{script}: {e}");
        assert_eq!(e.line.unwrap_or(0), line, "{script}: {e}");
    }
}

#[test]
fn bytecode_is_no_script() {
    let dir = scripts(&[("a.lua", "\u{1b}Lua\u{0}")]);
    assert!(load(&settings(dir.path()), "1").unwrap_err().to_string().contains("a.lua: "));
    let dir = scripts(&[]);
    std::fs::write(dir.path().join("a.lua"), b"return '\xff'").unwrap();
    std::fs::set_permissions(dir.path().join("a.lua"), std::fs::Permissions::from_mode(0o644)).unwrap();
    assert!(load(&settings(dir.path()), "1").unwrap_err().message.contains("not UTF-8"));
}

#[test]
fn what_lua_itself_passes_over_at_the_beginning_is_passed_over() {
    for head in ["\u{feff}", "#!/usr/bin/env lua\n", "\u{feff}# a comment\n", "#!/usr/bin/lua\r\n"] {
        let lines = head.matches('\n').count();
        let dir = scripts(&[
            ("a.lua", &format!("{head}local m = require('m')\nerror('here ' .. m)")),
            ("lib/m.lua", &format!("{head}return 'm'")),
        ]);
        let e = load(&settings(dir.path()), "1").unwrap_err();
        assert!(e.message.ends_with("here m"), "{e}");
        assert_eq!(e.line, Some(lines + 2), "{e}");
    }
    let dir = scripts(&[("a.lua", "#!/usr/bin/env lua")]);
    load(&settings(dir.path()), "1").unwrap();
}

#[test]
fn what_others_could_write_to_is_refused() {
    for (path, mode) in [("a.lua", 0o666), ("a.lua", 0o664), ("", 0o777), ("lib", 0o775), ("lib/m.lua", 0o646)] {
        let dir = scripts(&[("a.lua", "local x = 1"), ("lib/m.lua", "return 1")]);
        assert!(load(&settings(dir.path()), "1").is_ok());
        let path = dir.path().join(path);
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        let e = load(&settings(dir.path()), "1").unwrap_err();
        assert!(e.message.contains("other users could write to it"), "{e}");
        assert_eq!(e.script.components(), path.components(), "{e}");
    }
}

#[test]
fn states_must_register_the_same() {
    let dir = scripts(&[("a.lua", "ostler.on('stopped', print, { name = tostring({}) })")]);
    assert!(load(&settings(dir.path()), "1").unwrap_err().message.contains("different handlers"));
}

#[test]
fn modules_are_found_below_lib_once_a_state_and_have_their_own_globals() {
    let dir = scripts(&[
        (
            "a.lua",
            "leak = 1\nlocal m = require('m')\nm.n = m.n + 1\nassert(m.n == 1 and m.deep == 'deep')\nassert(not shared)",
        ),
        (
            "b.lua",
            "local m = require('m')\nm.n = m.n + 1\nassert(m.n == 2)\nassert(leak == nil)\nassert(require('dir').is == 'init')",
        ),
        ("lib/m.lua", "shared = 1\nassert(leak == nil)\nreturn { n = 0, deep = require('dir.deep') }"),
        ("lib/dir/deep.lua", "return 'deep'"),
        ("lib/dir/init.lua", "return { is = 'init' }"),
        ("c.test.lua", "error('a test is no script')"),
    ]);
    load(&settings(dir.path()), "1").unwrap();
    let dir = scripts(&[("a.lua", "require('m')"), ("lib/m.lua", "return require('m')")]);
    let e = load(&settings(dir.path()), "1").unwrap_err();
    assert!(e.message.contains("requires itself"), "{e}");
    let dir = scripts(&[("a.lua", "\nrequire('m')"), ("lib/m.lua", "x = = 1")]);
    let e = load(&settings(dir.path()), "1").unwrap_err();
    assert!(e.message.contains("lib/m.lua:1: unexpected symbol"), "{e}");
    assert_eq!(e.line, Some(2));
}

#[test]
fn handlers_are_in_calling_order() {
    let dir = scripts(&[
        ("20-b.lua", "ostler.on('stopped', print)\nostler.on('stopped', print, { priority = 9 })"),
        (
            "10-a.lua",
            "ostler.on('stopped', print, { name = 'n' })\nostler.on('reload', print)\nostler.on('stopped', print)",
        ),
        ("30-c.lua", "ostler.on('stopped', print, { priority = -1 })\nostler.on('stopped', print, { priority = 9 })"),
    ]);
    let hooks = Hooks::start(load(&settings(dir.path()), "1").unwrap(), MemoryHost::new(), "b").unwrap();
    let order: Vec<String> = hooks.handlers(HookEvent::Stopped).iter().map(ToString::to_string).collect();
    assert_eq!(order, ["20-b.lua:2", "30-c.lua:2", "10-a.lua:n", "10-a.lua:2", "20-b.lua:1", "30-c.lua:1"]);
    let lines: Vec<usize> = hooks.list().iter().filter(|h| h.event == "stopped").map(|h| h.line).collect();
    assert_eq!(lines, [2, 2, 1, 3, 1, 1]);
}

#[test]
fn on_is_only_for_loading() {
    let (hooks, _) = hooks("ostler.on('session_end', function() ostler.on('stopped', print) end)");
    let Delivered::Failed(why) = deliver(&hooks, event(HookEvent::SessionEnd, "a:b", json!({}))) else { panic!() };
    assert!(why.contains("only while the script loads"), "{why}");
}
