use proptest::prelude::*;

use super::*;

/// Keys that begin with `one:` are of an agent with one slot and heavy workers; all others of an agent with many.
struct TwoAgents;

impl Routes for TwoAgents {
    fn route(&self, key: &str) -> Route<'_> {
        if key.starts_with("one:") {
            Route { agent: "one", most: 1, light: false }
        } else {
            Route { agent: "many", most: 100, light: true }
        }
    }
}

/// A roster, and what lies unread in mailboxes.
#[derive(Default)]
struct Rig {
    roster: Roster,
    work: BTreeSet<i64>,
    now: Option<Instant>,
}

impl Rig {
    fn now(&mut self) -> Instant {
        *self.now.get_or_insert_with(Instant::now)
    }

    fn admit(&mut self, max_live: usize) -> (Vec<i64>, Vec<Effect>) {
        let work = self.work.clone();
        let (admitted, effects) = self.roster.admit(max_live, &TwoAgents, &|sid| work.contains(&sid));
        (admitted.into_iter().map(|w| w.request.sid).collect(), effects)
    }

    fn rest(&mut self, sid: i64, epoch: i64) -> Option<bool> {
        self.roster.rest(sid, Some(epoch), false).map(|(free, _)| free)
    }

    fn begin(&mut self, sid: i64) -> Option<bool> {
        let now = self.now();
        self.roster.begin(sid, now, false).map(|(begins, _)| begins)
    }

    fn reserve(&mut self, key: &str) -> Option<DirectBegin> {
        let now = self.now();
        let work = self.work.clone();
        self.roster.reserve(key, now, |sid| work.contains(&sid))
    }

    /// Live sessions under `x:SID`, at rest with activation 3.
    fn at_rest(sids: impl IntoIterator<Item = i64>) -> Self {
        let mut rig = Self::default();
        for sid in sids {
            let _ = rig.roster.want(request(sid, &format!("x:{sid}")));
            assert_eq!(rig.admit(100), (vec![sid], vec![]));
            assert_eq!(rig.rest(sid, 3), Some(true));
        }
        rig
    }
}

fn request(sid: i64, key: &str) -> WorkRequest {
    WorkRequest { sid, key: key.into(), auto_continue: false }
}

fn wake(sid: i64) -> Effect {
    Effect::Wake { sid, auto_continue: false }
}

#[test]
fn a_session_has_one_worker() {
    let mut rig = Rig::default();
    assert_eq!(rig.roster.want(request(7, "x:a")), [Effect::Nudge]);
    let _ = rig.roster.want(WorkRequest { auto_continue: true, ..request(7, "x:a") });
    assert_eq!(rig.roster.numbers().waiting, 1);
    let (admitted, effects) = rig.roster.admit(9, &TwoAgents, &|_| false);
    assert_eq!((admitted.len(), admitted[0].request.auto_continue, effects), (1, true, vec![]));
    assert_eq!(rig.roster.numbers(), Numbers { live: 1, running: 0, waiting: 0, kept: 0 });
    assert_eq!(rig.roster.want(request(7, "x:a")), [wake(7)], "its worker is told");
    assert_eq!(rig.admit(9), (vec![], vec![]));
}

/// How a worker is led into a state.
type Lead = fn(&mut Rig);

/// Each report of a worker in each state: what it becomes, and what is to be done.
#[test]
fn what_a_worker_says_in_each_state() {
    let t = Instant::now();
    let running = || Doing::beginning(t);
    let states: [(&str, Lead); 4] = [
        ("starting", |rig| drop(rig.roster.set(7, Doing::Starting, false))),
        ("resting", |_| ()),
        ("running", |rig| assert!(rig.begin(7).is_some())),
        ("closing", |rig| assert!(rig.roster.may_park(7, false))),
    ];
    use Effect::{DropPermissions, Nudge};
    let drop_7 = DropPermissions(7);
    let table = [
        // From, report, then: what it does, what is to be done; `None`: it is to close.
        (0, Doing::Idle, Kind::Resting, Some(vec![])),
        (0, running(), Kind::Running, Some(vec![])),
        (0, Doing::Closing, Kind::Closing, Some(vec![])),
        (1, Doing::Starting, Kind::Starting, Some(vec![])),
        (1, running(), Kind::Running, Some(vec![])),
        (1, Doing::Closing, Kind::Closing, Some(vec![])),
        (2, Doing::Idle, Kind::Resting, Some(vec![drop_7, Nudge])),
        (2, running(), Kind::Running, Some(vec![])),
        (2, Doing::Closing, Kind::Closing, Some(vec![drop_7, Nudge])),
        (3, Doing::Idle, Kind::Closing, Some(vec![])),
        (3, running(), Kind::Closing, None),
        (3, Doing::Closing, Kind::Closing, Some(vec![])),
    ];
    for (from, says, is, effects) in table {
        let mut rig = Rig::at_rest([7]);
        rig.now = Some(t);
        states[from].1(&mut rig);
        let what = format!("{} says {says:?}", states[from].0);
        assert_eq!(rig.roster.set(7, says, false), effects, "{what}");
        assert_eq!(rig.roster.doing(7).map(Doing::kind), Some(is), "{what}");
        assert_eq!(rig.roster.numbers().running, usize::from(is == Kind::Running), "{what}");
    }
    assert_eq!(Rig::default().roster.set(7, Doing::Idle, false), None, "it was let go");
}

#[test]
fn a_worker_that_was_handed_a_turn_does_not_rest() {
    let mut rig = Rig::at_rest([7]);
    assert_eq!(rig.begin(7), Some(true));
    assert_eq!(rig.roster.set(7, Doing::Idle, true), Some(vec![]));
    assert_eq!(rig.roster.doing(7).map(Doing::kind), Some(Kind::Running));
    let now = rig.now();
    assert_eq!(rig.roster.begin(7, now, true), Some((false, vec![])), "it is to read of it first");
}

#[test]
fn who_waits_is_thought_of_when_a_turn_ends() {
    let mut rig = Rig::at_rest([1, 2]);
    assert_eq!((rig.begin(1), rig.begin(2)), (Some(true), Some(true)));
    let rests = |rig: &mut Rig, sid| rig.roster.set(sid, Doing::Idle, false).expect("it goes on");
    assert_eq!(rests(&mut rig, 1), [Effect::DropPermissions(1)], "another one runs, nobody waits");
    assert_eq!(rig.begin(1), Some(true));
    let _ = rig.roster.want(request(3, "x:3"));
    assert_eq!(rests(&mut rig, 1), [Effect::DropPermissions(1), Effect::Nudge], "somebody waits");
}

#[test]
fn who_rests_longest_gives_way_and_nobody_else() {
    let mut rig = Rig::default();
    (1..=5).for_each(|sid| drop(rig.roster.want(request(sid, &format!("x:{sid}")))));
    assert_eq!(rig.admit(3), (vec![1, 2, 3], vec![]), "all of them start: nobody can give way");
    assert_eq!(rig.roster.numbers().waiting, 2);
    for sid in [2, 3, 1] {
        assert_eq!(rig.rest(sid, 1), Some(true));
    }
    // Something comes for the one that has rested longest: it does not rest.
    assert_eq!(rig.roster.want(request(2, "x:2")), [wake(2)]);
    rig.work.insert(2);
    assert_eq!(rig.admit(3), (vec![], vec![Effect::Park(3), Effect::Park(1)]));
    assert_eq!(rig.admit(3), (vec![], vec![]), "two make room for two");
    assert_eq!((rig.roster.set(3, Doing::Closing, false), rig.begin(1)), (Some(vec![Effect::Nudge]), None));
    assert_eq!(rig.roster.remove(3), Some(None));
    assert_eq!(rig.admit(3), (vec![4], vec![]));
    // It came back while it closed: it waits behind the others.
    assert_eq!(rig.roster.want(request(1, "x:1")), []);
    let again = rig.roster.remove(1).flatten().expect("its request");
    let _ = rig.roster.want(again);
    assert_eq!((rig.admit(3).0, rig.roster.numbers().waiting), (vec![5], 1));
}

#[test]
fn an_agent_that_works_aside_gives_way_last() {
    let mut rig = Rig::at_rest([1, 2]);
    rig.roster.hold_back(1);
    let _ = rig.roster.want(request(3, "x:3"));
    assert_eq!(rig.admit(2).1, [Effect::Park(2)]);
    let _ = rig.roster.want(request(4, "x:4"));
    assert_eq!(rig.admit(2).1, [Effect::Park(1)], "where nobody else is left");
}

#[test]
fn what_comes_while_it_closes_keeps_its_wish_to_go_on() {
    let mut rig = Rig::at_rest([1]);
    assert!(!rig.roster.may_park(1, true) && rig.roster.may_park(1, false) && !rig.roster.may_park(1, false));
    let _ = rig.roster.want(WorkRequest { auto_continue: true, ..request(1, "x:1") });
    let _ = rig.roster.want(request(1, "x:1"));
    assert!(rig.roster.remove(1).flatten().expect("its request").auto_continue);
    assert_eq!(rig.roster.remove(1), None);
}

#[test]
fn a_full_agent_holds_up_its_own_alone() {
    let mut rig = Rig::default();
    for (sid, key) in [(1, "one:1"), (2, "one:2"), (3, "x:3"), (4, "one:4")] {
        let _ = rig.roster.want(request(sid, key));
    }
    assert_eq!(rig.admit(9), (vec![1, 3], vec![]));
    assert_eq!((rig.rest(3, 1), rig.rest(1, 1)), (Some(true), Some(true)));
    assert_eq!(rig.admit(9), (vec![], vec![Effect::Park(1)]), "its own gives way");
    let _ = rig.roster.remove(1);
    assert_eq!(rig.admit(9), (vec![2], vec![]));
}

#[test]
fn a_session_without_a_thread_waits_where_it_waited() {
    let mut rig = Rig::default();
    (1..=3).for_each(|sid| drop(rig.roster.want(request(sid, &format!("x:{sid}")))));
    let (admitted, _) = rig.roster.admit(2, &TwoAgents, &|_| false);
    assert_eq!(rig.roster.want(request(2, "x:2")), [wake(2)]);
    for waiting in admitted {
        let auto_continue = waiting.request.sid == 2;
        assert_eq!(rig.roster.give_back(waiting, auto_continue), [Effect::Nudge]);
    }
    assert_eq!(rig.roster.numbers(), Numbers { live: 0, running: 0, waiting: 3, kept: 0 });
    let again: Vec<_> = rig.roster.admit(2, &TwoAgents, &|_| false).0.into_iter().map(|w| w.request).collect();
    assert_eq!(again, [request(1, "x:1"), WorkRequest { auto_continue: true, ..request(2, "x:2") }]);
}

#[test]
fn whose_leftovers_run_waits_and_holds_up_nobody() {
    let mut rig = Rig::default();
    rig.roster.search_leftovers();
    (1..=3).for_each(|sid| drop(rig.roster.want(request(sid, &format!("x:{sid}")))));
    assert_eq!(rig.admit(9), (vec![], vec![]), "it could be anybody's");
    assert!(rig.roster.is_held(5));
    assert_eq!(rig.roster.block_on_leftovers([1, 3]), [Effect::Nudge]);
    assert_eq!((rig.admit(9).0, rig.roster.numbers().waiting), (vec![2], 2));
    assert_eq!([1, 2, 5].map(|sid| rig.roster.is_held(sid)), [true, true, false]);
    assert_eq!(rig.roster.unblock(3), [Effect::Nudge]);
    assert_eq!(rig.admit(9).0, [3]);
    assert_eq!(rig.roster.unblock_all(), [Effect::Nudge]);
    assert_eq!((rig.admit(9).0, rig.roster.numbers().waiting), (vec![1], 0));
}

#[test]
fn probation_ends_for_all_that_waited() {
    let mut rig = Rig::at_rest([1, 2]);
    let t = rig.now();
    let later = t + Duration::from_secs(10);
    assert_eq!(rig.roster.begin_probation(1, t), [Effect::Nudge]);
    assert!(rig.roster.wait_for_probation(2) && !rig.roster.wait_for_probation(2), "known by then");
    assert!(rig.roster.wait_for_probation(9));
    assert_eq!(rig.roster.take_probation(t.checked_sub(Duration::from_secs(1)).expect("earlier")), None);
    assert_eq!(rig.roster.probation(), Some((1, t)));
    assert_eq!(rig.roster.take_probation(later), Some(1));
    assert_eq!((rig.roster.probation(), rig.roster.take_probation(later)), (None, None), "taken once");
    assert_eq!(rig.roster.end_probation(1), [wake(2)], "who is live");
    assert_eq!(rig.roster.end_probation(1), []);
    let _ = rig.roster.begin_probation(2, t);
    let _ = rig.roster.end_probation(1);
    assert_eq!(rig.roster.probation(), Some((2, t)), "another one's");
}

#[test]
fn only_a_worker_that_rests_and_is_ready_is_reserved_and_once() {
    let mut rig = Rig::at_rest([7]);
    assert_eq!(rig.roster.rest(7, None, false).map(|(free, _)| free), Some(true));
    assert_eq!(rig.reserve("x:7"), None, "its agent is not ready");
    assert_eq!(rig.rest(7, 3), Some(true));
    assert_eq!(rig.reserve("x:b"), None, "another key");
    rig.work.insert(7);
    assert_eq!(rig.reserve("x:7"), None, "it has a letter to read");
    rig.work.clear();
    assert_eq!(rig.reserve("x:7"), Some(DirectBegin { sid: 7, epoch: 3 }));
    assert_eq!(rig.roster.numbers().running, 1);
    assert!(rig.roster.is_reserved(7) && rig.reserve("x:7").is_none() && !rig.roster.may_park(7, false));
    assert_eq!((rig.begin(7), rig.rest(7, 3)), (Some(false), Some(false)), "its worker waits");
    assert!(rig.roster.hand_over(7) && !rig.roster.is_reserved(7));
    assert_eq!((rig.begin(7), rig.roster.numbers().running), (Some(true), 1));
    assert_eq!((rig.rest(7, 3), rig.roster.numbers().running), (Some(true), 0));
    let _ = rig.roster.close_all(|_| true, false);
    assert_eq!(rig.reserve("x:7"), None, "a stop");
}

#[test]
fn a_worker_that_writes_the_end_of_its_turn_is_reserved_too() {
    let mut rig = Rig::at_rest([7]);
    assert_eq!(rig.begin(7), Some(true));
    assert_eq!(rig.reserve("x:7"), None, "it runs");
    rig.roster.finishing(7, 3);
    assert!(rig.reserve("x:7").is_some());
    assert_eq!(rig.roster.end_reservation(7), [wake(7)]);
    assert_eq!(rig.roster.numbers().running, 1, "it is not done yet");
    rig.roster.finishing(7, 3);
    assert!(rig.reserve("x:7").is_some());
    assert_eq!(rig.roster.set(7, Doing::Idle, false), Some(vec![Effect::DropPermissions(7)]));
    assert_eq!(rig.roster.numbers().running, 1);
    assert_eq!(rig.roster.end_reservation(7), [wake(7), Effect::Nudge]);
    assert_eq!(rig.roster.numbers().running, 0, "it is done");
    assert_eq!(rig.begin(7), Some(true));
    rig.roster.finishing(7, 3);
    assert!(rig.reserve("x:7").is_some());
    assert_eq!(rig.rest(7, 3), Some(false));
    assert!(rig.roster.hand_over(7));
    assert_eq!(rig.roster.numbers().running, 1);
}

#[test]
fn a_reservation_that_came_to_nothing_wakes_the_worker() {
    let mut rig = Rig::at_rest([7]);
    assert!(rig.reserve("x:7").is_some());
    assert_eq!(rig.roster.end_reservation(7), [wake(7), Effect::Nudge]);
    assert_eq!((rig.reserve("x:7"), rig.roster.numbers().running), (None, 0), "until it rests again");
    assert_eq!(rig.roster.end_reservation(7), [], "it is none any more");
}

#[test]
fn a_turn_for_a_worker_that_went_is_looked_for_by_the_next() {
    let mut rig = Rig::at_rest([7]);
    assert!(rig.reserve("x:7").is_some());
    assert!(rig.roster.set(7, Doing::Closing, false).is_some());
    assert_eq!((rig.roster.numbers().running, rig.roster.hand_over(7)), (0, false));
    assert_eq!(rig.roster.want(request(7, "x:7")), []);
    assert_eq!(rig.roster.remove(7), Some(Some(request(7, "x:7"))));
    assert!(!rig.roster.hand_over(7) && rig.roster.end_reservation(7).is_empty());
}

#[test]
fn a_key_is_of_its_newest_session() {
    let mut rig = Rig::default();
    for sid in [1, 2] {
        let _ = rig.roster.want(request(sid, "x:a"));
        assert_eq!((rig.admit(9).0, rig.rest(sid, sid)), (vec![sid], Some(true)));
    }
    let _ = rig.roster.remove(1);
    assert_eq!(rig.reserve("x:a"), Some(DirectBegin { sid: 2, epoch: 2 }));
    let _ = rig.roster.remove(2);
    assert_eq!(rig.reserve("x:a"), None);
}

#[test]
fn a_session_that_gave_way_wants_nothing_any_more() {
    let mut rig = Rig::at_rest([1]);
    let _ = rig.roster.want(request(2, "x:2"));
    assert_eq!((rig.roster.retire(2), rig.roster.retire(1)), (vec![], vec![Effect::Retire(1)]));
    assert_eq!(rig.admit(9), (vec![], vec![]));
}

#[test]
fn a_stop_lets_go_who_rests_and_holds_nothing() {
    let mut rig = Rig::at_rest([1, 3, 4]);
    let _ = rig.roster.want(request(2, "one:2"));
    assert_eq!((rig.admit(9).0, rig.rest(2, 3)), (vec![2], Some(true)), "with an agent");
    assert!(rig.roster.set(3, Doing::Starting, false).is_some());
    let _ = rig.roster.want(request(9, "x:9"));
    let effects = rig.roster.close_all(|sid| sid == 4, false);
    assert_eq!(effects, [Effect::Release(1), Effect::Stop(2), Effect::Stop(3), Effect::Stop(4)]);
    assert_eq!(rig.roster.numbers(), Numbers { live: 3, running: 0, waiting: 0, kept: 0 });
    assert_eq!((rig.roster.want(request(8, "x:8")), rig.admit(9)), (vec![], (vec![], vec![])));
    assert_eq!(rig.roster.want(request(3, "x:3")), [wake(3)]);
    assert_eq!(rig.roster.abandon(), [(2, "one:2".into()), (3, "x:3".into()), (4, "x:4".into())]);
    assert_eq!((rig.roster.numbers(), rig.roster.remove(2)), (Numbers::default(), None));
}

#[test]
fn what_blocks_a_stop_is_shown_oldest_first() {
    let mut rig = Rig::at_rest([1, 2, 3]);
    let t = rig.now();
    let s = |n| t + Duration::from_secs(n);
    let running =
        |since, tool: Option<&str>| Doing::Running { turn_id: Some("t".into()), since, tool: tool.map(str::to_owned) };
    assert!(rig.roster.set(1, running(s(1), None), false).is_some());
    assert!(rig.roster.set(2, running(s(0), None), false).is_some());
    rig.roster.set_tool(2, Some("bash".into()));
    rig.roster.set_tool(3, Some("none runs".into()));
    let shown: Vec<_> = rig.roster.blocking(s(3)).into_iter().map(|b| (b.key, b.age.as_secs(), b.tool)).collect();
    assert_eq!(shown, [("x:2".into(), 3, Some("bash".into())), ("x:1".into(), 2, None)]);
    assert_eq!(rig.roster.running().collect::<Vec<_>>(), [1, 2]);
    assert_eq!(rig.roster.live().map(|(sid, _)| sid).collect::<Vec<_>>(), [1, 2, 3]);
}

/// Something that happens to a roster.
#[derive(Clone, Copy, Debug)]
enum Op {
    Want(i64),
    Admit(usize),
    Start(usize),
    GiveBack(usize),
    Begin(i64),
    Rest(i64),
    Finishing(i64),
    Closing(i64),
    MayPark(i64),
    Reserve(i64),
    HandOver(i64),
    EndReservation(i64),
    Remove(i64),
    Retire(i64),
    Block(i64),
    Unblock(i64),
    HoldBack(i64),
    Unread(i64),
    Read(i64),
    Routes,
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let sid = || 0_i64..8;
    let op = prop_oneof![
        4 => sid().prop_map(Op::Want),
        4 => (1_usize..6).prop_map(Op::Admit),
        4 => (0_usize..4).prop_map(Op::Start),
        1 => (0_usize..4).prop_map(Op::GiveBack),
        2 => sid().prop_map(Op::Begin),
        4 => sid().prop_map(Op::Rest),
        1 => sid().prop_map(Op::Finishing),
        1 => sid().prop_map(Op::Closing),
        1 => sid().prop_map(Op::MayPark),
        2 => sid().prop_map(Op::Reserve),
        1 => sid().prop_map(Op::HandOver),
        1 => sid().prop_map(Op::EndReservation),
        2 => sid().prop_map(Op::Remove),
        1 => sid().prop_map(Op::Retire),
        1 => sid().prop_map(Op::Block),
        1 => sid().prop_map(Op::Unblock),
        1 => sid().prop_map(Op::HoldBack),
        1 => sid().prop_map(Op::Unread),
        2 => sid().prop_map(Op::Read),
        1 => Just(Op::Routes),
    ];
    proptest::collection::vec(op, 0..120)
}

fn key_of(sid: i64) -> String {
    if sid < 3 { format!("one:{sid}") } else { format!("x:{sid}") }
}

/// What the roster should know of who waits, in the order of arrival; the newest at the end.
#[derive(Default)]
struct Reference {
    /// Each with the number of its arrival.
    waiting: Vec<(u64, i64)>,
    arrivals: u64,
    /// Admitted, and its worker is not started yet.
    admitted: Vec<(u64, Waiting)>,
    /// Since when a session is blocked does not matter to a request that was not looked at yet.
    blocked: BTreeSet<i64>,
    set_aside: BTreeSet<i64>,
}

impl Reference {
    /// Who gets a slot: in the order of arrival, whose agent has room and whose leftovers are gone.
    fn admit(&mut self, rig: &Rig, max_live: usize) -> Vec<(u64, i64)> {
        self.waiting.sort_unstable();
        let mut live: Vec<String> = rig.roster.live().map(|(_, key)| key.to_owned()).collect();
        let mut admitted = Vec::new();
        for place @ (_, sid) in std::mem::take(&mut self.waiting) {
            let key = key_of(sid);
            let of_one = live.iter().filter(|k| k.starts_with("one:")).count();
            let room = live.len() < max_live && (!key.starts_with("one:") || of_one < 1);
            if room && !self.set_aside.contains(&sid) {
                if self.blocked.contains(&sid) {
                    self.set_aside.insert(sid);
                } else {
                    live.push(key);
                    admitted.push(place);
                    continue;
                }
            }
            self.waiting.push(place);
        }
        admitted
    }
}

fn happen(rig: &mut Rig, reference: &mut Reference, op: Op) {
    let t = rig.now();
    match op {
        Op::Want(sid) => {
            let is_live = rig.roster.doing(sid).is_some();
            let _ = rig.roster.want(request(sid, &key_of(sid)));
            if !is_live && reference.waiting.iter().all(|(_, waits)| *waits != sid) {
                reference.arrivals += 1;
                reference.waiting.push((reference.arrivals, sid));
            }
        }
        Op::Admit(max_live) => admit(rig, reference, max_live),
        Op::Start(nth) => {
            if nth < reference.admitted.len() {
                let (_, started) = reference.admitted.remove(nth);
                assert_eq!(rig.roster.doing(started.request.sid), Some(&Doing::Starting));
            }
        }
        Op::GiveBack(nth) => {
            if nth < reference.admitted.len() {
                let (number, waiting) = reference.admitted.remove(nth);
                reference.waiting.push((number, waiting.request.sid));
                assert_eq!(rig.roster.give_back(waiting, false), [Effect::Nudge]);
            }
        }
        Op::Block(sid) => {
            let _ = rig.roster.block_on_leftovers([sid]);
            reference.blocked.insert(sid);
        }
        Op::Unblock(sid) => {
            let _ = rig.roster.unblock(sid);
            reference.blocked.remove(&sid);
            reference.set_aside.clear();
        }
        Op::Retire(sid) => {
            let _ = rig.roster.retire(sid);
            reference.waiting.retain(|(_, waits)| *waits != sid);
            reference.set_aside.remove(&sid);
        }
        Op::Unread(sid) => drop(rig.work.insert(sid)),
        Op::Read(sid) => drop(rig.work.remove(&sid)),
        Op::Routes => rig.roster.routes_changed(),
        Op::HoldBack(sid) => rig.roster.hold_back(sid),
        Op::Reserve(sid) => drop(rig.reserve(&key_of(sid))),
        Op::HandOver(sid) => drop(rig.roster.hand_over(sid)),
        Op::EndReservation(sid) => drop(rig.roster.end_reservation(sid)),
        Op::Finishing(sid) => rig.roster.finishing(sid, 1),
        // A worker says something once it is started.
        Op::Begin(sid) | Op::Rest(sid) | Op::Closing(sid) | Op::MayPark(sid) | Op::Remove(sid)
            if reference.admitted.iter().all(|(_, a)| a.request.sid != sid) =>
        {
            match op {
                Op::Begin(_) => drop(rig.roster.begin(sid, t, false)),
                Op::Rest(_) => drop(rig.rest(sid, 1)),
                Op::Closing(_) => drop(rig.roster.set(sid, Doing::Closing, false)),
                Op::MayPark(_) => drop(rig.roster.may_park(sid, rig.work.contains(&sid))),
                _ => drop(rig.roster.remove(sid)),
            }
        }
        Op::Begin(_) | Op::Rest(_) | Op::Closing(_) | Op::MayPark(_) | Op::Remove(_) => {}
    }
}

fn admit(rig: &mut Rig, reference: &mut Reference, max_live: usize) {
    let expected = reference.admit(rig, max_live);
    let resting: BTreeSet<i64> =
        rig.roster.live.iter().filter(|(_, e)| e.doing == Doing::Idle).map(|(s, _)| *s).collect();
    let work = rig.work.clone();
    let (admitted, effects) = rig.roster.admit(max_live, &TwoAgents, &|sid| work.contains(&sid));
    let sids: Vec<i64> = admitted.iter().map(|w| w.request.sid).collect();
    assert_eq!(sids, expected.iter().map(|(_, sid)| *sid).collect::<Vec<_>>(), "in the order of arrival");
    for effect in effects {
        let Effect::Park(sid) = effect else { panic!("{effect:?}") };
        assert!(resting.contains(&sid) && !work.contains(&sid), "{sid} gives way and does not rest");
        assert!(!reference.waiting.is_empty(), "{sid} gives way to nobody");
    }
    reference.admitted.extend(expected.into_iter().map(|(number, _)| number).zip(admitted));
}

/// What is counted is what a count would say; nobody is twice in it.
fn assert_counted(rig: &Rig, reference: &Reference) {
    let roster = &rig.roster;
    let count = |kind: Kind| roster.live.values().filter(|e| e.doing.kind() == kind).count();
    let mut waiting: Vec<i64> = reference.waiting.iter().map(|(_, sid)| *sid).collect();
    waiting.sort_unstable();
    let once: BTreeSet<i64> = waiting.iter().copied().collect();
    assert_eq!(once.len(), waiting.len(), "a session waits twice");
    assert!(once.iter().all(|sid| !roster.live.contains_key(sid)), "a session waits and is live");
    let numbers = Numbers { live: roster.live.len(), running: count(Kind::Running), waiting: waiting.len(), kept: 0 };
    assert_eq!(roster.numbers(), numbers);
    for (name, slots) in &roster.by_agent {
        let mine: Vec<_> = roster.live.iter().filter(|(_, e)| e.agent == *name).collect();
        let closing = mine.iter().filter(|(_, e)| e.doing == Doing::Closing).count();
        let resting = mine.iter().filter(|(_, e)| e.doing == Doing::Idle).map(|(sid, e)| (e.used, **sid)).collect();
        assert_eq!((slots.live, slots.closing, &slots.resting), (mine.len(), closing, &resting), "{name}");
    }
    assert_eq!(roster.by_agent.values().map(|slots| slots.live).sum::<usize>(), roster.live.len());
    assert!(roster.by_agent.get("one").is_none_or(|slots| slots.live <= 1));
    for (key, sid) in &roster.by_key {
        assert_eq!(roster.live.get(sid).map(|e| &e.key), Some(key));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 192, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever happens in whatever order: slots go to who has waited longest, nobody who could have one waits, and the
    /// counts are right.
    #[test]
    fn it_agrees_with_a_simple_reference(ops in ops()) {
        let (mut rig, mut reference) = (Rig::default(), Reference::default());
        for op in ops {
            happen(&mut rig, &mut reference, op);
            assert_counted(&rig, &reference);
        }
    }
}

#[test]
fn a_stop_leaves_alone_whose_agents_go_on() {
    let mut rig = Rig::at_rest([1, 2, 3]);
    rig.roster.adopt(&request(4, "x:4"), "a", false, None);
    assert!(rig.roster.doing(4).is_some(), "whatever the limits say");
    [2, 3, 4].into_iter().for_each(|sid| rig.roster.set_kept(sid, true));
    rig.roster.set_kept(4, false);
    assert_eq!(rig.begin(3), Some(true));
    assert_eq!(rig.roster.numbers(), Numbers { live: 4, running: 1, waiting: 0, kept: 2 });
    let closed = rig.roster.close_all(|_| true, true);
    assert_eq!(closed, [Effect::Stop(1), Effect::Stop(4)]);
    assert_eq!(rig.roster.numbers(), Numbers { live: 2, running: 0, waiting: 0, kept: 2 });
    assert_eq!(rig.roster.running().count(), 0, "nobody waits for its turn");
    let now = rig.now();
    assert!(rig.roster.blocking(now).is_empty());
    assert!(!rig.roster.may_park(2, false), "it is not closed for want of work");
    assert_eq!(rig.roster.abandon().iter().map(|(sid, _)| *sid).collect::<Vec<_>>(), [1, 4]);
    assert_eq!(rig.roster.spared().collect::<Vec<_>>(), [2, 3]);
    // A shutdown comes after all.
    assert_eq!(rig.roster.spare_none(), [Effect::Stop(2), Effect::Stop(3)]);
    assert_eq!(rig.roster.numbers(), Numbers { live: 2, running: 1, waiting: 0, kept: 2 });
    rig.roster.remove(3);
    assert_eq!(rig.roster.numbers(), Numbers { live: 1, running: 0, waiting: 0, kept: 1 });
}
