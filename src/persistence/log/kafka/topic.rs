//! The topic: created with the settings that the promises need, and checked at every start.

mod identity;
mod requirements;

use std::collections::BTreeMap;

use futures::executor::block_on;
use rdkafka::admin::{
    AdminClient, AdminOptions, AlterConfig, NewTopic, ResourceSpecifier, TopicReplication,
};
use rdkafka::error::KafkaError;
use rdkafka::topic_partition_list::{Offset as At, TopicPartitionList};
use rdkafka::types::RDKafkaErrorCode;

use self::identity::{IDENTITY_BIT, MIGRATED_BIT, RETIRED_IDENTITY};
pub use self::identity::{IDENTITY_KEY, identity_of, log_id, migrated_identity};
pub use self::requirements::{TopicDescription, TopicDrift, TopicSpec, setting_command};
use self::requirements::{find_drift, required_settings};
use super::settings::{KafkaConnection, QuietContext};
use super::watermarks::{partition, shard};
use crate::clock::Stopwatch;
use crate::model::offset::{Offset, ShardId};
use crate::persistence::log::LogOpenError;

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
