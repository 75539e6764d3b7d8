//! The few raw system calls: the one room with unsafe code. Each use is proven where it stands.

use std::io;
use std::net::TcpListener;
use std::os::fd::{AsFd as _, FromRawFd as _, OwnedFd};
use std::os::unix::net::UnixListener;

use rustix::net::{AddressFamily, SocketType, sockopt};

use crate::http::Listener;

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
