//! A reload: new configuration and a whole new set of scripts are built beside the old, and swapped at once or not at all.

use std::sync::Arc;

use super::house::{House, Reloaded};
use crate::{config, hooks};

/// Reads everything anew. Anything wrong: nothing has changed, and the text says which line of which file.
///
/// # Errors
/// The configuration or a script is wrong.
pub fn run(house: &Arc<House>) -> Result<Reloaded, String> {
    let old = house.config();
    // Where there was no file at the start there may be one by now; the one that was read then is never passed over.
    let file = old.file.clone().or_else(|| config::find_file(None, &config::paths::process_env));
    let mut new = config::load(file.as_deref()).map_err(|e| e.to_string())?;
    new.hooks.dir = config::paths::hooks_dir(&new);
    let scripts = hooks::load(&new.hooks, env!("CARGO_PKG_VERSION")).map_err(|e| e.to_string())?;
    let changed = config::diff(&old, &new);
    // Against what the boot began with: it waits for a restart until then, however often a reload comes in between.
    let needs_restart = config::needs_restart(&config::diff(house.booted_with(), &new));
    house.hooks.swap(scripts).map_err(|e| format!("hooks: no thread: {e}"))?;
    crate::log::set_filter(&new.daemon.log);
    house.set_config(new);
    Ok(Reloaded { changed, needs_restart })
}
