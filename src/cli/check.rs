//! `check-config`: a configuration file, as the daemon would read it.

use std::path::Path;

use super::{Done, Ui, doctor};
use crate::config::{self, paths::process_env};

/// `check-config [FILE]`
pub fn check_config(file: Option<&Path>, ui: &mut Ui) -> Done {
    let file = config::find_file(file, &process_env);
    let config = config::load(file.as_deref())?;
    for warning in &config.warnings {
        ui.note(format!("{warning} (warning)"));
    }
    // What the file names may be made later, or stand on another machine: told, but no fault of the file.
    for check in doctor::secrets(&config).into_iter().filter(|c| c.verdict != doctor::Verdict::Good) {
        ui.note(format!("{}: {}; {} (warning)", check.name, check.found, check.remedy));
    }
    if let Some(dir) = config.hooks.dir.as_ref().filter(|d| !d.exists()) {
        ui.note(format!("hooks.dir: {}: is not there (warning)", dir.display()));
    }
    match file {
        Some(file) => ui.say(format!("{}: valid", file.display()))?,
        None => ui.say("no configuration file: the defaults are valid")?,
    }
    Ok(0)
}
