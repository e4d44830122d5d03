//! The identity of a topic: a number in one of its settings, and the id of the log made of it.

use crate::model::offset::LogId;

/// The setting that holds the log's identity. It has no effect on a topic that is not
/// compacted, lives and dies with the topic, and needs no other permission than the settings
/// that are checked anyway (docs/adr/0009-kafka.md).
pub const IDENTITY_KEY: &str = "max.compaction.lag.ms";
/// Set in every identity, so that the setting means "never" even if somebody compacts the topic.
pub(super) const IDENTITY_BIT: u64 = 1 << 62;

/// Set in identities of topics that `rollmill migrate` creates. While it is set without
/// [`IDENTITY_BIT`], the topic has no identity yet and no node uses it.
pub(super) const MIGRATED_BIT: u64 = 1 << 61;

/// The value of the setting after the identity was retired.
pub(super) const RETIRED_IDENTITY: u64 = 1;

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

#[cfg(test)]
mod tests {
    use super::*;

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
