//! A reload: builds a new configuration and a whole new set of scripts beside the old ones, and swaps both or neither.
//!
//! The build may take long and runs on a thread of its own. The coordinator puts the result in force, because it knows
//! whether a stop has begun meanwhile.

use std::sync::Arc;

use super::context::{Context, Reloaded};
use crate::config::Config;
use crate::{config, hooks};

/// A new configuration and new scripts that are not in force yet.
pub struct Prepared {
    config: Config,
    scripts: hooks::Scripts,
}

impl std::fmt::Debug for Prepared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Prepared")
    }
}

/// Reads configuration and scripts, and changes nothing.
///
/// # Errors
/// The configuration or a script is wrong: which line of which file.
pub fn prepare(ctx: &Context) -> Result<Prepared, String> {
    let off = ctx.handlers.is_off();
    read(ctx).map_err(|why| if off { format!("{why}; the hooks stay switched off") } else { why })
}

fn read(ctx: &Context) -> Result<Prepared, String> {
    let old = ctx.config();
    // Without a file at the start a file may exist by now; a file that was read at the start must still be there.
    let file = old.file.clone().or_else(|| config::find_file(None, &config::paths::process_env));
    let mut config = config::load(file.as_deref()).map_err(|e| e.to_string())?;
    config.hooks.dir = config::paths::hooks_dir(&config);
    let scripts = hooks::load(&config.hooks, env!("CARGO_PKG_VERSION")).map_err(|e| e.to_string())?;
    Ok(Prepared { config, scripts })
}

/// Puts configuration and scripts in force.
///
/// # Errors
/// The threads of the scripts cannot be started: nothing has changed.
pub fn put_in_force(ctx: &Arc<Context>, prepared: Prepared) -> Result<Reloaded, String> {
    let Prepared { config: new, scripts } = prepared;
    let changed = config::diff(&ctx.config(), &new);
    // Compared with the configuration of the start: a key needs a restart until there is one, whatever a reload
    // changes.
    let needs_restart = config::needs_restart(&config::diff(ctx.booted_with(), &new));
    ctx.hooks.swap(scripts).map_err(|e| format!("hooks: cannot start a thread: {e}"))?;
    crate::log::set_filter(&new.daemon.log);
    ctx.set_config(new);
    Ok(Reloaded { changed, needs_restart })
}
