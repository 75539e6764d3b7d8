//! The loop of one connection: a head, a look, a body, an answer, and again.
//!
//! It owns the connection's input and decides how the connection ends. Of the server it must know only whether it
//! drains.
//!
//! What wakes each blocking call: reads end by bytes, by their deadline, or by the server's `shutdown` of the socket;
//! writes by room, by the write timeout, or by the same. The handler's own waits are the handler's.

use std::io;
use std::net::Shutdown;
use std::os::fd::AsFd as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use super::head::{self, BodyKind, Framing, Head, Scan};
use super::input::{Input, Trouble};
use super::respond::{self, Exchange, Sent};
use super::shared::{Conn, Shared};
use super::socket::after;
use super::{Refusal, Request, body};

/// How a connection goes on after a request.
enum Next {
    Request,
    /// An orderly end; `unread` if the client may still be sending.
    Close {
        unread: bool,
    },
    /// Nothing more can be said.
    Cut,
}

/// Serves a connection to its end.
pub(super) fn serve(shared: &Arc<Shared>, conn: &Arc<Conn>) {
    shared.handler.meet(&conn.peer, conn.socket.as_fd());
    let out = Exchange::new(Arc::clone(shared), Arc::clone(conn));
    let mut it = Serving { shared, conn, input: Input::new(&conn.socket), out };
    let mut first = true;
    loop {
        shared.now_idle(conn);
        let next = match it.next_head(first) {
            Ok(Some((head, framing))) => {
                conn.now_busy();
                it.answer(head, framing)
            }
            Ok(None) => Next::Close { unread: false },
            Err(trouble) => {
                it.out.begin_unread();
                conn.now_busy();
                it.fail(trouble)
            }
        };
        match next {
            Next::Request => first = false,
            Next::Close { unread } => {
                // The answer is complete: a drain need not wait for a client that does not hang up.
                shared.now_idle(conn);
                // A pipelined request after the last is unread too.
                let unread = unread || !it.input.bytes().is_empty();
                return conn.socket.close_in_order(unread, shared.limits.linger);
            }
            Next::Cut => return conn.socket.shutdown(Shutdown::Both),
        }
    }
}

/// A connection and what its loop works with.
struct Serving<'a> {
    shared: &'a Arc<Shared>,
    conn: &'a Arc<Conn>,
    input: Input<'a>,
    out: Exchange,
}

impl Serving<'_> {
    /// The next head; `None` when the client is done, or was silent for too long.
    fn next_head(&mut self, first: bool) -> Result<Option<(Head, Framing)>, Trouble> {
        let (limits, input) = (&self.shared.limits, &mut self.input);
        let mut deadline = after(limits.head_timeout);
        if input.bytes().is_empty() {
            let wait = if first { deadline } else { after(limits.idle_timeout) };
            match input.fill(wait) {
                Ok(0) => return Ok(None),
                Ok(_) => {}
                Err(e) if e.kind() == io::ErrorKind::TimedOut => return Ok(None),
                Err(e) => return Err(Trouble::Broken(e)),
            }
            if !first {
                deadline = after(limits.head_timeout);
            }
        }
        let mut scan = Scan::default();
        loop {
            input.skip_empty_lines();
            // A lone carriage return may yet become an empty line.
            if !matches!(input.bytes(), [] | [b'\r']) {
                let here = input.bytes();
                let end = scan.end(here)?;
                if end.unwrap_or(here.len()) > limits.head_bytes {
                    return Err(too_long(here, limits.head_bytes).into());
                }
                if let Some(end) = end {
                    let parsed = head::parse(&here[..end], limits.headers)?;
                    input.consume(end);
                    return Ok(Some(parsed));
                }
            }
            match input.fill(deadline) {
                Ok(0) if input.bytes().is_empty() => return Ok(None),
                Ok(0) => return Err(Trouble::Ended),
                Ok(_) => {}
                Err(e) if e.kind() == io::ErrorKind::TimedOut => {
                    return Err(Refusal::new(408, "head: it came too slowly").into());
                }
                Err(e) => return Err(Trouble::Broken(e)),
            }
        }
    }

    /// Lets the handler answer a request, and survives the handler.
    fn answer(&mut self, head: Head, framing: Framing) -> Next {
        self.shared.counters.requests.add();
        self.out.begin(&head, framing);
        // Nothing that the closure touches is used after a panic, but for `out`, whose `sent` is set before each write.
        let result = catch_unwind(AssertUnwindSafe(|| self.handle(head, framing)));
        match result {
            Ok(Ok(handled)) => match (self.out.sent(), handled) {
                (Sent::Nothing, _) => self.fail(Refusal::new(500, "the request was left without an answer").into()),
                (Sent::Part, _) => Next::Cut,
                (Sent::Whole, Handled::Gated { unread }) => Next::Close { unread },
                (Sent::Whole, Handled::Whole) if self.out.may_go_on() => Next::Request,
                (Sent::Whole, Handled::Whole) => Next::Close { unread: false },
            },
            Ok(Err(trouble)) => self.fail(trouble),
            Err(_) => {
                self.shared.counters.panics.add();
                self.fail(Refusal::new(500, "the request could not be handled").into())
            }
        }
    }

    /// Gate, body, handler.
    fn handle(&mut self, head: Head, framing: Framing) -> Result<Handled, Trouble> {
        let Self { shared, conn, input, out } = self;
        let (handler, peer) = (&shared.handler, &conn.peer);
        if let Some(response) = handler.gate(&head, peer) {
            out.close_after();
            out.send(&response).map_err(Trouble::Handler)?;
            return Ok(Handled::Gated { unread: framing.body != BodyKind::Length(0) });
        }
        shared.now_known(conn);
        let cap = handler.body_limit(&head);
        body::check(framing.body, cap)?;
        // A client that has begun to send does not wait for the interim answer.
        if framing.expects_continue && input.bytes().is_empty() {
            out.send_continue().map_err(Trouble::Broken)?;
        }
        let body = body::read(input, framing.body, cap, &shared.limits)?;
        handler.handle(Request { head, body, peer: peer.clone() }, out.responder()).map_err(Trouble::Handler)?;
        Ok(Handled::Whole)
    }

    /// Tells the client what went wrong, if that can still be told.
    fn fail(&mut self, trouble: Trouble) -> Next {
        let (shared, out, peer) = (self.shared, &mut self.out, &self.conn.peer);
        let refusal = match trouble {
            Trouble::Refused(refusal) => refusal,
            // The server may have caused the end: in a drain it stops reading from clients without a complete request.
            Trouble::Ended if shared.is_draining() => Refusal::new(503, "the server is stopping"),
            Trouble::Ended => Refusal::bad("the message ended early"),
            Trouble::Handler(e) if out.sent() == Sent::Nothing => {
                log::warn!("http: answer to {peer:?}: {e}");
                Refusal::new(500, "the request could not be answered")
            }
            Trouble::Broken(e) | Trouble::Handler(e) => {
                log::debug!("http: connection of {peer:?}: {e}");
                return Next::Cut;
            }
        };
        match refusal.status {
            408 => shared.counters.timeouts.add(),
            500 | 503 => {}
            _ => shared.counters.protocol_errors.add(),
        }
        log::debug!("http: {} to {peer:?}: {}", refusal.status, refusal.what);
        if out.sent() != Sent::Nothing {
            return Next::Cut;
        }
        out.close_after();
        match out.send(&respond::refusal(&*shared.handler, &refusal)) {
            Ok(()) => Next::Close { unread: true },
            Err(_) => Next::Cut,
        }
    }
}

/// Says whether the request line alone is too long, or the head as a whole.
fn too_long(here: &[u8], limit: usize) -> Refusal {
    if here.iter().position(|b| *b == b'\n').unwrap_or(here.len()) > limit {
        Refusal::new(414, "request line: too long")
    } else {
        Refusal::new(431, "head: too long")
    }
}

/// Who answered a request.
enum Handled {
    /// The handler, which got the whole request.
    Whole,
    /// The gate; `unread` if the request has a body.
    Gated { unread: bool },
}
