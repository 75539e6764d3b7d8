//! `echo`: answers `echo: TEXT`, after a delay. The agent of a daemon that has none, and of many tests.

use std::time::{Duration, Instant};

use super::{Agent, Answer, Continuity, Failure, Host, Prompt, Said, Started, Wake};

/// The echo agent.
#[derive(Debug)]
pub struct Echo {
    delay: Duration,
}

impl Echo {
    /// Answers after `delay`.
    #[must_use]
    pub const fn new(delay: Duration) -> Self {
        Self { delay }
    }
}

impl Agent for Echo {
    fn start(&mut self, _: &mut dyn Host, _: Option<&str>, _: bool, _: Instant) -> Result<Started, Failure> {
        Ok(Started { agent_session: None, continuity: Continuity::Stateless })
    }

    fn is_ready(&self) -> bool {
        true
    }

    fn prompt(&mut self, host: &mut dyn Host, prompt: &Prompt) -> Answer {
        if !self.delay.is_zero() {
            let until = Instant::now() + self.delay;
            loop {
                match host.wait(&mut [], Some(until)) {
                    Wake::Timeout => break,
                    Wake::Letter | Wake::Ready if host.interrupt().is_some() => return Answer::Cancelled,
                    Wake::Letter | Wake::Ready => {}
                }
            }
        }
        host.said(Said::Text(format!("echo: {}", prompt.text)));
        Answer::Completed { stop_reason: None }
    }

    fn close(&mut self, _: &mut dyn Host, _: Instant) -> Vec<String> {
        Vec::new()
    }
}
