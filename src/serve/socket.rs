//! The API's listeners: the sockets from the service manager, or our own socket, and TCP if configured. An unsafe
//! address is refused here, a doubtful one gets a warning, and a removed file of our own socket is created again.

use std::fs;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::{RecvTimeoutError, Sender};

use super::NoStart;
use super::successor::{Kept, Role};
use crate::client;
use crate::config::{self, paths};
use crate::exit;
use crate::http::{Listener, Server};
use crate::sys::SocketKind;
use crate::thread;

/// The listeners, and the socket's file if it is ours.
pub(super) struct Opened {
    pub listeners: Vec<Listener>,
    pub own: Option<Own>,
    /// Second descriptors of all but our own, for the next program of this process.
    pub kept: Kept,
}

/// The place of our own socket among the listeners.
const OWN_PLACE: usize = 0;

/// The file of our own socket.
#[derive(Debug)]
pub(super) struct Own {
    path: PathBuf,
    /// Device and inode: another daemon may have replaced the file with its own.
    id: (u64, u64),
    /// A second descriptor, for the next program of this process.
    kept: Option<OwnedFd>,
}

impl Own {
    /// What the next program gets.
    pub fn take_kept(&mut self) -> Option<(Role, OwnedFd)> {
        Some((Role::Own(self.id.0, self.id.1), self.kept.take()?))
    }

    /// Removes the file, if it is still ours.
    pub fn remove(&self) {
        if identity(&self.path) == Some(self.id) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// The time between two checks of the socket's file.
const CHECK: Duration = Duration::from_secs(2);
/// How long another owner of the socket's path may take to answer. A daemon that hangs counts as alive.
const KNOCK: Duration = Duration::from_secs(2);
/// The time between two checks for that owner.
const KNOCK_EVERY: Duration = Duration::from_secs(30);

/// Keeps the socket's file in its place. Without it, a daemon whose file is removed would run on without clients: a
/// user's runtime directory is removed at the last logout. At its end it removes the file, if it is still ours.
pub(super) struct Keeper {
    own: Arc<Mutex<Own>>,
    thread: Option<(Sender<()>, JoinHandle<()>)>,
}

impl Keeper {
    /// Starts the checks. If the thread cannot be started, the file is not checked.
    pub fn start(own: Own, server: &Arc<Server>) -> Self {
        let own = Arc::new(Mutex::new(own));
        let (stop, stopped) = crossbeam_channel::bounded(0);
        let (kept, server) = (own.clone(), server.clone());
        let body = move || {
            let mut seen = None;
            while stopped.recv_timeout(CHECK) == Err(RecvTimeoutError::Timeout) {
                check(&mut kept.lock().unwrap_or_else(PoisonError::into_inner), &server, &mut seen);
            }
        };
        let thread = thread::spawn_own("socket", thread::IO_STACK, body);
        let thread = thread.inspect_err(|e| log::warn!("cannot start a thread to check the socket's file: {e}")).ok();
        Self { own, thread: thread.map(|t| (stop, t)) }
    }

    /// Nothing is kept for a next program: once the server accepts no more, clients are refused.
    pub fn keep_nothing(&self) {
        self.own.lock().unwrap_or_else(PoisonError::into_inner).kept = None;
    }

    /// Ends the checks and removes the file.
    pub fn end(self) {
        self.hand_over().0.remove();
    }

    /// Ends the checks; the file stays, for the next program of this process.
    pub fn hand_over(mut self) -> (Own, Option<(Role, OwnedFd)>) {
        if let Some((stop, thread)) = self.thread.take() {
            drop(stop);
            let _ = thread.join();
        }
        let mut own = self.own.lock().unwrap_or_else(PoisonError::into_inner);
        let kept = own.take_kept();
        (Own { path: own.path.clone(), id: own.id, kept: None }, kept)
    }
}

/// Why the socket could not be created again; logged when it changes.
struct Obstacle {
    /// The file in its place.
    id: Option<(u64, u64)>,
    why: String,
    /// When the other owner was last checked.
    at: Instant,
}

/// Creates the socket again if its file is gone, or if no daemon answers at the file in its place.
fn check(own: &mut Own, server: &Server, obstacle: &mut Option<Obstacle>) {
    let there = identity(&own.path);
    if there == Some(own.id) {
        *obstacle = None;
        return;
    }
    // Another daemon's socket is not tried every time.
    if there.is_some() && obstacle.as_ref().is_some_and(|o| o.id == there && o.at.elapsed() < KNOCK_EVERY) {
        return;
    }
    let made = bind(&own.path, own.kept.is_some()).map_err(|e| e.1).and_then(|(listener, made)| {
        server.replace(OWN_PLACE, Listener::Unix(listener)).map_err(|e| e.to_string())?;
        Ok(made)
    });
    match made {
        Ok(made) => {
            log::warn!("{}: the socket's file was removed; it is created again", own.path.display());
            *own = made;
            *obstacle = None;
        }
        Err(why) => {
            if obstacle.as_ref().is_none_or(|o| (o.id, &o.why) != (there, &why)) {
                log::error!("the socket's file is no longer ours and cannot be created again yet: {why}");
            }
            *obstacle = Some(Obstacle { id: there, why, at: Instant::now() });
        }
    }
}

/// Device and inode of a socket's file.
fn identity(path: &Path) -> Option<(u64, u64)> {
    let meta = fs::symlink_metadata(path).ok()?;
    meta.file_type().is_socket().then(|| (meta.dev(), meta.ino()))
}

/// Opens the listeners, or takes those that the last program of this process left. `token`: clients over TCP need one.
/// `keep`: second descriptors are kept for the next program.
pub(super) fn listen(
    socket: &Path,
    http: Option<&config::Http>,
    token: bool,
    left: Vec<(Role, OwnedFd, SocketKind)>,
    keep: bool,
) -> Result<Opened, NoStart> {
    let internal = |e: io::Error| NoStart(exit::INTERNAL, format!("a listening socket: {e}"));
    let mut passed = crate::sys::passed_sockets().map_err(|e| NoStart(exit::INTERNAL, format!("LISTEN_FDS: {e}")))?;
    let (mut left_own, mut left_http) = (None, None);
    for (role, fd, kind) in left {
        match (role, kind) {
            (Role::Passed, kind) => passed.push((fd, kind)),
            (Role::Own(dev, inode), SocketKind::Unix) if identity(socket) == Some((dev, inode)) => left_own = Some(fd),
            (Role::Http, SocketKind::Tcp) => left_http = Some(TcpListener::from(fd)),
            // It listens where nothing is to listen any more.
            (Role::Own(..) | Role::Http, SocketKind::Unix | SocketKind::Tcp) => drop(fd),
        }
    }
    let (mut listeners, mut kept, mut own) = (Vec::new(), Vec::new(), None);
    for (fd, kind) in passed {
        if keep {
            kept.push((Role::Passed, fd.try_clone().map_err(internal)?));
        }
        listeners.push(of_the_manager((fd, kind)));
    }
    if listeners.is_empty() {
        let (listener, made) = match left_own.zip(identity(socket)) {
            Some((fd, id)) => {
                let kept = if keep { Some(fd.try_clone().map_err(internal)?) } else { None };
                (fd.into(), Own { path: socket.to_path_buf(), id, kept })
            }
            None => bind(socket, keep)?,
        };
        log::info!("listening on {}", socket.display());
        // It is the first: see `OWN_PLACE`.
        listeners.push(Listener::Unix(listener));
        own = Some(made);
    } else {
        for listener in &listeners {
            let address = match listener {
                Listener::Unix(_) => None,
                Listener::Tcp(tcp) => Some(tcp.local_addr().map_err(|e| {
                    NoStart(exit::INTERNAL, format!("LISTEN_FDS: the address of a passed socket: {e}"))
                })?),
            };
            if let Some(why) = address.and_then(|a| unsafe_without_token(a, token)) {
                return Err(NoStart(exit::CONFIG, format!("LISTEN_FDS: {why}")));
            }
        }
        log::info!("listening on the sockets of the service manager");
    }
    if let Some(http) = http {
        let tcp = tcp_listener(http.listen, left_http)?;
        if keep {
            kept.push((Role::Http, tcp.try_clone().map_err(internal)?.into()));
        }
        listeners.push(Listener::Tcp(tcp));
        log::info!("listening on http://{}", http.listen);
    }
    listeners.iter().filter_map(|l| doubt(l, token)).for_each(|what| log::warn!("{what}"));
    Ok(Opened { listeners, own, kept })
}

/// The listener of `[http]`: the one that was left, if it listens there.
fn tcp_listener(at: SocketAddr, left: Option<TcpListener>) -> Result<TcpListener, NoStart> {
    let fits = |a: SocketAddr| a.ip() == at.ip() && (a.port() == at.port() || at.port() == 0);
    if let Some(tcp) = left.filter(|tcp| tcp.local_addr().is_ok_and(fits)) {
        return Ok(tcp);
    }
    TcpListener::bind(at).map_err(|e| NoStart(exit::STATE, format!("[http] listen = {:?}: {e}", at.to_string())))
}

/// The listener of a socket from the service manager.
fn of_the_manager((fd, kind): (OwnedFd, SocketKind)) -> Listener {
    match kind {
        SocketKind::Unix => Listener::Unix(fd.into()),
        SocketKind::Tcp => Listener::Tcp(fd.into()),
    }
}

/// Creates our own socket, with its mode. `keep`: with a second descriptor.
fn bind(socket: &Path, keep: bool) -> Result<(UnixListener, Own), NoStart> {
    let no = |e: io::Error| NoStart(exit::STATE, format!("{}: {e}", socket.display()));
    if let Some(dir) = socket.parent() {
        fs::create_dir_all(dir).map_err(no)?;
    }
    // We hold the lock, so no daemon of this state directory owns an existing socket. Never remove another kind of
    // file, nor the socket of a daemon with another state directory.
    let knocked = client::connect(socket, KNOCK);
    if knocked.is_ok() || knocked.is_err_and(|e| e.kind() == io::ErrorKind::TimedOut) {
        return Err(NoStart(exit::UNAVAILABLE, format!("{}: another daemon answers there", socket.display())));
    }
    match fs::symlink_metadata(socket) {
        Ok(m) if m.file_type().is_socket() => fs::remove_file(socket).map_err(no)?,
        Ok(_) => {
            return Err(NoStart(exit::STATE, format!("{}: this file is not a socket", socket.display())));
        }
        Err(_) => {}
    }
    let listener = UnixListener::bind(socket).map_err(|e| match paths::socket_too_long(socket) {
        Some(why) => NoStart(exit::STATE, format!("{}: {why}; choose another with --socket", socket.display())),
        None => no(e),
    })?;
    // The socket of a service is open to its group; otherwise only to the user.
    let mode = if std::env::var_os("RUNTIME_DIRECTORY").is_some() { 0o660 } else { 0o600 };
    fs::set_permissions(socket, fs::Permissions::from_mode(mode)).map_err(no)?;
    let id = identity(socket).ok_or_else(|| no(io::ErrorKind::NotFound.into()))?;
    let kept = if keep { Some(listener.try_clone().map_err(no)?.into()) } else { None };
    Ok((listener, Own { path: socket.to_path_buf(), id, kept }))
}

/// Why a TCP listener is unsafe, or `None`. A client's address proves nothing, so a listener that the network can reach
/// needs a token.
fn unsafe_without_token(address: SocketAddr, token: bool) -> Option<String> {
    let reachable = !address.ip().to_canonical().is_loopback();
    (reachable && !token).then(|| format!("{address} is not a loopback address, which needs [http] token_file"))
}

/// A warning about a listener that is not refused.
fn doubt(listener: &Listener, token: bool) -> Option<String> {
    match listener {
        Listener::Tcp(tcp) if !token => tcp.local_addr().ok().map(|address| {
            format!("http://{address} has no token: every user of this machine may use it; set [http] token_file")
        }),
        Listener::Tcp(_) => None,
        Listener::Unix(unix) => {
            let path = unix.local_addr().ok()?.as_pathname()?.to_path_buf();
            let mode = fs::metadata(&path).ok()?.mode();
            (mode & 0o002 != 0).then(|| {
                format!(
                    "{}: every user may connect to it (mode {:o}), and all but its owner, its group and root are turned \
                     away: SocketMode=0660, or chmod o-rw",
                    path.display(),
                    mode & 0o7777
                )
            })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_listener_that_the_network_can_reach_needs_a_token() {
        for (address, unsafe_) in [
            ("127.0.0.1:7411", false),
            ("127.8.0.1:7411", false),
            ("[::1]:7411", false),
            ("[::ffff:127.0.0.1]:7411", false),
            ("0.0.0.0:7411", true),
            ("[::]:7411", true),
            ("10.9.9.1:7411", true),
            ("[fe80::1]:7411", true),
        ] {
            let address: SocketAddr = address.parse().unwrap();
            let why = unsafe_without_token(address, false);
            assert_eq!(why.is_some(), unsafe_, "{address}");
            assert!(why.is_none_or(|w| w.contains(&address.to_string()) && w.contains("token_file")));
            assert_eq!(unsafe_without_token(address, true), None, "{address}");
        }
    }

    #[test]
    fn a_file_that_another_made_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let (first, own) = bind(&path, false).map_err(|e| e.1).unwrap();
        fs::remove_file(&path).unwrap();
        let (_second, others) = bind(&path, false).map_err(|e| e.1).unwrap();
        own.remove();
        assert!(path.exists(), "it was not the first one's to remove");
        others.remove();
        assert!(!path.exists());
        drop(first);
    }
}
