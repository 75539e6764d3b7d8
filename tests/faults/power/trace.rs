//! What a process did to its files and told its clients, read from `strace -f -y -xx`.

use std::collections::HashMap;
use std::io::BufRead;
use std::path::{Path, PathBuf};

use serde_json::Value;

/// Every call that changes a file or a directory, that waits for the disk, or that may tell somebody something. Those that
/// an architecture does not have are marked with `?`.
pub const CALLS: &str = "trace=?open,openat,?openat2,?creat,write,pwrite64,writev,pwritev,?pwritev2,sendto,sendmsg,\
    ftruncate,truncate,fallocate,fsync,fdatasync,sync_file_range,msync,?unlink,unlinkat,?rename,?renameat,renameat2,\
    ?mkdir,mkdirat,?rmdir,?link,linkat,?symlink,symlinkat,mmap,copy_file_range,sendfile";

/// One step of the recording.
#[derive(Clone, Debug)]
pub enum Op {
    /// A directory was made.
    Mkdir(PathBuf),
    /// A file was opened that is made if it is not there; with whether it is emptied.
    Create(PathBuf, bool),
    Write(PathBuf, u64, Vec<u8>),
    /// Cut or extended to a length.
    Resize(PathBuf, u64),
    Unlink(PathBuf),
    Rename(PathBuf, PathBuf),
    /// All that was done to the file or directory before the step of that number is on the disk.
    Synced(PathBuf, usize),
    /// A client was told.
    Told(Told),
}

/// What clients are told that must hold for ever.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Told {
    /// The id of a message that was acknowledged.
    Accepted(String),
    /// A numbered event: its number, kind, key, and data.
    Event(u64, String, String, String),
}

/// The recording of one process and its threads and children, as far as it concerns `dir`.
#[derive(Default)]
pub struct Trace {
    pub ops: Vec<Op>,
    /// Where a file that is written without an offset stands.
    ends: HashMap<PathBuf, u64>,
    /// Calls that have begun: their text, and the step at which they did.
    begun: HashMap<String, (String, usize)>,
}

impl Trace {
    /// Reads one strace to its end.
    pub fn read(&mut self, dir: &Path, lines: impl BufRead) {
        self.begun.clear();
        for line in lines.split(b'\n') {
            let line = String::from_utf8(line.unwrap()).unwrap();
            self.line(dir, &line);
        }
    }

    fn line(&mut self, dir: &Path, line: &str) {
        let Some((pid, rest)) = line.split_once(' ') else { return };
        let rest = rest.trim_start();
        if let Some(begin) = rest.strip_suffix(" <unfinished ...>") {
            self.begin(dir, begin);
            self.begun.insert(pid.to_owned(), (begin.to_owned(), self.ops.len()));
        } else if let Some(resumed) = rest.strip_prefix("<... ") {
            let Some((begin, at)) = self.begun.remove(pid) else { return };
            let end = resumed.split_once(" resumed>").map_or("", |(_, end)| end);
            self.end(dir, &format!("{begin}{end}"), at);
        } else if rest.contains('(') {
            self.begin(dir, rest);
            self.end(dir, rest, self.ops.len());
        }
    }

    /// What counts from the instant at which the call began: whatever it changes may reach the disk, whatever it says may
    /// be heard.
    fn begin(&mut self, dir: &Path, text: &str) {
        let Some(call) = Call::parse(text) else { return };
        let ours = |path: Option<PathBuf>| path.filter(|p| p.starts_with(dir));
        match call.name {
            "open" | "openat" | "openat2" | "creat" => {
                if (call.name == "creat" || text.contains("O_CREAT"))
                    && let Some(path) = ours(call.path_at(usize::from(call.name == "openat" || call.name == "openat2")))
                {
                    let empties = call.name == "creat" || text.contains("O_TRUNC");
                    self.ends.insert(path.clone(), 0);
                    self.ops.push(Op::Create(path, empties));
                }
            }
            "mkdir" | "mkdirat" => {
                if let Some(path) = ours(call.path_at(usize::from(call.name == "mkdirat"))) {
                    self.ops.push(Op::Mkdir(path));
                }
            }
            "unlink" | "unlinkat" | "rmdir" => {
                if let Some(path) = ours(call.path_at(usize::from(call.name == "unlinkat"))) {
                    self.ops.push(Op::Unlink(path));
                }
            }
            "rename" | "renameat" | "renameat2" => {
                let (from, to) = if call.name == "rename" { (0, 1) } else { (1, 3) };
                if let (Some(from), Some(to)) = (ours(call.path_at(from)), ours(call.path_at(to))) {
                    self.ops.push(Op::Rename(from, to));
                }
            }
            "ftruncate" => {
                if let Some(path) = ours(call.fd()) {
                    self.ops.push(Op::Resize(path, call.number(1)));
                }
            }
            "write" | "pwrite64" | "sendto" => {
                let data = call.bytes(1);
                match ours(call.fd()) {
                    Some(path) => {
                        let at = if call.name == "pwrite64" {
                            call.number(3)
                        } else {
                            let end = self.ends.entry(path.clone()).or_default();
                            let at = *end;
                            *end += data.len() as u64;
                            at
                        };
                        self.ops.push(Op::Write(path, at, data));
                    }
                    None => self.told(&data),
                }
            }
            // The pieces, joined: all that is in hexadecimal after the descriptor.
            "writev" | "sendmsg" if ours(call.fd()).is_none() => {
                self.told(&unhex(text.split_once(", ").map_or("", |(_, pieces)| pieces)));
            }
            // Only the index of the log, which a boot makes anew, may be written past the calls that are recorded.
            "mmap" => {
                let shared = text.contains("PROT_WRITE") && text.contains("MAP_SHARED");
                if let Some(path) = ours(call.path_of(4)).filter(|_| shared) {
                    assert!(path.to_string_lossy().ends_with("-shm"), "written by a mapping: {text}");
                }
            }
            "fsync" | "fdatasync" => {}
            _ => {
                let path = (0..call.args.len()).find_map(|n| ours(call.path_of(n)).or_else(|| ours(call.path_at(n))));
                assert!(path.is_none(), "a call that the recording does not understand: {}", call.name);
            }
        }
    }

    /// What counts only once the call has returned.
    fn end(&mut self, dir: &Path, text: &str, began: usize) {
        let Some(call) = Call::parse(text) else { return };
        if matches!(call.name, "fsync" | "fdatasync")
            && text.ends_with("= 0")
            && let Some(path) = call.fd().filter(|p| p.starts_with(dir))
        {
            self.ops.push(Op::Synced(path, began));
        }
    }

    /// The answers and events in what is written to a client.
    fn told(&mut self, data: &[u8]) {
        let text = String::from_utf8_lossy(data);
        if let Some(body) = text.strip_prefix("HTTP/1.1 202").and_then(|t| t.split_once("\r\n\r\n"))
            && let Ok(body) = serde_json::from_str::<Value>(body.1)
            && let Some(id) = body["message_id"].as_str()
        {
            self.ops.push(Op::Told(Told::Accepted(id.to_owned())));
        }
        let (mut kind, mut id) = ("", None);
        for line in text.lines() {
            if let Some(k) = line.strip_prefix("event: ").or_else(|| line.strip_prefix("event:")) {
                kind = k;
            } else if let Some(n) = line.strip_prefix("id:") {
                id = n.trim().parse::<u64>().ok();
            } else if let Some(data) = line.strip_prefix("data:") {
                let Ok(data) = serde_json::from_str::<Value>(data) else { continue };
                if kind == "accepted" {
                    let id = data["message_id"].as_str().unwrap().to_owned();
                    self.ops.push(Op::Told(Told::Accepted(id)));
                } else if let (Some(seq), Some(key)) = (id, data["key"].as_str()) {
                    let event = Told::Event(seq, kind.to_owned(), key.to_owned(), data.to_string());
                    self.ops.push(Op::Told(event));
                }
            } else if line.is_empty() {
                (kind, id) = ("", None);
            }
        }
    }
}

/// A call as strace writes it.
struct Call<'a> {
    name: &'a str,
    args: Vec<&'a str>,
}

impl<'a> Call<'a> {
    fn parse(text: &'a str) -> Option<Self> {
        let (name, rest) = text.split_once('(')?;
        if !name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_') {
            return None;
        }
        // Strings and paths are all in hexadecimal, so a comma is one between arguments, or in a structure that is not asked for.
        let rest = rest.rsplit_once(") ").map_or(rest, |(args, _)| args);
        Some(Self { name, args: rest.split(", ").collect() })
    }

    /// The path of a descriptor: `7<\x2f…>`.
    fn path_of(&self, n: usize) -> Option<PathBuf> {
        let (_, path) = self.args.get(n)?.split_once('<')?;
        let path = String::from_utf8(unhex(path)).ok()?;
        path.starts_with('/').then(|| PathBuf::from(path.trim_end_matches(" (deleted)")))
    }

    fn fd(&self) -> Option<PathBuf> {
        self.path_of(0)
    }

    /// The path in a string, absolute or below the descriptor before it.
    fn path_at(&self, n: usize) -> Option<PathBuf> {
        let text = self.args.get(n)?.strip_prefix('"')?;
        let path = PathBuf::from(String::from_utf8(unhex(text)).ok()?);
        if path.is_absolute() {
            Some(path)
        } else {
            n.checked_sub(1).and_then(|n| self.path_of(n)).map(|d| d.join(path))
        }
    }

    fn number(&self, n: usize) -> u64 {
        self.args.get(n).and_then(|a| a.trim_end_matches(')').parse().ok()).unwrap_or_else(|| panic!("{}", self.name))
    }

    fn bytes(&self, n: usize) -> Vec<u8> {
        self.args.get(n).map(|a| unhex(a)).unwrap_or_default()
    }
}

/// The bytes of every `\xNN` in a text.
fn unhex(text: &str) -> Vec<u8> {
    let digit = |b: u8| char::from(b).to_digit(16).and_then(|d| u8::try_from(d).ok());
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len() / 4);
    let mut n = 0;
    while n + 3 < bytes.len() {
        match (&bytes[n..n + 2], digit(bytes[n + 2]), digit(bytes[n + 3])) {
            (br"\x", Some(high), Some(low)) => {
                out.push(high << 4 | low);
                n += 4;
            }
            _ => n += 1,
        }
    }
    out
}
