//! What scripts reach if they are allowed to: files below the roots, programs, HTTP.

use std::io::{Read, Write};
use std::net::TcpListener;

use super::*;
use crate::thread;

/// Runs a body as a handler with everything allowed, files below `roots`; panics with what it says when it fails.
fn run(roots: &[&Path], body: &str) {
    let script = format!("ostler.on('session_end', function(ev)\n{body}\nend, {{ timeout = '20s' }})");
    let (hooks, _) = hooks_with(&[("a.lua", &script)], SHORT, |settings| {
        settings.allow_exec = true;
        settings.allow_http = true;
        settings.allow_fs = true;
        settings.fs_roots = roots.iter().map(|r| r.to_path_buf()).collect();
    });
    assert_eq!(deliver(&hooks, event(HookEvent::SessionEnd, "a:b", json!({}))), Delivered::Done);
}

#[test]
fn files_are_read_and_written_as_in_lua() {
    let dir = tempfile::tempdir().unwrap();
    let body = r#"
        local path = "DIR/x.txt"
        local f = assert(io.open(path, "w"))
        assert(f:write("one\n", 2, "\n", 3.5, " 0x10 nope\nlast") == f)
        assert(f:close() and not pcall(f.write, f, "x") and tostring(f) == "file (closed)")
        local f = assert(io.open(path))
        assert(f:read() == "one" and f:read("L") == "2\n" and f:read("n", "n") == 3.5)
        assert(f:seek("cur") > 0 and f:seek("set", 4) == 4 and f:read("n") == 2 and f:read(1) == "\n")
        assert(f:read("*a") == "3.5 0x10 nope\nlast" and f:read("a") == "" and f:read("l") == nil and f:read(0) == nil)
        assert(f:seek("end") == 24 - 1 or true)
        f:close()
        local f <close> = assert(io.open(path, "a+"))
        f:write("!") f:seek("set")
        local lines = {} for line in f:lines() do lines[#lines + 1] = line end
        assert(table.concat(lines, "|") == "one|2|3.5 0x10 nope|last!", table.concat(lines, "|"))
        local n = 0 for a, b in io.lines(path, 1, "l") do n = n + 1 end
        assert(n == 4)
        local r = assert(io.open(path, "r+"))
        assert(r:read("l") == "one") r:write("2nd") r:seek("set") assert(r:read("a"):sub(1, 7) == "one\n2nd")
        assert(not pcall(io.lines, "DIR/none") and not pcall(r.read, r, "x") and not pcall(r.seek, r, "up"))
        local none, why = io.open("DIR/none")
        assert(none == nil and why:find("DIR/none", 1, true))
        local none, why = io.open(path, "rw")
        assert(none == nil and why:find("mode", 1, true))
        assert(io.popen == nil and io.write == nil and io.stdout == nil)
    "#;
    run(&[], &body.replace("DIR", dir.path().to_str().unwrap()));
}

#[test]
fn what_is_wrong_with_a_file_is_said_with_the_scripts_line() {
    let dir = tempfile::tempdir().unwrap();
    let body = r#"
        local f = assert(io.open("DIR/x", "w+"))
        for _, bad in ipairs{ function() f.read() end, function() f:read("x") end, function() f:read({}) end,
            function() f:seek("up") end, function() f:seek("set", "x") end, function() f:write({}) end,
            function() io.lines("DIR/none") end, function() io.open() end, function() io.lines("DIR/x", "x")() end } do
          local ok, why = pcall(bad)
          assert(not ok and type(why) == "string" and why:find("^a.lua:%d+: [fio]+l?e?[.:]"), tostring(why))
        end
        local none, why = f:seek("set", -1)
        assert(none == nil and type(why) == "string")
        f:close()
        for _, closed in ipairs{ function() f:read() end, function() f:write("x") end, function() f:seek() end,
            function() f:lines()() end, function() f:flush() end } do
          local ok, why = pcall(closed)
          assert(not ok and why:find("^a.lua:%d+: file:%l+: attempt to use a closed file"), tostring(why))
        end
        assert(f.nothing == nil and f:close() == true)
    "#;
    run(&[dir.path()], &body.replace("DIR", dir.path().to_str().unwrap()));
}

#[test]
fn nothing_outside_of_the_roots_is_opened() {
    let (inside, outside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    std::fs::write(outside.path().join("secret"), "s").unwrap();
    std::fs::write(inside.path().join("mine"), "m").unwrap();
    std::os::unix::fs::symlink(outside.path().join("secret"), inside.path().join("link")).unwrap();
    std::os::unix::fs::symlink(outside.path(), inside.path().join("dir")).unwrap();
    std::os::unix::fs::symlink(outside.path().join("new"), inside.path().join("dangling")).unwrap();
    std::os::unix::fs::symlink(inside.path().join("mine"), inside.path().join("own")).unwrap();
    let fifo = inside.path().join("fifo");
    rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
    let body = r#"
        assert(io.open("IN/mine"):read("a") == "m" and io.open("IN/own"):read("a") == "m")
        assert(io.open("IN/new", "w"):write("x"))
        for _, path in ipairs{ "OUT/secret", "IN/link", "IN/dir/secret", "IN/../secret", "/etc/passwd", "IN/fifo", "IN",
            "IN/x\0y", "" } do
          local f, why = io.open(path)
          assert(f == nil and type(why) == "string", path)
          assert(not pcall(io.lines, path))
        end
        for _, path in ipairs{ "OUT/new", "IN/dir/new", "IN/dangling", "IN/../new", "IN/none/new" } do
          assert(io.open(path, "w") == nil, path)
        end
    "#;
    let body = body.replace("IN", inside.path().to_str().unwrap()).replace("OUT", outside.path().to_str().unwrap());
    run(&[inside.path()], &body);
    assert!(!outside.path().join("new").exists());
}

#[test]
fn programs_run_without_a_shell_and_die_with_their_group() {
    let dir = tempfile::tempdir().unwrap();
    let body = r#"
        local r = assert(ostler.exec{ argv = { "cat" }, stdin = "hello" })
        assert(r.status == 0 and r.stdout == "hello" and r.stderr == "" and r.signal == nil)
        local r = assert(ostler.exec{ argv = { "sh", "-c", "echo out; echo err >&2; exit 3" } })
        assert(r.status == 3 and r.stdout == "out\n" and r.stderr == "err\n")
        local r = assert(ostler.exec{ argv = { "sh", "-c", "kill -9 $$" } })
        assert(r.status == nil and r.signal == 9)
        assert(ostler.exec{ argv = { "echo", "$HOME;", 7 } }.stdout == "$HOME; 7\n")
        local env = assert(ostler.exec{ argv = { "env" } }).stdout
        for name in env:gmatch("([%w_]+)=") do assert(name == "PATH" or name == "HOME" or name == "LANG", name) end
        -- more than a pipe holds, both ways
        local big = ("x"):rep(1000000)
        assert(#ostler.exec{ argv = { "cat" }, stdin = big }.stdout == #big)
        assert(ostler.exec{ argv = { "true" }, stdin = big }.status == 0)
        assert(#ostler.exec{ argv = { "head", "-c", "6000000", "/dev/zero" } }.stdout == 4 * 1024 * 1024)
        local none, why = ostler.exec{ argv = { "/no/such/program" } }
        assert(none == nil and why:find("/no/such/program", 1, true))
        -- what stays behind is killed: a child that holds the pipes does not hold us
        local r = assert(ostler.exec{ argv = { "sh", "-c", "sleep 1000 & echo $!" }, timeout = "10s" })
        assert(r.status == 0)
        local none, why = ostler.exec{ argv = { "sh", "-c", "sleep 1000 & echo $! > DIR/pid; sleep 1000" }, timeout = "500ms" }
        assert(none == nil and why:find("timed out", 1, true), why)
        for _, bad in ipairs{ {}, { argv = {} }, { argv = "ls" }, { argv = { "a\0b" } }, { argv = { print } },
            { argv = { "ls" }, cwd = "/" }, { argv = { "ls" }, stdin = 7 }, { argv = { "ls" }, timeout = 1 } } do
          assert(not pcall(ostler.exec, bad))
        end
    "#;
    run(&[], &body.replace("DIR", dir.path().to_str().unwrap()));
    let pid = std::fs::read_to_string(dir.path().join("pid")).unwrap();
    let until = Instant::now() + PATIENCE;
    let gone = || match std::fs::read_to_string(format!("/proc/{}/stat", pid.trim())) {
        Ok(stat) => stat.contains(") Z "),
        Err(_) => true,
    };
    while !gone() && Instant::now() < until {
        std::thread::yield_now();
    }
    assert!(gone(), "the grandchild was killed");
}

#[test]
fn a_program_does_not_outlive_the_handlers_deadline() {
    let script = "ostler.on('session_end', function() ostler.exec{ argv = { 'sleep', '1000' } } while true do end end, { timeout = '300ms' })";
    let (hooks, _) = hooks_with(&[("a.lua", script)], SHORT, |settings| settings.allow_exec = true);
    let ev = event(HookEvent::SessionEnd, "a:b", json!({}));
    assert!(matches!(deliver(&hooks, ev), Delivered::TimedOut(_)));
    assert_eq!(hooks.lost(), 0);
}

/// Answers each connection with the next of these, and gives what was asked.
fn serve(answers: Vec<Vec<u8>>) -> (String, Receiver<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let (tell, told) = unbounded();
    let _ = thread::spawn("http", thread::IO_STACK, move || {
        let mut kept = Vec::new();
        for answer in answers {
            let (mut stream, _) = listener.accept().unwrap();
            let mut asked = Vec::new();
            let mut piece = [0; 4096];
            while !asked.windows(4).any(|w| w == b"\r\n\r\n") {
                let n = stream.read(&mut piece).unwrap();
                asked.extend_from_slice(&piece[..n]);
            }
            let _ = tell.send(String::from_utf8_lossy(&asked).into_owned());
            let _ = stream.write_all(&answer);
            if answer.is_empty() {
                kept.push(stream);
            }
        }
        let _ = listener.accept();
    });
    (url, told)
}

#[test]
fn http_is_bounded_in_time_and_size() {
    let mut huge = b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n".to_vec();
    huge.resize(9 * 1024 * 1024, b'x');
    let (url, asked) = serve(vec![
        b"HTTP/1.1 404 Not Found\r\nX-A: b\r\nConnection: close\r\nContent-Length: 2\r\n\r\n\xff!".to_vec(),
        b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 0\r\n\r\n".to_vec(),
        huge,
        Vec::new(),
    ]);
    let body = r#"
        local r = assert(ostler.http.request{ url = "URL/a?b=c", headers = { ["X-Q"] = "w", ["X-N"] = 7 } })
        assert(r.status == 404 and r.headers["x-a"] == "b" and r.body == "\xff!")
        local r = assert(ostler.http.request{ url = "URL/p", body = "data", method = "put" })
        assert(r.status == 200 and r.body == "")
        local none, why = ostler.http.request{ url = "URL/huge" }
        assert(none == nil and type(why) == "string")
        local none, why = ostler.http.request{ url = "URL/hangs", timeout = "200ms" }
        assert(none == nil and why:find("timeout", 1, true), why)
        local none, why = ostler.http.request{ url = "http://127.0.0.1:1/" }
        assert(none == nil)
        for _, bad in ipairs{ {}, { url = "ftp://x" }, { url = "file:///etc/passwd" }, { url = "URL", bdy = "x" },
            { url = "URL", headers = { ["a b"] = "x" } }, { url = "URL", headers = { a = "x\ny" } }, { url = "URL", body = {} },
            { url = "URL", method = "a b" }, { url = 7 }, { url = "URL", timeout = "x" } } do
          local ok, why = pcall(ostler.http.request, bad)
          assert(not ok and type(why) == "string" and why:find("http.request: ", 1, true))
        end
    "#;
    run(&[], &body.replace("URL", &url));
    let first = asked.recv_timeout(PATIENCE).unwrap().to_lowercase();
    assert!(
        first.starts_with("get /a?b=c http/1.1\r\n") && first.contains("x-q: w\r\n") && first.contains("x-n: 7\r\n"),
        "{first}"
    );
    assert!(asked.recv_timeout(PATIENCE).unwrap().starts_with("PUT /p "));
}

#[test]
fn redirects_are_followed_where_nothing_is_done_twice_and_no_secret_goes_along() {
    let to = |status: &str, url: &str| {
        format!("HTTP/1.1 {status}\r\nLocation: {url}\r\nConnection: close\r\nContent-Length: 0\r\n\r\n").into_bytes()
    };
    let ok = b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok".to_vec();
    let (other, other_asked) = serve(vec![ok.clone(), ok.clone()]);
    let (url, asked) = serve(vec![
        to("302 Found", &format!("{other}/moved")),
        to("307 Temporary Redirect", &format!("{other}/moved")),
        to("301 Moved Permanently", "next?x=y"),
        ok.clone(),
        to("303 See Other", &format!("{other}/elsewhere")),
        to("302 Found", "/1"),
        to("302 Found", "/2"),
        to("302 Found", "/3"),
        to("302 Found", "/4"),
        to("302 Found", "/5"),
        to("302 Found", "/6"),
    ]);
    let body = r#"
        local headers = { Authorization = "Bearer secret", Cookie = "secret", ["X-Api-Key"] = "secret", ["X-Mine"] = "secret" }
        for _, status in ipairs{ 302, 307 } do
          local r = assert(ostler.http.request{ url = "URL/notice", body = "data", headers = headers })
          assert(r.status == status and r.headers.location == "OTHER/moved" and r.body == "", r.status)
        end
        local r = assert(ostler.http.request{ url = "URL/a/b", headers = headers })
        assert(r.status == 200 and r.body == "ok")
        local r = assert(ostler.http.request{ url = "URL/a/b", headers = headers })
        assert(r.status == 200 and r.body == "ok")
        local none, why = ostler.http.request{ url = "URL/0" }
        assert(none == nil and why:find("more than 5 redirects", 1, true), why)
    "#;
    run(&[], &body.replace("URL", &url).replace("OTHER", &other));
    let next = |asked: &Receiver<String>| asked.recv_timeout(PATIENCE).unwrap();
    assert!(next(&asked).starts_with("POST /notice ") && next(&asked).starts_with("POST /notice "));
    assert!(next(&asked).contains("Bearer secret"));
    let same = next(&asked);
    assert!(same.starts_with("GET /a/next?x=y ") && same.contains("Bearer secret"), "the same host: {same}");
    let elsewhere = next(&other_asked);
    assert!(elsewhere.starts_with("GET /elsewhere ") && !elsewhere.contains("secret"), "{elsewhere}");
    assert_eq!(other_asked.try_recv().ok(), None, "no POST was sent on");
}
