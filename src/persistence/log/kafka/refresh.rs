//! The thread that keeps the watermarks fresh, follows the leaders, and checks that the topic is
//! still the same.

use std::collections::BTreeSet;
use std::sync::atomic::Ordering;
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Duration;

use super::throttle::IntervalGate;
use super::topic::{self, TopicSpec};
use super::watermarks::OffsetSpec;
use super::{LogOpenError, Shared};
use crate::clock::Stopwatch;
use crate::model::offset::ShardId;
use crate::telemetry;

/// How often the ends of shards of other nodes are refreshed. A gateway compares them with the
/// offsets that its records get.
const ALL_EVERY: Duration = Duration::from_secs(10);
/// How often leaders are looked up even if nothing fails.
const LEADERS_EVERY: Duration = Duration::from_secs(30);
/// Back-off for a broker that did not answer, so that it does not delay the shards of the others.
const SILENT_BROKER_PAUSE: Duration = Duration::from_secs(1);
/// How often the topic's identity is checked.
const IDENTITY_EVERY: Duration = Duration::from_secs(30);

/// Wakes the thread that refreshes the watermarks.
#[derive(Default)]
pub(super) struct Wakeup {
    notified: Mutex<bool>,
    condvar: Condvar,
}

impl Wakeup {
    pub(super) fn notify(&self) {
        *self.notified.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.condvar.notify_all();
    }

    fn wait(&self, at_most: Duration) {
        let notified = self.notified.lock().unwrap_or_else(PoisonError::into_inner);
        let (mut notified, _) = self
            .condvar
            .wait_timeout_while(notified, at_most, |notified| !*notified)
            .unwrap_or_else(PoisonError::into_inner);
        *notified = false;
    }
}

/// The shards that one broker leads, and when it last failed to answer.
struct LeaderPartitions {
    shards: Vec<ShardId>,
    silent_since: Option<Stopwatch>,
}

impl Shared {
    /// Fetches start and end of every shard. Retries until all partitions have a leader.
    pub(super) fn fetch_all_bounds(&self) -> Result<(), LogOpenError> {
        let all: Vec<ShardId> = self.all().collect();
        let watch = Stopwatch::start();
        loop {
            let learned = self.fetch_bounds(&all, true);
            match learned {
                Ok(known) if known.len() == all.len() => return Ok(()),
                Ok(_) | Err(_) if watch.elapsed() < self.options.connection.timeout => {}
                Ok(known) => {
                    let missing =
                        all.iter().find(|shard| !known.contains(shard)).map_or(0, |shard| shard.0);
                    return Err(LogOpenError::Unavailable(format!(
                        "partition {missing} of {} has no leader: `rollmill topic describe` shows \
                         which brokers are missing",
                        self.options.connection.topic
                    )));
                }
                Err(error) => {
                    return Err(LogOpenError::Unavailable(format!(
                        "cannot learn where the shards end: {error}"
                    )));
                }
            }
        }
    }

    /// Fetches the ends of these shards, and their starts if `starts`. Returns the
    /// shards that were answered.
    fn fetch_bounds(
        &self,
        shards: &[ShardId],
        starts: bool,
    ) -> Result<BTreeSet<ShardId>, rdkafka::error::KafkaError> {
        if starts {
            for (shard, start) in self.offset_client.list_offsets(shards, OffsetSpec::Earliest)? {
                self.watermarks.set_start(shard, start.unwrap_or(0));
            }
        }
        // Read the clock first: what is durable at `asked` lies below the ends that come
        // afterwards.
        let asked = self.options.clock.uptime();
        let ends = self.offset_client.list_offsets(shards, OffsetSpec::Latest)?;
        ends.iter()
            .for_each(|(shard, end)| self.watermarks.observe_end(*shard, end.unwrap_or(0), asked));
        Ok(ends.into_iter().map(|(shard, _)| shard).collect())
    }

    /// Refreshes the watermarks until the log is dropped.
    pub(super) fn run_refresh(&self) {
        let (mut leaders, mut leaders_gate, mut all_gate, mut identity_gate) =
            (Vec::new(), IntervalGate::default(), IntervalGate::default(), IntervalGate::default());
        let mut published = BTreeSet::new();
        // `open` has just checked it.
        identity_gate.due(IDENTITY_EVERY);
        while !self.stopping.load(Ordering::Acquire) {
            self.reader.poll_events();
            let owned = self.membership.owned();
            let newly_assigned = !owned.is_subset(&published);
            // A regressed end is asked for again until it is confirmed or refuted.
            let regressed = self.all().any(|shard| self.watermarks.has_regressed(shard));
            let all_shards = all_gate.due(ALL_EVERY)
                || regressed
                || self.options.group.is_none() && leaders.is_empty();
            // Sooner after a failure, because another broker may lead now.
            if leaders_gate.due(LEADERS_EVERY)
                || leaders.iter().any(|leader: &LeaderPartitions| leader.silent_since.is_some())
                    && leaders_gate.due(SILENT_BROKER_PAUSE)
            {
                self.fetch_leaders(&mut leaders);
            }
            let mut known = BTreeSet::new();
            for leader in &mut leaders {
                known.append(&mut self.refresh_leader(
                    leader,
                    &owned,
                    all_shards,
                    newly_assigned || all_shards,
                ));
            }
            self.membership.publish_known(&known);
            let assigned = self.membership.assigned().borrow().clone();
            self.reader.unassign_shards(published.difference(&owned).copied());
            published = (*assigned).clone();
            self.producer.replace_if_fatal();
            if identity_gate.due(IDENTITY_EVERY) {
                self.check_identity();
            }
            // Shards that were assigned during this round may have leaders that are not known yet.
            if newly_assigned
                && !owned.is_subset(&published)
                && leaders_gate.due(SILENT_BROKER_PAUSE)
            {
                self.fetch_leaders(&mut leaders);
            }
            self.wakeup.wait(self.options.refresh);
        }
    }

    fn fetch_leaders(&self, leaders: &mut Vec<LeaderPartitions>) {
        match self.offset_client.shards_by_leader() {
            Ok(mut found) => {
                // Partitions beyond the shards may have been added to the topic.
                found
                    .iter_mut()
                    .for_each(|shards| shards.retain(|shard| shard.0 < self.options.shard_count));
                *leaders = found
                    .into_iter()
                    .map(|shards| LeaderPartitions { shards, silent_since: None })
                    .collect();
            }
            Err(error) => {
                tracing::warn!(%error, "the leaders of the topic are not known, it is tried again")
            }
        }
    }

    /// Refreshes the shards of one broker. Skips a broker that failed recently, so that it does
    /// not delay the others.
    fn refresh_leader(
        &self,
        leader: &mut LeaderPartitions,
        owned: &BTreeSet<ShardId>,
        all_shards: bool,
        starts: bool,
    ) -> BTreeSet<ShardId> {
        let wanted: Vec<ShardId> = leader
            .shards
            .iter()
            .filter(|shard| all_shards || owned.contains(shard))
            .copied()
            .collect();
        if wanted.is_empty()
            || leader.silent_since.is_some_and(|watch| watch.elapsed() < SILENT_BROKER_PAUSE)
        {
            return BTreeSet::new();
        }
        match self.fetch_bounds(&wanted, starts) {
            Ok(known) => {
                let missing = known.len() < wanted.len()
                    || wanted.iter().any(|shard| self.watermarks.has_regressed(*shard));
                leader.silent_since = missing.then(Stopwatch::start);
                known
            }
            Err(error) => {
                tracing::debug!(%error, "a broker does not say where its shards end");
                leader.silent_since = Some(Stopwatch::start());
                BTreeSet::new()
            }
        }
    }

    /// Detects that the topic was deleted and created again: it has another identity then, or none.
    fn check_identity(&self) {
        let spec = TopicSpec {
            partitions: self.options.shard_count,
            replication: self.options.replication,
            min_isr: self.options.min_isr,
        };
        match self.admin.describe(&spec) {
            Err(why) => tracing::debug!(%why, "the topic cannot be looked at now"),
            Ok(found) if found.log.is_some_and(|log| log != self.id) => {
                // Offsets of another topic mean nothing to the checkpoints in the store.
                self.producer.halt(format!(
                    "the topic {} is another one than at the start (log {} was {}): it was made \
                     anew; start this node again",
                    found.topic,
                    found.log.map(|log| log.to_string()).unwrap_or_default(),
                    self.id
                ))
            }
            Ok(found) => {
                metrics::gauge!(telemetry::SURPLUS_PARTITIONS).set(found.surplus.len() as f64);
                let brokers = &self.options.connection.brokers;
                if found.log.is_none() {
                    let (key, number) = (topic::IDENTITY_KEY, topic::identity_of(self.id));
                    let command =
                        topic::setting_command(brokers, &found.topic, &format!("{key}={number}"));
                    tracing::error!(
                        topic = found.topic,
                        command,
                        "the topic's identity is gone: if a tool reset it, put it back"
                    );
                }
                for why in found.refusal(brokers).into_iter().chain(found.warnings()) {
                    if self.problem_throttle.due(why.clone()).is_some() {
                        tracing::error!("{why}");
                    }
                }
            }
        }
    }
}
