//! The topic: created with the settings that the promises need, and checked at every start.

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

/// The setting that holds the log's identity. It has no effect on a topic that is not
/// compacted, lives and dies with the topic, and needs no other permission than the settings
/// that are checked anyway (docs/adr/0009-kafka.md).
pub const IDENTITY_KEY: &str = "max.compaction.lag.ms";
/// Set in every identity, so that the setting means "never" even if somebody compacts the topic.
const IDENTITY_BIT: u64 = 1 << 62;

/// Set in identities of topics that `rollmill migrate` creates. While it is set without
/// [`IDENTITY_BIT`], the topic has no identity yet and no node uses it.
const MIGRATED_BIT: u64 = 1 << 61;

/// The value of the setting after the identity was retired.
const RETIRED_IDENTITY: u64 = 1;

/// Requirements on the topic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names say it")]
pub struct TopicSpec {
    /// Equals the shard count.
    pub partitions: u32,
    /// Minimum number of replicas.
    pub replication: u32,
    /// Minimum number of in-sync replicas, below which writes are refused.
    pub min_isr: u32,
}

/// A difference between the topic and its requirements.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names say it")]
pub struct TopicDrift {
    pub setting: String,
    pub found: String,
    pub expected: String,
    /// What would go wrong.
    pub why: &'static str,
    /// Whether `kafka-configs` can fix it.
    pub is_setting: bool,
    /// Whether nodes serve nevertheless.
    pub is_harmless: bool,
}

/// The state of the topic and how it differs from the requirements.
#[derive(Debug, Clone)]
#[allow(missing_docs, reason = "the names say it")]
pub struct TopicDescription {
    pub topic: String,
    /// The id of the Kafka cluster.
    pub cluster: String,
    pub partitions: u32,
    /// Replicas of the partition with the fewest.
    pub replication: u32,
    /// Partitions with too few in-sync replicas at the moment.
    pub under_replicated: Vec<ShardId>,
    /// Partitions without a leader at the moment.
    pub leaderless: Vec<ShardId>,
    /// Partitions beyond the shard count, with the number of records in each.
    pub surplus: Vec<(ShardId, u64)>,
    /// The settings that are checked.
    pub settings: BTreeMap<String, String>,
    /// The identity, if `rollmill topic create` created the topic.
    pub log: Option<LogId>,
    /// The number of the identity that the topic gets when the migration that fills it is done.
    pub pending_identity: Option<u64>,
    pub drift: Vec<TopicDrift>,
}

/// The number of an identity for a topic that a migration creates.
pub fn migrated_identity(random: u64) -> u64 {
    // Cleared lowest bit: the identity must not be Kafka's default, the largest number.
    IDENTITY_BIT | MIGRATED_BIT | (random & (MIGRATED_BIT - 2))
}

/// The id of a log. Cluster and name tell mirrored topics apart, and the number tells a topic from
/// its successor of the same name.
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

/// The number in the topic's settings that belongs to a log id, to restore it after a
/// tool has reset it.
pub fn identity_of(log: LogId) -> u64 {
    u64::from_be_bytes(log.0[8..].try_into().unwrap_or_default())
}

/// The command that changes these settings of a topic and leaves the others.
pub fn setting_command(brokers: &str, topic: &str, settings: &str) -> String {
    format!(
        "kafka-configs.sh --bootstrap-server {brokers} --alter --entity-type topics --entity-name \
         {topic} --add-config {settings}"
    )
}

/// The settings of a new topic, each with what goes wrong without it.
fn required_settings(spec: &TopicSpec) -> Vec<(&'static str, String, &'static str)> {
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
            spec.min_isr.to_string(),
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
            matches!(
                (found.parse::<u64>(), wanted.parse::<u64>()),
                (Ok(found), Ok(wanted)) if found >= wanted
            )
        }
        _ => found == wanted,
    }
}

/// Compares the topic with its requirements. Empty if it meets all of them.
fn find_drift(description: &TopicDescription, spec: &TopicSpec) -> Vec<TopicDrift> {
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
    if description.partitions < spec.partitions {
        shape(
            "partitions",
            description.partitions,
            spec.partitions,
            "shard n is partition n, and shards.count is fixed",
        );
    }
    if description.replication < spec.replication {
        shape(
            "replicas",
            description.replication,
            spec.replication,
            "the loss of so many brokers would lose acknowledged records",
        );
    }
    for (name, wanted, why) in required_settings(spec) {
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
    all.extend(missing_identity(description));
    all.extend(surplus_partitions(description, spec));
    all
}

fn missing_identity(description: &TopicDescription) -> Option<TopicDrift> {
    if description.log.is_some() {
        return None;
    }
    let found =
        description.settings.get(IDENTITY_KEY).cloned().unwrap_or_else(|| "(unknown)".to_owned());
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
    Some(TopicDrift {
        setting: IDENTITY_KEY.to_owned(),
        found,
        expected: "a number of `rollmill topic create`".to_owned(),
        why,
        is_setting: false,
        is_harmless: false,
    })
}

/// Reports partitions beyond the shards. They are harmless while they are empty. Records in them
/// may belong to another cluster, or to this one with another shard count.
fn surplus_partitions(description: &TopicDescription, spec: &TopicSpec) -> Option<TopicDrift> {
    if description.partitions <= spec.partitions {
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
        expected: spec.partitions.to_string(),
        why,
        is_setting: false,
        is_harmless,
    })
}

impl TopicDescription {
    /// The command that fixes the settings, if one of them differs.
    pub fn repair_command(&self, brokers: &str) -> Option<String> {
        let wrong: Vec<String> = self
            .drift
            .iter()
            .filter(|d| d.is_setting)
            .map(|d| format!("{}={}", d.setting, d.expected))
            .collect();
        (!wrong.is_empty()).then(|| setting_command(brokers, &self.topic, &wrong.join(",")))
    }

    /// Differences that do not keep nodes from serving.
    pub fn warnings(&self) -> impl Iterator<Item = String> {
        let harmless = self.drift.iter().filter(|d| d.is_harmless);
        harmless.map(|d| {
            format!(
                "{} of the topic {} is {}, must be {}: {}",
                d.setting, self.topic, d.found, d.expected, d.why
            )
        })
    }

    /// Why a node must not use the topic and what to do about it, or `None` if it may.
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
            text.push_str("\nwhat no setting mends: docs/how-to/run-on-kafka.md");
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
    /// A client that connects on its first request.
    ///
    /// # Errors
    /// If the settings are rejected.
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

    /// Creates the topic with an identity made from `random`, and waits for its leaders.
    ///
    /// # Errors
    /// If the topic exists, or the cluster refuses.
    pub fn create(&self, spec: &TopicSpec, random: u64) -> Result<TopicDescription, String> {
        self.create_with_identity(spec, IDENTITY_BIT | (random & (IDENTITY_BIT - 1)))
    }

    /// Creates a topic that no node uses until [`TopicAdmin::assign_identity`]
    /// gives it this identity.
    ///
    /// # Errors
    /// If the topic exists, or the cluster refuses.
    pub fn create_unfinished(
        &self,
        spec: &TopicSpec,
        identity: u64,
    ) -> Result<TopicDescription, String> {
        self.create_with_identity(spec, identity & !IDENTITY_BIT)
    }

    fn create_with_identity(
        &self,
        spec: &TopicSpec,
        number: u64,
    ) -> Result<TopicDescription, String> {
        let identity = number.to_string();
        let settings = required_settings(spec);
        let replication = TopicReplication::Fixed(spec.replication as i32);
        let new = NewTopic::new(&self.connection.topic, spec.partitions as i32, replication)
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
                        &format!("{code}; are there {} brokers?", spec.replication),
                    ));
                }
            }
        }
        let watch = Stopwatch::start();
        loop {
            // Brokers learn of a new topic one after the other.
            match self.describe(spec) {
                Ok(description)
                    if description.partitions == spec.partitions
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

    /// Gives a topic from [`TopicAdmin::create_unfinished`] its identity, so that nodes may use it.
    ///
    /// # Errors
    /// If the cluster refuses, or does not show the identity in time.
    pub fn assign_identity(
        &self,
        spec: &TopicSpec,
        identity: u64,
    ) -> Result<TopicDescription, String> {
        self.set_identity(spec, identity)?;
        let watch = Stopwatch::start();
        loop {
            match self.describe(spec) {
                Ok(description) if description.log.is_some() => return Ok(description),
                Ok(_) | Err(_) if watch.elapsed() < self.connection.timeout => {}
                Ok(_) => return Err(self.failed("alter", &"its identity does not show")),
                Err(why) => return Err(why.to_string()),
            }
        }
    }

    fn set_identity(&self, spec: &TopicSpec, number: u64) -> Result<(), String> {
        let (number, settings) = (number.to_string(), required_settings(spec));
        // The request resets every setting that it does not name.
        let new = AlterConfig::new(ResourceSpecifier::Topic(&self.connection.topic))
            .set(IDENTITY_KEY, &number);
        let new = settings.iter().fold(new, |new, (name, value, _)| new.set(name, value));
        let answer = block_on(self.client.alter_configs([&new], &self.options()))
            .map_err(|e| self.failed("alter", &e))?;
        answer.into_iter().try_for_each(|outcome| {
            outcome.map(drop).map_err(|(_, code)| self.failed("alter", &code))
        })
    }

    /// Removes the identity of a topic that was migrated away, so that no node opens it again.
    ///
    /// # Errors
    /// If the cluster refuses.
    pub fn retire(&self, spec: &TopicSpec) -> Result<(), String> {
        self.set_identity(spec, RETIRED_IDENTITY)
    }

    /// Whether the topic exists.
    ///
    /// # Errors
    /// If the cluster does not answer.
    pub fn exists(&self) -> Result<bool, String> {
        // Lists all topics: asking for one by name makes a broker create it if auto-creation is on.
        let metadata = self.client.inner().fetch_metadata(None, self.connection.timeout);
        let metadata = metadata.map_err(|e| self.failed("look for", &e))?;
        Ok(metadata
            .topics()
            .iter()
            .any(|found| found.name() == self.connection.topic && !found.partitions().is_empty()))
    }

    /// The id of the cluster.
    ///
    /// # Errors
    /// If the cluster does not answer or has no id.
    pub fn cluster_id(&self) -> Result<String, String> {
        let id = self.client.inner().fetch_cluster_id(self.connection.timeout);
        id.ok_or_else(|| self.failed("describe", &"the cluster does not answer, or has no id"))
    }

    /// Deletes the topic and waits until it is gone.
    ///
    /// # Errors
    /// If the cluster refuses, or the topic still exists after a while.
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

    /// Describes the topic and compares it with the requirements.
    ///
    /// # Errors
    /// If the topic does not exist, the cluster does not answer, or permissions are missing.
    pub fn describe(&self, spec: &TopicSpec) -> Result<TopicDescription, LogOpenError> {
        let client = self.client.inner();
        let (topic, timeout) = (&self.connection.topic, self.connection.timeout);
        let unavailable =
            |what: &dyn std::fmt::Display| LogOpenError::Unavailable(self.failed("describe", what));
        let metadata = client.fetch_metadata(Some(topic), timeout).map_err(|e| unavailable(&e))?;
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
        let cluster = client
            .fetch_cluster_id(timeout)
            .ok_or_else(|| unavailable(&"the cluster has no id"))?;
        let settings = self.settings()?;
        let number = settings.get(IDENTITY_KEY).and_then(|text| text.parse::<u64>().ok());
        let unfinished =
            number.filter(|number| number & (IDENTITY_BIT | MIGRATED_BIT) == MIGRATED_BIT);
        // Kafka's default is the largest number, and no identity.
        let number =
            number.filter(|number| number & IDENTITY_BIT != 0 && *number < i64::MAX as u64);
        let shards = |pick: fn(&rdkafka::metadata::MetadataPartition) -> bool| {
            partitions.iter().filter(|p| pick(p)).map(|p| shard(p.id())).collect()
        };
        let mut description = TopicDescription {
            topic: topic.clone(),
            partitions: partitions.len() as u32,
            surplus: self
                .surplus_records(spec.partitions, partitions.len() as u32)
                .map_err(|e| unavailable(&e))?,
            replication: partitions.iter().map(|p| p.replicas().len() as u32).min().unwrap_or(0),
            under_replicated: shards(|p| p.isr().len() < p.replicas().len()),
            leaderless: shards(|p| p.leader() < 0),
            settings,
            log: number.map(|number| log_id(&cluster, topic, number)),
            cluster,
            pending_identity: unfinished.map(|number| number | IDENTITY_BIT),
            drift: Vec::new(),
        };
        description.drift = find_drift(&description, spec);
        Ok(description)
    }

    /// The partitions from `first` on, with the number of records in each.
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
        let unavailable =
            |what: &dyn std::fmt::Display| LogOpenError::Unavailable(self.failed("describe", what));
        let found = block_on(self.client.describe_configs(&specifier, &self.options()))
            .map_err(|e| unavailable(&e))?
            .into_iter()
            .next();
        let resource =
            found.ok_or_else(|| unavailable(&"no answer"))?.map_err(|code| match code {
                RDKafkaErrorCode::TopicAuthorizationFailed
                | RDKafkaErrorCode::ClusterAuthorizationFailed => {
                    let remedy = "grant this user DescribeConfigs on the topic";
                    LogOpenError::Invalid(self.failed("describe", &format!("{code}; {remedy}")))
                }
                code => unavailable(&code),
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

    /// Deletes the records below these offsets. Returns the new starts of the shards.
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

    fn right(spec: &TopicSpec) -> TopicDescription {
        TopicDescription {
            topic: "t".to_owned(),
            cluster: "c".to_owned(),
            partitions: 4,
            surplus: vec![],
            replication: 3,
            under_replicated: vec![],
            leaderless: vec![],
            settings: required_settings(spec)
                .into_iter()
                .map(|(name, value, _)| (name.to_owned(), value))
                .collect(),
            log: Some(log_id("c", "t", IDENTITY_BIT | 5)),
            pending_identity: None,
            drift: vec![],
        }
    }

    fn described(change: impl FnOnce(&mut TopicDescription)) -> Vec<String> {
        let spec = TopicSpec { partitions: 4, replication: 3, min_isr: 2 };
        let mut description = right(&spec);
        change(&mut description);
        find_drift(&description, &spec).into_iter().map(|d| d.setting).collect()
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
        let spec = TopicSpec { partitions: 4, replication: 3, min_isr: 2 };
        let with = |surplus: &[(u32, u64)]| {
            let mut found = right(&spec);
            found.partitions += surplus.len() as u32;
            found.surplus = surplus
                .iter()
                .map(|(partition, records)| (ShardId(*partition), *records))
                .collect();
            found.drift = find_drift(&found, &spec);
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
