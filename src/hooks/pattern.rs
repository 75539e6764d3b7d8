//! Lua's patterns (`string.find` and its kin), rewritten so that they can be stopped.
//!
//! Lua's own matcher is C code that backtracks without end on a hostile pattern and sees no hook. This is the same
//! algorithm, `lstrlib.c` of Lua 5.4 step by step, over slices, with a look at the deadline every few thousand steps.
//! It must not know Lua values: bytes in, positions out.

/// What Lua allows: captures in a pattern.
const MAX_CAPTURES: usize = 32;
/// What Lua allows: nesting of the matcher.
const MAX_DEPTH: usize = 200;
/// Steps between two looks at the deadline.
const STRIDE: u32 = 4096;

/// A capture, as positions in the subject.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Capture {
    /// `()`: a place, from 0.
    Position(usize),
    /// A stretch: from, to.
    Span(usize, usize),
    /// Its `)` is missing: an error only where this capture is used.
    Unfinished,
}

#[derive(Clone, Copy)]
enum Slot {
    Open(usize),
    Closed(usize, usize),
    Position(usize),
}

/// A match: where it begins and ends, and its captures (without the whole match).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Match {
    /// The first byte.
    pub start: usize,
    /// The byte after the last.
    pub end: usize,
    /// In order.
    pub captures: Vec<Capture>,
}

impl Match {
    /// The captures, or the whole match where the pattern has none.
    #[must_use]
    pub fn values(&self) -> Vec<Capture> {
        if self.captures.is_empty() { vec![Capture::Span(self.start, self.end)] } else { self.captures.clone() }
    }
}

/// A pattern, a subject, and the question whether time is up.
pub struct Matcher<'a> {
    subject: &'a [u8],
    pattern: &'a [u8],
    past: &'a dyn Fn() -> bool,
    steps: u32,
    depth: usize,
    captures: Vec<Slot>,
}

type Found = Result<Option<usize>, String>;

impl<'a> Matcher<'a> {
    /// Matches `pattern`, without its anchor, in `subject` until `past` says that time is up.
    pub fn new(subject: &'a [u8], pattern: &'a [u8], past: &'a dyn Fn() -> bool) -> Self {
        Self { subject, pattern, past, steps: 0, depth: 0, captures: Vec::new() }
    }

    /// The first match at or after `from` that does not end at `not_at` (the end of the previous match).
    ///
    /// # Errors
    /// The pattern is malformed or too complex, or time is up.
    pub fn next(&mut self, from: usize, anchored: bool, not_at: Option<usize>) -> Result<Option<Match>, String> {
        for start in from..=self.subject.len() {
            self.step()?;
            self.depth = 0;
            self.captures.clear();
            if let Some(end) = self.run(start, 0)?
                && Some(end) != not_at
            {
                return Ok(Some(self.found(start, end)));
            }
            if anchored {
                break;
            }
        }
        Ok(None)
    }

    fn found(&self, start: usize, end: usize) -> Match {
        let capture = |slot: &Slot| match *slot {
            Slot::Open(_) => Capture::Unfinished,
            Slot::Closed(a, b) => Capture::Span(a, b),
            Slot::Position(a) => Capture::Position(a),
        };
        Match { start, end, captures: self.captures.iter().map(capture).collect() }
    }

    fn step(&mut self) -> Result<(), String> {
        self.steps += 1;
        if self.steps >= STRIDE {
            self.steps = 0;
            if (self.past)() {
                return Err("timeout".to_owned());
            }
        }
        Ok(())
    }

    fn at(&self, p: usize) -> u8 {
        self.pattern.get(p).copied().unwrap_or(0)
    }

    fn run(&mut self, s: usize, p: usize) -> Found {
        if self.depth >= MAX_DEPTH {
            return Err("pattern too complex".to_owned());
        }
        self.depth += 1;
        let found = self.matches(s, p);
        self.depth -= 1;
        found
    }

    fn matches(&mut self, mut s: usize, mut p: usize) -> Found {
        while p < self.pattern.len() {
            self.step()?;
            match self.at(p) {
                b'(' if self.at(p + 1) == b')' => return self.open(Slot::Position(s), s, p + 2),
                b'(' => return self.open(Slot::Open(s), s, p + 1),
                b')' => return self.close(s, p + 1),
                b'$' if p + 1 == self.pattern.len() => return Ok((s == self.subject.len()).then_some(s)),
                b'%' if self.at(p + 1) == b'b' => {
                    let Some(after) = self.balance(s, p + 2)? else { return Ok(None) };
                    (s, p) = (after, p + 4);
                    continue;
                }
                b'%' if self.at(p + 1) == b'f' => {
                    let Some(after) = self.frontier(s, p + 2)? else { return Ok(None) };
                    p = after;
                    continue;
                }
                b'%' if self.at(p + 1).is_ascii_digit() => {
                    let Some(after) = self.back_reference(s, self.at(p + 1))? else { return Ok(None) };
                    (s, p) = (after, p + 2);
                    continue;
                }
                _ => {}
            }
            let end = self.class_end(p)?;
            let suffix = self.at(end);
            if !self.single(s, p, end) {
                if matches!(suffix, b'*' | b'?' | b'-') {
                    p = end + 1;
                    continue;
                }
                return Ok(None);
            }
            match suffix {
                b'?' => {
                    if let Some(found) = self.run(s + 1, end + 1)? {
                        return Ok(Some(found));
                    }
                    p = end + 1;
                }
                b'+' => return self.most(s + 1, p, end),
                b'*' => return self.most(s, p, end),
                b'-' => return self.least(s, p, end),
                _ => (s, p) = (s + 1, end),
            }
        }
        Ok(Some(s))
    }

    fn most(&mut self, s: usize, p: usize, end: usize) -> Found {
        let mut to = s;
        while self.single(to, p, end) {
            self.step()?;
            to += 1;
        }
        loop {
            self.step()?;
            if let Some(found) = self.run(to, end + 1)? {
                return Ok(Some(found));
            }
            if to == s {
                return Ok(None);
            }
            to -= 1;
        }
    }

    fn least(&mut self, mut s: usize, p: usize, end: usize) -> Found {
        loop {
            self.step()?;
            if let Some(found) = self.run(s, end + 1)? {
                return Ok(Some(found));
            }
            if !self.single(s, p, end) {
                return Ok(None);
            }
            s += 1;
        }
    }

    fn open(&mut self, slot: Slot, s: usize, p: usize) -> Found {
        if self.captures.len() >= MAX_CAPTURES {
            return Err("too many captures".to_owned());
        }
        self.captures.push(slot);
        let level = self.captures.len();
        let found = self.run(s, p)?;
        if found.is_none() {
            self.captures.truncate(level - 1);
        }
        Ok(found)
    }

    fn close(&mut self, s: usize, p: usize) -> Found {
        let open = self.captures.iter().rposition(|c| matches!(c, Slot::Open(_)));
        let Some(level) = open else { return Err("invalid pattern capture".to_owned()) };
        let Slot::Open(from) = self.captures[level] else { return Err("invalid pattern capture".to_owned()) };
        self.captures[level] = Slot::Closed(from, s);
        let found = self.run(s, p)?;
        if found.is_none() {
            self.captures[level] = Slot::Open(from);
        }
        Ok(found)
    }

    fn back_reference(&mut self, s: usize, digit: u8) -> Found {
        let index = i32::from(digit) - i32::from(b'1');
        let slot = usize::try_from(index).ok().and_then(|i| self.captures.get(i)).copied();
        match slot {
            Some(Slot::Closed(a, b)) => {
                let text = &self.subject[a..b];
                self.steps = self.steps.saturating_add(u32::try_from(text.len() / 64).unwrap_or(STRIDE));
                self.step()?;
                Ok(self.subject[s..].starts_with(text).then_some(s + text.len()))
            }
            // As in Lua: a position capture never matches again.
            Some(Slot::Position(_)) => Ok(None),
            Some(Slot::Open(_)) | None => Err(format!("invalid capture index %{}", index + 1)),
        }
    }

    fn balance(&mut self, s: usize, p: usize) -> Found {
        if p + 1 >= self.pattern.len() {
            return Err("malformed pattern (missing arguments to '%b')".to_owned());
        }
        let (open, close) = (self.at(p), self.at(p + 1));
        if self.subject.get(s) != Some(&open) {
            return Ok(None);
        }
        let mut depth = 1_usize;
        for at in s + 1..self.subject.len() {
            self.step()?;
            let c = self.subject[at];
            if c == close {
                depth -= 1;
                if depth == 0 {
                    return Ok(Some(at + 1));
                }
            } else if c == open {
                depth += 1;
            }
        }
        Ok(None)
    }

    fn frontier(&mut self, s: usize, p: usize) -> Found {
        if self.at(p) != b'[' {
            return Err("missing '[' after '%f' in pattern".to_owned());
        }
        let end = self.class_end(p)?;
        let before = if s == 0 { 0 } else { self.subject[s - 1] };
        let here = self.subject.get(s).copied().unwrap_or(0);
        Ok((!self.set(before, p, end - 1) && self.set(here, p, end - 1)).then_some(end))
    }

    fn class_end(&self, p: usize) -> Result<usize, String> {
        let mut next = p + 1;
        match self.at(p) {
            b'%' if next >= self.pattern.len() => Err("malformed pattern (ends with '%')".to_owned()),
            b'%' => Ok(next + 1),
            b'[' => {
                if self.at(next) == b'^' {
                    next += 1;
                }
                loop {
                    if next >= self.pattern.len() {
                        return Err("malformed pattern (missing ']')".to_owned());
                    }
                    let c = self.at(next);
                    next += 1;
                    if c == b'%' && next < self.pattern.len() {
                        next += 1;
                    }
                    if self.at(next) == b']' && next < self.pattern.len() {
                        return Ok(next + 1);
                    }
                }
            }
            _ => Ok(next),
        }
    }

    fn single(&self, s: usize, p: usize, end: usize) -> bool {
        let Some(&c) = self.subject.get(s) else { return false };
        match self.at(p) {
            b'.' => true,
            b'%' => class(c, self.at(p + 1)),
            b'[' => self.set(c, p, end - 1),
            literal => literal == c,
        }
    }

    /// Whether `c` is in the set that begins at `p` and whose `]` is at `end`.
    fn set(&self, c: u8, mut p: usize, end: usize) -> bool {
        let mut inside = true;
        if self.at(p + 1) == b'^' {
            inside = false;
            p += 1;
        }
        p += 1;
        while p < end {
            if self.at(p) == b'%' {
                p += 1;
                if class(c, self.at(p)) {
                    return inside;
                }
            } else if self.at(p + 1) == b'-' && p + 2 < end {
                if (self.at(p)..=self.at(p + 2)).contains(&c) {
                    return inside;
                }
                p += 2;
            } else if self.at(p) == c {
                return inside;
            }
            p += 1;
        }
        !inside
    }
}

/// Whether `c` is of the class that the letter names; any other byte names itself.
fn class(c: u8, letter: u8) -> bool {
    let is = match letter.to_ascii_lowercase() {
        b'a' => c.is_ascii_alphabetic(),
        b'c' => c.is_ascii_control(),
        b'd' => c.is_ascii_digit(),
        b'g' => c.is_ascii_graphic(),
        b'l' => c.is_ascii_lowercase(),
        b'p' => c.is_ascii_punctuation(),
        b's' => c.is_ascii_whitespace() || c == 0x0b,
        b'u' => c.is_ascii_uppercase(),
        b'w' => c.is_ascii_alphanumeric(),
        b'x' => c.is_ascii_hexdigit(),
        b'z' => c == 0,
        _ => return letter == c,
    };
    is == letter.is_ascii_lowercase()
}

/// Whether a pattern has no special characters, so that plain search will do.
#[must_use]
pub fn is_plain(pattern: &[u8]) -> bool {
    !pattern.iter().any(|c| b"^$*+?.([%-".contains(c))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use mlua::{Function, Lua, MultiValue, Table, Value};
    use proptest::prelude::*;

    use super::*;
    use crate::config;
    use crate::hooks::sandbox::{Allowed, Sandbox};

    fn sandboxed() -> (Sandbox, Table) {
        let hooks = config::Hooks {
            dir: None,
            threads: 1,
            timeout: std::time::Duration::from_secs(5),
            memory: 64 << 20,
            allow_exec: false,
            allow_http: false,
            allow_fs: false,
            fs_roots: Vec::new(),
            attempts: 1,
            config: serde_json::Value::Null,
        };
        let sandbox = Sandbox::new(&hooks, Allowed::default(), "").unwrap();
        let (env, _) = sandbox.globals().make(sandbox.lua()).unwrap();
        (sandbox, env)
    }

    /// What a function of `string` answers, in a form that can be compared; an error without its place.
    fn call(string: &Table, name: &str, args: &[Value]) -> String {
        let f: Function = string.get(name).unwrap();
        let show = |v: &Value| match v {
            Value::String(s) => format!("{:?}", s.as_bytes().to_vec()),
            other => format!("{other:?}"),
        };
        let args = MultiValue::from_iter(args.iter().cloned());
        match f.call::<MultiValue>(args) {
            Ok(values) if name == "gmatch" => {
                let next = values.front().unwrap().as_function().unwrap().clone();
                let mut all = Vec::new();
                for _ in 0..100 {
                    match next.call::<MultiValue>(()) {
                        Ok(values) if values.front().is_none_or(Value::is_nil) => break,
                        Ok(values) => all.push(values.iter().map(show).collect::<Vec<_>>().join(",")),
                        // What Lua does after that is undefined.
                        Err(_) => {
                            all.push("error".to_owned());
                            break;
                        }
                    }
                }
                all.join(";")
            }
            Ok(values) => values.iter().map(show).collect::<Vec<_>>().join(","),
            Err(_) => "error".to_owned(),
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 4000, failure_persistence: None, ..ProptestConfig::default() })]

        /// The matcher answers what Lua's own answers, malformed patterns included.
        #[test]
        fn it_is_luas_own_matcher(
            subject in "[ab(). 1\u{0}]{0,12}",
            pattern in r"(\^)?([ab.1()\[\]\^$*+?-]|%[abdswxfb()1-3%.]|\[[ab]-?[1%s]?\]|\(\)|\(.\)|.[*+?-]|%f\[%w\]|%b\(\)|\u{0}){0,6}(\$)?",
            by in r"([xy]|%[0-9%x]){0,4}",
            init in -4_i64..8,
        ) {
            let (sandbox, env) = sandboxed();
            let ours = sandbox.lua();
            let theirs = Lua::new();
            let strings: Table = env.get("string").unwrap();
            let reference: Table = theirs.globals().get("string").unwrap();
            for name in ["find", "match", "gmatch", "gsub"] {
                let make = |lua: &Lua| -> Vec<Value> {
                    let text = |s: &str| Value::String(lua.create_string(s).unwrap());
                    let mut args = vec![text(&subject), text(&pattern)];
                    args.push(if name == "gsub" { text(&by) } else { Value::Integer(init) });
                    args
                };
                let (a, b) = (call(&strings, name, &make(ours)), call(&reference, name, &make(&theirs)));
                prop_assert_eq!(a, b, "{}({:?}, {:?}, {:?}, {})", name, subject, pattern, by, init);
            }
        }
    }

    #[test]
    fn it_stops_when_time_is_up() {
        let past = || true;
        let subject = vec![b'a'; 100_000];
        let found = Matcher::new(&subject, b".-.-.-.-.-b", &past).next(0, false, None);
        assert_eq!(found, Err("timeout".to_owned()));
    }
}
