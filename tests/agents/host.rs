//! A worker's part for the tests: waits with a real poll, notes what the agent says, and acts when it hears something.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use ostler::agent::{
    Agent, Answer, Entry, Failure, Host, Identity, Interrupt, PermissionOutcome, PermissionRequest, Progress, Prompt,
    Said, Wake, Watch,
};
use ostler::config;
use rustix::event::{PollFd, PollFlags, Timespec};

/// No test waits longer for anything.
const HANGS: Duration = Duration::from_secs(60);

/// What a test may do when the agent says something.
#[derive(Default)]
pub struct Controls {
    pub interrupt: Option<Interrupt>,
    pub letter: bool,
    pub answers: Vec<(String, PermissionOutcome)>,
}

type Hear = Box<dyn FnMut(&Said, &mut Controls)>;
type Settle = Box<dyn FnMut(&PermissionRequest, &mut Controls) -> Option<PermissionOutcome>>;

pub struct TestHost {
    identity: Identity,
    pub said: Vec<Said>,
    pub controls: Controls,
    pub hear: Hear,
    pub settle: Settle,
    pub on_process: Box<dyn FnMut(&mut Controls)>,
    pub history: Vec<Entry>,
    pub processes: Vec<(u32, u64)>,
    pub requests: Vec<PermissionRequest>,
    /// Requests that the agent took back.
    pub withdrawn: Vec<String>,
    /// When its other end is closed, a kill is in force.
    pub kill_at_hangup: Option<UnixStream>,
    _dir: tempfile::TempDir,
}

impl TestHost {
    pub fn new() -> Self {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let n = COUNT.fetch_add(1, Ordering::Relaxed);
        let dir = tempfile::tempdir().unwrap();
        let identity = Identity {
            key: format!("test:{n}"),
            session_id: format!("session-{}-{n}", std::process::id()),
            sid: 1,
            boot_id: format!("boot-{}", std::process::id()),
            cwd: dir.path().join("work"),
        };
        Self {
            identity,
            said: Vec::new(),
            controls: Controls::default(),
            hear: Box::new(|_, _| {}),
            settle: Box::new(|_, _| panic!("a permission was asked for")),
            on_process: Box::new(|_| {}),
            history: Vec::new(),
            processes: Vec::new(),
            requests: Vec::new(),
            withdrawn: Vec::new(),
            kill_at_hangup: None,
            _dir: dir,
        }
    }

    /// Interrupts when the agent's text so far has `mark` in it.
    pub fn interrupt_at(&mut self, mark: &'static str, interrupt: impl Fn() -> Interrupt + 'static) {
        let mut heard = String::new();
        self.hear = Box::new(move |said, controls| {
            if let Said::Text(text) = said {
                heard.push_str(text);
            }
            if heard.contains(mark) && controls.interrupt.is_none() {
                controls.interrupt = Some(interrupt());
                controls.letter = true;
            }
        });
    }

    /// All the text that was said, joined.
    pub fn text(&self) -> String {
        let text = |said: &Said| if let Said::Text(text) = said { Some(text.clone()) } else { None };
        self.said.iter().filter_map(text).collect()
    }

    /// The codes of the notices.
    pub fn notices(&self) -> Vec<&str> {
        self.said
            .iter()
            .filter_map(|s| if let Said::Notice(code, _) = s { Some(code.as_str()) } else { None })
            .collect()
    }

    /// A number that the agent said after a word.
    pub fn number_after(&self, word: &str) -> u32 {
        let text = self.text();
        let rest = text.split(word).nth(1).unwrap_or_else(|| panic!("no {word:?} in {text:?}"));
        rest.trim_start().split(|c: char| !c.is_ascii_digit()).next().unwrap().parse().unwrap()
    }

    /// Starts the agent as for a conversation without a past.
    pub fn start(&mut self, agent: &mut dyn Agent) -> Option<String> {
        agent.start(self, None, false, soon()).unwrap().agent_session
    }

    /// Runs a prompt; what was said before is forgotten.
    pub fn prompt(&mut self, agent: &mut dyn Agent, text: &str) -> Answer {
        self.said.clear();
        self.controls.interrupt = None;
        let prompt = Prompt { turn_id: "turn-1".into(), text: text.into(), context: None, frame: None, resumed: false };
        let begun = agent.begin(self, &prompt);
        self.drive(agent, begun)
    }

    /// Drives a turn to its end, as a worker does.
    pub fn drive(&mut self, agent: &mut dyn Agent, mut progress: Progress) -> Answer {
        loop {
            match progress {
                Progress::Done(answer) => {
                    agent.end(self);
                    return answer;
                }
                Progress::Pending { until } => {
                    self.wait(&mut agent.watches(), until);
                    progress = agent.input(self);
                }
            }
        }
    }

    /// Closes the agent; nothing may be left.
    pub fn close(&mut self, agent: &mut dyn Agent) {
        self.controls.interrupt = None;
        assert_eq!(agent.close(self, soon()), Vec::<String>::new());
    }
}

impl Host for TestHost {
    fn identity(&self) -> &Identity {
        &self.identity
    }

    fn wait(&mut self, watches: &mut [Watch<'_>], until: Option<Instant>) -> Wake {
        let until = until.unwrap_or_else(|| Instant::now() + HANGS);
        if std::mem::take(&mut self.controls.letter) {
            return Wake::Letter;
        }
        let flags = |w: &Watch<'_>| {
            let read = if w.read { PollFlags::IN } else { PollFlags::empty() };
            read | if w.write { PollFlags::OUT } else { PollFlags::empty() }
        };
        let mut fds: Vec<_> = watches.iter().map(|w| PollFd::from_borrowed_fd(w.fd, flags(w))).collect();
        fds.extend(self.kill_at_hangup.as_ref().map(|end| PollFd::new(end, PollFlags::IN)));
        let time = Timespec::try_from(until.saturating_duration_since(Instant::now()).min(HANGS)).unwrap();
        let began = Instant::now();
        let count = rustix::event::poll(&mut fds, Some(&time)).unwrap();
        let hung_up = self.kill_at_hangup.is_some() && fds.pop().is_some_and(|fd| !fd.revents().is_empty());
        let ready: Vec<bool> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
        drop(fds);
        watches.iter_mut().zip(ready).for_each(|(watch, ready)| watch.ready = ready);
        if hung_up {
            self.kill_at_hangup = None;
            self.controls.interrupt = Some(Interrupt::Kill);
            return Wake::Letter;
        }
        assert!(began.elapsed() < HANGS, "the agent waits for what does not come; it said {:?}", self.said);
        if count > 0 { Wake::Ready } else { Wake::Timeout }
    }

    fn interrupt(&self) -> Option<Interrupt> {
        self.controls.interrupt
    }

    fn deadline(&self) -> Option<Instant> {
        None
    }

    fn interrupted_flag(&self) -> Arc<AtomicBool> {
        Arc::new(AtomicBool::new(self.controls.interrupt.is_some()))
    }

    fn waker(&self) -> std::io::Result<Arc<OwnedFd>> {
        Err(std::io::ErrorKind::Unsupported.into())
    }

    fn said(&mut self, what: Said) {
        (self.hear)(&what, &mut self.controls);
        self.said.push(what);
    }

    fn permission(&mut self, request: PermissionRequest) -> Option<PermissionOutcome> {
        self.requests.push(request.clone());
        (self.settle)(&request, &mut self.controls)
    }

    fn permission_withdrawn(&mut self, request_id: &str, by: &'static str) {
        if by == "agent" {
            self.withdrawn.push(request_id.to_owned());
        }
        self.controls.answers.push((request_id.to_owned(), PermissionOutcome::Cancelled));
    }

    fn permission_answers(&mut self) -> Vec<(String, PermissionOutcome)> {
        std::mem::take(&mut self.controls.answers)
    }

    fn process_started(&mut self, pid: u32, start: u64) {
        self.processes.push((pid, start));
        (self.on_process)(&mut self.controls);
    }

    fn history(&mut self, limit: u64) -> Vec<Entry> {
        assert_eq!(limit, 65_536, "the configured limit is passed on");
        self.history.clone()
    }
}

/// An instant that no test reaches.
pub fn soon() -> Instant {
    Instant::now() + Duration::from_secs(20)
}

/// An agent's configuration with nothing unusual in it.
pub fn config(kind: config::AgentKind, command: &[&str]) -> config::Agent {
    config::Agent {
        name: "test".into(),
        kind,
        command: command.iter().map(ToString::to_string).collect(),
        cwd: "work/{key}".into(),
        env: BTreeMap::from([("LANG".to_string(), "C.UTF-8".to_string())]),
        env_pass: vec!["PATH".into(), "HOME".into()],
        max_processes: 32,
        start_timeout: Duration::from_secs(90),
        start_retries: 0,
        turn_timeout: None,
        silence_timeout: None,
        permission: config::PermissionPolicy::Ask,
        permission_timeout: None,
        on_interrupt: config::OnInterrupt::Resume,
        ..config::Agent::of_kind("test", kind)
    }
}

/// Whether a process is gone for good: not even a zombie is left of it.
pub fn is_reaped(pid: u32) -> bool {
    !std::path::Path::new(&format!("/proc/{pid}")).exists()
}

/// Waits until a killed child is dead, and reaps it, as the daemon does at its signal, if nobody has yet.
pub fn reap(pid: u32) {
    let pid = rustix::process::Pid::from_raw(i32::try_from(pid).unwrap());
    match rustix::process::waitpid(pid, rustix::process::WaitOptions::empty()) {
        Ok(Some(_)) | Err(rustix::io::Errno::CHILD) => {}
        other => panic!("{other:?}"),
    }
}

/// Makes this process inherit orphans, as the daemon does.
pub fn be_subreaper() {
    rustix::process::set_child_subreaper(Some(rustix::process::getpid())).unwrap();
}

/// An answer that came to its end.
pub fn done() -> Answer {
    Answer::Completed { stop_reason: Some("end_turn".into()) }
}

/// Why an answer failed.
pub fn failure(answer: Answer) -> Failure {
    match answer {
        Answer::Failed(failure) => failure,
        other => panic!("{other:?}"),
    }
}
