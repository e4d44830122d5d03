//! The log on Apache Kafka: shard n is partition n of one topic.
//!
//! | part | what it does |
//! |---|---|
//! | [`reach`] | whether the cluster can be reached, and if not, why |
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

pub mod fill;
mod gaps;
mod group;
mod marks;
mod produce;
mod rarely;
pub mod reach;
mod read;
mod settings;
mod times;
pub mod topic;

#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::sync::watch;

use self::group::Membership;
use self::marks::{Ask, Asker, Marks};
use self::produce::Appending;
use self::rarely::Rarely;
use self::read::Reading;
pub use self::settings::{Connection, Gaps, KafkaOptions, MESSAGE_BYTES, Properties};
use self::topic::{Admin, Wish};
use super::{AppendError, AppendRequest, AppendTicket, EventLog, LogError, Unopened};
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
const REST: Duration = Duration::from_secs(1);
/// A new topic, and then its settings, are known to one broker after the other: what is not right
/// is looked at again for so long.
const NEW_TOPIC: Duration = Duration::from_secs(2);
/// The identity of the topic is looked at this often.
const IDENTITY_EVERY: Duration = Duration::from_secs(30);
/// A record is appended behind a gap at most this often: an outage may look like one.
const GAPS_EVERY: Duration = Duration::from_secs(15);
/// What is wrong with the topic is said again after this time.
const SAID_EVERY: Duration = Duration::from_secs(600);
/// Records are deleted at most this often while `log.safety` keeps a day of them anyway.
const RELEASE_EVERY: Duration = Duration::from_secs(60);

const DAY_MS: i64 = 86_400_000;

/// Whether something is due that happens at most every so often.
#[derive(Default)]
struct Every(Option<Stopwatch>);

impl Every {
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
    marks: Arc<Marks>,
    asker: Arc<Asker>,
    admin: Admin,
    appending: Appending,
    reading: Reading,
    membership: Arc<Membership>,
    /// What records that were appended here now would be stamped with.
    append: Mutex<AppendClock>,
    released: Mutex<Every>,
    /// What is wrong with the topic.
    said: Rarely<String>,
    /// Gaps at the end of shards.
    gaps: Rarely<ShardId>,
    stopping: AtomicBool,
    bell: Arc<Bell>,
}

/// Wakes the thread that keeps the marks fresh.
#[derive(Default)]
struct Bell {
    rung: Mutex<bool>,
    ringing: Condvar,
}

impl Bell {
    fn ring(&self) {
        *self.rung.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.ringing.notify_all();
    }

    fn wait(&self, at_most: Duration) {
        let rung = self.rung.lock().unwrap_or_else(PoisonError::into_inner);
        let (mut rung, _) = self
            .ringing
            .wait_timeout_while(rung, at_most, |rung| !*rung)
            .unwrap_or_else(PoisonError::into_inner);
        *rung = false;
    }
}

/// The log on Kafka, as one node sees it.
pub struct KafkaLog {
    shared: Arc<Shared>,
    keeper: Mutex<Option<JoinHandle<()>>>,
    member: Mutex<Option<JoinHandle<()>>>,
}

impl KafkaLog {
    /// Opens the log: checks the topic, learns where every shard starts and ends, and joins the
    /// group if the options name one.
    ///
    /// # Errors
    /// If the cluster cannot be reached, or the topic cannot keep the promises: names what differs
    /// and the command that mends it.
    pub fn open(options: KafkaOptions) -> Result<Arc<Self>, Unopened> {
        let wish = Wish {
            partitions: options.shard_count,
            replication: options.replication,
            min_isr: options.min_isr,
        };
        reach::reach(&options.connection)?;
        let admin = Admin::new(&options.connection).map_err(Unopened::Wrong)?;
        let watch = Stopwatch::start();
        let id = loop {
            match fit(&admin, &wish, &options.connection.brokers) {
                Err(Unopened::Wrong(_)) if watch.elapsed() < NEW_TOPIC => {
                    std::thread::park_timeout(NEW_TOPIC / 20)
                }
                outcome => break outcome?,
            }
        };
        Self::open_as(options, admin, id)
    }

    /// Opens the log of a topic that was checked.
    fn open_as(options: KafkaOptions, admin: Admin, id: LogId) -> Result<Arc<Self>, Unopened> {
        let failed = |doing: &'static str| {
            let brokers = options.connection.brokers.clone();
            move |e: rdkafka::error::KafkaError| {
                Unopened::Wrong(format!("cannot {doing} at {brokers}: {e}"))
            }
        };
        let marks = Arc::new(Marks::new(options.shard_count));
        let asker = Arc::new(Asker::new(&options.connection).map_err(failed("ask for offsets"))?);
        let appending =
            Appending::start(&options, marks.clone()).map_err(failed("start the producer"))?;
        let reading = Reading::new(&options, marks.clone(), asker.clone())
            .map_err(failed("start the readers"))?;
        let shared = Arc::new(Shared {
            id,
            membership: Arc::new(Membership::new(&options)),
            marks,
            asker,
            admin,
            appending,
            reading,
            append: Mutex::new(AppendClock::start(None, options.clock.reading())),
            options,
            released: Mutex::default(),
            said: Rarely::once_in(SAID_EVERY),
            gaps: Rarely::once_in(GAPS_EVERY),
            stopping: AtomicBool::new(false),
            bell: Arc::default(),
        });
        shared.learn_everything()?;
        tracing::info!(log = %id, topic = shared.options.connection.topic, "the log is Kafka's");
        let member = match &shared.options.group {
            None => None,
            Some(name) => {
                let bell = shared.bell.clone();
                let joined =
                    group::join(&shared.options, name, shared.membership.clone(), move || {
                        bell.ring()
                    });
                Some(joined.map_err(Unopened::Wrong)?)
            }
        };
        let kept = shared.clone();
        let keeper =
            std::thread::Builder::new().name("kafka-marks".to_owned()).spawn(move || kept.keep());
        let keeper = keeper.map_err(|e| Unopened::Wrong(format!("cannot start a thread: {e}")))?;
        Ok(Arc::new(Self { shared, keeper: Mutex::new(Some(keeper)), member: Mutex::new(member) }))
    }
}

/// The shards that one broker leads, and since when it has not answered.
struct Led {
    shards: Vec<ShardId>,
    silent: Option<Stopwatch>,
}

impl Shared {
    fn all(&self) -> impl Iterator<Item = ShardId> + use<> {
        (0..self.options.shard_count).map(ShardId)
    }

    /// Start and end of every shard, before anything else happens.
    fn learn_everything(&self) -> Result<(), Unopened> {
        let all: Vec<ShardId> = self.all().collect();
        let watch = Stopwatch::start();
        loop {
            let learned = self.learn(&all, true);
            match learned {
                Ok(known) if known.len() == all.len() => return Ok(()),
                Ok(_) | Err(_) if watch.elapsed() < self.options.connection.timeout => {}
                Ok(known) => {
                    let missing =
                        all.iter().find(|shard| !known.contains(shard)).map_or(0, |shard| shard.0);
                    return Err(Unopened::Away(format!(
                        "partition {missing} of {} has no leader: `rollmill topic describe` shows \
                         which brokers are missing",
                        self.options.connection.topic
                    )));
                }
                Err(error) => {
                    return Err(Unopened::Away(format!(
                        "cannot learn where the shards end: {error}"
                    )));
                }
            }
        }
    }

    /// Asks where these shards end, and where they start if that may have changed; which of them
    /// were answered.
    fn learn(
        &self,
        shards: &[ShardId],
        starts: bool,
    ) -> Result<BTreeSet<ShardId>, rdkafka::error::KafkaError> {
        if starts {
            for (shard, start) in self.asker.ask(shards, Ask::Start)? {
                self.marks.starts(shard, start.unwrap_or(0));
            }
        }
        // The time comes first: what is durable at it lies below the end that is told afterwards.
        let asked = self.options.clock.uptime();
        let ends = self.asker.ask(shards, Ask::End)?;
        ends.iter().for_each(|(shard, end)| self.marks.ends(*shard, end.unwrap_or(0), asked));
        Ok(ends.into_iter().map(|(shard, _)| shard).collect())
    }

    /// Keeps the marks fresh until the log is dropped.
    fn keep(&self) {
        let (mut leaders, mut look_up, mut all, mut identity) =
            (Vec::new(), Every::default(), Every::default(), Every::default());
        let mut published = BTreeSet::new();
        identity.due(IDENTITY_EVERY);
        while !self.stopping.load(Ordering::Acquire) {
            self.reading.serve();
            let owned = self.membership.owned();
            let new = !owned.is_subset(&published);
            // An end that seems to have gone back is asked for again until it is clear.
            let behind = self.all().any(|shard| self.marks.is_behind(shard));
            let everything =
                all.due(ALL_EVERY) || behind || self.options.group.is_none() && leaders.is_empty();
            if look_up.due(LEADERS_EVERY)
                || leaders.iter().any(|led: &Led| led.silent.is_some()) && look_up.due(REST)
            {
                self.look_up(&mut leaders);
            }
            let mut known = BTreeSet::new();
            for led in &mut leaders {
                known.append(&mut self.refresh(led, &owned, everything, new || everything));
            }
            self.membership.known(&known);
            let assigned = self.membership.assigned().borrow().clone();
            self.reading.leave(published.difference(&owned).copied());
            published = (*assigned).clone();
            self.appending.revive();
            if identity.due(IDENTITY_EVERY) {
                self.check_identity();
            }
            // What was assigned while this was going on is not made to wait.
            if new && !owned.is_subset(&published) && look_up.due(REST) {
                self.look_up(&mut leaders);
            }
            self.bell.wait(self.options.refresh);
        }
    }

    fn look_up(&self, leaders: &mut Vec<Led>) {
        match self.asker.leaders() {
            Ok(mut found) => {
                // Somebody may have added partitions that are no shards.
                found
                    .iter_mut()
                    .for_each(|shards| shards.retain(|shard| shard.0 < self.options.shard_count));
                *leaders = found.into_iter().map(|shards| Led { shards, silent: None }).collect();
            }
            Err(error) => {
                tracing::warn!(%error, "the leaders of the topic are not known, it is tried again")
            }
        }
    }

    /// One broker's shards; a broker that is silent does not keep the others waiting.
    fn refresh(
        &self,
        led: &mut Led,
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
        if wanted.is_empty() || led.silent.is_some_and(|watch| watch.elapsed() < REST) {
            return BTreeSet::new();
        }
        match self.learn(&wanted, starts) {
            Ok(known) => {
                let missing = known.len() < wanted.len()
                    || wanted.iter().any(|shard| self.marks.is_behind(*shard));
                led.silent = missing.then(Stopwatch::start);
                known
            }
            Err(error) => {
                tracing::debug!(%error, "a broker does not say where its shards end");
                led.silent = Some(Stopwatch::start());
                BTreeSet::new()
            }
        }
    }

    /// A topic that was made anew has another identity, or none.
    fn check_identity(&self) {
        let wish = Wish {
            partitions: self.options.shard_count,
            replication: self.options.replication,
            min_isr: self.options.min_isr,
        };
        match self.admin.describe(&wish) {
            Err(why) => tracing::debug!(%why, "the topic cannot be looked at now"),
            Ok(found) if found.log.is_some_and(|log| log != self.id) => {
                self.appending.condemn(format!(
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
                for why in found.refusal(brokers).into_iter().chain(found.notes()) {
                    if self.said.due(why.clone()).is_some() {
                        tracing::error!("{why}");
                    }
                }
            }
        }
    }

    /// Appends a record without events behind a gap at the end of a shard that is ours: only what
    /// comes behind shows that nothing else will.
    fn show_the_gap(&self, shard: ShardId) {
        if !self.membership.owned().contains(&shard) || self.gaps.due(shard).is_none() {
            return;
        }
        let request = AppendRequest { records: vec![(shard, gaps::stand_in().into())] };
        match self.appending.append(&request) {
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
        let append = self.append.lock().unwrap_or_else(PoisonError::into_inner).read(reading);
        let before = reading.wall.min(append).saturating_sub(safety);
        // Without a safety distance only the floor counts, and a broker's clock may be ahead of
        // ours.
        let before = if safety == 0 { before.saturating_add(DAY_MS) } else { before };
        times::releasable(self.marks.start(shard), floor, before, |time| {
            self.asker.one(shard, Ask::Since(time))
        })
    }
}

/// The log of a topic that keeps the promises.
fn fit(admin: &Admin, wish: &Wish, brokers: &str) -> Result<LogId, Unopened> {
    let description = admin.describe(wish)?;
    metrics::gauge!(telemetry::SURPLUS_PARTITIONS).set(description.surplus.len() as f64);
    description.notes().for_each(|note| tracing::error!("{note}"));
    match (description.refusal(brokers), description.log) {
        (None, Some(id)) => Ok(id),
        (refusal, _) => {
            Err(Unopened::Wrong(refusal.unwrap_or_else(|| "the topic has no identity".to_owned())))
        }
    }
}

/// Waits without keeping other tasks of the runtime from running.
fn in_place<T>(wait: impl FnOnce() -> T) -> T {
    let flavor = tokio::runtime::Handle::try_current().map(|handle| handle.runtime_flavor());
    if flavor.is_ok_and(|flavor| flavor == tokio::runtime::RuntimeFlavor::MultiThread) {
        tokio::task::block_in_place(wait)
    } else {
        wait()
    }
}

impl EventLog for KafkaLog {
    fn id(&self) -> LogId {
        self.shared.id
    }

    fn shard_count(&self) -> u32 {
        self.shared.options.shard_count
    }

    fn append(&self, request: AppendRequest) -> Result<AppendTicket, AppendError> {
        if let Some((shard, _)) =
            request.records.iter().find(|(shard, _)| shard.0 >= self.shard_count())
        {
            return Err(AppendError::Closed(format!("shard {shard} does not exist")));
        }
        self.shared.appending.append(&request)
    }

    fn append_now(&self) -> Millis {
        let now = self.shared.options.clock.reading();
        // A reading is whole before it is kept: the poison says nothing.
        self.shared.append.lock().unwrap_or_else(PoisonError::into_inner).read(now)
    }

    fn start(&self, shard: ShardId) -> Offset {
        self.shared.marks.start(shard)
    }

    fn end(&self, shard: ShardId) -> Offset {
        self.shared.marks.end(shard)
    }

    fn known_at(&self, shard: ShardId, now: Millis) -> Millis {
        self.shared.marks.known_at(shard).min(now)
    }

    fn bounds(&self, shard: ShardId) -> Result<(Offset, Offset), LogError> {
        let asked = |what| {
            let answer = in_place(|| self.shared.asker.one(shard, what));
            answer
                .map(|offset| offset.unwrap_or(0))
                .map_err(|e| LogError::Io(format!("shard {shard}: {e}")))
        };
        let start = asked(Ask::Start)?;
        let now = self.shared.options.clock.uptime();
        let end = asked(Ask::End)?;
        self.shared.marks.starts(shard, start);
        self.shared.marks.ends(shard, end, now);
        Ok((start, end))
    }

    fn assignment(&self) -> watch::Receiver<Arc<BTreeSet<ShardId>>> {
        self.shared.membership.assigned()
    }

    fn let_go(&self, shards: &BTreeSet<ShardId>) {
        self.shared.membership.let_go(shards);
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
        let records = in_place(|| self.shared.reading.read(shard, from, max_bytes))?;
        if let Some(last) = records.last() {
            self.shared.membership.read_up_to(shard, last.offset + 1);
        } else if self.shared.reading.ends_in_a_gap(shard) {
            self.shared.show_the_gap(shard);
        }
        Ok(records)
    }

    fn appended_below(&self, shard: ShardId, from: Offset) -> Result<Option<Millis>, LogError> {
        if from <= self.start(shard) {
            return Ok(None);
        }
        let since = |time| in_place(|| self.shared.asker.one(shard, Ask::Since(time)));
        let failed = |e: rdkafka::error::KafkaError| LogError::Io(format!("shard {shard}: {e}"));
        times::maximum_below(from, 0, since).map(Some).map_err(failed)
    }

    fn release(&self, floors: &[Offset]) -> Result<u64, LogError> {
        let failed =
            |e: rdkafka::error::KafkaError| LogError::Io(format!("releasing records: {e}"));
        let every =
            if self.shared.options.safety.is_zero() { Duration::ZERO } else { RELEASE_EVERY };
        if floors.len() != self.shard_count() as usize
            || !self.shared.released.lock().unwrap_or_else(PoisonError::into_inner).due(every)
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
        let starts = self.shared.admin.delete_below(&below).map_err(failed)?;
        starts.iter().for_each(|(shard, start)| self.shared.marks.starts(*shard, *start));
        let records = starts.iter().map(|(_, start)| start).sum::<u64>().saturating_sub(before);
        tracing::info!(records, shards = starts.len(), "released records of the topic");
        // How many bytes that frees is the brokers' affair.
        Ok(0)
    }

    fn appended(&self) -> watch::Receiver<u64> {
        self.shared.marks.appended()
    }

    fn bytes_on_disk(&self) -> u64 {
        // The brokers' disks are theirs.
        0
    }

    fn close(&self) {
        self.shared.appending.close();
        self.shared.membership.close();
        join(&self.member);
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
        self.shared.bell.ring();
        join(&self.keeper);
    }
}
