//! The log: lines through a bounded queue to one writer thread, so that a stalled stderr never stalls the daemon.
//!
//! A thread that logs formats its line, hands it over without waiting, and goes on. Lines that do not fit are dropped,
//! counted ([`dropped`]) and reported in a line of their own as soon as the writer gets through again. `env_logger`
//! filters every line; outside the journal it also makes the line, which then goes to stderr with a time. Under systemd
//! each line goes to the journal with its fields (`OSTLER_KEY=`, `OSTLER_SESSION_ID=`), the thread's own fields
//! ([`about`]) and the boot.
//! This file must not know what is logged.

use std::cell::RefCell;
use std::fmt::{self, Write as _};
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock, PoisonError, RwLock};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded};
use env_logger::Target;
use env_logger::fmt::{Formatter, WriteStyle};
use log::{Level, Log, Metadata, Record};

use crate::clock;
use crate::thread;

/// Lines that may wait for the writer.
const QUEUE_LINES: usize = 8192;
/// Bytes that may wait for the writer: long lines fill the queue before it has many.
const QUEUE_BYTES: usize = 16 << 20;
/// Longest line; the rest is cut.
const LINE: usize = 64 << 10;
/// While lines keep being dropped, their count is reported this often.
const REPORT_EVERY: Duration = Duration::from_secs(1);
/// Where journald takes records with fields.
const JOURNAL: &str = "/run/systemd/journal/socket";

static LOGGER: OnceLock<Logger> = OnceLock::new();
static BOOT: OnceLock<String> = OnceLock::new();

thread_local! {
    static ABOUT: RefCell<Vec<(&'static str, String)>> = const { RefCell::new(Vec::new()) };
}

/// Sets a field that the journal gets with each line of this thread from here on, unless the line has it itself. An
/// empty value removes the field.
pub fn about(name: &'static str, value: &str) {
    ABOUT.with_borrow_mut(|fields| {
        fields.retain(|(known, _)| *known != name);
        if !value.is_empty() {
            fields.push((name, value.to_owned()));
        }
    });
}

/// The boot that every line belongs to, from here on.
pub fn set_boot(boot_id: &str) {
    // A process has one boot: a second would be a second call in a test.
    let _ = BOOT.set(boot_id.to_owned());
}

/// Starts logging with a filter such as `info` or `info,ostler::agent=debug`; `RUST_LOG` wins. Installs a panic hook
/// that logs. A second call only sets the filter.
///
/// If no thread for the writer can be made, stderr says so, and nothing is logged.
pub fn init(filter: &str) {
    if LOGGER.get().is_some() {
        set_filter(filter);
        return;
    }
    match Logger::start(Sink::detect()) {
        Ok(logger) => {
            let logger = LOGGER.get_or_init(|| logger);
            // An error means that another logger was installed before: it stays.
            let _ = log::set_logger(logger);
            set_filter(filter);
            std::panic::set_hook(Box::new(log_panic));
        }
        Err(e) => eprintln!("ostler: log: no thread to write it: {e}"),
    }
}

/// Sets the filter of a running log, for a reload. `RUST_LOG` wins.
pub fn set_filter(filter: &str) {
    let Some(logger) = LOGGER.get() else { return };
    let env = std::env::var("RUST_LOG").ok().filter(|v| !v.is_empty());
    let outcome = match env {
        Some(env) => logger.set_filter(&env).or_else(|e| logger.set_filter(filter).and(Err(format!("RUST_LOG: {e}")))),
        None => logger.set_filter(filter),
    };
    if let Err(e) = outcome {
        log::warn!("log filter: {e}");
    }
}

/// How many lines were dropped since the start.
#[must_use]
pub fn dropped() -> u64 {
    LOGGER.get().map_or(0, |l| l.queue.shared.dropped.load(Ordering::Relaxed))
}

/// Waits until every line logged before is written, at most until the instant. Whether it was.
pub fn flush(until: Instant) -> bool {
    LOGGER.get().is_none_or(|l| l.flush_until(until))
}

fn log_panic(info: &std::panic::PanicHookInfo<'_>) {
    let current = std::thread::current();
    let thread = current.name().unwrap_or("?");
    let payload = info.payload();
    let text = payload.downcast_ref::<&str>().copied();
    let message = text.or_else(|| payload.downcast_ref::<String>().map(String::as_str)).unwrap_or("(no message)");
    let location = info.location().map_or_else(|| "?".to_owned(), ToString::to_string);
    log::error!(thread, location; "panic: {message}");
    let backtrace = std::backtrace::Backtrace::capture();
    if backtrace.status() == std::backtrace::BacktraceStatus::Captured {
        log::error!(thread; "backtrace: {backtrace}");
    }
}

/// Where lines end up.
enum Sink {
    /// Text lines with a time.
    Text(Box<dyn Write + Send>),
    /// Records with fields; a record that the journal does not take goes to stderr, which also leads to the journal.
    Journal { socket: UnixDatagram, path: PathBuf, stderr: Box<dyn Write + Send> },
}

impl Sink {
    fn detect() -> Self {
        // Not `io::stderr()`: a stalled write would hold its lock, and every other print would wait.
        let stderr: Box<dyn Write + Send> = match io::stderr().as_fd().try_clone_to_owned() {
            Ok(fd) => Box::new(Patient(File::from(fd))),
            Err(_) => Box::new(io::stderr()),
        };
        let socket = if stderr_is_journal() { UnixDatagram::unbound().ok() } else { None };
        match socket {
            Some(socket) => Self::Journal { socket, path: JOURNAL.into(), stderr },
            None => Self::Text(stderr),
        }
    }

    fn write(&mut self, line: &Line) -> io::Result<()> {
        match (self, line) {
            (Self::Text(out), Line::Text(text)) => out.write_all(text),
            (Self::Text(out), Line::Record(record)) => out.write_all(record.plain().as_bytes()),
            (Self::Journal { stderr, .. }, Line::Text(text)) => stderr.write_all(text),
            (Self::Journal { socket, path, stderr }, Line::Record(record)) => {
                // It fails while journald is restarted, and for a record that is longer than a datagram may be.
                send_whole(socket, &record.datagram(), path).or_else(|_| stderr.write_all(record.plain().as_bytes()))
            }
        }
    }
}

fn send_whole(socket: &UnixDatagram, datagram: &[u8], path: &Path) -> io::Result<()> {
    loop {
        match socket.send_to(datagram, path) {
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            other => return other.map(drop),
        }
    }
}

/// `$JOURNAL_STREAM` names the device and inode of the stream that leads to the journal.
fn stderr_is_journal() -> bool {
    let Ok(stream) = std::env::var("JOURNAL_STREAM") else { return false };
    let Ok(stat) = rustix::fs::fstat(io::stderr()) else { return false };
    stream == format!("{}:{}", stat.st_dev, stat.st_ino)
}

/// A file that another process may have made non-blocking: writes wait until it takes more.
struct Patient(File);

impl Write for Patient {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        loop {
            match self.0.write(bytes) {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    let mut fds = [rustix::event::PollFd::new(&self.0, rustix::event::PollFlags::OUT)];
                    match rustix::event::poll(&mut fds, None) {
                        Ok(_) | Err(rustix::io::Errno::INTR) => {}
                        Err(e) => return Err(e.into()),
                    }
                }
                other => return other,
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// One line on its way to the writer.
enum Line {
    /// As `env_logger` made it, with its newline.
    Text(Vec<u8>),
    /// For the journal.
    Record(JournalRecord),
}

impl Line {
    fn size(&self) -> usize {
        match self {
            Self::Text(text) => text.len(),
            Self::Record(r) => r.text.len() + r.fields.iter().map(|(k, v)| k.len() + v.len()).sum::<usize>(),
        }
    }
}

struct JournalRecord {
    level: Level,
    /// Message and fields, without a newline.
    text: String,
    /// The fields once more, with names in capitals.
    fields: Vec<(String, String)>,
}

impl JournalRecord {
    fn new(record: &Record<'_>) -> Self {
        let mut text = Capped(String::new());
        let mut fields = vec![("OSTLER_TARGET".to_owned(), record.target().to_owned())];
        write_message(&mut text, record, Some(&mut fields));
        add_known(&mut fields);
        Self { level: record.level(), text: text.0, fields }
    }

    /// The form that the journal takes from stderr.
    fn plain(&self) -> String {
        format!("<{}>{}\n", priority(self.level), self.text)
    }

    /// The journal's native form: `NAME=value` lines; no value has a newline, since they are escaped.
    fn datagram(&self) -> Vec<u8> {
        let mut out = format!("MESSAGE={}\nPRIORITY={}\nSYSLOG_IDENTIFIER=ostler\n", self.text, priority(self.level));
        for (name, value) in &self.fields {
            let _ = writeln!(out, "{name}={value}");
        }
        out.into_bytes()
    }
}

const fn priority(level: Level) -> u8 {
    match level {
        Level::Error => 3,
        Level::Warn => 4,
        Level::Info => 6,
        Level::Debug | Level::Trace => 7,
    }
}

/// A line outside the journal: time, level, target, message and fields.
fn format_line(out: &mut Formatter, record: &Record<'_>) -> io::Result<()> {
    let mut text = Capped(String::new());
    let _ = write!(text.0, "{} {:<5} {}: ", out.timestamp_millis(), record.level(), record.target());
    write_message(&mut text, record, None);
    text.0.push('\n');
    out.write_all(text.0.as_bytes())
}

/// Appends the message and the fields, which are also kept apart if `fields` is given.
fn write_message(text: &mut Capped, record: &Record<'_>, fields: Option<&mut Vec<(String, String)>>) {
    // An error means that the line is full: it keeps what fits.
    let _ = write!(text, "{}", record.args());
    let _ = record.key_values().visit(&mut Fields { text, fields });
}

enum Item {
    Line(Line),
    /// Asks for a word once everything before it is written.
    Flush(Sender<()>),
}

/// The counters that loggers and the writer share.
#[derive(Default)]
struct Shared {
    dropped: AtomicU64,
    waiting: AtomicUsize,
}

/// The way to the writer. It never waits.
#[derive(Clone)]
struct Queue {
    items: Sender<Item>,
    shared: Arc<Shared>,
}

impl Queue {
    fn put(&self, line: Line) {
        let size = line.size();
        let waiting = self.shared.waiting.fetch_add(size, Ordering::Relaxed);
        if waiting + size > QUEUE_BYTES || self.items.try_send(Item::Line(line)).is_err() {
            self.shared.waiting.fetch_sub(size, Ordering::Relaxed);
            self.shared.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// `env_logger` writes each line whole, in one call.
impl Write for Queue {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.put(Line::Text(line.to_owned()));
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

struct Logger {
    lines: RwLock<Arc<env_logger::Logger>>,
    queue: Queue,
    journal: bool,
}

impl Logger {
    fn start(sink: Sink) -> io::Result<Self> {
        let (queue, items) = bounded(QUEUE_LINES);
        let shared = Arc::new(Shared::default());
        let journal = matches!(sink, Sink::Journal { .. });
        let theirs = Arc::clone(&shared);
        thread::spawn_own("log", thread::IO_STACK, move || Writer { sink, items, shared: theirs, reported: 0 }.run())?;
        let queue = Queue { items: queue, shared };
        Ok(Self { lines: RwLock::new(Arc::new(lines("off", &queue))), queue, journal })
    }

    fn set_filter(&self, filter: &str) -> Result<(), String> {
        // `env_logger` only warns of a filter that makes no sense.
        env_filter::Builder::new().try_parse(filter).map_err(|e| format!("{filter:?}: {e}"))?;
        let new = lines(filter, &self.queue);
        let level = new.filter();
        *self.lines.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(new);
        log::set_max_level(level);
        Ok(())
    }

    /// Taken out of the lock, so that nothing is formatted while it is held.
    fn lines(&self) -> Arc<env_logger::Logger> {
        Arc::clone(&self.lines.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn flush_until(&self, until: Instant) -> bool {
        let (done, wait) = bounded(1);
        self.queue.items.send_deadline(Item::Flush(done), until).is_ok() && wait.recv_deadline(until).is_ok()
    }
}

/// What filters the lines, and makes them outside the journal.
fn lines(filter: &str, queue: &Queue) -> env_logger::Logger {
    env_logger::Builder::new()
        .parse_filters(filter)
        .format(format_line)
        .write_style(WriteStyle::Never)
        .target(Target::Pipe(Box::new(queue.clone())))
        .build()
}

impl Log for Logger {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        self.lines().enabled(metadata)
    }

    fn log(&self, record: &Record<'_>) {
        let lines = self.lines();
        if !self.journal {
            lines.log(record);
        } else if lines.matches(record) {
            self.queue.put(Line::Record(JournalRecord::new(record)));
        }
    }

    fn flush(&self) {
        self.flush_until(Instant::now() + Duration::from_secs(1));
    }
}

struct Writer {
    sink: Sink,
    items: Receiver<Item>,
    shared: Arc<Shared>,
    reported: u64,
}

impl Writer {
    /// Waits for lines until the last logger is gone.
    fn run(mut self) {
        let mut last_report = Instant::now();
        while let Ok(item) = self.items.recv() {
            match item {
                Item::Line(line) => {
                    self.shared.waiting.fetch_sub(line.size(), Ordering::Relaxed);
                    if self.sink.write(&line).is_err() {
                        self.shared.dropped.fetch_add(1, Ordering::Relaxed);
                        // Telling a sink that fails how much it failed would fail too, line for line.
                        self.reported += 1;
                    }
                    if self.items.is_empty() || last_report.elapsed() > REPORT_EVERY {
                        self.report();
                        last_report = Instant::now();
                    }
                }
                Item::Flush(done) => {
                    self.report();
                    let _ = done.send(());
                }
            }
        }
    }

    fn report(&mut self) {
        let dropped = self.shared.dropped.load(Ordering::Relaxed);
        if dropped <= self.reported {
            return;
        }
        let count = dropped - self.reported;
        let text = format!("{count} log lines dropped: stderr did not take them fast enough");
        let line = match self.sink {
            Sink::Text(_) => {
                Line::Text(format!("{} WARN  ostler::log: {text}\n", clock::rfc3339(clock::now())).into_bytes())
            }
            Sink::Journal { .. } => Line::Record(JournalRecord { level: Level::Warn, text, fields: Vec::new() }),
        };
        if self.sink.write(&line).is_ok() {
            self.reported = dropped;
        }
    }
}

/// What the thread is about, and the boot, where the line does not say it itself.
fn add_known(fields: &mut Vec<(String, String)>) {
    let mut add = |name: &str, value: &str| {
        let name = field_name(name);
        if !fields.iter().any(|(known, _)| *known == name) {
            let mut text = Capped(String::new());
            let _ = text.write_str(value);
            fields.push((name, text.0));
        }
    };
    ABOUT.with_borrow(|about| about.iter().for_each(|(name, value)| add(name, value)));
    if let Some(boot) = BOOT.get() {
        add("boot_id", boot);
    }
}

/// The name of a field in the journal: capitals, digits and underscores.
fn field_name(name: &str) -> String {
    let name: String = name.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).collect();
    format!("OSTLER_{}", name.to_ascii_uppercase())
}

/// Text up to [`LINE`] bytes. Control characters are escaped, so that one record is one line, whatever somebody's
/// message says.
struct Capped(String);

impl fmt::Write for Capped {
    fn write_str(&mut self, s: &str) -> fmt::Result {
        for c in s.chars() {
            if self.0.len() + 8 > LINE {
                if !self.0.ends_with('…') {
                    self.0.push('…');
                }
                return Err(fmt::Error);
            }
            if c.is_control() && c != '\t' {
                self.0.extend(c.escape_default());
            } else {
                self.0.push(c);
            }
        }
        Ok(())
    }
}

/// Appends ` key=value` for each field, and keeps the fields apart for the journal.
struct Fields<'a> {
    text: &'a mut Capped,
    fields: Option<&'a mut Vec<(String, String)>>,
}

impl<'kvs> log::kv::VisitSource<'kvs> for Fields<'_> {
    fn visit_pair(&mut self, key: log::kv::Key<'kvs>, value: log::kv::Value<'kvs>) -> Result<(), log::kv::Error> {
        let mut text = Capped(String::new());
        let _ = write!(text, "{value}");
        let needs_quotes = |c: char| c.is_whitespace() || c == '"' || c == '=' || c == '\\';
        let _ = if text.0.is_empty() || text.0.contains(needs_quotes) {
            // The value's control characters are escaped already.
            write!(self.text, " {key}=\"{}\"", text.0.replace('"', "\\\""))
        } else {
            write!(self.text, " {key}={}", text.0)
        };
        if let Some(fields) = &mut self.fields {
            fields.push((field_name(key.as_str()), text.0));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// Takes lines into a channel, after waiting at a gate for each write.
    struct Gated {
        gate: Receiver<()>,
        out: Sender<Vec<u8>>,
    }

    impl Write for Gated {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let _ = self.gate.recv();
            let _ = self.out.send(bytes.to_vec());
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn gated() -> (Logger, Sender<()>, Receiver<Vec<u8>>) {
        let (open, gate) = bounded(0);
        let (out, lines) = crossbeam_channel::unbounded();
        let logger = Logger::start(Sink::Text(Box::new(Gated { gate, out }))).unwrap();
        *logger.lines.write().unwrap() = Arc::new(super::lines("debug,quiet=off", &logger.queue));
        (logger, open, lines)
    }

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(20)
    }

    fn say(logger: &Logger, text: &str) {
        logger.log(&Record::builder().level(Level::Info).target("t").args(format_args!("{text}")).build());
    }

    fn all(lines: &Receiver<Vec<u8>>) -> String {
        String::from_utf8(lines.try_iter().flatten().collect()).unwrap()
    }

    #[test]
    fn a_stalled_sink_stalls_nobody_and_what_was_dropped_is_counted_and_told() {
        let (logger, open, lines) = gated();
        for n in 0..QUEUE_LINES + 100 {
            say(&logger, &n.to_string());
        }
        // One line may be in the writer's hands, so one more fits than the queue is long.
        let dropped = logger.queue.shared.dropped.load(Ordering::Relaxed);
        assert!((99..=100).contains(&dropped), "{dropped}");
        assert!(!logger.flush_until(Instant::now()), "and flush does not wait past its instant");
        drop(open);
        assert!(logger.flush_until(soon()));
        let text = all(&lines);
        assert_eq!(text.lines().count(), QUEUE_LINES + 100 - usize::try_from(dropped).unwrap() + 1);
        assert!(text.contains(&format!("{dropped} log lines dropped")));
        assert_eq!(logger.queue.shared.waiting.load(Ordering::Relaxed), 0);
        assert!(logger.flush_until(soon()));
        assert_eq!(all(&lines), "", "told once");
    }

    #[test]
    fn long_lines_fill_the_queue_by_their_bytes_and_are_cut() {
        let (logger, open, lines) = gated();
        let long = "ä".repeat(LINE);
        for _ in 0..QUEUE_BYTES / LINE + 10 {
            say(&logger, &long);
        }
        let dropped = logger.queue.shared.dropped.load(Ordering::Relaxed);
        assert!((8..=10).contains(&dropped), "{dropped}");
        drop(open);
        assert!(logger.flush_until(soon()));
        for line in all(&lines).lines().filter(|l| !l.contains("dropped")) {
            assert!(line.len() <= LINE && line.ends_with("ä…"), "{}", line.len());
        }
    }

    #[test]
    fn a_record_is_one_line_with_its_fields() {
        let (logger, open, lines) = gated();
        drop(open);
        let fields: &[(&str, &str)] = &[("key", "local:a"), ("why", "a \"b\"\nc"), ("none", "")];
        logger.log(
            &Record::builder()
                .level(Level::Warn)
                .target("ostler::x")
                .args(format_args!("two\nlines\u{1b}[31m"))
                .key_values(&fields)
                .build(),
        );
        logger.log(&Record::builder().level(Level::Error).target("quiet").args(format_args!("hidden")).build());
        logger.log(&Record::builder().level(Level::Trace).target("t").args(format_args!("hidden")).build());
        assert!(logger.flush_until(soon()));
        let text = all(&lines);
        let (time, rest) = text.split_once(' ').unwrap();
        assert!(time.ends_with('Z') && time.contains('T'), "{time}");
        let want = r#"WARN  ostler::x: two\nlines\u{1b}[31m key=local:a why="a \"b\"\nc" none="""#;
        assert_eq!(rest, format!("{want}\n"));
    }

    #[test]
    fn the_journal_gets_fields_and_stderr_what_it_does_not_take() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let journal = UnixDatagram::bind(&path).unwrap();
        journal.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        let (open, gate) = bounded(0);
        drop(open);
        let (out, lines) = crossbeam_channel::unbounded();
        let socket = UnixDatagram::unbound().unwrap();
        let logger =
            Logger::start(Sink::Journal { socket, path: path.clone(), stderr: Box::new(Gated { gate, out }) }).unwrap();
        logger.set_filter("info").unwrap();
        let fields: &[(&str, &str)] = &[("session_id", "s 1")];
        let record = |text| Record::builder().level(Level::Error).target("t").key_values(&fields).args(text).build();
        logger.log(&record(format_args!("bad\nnews")));
        let mut buffer = [0; 4096];
        let n = journal.recv(&mut buffer).unwrap();
        let want = "MESSAGE=bad\\nnews session_id=\"s 1\"\nPRIORITY=3\nSYSLOG_IDENTIFIER=ostler\nOSTLER_TARGET=t\n\
             OSTLER_SESSION_ID=s 1\n";
        assert_eq!(std::str::from_utf8(&buffer[..n]).unwrap(), want);
        about("key", "local:a\n");
        about("session_id", "not this one");
        about("turn_id", "t 1");
        logger.log(&record(format_args!("more")));
        let n = journal.recv(&mut buffer).unwrap();
        let want = "MESSAGE=more session_id=\"s 1\"\nPRIORITY=3\nSYSLOG_IDENTIFIER=ostler\nOSTLER_TARGET=t\n\
             OSTLER_SESSION_ID=s 1\nOSTLER_KEY=local:a\\n\nOSTLER_TURN_ID=t 1\n";
        assert_eq!(std::str::from_utf8(&buffer[..n]).unwrap(), want, "what the thread is about is added");
        about("turn_id", "");
        about("key", "");
        std::fs::remove_file(&path).unwrap();
        logger.log(&record(format_args!("later")));
        assert!(logger.flush_until(soon()));
        assert_eq!(all(&lines), "<3>later session_id=\"s 1\"\n");
    }

    #[test]
    fn a_filter_that_makes_no_sense_changes_nothing() {
        let (logger, _open, _lines) = gated();
        logger.set_filter("warn").unwrap();
        assert!(logger.set_filter("info,ostler=loud").is_err());
        assert_eq!(logger.lines().filter(), log::LevelFilter::Warn);
    }
}
