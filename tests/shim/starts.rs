//! How agents are started: what they find, how they are confined, and why some are not.

use std::path::Path;

use ostler::shim::frame::{Code, Confined, Status};
use ostler::shim::landlock;
use ostler::shim::launch::Program;
use ostler::shim::start::{Confinement, ProcessLimit, Rule, Start};

use crate::rig::{Heard, Shim, script, status};

/// Read, list, execute: what an agent may do everywhere.
const LOOK: u64 = 1 | 1 << 2 | 1 << 3;
const ALL: u64 = 0xffff;

#[test]
fn an_agent_finds_what_it_was_given_and_nothing_else() {
    let shim = Shim::new();
    let dir = tempfile::tempdir().unwrap();
    let mut start = script(
        "pwd; cat /proc/self/environ | tr '\\0' '\\n'; ulimit -Sn; cat /proc/self/oom_score_adj; umask; ls /proc/self/fd; echo end; read go",
    );
    start.env = vec![("PATH".into(), "/usr/bin:/bin".into()), ("A".into(), "b=c".into())];
    start.cwd = dir.path().to_owned();
    start.limits = vec![ProcessLimit { resource: 7, soft: 77 }, ProcessLimit { resource: 99, soft: 1 }];
    start.oom_adj = 200;
    let (mut link, who) = shim.start(&start);
    let text = link.read_until("end\n");
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(Path::new(lines[0]), dir.path());
    assert!(lines.contains(&"A=b=c") && !text.contains("OSTLER"), "{text}");
    assert!(lines.contains(&"77"), "{text}");
    let own: i32 = std::fs::read_to_string("/proc/self/oom_score_adj").unwrap().trim().parse().unwrap();
    assert!(lines.contains(&(own + 200).min(1000).to_string().as_str()), "{text}");
    let fds: Vec<&str> = lines.iter().skip_while(|l| !l.starts_with("00")).skip(1).copied().collect();
    assert_eq!(fds, ["0", "1", "2", "3", "end"], "ls itself has one");
    assert_eq!((status(who.pid, "PPid"), who.start > 0), (shim.child.id().to_string(), true));
}

#[test]
fn what_cannot_be_started_says_why_and_may_be_tried_again() {
    let mut shim = Shim::new();
    let (mut link, _) = shim.attach(1, 0);
    let file = tempfile::NamedTempFile::new().unwrap();
    let nothing = || script("exit 9");
    let confine = |least| Some(Confinement { handled: ALL, least, ..Confinement::default() });
    for (start, step) in [
        (Start { argv: vec!["no-such-program".into()], ..nothing() }, "program"),
        (Start { argv: vec![file.path().into()], ..nothing() }, "program"),
        (Start { cwd: "/no/such/place".into(), ..nothing() }, "working directory"),
        (Start { cwd: "relative".into(), ..nothing() }, "working directory"),
        (Start { cwd: file.path().to_owned(), ..nothing() }, "working directory"),
        (Start { spool: Some("/no/such/place".into()), ..nothing() }, "spool"),
        (Start { cgroup: Some("/no/such/place".into()), ..nothing() }, "control group"),
        (Start { confine: confine(1000), ..nothing() }, "confinement"),
    ] {
        link.client.start(&start).unwrap();
        let heard = link.next().unwrap();
        let Heard::Trouble(Code::Start, _, text) = heard else { panic!("{heard:?}") };
        assert!(text.starts_with(&format!("{step}: ")), "{text}");
    }
    link.client.start(&nothing()).unwrap();
    assert_eq!(link.finish().1.status, Status::Code(9));
    link.client.acknowledge_exit().unwrap();
    shim.leaves();
}

#[test]
fn a_start_may_be_long() {
    let shim = Shim::new();
    let mut start = script("echo ${#A}; read go");
    start.env.push(("A".into(), "x".repeat(120_000).into()));
    start.argv.extend((0..10).map(|_| "y".repeat(100_000).into()));
    let (mut link, _) = shim.start(&start);
    assert_eq!(link.read_until("\n"), "120000\n");
}

#[test]
fn a_confined_agent_keeps_out_and_the_shim_does_not() {
    if landlock::version() == 0 {
        eprintln!("SKIPPED: this kernel has no Landlock");
        return;
    }
    let shim = Shim::new();
    let (work, secret) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    std::fs::write(secret.path().join("key"), "secret").unwrap();
    let rule = |path: &str, access| Rule { path: path.into(), access };
    let rules = ["/bin", "/usr", "/lib", "/lib64", "/etc", "/dev", "/proc", "/no/such/place"].map(|p| rule(p, LOOK));
    let mut rules = rules.to_vec();
    rules.push(Rule { path: work.path().to_owned(), access: ALL });
    rules.push(rule("/dev/null", ALL));
    // Listing is granted everywhere.
    rules.push(rule("/", 1 << 3));
    let ppid = shim.child.id();
    let text = format!(
        "cd {w}; echo mine > file; cat file; cat {s}/key; echo $?; ls {s}; echo x > {s}/key; echo $?; \
         kill -0 {ppid}; echo $?; readlink /proc/{ppid}/cwd; echo $?; grep NoNewPrivs /proc/self/status; echo end; read go",
        w = work.path().display(),
        s = secret.path().display(),
    );
    let confine = Some(Confinement { handled: ALL, scopes: 3, least: 1, rules });
    let (mut link, _) = shim.attach(1, 0);
    link.client.start(&Start { confine, ..shim.with_spool(script(&text)) }).unwrap();
    let confined = link.until(|h| if let Heard::Started(_, confined) = h { Some(*confined) } else { None });
    let (files, scopes) = landlock::known(landlock::version());
    assert_eq!(confined, Confined { abi: landlock::version(), files: ALL & files, scopes, missing: confined.missing });
    assert!(confined.missing >= 1);
    let text = link.read_until("end\n");
    let lines: Vec<&str> = text.lines().collect();
    let signals = if scopes > 0 { "1" } else { "0" };
    assert_eq!(lines[..5], ["mine", "1", "key", "2", signals], "{text}");
    assert_eq!((lines[5], lines[6]), ("1", "NoNewPrivs:\t1"), "{text}");
    assert_eq!(std::fs::read_to_string(secret.path().join("key")).unwrap(), "secret");
    // The shim is none the worse for it.
    link.client.input(1, vec![b'z'; 3_000_000]).unwrap();
    let taken = link.until(|h| if let Heard::Taken(t) = h { Some(t.highest) } else { None });
    assert_eq!((taken, status(shim.child.id(), "NoNewPrivs")), (1, "0".to_owned()));
}

#[test]
fn an_agent_is_in_its_control_group_before_its_program_begins() {
    let Some(group) = Group::new() else {
        eprintln!("SKIPPED: no control groups (version 2) of our own");
        return;
    };
    let mut shim = Shim::new();
    let text = "cat /proc/self/cgroup; echo up; setsid sleep 1000 & while :; do sleep 1000; done";
    let (mut link, _) = shim.start(&Start { cgroup: Some(group.0.clone()), ..script(text) });
    let text = link.read_until("up\n");
    let name = group.0.file_name().unwrap().to_str().unwrap();
    assert!(text.contains(name), "{text}");
    let own = std::fs::read_to_string(format!("/proc/{}/cgroup", shim.child.id())).unwrap();
    assert!(!own.contains(name), "and the shim is not");
    link.client.acknowledge(text.len() as u64).unwrap();
    link.client.end(ostler::shim::frame::Rung::Kill, crate::rig::QUICK).unwrap();
    assert_eq!(link.finish().1.left, 0);
    link.client.acknowledge_exit().unwrap();
    shim.leaves();
    assert_eq!(std::fs::read_to_string(group.0.join("cgroup.procs")).unwrap(), "");
}

/// A control group of a test's own, in a hierarchy of version 2.
struct Group(std::path::PathBuf);

impl Group {
    fn new() -> Option<Self> {
        let mounts = std::fs::read_to_string("/proc/self/mounts").ok()?;
        let top = mounts.lines().find_map(|l| {
            let mut words = l.split(' ').skip(1);
            let (place, kind) = (words.next()?, words.next()?);
            (kind == "cgroup2").then_some(place)
        })?;
        let dir = Path::new(top).join(format!("ostler-shim-test-{}", std::process::id()));
        std::fs::create_dir(&dir).ok()?;
        Some(Self(dir))
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir(&self.0);
    }
}

#[test]
fn the_program_is_found_and_nobody_else_has_a_use_for_it() {
    let found = Program::find().map(|p| p.path().to_owned());
    if std::env::var_os("OSTLER_SHIM").is_none() {
        // A test's program is not beside the others.
        let text = found.unwrap_err().to_string();
        assert!(text.contains("/usr/libexec/ostler"), "{text}");
    }
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_ostler-shim")).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stdout).contains("started by ostler"));
}
