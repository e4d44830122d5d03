//! Whether a node does what its roles ask of it, for `/readyz`.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::actors::gateway_pool::AppendHealth;
use crate::actors::slots::Slots;
use crate::clock::Clock;
use crate::config::Roles;
use crate::persistence::log::EventLog;

/// What readiness depends on.
pub(super) struct Readiness {
    /// The node's roles.
    pub roles: Roles,
    /// The log, which may know that it takes no writes.
    pub log: Arc<dyn EventLog>,
    /// What became of appends; none without the gateway role.
    pub appends: Option<Arc<AppendHealth>>,
    /// Where the shards stand.
    pub slots: Arc<Slots>,
    /// `query.stale_after` in milliseconds.
    pub stale_after_ms: i64,
    /// Whether the store answers.
    pub store: Arc<AtomicBool>,
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// The node is about to stop.
    pub stopping: AtomicBool,
}

impl Readiness {
    /// From now on, no role is ready.
    pub(super) fn stop(&self) {
        self.stopping.store(true, Ordering::Release);
    }

    /// Whether the node is ready for this role, or for all that it has; if not, why.
    pub(super) fn ask(&self, role: Option<&str>) -> Result<(), String> {
        if self.stopping.load(Ordering::Acquire) {
            return Err("the node is stopping".to_owned());
        }
        match role {
            None => self.roles.names().into_iter().try_for_each(|role| self.one(role)),
            Some(role) if self.roles.names().contains(&role) => self.one(role),
            Some(role) => {
                Err(format!("this node has no role {role:?}: its roles (node.roles) are {}", self.roles.names().join(", ")))
            }
        }
    }

    fn one(&self, role: &str) -> Result<(), String> {
        if let Some(why) = self.log.refuses().filter(|_| role == "gateway") {
            return Err(format!("gateway: {}: {why}", why.code()));
        }
        let (ready, why) = match role {
            "gateway" => {
                let takes = self.appends.as_ref().is_some_and(|appends| appends.takes_appends(self.clock.now()));
                (takes, "gateway: the log took no appends lately")
            }
            "shards" => (self.slots.all_fresh(self.stale_after_ms), "shards: the shard readers do not make progress"),
            "query" => (self.store.load(Ordering::Acquire), "query: the store does not answer"),
            // Replays run when somebody asks for one; nothing waits for them.
            _ => (true, ""),
        };
        if ready { Ok(()) } else { Err(why.to_owned()) }
    }
}
