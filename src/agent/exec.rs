//! `exec`: a command once a turn. The message is its input, its output the answer, its exit the end.
//!
//! Owns nothing between turns, and in a turn the command's process and the bytes of a character that is not whole yet.
//! It must not know what the command does: a non-zero exit is a failed turn, and that is all.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::process::{Launch, Process, Rung};
use super::text::Utf8;
use super::{Agent, Answer, Failure, Host, Interrupt, Mark, Outlived, Progress, Prompt, RunsOn, Said, Watch, say};
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
    running: Option<RunningCommand>,
    /// The command of a turn whose outcome is not known to be kept.
    over: Option<RunningCommand>,
}

/// A command on its way.
#[derive(Debug)]
struct RunningCommand {
    process: Process,
    text: Utf8,
    /// It has exited: when its output is given up, which something that it started may still hold.
    linger: Option<Instant>,
    /// Why it is over.
    interrupted: Option<Interrupt>,
}

impl Exec {
    /// Runs the command of this configuration.
    #[must_use]
    pub fn new(config: &config::Agent) -> Self {
        let name = config.name.clone();
        let (command, env, env_pass) = (config.command.clone(), config.env.clone(), config.env_pass.clone());
        Self { name, command, env, env_pass, running: None, over: None }
    }

    fn spawn(&self, host: &mut dyn Host, prompt: &Prompt) -> Result<Process, Failure> {
        let mut extra = vec![("OSTLER_TURN_ID", prompt.turn_id.as_str())];
        if prompt.resumed {
            extra.push(("OSTLER_RESUMED", "1"));
        }
        let launch = Launch { command: &self.command, env: &self.env, env_pass: &self.env_pass, extra: &extra };
        let mut process = Process::spawn(&launch, host)?;
        give(&mut process, prompt);
        process.set_direct(false);
        Ok(process)
    }
}

/// Gives a command its input. Below a shim that is frame 1, and its end frame 2; what the shim has it does not take again.
fn give(process: &mut Process, prompt: &Prompt) {
    let context = prompt.context.as_ref().map(|context| format!("{context}\n\n")).unwrap_or_default();
    let input = [context.as_bytes(), prompt.text.as_bytes()].concat();
    if process.shim().is_none() {
        process.send(&input);
        return process.finish_input();
    }
    process.transmit(1, input);
    process.transmit_end(2);
}

impl Agent for Exec {
    fn begin(&mut self, host: &mut dyn Host, prompt: &Prompt) -> Progress {
        self.dismiss(host);
        if host.interrupt().is_some() {
            return Progress::Done(Answer::Cancelled);
        }
        match self.spawn(host, prompt) {
            Ok(process) => {
                self.running = Some(RunningCommand { process, text: Utf8::default(), linger: None, interrupted: None });
                Progress::Pending { until: None }
            }
            Err(failure) => Progress::Done(Answer::Failed(failure)),
        }
    }

    fn input(&mut self, host: &mut dyn Host) -> Progress {
        let Some(running) = self.running.as_mut() else { return Progress::Done(Answer::Cancelled) };
        if let Some(until) = running.read(host) {
            return Progress::Pending { until };
        }
        if running.interrupted.is_some() {
            return Progress::Done(Answer::Cancelled);
        }
        let process = &running.process;
        if process.succeeded() {
            return Progress::Done(Answer::Completed { stop_reason: None });
        }
        let how = process.exit_text().unwrap_or_else(|| "did not end".to_string());
        let tail = process.stderr_tail();
        let why = if tail.is_empty() { how } else { format!("{how}: {tail}") };
        Progress::Done(Answer::Failed(Failure::new("agent_error", format!("agent {}: {why}", self.name))))
    }

    fn durable(&mut self, host: &mut dyn Host) {
        let durable = host.durable();
        if self.running.is_none() {
            // Its outcome is kept.
            return self.dismiss(host);
        }
        if let (Some(running), Some(offset)) = (self.running.as_mut(), durable.offset) {
            running.process.acknowledge(offset);
        }
    }

    fn let_go(&mut self) -> bool {
        if let Some(over) = self.over.take() {
            over.process.let_go();
        }
        if let Some(running) = self.running.take() {
            running.process.let_go();
        }
        true
    }

    fn attach(&mut self, host: &mut dyn Host, outlived: Outlived) -> Result<Option<Progress>, Failure> {
        let Some(RunsOn { prompt: Some(prompt), .. }) = outlived.running else { return Ok(None) };
        let Some(mut process) = outlived.process else { return Ok(Some(self.begin(host, &prompt))) };
        give(&mut process, &prompt);
        self.running = Some(RunningCommand { process, text: Utf8::default(), linger: None, interrupted: None });
        Ok(Some(self.input(host)))
    }

    fn end(&mut self, host: &mut dyn Host) {
        let Some(mut running) = self.running.take() else { return };
        if running.process.shim().is_none() {
            return self.end_command(host, running);
        }
        // Its shim keeps the exit until the outcome is kept: a daemon that dies before that asks for it again.
        if !running.process.has_exited() {
            let (rung, until) = running.hurry(host);
            running.process.wind_down(host, rung, until);
        }
        self.over = Some(running);
    }

    fn close(&mut self, host: &mut dyn Host, _until: Instant) -> Vec<String> {
        self.dismiss(host);
        Vec::new()
    }

    fn watches(&self) -> Vec<Watch<'_>> {
        self.running.as_ref().map(|running| running.process.watches()).unwrap_or_default()
    }
}

impl Exec {
    /// Lets the shim of a command go that is over.
    fn dismiss(&mut self, host: &mut dyn Host) {
        if let Some(over) = self.over.take() {
            self.end_command(host, over);
        }
    }

    fn end_command(&self, host: &mut dyn Host, running: RunningCommand) {
        let (rung, until) = running.hurry(host);
        for line in running.process.end(host, rung, until) {
            log::warn!("{}: {line}: left by `{}`, and it cannot be ended", host.identity().key, self.command[0]);
        }
    }
}

impl RunningCommand {
    /// From which rung it is ended, and by when.
    fn hurry(&self, host: &dyn Host) -> (Rung, Instant) {
        match self.interrupted {
            Some(Interrupt::Cancel(until)) => (Rung::Terminate, until),
            Some(Interrupt::Kill) => (Rung::Kill, host.now() + SWEEP),
            None => (Rung::Terminate, host.now() + SWEEP),
        }
    }

    /// Marks how far the output was taken in: whole characters, or all once nothing more comes.
    fn mark(&self, host: &mut dyn Host) {
        let Some(shim) = self.process.shim() else { return };
        // Before that the rest of a character may still come, however its command stands.
        let partial = if self.process.is_drained() { 0 } else { self.text.pending() as u64 };
        let offset = self.process.received().saturating_sub(partial);
        host.mark(Mark {
            shim: shim.to_owned(),
            offset,
            state: "null".to_owned(),
            urgent: self.process.is_ending(),
            ..Mark::default()
        });
    }

    /// Passes on what is there of the output. `None`: the command is over and its output is read, or the host wants it
    /// to end; else until when there may be nothing to do.
    fn read(&mut self, host: &mut dyn Host) -> Option<Option<Instant>> {
        let mut out = Vec::new();
        self.process.take_in(&mut out);
        say(host, Said::Text(self.text.push(&out)));
        self.mark(host);
        if self.process.has_exited() {
            let now = host.now();
            let until = *self.linger.get_or_insert(now + LINGER);
            if !self.process.has_output() || now >= until {
                say(host, Said::Text(self.text.finish()));
                return None;
            }
        }
        if let Some(interrupt) = host.interrupt() {
            say(host, Said::Text(self.text.finish()));
            self.interrupted = Some(interrupt);
            return None;
        }
        // What it wrote before it exited is read without a pause.
        let more = self.process.has_exited() && !self.process.is_drained();
        Some(if more { Some(host.now()) } else { self.linger })
    }
}
