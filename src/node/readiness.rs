//! Whether a node can do what its roles promise, for `/readyz`.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::actors::gateway_pool::AppendHealth;
use crate::actors::shard_table::ShardTable;
use crate::clock::{Clock, Stopwatch};
use crate::config::Roles;
use crate::persistence::log::LogAppender;

/// A node that has not learned the owners of all shards by then becomes ready without: some shards
/// may have no owner at all.
const DISCOVERY_TIMEOUT: Duration = Duration::from_secs(15);

/// Whether a node with the query role has learned the owner of every shard. Before that,
/// its answers are partial.
pub(super) struct ShardDiscovery {
    all: Box<dyn Fn() -> bool + Send + Sync>,
    since: Stopwatch,
    known: AtomicBool,
}

impl ShardDiscovery {
    /// Polls `all` from now on.
    pub(super) fn new(all: impl Fn() -> bool + Send + Sync + 'static) -> Self {
        Self { all: Box::new(all), since: Stopwatch::start(), known: AtomicBool::new(false) }
    }

    /// True from the first success on: a shard that moves or dies later is flagged in each answer
    /// and does not make the node unready.
    fn is_complete(&self, patience: Duration) -> bool {
        if self.known.load(Ordering::Acquire) {
            return true;
        }
        let all = (self.all)();
        let enough = all || self.since.elapsed() >= patience;
        if enough && !self.known.swap(true, Ordering::AcqRel) && !all {
            tracing::warn!(
                "ready for queries though some shards are not known yet: answers are partial and \
                 name them"
            );
        }
        enough
    }
}

/// The inputs of the readiness check.
pub(super) struct Readiness {
    pub roles: Roles,
    /// Asked whether it refuses writes.
    pub log: Arc<dyn LogAppender>,
    /// The outcome of recent appends; None without the gateway role.
    pub appends: Option<Arc<AppendHealth>>,
    pub slots: Arc<ShardTable>,
    /// `query.stale_after` in milliseconds: shards with older data are unready.
    pub stale_after_ms: i64,
    /// Whether the store answered the last probe.
    pub store: Arc<AtomicBool>,
    /// None on a node that answers for its own shards only.
    pub discovery: Option<ShardDiscovery>,
    pub clock: Arc<dyn Clock>,
    /// Set by a stop, before anything else.
    pub stopping: AtomicBool,
}

impl Readiness {
    /// Makes every role unready.
    pub(super) fn set_stopping(&self) {
        self.stopping.store(true, Ordering::Release);
    }

    /// Checks one role, or all that the node has; the error says why it is not ready.
    pub(super) fn check(&self, role: Option<&str>) -> Result<(), String> {
        if self.stopping.load(Ordering::Acquire) {
            return Err("the node is stopping".to_owned());
        }
        match role {
            None => self.roles.names().into_iter().try_for_each(|role| self.check_role(role)),
            Some(role) if self.roles.names().contains(&role) => self.check_role(role),
            Some(role) => Err(format!(
                "this node has no role {role:?}: its roles (node.roles) are {}",
                self.roles.names().join(", ")
            )),
        }
    }

    fn check_role(&self, role: &str) -> Result<(), String> {
        if let Some(why) = self.log.refuses().filter(|_| role == "gateway") {
            return Err(format!("gateway: {}: {why}", why.code()));
        }
        let (ready, why) = match role {
            "gateway" => {
                let takes = self
                    .appends
                    .as_ref()
                    .is_some_and(|appends| appends.accepts_appends(self.clock.uptime()));
                (takes, "gateway: the log took no appends lately")
            }
            "shards" => (
                self.slots.all_fresh(self.stale_after_ms),
                "shards: the shard readers do not make progress",
            ),
            "query" if !self.store.load(Ordering::Acquire) => {
                (false, "query: the store does not answer")
            }
            _ => {
                let known = self
                    .discovery
                    .as_ref()
                    .is_none_or(|knows| knows.is_complete(DISCOVERY_TIMEOUT));
                (
                    known,
                    "query: the owners of some shards are not known yet, answers would be partial",
                )
            }
        };
        if ready { Ok(()) } else { Err(why.to_owned()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_is_ready_when_it_knows_all_shards_or_has_waited_long_enough() {
        let knows_now = Arc::new(AtomicBool::new(false));
        let asked = knows_now.clone();
        let knows = ShardDiscovery::new(move || asked.load(Ordering::Acquire));
        assert!(!knows.is_complete(Duration::from_secs(3_600)));
        knows_now.store(true, Ordering::Release);
        assert!(knows.is_complete(Duration::from_secs(3_600)));
        knows_now.store(false, Ordering::Release);
        assert!(
            knows.is_complete(Duration::from_secs(3_600)),
            "a shard that moves later is a matter of each answer"
        );
        assert!(
            ShardDiscovery::new(|| false).is_complete(Duration::ZERO),
            "some shards may have no owner at all"
        );
    }
}
