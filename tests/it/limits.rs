//! Sizes that somebody else chooses: answers, pages, exports.

use serde_json::Value;

use crate::daemon::{Daemon, fake};

/// `[sessions] answer` holds for every kind of agent: beyond it the turn fails, what was said is kept, and the session goes on.
#[test]
fn an_answer_has_a_limit() {
    let more = "[sessions]\nanswer = \"16KiB\"\n[agent.exec]\nkind = \"exec\"\ncommand = [\"yes\"]\n\
                [agent.echo]\nkind = \"echo\"\n[agent.lua]\nkind = \"lua\"\nhandler = \"long.lua\"\n\
                [[route]]\nmatch = \"exec:*\"\nagent = \"exec\"\n[[route]]\nmatch = \"echo:*\"\nagent = \"echo\"\n\
                [[route]]\nmatch = \"lua:*\"\nagent = \"lua\"\n";
    let d = Daemon::new().config(&fake(&[], more));
    std::fs::create_dir(d.path("hooks.d/agents")).unwrap();
    d.write_hook("agents/long.lua", "return function(m) return string.rep('x', 40000) end\n");
    let mut d = d.start();
    let long = "x".repeat(40_000);
    for (key, text) in [("local:a", "flood 20000"), ("exec:a", "go"), ("echo:a", &long), ("lua:a", "go")] {
        let turn = d.turn(key, text);
        assert_eq!((turn.outcome(), &turn.error()["code"]), ("failed", &Value::from("answer_too_large")), "{key}");
        let why = turn.error()["message"].as_str().unwrap();
        assert!(why.contains("16384") && why.contains("sessions.answer"), "{why}");
        assert_eq!(turn.text().len(), 16_384, "{key}: what fits is told");
        let entries = d.transcript(key);
        let kept: usize =
            entries.iter().filter(|e| e["role"] == "agent").map(|e| e["text"].as_str().unwrap().len()).sum();
        assert_eq!(kept, 16_384, "{key}: and kept");
    }
    assert_eq!(d.send("local:a", "say short"), "short");
    assert_eq!(d.send("echo:a", "short"), "echo: short");
    assert_eq!(d.stop(), 0);
}

/// A conversation of any size is read page by page, and exported whole.
#[test]
fn a_big_conversation_is_read_in_pages() {
    let mut d = Daemon::new().start();
    let text = |n: usize| format!("{n} {}", "x".repeat(3_000_000));
    for n in 0..6 {
        d.send("local:a", &text(n));
    }
    let (mut after, mut said, mut pages) = (0, Vec::new(), 0);
    loop {
        let page = d.get(&format!("/v1/sessions/local:a/transcript?limit=1000&after={after}"));
        let entries = page["entries"].as_array().unwrap();
        let size: usize = entries.iter().map(|e| e["text"].as_str().unwrap().len()).sum();
        assert!(!entries.is_empty() && (size <= 4 << 20 || entries.len() == 1), "{} of {size}", entries.len());
        said.extend(
            entries.iter().map(|e| (e["role"].as_str().unwrap().to_owned(), e["text"].as_str().unwrap().to_owned())),
        );
        pages += 1;
        match page["next"].as_i64() {
            Some(next) => after = next,
            None => break,
        }
    }
    assert!(pages >= 9, "{pages} pages of 36 MB");
    let of = |role: &str| said.iter().filter(|(r, _)| r == role).map(|(_, t)| t.as_str()).collect::<String>();
    assert!(of("user") == (0..6).map(text).collect::<String>());
    assert!(of("agent") == (0..6).map(|n| format!("echo: {}", text(n))).collect::<String>());
    let told: String =
        d.past("local:a").iter().filter(|e| e.event == "text").map(|e| e.text("text").to_owned()).collect();
    assert!(told == of("agent"), "the events, too");
    let ran = d.cli(&["export", "local:a"]);
    assert_eq!(ran.code, 0, "{}", ran.err);
    assert!(ran.out.len() > 36_000_000 && (0..6).all(|n| ran.out.contains(&format!("\n\necho: {n} x"))));
    assert_eq!(d.stop(), 0);
}
