//! Files for packages, from the definitions that the program itself uses: completions, manual pages, the sample.

use std::fmt::Write as _;
use std::path::Path;

use clap::CommandFactory as _;

use super::args::{Cli, Generate};
use super::{Done, Failure, Ui};
use crate::config::keys::{self, KEYS, SECTIONS};

/// `completions SHELL`
pub fn completions(shell: clap_complete::Shell, ui: &mut Ui) -> Done {
    let mut text = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "ostler", &mut text);
    ui.out.write_all(&text)?;
    Ok(0)
}

/// `generate …`
pub fn generate(a: &Generate, ui: &mut Ui) -> Done {
    match a {
        Generate::Man { dir } => {
            let fail = |e| Failure::new(dir.display(), e);
            std::fs::create_dir_all(dir).map_err(fail)?;
            clap_mangen::generate_to(Cli::command(), dir).map_err(fail)?;
            write(&dir.join("ostler.toml.5"), &manual())?;
            Ok(0)
        }
        Generate::Config => {
            ui.out.write_all(keys::sample().as_bytes())?;
            Ok(0)
        }
    }
}

fn write(path: &Path, text: &str) -> Result<(), Failure> {
    std::fs::write(path, text).map_err(|e| Failure::new(path.display(), e))
}

/// ostler.toml(5), in the manual's own language.
fn manual() -> String {
    let mut out = format!(
        ".TH ostler.toml 5 \"\" \"ostler {}\"\n.SH NAME\nostler.toml \\- configuration of ostler(1)\n",
        env!("CARGO_PKG_VERSION")
    );
    out += ".SH DESCRIPTION\nTOML. Every key has a default, an empty file is valid, and an unknown key is an error.\n";
    out += "Durations are written \"30s\", \"5m\", \"1h30m\", \"7d\", or, where a key allows it, \"never\";\n";
    out += "sizes \"64MiB\".\n";
    out +=
        "The file is the one given by \\-\\-config, else $OSTLER_CONFIG, else $XDG_CONFIG_HOME/ostler/ostler.toml,\n";
    out += "else /etc/ostler/ostler.toml.\n";
    out += "\\fBostler check\\-config\\fR checks it, and \\fBostler reload\\fR applies it;\n";
    out += "[http] takes effect with a restart only.\n";
    for (section, about) in SECTIONS {
        let name = match *section {
            "agent.*" => "[agent.NAME]".to_owned(),
            "route" => "[[route]]".to_owned(),
            name => format!("[{name}]"),
        };
        let _ = write!(out, ".SH \"{name}\"\n{}\n", roff(about));
        for k in KEYS.iter().filter(|k| k.split().0 == *section) {
            let value = match (k.default, k.example) {
                (Some("\"\"" | "[]") | None, Some(example)) => format!("example: {}", roff(example)),
                (Some(default), _) => format!("default: {}", roff(default)),
                (None, None) => String::new(),
            };
            let _ = write!(out, ".TP\n\\fB{}\\fR ({value})\n{}\n", roff(k.split().1), roff(k.doc));
        }
    }
    out += ".SH \"SEE ALSO\"\nostler(1)\n";
    out
}

/// Text that the formatter leaves alone.
fn roff(text: &str) -> String {
    let text = text.replace('\\', "\\e").replace('-', "\\-");
    if text.starts_with(['.', '\'']) { format!("\\&{text}") } else { text }
}
