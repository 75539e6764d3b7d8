//! Which job of the service manager a SIGTERM belongs to: `systemctl restart` and `systemctl stop` send the same signal.
//!
//! systemd is asked over its bus, without a library: `GetUnitByPID`, the unit's `Job`, the job's `JobType`, and the
//! manager's `SystemState`. It is asked for at most [`PATIENCE`], on a thread of its own; whoever gets no answer takes the
//! SIGTERM for a shutdown. It must not know what a stop does.

use std::io;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};

use crate::model::event::StopReason;

mod wire;

use wire::{Argument, Bus, Value};

/// How long the whole question may take.
pub const PATIENCE: Duration = Duration::from_secs(1);

/// The names of systemd on the bus.
const SYSTEMD: &str = "org.freedesktop.systemd1";
const ROOT: &str = "/org/freedesktop/systemd1";
const MANAGER: &str = "org.freedesktop.systemd1.Manager";
const PROPERTIES: &str = "org.freedesktop.DBus.Properties";

/// Asks the service manager why this process gets a SIGTERM; the answer is there by `until`, or soon after it.
#[must_use]
pub fn ask(until: Instant) -> StopReason {
    let groups = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let env = |name: &str| std::env::var(name).ok().filter(|v| !v.is_empty());
    let uid = rustix::process::geteuid().as_raw();
    let Some(path) = bus_path(is_of_a_user(&groups), uid, &env) else {
        log::debug!("the service manager's bus has no address that is a file: taken for a shutdown");
        return StopReason::Shutdown;
    };
    let began = Instant::now();
    let asked = open(&path).and_then(|stream| question(stream, uid, std::process::id(), until));
    match asked {
        Ok((job, state)) => {
            let reason = kind(job.as_deref(), &state);
            let (job, took) = (job.as_deref().unwrap_or("none"), began.elapsed().as_millis());
            log::info!("the service manager's job is {job:?}, its state {state:?}: {reason} (asked for {took} ms)");
            reason
        }
        Err(e) => {
            log::info!("{}: the service manager's job is not known, taken for a shutdown: {e}", path.display());
            StopReason::Shutdown
        }
    }
}

/// What a job and the manager's state mean. A job that restarts the unit while the machine goes down is a shutdown.
fn kind(job: Option<&str>, state: &str) -> StopReason {
    match job {
        Some("restart") if state != "stopping" => StopReason::Restart,
        _ => StopReason::Shutdown,
    }
}

/// Whether the control groups of a process (`/proc/PID/cgroup`) are below a user's own service manager.
fn is_of_a_user(groups: &str) -> bool {
    groups.lines().filter_map(|line| line.splitn(3, ':').nth(2)).any(|path| {
        let mut parts = path.split('/');
        let manager = parts.any(|part| part.starts_with("user@") && part.ends_with(".service"));
        manager && parts.next().is_some()
    })
}

/// The socket of the system's bus, or of a user's.
fn bus_path(of_a_user: bool, uid: u32, env: &dyn Fn(&str) -> Option<String>) -> Option<PathBuf> {
    let (name, default) = if of_a_user {
        let runtime = env("XDG_RUNTIME_DIR").unwrap_or_else(|| format!("/run/user/{uid}"));
        ("DBUS_SESSION_BUS_ADDRESS", format!("{runtime}/bus"))
    } else {
        ("DBUS_SYSTEM_BUS_ADDRESS", "/run/dbus/system_bus_socket".to_owned())
    };
    match env(name) {
        None => Some(default.into()),
        Some(address) => address.split(';').find_map(path_of),
    }
}

/// The path in one address of a bus (`unix:path=/run/bus,guid=…`); an escaped one is not ours to read.
fn path_of(address: &str) -> Option<PathBuf> {
    let keys = address.strip_prefix("unix:")?;
    let path = keys.split(',').find_map(|key| key.strip_prefix("path="))?;
    (path.starts_with('/') && !path.contains('%')).then(|| path.into())
}

/// Connects without waiting: a bus that has no room for one more client does not count as there.
fn open(path: &std::path::Path) -> io::Result<UnixStream> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    connect(&socket, &SocketAddrUnix::new(path)?)?;
    let stream = UnixStream::from(socket);
    stream.set_nonblocking(false)?;
    Ok(stream)
}

/// The type of the job that the unit of a process has, if it has one, and the manager's state.
fn question(stream: UnixStream, uid: u32, pid: u32, until: Instant) -> io::Result<(Option<String>, String)> {
    let mut bus = Bus::greet(stream, uid, until)?;
    let state = property(&mut bus, ROOT, MANAGER, "SystemState")?.text()?;
    let unit = bus.call(SYSTEMD, ROOT, MANAGER, "GetUnitByPID", &[Argument::Number(pid)], "o")?.text()?;
    let (id, job) = property(&mut bus, &unit, "org.freedesktop.systemd1.Unit", "Job")?.job()?;
    // A unit without a job has the number 0.
    let job = match id {
        0 => None,
        _ => Some(property(&mut bus, &job, "org.freedesktop.systemd1.Job", "JobType")?.text()?),
    };
    Ok((job, state))
}

fn property(bus: &mut Bus, path: &str, interface: &str, name: &str) -> io::Result<Value> {
    bus.call(SYSTEMD, path, PROPERTIES, "Get", &[Argument::Text(interface), Argument::Text(name)], "v")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn only_a_restart_of_a_machine_that_stays_up_is_a_restart() {
        use StopReason::{Restart, Shutdown};
        for (job, state, expected) in [
            (Some("restart"), "running", Restart),
            (Some("restart"), "degraded", Restart),
            (Some("restart"), "starting", Restart),
            (Some("restart"), "stopping", Shutdown),
            (Some("stop"), "running", Shutdown),
            (Some("stop"), "stopping", Shutdown),
            (Some("try-restart"), "running", Shutdown),
            (Some(""), "", Shutdown),
            (None, "running", Shutdown),
        ] {
            assert_eq!(kind(job, state), expected, "{job:?}, {state}");
        }
    }

    #[test]
    fn a_users_own_manager_is_known_by_the_control_group() {
        for (groups, expected) in [
            ("0::/system.slice/ostler.service\n", false),
            ("0::/system.slice/ostler.service/daemon\n", false),
            ("0::/user.slice/user-1000.slice/session-3.scope\n", false),
            ("0::/user.slice/user-1000.slice/user@1000.service/app.slice/ostler.service\n", true),
            ("0::/user.slice/user-1000.slice/user@1000.service/app.slice/ostler.service/daemon", true),
            ("0::/user.slice/user-1000.slice/user@1000.service\n", false),
            ("9:name=systemd:/user.slice/user-0.slice/user@0.service/a.service\n0::/\n", true),
            ("0::/\n", false),
            ("", false),
            ("nonsense", false),
        ] {
            assert_eq!(is_of_a_user(groups), expected, "{groups}");
        }
    }

    #[test]
    fn the_bus_is_where_the_environment_says() {
        let at = |of_a_user, set: &[(&str, &str)]| {
            let env = |name: &str| set.iter().find(|(n, _)| *n == name).map(|(_, v)| (*v).to_owned());
            bus_path(of_a_user, 7, &env).map(|p| p.to_string_lossy().into_owned())
        };
        let system = "/run/dbus/system_bus_socket";
        assert_eq!(at(false, &[]).as_deref(), Some(system));
        assert_eq!(at(false, &[("DBUS_SESSION_BUS_ADDRESS", "unix:path=/x")]).as_deref(), Some(system));
        assert_eq!(at(false, &[("DBUS_SYSTEM_BUS_ADDRESS", "unix:path=/x,guid=1")]).as_deref(), Some("/x"));
        assert_eq!(at(false, &[("DBUS_SYSTEM_BUS_ADDRESS", "tcp:host=h;unix:guid=1,path=/x")]).as_deref(), Some("/x"));
        for other in ["unix:abstract=/x", "tcp:host=h,port=1", "unix:path=x", "unix:path=/a%20b", "nonsense"] {
            assert_eq!(at(false, &[("DBUS_SYSTEM_BUS_ADDRESS", other)]), None, "{other}");
        }
        assert_eq!(at(true, &[]).as_deref(), Some("/run/user/7/bus"));
        assert_eq!(at(true, &[("XDG_RUNTIME_DIR", "/r")]).as_deref(), Some("/r/bus"));
        assert_eq!(at(true, &[("DBUS_SESSION_BUS_ADDRESS", "unix:path=/x")]).as_deref(), Some("/x"));
    }

    #[test]
    fn nobody_at_the_socket_is_no_answer() {
        let dir = tempfile::tempdir().unwrap();
        assert!(open(&dir.path().join("none")).is_err());
        let path = dir.path().join("silent");
        let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        let until = Instant::now() + Duration::from_millis(50);
        let e = question(open(&path).unwrap(), 0, 1, until).unwrap_err();
        assert_eq!(e.kind(), io::ErrorKind::TimedOut, "{e}");
        drop(listener);
    }
}
