//! Order and change: one key stays in order, and scripts change under load.

use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;

#[test]
fn one_keys_events_stay_in_order() {
    let (hooks, host) = hooks_with(
        &[("a.lua", "ostler.on('turn_end', function(ev) ostler.kv.set('note', ev.key .. ' ' .. ev.n) end)")],
        SHORT,
        |settings| settings.threads = 4,
    );
    let keys: Vec<String> = (0..8).map(|k| format!("local:{k}")).collect();
    for n in 0..50 {
        for key in &keys {
            hooks.notify(event(HookEvent::TurnEnd, key, json!({ "n": n })), Box::new(|_| {}));
        }
    }
    let mut next: HashMap<String, usize> = HashMap::new();
    for _ in 0..50 * keys.len() {
        let noted = host.noted.recv_timeout(PATIENCE).unwrap();
        let (key, n) = noted.split_once(' ').unwrap();
        let expected = next.entry(key.to_owned()).or_default();
        assert_eq!(n.parse::<usize>().unwrap(), *expected, "{key}");
        *expected += 1;
    }
}

/// Resident memory of this process, in bytes.
fn resident() -> usize {
    let status = std::fs::read_to_string("/proc/self/statm").unwrap();
    status.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4096
}

#[test]
fn a_thousand_swaps_under_load_lose_nothing_and_leak_nothing() {
    // Other tests of this process would be measured too: it runs in one of its own.
    if std::env::var_os("OSTLER_TEST_ALONE").is_none() {
        let name = "hooks::tests::order::a_thousand_swaps_under_load_lose_nothing_and_leak_nothing";
        let alone = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", name])
            .env("OSTLER_TEST_ALONE", "1")
            .output()
            .unwrap();
        assert!(alone.status.success(), "{}", String::from_utf8_lossy(&alone.stdout));
        assert!(String::from_utf8_lossy(&alone.stdout).contains("1 passed"));
        return;
    }
    let dir = scripts(&[(
        "a.lua",
        "junk = {} for i = 1, 2000 do junk[i] = ('x'):rep(50) .. i end\n\
         ostler.on('session_end', function(ev) ostler.kv.incr('n') end)\nostler.on('message', function() end)",
    )]);
    let settings = settings(dir.path());
    let host = MemoryHost::new();
    let hooks = Hooks::start_with(load(&settings, "1").unwrap(), host.clone(), "b", SHORT).unwrap();
    let handler = hooks.handlers(HookEvent::SessionEnd)[0].clone();
    let answered = Arc::new(AtomicUsize::new(0));
    let (tell, told) = unbounded();
    let mut after_some = 0;
    for round in 0..1000 {
        for k in 0..3 {
            let (answered, tell) = (answered.clone(), tell.clone());
            let ev = event(HookEvent::SessionEnd, &format!("local:{k}"), json!({}));
            hooks.deliver(
                &handler,
                ev,
                Box::new(move |d| {
                    assert_eq!(d, Delivered::Done);
                    answered.fetch_add(1, Ordering::Relaxed);
                    let _ = tell.send(());
                }),
            );
        }
        hooks.swap(load(&settings, "1").unwrap()).unwrap();
        for _ in 0..3 {
            told.recv_timeout(PATIENCE).unwrap();
        }
        if round == 200 {
            after_some = resident();
        }
    }
    assert_eq!(answered.load(Ordering::Relaxed), 3000);
    assert_eq!(lock(&host.kv)["n"], 3000);
    let grown = resident().saturating_sub(after_some);
    // 800 more sets of states, about 200 MiB of them, went by.
    assert!(grown < 48 * 1024 * 1024, "{grown} bytes more");
    assert_eq!(hooks.close(Instant::now() + PATIENCE), 0);
}

#[test]
fn a_swap_takes_effect_for_what_comes_after() {
    let load_one = |script: &str| {
        let dir = scripts(&[("a.lua", script)]);
        load(&settings(dir.path()), "1").unwrap()
    };
    let host = MemoryHost::new();
    let hooks = Hooks::start_with(load_one(""), host.clone(), "b", SHORT).unwrap();
    assert_eq!(message(&hooks, "a"), Verdict::Pass(None));
    for n in 0..20 {
        hooks.swap(load_one(&format!("ostler.on('message', function(ev) return {{ text = '{n}' }} end)"))).unwrap();
        assert_eq!(message(&hooks, "a"), Verdict::Pass(Some(n.to_string())));
    }
    // What runs finishes on the old one; what waits meets the new one.
    hooks
        .swap(load_one("ostler.on('message', function(ev) ostler.kv.get('block') return { text = 'old' } end)"))
        .unwrap();
    let (tell, told) = unbounded();
    for _ in 0..2 {
        let tell = tell.clone();
        let ev = event(HookEvent::Message, "local:a", json!({ "text": "a" }));
        hooks.ask(ev, Box::new(move |verdict| tell.send(verdict).unwrap()));
    }
    assert_eq!(host.noted.recv_timeout(PATIENCE).unwrap(), "blocked");
    hooks.swap(load_one("ostler.on('message', function(ev) return { text = 'new' } end)")).unwrap();
    host.open.send(()).unwrap();
    assert_eq!(told.recv_timeout(PATIENCE).unwrap(), Verdict::Pass(Some("old".to_owned())));
    assert_eq!(told.recv_timeout(PATIENCE).unwrap(), Verdict::Pass(Some("new".to_owned())));
    hooks.swap(load_one("")).unwrap();
    assert!(!hooks.has(HookEvent::Message));
    assert_eq!(message(&hooks, "a"), Verdict::Pass(None));
}
