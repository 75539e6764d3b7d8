//! The only door above the daemon: the requests of every surface (HTTP, scripts, later chat networks and editors),
//! independent of their protocol.
//!
//! [`Service`] has a file for each subject: [`intake`] accepts messages, [`feed`] follows a key or all keys,
//! [`sessions`] shows sessions and acts on them, [`scripts`] handles the operator's scripts, [`control`] the daemon as
//! a whole. It keeps no state of its own and makes no decisions about sessions; it must not know HTTP.

use std::sync::Arc;

use crate::daemon::context::Context;
use crate::daemon::delivery::Delivery;

pub mod control;
mod fault;
pub mod feed;
pub mod intake;
mod script_host;
pub mod scripts;
pub mod sessions;

pub use fault::Fault;
pub use script_host::ScriptHost;

/// The service, over the handles that the daemon's threads share.
pub struct Service {
    ctx: Arc<Context>,
    delivery: Delivery,
}

impl std::fmt::Debug for Service {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Service").field("ctx", &self.ctx).finish_non_exhaustive()
    }
}

impl Service {
    /// A service over a daemon and its delivery.
    #[must_use]
    pub const fn new(ctx: Arc<Context>, delivery: Delivery) -> Self {
        Self { ctx, delivery }
    }

    /// The handles that the daemon's threads share, for surfaces that show its numbers.
    #[must_use]
    pub const fn context(&self) -> &Arc<Context> {
        &self.ctx
    }

    /// The id of this boot.
    #[must_use]
    pub fn boot_id(&self) -> &str {
        &self.ctx.boot_id
    }

    /// The key of a session.
    ///
    /// # Errors
    /// There is no such session, or the store fails.
    pub fn key_of(&self, session_id: &str) -> Result<String, Fault> {
        Ok(self.ctx.store.key_of(session_id)?)
    }
}
