//! The directories of deleted sessions: removed when nobody works there any more, tried again until they are gone.

use std::io;
use std::path::{Path, PathBuf};

use super::context::Context;
use crate::config::paths::process_env;
use crate::model::names::{self, Whose};
use crate::store::DeletedFiles;

/// One try. `true`: some are still to go.
pub fn step(ctx: &Context) -> bool {
    let sessions = match ctx.store.files_to_remove() {
        Ok(sessions) => sessions,
        Err(e) => {
            log::warn!("which files of deleted sessions are to go cannot be read: {e}");
            return true;
        }
    };
    let mut left = false;
    for one in sessions {
        // Its agent may still write; whatever a dead boot left of it is being ended first.
        if !one.settled || ctx.registry.is_held(one.sid) || !remove(ctx, &one) {
            left = true;
        } else if let Err(e) = ctx.store.files_removed(one.sid) {
            log::warn!(key = one.key; "that a deleted session's files are gone could not be noted: {e}");
            left = true;
        }
    }
    left
}

/// Removes what is the session's own. `false`: it could not be, and is tried again.
fn remove(ctx: &Context, one: &DeletedFiles) -> bool {
    let config = ctx.config();
    let (template, home) = (&config.route(&one.key).cwd, process_env("HOME"));
    let whose = Whose { key: &one.key, id: &one.session_id };
    let mut done = true;
    for dir in &one.dirs {
        let path = Path::new(dir);
        // Asked anew for each: the removal of the one before may have taken its time.
        let user = match ctx.store.works_there(one, dir) {
            Ok(user) => user,
            Err(e) => {
                log::warn!(key = one.key; "{dir}: who works there cannot be read: {e}");
                done = false;
                continue;
            }
        };
        if let Some(user) = user {
            log::warn!(key = one.key; "{dir} stays though its session was deleted: session {user} works there");
        } else if !names::is_own_dir(&ctx.state_dir, home.as_deref(), template, whose, path) {
            log::warn!(key = one.key; "{dir} stays though its session was deleted: it is not the key's own");
        } else if let Err(e) = remove_dir(path, one.sid) {
            log::error!(key = one.key; "{dir}: a deleted session's files cannot be removed, tried again later: {e}");
            done = false;
        } else {
            log::info!(key = one.key; "{dir}: removed, its session was deleted");
        }
    }
    done
}

/// Out of the way first, so that who works under that name from now on has a directory of its own.
fn remove_dir(dir: &Path, sid: i64) -> io::Result<()> {
    let absent = |e: &io::Error| e.kind() == io::ErrorKind::NotFound;
    let aside: PathBuf = dir.with_file_name(format!(".deleted-{sid}"));
    let gone = |result: io::Result<()>| match result {
        Err(e) if !absent(&e) => Err(e),
        Ok(()) | Err(_) => Ok(()),
    };
    // An earlier try may have come to its middle.
    gone(std::fs::remove_dir_all(&aside))?;
    gone(std::fs::rename(dir, &aside))?;
    gone(std::fs::remove_dir_all(&aside))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_goes_whole_and_in_whatever_state() {
        let room = tempfile::tempdir().expect("a directory");
        let (dir, aside) = (room.path().join("work"), room.path().join(".deleted-7"));
        remove_dir(&dir, 7).expect("nothing is there");
        for earlier in [false, true] {
            std::fs::create_dir_all(dir.join("a/b")).expect("made");
            std::fs::write(dir.join("a/b/notes"), "x").expect("written");
            if earlier {
                std::fs::create_dir_all(aside.join("a")).expect("made");
            }
            remove_dir(&dir, 7).expect("removed");
            assert!(!dir.exists() && !aside.exists());
        }
    }
}
