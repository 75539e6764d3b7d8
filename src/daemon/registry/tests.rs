use super::*;
use crate::config::Config;
use crate::store::{Begun, TurnRef};

/// A registry with so many places, two agents, and one place for `one`.
fn config(max_live: usize) -> Arc<Config> {
    let text = format!(
        "[sessions]\nmax_live = {max_live}\n[agent.many]\nkind = \"echo\"\nmax_processes = 100\n\
         [agent.one]\nkind = \"echo\"\nmax_processes = 1\n\
         [[route]]\nmatch = \"one:*\"\nagent = \"one\"\n[[route]]\nmatch = \"*\"\nagent = \"many\"\n"
    );
    Arc::new(crate::config::parse(&text, None).expect("a configuration"))
}

fn wish(sid: i64, key: &str) -> Wish {
    Wish { sid, key: key.into(), auto_continue: false }
}

/// Who got a place, and their mailboxes.
fn seat(registry: &Registry, config: &Arc<Config>) -> Vec<(i64, Arc<Mailbox>)> {
    registry.seat(config, |_| true).into_iter().map(|n| (n.of.wish.sid, n.mailbox)).collect()
}

fn sids(seated: &[(i64, Arc<Mailbox>)]) -> Vec<i64> {
    seated.iter().map(|(sid, _)| *sid).collect()
}

fn live(registry: &Registry, ready: Option<i64>) -> Arc<Mailbox> {
    registry.want(wish(7, "x:a"));
    let (sid, mailbox) = seat(registry, &config(9)).remove(0);
    assert_eq!((sid, registry.rest(7, ready)), (7, Some(true)));
    mailbox
}

fn begun() -> Box<Begun> {
    let turn = TurnRef { sid: 7, epoch: 3, tid: 5 };
    let (turn_id, prompt) = ("t".into(), "p".into());
    Box::new(Begun { turn, turn_id, prompt, continues: None, first: true, turns: 0, alone: false })
}

/// A session is wished for once, and its worker told of what comes once it has one.
#[test]
fn a_session_has_one_worker() {
    let registry = Registry::default();
    registry.want(wish(7, "x:a"));
    registry.want(Wish { auto_continue: true, ..wish(7, "x:a") });
    assert_eq!(registry.numbers().waiting, 1);
    let seated = seat(&registry, &config(9));
    assert_eq!((sids(&seated), registry.numbers().waiting), (vec![7], 0));
    registry.want(wish(7, "x:a"));
    assert!(seated[0].1.has_work() && registry.numbers().waiting == 0, "its worker is told");
    assert!(seat(&registry, &config(9)).is_empty());
}

#[test]
fn who_rests_longest_gives_way_and_nobody_else() {
    let registry = Registry::default();
    let config = config(3);
    (1..=5).for_each(|sid| registry.want(wish(sid, &format!("x:{sid}"))));
    let seated = seat(&registry, &config);
    assert_eq!((sids(&seated), registry.numbers().waiting), (vec![1, 2, 3], 2));
    assert!(seat(&registry, &config).is_empty(), "all of them start");
    for sid in [2, 3, 1] {
        assert_eq!(registry.rest(sid, Some(1)), Some(true));
    }
    // Something comes for the one that has rested longest: it does not rest.
    registry.want(wish(2, "x:2"));
    let closing = |seated: &[(i64, Arc<Mailbox>)]| -> Vec<i64> {
        seated.iter().filter(|(_, m)| m.take().close == Some(Close::Park)).map(|(sid, _)| *sid).collect()
    };
    seated[1].1.take();
    registry.want(wish(2, "x:2"));
    assert!(seat(&registry, &config).is_empty());
    assert!(seated[1].1.has_work());
    assert_eq!(closing(&[seated[0].clone(), seated[2].clone()]), [1, 3]);
    assert!(seat(&registry, &config).is_empty());
    assert_eq!(closing(&seated), Vec::<i64>::new(), "two make room for two");
    assert_eq!((registry.set(3, Doing::Closing), registry.begin(1)), (Some(()), None));
    registry.remove(3).expect("its entry");
    assert_eq!(sids(&seat(&registry, &config)), [4]);
    // It came back while it closed: it waits behind the others.
    registry.want(wish(1, "x:1"));
    let again = registry.remove(1).expect("its entry").1.expect("its wish");
    registry.want(again);
    assert_eq!((sids(&seat(&registry, &config)), registry.numbers().waiting), (vec![5], 1));
}

#[test]
fn a_full_agent_holds_up_its_own_alone() {
    let registry = Registry::default();
    let config = config(9);
    for (sid, key) in [(1, "one:1"), (2, "one:2"), (3, "x:3"), (4, "one:4")] {
        registry.want(wish(sid, key));
    }
    let seated = seat(&registry, &config);
    assert_eq!(sids(&seated), [1, 3]);
    for sid in [3, 1] {
        assert_eq!(registry.rest(sid, Some(1)), Some(true));
    }
    assert!(seat(&registry, &config).is_empty());
    let told: Vec<bool> = seated.iter().map(|(_, m)| m.take().close.is_some()).collect();
    assert_eq!(told, [true, false], "its own gives way");
    registry.remove(1).expect("its entry");
    assert_eq!(sids(&seat(&registry, &config)), [2]);
}

#[test]
fn a_newcomer_without_a_thread_waits_where_it_waited() {
    let registry = Registry::default();
    let config = config(2);
    (1..=3).for_each(|sid| registry.want(wish(sid, &format!("x:{sid}"))));
    let mut newcomers = registry.seat(&config, |_| true);
    registry.want(Wish { auto_continue: true, ..wish(2, "x:2") });
    newcomers.drain(..).for_each(|n| registry.unseat(n));
    assert_eq!((registry.numbers().live, registry.numbers().waiting), (0, 3));
    let again: Vec<_> = registry.seat(&config, |_| true).into_iter().map(|n| n.of.wish).collect();
    assert_eq!(again, [wish(1, "x:1"), Wish { auto_continue: true, ..wish(2, "x:2") }]);
}

#[test]
fn whose_old_processes_are_there_waits_and_holds_up_nobody() {
    let registry = Registry::default();
    let config = config(9);
    registry.search();
    (1..=3).for_each(|sid| registry.want(wish(sid, &format!("x:{sid}"))));
    assert!(seat(&registry, &config).is_empty(), "it could be anybody's");
    registry.haunt([1, 3]);
    assert_eq!((sids(&seat(&registry, &config)), registry.numbers().waiting), (vec![2], 2));
    registry.exorcise(3);
    assert_eq!(sids(&seat(&registry, &config)), [3]);
    registry.exorcise_all();
    assert_eq!((sids(&seat(&registry, &config)), registry.numbers().waiting), (vec![1], 0));
}

/// What is counted is what a count would say, whatever happens in whatever order.
#[test]
fn the_counts_are_right() {
    for seed in 1..=200_u64 {
        let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let mut below = |n: u64| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state % n
        };
        let registry = Registry::default();
        let config = config(4);
        let mut newcomers = Vec::new();
        for _ in 0..300 {
            let sid = i64::try_from(below(8)).expect("small");
            let key = if sid < 3 { format!("one:{sid}") } else { format!("x:{sid}") };
            match below(13) {
                0..=2 => registry.want(wish(sid, &key)),
                3 | 4 => newcomers.extend(registry.seat(&config, |_| true)),
                5 => drop(registry.begin(sid)),
                6 => drop(registry.rest(sid, Some(1))),
                7 => registry.finishing(sid, 1),
                8 => drop(registry.may_park(sid)),
                9 => drop(registry.reserve(&key)),
                10 => {
                    if let Some(reserved) = registry.reserve(&key) {
                        reserved.hand_over(begun());
                    }
                }
                11 => drop(registry.remove(sid)),
                _ => match newcomers.pop() {
                    Some(n)
                        if registry
                            .lock()
                            .live
                            .get(&n.of.wish.sid)
                            .is_some_and(|e| Arc::ptr_eq(&e.mailbox, &n.mailbox)) =>
                    {
                        registry.unseat(n);
                    }
                    _ => registry.retire(sid, Instant::now()),
                },
            }
            // A letter is read at some time.
            if below(3) == 0
                && let Some(e) = registry.lock().live.get(&sid)
            {
                let _ = e.mailbox.take();
            }
            counted(&registry, seed);
        }
    }
}

fn counted(registry: &Registry, seed: u64) {
    let inner = registry.lock();
    let running = inner.live.values().filter(|e| matches!(e.doing, Doing::Running { .. })).count();
    assert_eq!(inner.running, running, "seed {seed}");
    for (name, of) in &inner.by_agent {
        let mine: Vec<_> = inner.live.iter().filter(|(_, e)| e.agent == *name).collect();
        let closing = mine.iter().filter(|(_, e)| e.doing == Doing::Closing).count();
        let resting = mine.iter().filter(|(_, e)| e.doing == Doing::Idle).map(|(sid, e)| (e.used, **sid)).collect();
        assert_eq!((of.live, of.closing, &of.resting), (mine.len(), closing, &resting), "seed {seed}");
    }
    assert_eq!(inner.by_agent.values().map(|of| of.live).sum::<usize>(), inner.live.len(), "seed {seed}");
    assert!(inner.live.len() <= 4 && inner.by_agent.get("one").is_none_or(|of| of.live <= 1), "seed {seed}");
}

#[test]
fn only_a_worker_that_rests_and_is_ready_is_set_aside_and_once() {
    let registry = Registry::default();
    let mailbox = live(&registry, None);
    assert!(registry.reserve("x:a").is_none(), "its agent is not ready");
    assert_eq!(registry.rest(7, Some(3)), Some(true));
    assert!(registry.reserve("x:b").is_none(), "another key");
    mailbox.post(|l| l.work = true);
    assert!(registry.reserve("x:a").is_none(), "it has a letter to read");
    let _ = mailbox.take();
    let reserved = registry.reserve("x:a").expect("set aside");
    assert_eq!((reserved.sid, reserved.epoch, registry.numbers().running), (7, 3, 1));
    assert!(registry.reserve("x:a").is_none() && !registry.may_park(7));
    assert_eq!((registry.begin(7), registry.rest(7, Some(3))), (Some(false), Some(false)), "its worker waits");
    reserved.hand_over(begun());
    assert_eq!(mailbox.take().begun, Some(begun()));
    assert_eq!((registry.begin(7), registry.numbers().running), (Some(true), 1));
    assert_eq!((registry.rest(7, Some(3)), registry.numbers().running), (Some(true), 0));
    registry.close_all();
    assert!(registry.reserve("x:a").is_none(), "a stop");
}

#[test]
fn a_stop_lets_go_who_rests_and_holds_nothing() {
    let registry = Registry::default();
    let mailboxes: Vec<_> = [(1, true, true), (2, false, true), (3, true, false), (4, true, true)]
        .into_iter()
        .map(|(sid, light, rests)| {
            registry.want(wish(sid, &format!("x:{sid}")));
            let mailbox = registry.seat(&config(9), |_| light).remove(0).mailbox;
            let doing = if rests { Doing::Idle } else { Doing::Starting };
            assert_eq!(registry.set(sid, doing), Some(()));
            mailbox
        })
        .collect();
    mailboxes[3].post(|l| l.work = true);
    registry.close_all();
    assert_eq!(registry.live().into_keys().collect::<Vec<_>>(), [2, 3, 4], "with an agent, starting, with a letter");
    let told: Vec<_> = mailboxes.iter().map(|m| m.take().close.is_some()).collect();
    assert_eq!(told, [false, true, true, true]);
}

#[test]
fn a_worker_that_writes_the_end_of_its_turn_is_set_aside_too() {
    let registry = Registry::default();
    let mailbox = live(&registry, Some(3));
    assert_eq!(registry.begin(7), Some(true));
    assert!(registry.reserve("x:a").is_none(), "it runs");
    registry.finishing(7, 3);
    let reserved = registry.reserve("x:a").expect("set aside");
    drop(reserved);
    assert_eq!((mailbox.take().work, registry.numbers().running), (true, 1), "it is not done yet");
    registry.finishing(7, 3);
    let reserved = registry.reserve("x:a").expect("set aside");
    assert_eq!((registry.set(7, Doing::Idle), registry.numbers().running), (Some(()), 1));
    drop(reserved);
    assert_eq!((mailbox.take().work, registry.numbers().running), (true, 0), "it is done");
    assert_eq!(registry.begin(7), Some(true));
    registry.finishing(7, 3);
    let reserved = registry.reserve("x:a").expect("set aside");
    assert_eq!(registry.rest(7, Some(3)), Some(false));
    reserved.hand_over(begun());
    assert_eq!((mailbox.take().begun, registry.numbers().running), (Some(begun()), 1));
}

#[test]
fn a_reservation_that_came_to_nothing_wakes_the_worker() {
    let registry = Registry::default();
    let mailbox = live(&registry, Some(3));
    drop(registry.reserve("x:a").expect("set aside"));
    assert_eq!((mailbox.take().work, registry.numbers().running), (true, 0));
    assert!(registry.reserve("x:a").is_none(), "until it rests again");
}

#[test]
fn a_turn_for_a_worker_that_went_is_looked_for_by_the_next() {
    let registry = Registry::default();
    let mailbox = live(&registry, Some(3));
    let reserved = registry.reserve("x:a").expect("set aside");
    assert_eq!(registry.set(7, Doing::Closing), Some(()));
    assert_eq!(registry.numbers().running, 0);
    reserved.hand_over(begun());
    assert_eq!(mailbox.take().begun, None);
    let (_, again) = registry.remove(7).expect("its entry");
    assert_eq!(again.map(|w| w.sid), Some(7));
}
