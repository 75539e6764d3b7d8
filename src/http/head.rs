//! The head of a request: where it ends, what it says, and what is refused.
//!
//! `httparse` splits the lines. Everything that decides where the message ends is judged here, by the strictest reading
//! of RFC 9112: a message with two readings can smuggle a request past a proxy. This file must not read sockets.

use super::Refusal;

/// A request's line and header fields.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Head {
    /// The method, as sent (methods are case-sensitive).
    pub method: String,
    /// The path, still percent-encoded, without the query. It begins with `/`, or is `*` for `OPTIONS *`.
    pub path: String,
    /// What stands after the first `?`, still percent-encoded.
    pub query: Option<String>,
    /// The header fields in their order, names in lower case. A value that is not UTF-8 is read as Latin-1.
    pub headers: Vec<(String, String)>,
    /// 1 for HTTP/1.1, 0 for HTTP/1.0.
    pub minor: u8,
}

impl Head {
    /// The value of the first header field of that name, in any case of letters.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, v)| v.as_str())
    }

    /// The values of all header fields of that name, in their order.
    pub fn header_all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.headers.iter().filter(move |(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, v)| v.as_str())
    }
}

/// How the body is delimited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum BodyKind {
    /// So many bytes; 0 for a request that says nothing. A number beyond the type becomes the type's greatest.
    Length(u64),
    Chunked,
}

/// What a head says about the message around it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Framing {
    pub(super) body: BodyKind,
    /// The client will send another request on this connection.
    pub(super) keep_alive: bool,
    /// The client waits for `100 Continue` before it sends the body.
    pub(super) expects_continue: bool,
}

/// Looks for the end of a head as its bytes come in, and refuses at the first byte that no head can hold. It remembers
/// how far it looked, so that a head that comes byte by byte costs no more than one that comes at once.
#[derive(Debug, Default)]
pub(super) struct Scan {
    at: usize,
    line: usize,
}

impl Scan {
    /// The length of the head at the start of `buf`, when it is there in full. `buf` is what was given the last time
    /// and more.
    pub(super) fn end(&mut self, buf: &[u8]) -> Result<Option<usize>, Refusal> {
        while let Some(&byte) = buf.get(self.at) {
            let after_cr = self.at > self.line && buf[self.at - 1] == b'\r';
            match byte {
                b'\n' if !after_cr => return Err(Refusal::bad("head: a line feed without a carriage return")),
                b'\n' => {
                    let empty = self.at == self.line + 1;
                    self.at += 1;
                    self.line = self.at;
                    if empty {
                        return Ok(Some(self.at));
                    }
                    continue;
                }
                _ if after_cr => return Err(Refusal::bad("head: a carriage return without a line feed")),
                b'\r' | b'\t' => {}
                0..=0x1f | 0x7f => return Err(Refusal::bad("head: a control character")),
                _ => {}
            }
            self.at += 1;
        }
        Ok(None)
    }
}

/// Reads a head, from its first byte to the end of its empty line.
pub(super) fn parse(bytes: &[u8], max_headers: usize) -> Result<(Head, Framing), Refusal> {
    let mut fields = vec![httparse::EMPTY_HEADER; max_headers];
    let mut request = httparse::Request::new(&mut fields);
    match request.parse(bytes) {
        Ok(httparse::Status::Complete(n)) if n == bytes.len() => {}
        // The two parsers disagree on where the head ends: refuse it.
        Ok(_) => return Err(Refusal::bad("head: malformed")),
        Err(e) => return Err(refuse_syntax(e, bytes)),
    }
    let (Some(method), Some(target), Some(minor)) = (request.method, request.path, request.version) else {
        return Err(Refusal::bad("head: malformed"));
    };
    let mut headers = Vec::with_capacity(request.headers.len());
    for field in request.headers.iter() {
        headers.push((field.name.to_ascii_lowercase(), text(field.value).trim_matches([' ', '\t']).to_owned()));
    }
    let (authority, path, query) = split_target(method, target)?;
    check_host(&mut headers, authority, minor)?;
    let head =
        Head { method: method.to_owned(), path: path.to_owned(), query: query.map(str::to_owned), headers, minor };
    let framing = frame(&head)?;
    Ok((head, framing))
}

fn text(value: &[u8]) -> String {
    match std::str::from_utf8(value) {
        Ok(s) => s.to_owned(),
        Err(_) => value.iter().map(|&b| char::from(b)).collect(),
    }
}

fn refuse_syntax(e: httparse::Error, bytes: &[u8]) -> Refusal {
    match e {
        httparse::Error::TooManyHeaders => Refusal::new(431, "head: too many header fields"),
        httparse::Error::Version if names_other_version(bytes) => {
            Refusal::new(505, "head: only HTTP/1.1 and HTTP/1.0 are supported")
        }
        e => Refusal::bad(format!("head: {e}")),
    }
}

/// Whether the request line is well-formed except for its version.
fn names_other_version(bytes: &[u8]) -> bool {
    let line = bytes.split(|&b| b == b'\r').next().unwrap_or_default();
    let words: Vec<&[u8]> = line.split(|&b| b == b' ').collect();
    let [_, _, [b'H', b'T', b'T', b'P', b'/', major, b'.', minor]] = words[..] else { return false };
    major.is_ascii_digit() && minor.is_ascii_digit()
}

/// Splits a request target into authority (of an absolute one), path and query.
fn split_target<'a>(method: &str, target: &'a str) -> Result<(Option<&'a str>, &'a str, Option<&'a str>), Refusal> {
    if method == "CONNECT" {
        return Err(Refusal::new(501, "CONNECT: this server is not a proxy"));
    }
    if !target.is_ascii() || target.contains('#') {
        return Err(Refusal::bad("request target: not a valid URI"));
    }
    if target == "*" && method == "OPTIONS" {
        return Ok((None, target, None));
    }
    let (authority, rest) = if target.starts_with('/') {
        (None, target)
    } else {
        let Some(rest) = strip_scheme(target) else {
            return Err(Refusal::bad("request target: neither a path nor an http URI"));
        };
        let end = rest.find(['/', '?']).unwrap_or(rest.len());
        (Some(&rest[..end]), &rest[end..])
    };
    let (path, query) = match rest.split_once('?') {
        Some((path, query)) => (path, Some(query)),
        None => (rest, None),
    };
    Ok((authority, if path.is_empty() { "/" } else { path }, query))
}

fn strip_scheme(target: &str) -> Option<&str> {
    let (scheme, rest) = target.split_once("://")?;
    (scheme.eq_ignore_ascii_case("http") || scheme.eq_ignore_ascii_case("https")).then_some(rest)
}

/// Exactly one Host on 1.1, at most one on 1.0; an absolute target's authority replaces it (RFC 9112, 3.2.2), so that
/// whoever judges by Host judges what was asked for.
fn check_host(headers: &mut Vec<(String, String)>, authority: Option<&str>, minor: u8) -> Result<(), Refusal> {
    let count = headers.iter().filter(|(n, _)| n == "host").count();
    if count > 1 || (count == 0 && minor >= 1) {
        return Err(Refusal::bad("Host: exactly one is needed"));
    }
    if let Some(authority) = authority {
        if authority.is_empty() {
            return Err(Refusal::bad("request target: no authority"));
        }
        match headers.iter_mut().find(|(n, _)| n == "host") {
            Some((_, v)) => authority.clone_into(v),
            None => headers.push(("host".to_owned(), authority.to_owned())),
        }
    }
    let valid = |b: u8| b.is_ascii_alphanumeric() || b"-._~!$&'()*+;=:[]%".contains(&b);
    match headers.iter().find(|(n, _)| n == "host") {
        Some((_, v)) if !v.bytes().all(valid) => Err(Refusal::bad("Host: not a valid host")),
        _ => Ok(()),
    }
}

fn frame(head: &Head) -> Result<Framing, Refusal> {
    let chunked = chunked(head)?;
    let length = content_length(head)?;
    if chunked && length.is_some() {
        return Err(Refusal::bad("Content-Length and Transfer-Encoding exclude each other"));
    }
    let body = if chunked { BodyKind::Chunked } else { BodyKind::Length(length.unwrap_or(0)) };
    let says = |token: &str| list(head, "connection").any(|t| t.eq_ignore_ascii_case(token));
    let keep_alive = !says("close") && (head.minor >= 1 || says("keep-alive"));
    Ok(Framing { body, keep_alive, expects_continue: expects_continue(head, body)? })
}

/// The members of a comma list that may be spread over several fields.
fn list<'a>(head: &'a Head, name: &'a str) -> impl Iterator<Item = &'a str> {
    head.header_all(name).flat_map(|v| v.split(',')).map(|t| t.trim_matches([' ', '\t']))
}

/// Whether the body is chunked. Any coding but exactly `chunked` is refused: 501 if it might be served by somebody
/// else, 400 if nobody could tell where it ends.
fn chunked(head: &Head) -> Result<bool, Refusal> {
    let codings: Vec<&str> = list(head, "transfer-encoding").collect();
    let is_chunked = |t: &&str| t.eq_ignore_ascii_case("chunked");
    match codings.as_slice() {
        [] => Ok(false),
        _ if head.minor == 0 => Err(Refusal::bad("Transfer-Encoding: not part of HTTP/1.0")),
        [only] if is_chunked(only) => Ok(true),
        [first @ .., last] if is_chunked(last) && !first.iter().any(|t| is_chunked(t) || t.is_empty()) => {
            Err(Refusal::new(501, "Transfer-Encoding: only chunked is understood"))
        }
        _ => Err(Refusal::bad("Transfer-Encoding: chunked must be the last coding, and the only one")),
    }
}

/// The length that all Content-Length values agree on.
fn content_length(head: &Head) -> Result<Option<u64>, Refusal> {
    let mut agreed = None;
    for value in list(head, "content-length") {
        if value.is_empty() || !value.bytes().all(|b| b.is_ascii_digit()) {
            return Err(Refusal::bad("Content-Length: not a number"));
        }
        // Only digits are left: a failure means that the number is too great, and above every limit.
        let length = value.parse().unwrap_or(u64::MAX);
        if agreed.is_some_and(|other| other != length) {
            return Err(Refusal::bad("Content-Length: given twice, differently"));
        }
        agreed = Some(length);
    }
    Ok(agreed)
}

fn expects_continue(head: &Head, body: BodyKind) -> Result<bool, Refusal> {
    let mut expected = false;
    for value in list(head, "expect") {
        if !value.eq_ignore_ascii_case("100-continue") {
            return Err(Refusal::new(417, "Expect: only 100-continue is understood"));
        }
        expected = true;
    }
    // HTTP/1.0 has no interim answers.
    Ok(expected && head.minor >= 1 && body != BodyKind::Length(0))
}
