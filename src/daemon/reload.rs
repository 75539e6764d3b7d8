//! A reload: new configuration and a whole new set of scripts are built beside the old, and swapped at once or not at all.
//!
//! Building them takes as long as it takes and happens aside; the coordinator puts them in force, where it knows whether a
//! stop has begun meanwhile.

use std::sync::Arc;

use super::context::{Context, Reloaded};
use crate::config::Config;
use crate::{config, hooks};

/// What was read anew, and is not in force yet.
pub struct Prepared {
    config: Config,
    scripts: hooks::Scripts,
}

impl std::fmt::Debug for Prepared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Prepared")
    }
}

/// Reads everything anew, and changes nothing.
///
/// # Errors
/// The configuration or a script is wrong: which line of which file.
pub fn prepare(ctx: &Context) -> Result<Prepared, String> {
    let off = ctx.handlers.is_off();
    read(ctx).map_err(|why| if off { format!("{why}; the hooks stay switched off") } else { why })
}

fn read(ctx: &Context) -> Result<Prepared, String> {
    let old = ctx.config();
    // Where there was no file at the start there may be one by now; the one that was read then is never passed over.
    let file = old.file.clone().or_else(|| config::find_file(None, &config::paths::process_env));
    let mut config = config::load(file.as_deref()).map_err(|e| e.to_string())?;
    config.hooks.dir = config::paths::hooks_dir(&config);
    let scripts = hooks::load(&config.hooks, env!("CARGO_PKG_VERSION")).map_err(|e| e.to_string())?;
    Ok(Prepared { config, scripts })
}

/// Puts it in force, all of it.
///
/// # Errors
/// The scripts could not be given their threads: nothing has changed.
pub fn put_in_force(ctx: &Arc<Context>, prepared: Prepared) -> Result<Reloaded, String> {
    let Prepared { config: new, scripts } = prepared;
    let changed = config::diff(&ctx.config(), &new);
    // Against what the boot began with: it waits for a restart until then, however often a reload comes in between.
    let needs_restart = config::needs_restart(&config::diff(ctx.booted_with(), &new));
    ctx.hooks.swap(scripts).map_err(|e| format!("hooks: no thread: {e}"))?;
    crate::log::set_filter(&new.daemon.log);
    ctx.set_config(new);
    Ok(Reloaded { changed, needs_restart })
}
