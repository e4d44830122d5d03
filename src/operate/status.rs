//! Status of every shard, as far as this node can tell.
//!
//! The store's checkpoint names the epoch of the last owner; the node whose entry has that epoch
//! owns the shard. Other nodes report their shards through [`PeerStatusSource`]; without them, a
//! shard that is not owned here is owned elsewhere by an unknown node. A shard is reported as a
//! problem if it has no owner, if its owner lags by more than `query.stale_after`, if its flushes
//! keep failing, or if it has stopped. While the store cannot be reached, the nodes' own reports
//! are all there is.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::service::StatusService;
use crate::actors::shard_table::{FAILING_FLUSHES, ShardTable};
use crate::api::archive::{ArchiveFlush, ArchiveFlushAnswer};
use crate::api::status::{NodeSummary, ShardStatus, StatusAnswer};
use crate::api::timestamp;
use crate::clock::{Clock, Stopwatch};
use crate::model::budget::QueryBudget;
use crate::model::offset::{Checkpoint, Epoch, Offset, ShardId};
use crate::model::window::Millis;
use crate::persistence::log::ShardAssignment;
use crate::persistence::store::{SnapshotSource, StoreError};

/// A shard as its owner sees it.
#[allow(missing_docs, reason = "the names say it")]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OwnedShard {
    pub shard: u32,
    /// Counter and nonce of the owner's epoch.
    pub epoch: (u64, u64),
    pub next: Offset,
    pub end: Offset,
    /// Everything received before this time is applied.
    pub as_of: Millis,
    pub committed: Offset,
    /// Exclusive end of what is archived.
    pub archived: Offset,
    /// Starts at the current checkpoint without progress; 0 after a commit.
    pub attempts: u32,
    /// Failed flushes in a row.
    #[serde(default)]
    pub flush_failures: u32,
    /// Why the newest flush failed. Only known on the node itself.
    #[serde(skip)]
    pub flush_failure: Option<String>,
    /// How long ago the shard had applied everything appended until then, in milliseconds;
    /// `None` from older releases.
    #[serde(default)]
    pub age_ms: Option<i64>,
}

/// A node as it sees itself.
#[allow(missing_docs, reason = "the names say it")]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeStatus {
    /// `node.name`, or the host name.
    pub name: String,
    pub roles: Vec<String>,
    pub version: String,
    pub uptime_ms: u64,
    /// Why `/readyz` fails; `None` if it does not.
    pub not_ready: Option<String>,
    pub shards: Vec<OwnedShard>,
    /// The node's shards that cannot be served until somebody repairs something, with the reason.
    /// Empty from older releases.
    #[serde(default)]
    pub stopped: Vec<(u32, String)>,
    /// For how long, in milliseconds, the node's shards are certain to know event ids; `None`
    /// if it owns none.
    #[serde(default)]
    pub dedup_horizon_ms: Option<i64>,
}

/// Status reports of the other nodes.
pub trait PeerStatusSource: Send + Sync + 'static {
    /// The other nodes that can be reached; `None` if this node does not know of any others. May
    /// block for as long as one call takes.
    fn nodes(&self) -> Option<Vec<NodeStatus>>;
}

/// For a node that knows no others.
#[derive(Debug, Clone, Copy)]
pub struct NoPeers;

impl PeerStatusSource for NoPeers {
    fn nodes(&self) -> Option<Vec<NodeStatus>> {
        None
    }
}

/// Returns why the node is not ready, as an error.
pub type ReadinessCheck = Arc<dyn Fn() -> Result<(), String> + Send + Sync>;

/// Collects the status of this node and of the others.
#[allow(missing_docs, reason = "the names say it")]
pub struct StatusReporter {
    /// `node.name`, or the host name.
    pub name: String,
    pub roles: Vec<&'static str>,
    pub started: Stopwatch,
    pub ready: ReadinessCheck,
    pub table: Arc<ShardTable>,
    pub log: Arc<dyn ShardAssignment>,
    /// `None` on a node that only takes writes.
    pub store: Option<Arc<dyn SnapshotSource>>,
    pub peers: Arc<dyn PeerStatusSource>,
    pub clock: Arc<dyn Clock>,
    /// Lag at which a shard is stale: `query.stale_after`, in milliseconds.
    pub stale_after_ms: i64,
}

impl StatusReporter {
    /// Report of this node, as it is also sent to other nodes.
    pub fn this_node(&self) -> NodeStatus {
        let owned = |(shard, entry): (ShardId, &Arc<crate::actors::shard_table::ShardEntry>)| {
            let watermark = self.table.watermark(shard)?;
            Some(OwnedShard {
                shard: shard.0,
                epoch: (watermark.epoch.counter, watermark.epoch.nonce),
                next: watermark.next,
                end: watermark.end,
                as_of: watermark.as_of,
                committed: entry.committed(),
                archived: entry.archived(),
                attempts: entry.attempts(),
                flush_failures: entry.flush_failures(),
                flush_failure: entry.flush_failure(),
                age_ms: Some(watermark.age_ms),
            })
        };
        NodeStatus {
            name: self.name.clone(),
            roles: self.roles.iter().map(|role| (*role).to_owned()).collect(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            uptime_ms: self.started.elapsed().as_millis() as u64,
            not_ready: (self.ready)().err(),
            shards: self.table.iter().filter_map(owned).collect(),
            stopped: self
                .table
                .iter()
                .filter_map(|(shard, entry)| Some((shard.0, entry.stop_reason()?)))
                .collect(),
            dedup_horizon_ms: self
                .table
                .dedup_statuses()
                .iter()
                .map(|(_, status)| status.horizon_ms)
                .min(),
        }
    }

    fn checkpoints(
        &self,
        budget: &QueryBudget,
    ) -> Option<Result<BTreeMap<ShardId, Checkpoint>, StoreError>> {
        let store = self.store.as_ref()?;
        Some(
            store
                .snapshot_for(budget)
                .and_then(|mut snapshot| snapshot.checkpoints())
                .map(|all| all.into_iter().collect()),
        )
    }
}

/// The owner of a shard: the node with the epoch of the checkpoint, or with the highest epoch if
/// the store cannot be read.
fn owner<'n>(
    shard: ShardId,
    checkpoint: Option<&Checkpoint>,
    store_known: bool,
    nodes: &'n [NodeStatus],
) -> Option<(&'n str, &'n OwnedShard)> {
    let all =
        nodes.iter().flat_map(|node| node.shards.iter().map(|owned| (node.name.as_str(), owned)));
    let of_shard = all.filter(|(_, owned)| owned.shard == shard.0);
    match checkpoint.map(|checkpoint| checkpoint.epoch) {
        Some(Epoch { counter, nonce }) => {
            of_shard.into_iter().find(|(_, owned)| owned.epoch == (counter, nonce))
        }
        None if store_known => None,
        None => of_shard.max_by_key(|(_, owned)| owned.epoch.0),
    }
}

/// Status of a shard with a known owner.
fn owned(
    node: &str,
    here: bool,
    owned: &OwnedShard,
    now: Millis,
    stale_after_ms: i64,
) -> ShardStatus {
    // Older releases do not report an age. The wall clocks of two nodes are then the best estimate.
    let age_ms = owned.age_ms.unwrap_or(now.saturating_sub(owned.as_of)).max(0);
    let problem = match owned.flush_failures {
        FAILING_FLUSHES.. => Some("flush_failing"),
        _ => (age_ms > stale_after_ms).then_some("stale"),
    };
    ShardStatus {
        shard: owned.shard,
        owner: if here { "here" } else { "elsewhere" }.to_owned(),
        node: Some(node.to_owned()),
        epoch: Some(owned.epoch.0),
        next: Some(owned.next),
        end: Some(owned.end),
        lag: Some(owned.end.saturating_sub(owned.next)),
        as_of: timestamp(owned.as_of),
        age_ms: Some(age_ms),
        committed: Some(owned.committed),
        archived: Some(owned.archived),
        archive_lag: Some(owned.next.saturating_sub(owned.archived)),
        attempts: Some(owned.attempts),
        flush_failures: Some(owned.flush_failures),
        flush_failure: owned.flush_failure.clone(),
        problem: problem.map(str::to_owned),
        why: None,
    }
}

/// Status of a shard without a known owner: what the store has of it, if anything.
fn unowned(shard: ShardId, checkpoint: Option<&Checkpoint>, elsewhere: bool) -> ShardStatus {
    ShardStatus {
        shard: shard.0,
        owner: if elsewhere { "elsewhere" } else { "none" }.to_owned(),
        epoch: checkpoint.map(|checkpoint| checkpoint.epoch.counter),
        next: checkpoint.map(|checkpoint| checkpoint.next),
        committed: checkpoint.map(|checkpoint| checkpoint.next),
        archived: checkpoint.map(|checkpoint| checkpoint.archived),
        archive_lag: checkpoint
            .map(|checkpoint| checkpoint.next.saturating_sub(checkpoint.archived)),
        problem: (!elsewhere).then(|| "no_owner".to_owned()),
        ..ShardStatus::default()
    }
}

/// Adds why a shard stopped, if one of the nodes reports it.
fn with_stop_reason(mut status: ShardStatus, nodes: &[NodeStatus]) -> ShardStatus {
    let mut stopped = nodes.iter().flat_map(|node| &node.stopped);
    if let Some((_, why)) = stopped.find(|(stopped, _)| *stopped == status.shard) {
        status.problem = Some("stopped".to_owned());
        status.why = Some(why.clone());
    }
    status
}

fn summary(node: &NodeStatus) -> NodeSummary {
    NodeSummary {
        name: node.name.clone(),
        roles: node.roles.clone(),
        version: node.version.clone(),
        uptime_ms: node.uptime_ms,
        ready: node.not_ready.is_none(),
        not_ready: node.not_ready.clone(),
        shards: node.shards.len() as u64,
    }
}

impl StatusService for StatusReporter {
    fn dedup_horizons(&self) -> Vec<(String, i64)> {
        let nodes = [self.this_node()].into_iter().chain(self.peers.nodes().unwrap_or_default());
        nodes.filter_map(|node| Some((node.name, node.dedup_horizon_ms?))).collect()
    }

    fn archive_now(&self) -> ArchiveFlushAnswer {
        let mut shards = Vec::new();
        for (shard, entry) in self.table.iter().filter(|(_, entry)| entry.epoch().is_some()) {
            if let Some(to) = entry.request_archive() {
                shards.push(ArchiveFlush { shard: shard.0, below: to });
            }
        }
        ArchiveFlushAnswer { shards }
    }

    fn status(&self, budget: &QueryBudget) -> StatusAnswer {
        let now = self.clock.now();
        let (stored_at, others) = (self.checkpoints(budget), self.peers.nodes());
        let peers_known = others.is_some();
        let mut nodes = vec![self.this_node()];
        nodes.extend(others.unwrap_or_default());
        let (store, checkpoints) = match stored_at {
            None => (None, None),
            Some(Ok(checkpoints)) => (Some("reachable".to_owned()), Some(checkpoints)),
            Some(Err(StoreError::QueryEnded)) => {
                (Some("the store gave no answer in time".to_owned()), None)
            }
            Some(Err(error)) => (Some(error.to_string()), None),
        };
        let assigned = self.log.assignment().borrow().clone();
        // Without a store and without peers, a node that owns no shards knows nothing about any.
        let known = checkpoints.is_some()
            || peers_known
            || nodes.iter().any(|node| !node.shards.is_empty());
        let all = if known { self.log.shard_count() } else { 0 };
        let shards: Vec<ShardStatus> = (0..all)
            .map(ShardId)
            .map(|shard| {
                let checkpoint = checkpoints.as_ref().and_then(|all| all.get(&shard));
                let status = match owner(shard, checkpoint, checkpoints.is_some(), &nodes) {
                    Some((name, standing)) => {
                        // The first node of the list is this one.
                        let here = nodes[0]
                            .shards
                            .iter()
                            .any(|own| own.shard == shard.0 && own.epoch == standing.epoch);
                        owned(name, here, standing, now, self.stale_after_ms)
                    }
                    None => {
                        let mine = self.roles.contains(&"shards") && assigned.contains(&shard);
                        // Nobody owns a shard that was never claimed. Otherwise, without peers,
                        // only a shard assigned to this node is certainly without an owner.
                        let never_claimed = checkpoints.is_some() && checkpoint.is_none();
                        unowned(shard, checkpoint, !(mine || peers_known || never_claimed))
                    }
                };
                with_stop_reason(status, &nodes)
            })
            .collect();
        let healthy = known && shards.iter().all(|shard| shard.problem.is_none());
        StatusAnswer {
            at: timestamp(now),
            healthy,
            store,
            nodes: nodes.iter().map(summary).collect(),
            shards,
        }
    }
}
