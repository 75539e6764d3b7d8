//! The few raw system calls: the one room with unsafe code. Each use is proven where it stands.

use std::io;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd, RawFd};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::Command;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, Stat, fstat, statat};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketType, sockopt};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Keeps the memory of the C library's allocator together: without a bound every thread that comes and goes may leave
/// its garbage in an arena of its own (eight a core), so that a daemon whose threads and Lua states come and go grows for
/// days. `MALLOC_ARENA_MAX` in the environment wins. Called once, at start.
#[allow(unsafe_code)]
pub fn bound_arenas() {
    #[cfg(target_env = "gnu")]
    {
        unsafe extern "C" {
            fn mallopt(parameter: std::ffi::c_int, value: std::ffi::c_int) -> std::ffi::c_int;
        }
        const M_ARENA_MAX: std::ffi::c_int = -8;
        if std::env::var_os("MALLOC_ARENA_MAX").is_none() {
            // SAFETY: `mallopt` is glibc's own (this is compiled for it alone), declared as malloc.h has it; it takes two
            // integers, locks what it changes, and with this parameter only sets how many arenas are made from now on.
            unsafe { mallopt(M_ARENA_MAX, 2) };
        }
    }
}

/// Whatever was open when the process was started, its three streams apart, is not passed on to the programs that it runs:
/// a lock of the script that started it would else be held until the last agent is gone. Called once, at start.
///
/// # Errors
/// What is open cannot be listed.
#[allow(unsafe_code)]
pub fn keep_inherited() -> io::Result<()> {
    let numbers: Vec<RawFd> =
        std::fs::read_dir("/proc/self/fd")?.flatten().filter_map(|e| e.file_name().to_str()?.parse().ok()).collect();
    for raw in numbers.into_iter().filter(|n| *n > 2) {
        // SAFETY: the number is that of a descriptor that was open a moment ago, and is borrowed for this one call only, which
        // neither closes nor reads it. The directory's own, which was listed too, is closed by now: that call fails and
        // changes nothing. A descriptor that another thread made under the number meanwhile would be one of ours, which
        // all have this flag.
        let fd = unsafe { BorrowedFd::borrow_raw(raw) };
        let _ = rustix::io::fcntl_setfd(fd, rustix::io::FdFlags::CLOEXEC);
    }
    Ok(())
}

/// Closes every descriptor from a number on. For a process that was just started, before it opens any of its own.
#[allow(unsafe_code)]
pub fn close_from(first: u32) {
    // SAFETY: the caller's process was just started and has made no descriptor yet, so no owner of one is betrayed; the call
    // takes integers and touches no memory. A kernel without it leaves what was inherited open.
    let _ = unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, 0) };
}

/// Has the C library give each large block of memory back to the system when it is freed, and ask for the next anew. For a
/// process that holds some for a moment and should be small for the rest of its life. Called once, at start.
#[allow(unsafe_code)]
pub fn give_blocks_back() {
    #[cfg(target_env = "gnu")]
    {
        unsafe extern "C" {
            fn mallopt(parameter: std::ffi::c_int, value: std::ffi::c_int) -> std::ffi::c_int;
        }
        const M_TOP_PAD: std::ffi::c_int = -2;
        const M_MMAP_THRESHOLD: std::ffi::c_int = -3;
        // SAFETY: as in `bound_arenas`: glibc's own function, declared as malloc.h has it; these parameters only say from
        // which size on a block is mapped by itself, and that the heap is not made larger than it must be, for then such
        // blocks would be taken from it.
        unsafe {
            mallopt(M_TOP_PAD, 0);
            mallopt(M_MMAP_THRESHOLD, 32 * 1024);
        }
    }
}

/// Gives what the C library keeps of freed memory back to the system. For a process that has done what it does once.
#[allow(unsafe_code)]
pub fn trim_memory() {
    #[cfg(target_env = "gnu")]
    {
        unsafe extern "C" {
            fn malloc_trim(keep: usize) -> std::ffi::c_int;
        }
        // SAFETY: glibc's own function, declared as malloc.h has it; it locks what it changes, and touches nothing that is
        // in use.
        unsafe { malloc_trim(0) };
    }
}

/// Blocks signals of this thread, of which the first few are read from the descriptor that comes back, by
/// [`read_signal`]; the others are ignored in effect. A program that is started later is to be given
/// [`unblock_signals`]. For a process of one thread.
///
/// # Errors
/// There is no descriptor left.
#[allow(unsafe_code)]
pub fn signal_descriptor(read: &[i32], ignored: &[i32]) -> io::Result<OwnedFd> {
    // SAFETY: a set is initialized by `sigemptyset` before anything reads it, and lives through the calls, which are declared
    // by `libc` as the system has them. What `signalfd` returns, if it is a descriptor, belongs to nobody else.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        for signal in ignored {
            libc::sigaddset(&raw mut set, *signal);
        }
        libc::sigprocmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut());
        libc::sigemptyset(&raw mut set);
        for signal in read {
            libc::sigaddset(&raw mut set, *signal);
        }
        libc::sigprocmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut());
        match libc::signalfd(-1, &raw const set, libc::SFD_NONBLOCK | libc::SFD_CLOEXEC) {
            -1 => Err(io::Error::last_os_error()),
            fd => Ok(OwnedFd::from_raw_fd(fd)),
        }
    }
}

/// Takes every block of a signal off this thread: programs inherit them. It may be called between fork and exec.
#[allow(unsafe_code)]
pub fn unblock_signals() {
    // SAFETY: as in `signal_descriptor`; two calls that are safe in a signal's handler, and so between fork and exec.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const set, std::ptr::null_mut());
    }
}

/// Takes every block of a signal off this thread, and has every signal do again what it does by default: a program inherits
/// what is blocked and what is ignored, and a shell ignores some for what it runs in the background, `nohup` another. It may
/// be called between fork and exec.
#[allow(unsafe_code)]
pub fn plain_signals() {
    unblock_signals();
    for signal in 1..32 {
        // SAFETY: the call takes integers, may be made in a signal's handler and so between fork and exec, and is refused
        // for the two signals that have no other meaning.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
    }
}

/// The next signal of a [`signal_descriptor`]; `None`: none waits.
#[must_use]
pub fn read_signal(descriptor: impl AsFd) -> Option<i32> {
    // `signalfd_siginfo` has 128 bytes, of which the first four are the signal's number.
    let mut info = [0; 128];
    let read = rustix::io::read(descriptor, &mut info).ok()?;
    info.first_chunk().filter(|_| read == info.len()).and_then(|number| u32::from_ne_bytes(*number).try_into().ok())
}

/// Spreads the sleepers of this process over so many chains (a power of two). Since Linux 6.16 a process has a table of its
/// own for its waiting threads, as large as its machine has cores: with ten thousand threads asleep in its sixteen chains
/// every wake-up walks past hundreds of them. `false`: this kernel has no such table, and its common one is large enough.
#[allow(unsafe_code)]
pub fn spread_sleepers(chains: usize) -> bool {
    use std::ffi::{c_int, c_ulong};
    unsafe extern "C" {
        fn prctl(option: c_int, ...) -> c_int;
    }
    const PR_FUTEX_HASH: c_int = 78;
    const PR_FUTEX_HASH_SET_SLOTS: c_ulong = 1;
    let nought: c_ulong = 0;
    // SAFETY: declared as `sys/prctl.h` has it; with this option the kernel reads the integers alone, touches no memory
    // of ours, and refuses what it does not know. All that changes is in which of its own lists threads sleep.
    unsafe { prctl(PR_FUTEX_HASH, PR_FUTEX_HASH_SET_SLOTS, chains as c_ulong, nought, nought) == 0 }
}

/// What kind of socket a service manager passed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SocketKind {
    /// A unix socket.
    Unix,
    /// TCP over IPv4 or IPv6.
    Tcp,
}

/// The listening sockets that a service manager passed (`LISTEN_FDS`); none without one. Called once, at start.
///
/// # Errors
/// What was passed is no listening stream socket, or of a kind that is not served.
#[allow(unsafe_code)]
pub fn passed_sockets() -> io::Result<Vec<(OwnedFd, SocketKind)>> {
    let mut sockets = Vec::new();
    for raw in sd_notify::listen_fds()? {
        // SAFETY: `listen_fds` yields descriptors only when LISTEN_PID names this process, and then those from 3 upwards
        // that the service manager opened for it to own. They were open before anything of ours was, nothing else in this
        // process knows them, and this function runs once, so each has exactly one owner from here on.
        let fd = unsafe { OwnedFd::from_raw_fd(raw) };
        let kind = kind_of(&fd)?;
        sockets.push((fd, kind));
    }
    Ok(sockets)
}

/// Which kind of listening socket a descriptor is, which from now on is not passed on.
fn kind_of(fd: &OwnedFd) -> io::Result<SocketKind> {
    rustix::io::fcntl_setfd(fd, rustix::io::FdFlags::CLOEXEC)?;
    if sockopt::socket_type(fd)? != SocketType::STREAM {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "a passed socket is not a stream"));
    }
    match sockopt::socket_domain(fd)? {
        AddressFamily::UNIX => Ok(SocketKind::Unix),
        AddressFamily::INET | AddressFamily::INET6 => Ok(SocketKind::Tcp),
        _ => Err(io::Error::new(io::ErrorKind::InvalidInput, "a passed socket is neither unix nor TCP")),
    }
}

/// A listening socket that the program which this process ran before left open under a number. Called at the start, before
/// anything here listens, and once for each number. What is no listening socket is left as it is.
///
/// # Errors
/// There is no such descriptor, or it is no listening stream socket of a kind that is served.
#[allow(unsafe_code)]
pub fn left_socket(number: RawFd) -> io::Result<(OwnedFd, SocketKind)> {
    // SAFETY: the call takes integers, and fails if the number is not open.
    if number <= 2 || unsafe { libc::fcntl(number, libc::F_GETFD) } == -1 {
        return Err(io::ErrorKind::NotFound.into());
    }
    // SAFETY: the descriptor is open, as was just seen, and is borrowed for the one call below.
    let listens = sockopt::socket_acceptconn(unsafe { BorrowedFd::borrow_raw(number) });
    if !listens.unwrap_or(false) {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "no listening socket"));
    }
    // SAFETY: nothing in this process listens yet, so this socket was left by the last program for this one to own; each
    // number is asked for once, so it has exactly one owner from here on.
    let fd = unsafe { OwnedFd::from_raw_fd(number) };
    let kind = kind_of(&fd)?;
    Ok((fd, kind))
}

/// Has this process go on as another program. SIGTERM, SIGINT, SIGHUP and SIGUSR1 are blocked meanwhile, so that one that
/// comes before the next program listens is not lost and ends nothing; it takes the block off ([`unblock_signals`]).
/// Returns only if it fails.
#[allow(unsafe_code)]
pub fn go_on_as(command: &mut Command) -> io::Error {
    // SAFETY: the closure runs in this process, just before the program is replaced; it takes no lock and allocates nothing.
    unsafe {
        command.pre_exec(|| {
            let mut set: libc::sigset_t = std::mem::zeroed();
            libc::sigemptyset(&raw mut set);
            for signal in [libc::SIGTERM, libc::SIGINT, libc::SIGHUP, libc::SIGUSR1] {
                libc::sigaddset(&raw mut set, signal);
            }
            libc::sigprocmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut());
            Ok(())
        });
    }
    command.exec()
}

/// Has a child begin with [`plain_signals`] and in a session of its own, so that no terminal is its own and its group bears
/// its number, with the soft limit of descriptors `descriptors` and the soft limit of real-time `tag`, where they are given and possible.
#[allow(unsafe_code)]
pub fn set_up_child(command: &mut Command, descriptors: Option<u64>, tag: Option<u64>) {
    // SAFETY: the closure runs in the child between fork and exec, where no lock may be taken and nothing allocated: it
    // makes a few dozen system calls, by wrappers that do nothing else, on integers that it owns.
    unsafe {
        command.pre_exec(move || {
            plain_signals();
            rustix::process::setsid()?;
            if let Some(soft) = descriptors {
                set_soft_limit(Resource::Nofile, soft);
            }
            if let Some(soft) = tag {
                set_soft_limit(Resource::Rttime, soft);
            }
            Ok(())
        });
    }
}

/// Opens a file and follows no symbolic link on the way, nor leaves `at` by `..`. It goes name by name: `openat2` would do it in
/// one call, but answers ENOSYS in every service with `RestrictSUIDSGID=yes`, because a filter cannot see its arguments.
///
/// # Errors
/// A name is a link (`ELOOP`), or `..` (`EXDEV`), and those of `openat`.
pub fn open_without_links(at: impl AsFd, path: &Path, flags: OFlags, mode: Mode) -> io::Result<OwnedFd> {
    let way = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let mut dir: Option<OwnedFd> = None;
    let mut names = path.components().peekable();
    while let Some(name) = names.next() {
        let (name, is_last) = (name.as_os_str(), names.peek().is_none());
        if name == ".." {
            return Err(Errno::XDEV.into());
        }
        let from = dir.as_ref().map_or(at.as_fd(), AsFd::as_fd);
        let (flags, mode) = if is_last { (flags, mode) } else { (way, Mode::empty()) };
        let is_link = |stat: Stat| FileType::from_raw_mode(stat.st_mode).is_symlink();
        let opened = match rustix::fs::openat(from, name, flags | OFlags::NOFOLLOW, mode) {
            // What is asked for is a directory, and a link is none.
            Err(Errno::NOTDIR) if statat(from, name, AtFlags::SYMLINK_NOFOLLOW).is_ok_and(is_link) => Err(Errno::LOOP),
            // For a mere place on the way, a link is a file like any.
            Ok(file) if flags.contains(OFlags::PATH) && fstat(&file).is_ok_and(is_link) => Err(Errno::LOOP),
            opened => opened,
        }?;
        if is_last {
            return Ok(opened);
        }
        dir = Some(opened);
    }
    Err(Errno::NOENT.into())
}

/// Sets the soft limit of this process; whether it could be.
pub fn set_soft_limit(resource: Resource, soft: u64) -> bool {
    let limit = getrlimit(resource);
    setrlimit(resource, Rlimit { current: Some(soft), maximum: limit.maximum }).is_ok()
}

/// Who of this process's children is dead and not reaped yet: one of them, which stays as it is.
#[allow(unsafe_code)]
#[must_use]
pub fn dead_child() -> Option<u32> {
    // SAFETY: all bytes of a `siginfo_t` may be nought; the kernel fills in what it has to say, into memory that lives
    // through the call. After it, `si_pid` is that of a child, or still nought when none is dead.
    let pid = unsafe {
        let mut info: libc::siginfo_t = std::mem::zeroed();
        let options = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT;
        if libc::waitid(libc::P_ALL, 0, &raw mut info, options) != 0 {
            return None;
        }
        info.si_pid()
    };
    u32::try_from(pid).ok().filter(|pid| *pid > 0)
}

/// The process group of this process; 0 when its leader is outside the pid namespace, as where a container's first process
/// began no session of its own. (A number that is never 0 cannot say so.)
#[allow(unsafe_code)]
#[must_use]
pub fn own_group() -> u32 {
    // SAFETY: it takes nothing, touches no memory and cannot fail.
    unsafe { libc::getpgrp() }.unsigned_abs()
}

/// Who connected a unix socket, as the kernel noted it then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeerCred {
    /// Its user.
    pub uid: u32,
    /// Its group, the first of them.
    pub gid: u32,
    /// Its process; `None` when it has no number in this pid namespace.
    pub pid: Option<i32>,
}

/// The most supplementary groups that a process can have.
const MOST_GROUPS: usize = 65_536;

/// Who is on the other side of a connected unix socket. The numbers are the kernel's and cannot be chosen by the peer.
///
/// # Errors
/// It is no unix socket.
#[allow(unsafe_code)]
pub fn peer_cred(socket: impl AsFd) -> io::Result<PeerCred> {
    let mut cred = libc::ucred { pid: 0, uid: 0, gid: 0 };
    let mut length = libc::socklen_t::try_from(size_of::<libc::ucred>()).map_err(io::Error::other)?;
    // SAFETY: the descriptor is borrowed and so open; the kernel writes at most `length` bytes into `cred`, which is that
    // long, lives through the call and is three plain integers, of which any value is valid.
    let answer = unsafe {
        let fd = socket.as_fd().as_raw_fd();
        libc::getsockopt(fd, libc::SOL_SOCKET, libc::SO_PEERCRED, (&raw mut cred).cast(), &raw mut length)
    };
    if answer != 0 {
        return Err(io::Error::last_os_error());
    }
    // A peer of another pid namespace has no number here, which the kernel tells as 0.
    Ok(PeerCred { uid: cred.uid, gid: cred.gid, pid: (cred.pid > 0).then_some(cred.pid) })
}

/// The supplementary groups of whoever connected a unix socket (`SO_PEERGROUPS`); its first group is in [`peer_cred`].
///
/// # Errors
/// It is no connected unix socket, or the kernel is older than 4.13.
#[allow(unsafe_code)]
pub fn peer_groups(socket: impl AsFd) -> io::Result<Vec<u32>> {
    let mut groups: Vec<libc::gid_t> = vec![0; 64];
    loop {
        let room = size_of_val(groups.as_slice());
        let mut length = libc::socklen_t::try_from(room).map_err(io::Error::other)?;
        // SAFETY: the descriptor is borrowed and so open; the kernel writes at most `length` bytes, which is the size of
        // the vector's initialized elements, integers of which any value is valid; the vector lives through the call.
        let answer = unsafe {
            let fd = socket.as_fd().as_raw_fd();
            libc::getsockopt(fd, libc::SOL_SOCKET, libc::SO_PEERGROUPS, groups.as_mut_ptr().cast(), &raw mut length)
        };
        // With too little room the kernel says how much it takes.
        let number = usize::try_from(length).map_err(io::Error::other)? / size_of::<libc::gid_t>();
        if answer == 0 {
            groups.truncate(number);
            return Ok(groups);
        }
        let error = io::Error::last_os_error();
        if error.raw_os_error() != Some(libc::ERANGE) || number <= groups.len() || number > MOST_GROUPS {
            return Err(error);
        }
        groups.resize(number, 0);
    }
}

/// A process that is held on to, so that its number can be compared.
#[derive(Debug)]
pub struct Process(OwnedFd);

impl Process {
    /// Whether it is there still, as a zombie at least, and has this number.
    #[must_use]
    pub fn is(&self, pid: u32) -> bool {
        let Ok(text) = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", self.0.as_raw_fd())) else {
            return false;
        };
        // The number is -1 once it has been reaped.
        let named = text.lines().find_map(|line| line.strip_prefix("Pid:")).and_then(|n| n.trim().parse::<u32>().ok());
        named == Some(pid)
    }
}

/// The process that connected a unix socket. Since Linux 6.5 the kernel gives it whatever became of its number; before, it is
/// the one that has the number `pid` now.
///
/// # Errors
/// It is gone, or the kernel gives it not.
#[allow(unsafe_code)]
pub fn peer_process(socket: impl AsFd, pid: u32) -> io::Result<Process> {
    let mut raw: RawFd = -1;
    let mut length = libc::socklen_t::try_from(size_of::<RawFd>()).map_err(io::Error::other)?;
    // SAFETY: the descriptor is borrowed and so open; the kernel writes at most `length` bytes into `raw`, an integer that
    // lives through the call.
    let answer = unsafe {
        let fd = socket.as_fd().as_raw_fd();
        libc::getsockopt(fd, libc::SOL_SOCKET, libc::SO_PEERPIDFD, (&raw mut raw).cast(), &raw mut length)
    };
    if answer == 0 && raw >= 0 {
        // SAFETY: the kernel has just made this descriptor for this process, closed at exec, and nobody else knows it.
        return Ok(Process(unsafe { OwnedFd::from_raw_fd(raw) }));
    }
    let e = io::Error::last_os_error();
    if e.raw_os_error() != Some(libc::ENOPROTOOPT) {
        return Err(e);
    }
    let pid = i32::try_from(pid).ok().and_then(rustix::process::Pid::from_raw).ok_or(io::ErrorKind::NotFound)?;
    Ok(Process(rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty())?))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_peer_is_who_the_kernel_says() {
        let (one, _other) = std::os::unix::net::UnixStream::pair().unwrap();
        let cred = peer_cred(&one).unwrap();
        let me = rustix::process::getpid().as_raw_nonzero().get();
        assert_eq!((cred.uid, cred.gid), (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw()));
        assert_eq!(cred.pid, Some(me));
        let mut groups = peer_groups(&one).unwrap();
        let mut mine: Vec<u32> = rustix::process::getgroups().unwrap().iter().map(|g| g.as_raw()).collect();
        groups.sort_unstable();
        mine.sort_unstable();
        assert_eq!(groups, mine);
    }

    #[test]
    fn no_link_is_followed_on_the_way_to_a_file() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        std::fs::create_dir_all(at("a/b")).unwrap();
        std::fs::write(at("a/b/file"), "x").unwrap();
        for (to, link) in [("a", "to-a"), ("file", "a/b/to-file"), ("nowhere", "a/lost")] {
            std::os::unix::fs::symlink(to, at(link)).unwrap();
        }
        let base = std::fs::File::open(dir.path()).unwrap();
        let table = [
            ("a/b/file", None),
            ("./a/./b/file", None),
            ("a", None),
            ("to-a/b/file", Some(Errno::LOOP)),
            ("to-a", Some(Errno::LOOP)),
            ("a/b/to-file", Some(Errno::LOOP)),
            ("a/lost", Some(Errno::LOOP)),
            ("a/none", Some(Errno::NOENT)),
            ("none/b", Some(Errno::NOENT)),
            ("", Some(Errno::NOENT)),
            ("a/b/file/x", Some(Errno::NOTDIR)),
            ("a/../a/b/file", Some(Errno::XDEV)),
        ];
        let errno = |opened: io::Result<OwnedFd>| opened.err().and_then(|e| Errno::from_io_error(&e));
        for (path, want) in table {
            for flags in [OFlags::RDONLY, OFlags::PATH] {
                let path = Path::new(path);
                assert_eq!(errno(open_without_links(&base, path, flags, Mode::empty())), want, "{path:?} {flags:?}");
                if want != Some(Errno::NOENT) {
                    let whole = dir.path().canonicalize().unwrap().join(path);
                    let opened = open_without_links(rustix::fs::CWD, &whole, flags, Mode::empty());
                    assert_eq!(errno(opened), want, "{whole:?} {flags:?}");
                }
            }
        }
        assert!(open_without_links(&base, Path::new("/"), OFlags::PATH, Mode::empty()).is_ok());
        let made = OFlags::WRONLY | OFlags::CREATE;
        assert!(open_without_links(&base, Path::new("a/new"), made, Mode::RUSR).is_ok() && at("a/new").exists());
    }

    #[test]
    fn what_is_no_unix_socket_has_no_peer() {
        let file = std::fs::File::open("/dev/null").unwrap();
        assert!(peer_cred(&file).is_err() && peer_groups(&file).is_err());
    }
}
