//! The rules of `confine` under the real shim: what a shell may reach, and what it may not.

use std::path::{Path, PathBuf};

use ostler::agent::process::confine::{Ground, Places, rules};
use ostler::config::{self, AgentKind, Confine};
use ostler::shim::landlock;
use ostler::shim::start::Start;

use crate::rig::{Heard, Shim, script};

/// A daemon's places, in the build's own directory: above those of /tmp nothing could be made.
struct Daemon {
    dir: tempfile::TempDir,
    shim: Shim,
}

impl Daemon {
    fn new() -> Self {
        let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let at = |name: &str| dir.path().join(name);
        for made in ["state/s", "state/work/own", "state/work/other", "state/tmp/own", "credentials", "home", "beside"]
        {
            std::fs::create_dir_all(at(made)).unwrap();
        }
        for file in ["state/ostler.db", "state/cookie", "state/work/other/file", "credentials/token", "beside/file"] {
            std::fs::write(at(file), "data").unwrap();
        }
        let shim = Shim::in_dir(&at("state/s"), ostler::shim::machine::Patience::default());
        Self { dir, shim }
    }

    fn at(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Runs each command in a shell that is confined so, and gives those that fared otherwise than they should have.
    fn tried(&self, confine: Confine, commands: &[(&str, bool)]) -> Vec<String> {
        let (cwd, home, tmpdir) = (self.at("state/work/own"), self.at("home"), self.at("state/tmp/own"));
        let ground = Ground::of(&self.at("state"), Some(&self.at("credentials")), &|_| false);
        let agent = config::Agent { confine: Some(confine), ..config::Agent::of_kind("x", AgentKind::Exec) };
        let places = Places { ground: &ground, cwd: &cwd, home: Some(&home), tmpdir: Some(&tmpdir) };
        let lines = commands.iter().enumerate().map(|(n, (command, _))| {
            format!("( {command} ) >/dev/null 2>\"$TMPDIR/why\"; echo {n} $? $(head -n1 \"$TMPDIR/why\" 2>/dev/null)\n")
        });
        let mut start = script(&(lines.collect::<String>() + "echo end; read go"));
        let named = |name: &str, path: &Path| (name.into(), path.into());
        start.env.extend([named("R", self.dir.path()), named("HOME", &home), named("TMPDIR", &tmpdir)]);
        start.env.push(("SHIM".into(), self.shim.child.id().to_string().into()));
        let start = Start { confine: rules(&places, &agent), cwd, ..self.shim.with_spool(start) };
        let (mut link, _) = self.shim.attach(1, 0);
        link.client.start(&start).unwrap();
        let confined = link.until(|h| if let Heard::Started(_, confined) = h { Some(*confined) } else { None });
        assert_eq!(confined.abi, landlock::version());
        let text = link.read_until("end\n");
        let wrong = commands.iter().zip(text.lines()).filter(|((_, good), line)| {
            let code = line.split(' ').nth(1).unwrap_or_default();
            (code == "0") != *good
        });
        wrong.map(|((command, _), line)| format!("{command}: {line}")).collect()
    }
}

/// What no confined agent may do, and what each may.
const ALWAYS: &[(&str, bool)] = &[
    ("ls / && ls $R/state", true),
    ("echo a > file && cat file && mkdir d && mv file d/g && ln d/g h && rm -r d h", true),
    ("echo a > \"$TMPDIR/x\" && mv \"$TMPDIR/x\" . && rm x", true),
    ("echo a > \"$HOME/.x.new\" && mv \"$HOME/.x.new\" \"$HOME/.x\"", true),
    ("cat $R/beside/file", true),
    ("echo a > /dev/null && head -c1 /dev/urandom", true),
    ("cat /proc/self/status && cat /etc/passwd && cat /sys/kernel/mm/transparent_hugepage/enabled || ls /sys", true),
    ("cat $R/state/ostler.db", false),
    ("echo a >> $R/state/ostler.db", false),
    (": > $R/state/ostler.db", false),
    ("truncate -s0 $R/state/ostler.db", false),
    ("rm $R/state/ostler.db", false),
    ("mv $R/state/ostler.db $R/beside/", false),
    ("ln $R/state/ostler.db mine", false),
    ("ln -s $R/state/ostler.db mine && cat mine", false),
    ("cat $R/state/cookie", false),
    ("cat $R/state/work/other/file", false),
    ("touch $R/state/work/other/new", false),
    ("touch $R/state/s/new", false),
    ("rm $R/state/s/*", false),
    ("cat $R/credentials/token", false),
    ("touch $R/new", false),
    ("mkdir /sys/fs/cgroup/x /sys/fs/cgroup/*/x", false),
    // Not its environment: CAP_PERFMON, which root has, shows that all the same.
    (": < /proc/$SHIM/mem", false),
    ("readlink /proc/$SHIM/cwd", false),
];

#[test]
fn in_state_all_may_be_reached_but_the_daemons_own() {
    if landlock::version() < 3 {
        eprintln!("SKIPPED: Landlock of this kernel: version {}", landlock::version());
        return;
    }
    let daemon = Daemon::new();
    let mut commands = ALWAYS.to_vec();
    commands.extend([
        ("echo a > $R/beside/new && rm $R/beside/new", true),
        ("t=$(mktemp -p /tmp) && echo a > $t && rm $t", true),
        ("exec 3<>/dev/null; echo $(( 1 + 1 )) | cat", true),
    ]);
    let tools = [
        ("node", "node -e 'require(\"fs\").writeFileSync(\"n\", \"a\")'"),
        ("python3", "python3 -c 'import ssl, sqlite3; sqlite3.connect(\"p.db\").execute(\"create table t(x)\")'"),
        ("git", "git init -q r && cd r && git -c user.name=a -c user.email=a commit -q --allow-empty -m a"),
    ];
    for (tool, command) in tools {
        if ["/usr/bin", "/usr/local/bin"].iter().any(|dir| Path::new(dir).join(tool).exists()) {
            commands.push((command, true));
        } else {
            eprintln!("SKIPPED: {tool} is not here");
        }
    }
    if landlock::version() >= 6 {
        commands.push(("kill -0 $SHIM", false));
    }
    let wrong = daemon.tried(Confine::State, &commands);
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert_eq!(std::fs::read_to_string(daemon.at("state/ostler.db")).unwrap(), "data");
}

#[test]
fn in_workdir_it_writes_in_its_own_places_only() {
    if landlock::version() < 3 {
        eprintln!("SKIPPED: Landlock of this kernel: version {}", landlock::version());
        return;
    }
    let daemon = Daemon::new();
    let mut commands = ALWAYS.to_vec();
    commands.extend([
        ("echo a > $R/beside/new", false),
        (": > $R/beside/file", false),
        ("rm $R/beside/file", false),
        ("touch /tmp/ostler-confine-test", false),
        ("t=$(mktemp) && rm $t", true),
        ("echo a > /dev/shm/ostler-$$ && rm /dev/shm/ostler-$$", true),
    ]);
    let wrong = daemon.tried(Confine::Workdir, &commands);
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// An agent's own directory is its own: it may leave a link there, and the next of its session gains nothing by it.
#[test]
fn a_link_that_an_agent_left_is_not_followed() {
    if landlock::version() == 0 {
        eprintln!("SKIPPED: this kernel has no Landlock");
        return;
    }
    let daemon = Daemon::new();
    std::fs::remove_dir(daemon.at("state/tmp/own")).unwrap();
    std::os::unix::fs::symlink(daemon.at("state"), daemon.at("state/tmp/own")).unwrap();
    // As for a link that came after the rules were made.
    let mut rules = ostler::shim::start::Confinement { handled: 0x7fff, ..Default::default() };
    let rule = |path: PathBuf, access| ostler::shim::start::Rule { path, access };
    rules.rules = vec![rule("/usr".into(), 0x7fff), rule(daemon.at("state/tmp/own"), 0x7fff), rule("/".into(), 8)];
    let start = script("cat $R/state/ostler.db || echo shut; read go");
    let start = Start {
        confine: Some(rules),
        env: [start.env, vec![("R".into(), daemon.dir.path().into())]].concat(),
        ..start
    };
    let (mut link, _) = daemon.shim.attach(1, 0);
    link.client.start(&start).unwrap();
    let confined = link.until(|h| if let Heard::Started(_, confined) = h { Some(*confined) } else { None });
    assert_eq!(confined.missing, 1);
    assert_eq!(link.read_until("shut\n"), "shut\n");
}
