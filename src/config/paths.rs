//! Where the files are: configuration, hooks, state and socket, for a service and for everybody else.
//!
//! Pure but for asking whether a path exists. The environment comes in as a function, so that tests need not touch the
//! process's own.

use std::path::{Path, PathBuf};

use super::Config;

/// The environment: a variable's value, if it is set.
pub type Env<'a> = &'a dyn Fn(&str) -> Option<String>;

/// Where a service's configuration stands.
pub const SERVICE_CONFIG: &str = "/etc/ostler/ostler.toml";
/// Where a service's state is.
pub const SERVICE_STATE: &str = "/var/lib/ostler";
/// Where a service's socket stands.
pub const SERVICE_SOCKET: &str = "/run/ostler/ostler.sock";
/// The socket's name in a state or runtime directory.
const SOCKET: &str = "ostler.sock";

/// The process's own environment. A value that is not UTF-8 counts as unset.
#[must_use]
pub fn process_env(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

/// A daemon's places in the file system.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Paths {
    /// The configuration file, `None` for the defaults.
    pub config: Option<PathBuf>,
    /// Database and lock.
    pub state_dir: PathBuf,
    /// The API's socket.
    pub socket: PathBuf,
}

impl Paths {
    /// The places that the flags and the environment of `serve` lead to.
    ///
    /// # Errors
    /// There is no home directory and nothing else says where the state is.
    pub fn of_daemon(
        config: Option<&Path>,
        state_dir: Option<&Path>,
        socket: Option<&Path>,
        env: Env<'_>,
    ) -> Result<Self, String> {
        // Absolute, because agents run in other directories, and messages should be unambiguous.
        let whole = |path: PathBuf| std::path::absolute(&path).map_err(|e| format!("{}: {e}", path.display()));
        let config = find_file(config, env).map(whole).transpose()?;
        let state_dir = whole(find_state_dir(state_dir, env)?)?;
        let socket = whole(daemon_socket(socket, &state_dir, env))?;
        Ok(Self { config, state_dir, socket })
    }
}

/// The configuration file: the flag, `$OSTLER_CONFIG`, the user's, `/etc/ostler/ostler.toml`, none. The first two are
/// taken even if they do not exist (reading them then fails, rather than passing over what was asked for). A service,
/// known by `$STATE_DIRECTORY`, has no user's file.
#[must_use]
pub fn find_file(flag: Option<&Path>, env: Env<'_>) -> Option<PathBuf> {
    find_file_where(flag, env, &Path::exists)
}

fn find_file_where(flag: Option<&Path>, env: Env<'_>, exists: &dyn Fn(&Path) -> bool) -> Option<PathBuf> {
    if let Some(asked) = flag.map(Path::to_path_buf).or_else(|| set(env, "OSTLER_CONFIG").map(PathBuf::from)) {
        return Some(asked);
    }
    let user = || xdg(env, "XDG_CONFIG_HOME", ".config").map(|d| d.join("ostler/ostler.toml"));
    let user = if set(env, "STATE_DIRECTORY").is_some() { None } else { user() };
    user.into_iter().chain([PathBuf::from(SERVICE_CONFIG)]).find(|p| exists(p))
}

/// The state directory: the flag, `$STATE_DIRECTORY` (a service manager's), `$XDG_STATE_HOME/ostler`,
/// `~/.local/state/ostler`.
///
/// # Errors
/// None of them is known.
pub fn find_state_dir(flag: Option<&Path>, env: Env<'_>) -> Result<PathBuf, String> {
    flag.map(Path::to_path_buf)
        .or_else(|| first_dir(env, "STATE_DIRECTORY"))
        .or_else(|| xdg(env, "XDG_STATE_HOME", ".local/state").map(|d| d.join("ostler")))
        .ok_or_else(|| "state directory: neither --state-dir nor $XDG_STATE_HOME nor $HOME says where".to_owned())
}

/// The state directory that commands look into without a daemon: as for `serve`, but a user without one gets the
/// service's.
///
/// # Errors
/// As [`find_state_dir`].
pub fn state_dir_to_read(flag: Option<&Path>, env: Env<'_>) -> Result<PathBuf, String> {
    let found = find_state_dir(flag, env)?;
    let service = Path::new(SERVICE_STATE);
    Ok(if flag.is_none() && !found.join("ostler.db").exists() && service.exists() { service.into() } else { found })
}

/// Where a daemon makes its socket: the flag, `$OSTLER_SOCKET`, `$RUNTIME_DIRECTORY` (a service manager's),
/// `$XDG_RUNTIME_DIR`, the state directory.
#[must_use]
pub fn daemon_socket(flag: Option<&Path>, state_dir: &Path, env: Env<'_>) -> PathBuf {
    flag.map(Path::to_path_buf)
        .or_else(|| set(env, "OSTLER_SOCKET").map(PathBuf::from))
        .or_else(|| first_dir(env, "RUNTIME_DIRECTORY").map(|d| d.join(SOCKET)))
        .or_else(|| absolute(env, "XDG_RUNTIME_DIR").map(|d| d.join(SOCKET)))
        .unwrap_or_else(|| state_dir.join(SOCKET))
}

/// Where a client finds the daemon: the flag, `$OSTLER_SOCKET`, and then the first that exists of
/// `$XDG_RUNTIME_DIR/ostler.sock`, `STATE_DIR/ostler.sock` and the service's. When none does, all of them are the
/// answer: connecting to the last says what is missing. A socket that was named explicitly is never replaced by another
/// daemon's.
#[must_use]
pub fn client_sockets(flag: Option<&Path>, env: Env<'_>) -> Vec<PathBuf> {
    client_sockets_where(flag, env, &Path::exists)
}

fn client_sockets_where(flag: Option<&Path>, env: Env<'_>, exists: &dyn Fn(&Path) -> bool) -> Vec<PathBuf> {
    if let Some(asked) = flag.map(Path::to_path_buf).or_else(|| set(env, "OSTLER_SOCKET").map(PathBuf::from)) {
        return vec![asked];
    }
    let service = first_dir(env, "RUNTIME_DIRECTORY").map(|d| d.join(SOCKET));
    let runtime = absolute(env, "XDG_RUNTIME_DIR").map(|d| d.join(SOCKET));
    let state = find_state_dir(None, env).ok().map(|d| d.join(SOCKET));
    let mut places: Vec<PathBuf> =
        [service, runtime, state, Some(SERVICE_SOCKET.into())].into_iter().flatten().collect();
    places.dedup();
    match places.iter().position(|p| exists(p)) {
        Some(found) => vec![places.swap_remove(found)],
        None => places,
    }
}

/// Why no socket can have this path, if it is longer than the system allows.
#[must_use]
pub fn socket_too_long(path: &Path) -> Option<String> {
    let (most, has) = (107, path.as_os_str().len());
    (has > most).then(|| format!("a socket's path has at most {most} bytes, and this one has {has}"))
}

/// The hooks directory: `[hooks] dir`, else `hooks.d` beside the configuration file if there is one, else none.
#[must_use]
pub fn hooks_dir(config: &Config) -> Option<PathBuf> {
    config.hooks.dir.clone().or_else(|| {
        let beside = config.file.as_ref()?.parent()?.join("hooks.d");
        beside.is_dir().then_some(beside)
    })
}

/// A file with a secret in it: a bare name is looked up in `$CREDENTIALS_DIRECTORY`, and without one, like every other
/// relative path, beside the configuration file.
#[must_use]
pub fn secret_file(path: &Path, config: &Config, env: Env<'_>) -> PathBuf {
    let bare = path.components().count() == 1 && path.is_relative();
    if bare && let Some(dir) = absolute(env, "CREDENTIALS_DIRECTORY") {
        return dir.join(path);
    }
    match config.file.as_ref().and_then(|f| f.parent()) {
        Some(dir) if path.is_relative() => dir.join(path),
        _ => path.to_path_buf(),
    }
}

fn set(env: Env<'_>, name: &str) -> Option<String> {
    env(name).filter(|v| !v.is_empty())
}

/// A directory from a variable; the XDG specification says to ignore a relative path.
fn absolute(env: Env<'_>, name: &str) -> Option<PathBuf> {
    set(env, name).map(PathBuf::from).filter(|p| p.is_absolute())
}

fn xdg(env: Env<'_>, name: &str, below_home: &str) -> Option<PathBuf> {
    absolute(env, name).or_else(|| absolute(env, "HOME").map(|h| h.join(below_home)))
}

/// Service managers pass several directories separated by colons; the first is the main one.
fn first_dir(env: Env<'_>, name: &str) -> Option<PathBuf> {
    set(env, name)?.split(':').next().map(PathBuf::from).filter(|p| p.is_absolute())
}

/// Whether a file lies on a read-only file system, such as a container's volume of configuration: nobody can write
/// there, whatever its mode says.
#[must_use]
pub fn is_read_only(path: &Path) -> bool {
    rustix::fs::statvfs(path).is_ok_and(|fs| fs.f_flag.contains(rustix::fs::StatVfsMountFlags::RDONLY))
}

/// The mode of a file that every user could write to; `None`: not every user could.
#[must_use]
pub fn open_to_all(file: &Path) -> Option<u32> {
    use std::os::unix::fs::MetadataExt as _;
    let meta = std::fs::metadata(file).ok().filter(|m| m.is_file() && m.mode() & 0o002 != 0)?;
    (!is_read_only(file)).then(|| meta.mode() & 0o7777)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn env<'a>(vars: &'a [(&'a str, &'a str)]) -> impl Fn(&str) -> Option<String> + 'a {
        |name| vars.iter().find(|(n, _)| *n == name).map(|(_, v)| (*v).to_owned())
    }

    const HOME: (&str, &str) = ("HOME", "/home/a");

    #[test]
    fn the_configuration_file_is_looked_up_in_order() {
        let etc = Path::new(SERVICE_CONFIG);
        let xdg = ("XDG_CONFIG_HOME", "/x");
        let named = ("OSTLER_CONFIG", "/named.toml");
        let all = |_: &Path| true;
        let no = |_: &Path| false;
        let f = |flag: Option<&str>, vars: &[(&str, &str)], exists: &dyn Fn(&Path) -> bool| {
            find_file_where(flag.map(Path::new), &env(vars), exists)
        };
        assert_eq!(f(Some("/flag"), &[named, xdg, HOME], &no), Some("/flag".into()));
        assert_eq!(f(None, &[named, xdg, HOME], &no), Some("/named.toml".into()));
        assert_eq!(f(None, &[xdg, HOME], &all), Some("/x/ostler/ostler.toml".into()));
        assert_eq!(f(None, &[HOME], &all), Some("/home/a/.config/ostler/ostler.toml".into()));
        assert_eq!(f(None, &[("XDG_CONFIG_HOME", "relative"), HOME], &all).unwrap(), {
            PathBuf::from("/home/a/.config/ostler/ostler.toml")
        });
        assert_eq!(f(None, &[xdg, HOME], &|p| p == etc), Some(etc.into()));
        assert_eq!(f(None, &[xdg, HOME], &no), None);
        assert_eq!(f(None, &[HOME, ("STATE_DIRECTORY", "/var/lib/ostler")], &all), Some(etc.into()));
        assert_eq!(f(None, &[("OSTLER_CONFIG", "")], &no), None, "an empty variable is unset");
    }

    #[test]
    fn state_and_socket_are_looked_up_in_order() {
        let service = [("STATE_DIRECTORY", "/var/lib/ostler:/var/lib/b"), ("RUNTIME_DIRECTORY", "/run/ostler"), HOME];
        let paths = Paths::of_daemon(Some(Path::new("/c")), None, None, &env(&service)).unwrap();
        assert_eq!(paths.state_dir, Path::new("/var/lib/ostler"));
        assert_eq!(paths.socket, Path::new("/run/ostler/ostler.sock"));
        assert_eq!(paths.config, Some("/c".into()));

        let state = |vars: &[(&str, &str)]| find_state_dir(None, &env(vars));
        assert_eq!(state(&[HOME]).unwrap(), Path::new("/home/a/.local/state/ostler"));
        assert_eq!(state(&[("XDG_STATE_HOME", "/s"), HOME]).unwrap(), Path::new("/s/ostler"));
        assert!(state(&[]).unwrap_err().contains("$HOME"));
        assert_eq!(find_state_dir(Some(Path::new("/f")), &env(&service)).unwrap(), Path::new("/f"));

        let socket = |flag: Option<&str>, vars: &[(&str, &str)]| {
            daemon_socket(flag.map(Path::new), Path::new("/state"), &env(vars))
        };
        let (named, xdg) = (("OSTLER_SOCKET", "/named.sock"), ("XDG_RUNTIME_DIR", "/run/user/1"));
        assert_eq!(socket(Some("/f.sock"), &[named, xdg]), Path::new("/f.sock"));
        assert_eq!(socket(None, &[named, xdg]), Path::new("/named.sock"));
        assert_eq!(socket(None, &[xdg]), Path::new("/run/user/1/ostler.sock"));
        assert_eq!(socket(None, &[]), Path::new("/state/ostler.sock"));
    }

    #[test]
    fn a_client_takes_the_first_socket_that_exists_but_never_passes_over_a_named_one() {
        let vars = [("XDG_RUNTIME_DIR", "/run/user/1"), HOME];
        let find = |there: &'static str| client_sockets_where(None, &env(&vars), &move |p| p == Path::new(there));
        let (runtime, state) = ("/run/user/1/ostler.sock", "/home/a/.local/state/ostler/ostler.sock");
        for there in [runtime, state, SERVICE_SOCKET] {
            assert_eq!(find(there), [Path::new(there)]);
        }
        assert_eq!(find("/nowhere"), [runtime, state, SERVICE_SOCKET].map(PathBuf::from), "each that was looked for");
        let named = [("OSTLER_SOCKET", "/named.sock"), HOME];
        let all_but_named = |p: &Path| p != Path::new("/named.sock");
        assert_eq!(client_sockets_where(None, &env(&named), &all_but_named), [Path::new("/named.sock")]);
    }

    #[test]
    fn secrets_with_a_bare_name_come_from_the_service_manager() {
        let config = Config { file: Some("/etc/ostler/ostler.toml".into()), ..Config::default() };
        let with = [("CREDENTIALS_DIRECTORY", "/run/cred")];
        let find = |p: &str, vars: &[(&str, &str)]| secret_file(Path::new(p), &config, &env(vars));
        assert_eq!(find("token", &with), Path::new("/run/cred/token"));
        assert_eq!(find("/etc/token", &with), Path::new("/etc/token"));
        assert_eq!(find("sub/token", &with), Path::new("/etc/ostler/sub/token"));
        assert_eq!(find("token", &[]), Path::new("/etc/ostler/token"));
    }

    #[test]
    fn hooks_stand_beside_the_configuration_or_where_it_says() {
        let dir = tempfile::tempdir().unwrap();
        let mut config = Config { file: Some(dir.path().join("ostler.toml")), ..Config::default() };
        assert_eq!(hooks_dir(&config), None);
        std::fs::create_dir(dir.path().join("hooks.d")).unwrap();
        assert_eq!(hooks_dir(&config), Some(dir.path().join("hooks.d")));
        config.hooks.dir = Some("/elsewhere".into());
        assert_eq!(hooks_dir(&config), Some("/elsewhere".into()));
        assert_eq!(hooks_dir(&Config::default()), None);
    }
}
