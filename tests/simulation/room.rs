//! The database of a seed: in memory, made once, and used by one seed after the other.

use std::path::Path;

use ostler::store::{Env, Store};
use rusqlite::Connection;

/// A database in memory and its connections.
pub struct Room {
    pub store: Store,
    /// The witness looks through this.
    pub eyes: Connection,
    pub broom: Connection,
}

impl Room {
    /// An empty one. The name is its own in this process.
    pub fn new(name: &str) -> Self {
        let uri = format!("file:/ostler-simulation-{name}?vfs=memdb");
        let store = Store::open_in(Path::new(&uri), environment()).expect("a database in memory");
        Self { store, eyes: Connection::open(&uri).unwrap(), broom: Connection::open(&uri).unwrap() }
    }

    /// Empties it: what [`Store::open_in`] would have made of a new file.
    pub fn sweep(&self) {
        self.broom.execute_batch(SWEEP).unwrap();
    }
}

/// A store's environment but for its clock and its faults.
pub fn environment() -> Env {
    Env { durable: false, inline: true, memory: true, readers: 1, ..Env::default() }
}

const SWEEP: &str = "
    BEGIN; DELETE FROM boots; DELETE FROM sessions; DELETE FROM activations; DELETE FROM turns; DELETE FROM messages;
    DELETE FROM entries; DELETE FROM events; DELETE FROM journal; DELETE FROM deliveries; DELETE FROM kv; DELETE FROM kept; DELETE FROM frames; DELETE FROM permissions; DELETE FROM shims; DELETE FROM timers;
    DELETE FROM meta; DELETE FROM sqlite_sequence; COMMIT;";
