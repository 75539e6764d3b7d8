//! Who may speak with a shim.

use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;
use std::time::Instant;

use ostler::shim::client::{Client, Daemon, Lost, Refusal};
use ostler::shim::conn;
use ostler::shim::frame::{Attach, Attached, Code, HEADER, Reply, Request, Standing, VERSION, Who};
use ostler::shim::launch::SocketName;
use ostler::shim::machine::Patience;
use ostler::shim::proof::{self, Challenges, Claim, Place, Token};

use ostler::shim::start::Start;

use crate::rig::{HANGS, Shim, lives, script, status};

fn code(refusal: Result<(crate::rig::Link, Attached), Refusal>) -> (Code, u64) {
    match refusal {
        Err(Refusal::Refused { code, number, .. }) => (code, number),
        other => panic!("{:?}", other.map(|(_, attached)| attached)),
    }
}

/// A connection by hand.
fn connect(shim: &Shim) -> OwnedFd {
    use rustix::net::{AddressFamily, SocketType, connect, socket};
    let socket = socket(AddressFamily::UNIX, SocketType::SEQPACKET, None).unwrap();
    connect(&socket, &conn::address(shim.dir_fd.as_fd(), shim.seed.name.as_str()).unwrap()).unwrap();
    socket
}

fn say(socket: &OwnedFd, request: &Request<'_>) {
    let mut packet = Vec::new();
    request.encode(&mut packet);
    // A shim that has cut it off already hears nothing.
    let _ = rustix::net::send(socket, &packet, rustix::net::SendFlags::NOSIGNAL);
}

/// What comes next; nothing when it is closed.
fn hear(socket: &OwnedFd) -> Vec<u8> {
    let mut buffer = vec![0; 65_536];
    let length = rustix::net::recv(socket, &mut buffer[..], rustix::net::RecvFlags::empty()).map_or(0, |(n, _)| n);
    buffer.truncate(length);
    buffer
}

#[test]
fn the_newest_boot_wins_and_a_lower_one_is_refused() {
    let shim = Shim::new();
    let (mut one, _) = shim.attach(5, 0);
    assert_eq!(code(shim.try_attach(shim.daemon(4, 0))), (Code::Stale, 5));
    let (mut again, _) = shim.attach(5, 0);
    assert_eq!(one.closes(), Lost::Superseded);
    let (newer, attached) = shim.attach(6, 0);
    assert_eq!((again.closes(), attached.standing), (Lost::Superseded, Standing::Waiting));
    drop(newer);
    assert_eq!(code(shim.try_attach(shim.daemon(5, 0))), (Code::Stale, 6), "also when nobody is there");
    shim.attach(6, 0);
}

#[test]
fn a_wrong_token_is_found_out_by_both() {
    let shim = Shim::new();
    let wrong = Token::new().unwrap();
    // The daemon sees that the shim is not its own, and proves nothing to it.
    let daemon = Daemon { token: wrong.clone(), ..shim.daemon(1, 0) };
    assert!(matches!(shim.try_attach(daemon), Err(Refusal::Impostor("its proof is wrong"))));
    // One that does not care is refused by the shim.
    let socket = connect(&shim);
    let nonce = [1; 32];
    say(&socket, &Request::Hello { version: VERSION, nonce });
    let packet = hear(&socket);
    let Ok(Reply::Challenge { nonce: theirs, .. }) = Reply::decode(&packet) else { panic!("no challenge") };
    let both = Challenges { daemon: nonce, shim: theirs };
    let claim = Claim::Daemon { pid: std::process::id(), boot: 1, from: 0 };
    let proof = proof::prove(&wrong, VERSION, &both, &shim.place, &claim);
    say(&socket, &Request::Attach(Attach { boot: 1, from: 0, place: shim.place, proof }));
    let packet = hear(&socket);
    assert!(matches!(Reply::decode(&packet), Ok(Reply::Error { code: Code::Refused, .. })));
    assert_eq!(hear(&socket), b"", "and cut off");
    // Another's proof, passed on by this process, and one for another boot.
    for (pid, boot) in [(std::process::id() + 1, 1), (std::process::id(), 2)] {
        let socket = connect(&shim);
        say(&socket, &Request::Hello { version: VERSION, nonce });
        let packet = hear(&socket);
        let Ok(Reply::Challenge { nonce: theirs, .. }) = Reply::decode(&packet) else { panic!("no challenge") };
        let both = Challenges { daemon: nonce, shim: theirs };
        let claim = Claim::Daemon { pid, boot: 1, from: 0 };
        let proof = proof::prove(&shim.seed.token, VERSION, &both, &shim.place, &claim);
        say(&socket, &Request::Attach(Attach { boot, from: 0, place: shim.place, proof }));
        let packet = hear(&socket);
        assert!(
            matches!(Reply::decode(&packet), Ok(Reply::Error { code: Code::Refused, .. })),
            "pid {pid}, boot {boot}"
        );
    }
    // The shim's own proof, sent back.
    let socket = connect(&shim);
    say(&socket, &Request::Hello { version: VERSION, nonce });
    let packet = hear(&socket);
    let Ok(Reply::Challenge { proof, place, .. }) = Reply::decode(&packet) else { panic!("no challenge") };
    say(&socket, &Request::Attach(Attach { boot: 1, from: 0, place, proof }));
    let packet = hear(&socket);
    assert!(matches!(Reply::decode(&packet), Ok(Reply::Error { code: Code::Refused, .. })));
    shim.attach(1, 0);
}

#[test]
fn another_directory_and_another_boot_of_the_machine_are_refused_by_both() {
    let shim = Shim::new();
    let other = Place { inode: shim.place.inode + 1, ..shim.place };
    let later = Place { machine: [7; 16], ..shim.place };
    for place in [other, later] {
        let daemon = Daemon { place, ..shim.daemon(1, 0) };
        assert!(
            matches!(shim.try_attach(daemon), Err(Refusal::Impostor(why)) if why.contains("another state directory"))
        );
        // A daemon that has the token, as a restored copy has, and does not look.
        let socket = connect(&shim);
        let nonce = [2; 32];
        say(&socket, &Request::Hello { version: VERSION, nonce });
        let packet = hear(&socket);
        let Ok(Reply::Challenge { nonce: theirs, .. }) = Reply::decode(&packet) else { panic!("no challenge") };
        let both = Challenges { daemon: nonce, shim: theirs };
        let claim = Claim::Daemon { pid: std::process::id(), boot: 1, from: 0 };
        let proof = proof::prove(&shim.seed.token, VERSION, &both, &place, &claim);
        say(&socket, &Request::Attach(Attach { boot: 1, from: 0, place, proof }));
        let packet = hear(&socket);
        assert!(matches!(Reply::decode(&packet), Ok(Reply::Error { code: Code::OtherPlace, .. })));
    }
}

#[test]
fn another_version_is_told_which_one_is_spoken() {
    let shim = Shim::new();
    let socket = connect(&shim);
    say(&socket, &Request::Hello { version: VERSION + 1, nonce: [0; 32] });
    let packet = hear(&socket);
    let Ok(Reply::Error { code, number, .. }) = Reply::decode(&packet) else { panic!("no error") };
    assert_eq!((code, number, hear(&socket).len()), (Code::Version, VERSION.into(), 0));
}

#[test]
fn another_user_is_not_listened_to() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("SKIPPED: only root can be another user");
        return;
    }
    let shim = Shim::new();
    use std::os::unix::fs::PermissionsExt as _;
    let path = shim.dir.join(shim.seed.name.as_str());
    let mode = std::fs::metadata(&path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    for (path, mode) in [(shim.dir.as_path(), 0o755), (&path, 0o666)] {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    }
    let closed = std::thread::scope(|scope| {
        let as_nobody = scope.spawn(|| {
            let nobody = rustix::process::Uid::from_raw(65_534);
            // Of this thread alone.
            rustix::thread::set_thread_res_uid(nobody, nobody, nobody).unwrap();
            let socket = connect(&shim);
            say(&socket, &Request::Hello { version: VERSION, nonce: [0; 32] });
            hear(&socket)
        });
        as_nobody.join().unwrap()
    });
    assert_eq!(closed, b"", "closed without a word");
    shim.attach(1, 0);
}

#[test]
fn an_impostor_learns_nothing_that_it_could_use() {
    // Somebody else has bound the name, and passes all packets on to the real shim.
    let shim = Shim::new();
    let dir = tempfile::tempdir().unwrap();
    let dir_fd: OwnedFd = std::fs::File::open(dir.path()).unwrap().into();
    let name = SocketName::new().unwrap();
    let (listener, _) = conn::listen(dir_fd.as_fd(), name.as_str()).unwrap();
    rustix::io::ioctl_fionbio(&listener, false).unwrap();
    let relayed = std::thread::scope(|scope| {
        let impostor = scope.spawn(|| {
            let victim = rustix::net::accept(&listener).unwrap();
            let real = connect(&shim);
            let hello = hear(&victim);
            rustix::net::send(&real, &hello, rustix::net::SendFlags::empty()).unwrap();
            let challenge = hear(&real);
            rustix::net::send(&victim, &challenge, rustix::net::SendFlags::empty()).unwrap();
            hear(&victim)
        });
        let until = Instant::now() + HANGS;
        let refusal = Client::attach(dir_fd.as_fd(), &name, shim.daemon(1, 0), until).err();
        assert!(matches!(refusal, Some(Refusal::Impostor("another process listens"))), "{refusal:?}");
        impostor.join().unwrap()
    });
    assert_eq!(relayed, b"", "the daemon proved nothing to it");
}

#[test]
fn what_descends_from_the_shim_is_not_listened_to() {
    let shim = Shim::new();
    // An agent that knows how: it says HELLO to its own shim, and hears nothing back.
    let mut hello = Vec::new();
    Request::Hello { version: VERSION, nonce: [0; 32] }.encode(&mut hello);
    let hex: String = hello.iter().map(|b| format!("{b:02x}")).collect();
    let path = shim.dir.join(shim.seed.name.as_str());
    let program = format!(
        "import socket,sys\ns=socket.socket(socket.AF_UNIX,socket.SOCK_SEQPACKET)\ns.connect('{}')\n\
         try:\n s.send(bytes.fromhex('{hex}'))\n print(len(s.recv(9999)))\nexcept OSError: print(0)\n",
        path.display()
    );
    let python = Path::new("/usr/bin/python3");
    if !python.exists() {
        eprintln!("SKIPPED: no python3 to connect with");
        return;
    }
    let direct = format!("{} -c \"$P\"; (setsid {} -c \"$P\"; echo done)", python.display(), python.display());
    let mut start = script(&direct);
    start.env.push(("P".into(), program.into()));
    let (mut link, _) = shim.start(&start);
    assert_eq!(link.read_until("done\n"), "0\n0\ndone\n");
}

#[test]
fn a_long_path_is_no_matter_and_a_moved_directory_goes_on() {
    let top = tempfile::tempdir().unwrap();
    let long = top.path().join("d".repeat(200)).join("e".repeat(37));
    std::fs::create_dir_all(&long).unwrap();
    let mut shim = Shim::in_dir(&long, Patience::default());
    let (mut link, _) = shim.start(&script("echo hello; read go"));
    link.read_until("hello\n");
    drop(link);
    let moved = top.path().join("moved");
    std::fs::rename(&long, &moved).unwrap();
    shim.dir = moved;
    let (mut link, attached) = shim.attach(2, 0);
    assert_eq!(attached.available, 6);
    link.client.close_input(1).unwrap();
    link.finish();
    link.client.acknowledge_exit().unwrap();
    shim.leaves();
}

#[test]
fn peers_that_prove_nothing_are_sent_away_and_keep_nobody_out() {
    let shim = Shim::patient(Patience { hello: 1000, ..Patience::default() });
    let idle = connect(&shim);
    assert_eq!(hear(&idle), b"", "after its time");
    let crowd: Vec<OwnedFd> = (0..40).map(|_| connect(&shim)).collect();
    shim.attach(1, 0);
    drop(crowd);
    assert!(lives(shim.child.id()));
}

#[test]
fn a_packet_that_is_not_understood_cuts_the_connection_and_harms_nobody() {
    let shim = Shim::new();
    let (mut link, who) = shim.start(&script("cat"));
    let wrong: [Vec<u8>; 4] = [b"nonsense".to_vec(), vec![0; HEADER], vec![0xff; 60_000], {
        let mut packet = Vec::new();
        Request::Ack { offset: 99 }.encode(&mut packet);
        packet
    }];
    for packet in wrong {
        rustix::net::send(link.client.descriptor(), &packet, rustix::net::SendFlags::empty()).unwrap();
        assert!(matches!(link.closes(), Lost::Protocol(_) | Lost::Closed));
        (link, _) = shim.attach(1, 0);
    }
    link.client.input(1, b"still there\n".to_vec()).unwrap();
    link.read_until("still there\n");
    assert!(lives(who.pid));
}

#[test]
fn it_has_nothing_of_whoever_started_it() {
    let shim = Shim::new();
    let pid = shim.child.id();
    let read = |name: &str| std::fs::read(format!("/proc/{pid}/{name}")).unwrap();
    assert_eq!(read("cmdline"), b"ostler-shim\0");
    assert_eq!(read("environ"), b"OSTLER_BOOT_ID=shim-test\0", "markers alone");
    assert_eq!(read("comm"), b"ostler-shim\n");
    // It has begun to serve.
    let _attached = shim.attach(1, 0);
    let link = |name: &str| std::fs::read_link(format!("/proc/{pid}/{name}")).unwrap();
    assert_eq!(link("cwd"), Path::new("/"));
    for fd in ["fd/0", "fd/1", "fd/2"] {
        assert_eq!(link(fd), Path::new("/dev/null"));
    }
    assert_eq!((status(pid, "Threads"), status(pid, "NSsid")), ("1".to_owned(), pid.to_string()), "its own session");
    assert_eq!(
        std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count(),
        8,
        "three streams, four of its own, one link"
    );
    // Signals of a terminal do nothing.
    let raw = rustix::process::Pid::from_raw(pid.try_into().unwrap()).unwrap();
    for signal in [rustix::process::Signal::HUP, rustix::process::Signal::INT] {
        rustix::process::kill_process(raw, signal).unwrap();
    }
    // A shell would put its own signals in order before its children begin.
    let argv = ["cat", "/proc/self/status", "-"].map(Into::into).to_vec();
    let (mut link, who) = shim.start(&Start { argv, ..script("") });
    let signals = link.read_until("\n");
    for line in signals.lines().filter(|l| l.contains("SigBlk") || l.contains("SigIgn")) {
        // Those from 32 on are the C library's own.
        let set = u64::from_str_radix(line.split_whitespace().last().unwrap(), 16).unwrap() & 0x7fff_ffff;
        assert_eq!(set, 0, "the agent inherits nothing of it: {line}");
    }
    assert_eq!(status(who.pid, "NSsid"), who.pid.to_string());
    assert!(lives(pid));
    assert_ne!(link.client.shim(), Who::default());
}
