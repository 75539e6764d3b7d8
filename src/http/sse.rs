//! The text of server-sent events, written for clients.
//!
//! It must not know sockets nor what the events mean.

/// Appends an event. Line breaks in `data` become lines of it; in `event` they are left out, because the form has no
/// way to write them.
pub fn event(buf: &mut Vec<u8>, event: Option<&str>, id: Option<i64>, data: &str) {
    if let Some(event) = event {
        buf.extend_from_slice(b"event: ");
        buf.extend(event.bytes().filter(|b| !matches!(b, b'\r' | b'\n')));
        buf.push(b'\n');
    }
    if let Some(id) = id {
        buf.extend_from_slice(format!("id: {id}\n").as_bytes());
    }
    let mut rest = data;
    loop {
        let end = rest.find(['\r', '\n']);
        buf.extend_from_slice(b"data: ");
        buf.extend_from_slice(&rest.as_bytes()[..end.unwrap_or(rest.len())]);
        buf.push(b'\n');
        let Some(end) = end else { break };
        let width = if rest[end..].starts_with("\r\n") { 2 } else { 1 };
        rest = &rest[end + width..];
    }
    buf.push(b'\n');
}

/// Appends a comment without meaning: it keeps the connection alive, and finds out whether it still is.
pub fn ping(buf: &mut Vec<u8>) {
    buf.extend_from_slice(b": ping\n\n");
}
