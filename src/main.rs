//! The program: arguments, call, exit code. The one place that knows every part of the house.

use std::process::ExitCode;

use ostler::cli::{self, Doors};

fn main() -> ExitCode {
    cli::main(&Doors {
        serve: |_| {
            eprintln!("ostler: serve: this build has no daemon");
            70
        },
        check_script: |_, _| Err("this build has no hooks".into()),
        checks: |_| Vec::new(),
    })
}
