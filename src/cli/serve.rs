//! `serve`: flags, environment and file become the daemon's options; then it runs.

use super::args::Serve;
use super::{Done, Doors, Failure, ServeOptions, Ui, exit};
use crate::config::{self, Paths, paths::process_env};

/// Runs the daemon and gives its exit code.
pub fn serve(a: &Serve, doors: &Doors, _: &mut Ui) -> Done {
    let paths = Paths::of_daemon(a.config.as_deref(), a.state_dir.as_deref(), a.socket.as_deref(), &process_env)
        .map_err(|text| Failure::coded(exit::STATE, text))?;
    let config = config::load(paths.config.as_deref())?;
    crate::thread::expect_sleepers(config.sessions.max_live);
    crate::log::init(&config.daemon.log);
    for warning in &config.warnings {
        log::warn!("{warning}");
    }
    let code = (doors.serve)(ServeOptions {
        config,
        state_dir: paths.state_dir,
        socket: paths.socket,
        replace: a.replace,
        no_resume: a.no_resume,
    });
    // The last log lines are still on their way; a stalled stderr gets this long.
    crate::log::flush(std::time::Instant::now() + std::time::Duration::from_secs(1));
    Ok(code)
}
