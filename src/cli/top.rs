//! `top`: what the agents' processes use, live on a terminal.
//!
//! Owns order and columns. It must not know where the numbers come from: the daemon reads them.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::args::{Top, TopOrder};
use super::render::{ago_now, items, number, table, text};
use super::{Done, Failure, Ui};
use crate::client::Client;

/// Between two looks.
const PERIOD: Duration = Duration::from_secs(2);
/// To the first column of the first line, and what is below is cleared.
const HOME: &[u8] = b"\x1b[H\x1b[J";

/// Processor time by session and process, and when it was read.
type Read = (Instant, HashMap<(String, i64), i64>);

/// `top`
pub fn top(client: &Client, a: &Top, ui: &mut Ui) -> Done {
    let mut before: Option<Read> = None;
    loop {
        let answer = client.get("/v1/processes").map_err(|e| Failure::api("top", &e))?;
        if a.json {
            ui.json(&answer)?;
            return Ok(0);
        }
        let now = Instant::now();
        let shown = listing(ui, items(&answer), a.sort, before.as_ref(), now);
        if !ui.out_tty || a.once {
            ui.say(shown)?;
            return Ok(0);
        }
        ui.out.write_all(HOME)?;
        ui.say(shown)?;
        ui.out.flush()?;
        before = Some((now, items(&answer).iter().map(|p| (name(p), number(p, "/cpu_ms"))).collect()));
        std::thread::sleep(PERIOD);
    }
}

fn name(p: &Value) -> (String, i64) {
    (text(p, "/session_id"), number(p, "/pid"))
}

/// The table, with the sum below it.
fn listing(ui: &Ui, all: &[Value], sort: TopOrder, before: Option<&Read>, now: Instant) -> String {
    if all.is_empty() {
        return "no agent is a process now".into();
    }
    let cpu = |p: &Value| -> Option<i64> {
        let (then, times) = before?;
        let spent = p["cpu_ms"].as_i64()? - times.get(&name(p))?;
        let ms = i64::try_from(now.duration_since(*then).as_millis()).ok()?.max(1);
        Some(spent.max(0) * 100 / ms)
    };
    let mut sorted: Vec<&Value> = all.iter().collect();
    match sort {
        TopOrder::Memory => sorted.sort_by_key(|p| Reverse(number(p, "/memory"))),
        // Until there are two looks, by all that was spent.
        TopOrder::Cpu => sorted.sort_by_key(|p| Reverse((cpu(p), number(p, "/cpu_ms")))),
        TopOrder::Processes => sorted.sort_by_key(|p| Reverse(number(p, "/processes"))),
        TopOrder::Key => sorted.sort_by_key(|p| text(p, "/key")),
    }
    let row = |p: &&Value| {
        vec![
            text(p, "/key"),
            text(p, "/agent"),
            text(p, "/pid"),
            size(p, "memory"),
            size(p, "memory_peak"),
            size(p, "memory_limit"),
            cpu(p).map_or_else(String::new, |percent| format!("{percent}%")),
            seconds(p),
            text(p, "/processes"),
            ago_now(&text(p, "/since")),
        ]
    };
    let headers = ["key", "agent", "pid", "memory", "peak", "limit", "cpu", "time", "procs", "since"];
    let rows = sorted.iter().map(row).collect();
    let known: Vec<u64> = all.iter().filter_map(|p| p["memory"].as_u64()).collect();
    let sum = bytesize::ByteSize(known.iter().sum());
    let total = match known.as_slice() {
        [] => format!("{} agents; their memory is not counted (ostler doctor)", all.len()),
        _ => format!("{} agents, {sum} of memory", all.len()),
    };
    format!("{}\n\n{total}", table(ui, &headers, rows))
}

fn size(p: &Value, field: &str) -> String {
    p[field].as_u64().map_or_else(String::new, |bytes| bytesize::ByteSize(bytes).to_string())
}

fn seconds(p: &Value) -> String {
    p["cpu_ms"].as_u64().map_or_else(String::new, |ms| format!("{}.{}s", ms / 1000, ms % 1000 / 100))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use serde_json::json;

    use super::*;
    use crate::cli::testing::{at, ostler_wide};
    use crate::client::testing::{Answer, Fake};

    #[test]
    fn agents_are_sorted_and_summed_up() {
        let dir = tempfile::tempdir().unwrap();
        let one = |key: &str, memory: u64, cpu: u64, processes: u64| {
            json!({ "key": key, "session_id": key, "agent": "default", "pid": 7, "since": "2020-01-01T00:00:00Z",
                "memory": memory, "memory_peak": memory, "memory_limit": null, "cpu_ms": cpu, "processes": processes })
        };
        let all = [one("local:a", 1 << 20, 9000, 1), one("local:b", 3 << 20, 1500, 2), one("local:c", 2 << 20, 10, 9)];
        let _fake = Fake::start(&dir.path().join("s"), move |_| Answer::Json(200, json!({ "processes": all })));
        let socket = dir.path().join("s");
        let keys = |sort: &str| {
            let ran = at(&socket, &["top", "--sort", sort]);
            assert_eq!(ran.code, 0, "{ran:?}");
            let lines = ran.out.lines().filter_map(|l| l.strip_prefix("local:"));
            lines.map(|l| l[..1].to_owned()).collect::<String>()
        };
        for (sort, want) in [("memory", "bca"), ("cpu", "abc"), ("processes", "cba"), ("key", "abc")] {
            assert_eq!(keys(sort), want, "{sort}");
        }
        let ran = at(&socket, &["top"]);
        assert!(ran.out.ends_with("3 agents, 6.0 MiB of memory\n") && ran.out.contains(" 1.5s "), "{}", ran.out);
        let once = ostler_wide(true, Some(120), &["top", "--once", "--socket", socket.to_str().unwrap()]);
        assert!(once.out.contains("local:a") && !once.out.contains('\x1b'), "{once:?}");
        let json = at(&socket, &["top", "--json"]).out;
        assert_eq!(serde_json::from_str::<Value>(&json).unwrap()["processes"][1]["key"], "local:b");
    }

    #[test]
    fn processor_time_is_of_the_time_between_two_looks() {
        let ui = crate::cli::Ui::terminal();
        let p = |cpu: u64| json!({ "key": "local:a", "session_id": "s", "pid": 7, "cpu_ms": cpu });
        let then = Instant::now();
        let before = (then, HashMap::from([(("s".to_owned(), 7), 1000)]));
        let shown = |cpu, pid: u64| {
            let mut p = p(cpu);
            p["pid"] = json!(pid);
            listing(&ui, &[p], TopOrder::Key, Some(&before), then + Duration::from_secs(2))
        };
        assert!(shown(4000, 7).contains("150%"), "{}", shown(4000, 7));
        assert!(!shown(4000, 8).contains('%'), "another process of the session");
        let none = [json!({ "key": "local:a", "memory": null, "cpu_ms": null })];
        assert!(listing(&ui, &none, TopOrder::Key, None, then).contains("is not counted"));
        assert_eq!(listing(&ui, &[], TopOrder::Key, None, then), "no agent is a process now");
    }
}
