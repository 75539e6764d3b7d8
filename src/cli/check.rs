//! `check-config`: a configuration file, as the daemon would read it.

use std::path::Path;

use super::{Done, Ui};
use crate::config::{self, paths::process_env};

/// `check-config [FILE]`
pub fn check_config(file: Option<&Path>, ui: &mut Ui) -> Done {
    let file = config::find_file(file, &process_env);
    let config = config::load(file.as_deref())?;
    for warning in &config.warnings {
        ui.note(format!("{warning} (warning)"));
    }
    match file {
        Some(file) => ui.say(format!("{}: valid", file.display()))?,
        None => ui.say("no configuration file: the defaults are valid")?,
    }
    Ok(0)
}
