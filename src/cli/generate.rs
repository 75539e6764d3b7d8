//! Files for packages, from the definitions that the program itself uses: completions, manual pages, the sample.
//!
//! They are kept in `packaging/`, so that a package can be made from them alone, and a test compares them with the
//! output of this file.

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
    let text = String::from_utf8_lossy(&text).into_owned();
    match shell {
        clap_complete::Shell::Bash => text.replace("    complete -F _ostler ", "    complete -F _ostler_keys ") + BASH,
        clap_complete::Shell::Zsh => {
            let (head, rest) = text.split_once("\n_ostler() {").unwrap_or(("", &text));
            let rest = rest.replace("Key or id of the session:_default'", "Key or id of the session:_ostler_keys'");
            let rest = rest.replace(":KEY:_default'", ":KEY:_ostler_keys'");
            format!("{head}{ZSH}\n_ostler() {{{rest}")
        }
        clap_complete::Shell::Fish => text + FISH,
        _ => text,
    }
}

/// Completes keys where a key belongs, else as before. Bash splits words at colons, so the words are taken from the
/// line, and the part before the last colon is not repeated.
const BASH: &str = r#"
_ostler_keys() {
    local line="${COMP_LINE:0:COMP_POINT}" key cut=""
    local -a words=() keys=()
    read -ra words <<< "$line"
    [[ "$line" == *[[:space:]] ]] && words+=("")
    while IFS= read -r key; do
        keys+=("$key")
    done < <("$1" complete -- "${words[@]}" 2>/dev/null)
    if (( ${#keys[@]} == 0 )); then
        _ostler "$@"
        return
    fi
    local cur="${words[${#words[@]}-1]}"
    if [[ "$cur" == *:* && "$COMP_WORDBREAKS" == *:* ]]; then
        cut="${cur%"${cur##*:}"}"
    fi
    COMPREPLY=()
    for key in "${keys[@]}"; do
        printf -v key '%q' "${key#"$cut"}"
        COMPREPLY+=("$key")
    done
}
"#;

const ZSH: &str = r#"
_ostler_keys() {
    local -a keys
    keys=("${(@f)$(_call_program keys ostler complete -- ostler "${(@q)words[1,CURRENT-1]}" "${(q)PREFIX}" 2>/dev/null)}")
    keys=(${keys:#})
    (( ${#keys} )) && compadd -a keys
}
"#;

const FISH: &str = r#"
complete -c ostler -a "(ostler complete -- (commandline -opc) (commandline -ct) 2>/dev/null)"
"#;

/// Every generated file, with its place in `packaging/`.
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
