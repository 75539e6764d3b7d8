//! The parts of a session's worker: its agent, the names in the agent's definition, the working directory.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::agent::{self, Agent, Identity};
use crate::config::{self, AgentKind};
use crate::daemon::context::Context;
use crate::model::names;

/// The agent of a definition, not started yet. Tests may pass another function.
#[must_use]
pub fn make_agent(ctx: &Arc<Context>, config: &config::Agent) -> Box<dyn Agent> {
    match config.kind {
        AgentKind::Echo => Box::new(agent::echo::Echo::new(config.delay)),
        AgentKind::Exec => Box::new(agent::exec::Exec::new(config)),
        AgentKind::Acp => Box::new(agent::acp::Acp::new(config)),
        AgentKind::Openai => {
            let looked_up = |f: &PathBuf| config::paths::secret_file(f, &ctx.config(), &config::paths::process_env);
            let api_key_file = config.api_key_file.as_ref().map(looked_up);
            Box::new(agent::openai::Openai::new(&config::Agent { api_key_file, ..config.clone() }))
        }
        AgentKind::Lua => Box::new(crate::daemon::lua_agent(ctx, config)),
    }
}

/// The working directory of a session, as the system stands now.
#[must_use]
pub fn working_dir(state_dir: &Path, template: &str, key: &str, id: &str) -> PathBuf {
    let home = config::paths::process_env("HOME");
    names::working_dir(state_dir, home.as_deref(), template, names::Whose { key, id }, Path::is_dir)
}

/// The agent's definition with the session's names in its arguments and its environment.
pub(super) fn named(config: config::Agent, identity: &Identity) -> config::Agent {
    let expand = |text: String| names::expand(&text, &identity.key, &identity.session_id);
    let arguments = |command: Vec<String>| {
        let mut command = command.into_iter();
        command.next().into_iter().chain(command.map(expand)).collect()
    };
    let values = |env: BTreeMap<String, String>| env.into_iter().map(|(name, value)| (name, expand(value))).collect();
    let server = |(name, server): (String, config::McpServer)| {
        let (command, env) = (arguments(server.command), values(server.env));
        (name, config::McpServer { command, env, ..server })
    };
    let (command, env) = (arguments(config.command), values(config.env));
    let mcp = config.mcp.into_iter().map(server).collect();
    config::Agent { command, env, mcp, ..config }
}

/// Creates the working directory of an agent that is a process.
pub(super) fn make_dir(cwd: &Path, kind: AgentKind) -> std::io::Result<()> {
    match kind {
        AgentKind::Acp | AgentKind::Exec => std::fs::create_dir_all(cwd),
        AgentKind::Openai | AgentKind::Lua | AgentKind::Echo => Ok(()),
    }
}
