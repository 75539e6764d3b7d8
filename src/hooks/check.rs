//! `ostler hooks check FILE..`: loads scripts without a daemon, and warns of what will go wrong in a handler.

use std::path::{Path, PathBuf};

use super::globals;
use super::scripts::{self, Sources};
use crate::config;

/// One finding.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Problem {
    /// The file.
    pub script: PathBuf,
    /// The line, where one is known.
    pub line: Option<usize>,
    /// `what: why`.
    pub message: String,
    /// The script would not be loaded; otherwise this is a warning.
    pub error: bool,
}

impl std::fmt::Display for Problem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let kind = if self.error { "" } else { "warning: " };
        match self.line {
            Some(line) => write!(f, "{}:{line}: {kind}{}", self.script.display(), self.message),
            None => write!(f, "{}: {kind}{}", self.script.display(), self.message),
        }
    }
}

/// Loads each file by itself, as the daemon would, and looks at the globals that it uses.
///
/// Modules are found in `lib` beside the file, or below `config.dir`.
#[must_use]
pub fn check(files: &[PathBuf], config: &config::Hooks) -> Vec<Problem> {
    let mut problems = Vec::new();
    for file in files {
        match check_one(file, config) {
            Ok(warnings) => problems.extend(warnings),
            Err(e) => problems.push(Problem { script: e.script, line: e.line, message: e.message, error: true }),
        }
    }
    problems
}

fn check_one(file: &Path, config: &config::Hooks) -> Result<Vec<Problem>, scripts::LoadError> {
    let problem = |line, message| Problem { script: file.to_owned(), line, message, error: false };
    let sources = sources(file, config)?;
    let Some((_, name, text)) = sources.scripts.first().cloned() else { return Ok(Vec::new()) };
    if let Some(what) = scripts::no_hook(&name) {
        return Ok(vec![problem(None, format!("not looked at: {what}, which the daemon does not load"))]);
    }
    let mut once = config.clone();
    once.threads = 1;
    drop(scripts::load_sources(sources, &once, env!("CARGO_PKG_VERSION"))?);
    let warnings = globals::undefined_names(&text, &name, config).unwrap_or_default();
    let mut problems: Vec<Problem> = warnings.into_iter().map(|(line, message)| problem(Some(line), message)).collect();
    // A script in the hooks directory is checked as the daemon checks it, with its directory.
    let real = |dir: Option<&Path>| dir.and_then(|dir| dir.canonicalize().ok());
    if let Some(dir) = real(file.parent()).filter(|dir| Some(dir) == real(config.dir.as_deref()).as_ref())
        && let Err(e) = scripts::guarded(&dir)
    {
        problems.push(problem(None, format!("the daemon does not load it: {}: {}", dir.display(), e.message)));
    }
    Ok(problems)
}

/// One script, and the modules that it finds: those in `lib` beside it, or below `config.dir`.
pub(super) fn sources(file: &Path, config: &config::Hooks) -> Result<Sources, scripts::LoadError> {
    let text = scripts::read_script(file)?;
    let beside =
        file.parent().filter(|p| !p.as_os_str().is_empty()).map_or_else(|| PathBuf::from("."), Path::to_path_buf);
    // The hooks directory must have the right owner and mode; a script elsewhere is a draft.
    let real = |dir: &Path| dir.canonicalize().ok();
    if config.dir.as_deref().is_some_and(|hooks| real(hooks).is_some() && real(hooks) == real(&beside)) {
        scripts::guarded(&beside)?;
    }
    let lib = |dir: &Path| dir.join("lib").is_dir();
    let dir = if lib(&beside) { Some(beside) } else { config.dir.clone().filter(|d| lib(d)) };
    let modules = dir.map(|dir| scripts::modules_below(&dir)).transpose()?.unwrap_or_default();
    let name = file.file_name().and_then(|n| n.to_str()).unwrap_or("script.lua").to_owned();
    Ok(Sources { scripts: vec![(file.to_owned(), name, text)], modules })
}
