//! What the promises need of the topic, and how a topic differs from it.

use std::collections::BTreeMap;

use super::super::settings::MESSAGE_BYTES;
use super::identity::IDENTITY_KEY;
use crate::model::offset::{LogId, ShardId};

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

/// The command that changes these settings of a topic and leaves the others.
pub fn setting_command(brokers: &str, topic: &str, settings: &str) -> String {
    format!(
        "kafka-configs.sh --bootstrap-server {brokers} --alter --entity-type topics --entity-name \
         {topic} --add-config {settings}"
    )
}

/// The settings of a new topic, each with what goes wrong without it.
pub(super) fn required_settings(spec: &TopicSpec) -> Vec<(&'static str, String, &'static str)> {
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
pub(super) fn find_drift(description: &TopicDescription, spec: &TopicSpec) -> Vec<TopicDrift> {
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

#[cfg(test)]
mod tests {
    use super::super::identity::{IDENTITY_BIT, log_id};
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
}
