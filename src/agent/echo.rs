//! `echo`: answers `echo: TEXT`, after a delay. The agent of a daemon that has none, and of many tests.

use std::time::{Duration, Instant};

use super::{Agent, Answer, Host, Progress, Prompt, Said};

/// The echo agent.
#[derive(Debug)]
pub struct Echo {
    delay: Duration,
    /// The answer that waits for its time.
    pending: Option<(String, Instant)>,
}

impl Echo {
    /// Answers after `delay`.
    #[must_use]
    pub const fn new(delay: Duration) -> Self {
        Self { delay, pending: None }
    }
}

fn answer(host: &mut dyn Host, text: &str) -> Progress {
    host.said(Said::Text(format!("echo: {text}")));
    Progress::Done(Answer::Completed { stop_reason: None })
}

impl Agent for Echo {
    fn begin(&mut self, host: &mut dyn Host, prompt: &Prompt) -> Progress {
        if self.delay.is_zero() {
            return answer(host, &prompt.text);
        }
        let at = host.now() + self.delay;
        self.pending = Some((prompt.text.clone(), at));
        Progress::Pending { until: Some(at) }
    }

    fn input(&mut self, host: &mut dyn Host) -> Progress {
        match self.pending.take() {
            Some((text, at)) if at <= host.now() => answer(host, &text),
            Some((text, at)) if host.interrupt().is_none() => {
                self.pending = Some((text, at));
                Progress::Pending { until: Some(at) }
            }
            Some(_) | None => Progress::Done(Answer::Cancelled),
        }
    }
}
