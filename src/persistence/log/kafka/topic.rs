//! The topic: made with the settings that the promises need, and checked against them at every
//! start.

use std::collections::BTreeMap;

use futures::executor::block_on;
use rdkafka::admin::{
    AdminClient, AdminOptions, AlterConfig, NewTopic, ResourceSpecifier, TopicReplication,
};
use rdkafka::error::KafkaError;
use rdkafka::topic_partition_list::{Offset as At, TopicPartitionList};
use rdkafka::types::RDKafkaErrorCode;

use super::settings::{KafkaConnection, MESSAGE_BYTES, QuietContext};
use super::watermarks::{partition, shard};
use crate::clock::Stopwatch;
use crate::model::offset::{LogId, Offset, ShardId};
use crate::persistence::log::LogOpenError;

/// Where the identity of the log stands. The setting has no effect on a topic that is not
/// compacted, lives and dies with the topic, and is read with the same right as the settings that
/// are checked anyway (docs/adr/0009-kafka.md).
pub const IDENTITY_KEY: &str = "max.compaction.lag.ms";
/// Identities have this bit, so that the setting means "never" even if somebody compacts the topic.
const IDENTITY_BIT: u64 = 1 << 62;

/// Identities of topics that `rollmill migrate` makes have this bit too. While it is there without
/// the other one, the topic has no identity yet, and no node uses it.
const MIGRATED_BIT: u64 = 1 << 61;

/// What stands in the place of an identity that was taken away.
const RETIRED_IDENTITY: u64 = 1;

/// What the topic must be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TopicSpec {
    /// Partitions: the shard count.
    pub partitions: u32,
    /// Replicas, at least.
    pub replication: u32,
    /// In-sync replicas without which writes are refused, at least.
    pub min_isr: u32,
}

/// One thing that is not as it must be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TopicDrift {
    /// The setting.
    pub setting: String,
    /// As it is.
    pub found: String,
    /// As it must be.
    pub expected: String,
    /// What goes wrong otherwise.
    pub why: &'static str,
    /// Whether `kafka-configs` mends it.
    pub is_setting: bool,
    /// Whether nodes serve all the same.
    pub is_harmless: bool,
}

/// The topic as it is.
#[derive(Debug, Clone)]
pub struct TopicDescription {
    /// Its name.
    pub topic: String,
    /// Id of the cluster.
    pub cluster: String,
    /// Number of partitions.
    pub partitions: u32,
    /// Replicas of the partition that has the fewest.
    pub replication: u32,
    /// Partitions that lack in-sync replicas now.
    pub under_replicated: Vec<ShardId>,
    /// Partitions without a leader now.
    pub leaderless: Vec<ShardId>,
    /// Partitions beyond those that are wished for, each with the number of records that it holds.
    pub surplus: Vec<(ShardId, u64)>,
    /// The settings that matter.
    pub settings: BTreeMap<String, String>,
    /// The identity, if the topic was made by `rollmill topic create`.
    pub log: Option<LogId>,
    /// The number of the identity that it gets when the migration that fills it has ended.
    pub pending_identity: Option<u64>,
    /// What is not as it must be.
    pub drift: Vec<TopicDrift>,
}

/// The number of an identity for a topic that a migration makes.
pub fn migrated_identity(random: u64) -> u64 {
    // Kafka's default is the largest number of all.
    IDENTITY_BIT | MIGRATED_BIT | (random & (MIGRATED_BIT - 2))
}

/// The identity of a log: the cluster and the name tell mirrored topics apart, the number one topic
/// from the next of that name.
pub fn log_id(cluster: &str, topic: &str, number: u64) -> LogId {
    let mut hasher = blake3::Hasher::new();
    for part in ["rollmill kafka log", cluster, topic] {
        hasher.update(&(part.len() as u64).to_be_bytes()).update(part.as_bytes());
    }
    let mut id = [0; 16];
    id[..8].copy_from_slice(&hasher.finalize().as_bytes()[..8]);
    id[8..].copy_from_slice(&number.to_be_bytes());
    LogId(id)
}

/// The number in the settings of the topic of a log, to put it back when a tool has reset it.
pub fn identity_of(log: LogId) -> u64 {
    u64::from_be_bytes(log.0[8..].try_into().unwrap_or_default())
}

/// The command that gives a topic these settings and leaves the others.
pub fn setting_command(brokers: &str, topic: &str, settings: &str) -> String {
    format!(
        "kafka-configs.sh --bootstrap-server {brokers} --alter --entity-type topics --entity-name \
         {topic} --add-config {settings}"
    )
}

/// The settings that a topic gets, each with what goes wrong without it.
fn required_settings(wish: &TopicSpec) -> Vec<(&'static str, String, &'static str)> {
    vec![
        ("cleanup.policy", "delete".to_owned(), "compaction takes records out of the middle"),
        (
            "message.timestamp.type",
            "LogAppendTime".to_owned(),
            "append times would be the clients', and de-duplication with them",
        ),
        (
            "retention.ms",
            "-1".to_owned(),
            "Kafka would delete records that are not yet rolled up and archived",
        ),
        (
            "retention.bytes",
            "-1".to_owned(),
            "Kafka would delete records that are not yet rolled up and archived",
        ),
        (
            "min.insync.replicas",
            wish.min_isr.to_string(),
            "a write would be acknowledged by too few replicas",
        ),
        (
            "unclean.leader.election.enable",
            "false".to_owned(),
            "an election could lose acknowledged records",
        ),
        ("max.message.bytes", MESSAGE_BYTES.to_string(), "large records would be refused"),
    ]
}

fn is_sufficient(name: &str, found: &str, wanted: &str) -> bool {
    match name {
        "min.insync.replicas" | "max.message.bytes" => {
            matches!((found.parse::<u64>(), wanted.parse::<u64>()), (Ok(found), Ok(wanted)) if found >= wanted)
        }
        _ => found == wanted,
    }
}

fn find_drift(description: &TopicDescription, wish: &TopicSpec) -> Vec<TopicDrift> {
    let mut all = Vec::new();
    let mut shape = |what: &str, found: u32, wanted: u32, why| {
        let (found, wanted) = (found.to_string(), wanted.to_string());
        all.push(TopicDrift {
            setting: what.to_owned(),
            found,
            expected: wanted,
            why,
            is_setting: false,
            is_harmless: false,
        });
    };
    if description.partitions < wish.partitions {
        shape(
            "partitions",
            description.partitions,
            wish.partitions,
            "shard n is partition n, and shards.count is fixed",
        );
    }
    if description.replication < wish.replication {
        shape(
            "replicas",
            description.replication,
            wish.replication,
            "the loss of so many brokers would lose acknowledged records",
        );
    }
    for (name, wanted, why) in required_settings(wish) {
        let found =
            description.settings.get(name).cloned().unwrap_or_else(|| "(unknown)".to_owned());
        if !is_sufficient(name, &found, &wanted) {
            all.push(TopicDrift {
                setting: name.to_owned(),
                found,
                expected: wanted,
                why,
                is_setting: true,
                is_harmless: false,
            });
        }
    }
    if description.log.is_none() {
        let found = description
            .settings
            .get(IDENTITY_KEY)
            .cloned()
            .unwrap_or_else(|| "(unknown)".to_owned());
        let wanted = "a number of `rollmill topic create`".to_owned();
        let why = match description.pending_identity {
            Some(_) => {
                "`rollmill migrate` fills the topic and has not ended: run it again, it goes on \
                 where it was"
            }
            None => {
                "the topic has no identity: it was not made by `rollmill topic create`, or a tool \
                 has reset its settings"
            }
        };
        all.push(TopicDrift {
            setting: IDENTITY_KEY.to_owned(),
            found,
            expected: wanted,
            why,
            is_setting: false,
            is_harmless: false,
        });
    }
    all.extend(surplus_partitions(description, wish));
    all
}

/// Partitions beyond the shards. While they are empty, nobody is misled by them; records in them
/// may be another cluster's, or this one's under another number of shards.
fn surplus_partitions(description: &TopicDescription, wish: &TopicSpec) -> Option<TopicDrift> {
    if description.partitions <= wish.partitions {
        return None;
    }
    let held: Vec<String> = description
        .surplus
        .iter()
        .filter(|(_, n)| *n > 0)
        .map(|(shard, n)| format!("{n} records in {shard}"))
        .collect();
    let (found, is_harmless) = match held.is_empty() {
        true => (format!("{}, those beyond are empty", description.partitions), true),
        false => (format!("{}, with {}", description.partitions, held.join(", ")), false),
    };
    let why = match is_harmless {
        true => {
            "shard n is partition n, and shards.count is fixed: somebody has added partitions, \
             which Kafka cannot take away; they are never written or read, and nodes serve"
        }
        false => {
            "somebody has written beyond the shards: is shards.count right, or who else writes to \
             this topic? If the records may go, delete them (kafka-delete-records.sh), and nodes \
             serve"
        }
    };
    Some(TopicDrift {
        setting: "partitions".to_owned(),
        found,
        expected: wish.partitions.to_string(),
        why,
        is_setting: false,
        is_harmless,
    })
}

impl TopicDescription {
    /// The command that mends the settings, if one of them differs.
    pub fn repair_command(&self, brokers: &str) -> Option<String> {
        let wrong: Vec<String> = self
            .drift
            .iter()
            .filter(|d| d.is_setting)
            .map(|d| format!("{}={}", d.setting, d.expected))
            .collect();
        (!wrong.is_empty()).then(|| setting_command(brokers, &self.topic, &wrong.join(",")))
    }

    /// What is not as it must be, though nodes serve all the same.
    pub fn warnings(&self) -> impl Iterator<Item = String> {
        let harmless = self.drift.iter().filter(|d| d.is_harmless);
        harmless.map(|d| {
            format!(
                "{} of the topic {} is {}, must be {}: {}",
                d.setting, self.topic, d.found, d.expected, d.why
            )
        })
    }

    /// Why a node must not use the topic, with the way out; nothing if it may.
    pub fn refusal(&self, brokers: &str) -> Option<String> {
        if self.drift.iter().all(|d| d.is_harmless) {
            return None;
        }
        let lines =
            self.drift.iter().filter(|d| !d.is_harmless).map(|d| {
                format!("  {} is {}, must be {}: {}", d.setting, d.found, d.expected, d.why)
            });
        let mut text = format!("the topic {} cannot keep Rollmill's promises:\n", self.topic);
        text.push_str(&lines.collect::<Vec<_>>().join("\n"));
        if let Some(command) = self.repair_command(brokers) {
            text.push_str(&format!("\nmend it with: {command}"));
        }
        if self.drift.iter().any(|d| !d.is_setting && !d.is_harmless) {
            text.push_str("\nwhat no setting mends: docs/operations.md, \"Kafka\"");
        }
        Some(text)
    }
}

/// The administration of one topic.
pub struct TopicAdmin {
    client: AdminClient<QuietContext>,
    connection: KafkaConnection,
}

impl TopicAdmin {
    /// Connects by itself when asked.
    ///
    /// # Errors
    /// If the settings are refused.
    pub fn new(connection: &KafkaConnection) -> Result<Self, String> {
        let client = connection
            .client_config()
            .create_with_context(QuietContext)
            .map_err(|e| format!("Kafka refuses the settings: {e}"))?;
        Ok(Self { client, connection: connection.clone() })
    }

    fn options(&self) -> AdminOptions {
        AdminOptions::new()
            .request_timeout(Some(self.connection.timeout))
            .operation_timeout(Some(self.connection.timeout))
    }

    fn failed(&self, doing: &str, error: &dyn std::fmt::Display) -> String {
        format!(
            "cannot {doing} the topic {} at {}: {error}",
            self.connection.topic, self.connection.brokers
        )
    }

    /// Makes the topic; `random` becomes its identity.
    ///
    /// # Errors
    /// If it exists, or the cluster refuses.
    pub fn create(&self, wish: &TopicSpec, random: u64) -> Result<TopicDescription, String> {
        self.create_with_identity(wish, IDENTITY_BIT | (random & (IDENTITY_BIT - 1)))
    }

    /// Makes a topic that no node uses until [`TopicAdmin::assign_identity`] gives it this identity.
    ///
    /// # Errors
    /// As [`TopicAdmin::create`].
    pub fn create_unfinished(
        &self,
        wish: &TopicSpec,
        identity: u64,
    ) -> Result<TopicDescription, String> {
        self.create_with_identity(wish, identity & !IDENTITY_BIT)
    }

    fn create_with_identity(
        &self,
        wish: &TopicSpec,
        number: u64,
    ) -> Result<TopicDescription, String> {
        let identity = number.to_string();
        let settings = required_settings(wish);
        let replication = TopicReplication::Fixed(wish.replication as i32);
        let new = NewTopic::new(&self.connection.topic, wish.partitions as i32, replication)
            .set(IDENTITY_KEY, &identity);
        let new = settings.iter().fold(new, |new, (name, value, _)| new.set(name, value));
        let made = block_on(self.client.create_topics([&new], &self.options()))
            .map_err(|e| self.failed("create", &e))?;
        for outcome in made {
            match outcome {
                Ok(_) => {}
                Err((topic, RDKafkaErrorCode::TopicAlreadyExists)) => {
                    return Err(format!(
                        "the topic {topic} exists: `rollmill topic describe` says whether it can \
                         be used"
                    ));
                }
                Err((_, code)) => {
                    return Err(self.failed(
                        "create",
                        &format!("{code}; are there {} brokers?", wish.replication),
                    ));
                }
            }
        }
        let watch = Stopwatch::start();
        loop {
            // A new topic is known to one broker after the other.
            match self.describe(wish) {
                Ok(description)
                    if description.partitions == wish.partitions
                        && description.leaderless.is_empty() =>
                {
                    return Ok(description);
                }
                Ok(_) | Err(_) if watch.elapsed() < self.connection.timeout => {}
                Ok(_) => return Err(self.failed("create", &"its partitions have no leaders")),
                Err(why) => return Err(why.to_string()),
            }
        }
    }

    /// Gives a topic of [`TopicAdmin::create_unfinished`] its identity: from now on nodes may use it.
    ///
    /// # Errors
    /// If the cluster refuses, or does not show it in time.
    pub fn assign_identity(
        &self,
        wish: &TopicSpec,
        identity: u64,
    ) -> Result<TopicDescription, String> {
        self.set_identity(wish, identity)?;
        let watch = Stopwatch::start();
        loop {
            match self.describe(wish) {
                Ok(description) if description.log.is_some() => return Ok(description),
                Ok(_) | Err(_) if watch.elapsed() < self.connection.timeout => {}
                Ok(_) => return Err(self.failed("alter", &"its identity does not show")),
                Err(why) => return Err(why.to_string()),
            }
        }
    }

    fn set_identity(&self, wish: &TopicSpec, number: u64) -> Result<(), String> {
        let (number, settings) = (number.to_string(), required_settings(wish));
        // Kafka sets back what is not named.
        let new = AlterConfig::new(ResourceSpecifier::Topic(&self.connection.topic))
            .set(IDENTITY_KEY, &number);
        let new = settings.iter().fold(new, |new, (name, value, _)| new.set(name, value));
        let answer = block_on(self.client.alter_configs([&new], &self.options()))
            .map_err(|e| self.failed("alter", &e))?;
        answer.into_iter().try_for_each(|outcome| {
            outcome.map(drop).map_err(|(_, code)| self.failed("alter", &code))
        })
    }

    /// Takes the identity from a topic whose records went on elsewhere: no node opens it any more.
    ///
    /// # Errors
    /// If the cluster refuses.
    pub fn retire(&self, wish: &TopicSpec) -> Result<(), String> {
        self.set_identity(wish, RETIRED_IDENTITY)
    }

    /// Whether there is such a topic.
    ///
    /// # Errors
    /// If the cluster does not answer.
    pub fn exists(&self) -> Result<bool, String> {
        // Of all topics: to ask for one by name is to ask a broker to make it, where that is
        // allowed.
        let metadata = self.client.inner().fetch_metadata(None, self.connection.timeout);
        let metadata = metadata.map_err(|e| self.failed("look for", &e))?;
        Ok(metadata
            .topics()
            .iter()
            .any(|found| found.name() == self.connection.topic && !found.partitions().is_empty()))
    }

    /// Id of the cluster.
    ///
    /// # Errors
    /// If the cluster does not answer.
    pub fn cluster_id(&self) -> Result<String, String> {
        let id = self.client.inner().fetch_cluster_id(self.connection.timeout);
        id.ok_or_else(|| self.failed("describe", &"the cluster does not answer, or has no id"))
    }

    /// Deletes the topic and waits until it is gone.
    ///
    /// # Errors
    /// If the cluster refuses, or the topic is still there after a while.
    pub fn delete(&self) -> Result<(), String> {
        let answer =
            block_on(self.client.delete_topics(&[&self.connection.topic], &self.options()));
        for outcome in answer.map_err(|e| self.failed("delete", &e))? {
            outcome.map_err(|(_, code)| self.failed("delete", &code))?;
        }
        let watch = Stopwatch::start();
        while self.exists()? {
            if watch.elapsed() > self.connection.timeout * 4 {
                return Err(self.failed("delete", &"it is still there"));
            }
        }
        Ok(())
    }

    /// The topic as it is, compared with what it must be.
    ///
    /// # Errors
    /// If it does not exist or the cluster does not answer.
    pub fn describe(&self, wish: &TopicSpec) -> Result<TopicDescription, LogOpenError> {
        let client = self.client.inner();
        let (topic, timeout) = (&self.connection.topic, self.connection.timeout);
        let away =
            |what: &dyn std::fmt::Display| LogOpenError::Unavailable(self.failed("describe", what));
        let metadata = client.fetch_metadata(Some(topic), timeout).map_err(|e| away(&e))?;
        let found = metadata
            .topics()
            .iter()
            .find(|found| found.name() == topic && !found.partitions().is_empty());
        let missing = || {
            LogOpenError::Invalid(
                self.failed("find", &"it is not there; make it with `rollmill topic create`"),
            )
        };
        let partitions = found.ok_or_else(missing)?.partitions();
        let cluster =
            client.fetch_cluster_id(timeout).ok_or_else(|| away(&"the cluster has no id"))?;
        let settings = self.settings()?;
        let number = settings.get(IDENTITY_KEY).and_then(|text| text.parse::<u64>().ok());
        let unfinished =
            number.filter(|number| number & (IDENTITY_BIT | MIGRATED_BIT) == MIGRATED_BIT);
        // Kafka's default is the largest number of all.
        let number =
            number.filter(|number| number & IDENTITY_BIT != 0 && *number < i64::MAX as u64);
        let shards = |pick: fn(&rdkafka::metadata::MetadataPartition) -> bool| {
            partitions.iter().filter(|p| pick(p)).map(|p| shard(p.id())).collect()
        };
        let mut description = TopicDescription {
            topic: topic.clone(),
            partitions: partitions.len() as u32,
            surplus: self
                .surplus_records(wish.partitions, partitions.len() as u32)
                .map_err(|e| away(&e))?,
            replication: partitions.iter().map(|p| p.replicas().len() as u32).min().unwrap_or(0),
            under_replicated: shards(|p| p.isr().len() < p.replicas().len()),
            leaderless: shards(|p| p.leader() < 0),
            settings,
            log: number.map(|number| log_id(&cluster, topic, number)),
            cluster,
            pending_identity: unfinished.map(|number| number | IDENTITY_BIT),
            drift: Vec::new(),
        };
        description.drift = find_drift(&description, wish);
        Ok(description)
    }

    /// The partitions from this one on, each with the number of records that it holds.
    fn surplus_records(
        &self,
        first: u32,
        partitions: u32,
    ) -> Result<Vec<(ShardId, u64)>, KafkaError> {
        let held = |shard: ShardId| {
            let (client, timeout) = (self.client.inner(), self.connection.timeout);
            let (start, end) =
                client.fetch_watermarks(&self.connection.topic, partition(shard), timeout)?;
            Ok((shard, end.saturating_sub(start).unsigned_abs()))
        };
        (first..partitions).map(ShardId).map(held).collect()
    }

    fn settings(&self) -> Result<BTreeMap<String, String>, LogOpenError> {
        let specifier = [ResourceSpecifier::Topic(&self.connection.topic)];
        let away =
            |what: &dyn std::fmt::Display| LogOpenError::Unavailable(self.failed("describe", what));
        let found = block_on(self.client.describe_configs(&specifier, &self.options()))
            .map_err(|e| away(&e))?
            .into_iter()
            .next();
        let resource = found.ok_or_else(|| away(&"no answer"))?.map_err(|code| match code {
            RDKafkaErrorCode::TopicAuthorizationFailed
            | RDKafkaErrorCode::ClusterAuthorizationFailed => {
                let way_out = "grant this user DescribeConfigs on the topic";
                LogOpenError::Invalid(self.failed("describe", &format!("{code}; {way_out}")))
            }
            code => away(&code),
        })?;
        let named: Vec<&str> =
            required_settings(&TopicSpec { partitions: 0, replication: 0, min_isr: 0 })
                .iter()
                .map(|(name, ..)| *name)
                .collect();
        let matters = |name: &str| named.contains(&name) || name == IDENTITY_KEY;
        let entries = resource.entries.into_iter().filter(|entry| matters(&entry.name));
        Ok(entries.filter_map(|entry| Some((entry.name, entry.value?))).collect())
    }

    /// Deletes the records below these offsets; what the shards begin with now.
    ///
    /// # Errors
    /// If the cluster refuses.
    pub fn delete_records_below(
        &self,
        floors: &[(ShardId, Offset)],
    ) -> Result<Vec<(ShardId, Offset)>, KafkaError> {
        let mut list = TopicPartitionList::with_capacity(floors.len());
        for (shard, floor) in floors {
            let at = At::Offset(i64::try_from(*floor).unwrap_or(i64::MAX));
            list.add_partition_offset(&self.connection.topic, partition(*shard), at)?;
        }
        let answer = block_on(self.client.delete_records(&list, &self.options()))?;
        let mut starts = Vec::with_capacity(floors.len());
        for found in answer.elements() {
            found.error()?;
            if let At::Offset(start) = found.offset() {
                starts.push((shard(found.partition()), start.unsigned_abs()));
            }
        }
        Ok(starts)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn right(wish: &TopicSpec) -> TopicDescription {
        TopicDescription {
            topic: "t".to_owned(),
            cluster: "c".to_owned(),
            partitions: 4,
            surplus: vec![],
            replication: 3,
            under_replicated: vec![],
            leaderless: vec![],
            settings: required_settings(wish)
                .into_iter()
                .map(|(name, value, _)| (name.to_owned(), value))
                .collect(),
            log: Some(log_id("c", "t", IDENTITY_BIT | 5)),
            pending_identity: None,
            drift: vec![],
        }
    }

    fn described(change: impl FnOnce(&mut TopicDescription)) -> Vec<String> {
        let wish = TopicSpec { partitions: 4, replication: 3, min_isr: 2 };
        let mut description = right(&wish);
        change(&mut description);
        find_drift(&description, &wish).into_iter().map(|d| d.setting).collect()
    }

    #[test]
    fn what_breaks_a_promise_is_named() {
        assert!(described(|_| {}).is_empty());
        let set = |name: &'static str, value: &'static str| {
            move |d: &mut TopicDescription| _ = d.settings.insert(name.to_owned(), value.to_owned())
        };
        for (name, value) in [
            ("cleanup.policy", "compact"),
            ("message.timestamp.type", "CreateTime"),
            ("retention.ms", "604800000"),
            ("retention.bytes", "1"),
            ("min.insync.replicas", "1"),
            ("unclean.leader.election.enable", "true"),
            ("max.message.bytes", "1048588"),
        ] {
            assert_eq!(described(set(name, value)), [name], "{value}");
        }
        assert!(described(set("min.insync.replicas", "3")).is_empty(), "more is better");
        assert_eq!(described(|d| d.partitions = 5), ["partitions"]);
        assert_eq!(described(|d| d.partitions = 3), ["partitions"]);
        assert_eq!(described(|d| d.replication = 2), ["replicas"]);
        assert_eq!(described(|d| d.log = None), [IDENTITY_KEY]);
        assert_eq!(described(|d| d.settings.clear()).len(), 7, "what is not known is not right");
    }

    #[test]
    fn partitions_that_were_added_are_named_and_refuse_nothing_while_they_are_empty() {
        let wish = TopicSpec { partitions: 4, replication: 3, min_isr: 2 };
        let with = |surplus: &[(u32, u64)]| {
            let mut found = right(&wish);
            found.partitions += surplus.len() as u32;
            found.surplus = surplus
                .iter()
                .map(|(partition, records)| (ShardId(*partition), *records))
                .collect();
            found.drift = find_drift(&found, &wish);
            (found.refusal("k:9092"), found.warnings().collect::<Vec<_>>())
        };
        assert_eq!(with(&[]), (None, vec![]));
        let (refusal, notes) = with(&[(4, 0), (5, 0)]);
        assert_eq!((refusal, notes.len()), (None, 1));
        assert!(
            notes[0].contains("partitions")
                && notes[0].contains("is 6, those beyond are empty, must be 4"),
            "{notes:?}"
        );
        let (refusal, notes) = with(&[(4, 0), (5, 7)]);
        let refusal = refusal.expect("they hold records");
        assert!(
            notes.is_empty()
                && refusal.contains("7 records in 5")
                && refusal.contains("shards.count"),
            "{refusal}"
        );
    }

    #[test]
    fn logs_of_other_clusters_names_and_numbers_are_others() {
        let log = log_id("c", "t", IDENTITY_BIT | 5);
        assert_eq!(identity_of(log), IDENTITY_BIT | 5);
        assert_eq!(log.to_string(), "0923f489a67e73154000000000000005");
        for other in [
            log_id("d", "t", IDENTITY_BIT | 5),
            log_id("c", "u", IDENTITY_BIT | 5),
            log_id("c", "t", IDENTITY_BIT | 6),
        ] {
            assert_ne!(log, other);
        }
    }
}
