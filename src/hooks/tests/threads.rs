//! Threads that are lost, and what comes back.

use super::*;

#[test]
fn a_thread_that_hangs_is_replaced_and_its_queue_goes_on() {
    let (hooks, host) = hooks_with(
        &[(
            "10-test.lua",
            r#"
            ostler.on("message", function(ev) if ev.text == "hang" then ostler.kv.get("block") end end, { timeout = "50ms" })
            ostler.on("message", function(ev) return { text = ev.text .. "!" } end)
            ostler.on("session_end", function(ev) ostler.kv.get("block") end, { timeout = "50ms" })
            "#,
        )],
        SHORT,
        |_| {},
    );
    assert_eq!(message(&hooks, "hang"), rewritten("hang!"), "the rest of the chain still runs");
    assert_eq!(message(&hooks, "next"), rewritten("next!"));
    let Delivered::TimedOut(_) = deliver(&hooks, event(HookEvent::SessionEnd, "local:a", json!({}))) else { panic!() };
    assert_eq!(hooks.lost(), 2);
    assert_eq!(hooks.list()[0].timeouts, 1);
    // Let go, the lost threads end by themselves.
    host.open.send(()).unwrap();
    host.open.send(()).unwrap();
    assert_eq!(hooks.close(Instant::now() + PATIENCE), 0);
    assert_eq!(hooks.lost(), 0);
}

#[test]
fn after_too_many_losses_hooks_are_off_and_everything_is_answered() {
    let (hooks, host) = hooks_with(
        &[(
            "10-test.lua",
            r#"
            ostler.on("session_end", function(ev) ostler.kv.get("block") end, { timeout = "20ms" })
            ostler.on("message", function(ev) return nil end, { on_error = "refuse" })
            ostler.on("turn_end", function(ev) end)
            "#,
        )],
        Tuning { losses: 2, ..SHORT },
        |_| {},
    );
    for _ in 0..2 {
        let Delivered::TimedOut(_) = deliver(&hooks, event(HookEvent::SessionEnd, "local:a", json!({}))) else {
            panic!()
        };
    }
    // The answer of the second call came before the switch; the switch comes with the next.
    let off = (0..1000).any(|_| matches!(message(&hooks, "a"), Verdict::HookFailed(_)));
    assert!(off, "a message that must be checked is refused");
    assert_eq!(deliver(&hooks, event(HookEvent::SessionEnd, "local:a", json!({}))), Delivered::NotCalled);
    assert_eq!(notify(&hooks, event(HookEvent::TurnEnd, "local:a", json!({}))), 1);
    assert_eq!(hooks.dropped(), 1);
    assert_eq!((hooks.lost(), hooks.is_off()), (2, true));

    // The script is mended: everything is called again, though the two threads still hang.
    let mended = scripts(&[(
        "10-test.lua",
        "ostler.on('session_end', function() end)\nostler.on('message', function() return { text = 'ok' } end)\n\
         ostler.on('turn_end', function() end)",
    )]);
    hooks.swap(load(&settings(mended.path()), "2").unwrap()).unwrap();
    assert_eq!((hooks.lost(), hooks.is_off()), (2, false));
    assert_eq!(message(&hooks, "a"), rewritten("ok"));
    for key in ["local:a", "local:b", "local:c", "local:d"] {
        assert_eq!(deliver(&hooks, event(HookEvent::SessionEnd, key, json!({}))), Delivered::Done, "{key}");
        assert_eq!(notify(&hooks, event(HookEvent::TurnEnd, key, json!({}))), 0, "{key}");
    }
    // They come back, and count no more.
    for _ in 0..2 {
        host.open.send(()).unwrap();
    }
    let until = Instant::now() + PATIENCE;
    while hooks.lost() > 0 && Instant::now() < until {
        std::thread::yield_now();
    }
    assert_eq!((hooks.lost(), hooks.is_off()), (0, false));
    assert_eq!(hooks.close(Instant::now() + PATIENCE), 0);
}

#[test]
fn a_reload_beside_a_stop_switches_nothing_on() {
    let (hooks, host) = hooks_with(
        &[("a.lua", "ostler.on('session_end', function() ostler.kv.get('block') end, { timeout = '20ms' })")],
        Tuning { losses: 1, ..SHORT },
        |_| {},
    );
    let Delivered::TimedOut(_) = deliver(&hooks, event(HookEvent::SessionEnd, "local:a", json!({}))) else { panic!() };
    let until = Instant::now() + PATIENCE;
    while !hooks.is_off() && Instant::now() < until {
        std::thread::yield_now();
    }
    hooks.stop_timers();
    let mended = scripts(&[("a.lua", "ostler.on('session_end', function() end)")]);
    hooks.swap(load(&settings(mended.path()), "2").unwrap()).unwrap();
    assert!(hooks.is_off());
    assert_eq!(deliver(&hooks, event(HookEvent::SessionEnd, "local:a", json!({}))), Delivered::NotCalled);
    host.open.send(()).unwrap();
    assert_eq!(hooks.close(Instant::now() + PATIENCE), 0);
}
