//! Files for packages, from the definitions that the program itself uses: completions, manual pages, the sample.
//!
//! They are kept in `packaging/`, so that a package needs nothing but them, and a test compares them with what is made
//! here.

use clap::CommandFactory as _;

use super::args::{Cli, Generate};
use super::{Done, Failure, Ui, manual};
use crate::config::keys;

/// `completions SHELL`
pub fn completions(shell: clap_complete::Shell, ui: &mut Ui) -> Done {
    ui.out.write_all(completion(shell).as_bytes())?;
    Ok(0)
}

fn completion(shell: clap_complete::Shell) -> String {
    let mut text = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "ostler", &mut text);
    String::from_utf8_lossy(&text).into_owned()
}

/// Every file that is made, with its place in `packaging/`.
pub fn files() -> Vec<(&'static str, String)> {
    use clap_complete::Shell::{Bash, Fish, Zsh};
    vec![
        ("completions/_ostler", completion(Zsh)),
        ("completions/ostler.bash", completion(Bash)),
        ("completions/ostler.fish", completion(Fish)),
        ("man/ostler.1", manual::ostler()),
        ("man/ostler.toml.5", manual::ostler_toml()),
        ("ostler.toml", keys::sample()),
    ]
}

/// `generate …`
pub fn generate(a: &Generate, ui: &mut Ui) -> Done {
    match a {
        Generate::Files { dir } => {
            for (name, text) in files() {
                let path = dir.join(name);
                let fail = |e| Failure::new(path.display(), e);
                std::fs::create_dir_all(path.parent().unwrap_or(dir)).map_err(fail)?;
                std::fs::write(&path, text).map_err(fail)?;
            }
            Ok(0)
        }
        Generate::Config => {
            ui.out.write_all(keys::sample().as_bytes())?;
            Ok(0)
        }
    }
}
