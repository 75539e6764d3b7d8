//! The API's listeners: those that a service manager passed, else our own socket, and TCP where configured. What is not
//! safe to listen on is refused here, what is doubtful is warned of, and a file of ours that is swept away is made again.

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
}

/// Where our own socket stands among the listeners.
const OWN_PLACE: usize = 0;

/// A socket's file that we made.
#[derive(Debug)]
pub(super) struct Own {
    path: PathBuf,
    /// Device and inode: another daemon may have put its own in this place.
    id: (u64, u64),
}

impl Own {
    /// Removes the file, if it is still the one that we made.
    pub fn remove(&self) {
        if identity(&self.path) == Some(self.id) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// How often the socket's file is looked for.
const LOOK: Duration = Duration::from_secs(2);
/// How long whoever has our socket's place may take to answer: one that hangs is there.
const KNOCK: Duration = Duration::from_secs(2);
/// How often it is looked whether it is still there.
const KNOCK_EVERY: Duration = Duration::from_secs(30);

/// Keeps the socket's file where clients look for it: a daemon whose file was swept away (a runtime directory goes with the
/// user's last login) would live on and answer nobody. Ended, it removes the file, if it is still ours.
pub(super) struct Keeper {
    own: Arc<Mutex<Own>>,
    thread: Option<(Sender<()>, JoinHandle<()>)>,
}

impl Keeper {
    /// Begins to look. Without a thread the file is as it was made.
    pub fn start(own: Own, server: &Arc<Server>) -> Self {
        let own = Arc::new(Mutex::new(own));
        let (stop, stopped) = crossbeam_channel::bounded(0);
        let (kept, server) = (own.clone(), server.clone());
        let look = move || {
            let mut seen = None;
            while stopped.recv_timeout(LOOK) == Err(RecvTimeoutError::Timeout) {
                look(&mut kept.lock().unwrap_or_else(PoisonError::into_inner), &server, &mut seen);
            }
        };
        let thread = thread::spawn_own("socket", thread::IO_STACK, look);
        let thread = thread.inspect_err(|e| log::warn!("nobody looks after the socket's file: {e}")).ok();
        Self { own, thread: thread.map(|t| (stop, t)) }
    }

    /// The end.
    pub fn end(self) {
        if let Some((stop, thread)) = self.thread {
            drop(stop);
            let _ = thread.join();
        }
        self.own.lock().unwrap_or_else(PoisonError::into_inner).remove();
    }
}

/// What stood in the socket's place when it could not be made again, and why; told when it changes.
struct Obstacle {
    id: Option<(u64, u64)>,
    why: String,
    /// When it was last looked whether anybody is behind it.
    at: Instant,
}

/// Makes the socket anew if its file is gone, or is one that nobody answers at.
fn look(own: &mut Own, server: &Server, obstacle: &mut Option<Obstacle>) {
    let there = identity(&own.path);
    if there == Some(own.id) {
        *obstacle = None;
        return;
    }
    // Another daemon's socket is not knocked at again and again.
    if there.is_some() && obstacle.as_ref().is_some_and(|o| o.id == there && o.at.elapsed() < KNOCK_EVERY) {
        return;
    }
    let made = bind(&own.path).map_err(|e| e.1).and_then(|(listener, made)| {
        server.replace(OWN_PLACE, Listener::Unix(listener)).map_err(|e| e.to_string())?;
        Ok(made)
    });
    match made {
        Ok(made) => {
            log::warn!("{}: the socket's file was gone; it is made again", own.path.display());
            *own = made;
            *obstacle = None;
        }
        Err(why) => {
            if obstacle.as_ref().is_none_or(|o| (o.id, &o.why) != (there, &why)) {
                log::error!("the socket's file is not ours any more, and cannot be made again yet: {why}");
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

/// Opens them. `token`: whoever comes over TCP has to bring one.
pub(super) fn listen(socket: &Path, http: Option<&config::Http>, token: bool) -> Result<Opened, NoStart> {
    let passed = crate::sys::passed_sockets().map_err(|e| NoStart(exit::INTERNAL, format!("LISTEN_FDS: {e}")))?;
    let mut listeners: Vec<Listener> = passed.into_iter().map(of_the_manager).collect();
    let mut own = None;
    if listeners.is_empty() {
        let (listener, made) = bind(socket)?;
        log::info!("listening on {}", socket.display());
        // In the first place: see `OWN_PLACE`.
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
        log::info!("listening on what the service manager passed");
    }
    if let Some(http) = http {
        let tcp = TcpListener::bind(http.listen)
            .map_err(|e| NoStart(exit::STATE, format!("[http] listen = {:?}: {e}", http.listen.to_string())))?;
        listeners.push(Listener::Tcp(tcp));
        log::info!("listening on http://{}", http.listen);
    }
    listeners.iter().filter_map(|l| doubt(l, token)).for_each(|what| log::warn!("{what}"));
    Ok(Opened { listeners, own })
}

/// A socket that the service manager made.
fn of_the_manager((fd, kind): (OwnedFd, SocketKind)) -> Listener {
    match kind {
        SocketKind::Unix => Listener::Unix(fd.into()),
        SocketKind::Tcp => Listener::Tcp(fd.into()),
    }
}

/// Makes our own socket, for whom it is for.
fn bind(socket: &Path) -> Result<(UnixListener, Own), NoStart> {
    let no = |e: io::Error| NoStart(exit::STATE, format!("{}: {e}", socket.display()));
    if let Some(dir) = socket.parent() {
        fs::create_dir_all(dir).map_err(no)?;
    }
    // We hold the lock, so a socket that is there belongs to nobody; but never remove another kind of file, nor the
    // socket of a daemon with another state directory.
    let knocked = client::connect(socket, KNOCK);
    if knocked.is_ok() || knocked.is_err_and(|e| e.kind() == io::ErrorKind::TimedOut) {
        return Err(NoStart(exit::UNAVAILABLE, format!("{}: another daemon answers there", socket.display())));
    }
    match fs::symlink_metadata(socket) {
        Ok(m) if m.file_type().is_socket() => fs::remove_file(socket).map_err(no)?,
        Ok(_) => return Err(NoStart(exit::STATE, format!("{}: not a socket, and in the way", socket.display()))),
        Err(_) => {}
    }
    let listener = UnixListener::bind(socket).map_err(|e| match paths::socket_too_long(socket) {
        Some(why) => NoStart(exit::STATE, format!("{}: {why}; choose another with --socket", socket.display())),
        None => no(e),
    })?;
    // As a service the group may talk to it; elsewhere the user alone.
    let mode = if std::env::var_os("RUNTIME_DIRECTORY").is_some() { 0o660 } else { 0o600 };
    fs::set_permissions(socket, fs::Permissions::from_mode(mode)).map_err(no)?;
    let id = identity(socket).ok_or_else(|| no(io::ErrorKind::NotFound.into()))?;
    Ok((listener, Own { path: socket.to_path_buf(), id }))
}

/// Why a TCP listener must not be used as it is, or `None`: an address proves nothing, so what the network reaches needs
/// the token.
fn unsafe_without_token(address: SocketAddr, token: bool) -> Option<String> {
    let reachable = !address.ip().to_canonical().is_loopback();
    (reachable && !token).then(|| format!("{address} is not a loopback address, which needs [http] token_file"))
}

/// What is not refused but should be known of a listener.
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
    fn only_what_the_network_reaches_needs_a_token() {
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
        let (first, own) = bind(&path).map_err(|e| e.1).unwrap();
        fs::remove_file(&path).unwrap();
        let (_second, others) = bind(&path).map_err(|e| e.1).unwrap();
        own.remove();
        assert!(path.exists(), "it was not the first one's to remove");
        others.remove();
        assert!(!path.exists());
        drop(first);
    }
}
