//! Where every shard stands, as far as this node can tell.
//!
//! The store's checkpoint names the epoch of the last owner; the node whose slot has this epoch
//! owns the shard. Other nodes tell of theirs through [`PeerStatusSource`]; without them a shard that is not
//! owned here is owned elsewhere, by whom is not known. A shard without an owner, whose owner is
//! further behind than `query.stale_after`, or whose flushes fail again and again is a problem.
//! While the store cannot be reached, what the nodes say of themselves is all there is.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::service::StatusService;
use crate::actors::shard_table::{FAILING_FLUSHES, ShardTable};
use crate::api::archive::{ArchiveFlush, ArchiveFlushAnswer};
use crate::api::status::{NodeSummary, ShardStatus, StatusAnswer};
use crate::api::timestamp;
use crate::clock::{Clock, Stopwatch};
use crate::model::offset::{Checkpoint, Epoch, Offset, ShardId};
use crate::model::window::Millis;
use crate::persistence::log::ShardAssignment;
use crate::persistence::store::{RollupStore, StoreError};

/// A shard as its owner sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OwnedShard {
    /// The shard.
    pub shard: u32,
    /// Counter and nonce of the owner's epoch.
    pub epoch: (u64, u64),
    /// Next offset to apply.
    pub next: Offset,
    /// The log's end.
    pub end: Offset,
    /// Everything appended before this is applied.
    pub as_of: Millis,
    /// Next offset to commit.
    pub committed: Offset,
    /// Everything below is archived.
    pub archived: Offset,
    /// Starts at the checkpoint without progress.
    pub attempts: u32,
    /// Flushes that failed since the last that did not.
    #[serde(default)]
    pub flush_failures: u32,
    /// Why the newest failed; told by the node itself alone.
    #[serde(skip)]
    pub flush_failure: Option<String>,
    /// How long ago everything that was appended then was applied; none if an older release says
    /// it.
    #[serde(default)]
    pub age_ms: Option<i64>,
}

/// A node as it sees itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeStatus {
    /// `node.name`, or the machine's.
    pub name: String,
    /// Its roles.
    pub roles: Vec<String>,
    /// Its version.
    pub version: String,
    /// Since its start.
    pub uptime_ms: u64,
    /// Why `/readyz` fails; none if it does not.
    pub not_ready: Option<String>,
    /// The shards that it owns.
    pub shards: Vec<OwnedShard>,
    /// Those of its shards that cannot be served until somebody mends something, with the reason.
    /// Older releases do not say.
    #[serde(default)]
    pub stopped: Vec<(u32, String)>,
    /// For how long, in milliseconds, its shards know event ids for certain; none if it owns none.
    #[serde(default)]
    pub dedup_horizon_ms: Option<i64>,
}

/// The other nodes.
pub trait PeerStatusSource: Send + Sync + 'static {
    /// The other nodes that can be reached; none if this node does not know of others at all. May
    /// block for as long as one call takes.
    fn nodes(&self) -> Option<Vec<NodeStatus>>;
}

/// Nothing is known of other nodes.
#[derive(Debug, Clone, Copy)]
pub struct NoPeers;

impl PeerStatusSource for NoPeers {
    fn nodes(&self) -> Option<Vec<NodeStatus>> {
        None
    }
}

/// Why a node is not ready, if it is not.
pub type ReadinessCheck = Arc<dyn Fn() -> Result<(), String> + Send + Sync>;

/// What the status is made of.
pub struct StatusReporter {
    /// `node.name`, or the machine's.
    pub name: String,
    /// The node's roles.
    pub roles: Vec<&'static str>,
    /// Since the node's start.
    pub started: Stopwatch,
    /// Whether it is ready.
    pub ready: ReadinessCheck,
    /// Where its shards stand.
    pub table: Arc<ShardTable>,
    /// The log.
    pub log: Arc<dyn ShardAssignment>,
    /// The store; a node that only takes writes has none.
    pub store: Option<Arc<dyn RollupStore>>,
    /// The other nodes.
    pub peers: Arc<dyn PeerStatusSource>,
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// `query.stale_after` in milliseconds.
    pub stale_after_ms: i64,
}

impl StatusReporter {
    /// This node, as other nodes are told of it.
    pub fn this_node(&self) -> NodeStatus {
        let owned = |(shard, slot): (ShardId, &Arc<crate::actors::shard_table::ShardEntry>)| {
            let reach = self.table.watermark(shard)?;
            Some(OwnedShard {
                shard: shard.0,
                epoch: (reach.epoch.counter, reach.epoch.nonce),
                next: reach.next,
                end: reach.end,
                as_of: reach.as_of,
                committed: slot.committed(),
                archived: slot.archived(),
                attempts: slot.attempts(),
                flush_failures: slot.flush_failures(),
                flush_failure: slot.flush_failure(),
                age_ms: Some(reach.age_ms),
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
                .filter_map(|(shard, slot)| Some((shard.0, slot.stop_reason()?)))
                .collect(),
            dedup_horizon_ms: self
                .table
                .dedup_statuses()
                .iter()
                .map(|(_, stand)| stand.horizon_ms)
                .min(),
        }
    }

    fn checkpoints(&self) -> Option<Result<BTreeMap<ShardId, Checkpoint>, StoreError>> {
        let store = self.store.as_ref()?;
        Some(
            store
                .snapshot()
                .and_then(|mut snapshot| snapshot.checkpoints())
                .map(|all| all.into_iter().collect()),
        )
    }
}

/// The owner of a shard: the node with the epoch of its checkpoint; if that is not known, the
/// youngest epoch.
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

/// A shard whose owner is known.
fn owned(
    node: &str,
    here: bool,
    owned: &OwnedShard,
    now: Millis,
    stale_after_ms: i64,
) -> ShardStatus {
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

/// A shard of which only the store tells, or nobody.
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

/// A shard that stands still says why.
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
        for (shard, slot) in self.table.iter().filter(|(_, slot)| slot.epoch().is_some()) {
            if let Some(to) = slot.request_archive() {
                shards.push(ArchiveFlush { shard: shard.0, below: to });
            }
        }
        ArchiveFlushAnswer { shards }
    }

    fn status(&self) -> StatusAnswer {
        let now = self.clock.now();
        let (stored_at, others) = (self.checkpoints(), self.peers.nodes());
        let peers_known = others.is_some();
        let mut nodes = vec![self.this_node()];
        nodes.extend(others.unwrap_or_default());
        let (store, checkpoints) = match stored_at {
            None => (None, None),
            Some(Ok(checkpoints)) => (Some("reachable".to_owned()), Some(checkpoints)),
            Some(Err(error)) => (Some(error.to_string()), None),
        };
        let assigned = self.log.assignment().borrow().clone();
        // Without a store and without others, a node that owns nothing knows nothing of shards.
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
                        let here = nodes[0]
                            .shards
                            .iter()
                            .any(|own| own.shard == shard.0 && own.epoch == standing.epoch);
                        owned(name, here, standing, now, self.stale_after_ms)
                    }
                    None => {
                        let mine = self.roles.contains(&"shards") && assigned.contains(&shard);
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
