//! The state directory: made, tried, and its names kept.

use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::Path;

/// Makes it, for its owner alone, with whatever is above it.
///
/// # Errors
/// A text that names the directory.
pub fn make(dir: &Path) -> Result<(), String> {
    let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(dir);
    made.map_err(|e| format!("{}: {e}", dir.display()))
}

/// Tries whether files can be made and written in it. Only the lock's owner asks: two that race would remove each
/// other's probe.
///
/// # Errors
/// A text that names the directory.
pub fn probe(dir: &Path) -> Result<(), String> {
    let probe = dir.join(".probe");
    let tried: io::Result<()> = fs::write(&probe, b"ostler").and_then(|()| fs::remove_file(&probe));
    tried.map_err(|e| format!("{}: {e}", dir.display()))?;
    keep_names(dir);
    Ok(())
}

/// The file with what programs of the daemon's user show, which confined agents cannot read.
pub const COOKIE: &str = "cookie";

/// Makes the cookie anew, for its owner alone to read. Only the lock's owner does.
///
/// # Errors
/// It cannot be written.
pub fn make_cookie(dir: &Path) -> io::Result<String> {
    let cookie = format!("{}{}", uuid::Uuid::new_v4().simple(), uuid::Uuid::new_v4().simple());
    let new = dir.join(".cookie");
    match fs::remove_file(&new) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new)?;
    file.write_all(cookie.as_bytes())?;
    fs::rename(&new, dir.join(COOKIE))?;
    Ok(cookie)
}

/// What is committed below a directory that a power loss takes away is lost with it: the names of the state directory
/// and of what was made above it are on the disk before anything is accepted. An earlier boot may have made them and
/// died, so each directory counts in which we could have.
fn keep_names(dir: &Path) {
    for above in dir.ancestors().skip(1).filter(|a| rustix::fs::access(*a, rustix::fs::Access::WRITE_OK).is_ok()) {
        if let Err(e) = fs::File::open(above).and_then(|d| d.sync_all()) {
            log::warn!("{}: the names in it may not outlive a power loss: {e}", above.display());
        }
    }
}
