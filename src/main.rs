//! The program: arguments, call, exit code. The one place that knows every part of the house.

use std::process::ExitCode;

use ostler::cli::{self, Doors};
use ostler::{daemon, hooks};

fn main() -> ExitCode {
    cli::main(&Doors {
        serve: |o| {
            daemon::serve(&daemon::ServeOptions {
                config: o.config,
                state_dir: o.state_dir,
                socket: o.socket,
                replace: o.replace,
                no_resume: o.no_resume,
            })
        },
        check_script: |file, config| hooks::check_script(file, &config.hooks),
        checks: |_| Vec::new(),
    })
}
