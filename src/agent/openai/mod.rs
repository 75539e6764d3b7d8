//! `openai`: an endpoint that speaks OpenAI's chat completions, streamed.
//!
//! Owns the connection and its reader thread, for one turn. Each request carries the whole conversation, from the
//! transcript. It must not know the store.
//!
//! A letter cannot interrupt a blocking read. So a reader thread does the reads, passes pieces through a bounded
//! channel and rings a bell (an eventfd); the worker waits for the bell together with everything else. An interrupt
//! shuts the connection down, and that ends the read. Only the name look-up and the connect cannot be cut short: the
//! worker does not wait for such a reader, which ends within [`CONNECT_TIME`] and has no channel to report to.

use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, TryRecvError, bounded};
use rustix::event::{EventfdFlags, eventfd};
use ureq::tls::{RootCerts, TlsConfig};

use super::json::{self, Raw};
use super::text::Utf8;
use super::{Agent, Answer, Failure, Host, Interrupt, Progress, Prompt, Said, Watch, say};
use crate::config;
use crate::config::login::{scrub, without_login};
use crate::model::event::Role;
use sse::{Piece, Stream};

mod sse;

/// The longest time to connect.
const CONNECT_TIME: Duration = Duration::from_secs(30);
/// How long to wait for the reader's end after its connection was shut down.
const JOIN_TIME: Duration = Duration::from_secs(2);
/// How long to wait before asking the host again whether it has room.
const FULL: Duration = Duration::from_secs(1);
/// The capacity of the channel to the worker, in pieces.
const PIECES: usize = 64;
/// The longest answer of an endpoint that does not stream, in bytes.
const WHOLE: usize = 32 * 1024 * 1024;
/// How much of an error's body is shown, in bytes.
const ERROR_SHOWN: usize = 1000;

/// The agent.
#[derive(Debug)]
pub struct Openai {
    url: String,
    model: String,
    api_key_file: Option<PathBuf>,
    history: u64,
}

/// The body of a request.
#[derive(serde::Serialize)]
struct Body<'a> {
    model: &'a str,
    messages: Vec<ChatMessage<'a>>,
    stream: bool,
}

#[derive(serde::Serialize)]
struct ChatMessage<'a> {
    role: &'static str,
    content: &'a str,
}

impl Openai {
    /// The agent of this configuration. The path of `api_key_file` is already resolved.
    #[must_use]
    pub fn new(config: &config::Agent) -> Self {
        Self {
            url: format!("{}/chat/completions", config.url.trim_end_matches('/')),
            model: config.model.clone(),
            api_key_file: config.api_key_file.clone(),
            history: config.history,
        }
    }

    fn body(&self, host: &mut dyn Host, prompt: &Prompt) -> String {
        let history = host.history(self.history);
        let mut messages = Vec::with_capacity(history.len() + 2);
        for entry in &history {
            let role = match entry.role {
                Role::User => "user",
                Role::Agent => "assistant",
                Role::System => "system",
                Role::Tool => continue,
            };
            messages.push(ChatMessage { role, content: &entry.text });
        }
        messages.extend(prompt.context.as_ref().map(|content| ChatMessage { role: "system", content }));
        messages.push(ChatMessage { role: "user", content: &prompt.text });
        let body = Body { model: &self.model, messages, stream: true };
        // It has strings only, which can always be serialized.
        serde_json::to_string(&body).unwrap_or_default()
    }

    /// The HTTP client of one turn. It uses no proxy for addresses of this machine.
    fn connections(&self) -> ureq::Agent {
        let authority = self.url.split("://").nth(1).and_then(|rest| rest.split('/').next()).unwrap_or_default();
        let here = ["localhost", "127.", "[::1]"].iter().any(|name| authority.starts_with(name));
        let mut config = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .timeout_connect(Some(CONNECT_TIME))
            .user_agent(concat!("ostler/", env!("CARGO_PKG_VERSION")))
            .tls_config(TlsConfig::builder().root_certs(RootCerts::PlatformVerifier).build());
        if here {
            config = config.proxy(None);
        }
        config.build().new_agent()
    }

    /// Sends the request and passes the whole answer on.
    fn answer(&self, host: &mut dyn Host, prompt: &Prompt) -> Answer {
        let failed = |why: String| Answer::Failed(Failure::new("agent_error", why));
        if host.interrupt().is_some() {
            return Answer::Cancelled;
        }
        let key = match self.api_key_file.as_deref().map(read_key).transpose() {
            Ok(key) => key,
            Err(why) => return failed(why),
        };
        let connections = self.connections();
        let request =
            Request { connections: connections.clone(), url: self.url.clone(), key, body: self.body(host, prompt) };
        let reader = match Reader::spawn(request) {
            Ok(reader) => reader,
            Err(e) => return failed(format!("{}: cannot start a thread: {e}", without_login(&self.url))),
        };
        let end = take_answer(host, &reader);
        // Nothing that the reader may still wait for is needed.
        connections.shutdown();
        let by = Instant::now() + JOIN_TIME;
        match end {
            Ok(answer) => {
                reader.join(host, by);
                answer
            }
            Err(interrupt) => {
                reader.join(host, if let Interrupt::Cancel(until) = interrupt { by.min(until) } else { by });
                Answer::Cancelled
            }
        }
    }
}

impl Agent for Openai {
    fn begin(&mut self, host: &mut dyn Host, prompt: &Prompt) -> Progress {
        Progress::Done(self.answer(host, prompt))
    }
}

/// Passes the reader's pieces on until the answer ends or an interrupt comes.
fn take_answer(host: &mut dyn Host, reader: &Reader) -> Result<Answer, Interrupt> {
    let (mut spoke, mut finish) = (false, None);
    let (mut text, mut thought) = (Utf8::default(), Utf8::default());
    let (mut in_a_row, mut unreadable) = (0, 0);
    let failed = |why: String| Ok(Answer::Failed(Failure::new("agent_error", why)));
    loop {
        if let Some(interrupt) = host.interrupt() {
            return Err(interrupt);
        }
        if !host.has_room() {
            host.wait(&mut [], Some(host.now() + FULL));
            continue;
        }
        // A fast endpoint must not keep the host from its letters.
        in_a_row += 1;
        if in_a_row % PIECES == 0 {
            reader.wait(host, Some(Instant::now()));
        }
        match reader.pieces.try_recv() {
            Ok(Brought::Piece(Piece::Text(bytes))) => {
                spoke = true;
                say(host, Said::Thought(thought.finish()));
                say(host, Said::Text(text.push(&bytes)));
            }
            Ok(Brought::Piece(Piece::Thought(bytes))) => {
                say(host, Said::Text(text.finish()));
                say(host, Said::Thought(thought.push(&bytes)));
            }
            Ok(Brought::Piece(Piece::Unreadable(head, chunk))) => {
                unreadable += u32::from(chunk);
                log::warn!("{}: cannot read a chunk from the endpoint: {head}", host.identity().key);
            }
            Ok(Brought::Piece(Piece::Usage(usage))) => host.said(Said::Usage(usage)),
            Ok(Brought::Piece(Piece::Finish(reason))) => finish = Some(reason),
            Ok(Brought::Piece(Piece::Error(why)) | Brought::Failed(why)) => return failed(why),
            Ok(Brought::Piece(Piece::Done) | Brought::End) => {
                say(host, Said::Text(text.finish()));
                if unreadable > 0 && spoke {
                    let why = format!("{unreadable} pieces of the answer could not be read and are missing");
                    host.said(Said::Notice("answer_damaged".into(), why));
                }
                return match finish.as_deref() {
                    Some("content_filter") if !spoke => {
                        Ok(Answer::Failed(Failure::new("agent_refused", "the endpoint filtered the answer")))
                    }
                    _ if !spoke && unreadable > 0 => failed("no piece of the answer could be read".to_string()),
                    None if !spoke => failed("the endpoint ended the answer before it began".to_string()),
                    _ => {
                        if !spoke {
                            let text = "the endpoint sent an empty answer";
                            host.said(Said::Notice("empty_answer".into(), text.into()));
                        }
                        Ok(Answer::Completed { stop_reason: finish })
                    }
                };
            }
            Ok(Brought::CutOff) if finish.is_some() && unreadable == 0 => {
                return Ok(Answer::Completed { stop_reason: finish });
            }
            Ok(Brought::CutOff) => {
                return failed("the endpoint closed the connection before the answer ended".into());
            }
            Err(TryRecvError::Empty) => reader.wait(host, None),
            Err(TryRecvError::Disconnected) => return failed("the reader thread has died".to_string()),
        }
    }
}

/// Reads the key's file. Each turn reads it again, so an operator can change the key without a reload.
fn read_key(path: &Path) -> Result<String, String> {
    let failed = |e: std::io::Error| format!("api_key_file {}: {e}", path.display());
    // Reading a pipe without a writer would block the turn for ever.
    if !std::fs::metadata(path).map_err(failed)?.is_file() {
        return Err(format!("api_key_file {}: it is not a file", path.display()));
    }
    config::bounded::secret(path).map_err(failed)
}

/// What the reader passes to the worker.
enum Brought {
    Piece(Piece),
    /// A whole answer was read.
    End,
    /// The stream ended without its end mark.
    CutOff,
    /// There is no answer: why.
    Failed(String),
}

/// A request for the reader thread.
struct Request {
    connections: ureq::Agent,
    url: String,
    key: Option<String>,
    body: String,
}

/// The worker's handle to the reader thread.
struct Reader {
    pieces: Receiver<Brought>,
    bell: Arc<Bell>,
    thread: JoinHandle<()>,
}

/// Wakes the worker: a piece is in the channel, or the thread is done.
struct Bell {
    fd: OwnedFd,
    done: AtomicBool,
}

impl Bell {
    fn ring(&self) {
        // The write fails only if the counter overflows, at 2^64 rings.
        let _ = rustix::io::write(&self.fd, &1_u64.to_ne_bytes());
    }
}

/// Rings for the last time when the thread ends, also by a panic.
struct Last(Arc<Bell>);

impl Drop for Last {
    fn drop(&mut self) {
        self.0.done.store(true, Ordering::Release);
        self.0.ring();
    }
}

impl Reader {
    fn spawn(request: Request) -> std::io::Result<Self> {
        let fd = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let bell = Arc::new(Bell { fd, done: AtomicBool::new(false) });
        let (sender, pieces) = bounded(PIECES);
        let last = Last(Arc::clone(&bell));
        let thread = crate::thread::spawn("openai", crate::thread::DEEP_STACK, move || {
            // Dropped after the sender, so at the last ring the channel holds everything.
            let last = last;
            let line = Messenger { sender, bell: Arc::clone(&last.0) };
            let end = ask(&request, &line).unwrap_or_else(|why| {
                Brought::Failed(format!("{}: {}", without_login(&request.url), scrub(&why, &request.url)))
            });
            let _ = line.bring(end);
        })?;
        Ok(Self { pieces, bell, thread })
    }

    /// Waits for the bell, the host or the deadline.
    fn wait(&self, host: &mut dyn Host, until: Option<Instant>) {
        let mut watches = [Watch { fd: self.bell.fd.as_fd(), read: true, write: false, ready: false }];
        host.wait(&mut watches, until);
        let mut count = [0; 8];
        // If the bell was not rung, there is nothing to read.
        let _ = rustix::io::read(&self.bell.fd, &mut count);
    }

    /// Waits for the thread's end, until `until`. A thread that still connects then is left to end by itself.
    fn join(self, host: &mut dyn Host, until: Instant) {
        let Self { pieces, bell, thread } = self;
        // Without a receiver the next piece ends the reader instead of blocking it.
        drop(pieces);
        let rest = Self { pieces: crossbeam_channel::never(), bell, thread };
        while !rest.bell.done.load(Ordering::Acquire) && Instant::now() < until {
            rest.wait(host, Some(until));
        }
        if rest.bell.done.load(Ordering::Acquire) {
            let _ = rest.thread.join();
        }
    }
}

/// The thread's end of the channel.
struct Messenger {
    sender: Sender<Brought>,
    bell: Arc<Bell>,
}

impl Messenger {
    /// `false`: the worker does not need it any more.
    fn bring(&self, what: Brought) -> bool {
        let taken = self.sender.send(what).is_ok();
        self.bell.ring();
        taken
    }
}

/// Sends the request and reads the answer to its end, on the reader thread.
fn ask(request: &Request, line: &Messenger) -> Result<Brought, String> {
    let mut call = request.connections.post(&request.url).header("content-type", "application/json");
    call = call.header("accept", "text/event-stream, application/json");
    if let Some(key) = &request.key {
        call = call.header("authorization", format!("Bearer {key}"));
    }
    let response = call.send(&request.body).map_err(|e| e.to_string())?;
    let status = response.status();
    let mut body = response.into_body().into_with_config().limit(u64::MAX).reader();
    if !status.is_success() {
        let mut head = Vec::new();
        let _ = body.take(ERROR_SHOWN as u64).read_to_end(&mut head);
        let head = String::from_utf8_lossy(&head).into_owned();
        let why = json::value_at(head.trim_start()).and_then(|(body, _)| sse::error_text(Raw::of(&body)));
        let why = why.unwrap_or(head);
        return Err(format!("HTTP {status}: {}", why.trim()));
    }
    read_body(&mut body, line).map_err(|e| e.to_string())
}

/// Reads an answer: a stream of events, or one JSON object from an endpoint that does not stream.
fn read_body(body: &mut dyn Read, line: &Messenger) -> std::io::Result<Brought> {
    let mut stream = Stream::new();
    let mut whole: Option<Vec<u8>> = None;
    let mut buffer = [0; 16 * 1024];
    loop {
        let n = match body.read(&mut buffer) {
            Ok(0) => break,
            Ok(n) => n,
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => continue,
            // If no header gives the body's length, a lost connection shows as an error or as an end. In both cases the
            // caller checks whether the answer was finished.
            Err(e) if e.kind() == std::io::ErrorKind::UnexpectedEof => break,
            Err(e) => return Err(e),
        };
        let bytes = &buffer[..n];
        let begins = bytes.iter().find(|b| !b.is_ascii_whitespace());
        if let Some(whole) = whole.as_mut() {
            whole.extend_from_slice(bytes);
            if whole.len() > WHOLE {
                return Err(std::io::Error::other("the answer is too long"));
            }
        } else if begins == Some(&b'{') && stream.is_untouched() {
            whole = Some(bytes.to_vec());
        } else {
            for piece in stream.push(bytes) {
                let done = piece == Piece::Done;
                if !line.bring(Brought::Piece(piece)) || done {
                    return Ok(Brought::End);
                }
            }
        }
    }
    let pieces = match &whole {
        Some(whole) => {
            let text = json::text_of(whole);
            let value = json::value_at(text.trim_start());
            let (value, _) = value.ok_or_else(|| std::io::Error::other("the answer is not JSON"))?;
            sse::read_chunk(Raw::of(&value))
        }
        None => stream.finish(),
    };
    let done = whole.is_some() || pieces.contains(&Piece::Done);
    let taken = pieces.into_iter().all(|piece| line.bring(Brought::Piece(piece)));
    Ok(if done || !taken { Brought::End } else { Brought::CutOff })
}
