//! The log on Apache Kafka: shard n is partition n of one topic.
//!
//! | module | what it does |
//! |---|---|
//! | [`connectivity`] | checks whether the cluster is reachable, and why if not |
//! | [`topic`] | creates and checks the topic, identifies the log, deletes released records |
//! | `produce` | appends: idempotent, `acks=all`, one acknowledgement per request |
//! | `read` | reads with manual assignment, from the offset that the caller asks for |
//! | `gaps` | checks whether a gap holds only Kafka's own control records |
//! | `watermarks` | start and end of each shard, and how old that knowledge is |
//! | `append_times` | derives append times from the gateway's stamp and `LogAppendTime` |
//! | [`fill`] | lets a new topic begin at the offsets of another log |
//! | `group` | the consumer group, which only decides which shards this node owns |
//!
//! The position of a shard always comes from the store's checkpoint. Offsets committed to the group
//! only serve tools that show lag.

mod append_times;
pub mod connectivity;
mod gaps;
mod group;
mod produce;
mod read;
mod settings;
mod throttle;
pub mod topic;
pub mod topic_fill;
mod watermarks;

#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::sync::watch;

use self::group::GroupMembership;
use self::produce::KafkaProducer;
use self::read::KafkaReader;
pub use self::settings::{
    KafkaConnection, KafkaOptions, KafkaProperties, MESSAGE_BYTES, PassedGaps,
};
use self::throttle::KeyedThrottle;
use self::topic::{TopicAdmin, TopicSpec};
use self::watermarks::{OffsetClient, OffsetSpec, TopicWatermarks};
use super::{
    AppendError, AppendRequest, AppendTicket, LogAppender, LogError, LogIdentity, LogOpenError,
    LogReader, LogRetention, ShardAssignment,
};
use crate::clock::Stopwatch;
use crate::model::clock::AppendClock;
use crate::model::flush::LogRecord;
use crate::model::offset::{LogId, Offset, ShardId};
use crate::model::window::Millis;
use crate::telemetry;

/// How often the ends of shards of other nodes are refreshed. A gateway compares them with the
/// offsets that its records get.
const ALL_EVERY: Duration = Duration::from_secs(10);
/// How often leaders are looked up even if nothing fails.
const LEADERS_EVERY: Duration = Duration::from_secs(30);
/// Back-off for a broker that did not answer, so that it does not delay the shards of the others.
const SILENT_BROKER_PAUSE: Duration = Duration::from_secs(1);
/// How long a mismatch is rechecked. Brokers learn of a new topic and of its settings
/// one after the other.
const NEW_TOPIC_GRACE: Duration = Duration::from_secs(2);
/// How often the topic's identity is checked.
const IDENTITY_EVERY: Duration = Duration::from_secs(30);
/// Minimum interval between records appended after a gap of one shard. An outage may
/// look like a gap.
const GAPS_EVERY: Duration = Duration::from_secs(15);
/// How often the same problem of the topic is logged.
const PROBLEM_LOG_EVERY: Duration = Duration::from_secs(600);
/// Minimum interval between deletions. More often has no use while
/// `log.safety` retains records anyway.
const RELEASE_EVERY: Duration = Duration::from_secs(60);

const DAY_MS: i64 = 86_400_000;

/// Lets something happen at most once per interval.
#[derive(Default)]
struct IntervalGate(Option<Stopwatch>);

impl IntervalGate {
    fn due(&mut self, interval: Duration) -> bool {
        let due = self.0.is_none_or(|watch| watch.elapsed() >= interval);
        if due {
            self.0 = Some(Stopwatch::start());
        }
        due
    }
}

struct Shared {
    id: LogId,
    options: KafkaOptions,
    watermarks: Arc<TopicWatermarks>,
    offset_client: Arc<OffsetClient>,
    admin: TopicAdmin,
    producer: KafkaProducer,
    reader: KafkaReader,
    membership: Arc<GroupMembership>,
    /// Gives the append time that a record appended here now would get.
    append_clock: Mutex<AppendClock>,
    release_gate: Mutex<IntervalGate>,
    /// By problem of the topic.
    problem_throttle: KeyedThrottle<String>,
    /// By shard that ends in a gap.
    gap_throttle: KeyedThrottle<ShardId>,
    stopping: AtomicBool,
    wakeup: Arc<Wakeup>,
}

/// Wakes the thread that refreshes the watermarks.
#[derive(Default)]
struct Wakeup {
    notified: Mutex<bool>,
    condvar: Condvar,
}

impl Wakeup {
    fn notify(&self) {
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

/// The log on Kafka, as seen by one node. Dropping it closes it.
pub struct KafkaLog {
    shared: Arc<Shared>,
    refresher: Mutex<Option<JoinHandle<()>>>,
    member: Mutex<Option<JoinHandle<()>>>,
}

impl KafkaLog {
    /// Opens the log: checks the topic, fetches start and end of every shard, and joins the
    /// consumer group if the options name one.
    ///
    /// # Errors
    /// [`LogOpenError::Unavailable`] if the cluster is unreachable. [`LogOpenError::Invalid`]
    /// if the topic cannot keep the promises; the message names the differences and the
    /// command that fixes them.
    pub fn open(options: KafkaOptions) -> Result<Arc<Self>, LogOpenError> {
        let spec = TopicSpec {
            partitions: options.shard_count,
            replication: options.replication,
            min_isr: options.min_isr,
        };
        connectivity::check_connectivity(&options.connection)?;
        let admin = TopicAdmin::new(&options.connection).map_err(LogOpenError::Invalid)?;
        let watch = Stopwatch::start();
        let id = loop {
            match verify_topic(&admin, &spec, &options.connection.brokers) {
                Err(LogOpenError::Invalid(_)) if watch.elapsed() < NEW_TOPIC_GRACE => {
                    std::thread::park_timeout(NEW_TOPIC_GRACE / 20)
                }
                outcome => break outcome?,
            }
        };
        Self::open_checked(options, admin, id)
    }

    /// Opens the log of a topic that has been checked.
    fn open_checked(
        options: KafkaOptions,
        admin: TopicAdmin,
        id: LogId,
    ) -> Result<Arc<Self>, LogOpenError> {
        let failed = |doing: &'static str| {
            let brokers = options.connection.brokers.clone();
            move |e: rdkafka::error::KafkaError| {
                LogOpenError::Invalid(format!("cannot {doing} at {brokers}: {e}"))
            }
        };
        let watermarks = Arc::new(TopicWatermarks::new(options.shard_count));
        let offset_client =
            Arc::new(OffsetClient::new(&options.connection).map_err(failed("ask for offsets"))?);
        let producer = KafkaProducer::start(&options, watermarks.clone())
            .map_err(failed("start the producer"))?;
        let reader = KafkaReader::new(&options, watermarks.clone(), offset_client.clone())
            .map_err(failed("start the readers"))?;
        let shared = Arc::new(Shared {
            id,
            membership: Arc::new(GroupMembership::new(&options)),
            watermarks,
            offset_client,
            admin,
            producer,
            reader,
            append_clock: Mutex::new(AppendClock::start(None, options.clock.reading())),
            options,
            release_gate: Mutex::default(),
            problem_throttle: KeyedThrottle::every(PROBLEM_LOG_EVERY),
            gap_throttle: KeyedThrottle::every(GAPS_EVERY),
            stopping: AtomicBool::new(false),
            wakeup: Arc::default(),
        });
        // Before joining the group: a node that cannot learn the bounds must not be assigned
        // shards.
        shared.fetch_all_bounds()?;
        tracing::info!(log = %id, topic = shared.options.connection.topic, "the log is Kafka's");
        let member = match &shared.options.group {
            None => None,
            Some(name) => {
                let wakeup = shared.wakeup.clone();
                let joined = group::join_group(
                    &shared.options,
                    name,
                    shared.membership.clone(),
                    move || wakeup.notify(),
                );
                Some(joined.map_err(LogOpenError::Invalid)?)
            }
        };
        let refreshing = shared.clone();
        let refresher = std::thread::Builder::new()
            .name("kafka-marks".to_owned())
            .spawn(move || refreshing.run_refresh());
        let refresher =
            refresher.map_err(|e| LogOpenError::Invalid(format!("cannot start a thread: {e}")))?;
        Ok(Arc::new(Self {
            shared,
            refresher: Mutex::new(Some(refresher)),
            member: Mutex::new(member),
        }))
    }
}

/// The shards that one broker leads, and when it last failed to answer.
struct LeaderPartitions {
    shards: Vec<ShardId>,
    silent_since: Option<Stopwatch>,
}

impl Shared {
    fn all(&self) -> impl Iterator<Item = ShardId> + use<> {
        (0..self.options.shard_count).map(ShardId)
    }

    /// Fetches start and end of every shard. Retries until all partitions have a leader.
    fn fetch_all_bounds(&self) -> Result<(), LogOpenError> {
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
    fn run_refresh(&self) {
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

    /// Appends a record without events after a gap at the end of an owned shard. Only a record
    /// after the gap shows where it ends.
    fn append_behind_gap(&self, shard: ShardId) {
        if !self.membership.owned().contains(&shard) || self.gap_throttle.due(shard).is_none() {
            return;
        }
        let request = AppendRequest { records: vec![(shard, gaps::placeholder_record().into())] };
        match self.producer.append(&request) {
            // The acknowledgement is not needed: the record is read like any other.
            Ok(ticket) => drop(ticket),
            Err(why) => {
                tracing::debug!(shard = shard.0, %why, "no record can be appended behind a gap")
            }
        }
    }

    /// The offset up to which the shard may be released: at most `floor`, and
    /// nothing younger than `log.safety`.
    fn releasable(
        &self,
        shard: ShardId,
        floor: Offset,
    ) -> Result<Option<Offset>, rdkafka::error::KafkaError> {
        let safety = i64::try_from(self.options.safety.as_millis()).unwrap_or(i64::MAX);
        // The lesser of both clocks, so that a jump of the wall clock does not shorten the safety
        // distance.
        let reading = self.options.clock.reading();
        let append = self.append_clock.lock().unwrap_or_else(PoisonError::into_inner).read(reading);
        let before = reading.wall.min(append).saturating_sub(safety);
        // Without a safety distance only the floor counts, even if a broker's clock is ahead of
        // ours.
        let before = if safety == 0 { before.saturating_add(DAY_MS) } else { before };
        append_times::releasable(self.watermarks.start(shard), floor, before, |time| {
            self.offset_client.list_offset(shard, OffsetSpec::ForTimestamp(time))
        })
    }
}

/// Checks the topic and returns its log id.
fn verify_topic(
    admin: &TopicAdmin,
    spec: &TopicSpec,
    brokers: &str,
) -> Result<LogId, LogOpenError> {
    let description = admin.describe(spec)?;
    metrics::gauge!(telemetry::SURPLUS_PARTITIONS).set(description.surplus.len() as f64);
    description.warnings().for_each(|note| tracing::error!("{note}"));
    match (description.refusal(brokers), description.log) {
        (None, Some(id)) => Ok(id),
        (refusal, _) => Err(LogOpenError::Invalid(
            refusal.unwrap_or_else(|| "the topic has no identity".to_owned()),
        )),
    }
}

/// Blocks without keeping the other tasks of this worker thread from running.
fn block_in_place<T>(wait: impl FnOnce() -> T) -> T {
    let flavor = tokio::runtime::Handle::try_current().map(|handle| handle.runtime_flavor());
    // It panics on a runtime of one thread, and outside a runtime there is nothing to protect.
    if flavor.is_ok_and(|flavor| flavor == tokio::runtime::RuntimeFlavor::MultiThread) {
        tokio::task::block_in_place(wait)
    } else {
        wait()
    }
}

impl LogIdentity for KafkaLog {
    fn id(&self) -> LogId {
        self.shared.id
    }

    fn shard_count(&self) -> u32 {
        self.shared.options.shard_count
    }
}

impl LogAppender for KafkaLog {
    fn append(&self, request: AppendRequest) -> Result<AppendTicket, AppendError> {
        if let Some((shard, _)) =
            request.records.iter().find(|(shard, _)| shard.0 >= self.shard_count())
        {
            return Err(AppendError::Closed(format!("shard {shard} does not exist")));
        }
        self.shared.producer.append(&request)
    }

    fn close(&self) {
        self.shared.producer.close();
        self.shared.membership.close();
        join(&self.member);
    }
}

impl LogReader for KafkaLog {
    fn start(&self, shard: ShardId) -> Offset {
        self.shared.watermarks.start(shard)
    }

    fn end(&self, shard: ShardId) -> Offset {
        self.shared.watermarks.end(shard)
    }

    fn end_as_of(&self, shard: ShardId, now: Millis) -> Millis {
        self.shared.watermarks.end_as_of(shard).min(now)
    }

    fn bounds(&self, shard: ShardId) -> Result<(Offset, Offset), LogError> {
        let list_offset = |spec| {
            let answer = block_in_place(|| self.shared.offset_client.list_offset(shard, spec));
            answer
                .map(|offset| offset.unwrap_or(0))
                .map_err(|e| LogError::Io(format!("shard {shard}: {e}")))
        };
        let start = list_offset(OffsetSpec::Earliest)?;
        // Read the clock before the end, as in `fetch_bounds`.
        let now = self.shared.options.clock.uptime();
        let end = list_offset(OffsetSpec::Latest)?;
        self.shared.watermarks.set_start(shard, start);
        self.shared.watermarks.observe_end(shard, end, now);
        Ok((start, end))
    }

    fn read(
        &self,
        shard: ShardId,
        from: Offset,
        max_bytes: usize,
    ) -> Result<Vec<LogRecord>, LogError> {
        let (mut start, mut end) = (self.start(shard), self.end(shard));
        // The cached end may be old: a checkpoint above it is only wrong if the broker says so,
        // too.
        if from > end {
            (start, end) = self.bounds(shard)?;
        }
        if from > end {
            return Err(LogError::BeyondEnd { shard, from, end });
        }
        if from < start {
            return Err(LogError::Released { shard, from, start });
        }
        if from == end {
            return Ok(Vec::new());
        }
        let records = block_in_place(|| self.shared.reader.read(shard, from, max_bytes))?;
        if let Some(last) = records.last() {
            self.shared.membership.advance_position(shard, last.offset + 1);
        } else if self.shared.reader.ends_in_gap(shard) {
            self.shared.append_behind_gap(shard);
        }
        Ok(records)
    }

    fn appended_below(&self, shard: ShardId, from: Offset) -> Result<Option<Millis>, LogError> {
        if from <= self.start(shard) {
            return Ok(None);
        }
        let since = |time| {
            block_in_place(|| {
                self.shared.offset_client.list_offset(shard, OffsetSpec::ForTimestamp(time))
            })
        };
        let failed = |e: rdkafka::error::KafkaError| LogError::Io(format!("shard {shard}: {e}"));
        append_times::max_time_below(from, 0, since).map(Some).map_err(failed)
    }

    fn append_now(&self) -> Millis {
        let now = self.shared.options.clock.reading();
        // A poisoned lock is harmless: only the reading can panic, and that comes before the clock
        // changes.
        self.shared.append_clock.lock().unwrap_or_else(PoisonError::into_inner).read(now)
    }
}

impl LogRetention for KafkaLog {
    fn release(&self, floors: &[Offset]) -> Result<u64, LogError> {
        let failed =
            |e: rdkafka::error::KafkaError| LogError::Io(format!("releasing records: {e}"));
        let every =
            if self.shared.options.safety.is_zero() { Duration::ZERO } else { RELEASE_EVERY };
        if floors.len() != self.shard_count() as usize
            || !self.shared.release_gate.lock().unwrap_or_else(PoisonError::into_inner).due(every)
        {
            return Ok(0);
        }
        let mut below = Vec::new();
        for (shard, &floor) in
            self.shared.all().zip(floors).filter(|(shard, floor)| **floor > self.start(*shard))
        {
            below.extend(
                self.shared.releasable(shard, floor).map_err(failed)?.map(|offset| (shard, offset)),
            );
        }
        if below.is_empty() {
            return Ok(0);
        }
        let before: u64 = below.iter().map(|(shard, _)| self.start(*shard)).sum();
        let starts = self.shared.admin.delete_records_below(&below).map_err(failed)?;
        starts.iter().for_each(|(shard, start)| self.shared.watermarks.set_start(*shard, *start));
        let records = starts.iter().map(|(_, start)| start).sum::<u64>().saturating_sub(before);
        tracing::info!(records, shards = starts.len(), "released records of the topic");
        // The brokers decide when they free the disk space.
        Ok(0)
    }

    fn bytes_on_disk(&self) -> u64 {
        // The log occupies the brokers' disks, not this node's.
        0
    }
}

impl ShardAssignment for KafkaLog {
    fn assignment(&self) -> watch::Receiver<Arc<BTreeSet<ShardId>>> {
        self.shared.membership.assigned()
    }

    fn relinquish(&self, shards: &BTreeSet<ShardId>) {
        self.shared.membership.relinquish(shards);
    }
}

fn join(thread: &Mutex<Option<JoinHandle<()>>>) {
    let thread = thread.lock().unwrap_or_else(PoisonError::into_inner).take();
    if thread.is_some_and(|thread| thread.join().is_err()) {
        tracing::error!("a thread of the log died");
    }
}

impl Drop for KafkaLog {
    fn drop(&mut self) {
        self.close();
        self.shared.stopping.store(true, Ordering::Release);
        self.shared.wakeup.notify();
        join(&self.refresher);
    }
}
