//! The few raw system calls: the one room with unsafe code. Each use is proven where it stands.

use std::io;
use std::net::TcpListener;
use std::os::fd::{AsFd as _, BorrowedFd, FromRawFd as _, OwnedFd, RawFd};
use std::os::unix::net::UnixListener;

use rustix::net::{AddressFamily, SocketType, sockopt};

use crate::http::Listener;

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

/// The listening sockets that a service manager passed (`LISTEN_FDS`); none without one. Called once, at start.
///
/// # Errors
/// What was passed is no listening stream socket.
#[allow(unsafe_code)]
pub fn passed_listeners() -> io::Result<Vec<Listener>> {
    let mut listeners = Vec::new();
    for raw in sd_notify::listen_fds()? {
        // SAFETY: `listen_fds` yields descriptors only when LISTEN_PID names this process, and then those from 3 upwards
        // that the service manager opened for it to own. They were open before anything of ours was, nothing else in this
        // process knows them, and this function runs once, so each has exactly one owner from here on.
        let fd = unsafe { OwnedFd::from_raw_fd(raw) };
        rustix::io::fcntl_setfd(&fd, rustix::io::FdFlags::CLOEXEC)?;
        if sockopt::socket_type(fd.as_fd())? != SocketType::STREAM {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "a passed socket is not a stream"));
        }
        listeners.push(match sockopt::socket_domain(fd.as_fd())? {
            AddressFamily::UNIX => Listener::Unix(UnixListener::from(fd)),
            _ => Listener::Tcp(TcpListener::from(fd)),
        });
    }
    Ok(listeners)
}
