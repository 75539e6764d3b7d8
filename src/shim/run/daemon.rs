//! What the shim has to do with daemons: it takes their connections and what they send, and tells them what they do not
//! know yet.

use std::os::fd::OwnedFd;

use super::super::buffer::BLOCK;
use super::super::child::{self, Agent, NotStarted};
use super::super::conn::{self, Broken, Candidate, Conn, Identity, Progress, Received};
use super::super::family;
use super::super::frame::{Attach, Attached, Code, Confined, PACKET, Reply, Request, Standing, output_header};
use super::super::input::{INPUT_LIMIT, Piece};
use super::super::machine::{Millis, Verdict};
use super::super::spool::Spool;
use super::super::start::{START_LIMIT, Start};
use super::{Shim, TURNS, now};
use crate::sys;

/// The most peers that may be in their greeting; one more, and the oldest is sent away.
const CANDIDATES: usize = 8;
/// A receive buffer of which no more was used is kept.
const SMALL: usize = 8 * 1024;
/// After so many bytes written to the agent its progress is told.
const PROGRESS: u64 = 64 * 1024;
/// After so many frames it is told which were taken.
const FRAMES: u64 = 16;
/// However much else happens, it is told after so long.
const WHILE: Millis = 20;

impl Shim {
    /// Takes connections. Whoever is of another user, or descends from this process, is not listened to.
    pub(super) fn accept(&mut self) {
        let flags = rustix::net::SocketFlags::CLOEXEC | rustix::net::SocketFlags::NONBLOCK;
        for _ in 0..TURNS {
            let Ok(socket) = rustix::net::accept_with(&self.listener, flags) else { return };
            let Ok(peer) = sys::peer_cred(&socket) else { continue };
            let Some(pid) = peer.pid.and_then(|pid| u32::try_from(pid).ok()) else { continue };
            let own_user = rustix::process::geteuid().as_raw();
            if peer.uid != own_user || family::descends(pid, self.own.pid) {
                continue;
            }
            if self.candidates.len() >= CANDIDATES {
                self.candidates.remove(0);
            }
            let until = now().saturating_add(self.seed.patience.hello.into());
            self.peers += 1;
            self.candidates.push(Candidate::new(self.peers, socket, pid, until));
        }
    }

    pub(super) fn greet(&mut self, number: u64) {
        let own = Identity { token: &self.seed.token, place: self.place, shim: self.own };
        let Some(n) = self.candidates.iter().position(|c| c.number == number) else { return };
        let greeting = self.candidates[n].proceed(&own);
        if let Progress::Going = greeting {
            return;
        }
        let candidate = self.candidates.remove(n);
        let Progress::Proved(attach) = greeting else { return };
        let held = self.output.start()..=self.output.end();
        match self.machine.attach(now(), attach.boot, attach.from, held) {
            Verdict::Accepted => self.attach(candidate.into_socket(), &attach),
            Verdict::Stale(newest) => candidate.refuse(Code::Stale, newest, "a newer boot was here"),
            Verdict::NoOffset(nearest) => candidate.refuse(Code::Offset, nearest, "no such offset is kept"),
        }
    }

    /// Makes a candidate the shim's daemon.
    fn attach(&mut self, socket: OwnedFd, attach: &Attach) {
        if let Some(mut old) = self.conn.take() {
            let text = "another connection took this one's place";
            let _ = old.tell(&Reply::Error { code: Code::Superseded, number: attach.boot, text });
        }
        self.input.forget_open();
        self.output.release(attach.from);
        let standing = self.machine.standing();
        let ending = matches!(standing, Standing::Ending | Standing::Gone);
        let (taken, kept) = (self.input.taken(), self.output.kept());
        let attached = Attached {
            standing,
            agent: self.agent.as_ref().map(|agent| agent.who),
            confined: self.agent.as_ref().map_or(Confined::default(), |agent| agent.confined),
            taken,
            acked: self.output.start(),
            available: self.output.end(),
            kept,
            status: self.machine.status(),
        };
        let mut conn = Conn::new(socket, attach.from, taken, kept, ending);
        if conn.tell(&Reply::Attached(attached)) == Ok(true) {
            self.conn = Some(conn);
        } else {
            self.machine.detach(now());
        }
        sys::trim_memory();
    }

    fn detach(&mut self) {
        if self.conn.take().is_some() {
            self.input.forget_open();
            self.machine.detach(now());
        }
    }

    /// Takes what the daemon has sent.
    pub(super) fn take_requests(&mut self) {
        let mut packet = std::mem::take(&mut self.packet);
        if packet.is_empty() {
            packet = vec![0; PACKET];
        }
        let mut most = 0;
        for _ in 0..TURNS {
            let Some(conn) = &mut self.conn else { break };
            conn.blocked = false;
            match conn::receive(conn.descriptor(), &mut packet) {
                Received::Nothing => break,
                Received::Over => self.detach(),
                Received::Packet(length) => {
                    most = most.max(length);
                    let taken = match Request::decode(&packet[..length]) {
                        Ok(request) => {
                            // The agent's answer comes next, and not another packet.
                            let rests = matches!(request, Request::Input { last: true, .. });
                            self.take(request).map(|()| rests)
                        }
                        Err(e) => Err(e.0),
                    };
                    match taken {
                        Ok(true) => break,
                        Ok(false) => {}
                        Err(why) => self.cut(why),
                    }
                }
            }
        }
        if most <= SMALL {
            self.packet = packet;
        }
    }

    /// Ends a connection that says what it may not.
    fn cut(&mut self, why: &str) {
        if let Some(conn) = &mut self.conn {
            let _ = conn.tell(&Reply::Error { code: Code::Protocol, number: 0, text: why });
        }
        self.detach();
    }

    fn take(&mut self, request: Request<'_>) -> Result<(), &'static str> {
        match request {
            Request::Hello { .. } | Request::Attach(_) => return Err("a greeting in the middle"),
            Request::Start { last, bytes } => return self.take_start(last, bytes),
            Request::Input { number, last, bytes } => {
                let piece = if self.agent.is_some() { self.input.piece(number, last, bytes) } else { Piece::Closed };
                self.took(number, piece);
            }
            Request::CloseInput { number } => {
                let piece = if self.agent.is_some() { self.input.close(number) } else { Piece::Closed };
                self.took(number, piece);
            }
            Request::Ack { offset } => {
                if self.conn.as_ref().is_none_or(|conn| offset > conn.sent) {
                    return Err("more was acknowledged than was sent");
                }
                self.output.release(offset);
                self.note_trouble();
                if self.machine.standing() == Standing::Gone {
                    self.read_output();
                }
            }
            Request::AckExit => {
                if self.conn.as_ref().is_none_or(|conn| !conn.exit) {
                    return Err("an exit was acknowledged that was not told");
                }
                self.machine.exit_acknowledged();
            }
            Request::Orphan { after, lease } => self.machine.set_orphan(now(), after, lease),
            Request::End { rung, ladder } => self.machine.end(now(), rung, ladder),
        }
        Ok(())
    }

    fn took(&mut self, number: u64, piece: Piece) {
        let Some(conn) = &mut self.conn else { return };
        match piece {
            Piece::More | Piece::Again => {}
            Piece::Whole => self.write_input(),
            Piece::Gap(expected) => conn.complain(Code::Gap, expected, "a frame is missing before this one"),
            Piece::Full => conn.complain(Code::InputFull, number, "there is no room for this frame now"),
            Piece::Closed => conn.complain(Code::NoAgent, number, "no agent takes input"),
        }
    }

    fn take_start(&mut self, last: bool, bytes: &[u8]) -> Result<(), &'static str> {
        let standing = self.machine.standing();
        let Some(conn) = &mut self.conn else { return Ok(()) };
        if standing != Standing::Waiting {
            return Err("it was started before");
        }
        if conn.start.len() + bytes.len() > START_LIMIT {
            return Err("a START is too long");
        }
        conn.start.extend_from_slice(bytes);
        if !last {
            return Ok(());
        }
        let start = Start::decode(&std::mem::take(&mut conn.start)).map_err(|e| e.0)?;
        match self.start(&start) {
            Ok(()) => {
                self.machine.started(now(), start.ladder, start.orphan);
                drop(start);
                sys::trim_memory();
            }
            Err(NotStarted { step, error }) => {
                let number = error.raw_os_error().map_or(0, |e| u64::from(e.unsigned_abs()));
                if let Some(conn) = &mut self.conn {
                    conn.complain(Code::Start, number, format!("{step}: {error}"));
                }
            }
        }
        Ok(())
    }

    fn start(&mut self, start: &Start) -> Result<(), NotStarted> {
        let spool = |limit| start.spool.as_ref().map(|dir| Spool::new(dir, limit)).transpose();
        let failed = |error| NotStarted { step: "spool", error };
        let (output, input) = (spool(start.spool_limit).map_err(failed)?, spool(INPUT_LIMIT).map_err(failed)?);
        self.agent = Some(child::start(start)?);
        if let Some((output, input)) = output.zip(input) {
            self.output.set_spool(output);
            self.input.set_spool(input);
        }
        if let Some(conn) = &mut self.conn {
            conn.started = false;
        }
        Ok(())
    }

    /// Tells the daemon what it does not know yet, as far as its socket takes it.
    pub(super) fn tell(&mut self) {
        if self.conn.is_none() {
            self.owes_taken = None;
        }
        if let Some(mut conn) = self.conn.take() {
            match self.tell_all(&mut conn) {
                Ok(()) => self.conn = Some(conn),
                Err(Broken) => {
                    self.conn = Some(conn);
                    self.detach();
                    // What the machine says of that is done before the next wait.
                    self.act();
                }
            }
        }
    }

    fn tell_all(&mut self, conn: &mut Conn) -> Result<(), Broken> {
        if conn.blocked {
            return Ok(());
        }
        if let Some((code, number, text)) = conn.trouble.take()
            && !conn.tell(&Reply::Error { code, number, text: &text })?
        {
            conn.trouble = Some((code, number, text));
            return Ok(());
        }
        if let Some(agent) = self.agent.as_ref().filter(|_| !conn.started) {
            conn.started = conn.tell(&Reply::Started { agent: agent.who, confined: agent.confined })?;
        }
        let kept = self.output.kept();
        let news = (kept.full, kept.error, kept.failures, kept.spooled == 0)
            != (conn.kept.full, conn.kept.error, conn.kept.failures, conn.kept.spooled == 0);
        if news && conn.tell(&Reply::Spool(kept))? {
            conn.kept = kept;
        }
        while !self.errors.is_empty() && !conn.blocked {
            let (dropped, bytes) = self.errors.front(BLOCK / 4);
            if conn.tell(&Reply::Stderr { dropped, bytes: &bytes })? {
                self.errors.told(bytes.len());
            }
        }
        while conn.sent < self.output.end() && !conn.blocked {
            let piece = match self.output.piece(conn.sent) {
                Ok(piece) => piece,
                Err(e) => {
                    self.output.note_failure(&e);
                    self.note_trouble();
                    break;
                }
            };
            if conn.tell_parts(&[&output_header(conn.sent, piece.len()), &piece])? {
                conn.sent += piece.len() as u64;
            }
        }
        self.tell_taken(conn)?;
        self.tell_end(conn)
    }

    /// Tells how the input stands: when nothing else happens, after a while, or after some frames. Nobody waits for it; what
    /// a daemon does not hear it asks at its next greeting.
    fn tell_taken(&mut self, conn: &mut Conn) -> Result<(), Broken> {
        let taken = self.input.taken();
        let moved = taken.written >= conn.taken.written.saturating_add(PROGRESS);
        let emptied = taken.waiting == 0 && conn.taken.waiting > 0;
        let news = (taken.highest, taken.closed) != (conn.taken.highest, conn.taken.closed);
        if !(moved || emptied || news) || conn.blocked {
            self.owes_taken = None;
            return Ok(());
        }
        let now = now();
        let since = *self.owes_taken.get_or_insert(now);
        let many = taken.highest >= conn.taken.highest.saturating_add(FRAMES);
        if moved || many || self.overdue || now >= since.saturating_add(WHILE) {
            self.owes_taken = None;
            if conn.tell(&Reply::Taken(taken))? {
                conn.taken = taken;
            }
        }
        Ok(())
    }

    fn tell_end(&self, conn: &mut Conn) -> Result<(), Broken> {
        let standing = self.machine.standing();
        if !conn.ending && matches!(standing, Standing::Ending | Standing::Gone) && !conn.blocked {
            conn.ending = conn.tell(&Reply::Ending)?;
        }
        let over = self.agent.as_ref().is_some_and(|agent| agent.stdout.is_none()) && conn.sent == self.output.end();
        if !conn.closed && over && !conn.blocked {
            conn.closed = conn.tell(&Reply::EndOfOutput)?;
        }
        let silent = self.agent.as_ref().is_none_or(Agent::is_silent);
        let kept_for_good = self.output.start() == self.output.end();
        if let Some(exit) = self.machine.exit()
            && silent
            && kept_for_good
            && !conn.exit
            && !conn.blocked
        {
            conn.exit = conn.tell(&Reply::Exit(exit.clone()))?;
        }
        Ok(())
    }
}
