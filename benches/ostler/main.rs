//! The daemon against the bare limit, in one run on one file system: one table of figure, ostler, bare limit, ratio, goal.
//!
//! `cargo bench --bench ostler` prints all of it, `-- accept stop` those figures whose name contains a word. `growth` and
//! `soak` take minutes and are run by name only. `OSTLER_BENCH_SHORT=1` runs everything small and only shows that it runs.
//! There is no pass or fail on time: goals are printed beside what was measured.
//!
//! Each round measures ostler and then the bare limit, so that noise hits both; the round with the median ratio is shown.
//! The bare limit is what SQLite, std threads, pipes and sockets alone would cost for the same rows, threads and bytes.

mod bare;
mod fill;
mod growth;
mod memory;
mod messages;
mod plot;
mod rig;
mod soak;
mod start;
mod stop;
mod streams;
mod table;

use table::{Scale, Table};

/// A group of figures, measured together.
struct Group {
    name: &'static str,
    /// Run without being named.
    always: bool,
    run: fn(Scale, &mut Table),
}

const GROUPS: &[Group] = &[
    Group { name: "accept-one", always: true, run: messages::accept_one },
    Group { name: "accept-many", always: true, run: messages::accept_many },
    Group { name: "turns", always: true, run: messages::turns },
    Group { name: "memory-base", always: true, run: memory::base },
    Group { name: "memory-echo", always: true, run: memory::echo },
    Group { name: "memory-acp", always: true, run: memory::acp },
    Group { name: "idle", always: true, run: memory::idle },
    Group { name: "stop", always: true, run: stop::exit },
    Group { name: "mark", always: true, run: stop::mark },
    Group { name: "start-empty", always: true, run: start::empty },
    Group { name: "start-stored", always: true, run: start::stored },
    Group { name: "kill", always: true, run: start::killed },
    Group { name: "delta", always: true, run: streams::delta },
    Group { name: "growth", always: false, run: growth::run },
    Group { name: "soak", always: false, run: soak::run },
];

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    // What is compared with the daemon's process is a process too: this very program in another role.
    if let [role, rest @ ..] = args.as_slice()
        && let Some(role) = role.strip_prefix("role:")
    {
        return match role {
            "open" => start::bare_open(rest),
            "recover" => start::bare_recover(rest),
            "threads" => memory::bare_threads(rest),
            "agent" => streams::agent(rest),
            other => panic!("no such role: {other}"),
        };
    }
    let words: Vec<&String> = args.iter().filter(|a| !a.starts_with('-')).collect();
    let scale = Scale { short: std::env::var_os("OSTLER_BENCH_SHORT").is_some() };
    table::machine();
    let mut table = Table::default();
    for group in GROUPS {
        let named = words.iter().any(|w| group.name.contains(w.as_str()));
        if named || (words.is_empty() && (group.always || scale.short)) {
            (group.run)(scale, &mut table);
        }
    }
}
