//! Group membership: this node owns the shards that the consumer group assigns to it. Nothing is
//! fetched here.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rdkafka::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer, ConsumerContext};
use rdkafka::error::{KafkaError, KafkaResult};
use rdkafka::topic_partition_list::{Offset as At, TopicPartitionList};
use rdkafka::types::RDKafkaRespErr;
use tokio::sync::watch;

use super::settings::{self, KafkaOptions, log_client_error};
use super::throttle::KeyedThrottle;
use super::watermarks::{partition, shard};
use crate::clock::Stopwatch;
use crate::model::offset::{Offset, ShardId};

/// How often positions are committed, for tools that show lag. Nothing reads them back.
const COMMIT_EVERY: Duration = Duration::from_secs(5);
/// How often the same surplus partitions are logged.
const SURPLUS_EVERY: Duration = Duration::from_secs(600);
const POLL: Duration = Duration::from_millis(100);

/// The shards of this node, by state.
#[derive(Debug, Default)]
struct AssignedShards {
    /// Assigned by the group.
    owned: BTreeSet<ShardId>,
    /// Revoked shards whose actors have stopped.
    relinquished: BTreeSet<ShardId>,
}

/// The state that the group's thread and the rest of the log share.
pub(super) struct GroupMembership {
    shards: Mutex<AssignedShards>,
    handed_over: Condvar,
    assigned: watch::Sender<Arc<BTreeSet<ShardId>>>,
    handover: Duration,
    closing: AtomicBool,
    /// By shard: the offset after the last record that was read.
    positions: Vec<AtomicU64>,
    topic: String,
    /// By set of assigned partitions that are not shards.
    surplus: KeyedThrottle<BTreeSet<ShardId>>,
}

impl GroupMembership {
    /// A membership that owns no shards yet.
    pub(super) fn new(options: &KafkaOptions) -> Self {
        Self {
            shards: Mutex::default(),
            handed_over: Condvar::new(),
            assigned: watch::Sender::new(Arc::default()),
            handover: options.handover,
            closing: AtomicBool::new(false),
            positions: (0..options.shard_count).map(|_| AtomicU64::new(0)).collect(),
            topic: options.connection.topic.clone(),
            surplus: KeyedThrottle::every(SURPLUS_EVERY),
        }
    }

    /// The shards among these partitions. Partitions beyond the shards may have been added to the
    /// topic; nobody writes or reads them.
    fn shards_among(&self, partitions: BTreeSet<ShardId>) -> BTreeSet<ShardId> {
        let (shards, surplus): (BTreeSet<_>, BTreeSet<_>) =
            partitions.into_iter().partition(|shard| (shard.0 as usize) < self.positions.len());
        if !surplus.is_empty() && self.surplus.due(surplus.clone()).is_some() {
            tracing::error!(
                topic = self.topic,
                partitions = ?surplus.iter().map(|partition| partition.0).collect::<Vec<_>>(),
                shards = self.positions.len(),
                "the topic has more partitions than there are shards (shards.count): they are left \
                 alone; `rollmill topic describe`"
            );
        }
        shards
    }

    fn shards(&self) -> MutexGuard<'_, AssignedShards> {
        self.shards.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The shards that the group assigned, whether published or not.
    pub(super) fn owned(&self) -> BTreeSet<ShardId> {
        self.shards().owned.clone()
    }

    /// The shards that the node should run: assigned, with known start and end.
    pub(super) fn assigned(&self) -> watch::Receiver<Arc<BTreeSet<ShardId>>> {
        self.assigned.subscribe()
    }

    /// Publishes those of these shards that are owned. Their start and end must be known.
    pub(super) fn publish_known(&self, shards: &BTreeSet<ShardId>) {
        let owned = self.shards();
        self.assigned.send_if_modified(|published| {
            let next: BTreeSet<ShardId> = published
                .union(shards)
                .filter(|shard| owned.owned.contains(shard))
                .copied()
                .collect();
            let changed = next != **published;
            if changed {
                *published = Arc::new(next);
            }
            changed
        });
    }

    /// Records that the actors of these shards have stopped, so that a rebalance may continue.
    pub(super) fn relinquish(&self, shards: &BTreeSet<ShardId>) {
        self.shards().relinquished.extend(shards);
        self.handed_over.notify_all();
    }

    /// Advances the shard's position for lag tools.
    pub(super) fn advance_position(&self, shard: ShardId, end: Offset) {
        if let Some(position) = self.positions.get(shard.0 as usize) {
            position.fetch_max(end, Ordering::AcqRel);
        }
    }

    /// Stops waiting for actors, and makes the group's thread leave.
    pub(super) fn close(&self) {
        self.closing.store(true, Ordering::Release);
        self.handed_over.notify_all();
    }

    fn assign(&self, shards: &BTreeSet<ShardId>) {
        tracing::info!(shards = shards.len(), "the group assigned shards to this node");
        // Published later, when start and end of the shards are known (`publish_known`).
        self.shards().owned.extend(shards);
    }

    /// Takes shards away and waits until their actors have stopped. Does not wait if the assignment
    /// was `lost`, because another node may already own the shards.
    fn revoke(&self, shards: &BTreeSet<ShardId>, lost: bool) {
        tracing::info!(shards = shards.len(), lost, "the group took shards from this node");
        let mut held = self.shards();
        held.owned.retain(|shard| !shards.contains(shard));
        held.relinquished.retain(|shard| !shards.contains(shard));
        // Only shards that were published have actors to wait for.
        let started: BTreeSet<ShardId> =
            self.assigned.borrow().intersection(shards).copied().collect();
        // Published before waiting: this is what makes the actors stop.
        self.assigned.send_if_modified(|published| {
            let next: BTreeSet<ShardId> = published.difference(shards).copied().collect();
            let changed = next != **published;
            *published = Arc::new(next);
            changed
        });
        let watch = Stopwatch::start();
        while !lost
            && !self.closing.load(Ordering::Acquire)
            && !started.is_subset(&held.relinquished)
        {
            let left = self.handover.saturating_sub(watch.elapsed());
            if left.is_zero() {
                tracing::warn!(
                    "shards were taken away before their actors had stopped (log.handover); their \
                     epochs are void"
                );
                break;
            }
            held = self
                .handed_over
                .wait_timeout(held, left)
                .map_or_else(|e| e.into_inner().0, |(guard, _)| guard);
        }
    }

    /// The positions of these shards, to be committed for lag tools.
    fn positions(&self, shards: &BTreeSet<ShardId>) -> KafkaResult<TopicPartitionList> {
        let mut list = TopicPartitionList::new();
        for shard in shards {
            let position = self
                .positions
                .get(shard.0 as usize)
                .map_or(0, |position| position.load(Ordering::Acquire));
            if position > 0 {
                let at = At::Offset(i64::try_from(position).unwrap_or(i64::MAX));
                list.add_partition_offset(&self.topic, partition(*shard), at)?;
            }
        }
        Ok(list)
    }
}

/// The group consumer's context.
pub(super) struct GroupContext {
    membership: Arc<GroupMembership>,
    /// Called after every rebalance.
    on_change: Box<dyn Fn() + Send + Sync>,
}

impl ClientContext for GroupContext {
    fn error(&self, error: KafkaError, reason: &str) {
        log_client_error(&error, reason);
    }

    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        settings::log_client_message(level, facility, message);
    }
}

impl ConsumerContext for GroupContext {
    fn rebalance(
        &self,
        member: &BaseConsumer<Self>,
        err: RDKafkaRespErr,
        list: &mut TopicPartitionList,
    ) {
        let partitions = list.elements().iter().map(|found| shard(found.partition())).collect();
        let shards = self.membership.shards_among(partitions);
        let done = if err == RDKafkaRespErr::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS {
            self.membership.assign(&shards);
            // The protocol requires an assignment. Paused at the end, because others do the
            // reading.
            list.set_all_offsets(At::End)
                .and_then(|()| member.incremental_assign(list))
                .and_then(|()| member.pause(list))
        } else {
            self.membership.revoke(&shards, member.assignment_lost());
            commit_positions(member, &self.membership, &shards);
            member.incremental_unassign(list)
        };
        if let Err(error) = done {
            tracing::error!(
                %error,
                "the client refused a rebalance; the group will leave this node out"
            );
        }
        (self.on_change)();
    }
}

fn commit_positions(
    member: &BaseConsumer<GroupContext>,
    membership: &GroupMembership,
    shards: &BTreeSet<ShardId>,
) {
    let committed = membership.positions(shards).and_then(|positions| match positions.count() {
        0 => Ok(()),
        _ => member.commit(&positions, CommitMode::Async),
    });
    if let Err(error) = committed {
        tracing::debug!(%error, "positions for lag tools were not committed");
    }
}

/// Joins the group in a thread, which leaves it when `membership` is closed. Fails if the settings
/// are rejected or the thread cannot be started.
pub(super) fn join_group(
    options: &KafkaOptions,
    group: &str,
    membership: Arc<GroupMembership>,
    changed: impl Fn() + Send + Sync + 'static,
) -> Result<std::thread::JoinHandle<()>, String> {
    let context = GroupContext { membership: membership.clone(), on_change: Box::new(changed) };
    let failed = |error: KafkaError| format!("cannot join the group {group}: {error}");
    let member: BaseConsumer<GroupContext> =
        options.member_config(group).create_with_context(context).map_err(failed)?;
    member.subscribe(&[&options.connection.topic]).map_err(failed)?;
    let run = move || {
        let mut committed = Stopwatch::start();
        while !membership.closing.load(Ordering::Acquire) {
            // Runs the rebalance callbacks. Returns no records, because all partitions are paused.
            if let Some(Err(error)) = member.poll(POLL) {
                tracing::warn!(%error, "Kafka group");
            }
            if committed.elapsed() >= COMMIT_EVERY {
                commit_positions(&member, &membership, &membership.owned());
                committed = Stopwatch::start();
            }
        }
        // Leaves the group, so that the other members take over at once.
        drop(member);
    };
    std::thread::Builder::new()
        .name("kafka-group".to_owned())
        .spawn(run)
        .map_err(|e| format!("cannot start a thread: {e}"))
}
