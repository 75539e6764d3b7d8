//! `exec`: a command once a turn. The message is its input, its output the answer, its exit the end.
//!
//! Owns nothing between turns. It must not know what the command does: a non-zero exit is a failed turn, and that is all.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::process::{Launch, Process, Rung};
use super::text::Utf8;
use super::{Agent, Answer, Continuity, Failure, Host, Interrupt, Prompt, Said, Started};
use crate::config;

/// How long the output may stay open after the command has exited: something that it started still holds it.
const LINGER: Duration = Duration::from_millis(500);
/// For ending what a turn left behind, and for a kill.
const SWEEP: Duration = Duration::from_secs(3);

/// The exec agent.
#[derive(Debug)]
pub struct Exec {
    /// Its configuration's name.
    name: String,
    command: Vec<String>,
    env: BTreeMap<String, String>,
    env_pass: Vec<String>,
}

impl Exec {
    /// Runs the command of this configuration.
    #[must_use]
    pub fn new(config: &config::Agent) -> Self {
        let name = config.name.clone();
        Self { name, command: config.command.clone(), env: config.env.clone(), env_pass: config.env_pass.clone() }
    }

    fn spawn(&self, host: &mut dyn Host, prompt: &Prompt) -> Result<Process, Failure> {
        let mut extra = vec![("OSTLER_TURN_ID", prompt.turn_id.as_str())];
        if prompt.resumed {
            extra.push(("OSTLER_RESUMED", "1"));
        }
        let launch = Launch { command: &self.command, env: &self.env, env_pass: &self.env_pass, extra: &extra };
        let mut process = Process::spawn(&launch, host.identity())?;
        host.process_started(process.id(), process.start_time());
        if let Some(context) = &prompt.context {
            process.send(context.as_bytes());
            process.send(b"\n\n");
        }
        process.send(prompt.text.as_bytes());
        process.finish_input();
        Ok(process)
    }
}

impl Agent for Exec {
    fn start(&mut self, _: &mut dyn Host, _: Option<&str>, _: bool, _: Instant) -> Result<Started, Failure> {
        Ok(Started { agent_session: None, continuity: Continuity::Stateless })
    }

    fn is_ready(&self) -> bool {
        true
    }

    fn prompt(&mut self, host: &mut dyn Host, prompt: &Prompt) -> Answer {
        if host.interrupt().is_some() {
            return Answer::Cancelled;
        }
        let mut process = match self.spawn(host, prompt) {
            Ok(process) => process,
            Err(failure) => return Answer::Failed(failure),
        };
        let end = read_answer(host, &mut process);
        let how = process.exit_text().unwrap_or_else(|| "did not end".to_string());
        let (succeeded, tail) = (process.succeeded(), process.stderr_tail());
        let (rung, until) = match &end {
            End::Interrupted(Interrupt::Cancel(until)) => (Rung::Terminate, *until),
            End::Interrupted(Interrupt::Kill) => (Rung::Kill, Instant::now() + SWEEP),
            End::Over => (Rung::Terminate, Instant::now() + SWEEP),
        };
        for line in process.end(host, rung, until) {
            log::warn!("{}: {line}: left by `{}`, and it cannot be ended", host.identity().key, self.command[0]);
        }
        let failed = |why: String| Answer::Failed(Failure::new("agent_error", format!("agent {}: {why}", self.name)));
        match end {
            End::Interrupted(_) => Answer::Cancelled,
            End::Over if succeeded => Answer::Completed { stop_reason: None },
            End::Over if tail.is_empty() => failed(how),
            End::Over => failed(format!("{how}: {tail}")),
        }
    }

    fn close(&mut self, _: &mut dyn Host, _: Instant) -> Vec<String> {
        Vec::new()
    }
}

/// Why reading came to an end.
enum End {
    /// The command exited, and its output is read.
    Over,
    /// The host asked.
    Interrupted(Interrupt),
}

/// Streams the output as text until the command is over or the host wants it to be.
fn read_answer(host: &mut dyn Host, process: &mut Process) -> End {
    let (mut out, mut text) = (Vec::new(), Utf8::default());
    let mut linger = None;
    loop {
        if let Some(interrupt) = host.interrupt() {
            say(host, text.finish());
            return End::Interrupted(interrupt);
        }
        process.step(host, linger, &mut out);
        say(host, text.push(&out));
        out.clear();
        if process.has_exited() {
            let until = *linger.get_or_insert_with(|| Instant::now() + LINGER);
            if !process.has_output() || Instant::now() >= until {
                say(host, text.finish());
                return End::Over;
            }
        }
    }
}

fn say(host: &mut dyn Host, text: String) {
    if !text.is_empty() {
        host.said(Said::Text(text));
    }
}
