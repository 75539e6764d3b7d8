//! The few raw system calls: the one room with unsafe code. Each use is proven where it stands.

use std::io;
use std::net::TcpListener;
use std::os::fd::{AsFd as _, FromRawFd as _, OwnedFd};
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
