//! The bounds of the session's agent: its control group and its confinement, what is shown of its process, and whether a
//! turn that ended went beyond the limit of memory.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::Write as _;

use super::TurnHost;
use crate::agent::process::{Bound, Process, confine};
use crate::agent::{Answer, Failure, Host as _, Said};
use crate::daemon::registry::ProcessInfo;
use crate::model::out_of_memory::{self, Judgement, Leader, Memory};
use crate::proc::cgroup;

/// The variable that names a directory for temporary files.
const TMPDIR: &str = "TMPDIR";

impl TurnHost {
    /// The bounds of an agent that is about to be started below a shim (its name and pid), or without one.
    pub(super) fn bounds(
        &self,
        shim: Option<(&str, u32)>,
        env: &mut BTreeMap<String, OsString>,
    ) -> Result<Option<Bound>, String> {
        let Some((name, pid)) = shim else {
            let refused =
                self.agent.confine_required.then(|| "it must be confined, and agents are not kept".to_owned());
            return refused.map_or(Ok(None), Err);
        };
        let bounds = self.ctx.bounds();
        if let Some(shims) = bounds.groups().shims() {
            // One that stays in the daemon's group is none the worse for it.
            let procs = std::fs::OpenOptions::new().write(true).open(shims.join(cgroup::PROCS));
            if let Err(e) = procs.and_then(|mut file| file.write_all(pid.to_string().as_bytes())) {
                log::warn!("the shim {pid} stays in the daemon's control group: {e}");
            }
        }
        if !env.contains_key(TMPDIR)
            && let Some(dir) = bounds.temporary(name).map_err(|e| format!("its temporary files: {e}"))?
        {
            env.insert(TMPDIR.to_owned(), dir.into());
        }
        bounds.of(name, &self.agent, &self.identity.cwd, env).map(Some).map_err(|e| format!("its limits: {e}"))
    }

    /// What is shown of the agent's process.
    pub fn process_runs(&mut self, process: &Process) {
        let bounds = self.ctx.bounds();
        let confine = bounds.ground().confine(&self.agent);
        let confined = process.confined().filter(|_| confine != crate::config::Confine::None);
        let info = ProcessInfo {
            session_id: self.identity.session_id.clone(),
            agent: self.agent.name.clone(),
            pid: process.id(),
            start: process.start_time(),
            cgroup: process.shim().and_then(|name| bounds.groups().agent(name)),
            confined: confined.map(|confined| confine::told(confine, &confined)),
        };
        // What happened before is told; of one that died meanwhile it has yet to be judged.
        self.out_of_memory = if info.is_live() { info.usage().oom_kill.unwrap_or(0) } else { 0 };
        self.ctx.registry.set_process(self.sid, info);
    }

    /// What a shim's agent has left is removed.
    pub(super) fn unbound(&self, shim: &str) {
        self.ctx.bounds().clean(shim);
    }

    /// The turn has its answer. If the kernel has ended processes of the agent for want of memory meanwhile, that is told, or is
    /// why the turn failed.
    pub fn within_memory(&mut self, answer: Answer) -> Answer {
        let Some(process) = self.ctx.registry.process(self.sid) else { return answer };
        let usage = process.usage();
        let leader = match (&answer, process.is_live()) {
            (_, true) => Leader::Lives,
            (Answer::Completed { .. }, false) => Leader::Succeeded,
            (Answer::Failed(_) | Answer::Cancelled, false) => Leader::Failed,
        };
        let memory = Memory { ended: usage.oom_kill, limit: usage.memory_limit, peak: usage.memory_peak };
        let verdict = out_of_memory::judge(self.out_of_memory, &memory, leader);
        self.out_of_memory = usage.oom_kill.unwrap_or(0);
        match (verdict, answer) {
            (Judgement::Nothing, answer) => answer,
            (Judgement::Failed(text), Answer::Failed(failure)) => {
                Answer::Failed(Failure::new(out_of_memory::CODE, format!("{text}; {}", failure.message)))
            }
            (Judgement::Notice(text) | Judgement::Failed(text), answer) => {
                self.said(Said::Notice(out_of_memory::CODE.into(), text));
                answer
            }
        }
    }
}
