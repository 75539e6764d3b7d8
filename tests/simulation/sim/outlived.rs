//! What goes on without a daemon, and what the next one makes of it.

use super::*;

impl Sim {
    /// Whether agents outlive the daemon at all.
    pub(super) fn keeps(&self) -> bool {
        self.config.agents.keep != Keep::Never
    }

    /// No daemon is there: agents go on.
    pub(super) fn go_on_outside(&mut self) {
        let steps = self.dice.below(6);
        let mut world = self.outside.world();
        for _ in 0..steps {
            if self.dice.chance(10) && !self.quiet {
                world.surprise();
            } else {
                world.act();
            }
        }
        if self.dice.chance(2) && !self.quiet {
            world.reboot();
        }
        world.pass();
    }

    /// A boot looks for the shims of earlier daemons, and holds up the sessions whose agents are to be ended.
    pub(super) fn look_for_leftovers(&mut self, process: &mut Process, recovered: &Recovered) {
        let pending: BTreeSet<i64> = recovered.pending.iter().map(|p| p.sid).collect();
        let rows = process.ctx.store.shims().expect("the shims are read");
        process.spared = rows.into_iter().filter(|(sid, _)| pending.contains(sid)).map(|(_, row)| row.name).collect();
        let there = self.outside.world().there();
        let left: Vec<(String, i64)> = there.into_iter().filter(|(name, _)| !process.spared.contains(name)).collect();
        process.blocked = left.iter().map(|(_, sid)| *sid).collect();
        process.leftovers = left.into_iter().map(|(name, _)| name).collect();
        if self.dice.chance(10) && !self.quiet {
            process.blocked.extend([1, 2]);
        }
        process.swept = process.blocked.is_empty() && self.dice.chance(50);
        process.ctx.registry.search_leftovers();
        process.ctx.registry.block_on_leftovers(process.blocked.iter().copied());
    }

    /// What earlier agents left is ended, and its rows go.
    pub(super) fn sweep(&mut self) {
        let p = self.process.as_mut().expect("a process");
        if std::mem::replace(&mut p.swept, true) {
            return;
        }
        std::mem::take(&mut p.leftovers).iter().for_each(|name| self.outside.world().kill_shim(name));
        let blocked = std::mem::take(&mut p.blocked);
        let (ctx, spared) = (p.ctx.clone(), p.spared.clone());
        blocked.into_iter().for_each(|sid| ctx.registry.unblock(sid));
        let there: BTreeSet<String> = self.outside.world().there().into_iter().map(|(name, _)| name).collect();
        for (_, row) in ctx.store.shims().expect("the shims are read") {
            let earlier = row.boot_id != ctx.boot_id && !spared.contains(&row.name);
            if earlier && !there.contains(&row.name) && ctx.store.shim_gone(row.name).is_err() {
                return;
            }
        }
    }

    /// A daemon has left in order: agents go on where they are kept, and only there.
    pub(super) fn check_left_alive(&mut self) {
        let p = self.process.as_mut().expect("a process");
        let ending = p.coordinator.ending();
        // What a stop overtakes is killed with it.
        if ending.agents == Agents::End && !p.swept {
            std::mem::take(&mut p.leftovers).iter().for_each(|name| self.outside.world().kill_shim(name));
        }
        let mut world = self.outside.world();
        world.daemon_gone();
        let living = world.living();
        assert!(ending.agents == Agents::Keep || living.is_empty(), "agents outlive a stop that ends them: {living:?}");
    }

    /// An agent that lives and answers is gone on with, unless its session is over or the daemon stops.
    pub(super) fn check_gone_on(&self) {
        let given_up = std::mem::take(&mut self.outside.world().given_up);
        let stops = self.process.as_ref().is_some_and(|p| p.stop_began.is_some());
        // What a death interrupts is open for the next daemon.
        for sid in given_up.into_iter().filter(|_| !stops && !self.dead()) {
            let open = self.witness.number(&format!("SELECT count(*) FROM sessions WHERE sid={sid} AND status='open'"));
            assert_eq!(open, 0, "the agent of session {sid} lives, and is not gone on with");
        }
    }

    /// Each agent that lives is named by a row.
    pub(super) fn check_named(&self) {
        let rows = self.witness.texts("SELECT name FROM shims");
        let p = self.process.as_ref().expect("a process");
        for (name, sid) in self.outside.world().living() {
            let known = rows.contains(&name) || p.leftovers.contains(&name);
            let over = format!("SELECT status<>'open' FROM sessions WHERE sid={sid}");
            assert!(known || self.witness.number(&over) != 0, "no row names {name}, of {sid}");
        }
    }
}
