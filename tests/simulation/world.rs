//! What outlives the simulated daemon: shims, and the agents below them. They go on at their own pace whether a daemon is
//! there or not, keep what was not acknowledged, take each frame once, and remember what they heard.
//!
//! They assert what a shim may rely on: an acknowledged offset is never asked for again, frames come in order, a prompt and
//! an answer come once.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ostler::agent::process::{Keeper, Process};
use ostler::agent::{Identity, NewShim};
use ostler::daemon::shims::{HeldShim, Shims};
use ostler::store::ShimRow;

use crate::dice::Dice;
use crate::parts::{Clock, Notes};

/// How long a shim waits to be told to start its agent.
const START_MS: i64 = 10_000;

/// The world, as agents and the simulation share it.
pub struct Outside {
    world: Mutex<World>,
    /// Kills the daemon.
    pub dies: Box<dyn Fn() + Send + Sync>,
    /// Whether the daemon is dead, and only unwinds.
    pub dead: Box<dyn Fn() -> bool + Send + Sync>,
}

impl Outside {
    pub fn new(
        world: World,
        dies: impl Fn() + Send + Sync + 'static,
        dead: impl Fn() -> bool + Send + Sync + 'static,
    ) -> Self {
        Self { world: Mutex::new(world), dies: Box::new(dies), dead: Box::new(dead) }
    }

    pub fn world(&self) -> MutexGuard<'_, World> {
        self.world.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

pub struct World {
    clock: Arc<Clock>,
    dice: Dice,
    notes: Arc<Mutex<Notes>>,
    shims: BTreeMap<String, Shim>,
    count: u64,
    /// The daemon that lives, by its number.
    boot: u64,
    /// The boot of the machine.
    machine: u64,
    /// How long agents may work on alone.
    orphan: i64,
    /// Shims that did not answer when they were attached to.
    refused: BTreeSet<String>,
    /// Sessions whose agents lived and answered, and were not gone on with.
    pub given_up: Vec<i64>,
}

/// A shim.
struct Shim {
    sid: i64,
    /// The session and the daemon that mark its processes.
    session: String,
    marked_by: u64,
    token: [u8; 32],
    made: i64,
    program: Option<Program>,
    /// The number of the last frame that it has for good.
    taken: u64,
    output: Vec<u8>,
    acknowledged: u64,
    /// Its agent has ended; how.
    exit: Option<bool>,
    orphan: i64,
    alone_since: Option<i64>,
    conn: Option<Conn>,
}

/// A daemon's connection to a shim.
#[derive(Default)]
struct Conn {
    boot: u64,
    received: u64,
    /// The daemon has been told that the agent ends, that no more output comes, how it ended.
    ending: bool,
    closed: bool,
    exited: Option<bool>,
    /// The number of the last frame that the daemon knows to be taken.
    heard: u64,
    /// What the daemon has not got rid of yet: lost if it dies.
    late: Vec<Packet>,
}

/// What a daemon sends.
enum Packet {
    Input(u64, Vec<u8>),
    CloseInput(u64),
    Ack(u64),
    AckExit,
    End,
}

/// An agent.
#[derive(Default)]
struct Program {
    /// It is a command, of this turn.
    command: Option<String>,
    /// What it works at.
    turn: Option<String>,
    input: Vec<u8>,
    pieces: u64,
    /// Ignores a cancel.
    deaf: bool,
    asks: Option<String>,
    /// What it asked, and how that was answered.
    answered: BTreeMap<String, Option<String>>,
    cancelled: bool,
    /// So many daemons die of what it says.
    deadly: u32,
}

impl World {
    pub fn new(clock: Arc<Clock>, notes: Arc<Mutex<Notes>>, seed: u64) -> Self {
        let dice = Dice::new(seed ^ 0x776f_726c_6400);
        Self {
            clock,
            dice,
            notes,
            shims: BTreeMap::new(),
            count: 0,
            boot: 0,
            machine: 1,
            orphan: 120_000,
            refused: BTreeSet::new(),
            given_up: Vec::new(),
        }
    }

    pub fn is_quiet(&self) -> bool {
        self.notes.lock().unwrap().quiet
    }

    pub fn machine(&self) -> String {
        format!("m{}", self.machine)
    }

    /// A daemon begins.
    pub fn boots(&mut self, boot: u64, orphan: i64) {
        (self.boot, self.orphan) = (boot, orphan);
    }

    /// The daemon is gone, in whatever way.
    pub fn daemon_gone(&mut self) {
        self.boot = 0;
        let now = self.clock.ms();
        for shim in self.shims.values_mut() {
            if shim.conn.take().is_some() {
                shim.alone_since = Some(now);
            }
        }
        self.pass();
    }

    /// The machine starts again.
    pub fn reboot(&mut self) {
        self.machine += 1;
        let names: Vec<String> = self.shims.keys().cloned().collect();
        names.iter().for_each(|name| self.kill_shim(name));
    }

    /// Time has passed.
    pub fn pass(&mut self) {
        let now = self.clock.ms();
        let names: Vec<String> = self.shims.keys().cloned().collect();
        for name in names {
            let shim = &self.shims[&name];
            let waits = shim.program.is_none() && shim.exit.is_none();
            let Some(since) = shim.alone_since else {
                if waits && shim.made + START_MS <= now {
                    self.kill_shim(&name);
                }
                continue;
            };
            if waits && since + shim.orphan.min(START_MS) <= now || since + 2 * shim.orphan <= now {
                self.kill_shim(&name);
            } else if since + shim.orphan <= now {
                self.ends(&name, false);
            }
        }
    }

    /// The shims whose agents live.
    pub fn living(&self) -> Vec<(String, i64)> {
        self.shims.iter().filter(|(_, s)| s.program.is_some()).map(|(name, s)| (name.clone(), s.sid)).collect()
    }

    /// The shims that are there.
    pub fn there(&self) -> Vec<(String, i64)> {
        self.shims.iter().map(|(name, s)| (name.clone(), s.sid)).collect()
    }

    /// Whether something of a session's agent is to be read by the daemon.
    pub fn is_readable(&self, sid: i64) -> bool {
        self.shims.values().any(|s| s.sid == sid && s.is_readable())
    }

    /// Agents that are at work.
    fn at_work(&self) -> Vec<String> {
        let quiet = self.is_quiet();
        let works = |s: &Shim| s.program.as_ref().is_some_and(|p| p.turn.is_some() && (p.asks.is_none() || quiet));
        self.shims.iter().filter(|(_, s)| works(s)).map(|(name, _)| name.clone()).collect()
    }

    /// An agent goes on with its work. `false`: none has any.
    pub fn act(&mut self) -> bool {
        let able = self.at_work();
        if able.is_empty() {
            return false;
        }
        let name = self.dice.pick(&able).clone();
        self.work(&name);
        true
    }

    /// An agent does something that nobody asked for.
    pub fn surprise(&mut self) {
        let names: Vec<String> = self.shims.keys().cloned().collect();
        if names.is_empty() {
            return;
        }
        let name = self.dice.pick(&names).clone();
        let Some(program) = self.shims.get_mut(&name).and_then(|s| s.program.as_mut()) else { return };
        match self.dice.below(10) {
            0 => self.kill_shim(&name),
            1 => self.ends(&name, false),
            2 => program.deadly = 1 + self.dice.below(4) as u32,
            _ if program.command.is_none() && program.turn.is_none() => {
                let n = self.next();
                self.says(&name, &format!("own [{n}]"));
            }
            _ => {}
        }
    }

    const fn next(&mut self) -> u64 {
        self.count += 1;
        self.count
    }

    fn says(&mut self, name: &str, line: &str) {
        // At times two messages are one line.
        let shim = self.shims.get_mut(name).expect("a shim");
        let joined =
            shim.output.ends_with(b"\n") && shim.conn.is_none() && shim.output.len() as u64 > shim.acknowledged + 1;
        if joined && self.dice.chance(20) {
            shim.output.pop();
            shim.output.push(b';');
        }
        shim.output.extend_from_slice(line.as_bytes());
        shim.output.push(b'\n');
    }

    fn work(&mut self, name: &str) {
        let quiet = self.is_quiet();
        let piece = self.next();
        let piece =
            if self.dice.chance(2) { format!("[{piece}{}]", "x".repeat(70_000)) } else { format!("[{piece}é]") };
        let program = self.shims.get_mut(name).and_then(|s| s.program.as_mut()).expect("an agent");
        let turn = program.turn.clone().expect("a turn");
        let is_command = program.command.is_some();
        if program.cancelled && !program.deaf {
            program.turn = None;
            return self.says(name, &format!("done {turn} cancelled"));
        }
        if program.asks.take().is_some() {
            self.notes.lock().unwrap().impatient.insert(turn.clone());
        }
        if program.pieces > 0 {
            program.pieces -= 1;
            if is_command {
                self.notes.lock().unwrap().said.entry(turn).or_default().push_str(&piece);
                let shim = self.shims.get_mut(name).expect("a shim");
                return shim.output.extend_from_slice(piece.as_bytes());
            }
            return match self.dice.below(10) {
                0 => self.says(name, "thought hm"),
                1 => {
                    let (id, status) = (self.dice.below(3), *self.dice.pick(&["pending", "completed"]));
                    self.says(name, &format!("tool t{id} {status}"));
                }
                _ => {
                    self.notes.lock().unwrap().said.entry(turn).or_default().push_str(&piece);
                    self.says(name, &format!("text {piece}"));
                }
            };
        }
        if !is_command && !quiet && self.dice.chance(15) {
            let id = {
                let mut notes = self.notes.lock().unwrap();
                notes.asked += 1;
                let id = format!("p{}", notes.asked);
                notes.asked_in.insert(id.clone(), turn);
                id
            };
            program.asks = Some(id.clone());
            program.answered.insert(id.clone(), None);
            return self.says(name, &format!("ask {id}"));
        }
        let fails = !quiet && self.dice.chance(10);
        if is_command || fails && self.dice.chance(50) {
            if is_command && !fails {
                self.notes.lock().unwrap().whole.insert(turn);
            }
            return self.ends(name, !fails);
        }
        program.turn = None;
        if !fails {
            self.notes.lock().unwrap().whole.insert(turn.clone());
        }
        self.says(name, &format!("done {turn} {}", if fails { "failed" } else { "ok" }));
    }

    /// The agent of a shim ends.
    fn ends(&mut self, name: &str, well: bool) {
        let cut = self.dice.chance(20);
        let Some(shim) = self.shims.get_mut(name) else { return };
        let Some(program) = shim.program.take() else {
            shim.exit = shim.exit.or(Some(false));
            return;
        };
        shim.exit = Some(well);
        if cut && !well && program.command.is_none() {
            // In the middle of a line.
            shim.output.extend_from_slice(b"text lo");
        }
    }

    /// A shim ends, and its agent with it; what it had is lost.
    pub fn kill_shim(&mut self, name: &str) {
        self.shims.remove(name);
    }

    // What the daemon does.

    /// A shim is made; its agent is not started yet.
    pub fn make(&mut self, sid: i64, session: &str) -> NewShim {
        let n = self.next();
        let name = format!("shim{n:012}");
        let token = [n as u8; 32];
        let shim = Shim {
            sid,
            session: session.to_owned(),
            marked_by: self.boot,
            token,
            made: self.clock.ms(),
            program: None,
            taken: 0,
            output: Vec::new(),
            acknowledged: 0,
            exit: None,
            orphan: self.orphan,
            alone_since: None,
            conn: Some(Conn { boot: self.boot, ..Conn::default() }),
        };
        self.shims.insert(name.clone(), shim);
        NewShim { name, token, machine: self.machine(), pid: 4_000_000 + n as u32, start: n }
    }

    /// Its agent is started. `command`: for this turn only.
    pub fn start(&mut self, name: &str, command: Option<&str>) {
        let deadly = if !self.is_quiet() && self.dice.chance(1) { 1 + self.dice.below(4) as u32 } else { 0 };
        let shim = self.shims.get_mut(name).expect("a shim");
        assert!(shim.program.is_none() && shim.exit.is_none(), "an agent is started twice");
        shim.program = Some(Program { command: command.map(str::to_owned), deadly, ..Program::default() });
    }

    fn attach(&mut self, row: &ShimRow, from: u64) -> Result<bool, String> {
        let boot = self.boot;
        let shim = self.shims.get_mut(&row.name).ok_or("its socket is not there")?;
        assert_eq!(shim.token, row.token, "the shim's token");
        assert!(
            (shim.acknowledged..=shim.output.len() as u64).contains(&from),
            "kept up to {from}, and {} were acknowledged of {}",
            shim.acknowledged,
            shim.output.len()
        );
        assert!(shim.conn.as_ref().is_none_or(|c| c.boot == boot), "two daemons");
        shim.acknowledged = from;
        shim.alone_since = None;
        shim.orphan = self.orphan;
        shim.conn = Some(Conn { boot, received: from, heard: shim.taken, ..Conn::default() });
        shim.told();
        Ok(shim.program.is_some() || shim.exit.is_some())
    }

    /// The shim of a session to which this daemon is attached.
    pub fn attached(&self, sid: i64) -> Option<String> {
        let mine = |s: &Shim| s.sid == sid && s.conn.is_some();
        self.shims.iter().rfind(|(_, s)| mine(s)).map(|(name, _)| name.clone())
    }

    fn packet(&mut self, name: &str, packet: Packet) {
        let late = !self.is_quiet() && self.dice.chance(15);
        let Some(conn) = self.shims.get_mut(name).and_then(|s| s.conn.as_mut()) else { return };
        conn.late.push(packet);
        if !late {
            self.flush(name);
        }
    }

    fn flush(&mut self, name: &str) {
        let Some(conn) = self.shims.get_mut(name).and_then(|s| s.conn.as_mut()) else { return };
        for packet in std::mem::take(&mut conn.late) {
            self.deliver(name, packet);
        }
    }

    fn deliver(&mut self, name: &str, packet: Packet) {
        let Some(shim) = self.shims.get_mut(name) else { return };
        match packet {
            Packet::Ack(offset) => {
                let sent = shim.conn.as_ref().map_or(0, |c| c.received);
                assert!(offset <= sent, "acknowledged, and never read");
                shim.acknowledged = shim.acknowledged.max(offset);
            }
            Packet::AckExit => {
                assert!(shim.tells_exit(), "an exit is acknowledged that was not told");
                self.shims.remove(name);
            }
            Packet::End => self.ends(name, false),
            Packet::Input(number, _) | Packet::CloseInput(number) if number <= shim.taken => {}
            Packet::Input(number, bytes) => {
                assert_eq!(number, shim.taken + 1, "a frame is missing");
                shim.taken = number;
                self.hears(name, &bytes);
            }
            Packet::CloseInput(number) => {
                assert_eq!(number, shim.taken + 1, "a frame is missing");
                shim.taken = number;
                self.begins(name);
            }
        }
    }

    /// An agent hears a frame.
    fn hears(&mut self, name: &str, bytes: &[u8]) {
        let Some(program) = self.shims.get_mut(name).and_then(|s| s.program.as_mut()) else { return };
        if program.command.is_some() {
            return program.input.extend_from_slice(bytes);
        }
        let text = String::from_utf8(bytes.to_vec()).expect("text");
        let mut words = text.splitn(3, ' ');
        match (words.next().unwrap_or_default(), words.next(), words.next()) {
            ("prompt", Some(turn), Some(prompt)) => {
                assert!(program.turn.is_none(), "a prompt while it works");
                program.cancelled = false;
                self.prompted(name, turn, prompt);
            }
            ("cancel", None, None) => program.cancelled = program.turn.is_some(),
            ("answer", Some(id), Some(outcome)) => {
                let asked = program.answered.get_mut(id).expect("answered, and never asked");
                assert_eq!(*asked, None, "{id} is answered again: {outcome}");
                *asked = Some(outcome.to_owned());
                if program.asks.as_deref() == Some(id) {
                    program.asks = None;
                }
                self.notes.lock().unwrap().answers.insert(id.to_owned(), outcome.to_owned());
            }
            ("hello" | "", None, None) => {}
            other => panic!("an agent is told {other:?}"),
        }
    }

    /// A command has its whole input.
    fn begins(&mut self, name: &str) {
        let Some(program) = self.shims.get_mut(name).and_then(|s| s.program.as_mut()) else { return };
        let turn = program.command.clone().expect("a command");
        let prompt = String::from_utf8(std::mem::take(&mut program.input)).expect("text");
        self.prompted(name, &turn, &prompt);
    }

    fn prompted(&mut self, name: &str, turn: &str, prompt: &str) {
        let (pieces, deaf) = (self.dice.below(6), self.dice.chance(10));
        let program = self.shims.get_mut(name).and_then(|s| s.program.as_mut()).expect("an agent");
        program.turn = Some(turn.to_owned());
        (program.pieces, program.deaf) = (pieces, deaf);
        let before = self.notes.lock().unwrap().prompts.insert(turn.to_owned(), prompt.to_owned());
        assert_eq!(before, None, "a prompt is heard twice: turn {turn}");
    }

    /// A daemon reads what is there, or a part of it. Returns whether it dies of that.
    pub fn take_in(&mut self, name: &str, out: &mut Vec<u8>) -> bool {
        self.flush(name);
        let quiet = self.is_quiet();
        let part = 1 + self.dice.below(200_000) as usize;
        let part = if self.dice.chance(30) { part % 40 + 1 } else { part };
        let Some(shim) = self.shims.get_mut(name) else { return false };
        let Some(conn) = shim.conn.as_mut() else { return false };
        let from = conn.received as usize;
        let to = (from + part).min(shim.output.len());
        out.extend_from_slice(&shim.output[from..to]);
        conn.received = to as u64;
        conn.heard = shim.taken;
        let any = to > from;
        shim.told();
        let Some(program) = shim.program.as_mut().filter(|p| any && p.deadly > 0) else { return false };
        program.deadly = if quiet { 0 } else { program.deadly - 1 };
        !quiet
    }

    pub fn transmit(&mut self, name: &str, number: u64, bytes: Vec<u8>) {
        self.packet(name, Packet::Input(number, bytes));
    }

    pub fn close_input(&mut self, name: &str, number: u64) {
        self.packet(name, Packet::CloseInput(number));
    }

    pub fn acknowledge(&mut self, name: &str, offset: u64) {
        self.packet(name, Packet::Ack(offset));
    }

    /// The agent is to end.
    pub fn end(&mut self, name: &str) {
        self.packet(name, Packet::End);
        self.flush(name);
    }

    /// Its exit is kept: the shim leaves.
    pub fn acknowledge_exit(&mut self, name: &str) {
        self.packet(name, Packet::AckExit);
        self.flush(name);
    }

    pub fn let_go(&mut self, name: &str) {
        let now = self.clock.ms();
        if let Some(shim) = self.shims.get_mut(name) {
            shim.conn = None;
            shim.alone_since = Some(now);
        }
    }

    /// What a daemon knows of a shim that it is attached to.
    pub fn knows(&self, name: &str) -> Known {
        let Some(shim) = self.shims.get(name) else {
            return Known { lost: true, ending: true, closed: true, ..Known::default() };
        };
        let Some(conn) = &shim.conn else { return Known::default() };
        Known {
            received: conn.received,
            heard: conn.heard,
            taken: shim.taken,
            ending: conn.ending,
            closed: conn.closed,
            exited: conn.exited,
            gone: shim.exit.is_some(),
            lost: false,
        }
    }

    /// A daemon that dies by what it drops leaves nothing; one that lives ends what it drops.
    pub fn drops(&mut self, name: &str, boot: u64) {
        if self.boot != boot || self.shims.get(name).is_none_or(|s| s.conn.is_none()) {
            return;
        }
        self.kill_shim(name);
    }
}

/// What a daemon knows of a shim.
#[derive(Clone, Copy, Default)]
pub struct Known {
    pub received: u64,
    pub heard: u64,
    pub taken: u64,
    pub ending: bool,
    pub closed: bool,
    pub exited: Option<bool>,
    /// The kernel says that the agent's leader is gone.
    pub gone: bool,
    pub lost: bool,
}

impl Shim {
    fn is_readable(&self) -> bool {
        let Some(conn) = &self.conn else { return false };
        let all = conn.received == self.output.len() as u64;
        !all || !conn.late.is_empty()
            || self.exit.is_some() && (!conn.ending || !conn.closed || self.tells_exit() && conn.exited.is_none())
    }

    fn tells_exit(&self) -> bool {
        self.exit.is_some() && self.acknowledged == self.output.len() as u64
    }

    /// The daemon hears how it stands.
    fn told(&mut self) {
        let tells = self.tells_exit();
        let Some(conn) = self.conn.as_mut() else { return };
        conn.ending |= self.exit.is_some();
        conn.closed |= self.exit.is_some() && conn.received == self.output.len() as u64;
        if tells {
            conn.exited = self.exit;
        }
    }
}

/// The world, as the real parts see it.
pub struct Below(pub Arc<Outside>);

struct Attached {
    outside: Arc<Outside>,
    name: String,
    boot: u64,
    started: bool,
    held: bool,
}

impl Shims for Below {
    fn keeper(&self) -> Option<Arc<Keeper>> {
        None
    }

    fn own_machine(&self) -> String {
        self.0.world().machine()
    }

    fn set_orphan(&self, after: std::time::Duration) {
        let mut world = self.0.world();
        world.orphan = after.as_millis() as i64;
        let orphan = world.orphan;
        for shim in world.shims.values_mut().filter(|s| s.conn.is_some()) {
            shim.orphan = orphan;
        }
    }

    fn attach(&self, shim: &ShimRow, _: &Identity, from: u64) -> Result<Box<dyn HeldShim>, String> {
        let mut world = self.0.world();
        if !world.is_quiet() && world.dice.chance(2) {
            world.refused.insert(shim.name.clone());
            return Err("it does not answer".into());
        }
        let (started, boot) = (world.attach(shim, from)?, world.boot);
        Ok(Box::new(Attached { outside: self.0.clone(), name: shim.name.clone(), boot, started, held: true }))
    }

    fn end(&self, shim: Option<&ShimRow>, session_id: Option<&str>, _: &str, _: std::time::Instant) -> Vec<String> {
        let mut world = self.0.world();
        let (boot, named) = (world.boot, shim.map(|s| s.name.as_str()));
        let alive = named.and_then(|name| world.shims.get(name)).filter(|s| s.program.is_some()).map(|s| s.sid);
        if let (Some(name), Some(sid)) = (named, alive)
            && !world.refused.contains(name)
        {
            world.given_up.push(sid);
        }
        let left =
            |name: &str, s: &Shim| named == Some(name) || session_id == Some(s.session.as_str()) && s.marked_by != boot;
        let all: Vec<String> =
            world.shims.iter().filter(|(name, s)| left(name, s)).map(|(name, _)| name.clone()).collect();
        all.iter().for_each(|name| world.kill_shim(name));
        Vec::new()
    }

    fn kill(&self, but: Option<&str>, _: std::time::Instant) -> Vec<String> {
        let mut world = self.0.world();
        let boot = but.map(|_| world.boot);
        let earlier = world.shims.iter().filter(|(_, s)| Some(s.marked_by) != boot);
        let all: Vec<String> = earlier.map(|(name, _)| name.clone()).collect();
        all.iter().for_each(|name| world.kill_shim(name));
        Vec::new()
    }
}

impl HeldShim for Attached {
    fn is_started(&self) -> bool {
        self.started
    }

    fn let_go(mut self: Box<Self>) {
        self.held = false;
        self.outside.world().let_go(&self.name);
    }

    fn process(mut self: Box<Self>) -> Option<Process> {
        self.held = false;
        None
    }
}

impl Drop for Attached {
    fn drop(&mut self) {
        if self.held && !(self.outside.dead)() {
            self.outside.world().drops(&self.name, self.boot);
        }
    }
}
