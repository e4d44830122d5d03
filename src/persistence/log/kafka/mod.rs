//! The log on Apache Kafka: shard n is partition n of one topic.
//!
//! | module | what it does |
//! |---|---|
//! | [`connectivity`] | checks whether the cluster is reachable, and why if not |
//! | [`topic`] | creates and checks the topic, identifies the log, deletes released records |
//! | `produce` | appends: idempotent, `acks=all`, one acknowledgement per request |
//! | `read` | reads with manual assignment, from the offset that the caller asks for |
//! | `log_reader` | implements `LogReader`: what may be read of a shard, and its records |
//! | `retention` | decides which records may be deleted |
//! | `refresh` | the thread that refreshes watermarks and leaders, and checks the topic |
//! | `gaps` | checks whether a gap holds only Kafka's own control records |
//! | `watermarks` | start and end of each shard, and how old that knowledge is |
//! | `append_times` | derives append times from the gateway's stamp and `LogAppendTime` |
//! | [`topic_fill`] | lets a new topic begin at the offsets of another log |
//! | `group` | the consumer group, which only decides which shards this node owns |
//!
//! The position of a shard always comes from the store's checkpoint. Offsets committed to the group
//! only serve tools that show lag.

mod append_times;
pub mod connectivity;
mod gaps;
mod group;
mod log_reader;
mod produce;
mod read;
mod refresh;
mod retention;
mod settings;
mod throttle;
pub mod topic;
pub mod topic_fill;
mod watermarks;

#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::sync::watch;

use self::group::GroupMembership;
use self::produce::KafkaProducer;
use self::read::KafkaReader;
use self::refresh::Wakeup;
pub use self::settings::{
    KafkaConnection, KafkaOptions, KafkaProperties, MESSAGE_BYTES, PassedGaps,
};
use self::throttle::{IntervalGate, KeyedThrottle};
use self::topic::{TopicAdmin, TopicSpec};
use self::watermarks::{OffsetClient, TopicWatermarks};
use super::{
    AppendError, AppendRequest, AppendTicket, LogAppender, LogIdentity, LogOpenError,
    ShardAssignment,
};
use crate::clock::Stopwatch;
use crate::model::clock::AppendClock;
use crate::model::offset::{LogId, ShardId};
use crate::telemetry;

/// How long a mismatch is rechecked. Brokers learn of a new topic and of its settings
/// one after the other.
const NEW_TOPIC_GRACE: Duration = Duration::from_secs(2);
/// Minimum interval between records appended after a gap of one shard. An outage may
/// look like a gap.
const GAPS_EVERY: Duration = Duration::from_secs(15);
/// How often the same problem of the topic is logged.
const PROBLEM_LOG_EVERY: Duration = Duration::from_secs(600);

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

impl Shared {
    fn all(&self) -> impl Iterator<Item = ShardId> + use<> {
        (0..self.options.shard_count).map(ShardId)
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
