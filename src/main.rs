//! The program: arguments, call, exit code. The one place that knows every part of the program.

use std::process::ExitCode;

use ostler::cli::doctor::{Check, Verdict};
use ostler::cli::{self, Doors};
use ostler::daemon::doctor::Level;
use ostler::{daemon, exit, hooks, serve, store, thread};

fn main() -> ExitCode {
    cli::main(&Doors {
        serve: |asked| {
            serve::serve(serve::Options {
                config: asked.config,
                state_dir: asked.state_dir,
                socket: asked.socket,
                replace: asked.replace,
                no_resume: asked.no_resume,
            })
        },
        check_script: |file, config| {
            let problems = hooks::check(&[file.to_owned()], &config.hooks);
            match problems.iter().find(|p| p.error) {
                Some(error) => Err(error.to_string()),
                None => Ok(problems.iter().map(ToString::to_string).collect()),
            }
        },
        reports: |state_dir| store::reports_of(&state_dir.join("ostler.db")).map_err(|e| e.to_string()),
        restore: |state_dir, file, go| {
            daemon::restore::restore(state_dir, file, go).map_err(|e| {
                let code = match e {
                    daemon::restore::Refused::Owned(_) => exit::UNAVAILABLE,
                    daemon::restore::Refused::State(_) | daemon::restore::Refused::Store(_) => exit::FAILURE,
                };
                (code, e.to_string())
            })
        },
        end_agents: |state_dir| match daemon::end_agents::end_agents(state_dir) {
            Ok(done) => Ok((done.ended, done.left)),
            Err(e) => {
                let code = match e {
                    daemon::restore::Refused::Owned(_) => exit::UNAVAILABLE,
                    daemon::restore::Refused::State(_) | daemon::restore::Refused::Store(_) => exit::FAILURE,
                };
                Err((code, e.to_string()))
            }
        },
        checks: |ground| {
            let boot = ground.status.and_then(|s| s["boot_id"].as_str());
            let shown = |f: daemon::doctor::Finding| Check {
                name: f.name.to_owned(),
                verdict: match f.level {
                    Level::Good => Verdict::Good,
                    Level::Skipped => Verdict::Skipped,
                    Level::Warning => Verdict::Warning,
                    Level::Bad => Verdict::Bad,
                },
                found: f.found,
                remedy: f.remedy,
            };
            daemon::doctor::examine(ground.config, ground.state_dir, boot).into_iter().map(shown).collect()
        },
        fire_script: |file, event, fields, config| {
            // A thread that has the stack which Lua needs.
            let (file, fields, hooks) = (file.to_owned(), fields.clone(), config.hooks.clone());
            let tried = thread::spawn("hook-trial", thread::DEEP_STACK, move || {
                hooks::trial::fire(&file, event, &fields, &hooks).map_err(|e| e.to_string())
            });
            let tried = tried.map_err(|e| format!("no thread: {e}"))?;
            tried.join().unwrap_or_else(|_| Err("a hook panicked: see above".to_owned()))
        },
    })
}
