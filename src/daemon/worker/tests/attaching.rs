//! A worker that is to attach to an agent of another daemon, and cannot.

use super::*;
use crate::agent::Identity;
use crate::agent::process::Keeper;
use crate::daemon::shims::{HeldShim, Shims};
use crate::model::event::Actor;
use crate::model::settings::{OnInterrupt, Resume};
use crate::store::{Begin, Definition, ShimRow, Target};

/// Shims of which none answers.
#[derive(Default)]
struct Silent(Mutex<Vec<String>>);

impl Shims for Silent {
    fn keeper(&self) -> Option<Arc<Keeper>> {
        None
    }

    fn own_machine(&self) -> String {
        "machine".into()
    }

    fn set_orphan(&self, _: Duration) {}

    fn attach(&self, _: &ShimRow, _: &Identity, _: u64) -> Result<Box<dyn HeldShim>, String> {
        Err("nobody answers".into())
    }

    fn end(&self, shim: Option<&ShimRow>, _: Option<&str>, _: &str, _: Instant) -> Vec<String> {
        lock(&self.0).extend(shim.map(|shim| shim.name.clone()));
        Vec::new()
    }

    fn kill(&self, _: Option<&str>, _: Instant) -> Vec<String> {
        Vec::new()
    }
}

/// A command ran when its daemon died, and the worker of the next one: gives the turn too.
fn left() -> (Rig, Arc<Silent>, Worker, String) {
    let rig = Rig::new();
    let (ctx, shims) = (&rig.ctx, Arc::<Silent>::default());
    let store = &ctx.store;
    let accepted = store.accept_message(message(ctx, "hi")).unwrap();
    let sid = accepted.sid;
    let definition = Definition { json: "{}".into(), per_turn: true };
    let epoch = store.open_activation(sid, "default".into(), "/".into(), Some(definition)).unwrap().epoch;
    let begin = Begin {
        sid,
        epoch,
        on_interrupt: OnInterrupt::Resume,
        resume: Resume::Auto,
        policy: ctx.policy(),
        auto_continue: false,
        context: None,
        fresh_id: String::new(),
        probation_at: 2,
    };
    let begun = store.begin_turn(begin).unwrap().unwrap();
    let shim = ShimRow {
        name: "shim".into(),
        token: [1; 32],
        machine: "machine".into(),
        boot_id: "boot".into(),
        pid: 1,
        pid_start: 1,
    };
    store.note_shim(sid, epoch, Some(begun.turn.tid), shim).unwrap();
    let boot = BootInfo { boot_id: "next".into(), pid: 1, threshold: 3, machine: Some("machine".into()) };
    let pending = store.open_boot(boot).unwrap().pending.pop().unwrap();
    ctx.set_shims(Some(shims.clone()));
    ctx.registry.adopt(&pending);
    let request = WorkRequest { sid, key: "a:b".into(), auto_continue: false };
    let mailbox = ctx.registry.mailbox(sid).unwrap();
    let worker = Worker::attach(ctx, &request, pending, &mailbox);
    (rig, shims, worker, accepted.turn_id)
}

/// A command without a row was never started: the next daemon would begin it again.
#[test]
fn the_row_of_a_command_that_is_gone_stays_until_its_turn_is_settled() {
    let (rig, shims, mut worker, turn) = left();
    rig.fail("settle_pending", 1);
    let (_, next) = drive(&mut worker, Input::Go);
    assert!(matches!(next, Next::Wait { until: Some(_), agent: false }), "{next:?}");
    assert_eq!((*lock(&shims.0)).as_slice(), ["shim"], "what is left of it is ended");
    assert_eq!((rig.outcome(&turn).0.as_str(), rig.ctx.store.shims().unwrap().len()), ("running", 1));
    rig.pass(AGAIN);
    assert_eq!(drive(&mut worker, Input::Timeout).1, Next::Gone);
    assert_eq!((rig.outcome(&turn).0.as_str(), rig.ctx.store.shims().unwrap().len()), ("interrupted", 0));
}

#[test]
fn an_agent_whose_session_was_closed_before_it_was_attached_to_is_ended() {
    let (rig, shims, mut worker, turn) = left();
    rig.ctx.store.suspend(Target::Key("a:b".into()), "default".into(), Actor::User).unwrap();
    assert_eq!(drive(&mut worker, Input::Go).1, Next::Gone);
    assert_eq!((*lock(&shims.0)).as_slice(), ["shim"]);
    assert_eq!((rig.outcome(&turn).0.as_str(), rig.ctx.store.shims().unwrap().len()), ("cancelled", 0));
}
