//! The log on Apache Kafka: shard n is partition n of one topic.
//!
//! | part | what it does |
//! |---|---|
//! | [`connectivity`] | whether the cluster can be reached, and if not, why |
//! | [`topic`] | makes and checks the topic, gives the log its identity, deletes what is released |
//! | `produce` | appends: idempotent, acknowledged by all in-sync replicas, one acknowledgement per request |
//! | `read` | reads by manual assignment at the position asked for |
//! | `gaps` | whether a gap holds nothing but what Kafka itself wrote there |
//! | `marks` | starts and ends of the shards, and how old that knowledge is |
//! | `times` | the append time: made of the gateway's stamp and Kafka's `LogAppendTime` |
//! | [`fill`] | makes a new topic begin at the offsets of another log |
//! | `group` | the consumer group, which says which shards this node owns, and nothing else |
//!
//! The position of a shard always comes from the store's checkpoint. Offsets committed to the group
//! are for tools that show lag.

mod append_times;
pub mod connectivity;
pub mod fill;
mod gaps;
mod group;
mod produce;
mod read;
mod settings;
mod throttle;
pub mod topic;
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

/// The shards of others are asked for this often: a gateway compares their ends with the offsets
/// that its records get.
const ALL_EVERY: Duration = Duration::from_secs(10);
/// Leaders are looked up this often even if nothing fails.
const LEADERS_EVERY: Duration = Duration::from_secs(30);
/// A broker that did not answer is left alone for this long, so that the shards of the others stay
/// fresh.
const SILENT_BROKER_PAUSE: Duration = Duration::from_secs(1);
/// A new topic, and then its settings, are known to one broker after the other: what is not right
/// is looked at again for so long.
const NEW_TOPIC_GRACE: Duration = Duration::from_secs(2);
/// The identity of the topic is looked at this often.
const IDENTITY_EVERY: Duration = Duration::from_secs(30);
/// A record is appended behind a gap at most this often: an outage may look like one.
const GAPS_EVERY: Duration = Duration::from_secs(15);
/// What is wrong with the topic is said again after this time.
const PROBLEM_LOG_EVERY: Duration = Duration::from_secs(600);
/// Records are deleted at most this often while `log.safety` keeps a day of them anyway.
const RELEASE_EVERY: Duration = Duration::from_secs(60);

const DAY_MS: i64 = 86_400_000;

/// Whether something is due that happens at most every so often.
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
    /// What records that were appended here now would be stamped with.
    append_clock: Mutex<AppendClock>,
    release_gate: Mutex<IntervalGate>,
    /// What is wrong with the topic.
    problem_throttle: KeyedThrottle<String>,
    /// Gaps at the end of shards.
    gap_throttle: KeyedThrottle<ShardId>,
    stopping: AtomicBool,
    wakeup: Arc<Wakeup>,
}

/// Wakes the thread that keeps the marks fresh.
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
        let rung = self.notified.lock().unwrap_or_else(PoisonError::into_inner);
        let (mut rung, _) = self
            .condvar
            .wait_timeout_while(rung, at_most, |rung| !*rung)
            .unwrap_or_else(PoisonError::into_inner);
        *rung = false;
    }
}

/// The log on Kafka, as one node sees it.
pub struct KafkaLog {
    shared: Arc<Shared>,
    refresher: Mutex<Option<JoinHandle<()>>>,
    member: Mutex<Option<JoinHandle<()>>>,
}

impl KafkaLog {
    /// Opens the log: checks the topic, learns where every shard starts and ends, and joins the
    /// group if the options name one.
    ///
    /// # Errors
    /// If the cluster cannot be reached, or the topic cannot keep the promises: names what differs
    /// and the command that mends it.
    pub fn open(options: KafkaOptions) -> Result<Arc<Self>, LogOpenError> {
        let wish = TopicSpec {
            partitions: options.shard_count,
            replication: options.replication,
            min_isr: options.min_isr,
        };
        connectivity::check_connectivity(&options.connection)?;
        let admin = TopicAdmin::new(&options.connection).map_err(LogOpenError::Invalid)?;
        let watch = Stopwatch::start();
        let id = loop {
            match verify_topic(&admin, &wish, &options.connection.brokers) {
                Err(LogOpenError::Invalid(_)) if watch.elapsed() < NEW_TOPIC_GRACE => {
                    std::thread::park_timeout(NEW_TOPIC_GRACE / 20)
                }
                outcome => break outcome?,
            }
        };
        Self::open_checked(options, admin, id)
    }

    /// Opens the log of a topic that was checked.
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
        let marks = Arc::new(TopicWatermarks::new(options.shard_count));
        let asker =
            Arc::new(OffsetClient::new(&options.connection).map_err(failed("ask for offsets"))?);
        let appending =
            KafkaProducer::start(&options, marks.clone()).map_err(failed("start the producer"))?;
        let reading = KafkaReader::new(&options, marks.clone(), asker.clone())
            .map_err(failed("start the readers"))?;
        let shared = Arc::new(Shared {
            id,
            membership: Arc::new(GroupMembership::new(&options)),
            watermarks: marks,
            offset_client: asker,
            admin,
            producer: appending,
            reader: reading,
            append_clock: Mutex::new(AppendClock::start(None, options.clock.reading())),
            options,
            release_gate: Mutex::default(),
            problem_throttle: KeyedThrottle::every(PROBLEM_LOG_EVERY),
            gap_throttle: KeyedThrottle::every(GAPS_EVERY),
            stopping: AtomicBool::new(false),
            wakeup: Arc::default(),
        });
        shared.fetch_all_bounds()?;
        tracing::info!(log = %id, topic = shared.options.connection.topic, "the log is Kafka's");
        let member = match &shared.options.group {
            None => None,
            Some(name) => {
                let bell = shared.wakeup.clone();
                let joined = group::join_group(
                    &shared.options,
                    name,
                    shared.membership.clone(),
                    move || bell.notify(),
                );
                Some(joined.map_err(LogOpenError::Invalid)?)
            }
        };
        let kept = shared.clone();
        let keeper = std::thread::Builder::new()
            .name("kafka-marks".to_owned())
            .spawn(move || kept.run_refresh());
        let keeper =
            keeper.map_err(|e| LogOpenError::Invalid(format!("cannot start a thread: {e}")))?;
        Ok(Arc::new(Self {
            shared,
            refresher: Mutex::new(Some(keeper)),
            member: Mutex::new(member),
        }))
    }
}

/// The shards that one broker leads, and since when it has not answered.
struct LeaderPartitions {
    shards: Vec<ShardId>,
    silent_since: Option<Stopwatch>,
}

impl Shared {
    fn all(&self) -> impl Iterator<Item = ShardId> + use<> {
        (0..self.options.shard_count).map(ShardId)
    }

    /// Start and end of every shard, before anything else happens.
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

    /// Asks where these shards end, and where they start if that may have changed; which of them
    /// were answered.
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
        // The time comes first: what is durable at it lies below the end that is told afterwards.
        let asked = self.options.clock.uptime();
        let ends = self.offset_client.list_offsets(shards, OffsetSpec::Latest)?;
        ends.iter()
            .for_each(|(shard, end)| self.watermarks.observe_end(*shard, end.unwrap_or(0), asked));
        Ok(ends.into_iter().map(|(shard, _)| shard).collect())
    }

    /// Keeps the marks fresh until the log is dropped.
    fn run_refresh(&self) {
        let (mut leaders, mut look_up, mut all, mut identity) =
            (Vec::new(), IntervalGate::default(), IntervalGate::default(), IntervalGate::default());
        let mut published = BTreeSet::new();
        identity.due(IDENTITY_EVERY);
        while !self.stopping.load(Ordering::Acquire) {
            self.reader.poll_events();
            let owned = self.membership.owned();
            let new = !owned.is_subset(&published);
            // An end that seems to have gone back is asked for again until it is clear.
            let behind = self.all().any(|shard| self.watermarks.has_regressed(shard));
            let everything =
                all.due(ALL_EVERY) || behind || self.options.group.is_none() && leaders.is_empty();
            if look_up.due(LEADERS_EVERY)
                || leaders.iter().any(|led: &LeaderPartitions| led.silent_since.is_some())
                    && look_up.due(SILENT_BROKER_PAUSE)
            {
                self.fetch_leaders(&mut leaders);
            }
            let mut known = BTreeSet::new();
            for led in &mut leaders {
                known.append(&mut self.refresh_leader(led, &owned, everything, new || everything));
            }
            self.membership.publish_known(&known);
            let assigned = self.membership.assigned().borrow().clone();
            self.reader.unassign_shards(published.difference(&owned).copied());
            published = (*assigned).clone();
            self.producer.replace_if_fatal();
            if identity.due(IDENTITY_EVERY) {
                self.check_identity();
            }
            // What was assigned while this was going on is not made to wait.
            if new && !owned.is_subset(&published) && look_up.due(SILENT_BROKER_PAUSE) {
                self.fetch_leaders(&mut leaders);
            }
            self.wakeup.wait(self.options.refresh);
        }
    }

    fn fetch_leaders(&self, leaders: &mut Vec<LeaderPartitions>) {
        match self.offset_client.shards_by_leader() {
            Ok(mut found) => {
                // Somebody may have added partitions that are no shards.
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

    /// One broker's shards; a broker that is silent does not keep the others waiting.
    fn refresh_leader(
        &self,
        led: &mut LeaderPartitions,
        owned: &BTreeSet<ShardId>,
        everything: bool,
        starts: bool,
    ) -> BTreeSet<ShardId> {
        let wanted: Vec<ShardId> = led
            .shards
            .iter()
            .filter(|shard| everything || owned.contains(shard))
            .copied()
            .collect();
        if wanted.is_empty()
            || led.silent_since.is_some_and(|watch| watch.elapsed() < SILENT_BROKER_PAUSE)
        {
            return BTreeSet::new();
        }
        match self.fetch_bounds(&wanted, starts) {
            Ok(known) => {
                let missing = known.len() < wanted.len()
                    || wanted.iter().any(|shard| self.watermarks.has_regressed(*shard));
                led.silent_since = missing.then(Stopwatch::start);
                known
            }
            Err(error) => {
                tracing::debug!(%error, "a broker does not say where its shards end");
                led.silent_since = Some(Stopwatch::start());
                BTreeSet::new()
            }
        }
    }

    /// A topic that was made anew has another identity, or none.
    fn check_identity(&self) {
        let wish = TopicSpec {
            partitions: self.options.shard_count,
            replication: self.options.replication,
            min_isr: self.options.min_isr,
        };
        match self.admin.describe(&wish) {
            Err(why) => tracing::debug!(%why, "the topic cannot be looked at now"),
            Ok(found) if found.log.is_some_and(|log| log != self.id) => {
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

    /// Appends a record without events behind a gap at the end of a shard that is ours: only what
    /// comes behind shows that nothing else will.
    fn append_behind_gap(&self, shard: ShardId) {
        if !self.membership.owned().contains(&shard) || self.gap_throttle.due(shard).is_none() {
            return;
        }
        let request = AppendRequest { records: vec![(shard, gaps::placeholder_record().into())] };
        match self.producer.append(&request) {
            // It is read like any other.
            Ok(ticket) => drop(ticket),
            Err(why) => {
                tracing::debug!(shard = shard.0, %why, "no record can be appended behind a gap")
            }
        }
    }

    fn releasable(
        &self,
        shard: ShardId,
        floor: Offset,
    ) -> Result<Option<Offset>, rdkafka::error::KafkaError> {
        let safety = i64::try_from(self.options.safety.as_millis()).unwrap_or(i64::MAX);
        // A wall clock that leaps ahead does not shorten the distance.
        let reading = self.options.clock.reading();
        let append = self.append_clock.lock().unwrap_or_else(PoisonError::into_inner).read(reading);
        let before = reading.wall.min(append).saturating_sub(safety);
        // Without a safety distance only the floor counts, and a broker's clock may be ahead of
        // ours.
        let before = if safety == 0 { before.saturating_add(DAY_MS) } else { before };
        append_times::releasable(self.watermarks.start(shard), floor, before, |time| {
            self.offset_client.list_offset(shard, OffsetSpec::ForTimestamp(time))
        })
    }
}

/// The log of a topic that keeps the promises.
fn verify_topic(
    admin: &TopicAdmin,
    wish: &TopicSpec,
    brokers: &str,
) -> Result<LogId, LogOpenError> {
    let description = admin.describe(wish)?;
    metrics::gauge!(telemetry::SURPLUS_PARTITIONS).set(description.surplus.len() as f64);
    description.warnings().for_each(|note| tracing::error!("{note}"));
    match (description.refusal(brokers), description.log) {
        (None, Some(id)) => Ok(id),
        (refusal, _) => Err(LogOpenError::Invalid(
            refusal.unwrap_or_else(|| "the topic has no identity".to_owned()),
        )),
    }
}

/// Waits without keeping other tasks of the runtime from running.
fn block_in_place<T>(wait: impl FnOnce() -> T) -> T {
    let flavor = tokio::runtime::Handle::try_current().map(|handle| handle.runtime_flavor());
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
        let asked = |what| {
            let answer = block_in_place(|| self.shared.offset_client.list_offset(shard, what));
            answer
                .map(|offset| offset.unwrap_or(0))
                .map_err(|e| LogError::Io(format!("shard {shard}: {e}")))
        };
        let start = asked(OffsetSpec::Earliest)?;
        let now = self.shared.options.clock.uptime();
        let end = asked(OffsetSpec::Latest)?;
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
        // A reading is whole before it is kept: the poison says nothing.
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
        // How many bytes that frees is the brokers' affair.
        Ok(0)
    }

    fn bytes_on_disk(&self) -> u64 {
        // The brokers' disks are theirs.
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
