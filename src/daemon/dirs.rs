//! Removes the directories of deleted sessions once no session works in them, and tries again until they are gone.

use std::io;
use std::path::{Path, PathBuf};

use super::context::Context;
use crate::config::paths::process_env;
use crate::model::names::{self, Whose};
use crate::store::DeletedFiles;

/// One try. `true`: some directories are left.
pub fn step(ctx: &Context) -> bool {
    let sessions = match ctx.store.files_to_remove() {
        Ok(sessions) => sessions,
        Err(e) => {
            log::warn!("cannot read which files of deleted sessions to remove: {e}");
            return true;
        }
    };
    let mut left = false;
    for one in sessions {
        // Its agent may still write, and leftover processes of it must end first.
        if !one.settled || ctx.registry.is_held(one.sid) || !remove(ctx, &one) {
            left = true;
        } else if let Err(e) = ctx.store.files_removed(one.sid) {
            log::warn!(key = one.key; "cannot note that a deleted session's files are removed: {e}");
            left = true;
        }
    }
    left
}

/// Removes the session's own directories. `false`: some are left and are tried again.
fn remove(ctx: &Context, one: &DeletedFiles) -> bool {
    let config = ctx.config();
    let (template, home) = (&config.route(&one.key).cwd, process_env("HOME"));
    let whose = Whose { key: &one.key, id: &one.session_id };
    let mut done = true;
    for dir in &one.dirs {
        let path = Path::new(dir);
        // Asked for each directory, because the removal before may have taken long.
        let user = match ctx.store.works_there(one, dir) {
            Ok(user) => user,
            Err(e) => {
                log::warn!(key = one.key; "{dir}: cannot read which session works there: {e}");
                done = false;
                continue;
            }
        };
        if let Some(user) = user {
            log::warn!(key = one.key; "{dir} of a deleted session is kept: session {user} works there");
        } else if !names::is_own_dir(&ctx.state_dir, home.as_deref(), template, whose, path) {
            log::warn!(key = one.key; "{dir} of a deleted session is kept: it is not the key's own");
        } else if let Err(e) = remove_dir(path, one.sid) {
            log::error!(key = one.key; "{dir}: cannot remove a deleted session's files, tried again later: {e}");
            done = false;
        } else {
            log::info!(key = one.key; "{dir}: removed, its session was deleted");
        }
    }
    done
}

/// Renames the directory before it removes it, so a new session of that name gets a directory of its own.
fn remove_dir(dir: &Path, sid: i64) -> io::Result<()> {
    let absent = |e: &io::Error| e.kind() == io::ErrorKind::NotFound;
    let aside: PathBuf = dir.with_file_name(format!(".deleted-{sid}"));
    let gone = |result: io::Result<()>| match result {
        Err(e) if !absent(&e) => Err(e),
        Ok(()) | Err(_) => Ok(()),
    };
    // An earlier try may have stopped half-way.
    gone(std::fs::remove_dir_all(&aside))?;
    gone(std::fs::rename(dir, &aside))?;
    gone(std::fs::remove_dir_all(&aside))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_is_removed_whole_in_every_state() {
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
