//! Files in the real daemon: what a script may open, and which scripts are taken.

use super::*;

/// A script that may read anything below the daemon's directory does not get hold of the database: closing it again would
/// give up SQLite's locks, and another reader would take itself for the last.
#[test]
fn no_script_opens_the_database() {
    let script = r#"
    ostler.on("session_end", function()
      local root = ostler.config.out:match("^(.*)/out/log$")
      local told = {}
      for _, path in ipairs { "state/ostler.db", "state/ostler.db-wal", "state/ostler.db-shm", "state/lock", "out/hard",
        "out/link", "out/../state/./ostler.db" } do
        for _, mode in ipairs { "r", "r+", "a", "w" } do
          local file, why = io.open(root .. "/" .. path, mode)
          told[#told + 1] = path .. " " .. mode .. ": " .. tostring(why)
        end
        local ok, why = pcall(io.lines, root .. "/" .. path)
        told[#told + 1] = path .. " lines: " .. tostring(why)
      end
      local file <close> = assert(io.open(ostler.config.out, "a"))
      assert(file:write(table.concat(told, "\n") .. "\n"))
    end)
    "#;
    let mut daemon = Daemon::start(script, "[agent.default]\nkind = \"echo\"\n");
    std::fs::hard_link(daemon.at("state/ostler.db"), daemon.at("out/hard")).unwrap();
    std::os::unix::fs::symlink(daemon.at("state/ostler.db"), daemon.at("out/link")).unwrap();
    assert_eq!(say(&daemon.client, "local:a", "hello").outcome, "completed");
    daemon.post("/v1/sessions/local:a/reset", None);
    let until = Instant::now() + PATIENCE;
    while daemon.log().len() < 35 {
        assert!(Instant::now() < until, "{:?}\n{}", daemon.log(), daemon.stderr());
        std::thread::yield_now();
    }
    for line in daemon.log() {
        assert!(line.ends_with("is a file of the daemon's own database"), "{line}");
    }
    // So whoever else reads it and leaves does not take the log with it: what is said after that is there after a death.
    let other = rusqlite::Connection::open(daemon.at("state/ostler.db")).unwrap();
    let count: i64 = other.query_row("SELECT count(*) FROM sqlite_schema", [], |r| r.get(0)).unwrap();
    assert!(count > 0);
    drop(other);
    assert!(daemon.at("state/ostler.db-wal").exists());
    let said = say(&daemon.client, "local:b", "kept");
    assert_eq!(said.outcome, "completed");
    daemon.child.kill().unwrap();
    daemon.child.wait().unwrap();
    daemon.restart();
    let entries = daemon.get("/v1/sessions/local:b/transcript");
    assert!(entries["entries"].to_string().contains("echo: kept"), "{entries}");
    assert_eq!(daemon.stop().code(), Some(0), "{}", daemon.stderr());
}

/// As Kubernetes mounts a ConfigMap: mode 777, links, read-only. Nobody can write there, so it is taken.
#[test]
fn a_directory_for_everybody_is_taken_where_it_is_mounted_read_only() {
    let dir = tempfile::tempdir().unwrap();
    let hooks = dir.path().join("hooks.d");
    let data = hooks.join("..2026_11_27");
    std::fs::create_dir_all(&data).unwrap();
    std::fs::write(data.join("a.lua"), "ostler.on('stopped', function() end)\n").unwrap();
    std::os::unix::fs::symlink("..2026_11_27", hooks.join("..data")).unwrap();
    std::os::unix::fs::symlink("..data/a.lua", hooks.join("a.lua")).unwrap();
    for (path, mode) in [(&hooks, 0o777), (&data, 0o777), (&data.join("a.lua"), 0o666)] {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    }
    put(&dir.path().join("ostler.toml"), &format!("[hooks]\ndir = \"{}\"\n", hooks.display()));
    let check = r#"exec "$OSTLER" hooks check --config "$DIR/ostler.toml" "$DIR/hooks.d/a.lua""#;
    let mount = r#"mount --bind "$DIR/hooks.d" "$DIR/hooks.d" && mount -o remount,bind,ro "$DIR/hooks.d" || exit 99;"#;
    let run = |words: &[&str], script: &str| {
        let mut command = Command::new(words[0]);
        command
            .args(&words[1..])
            .args(["sh", "-c", script])
            .env("OSTLER", env!("CARGO_BIN_EXE_ostler"))
            .env("DIR", dir.path());
        let ran = command.output().unwrap();
        (ran.status.code(), String::from_utf8_lossy(&ran.stdout).into_owned() + &String::from_utf8_lossy(&ran.stderr))
    };
    let (code, said) = run(&["env"], check);
    assert_ne!(code, Some(0), "{said}");
    assert!(said.contains("a.lua: other users could write to it (mode 666): chmod go-w it"), "{said}");
    // The file alone is safe: the directory is told.
    std::fs::set_permissions(data.join("a.lua"), std::fs::Permissions::from_mode(0o644)).unwrap();
    let (_, said) = run(&["env"], check);
    assert!(said.contains("other users could write to it (mode 777)"), "{said}");
    std::fs::set_permissions(data.join("a.lua"), std::fs::Permissions::from_mode(0o666)).unwrap();
    let config = r#""$OSTLER" check-config "$DIR/ostler.toml" && "#;
    let (code, said) = run(&["env"], &format!("{config} true"));
    // The file is valid, and what serve would refuse is told.
    assert!(said.contains("could write to it (mode 777)"), "{code:?}: {said}");
    let check = format!("{config} {check}");
    let (code, said) = run(&["unshare", "--user", "--map-root-user", "--mount"], &format!("{mount} {check}"));
    if code == Some(99) || said.contains("unshare:") {
        eprintln!("SKIPPED: this sandbox lets nobody mount: {said}");
        return;
    }
    assert_eq!(code, Some(0), "{said}");
    assert!(!said.contains("could write"), "{said}");
}

/// A zone that is named and is not there is told, since every time of day is another then.
#[test]
fn a_zone_that_is_not_there_is_told() {
    let dir = tempfile::tempdir().unwrap();
    // A script that is no Lua, so that this ends by itself.
    let ran = |zone: &str| {
        put(&dir.path().join("ostler.toml"), &format!("[hooks]\ndir = \"{}\"\n", dir.path().join("bad").display()));
        std::fs::create_dir_all(dir.path().join("bad")).unwrap();
        std::fs::set_permissions(dir.path().join("bad"), std::fs::Permissions::from_mode(0o755)).unwrap();
        put(&dir.path().join("bad/a.lua"), "x =");
        let out = Command::new(env!("CARGO_BIN_EXE_ostler"))
            .arg("serve")
            .args([Path::new("--config"), &dir.path().join("ostler.toml")])
            .args([
                Path::new("--state-dir"),
                &dir.path().join("state"),
                Path::new("--socket"),
                &dir.path().join("sock"),
            ])
            .env("TZ", zone)
            .output()
            .unwrap();
        assert_eq!(out.status.code(), Some(78));
        String::from_utf8_lossy(&out.stderr).into_owned()
    };
    let said = ran("Nowhere/Bogus");
    assert!(
        said.contains("TZ=Nowhere/Bogus: there is no such time zone here") && said.contains("are in UTC"),
        "{said}"
    );
    assert!(!ran("UTC0").contains("time zone"));
}
