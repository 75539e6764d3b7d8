//! `check-config`: a configuration file, as the daemon would read it.

use serde_json::json;

use super::args::CheckConfig;
use super::{Done, Ui, doctor};
use crate::config::{self, Config, paths::process_env};

/// `check-config [FILE]`
pub fn check_config(a: &CheckConfig, ui: &mut Ui) -> Done {
    let file = config::find_file(a.file.as_deref(), &process_env);
    let config = config::load(file.as_deref())?;
    let warnings = warnings(&config);
    if a.json {
        let file = file.map(|f| f.display().to_string());
        ui.json(&json!({ "file": file, "valid": true, "warnings": warnings }))?;
        return Ok(0);
    }
    for warning in &warnings {
        ui.note(format!("{warning} (warning)"));
    }
    if a.show {
        match file {
            Some(file) => ui.say(format!("# {}", file.display()))?,
            None => ui.say("# no configuration file: the defaults")?,
        }
        ui.say(config::show(&config).trim_end())?;
        return Ok(0);
    }
    match file {
        Some(file) => ui.say(format!("{}: valid", file.display()))?,
        None => ui.say("no configuration file: the defaults are valid")?,
    }
    Ok(0)
}

/// Warnings: the file is valid, but something that it names is missing or unusual.
fn warnings(config: &Config) -> Vec<String> {
    let mut out = config.warnings.clone();
    // Files that it names may be made later, or exist on another machine: a warning, not an error.
    for check in doctor::secrets(config).into_iter().filter(|c| c.verdict != doctor::Verdict::Good) {
        out.push(format!("{}: {}; {}", check.name, check.found, check.remedy));
    }
    if let Some(dir) = &config.hooks.dir {
        if !dir.exists() {
            out.push(format!("hooks.dir: {} does not exist", dir.display()));
        } else {
            for check in doctor::scripts(dir).into_iter().filter(|c| c.verdict == doctor::Verdict::Bad) {
                out.push(format!("hooks.dir: {}; {}", check.found, check.remedy));
            }
        }
    }
    for root in config.hooks.fs_roots.iter().filter(|r| !r.is_dir()) {
        out.push(format!("hooks.fs_roots: {} is not a directory", root.display()));
    }
    out
}
