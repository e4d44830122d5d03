//! What an answer lacks: shards that did not answer, or are behind.

use std::collections::BTreeSet;

use crate::actors::live::{LiveError, ShardFreshness, ShardRead, ShardResults};
use crate::invariants::{Invariant, check};
use crate::model::offset::ShardId;
use crate::model::served::ServedHours;
use crate::model::window::Millis;

/// A shard that the answer lacks or that has fallen behind.
#[allow(missing_docs, reason = "the names say it")]
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IncompleteShard {
    pub shard: ShardId,
    /// A stable word for clients: `stopped`, `recovering`, `behind` or that of
    /// [`LiveError::reason`].
    pub reason: &'static str,
    /// Age of its data in milliseconds; None if it did not answer.
    pub behind_ms: Option<i64>,
}

/// How complete an answer is.
#[allow(missing_docs, reason = "the names say it")]
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QueryCompleteness {
    /// Shards that are incomplete, ascending by number.
    pub missing: Vec<IncompleteShard>,
    /// Everything received before this time is in the answer, except in the shards of `missing`.
    pub as_of: Millis,
    /// Number of shards asked.
    pub shards: usize,
    /// Events whose labels were dropped at the series limit; None if the query does
    /// not depend on labels.
    pub overflow: Option<u64>,
    /// The hours of the range in which another generation than 0 is served, ascending.
    pub generations: Vec<ServedHours>,
    stale_checkpoint: bool,
}

/// The shards without a report, as unreachable ones. The reader must report on every shard, if only
/// an error: without that, an answer that lacks a shard would look complete.
fn unreported(reads: &[ShardRead], reports: &ShardResults) -> Vec<IncompleteShard> {
    let reported: BTreeSet<ShardId> = reports.iter().map(|(shard, _)| *shard).collect();
    let silent: Vec<ShardId> =
        reads.iter().map(|(shard, _)| *shard).filter(|shard| !reported.contains(shard)).collect();
    check(Invariant::HonestQueries, silent.is_empty() && reported.len() == reports.len(), || {
        format!("{} reports of {} shards: none of {silent:?}", reports.len(), reads.len())
    });
    let missing =
        |shard| IncompleteShard { shard, reason: LiveError::Unreachable.reason(), behind_ms: None };
    silent.into_iter().map(missing).collect()
}

impl QueryCompleteness {
    /// Evaluates the shards' reports. A shard whose data is older than `stale_after_ms` is behind.
    pub fn of(
        reads: &[ShardRead],
        reports: &ShardResults,
        now: Millis,
        stale_after_ms: i64,
    ) -> Self {
        let mut completeness = Self {
            missing: Vec::new(),
            as_of: now,
            shards: reads.len(),
            stale_checkpoint: false,
            overflow: None,
            generations: Vec::new(),
        };
        completeness.missing = unreported(reads, reports);
        for &(shard, report) in reports {
            match report {
                Ok(report) => {
                    completeness.as_of = completeness.as_of.min(report.as_of);
                    let behind_ms = report.age_ms;
                    // Another owner may already have shown what this shard lacks, so even a small
                    // gap must be flagged.
                    let reason = match report {
                        ShardFreshness { stopped: true, .. } => Some("stopped"),
                        ShardFreshness { recovering: true, .. } => Some("recovering"),
                        _ => (behind_ms > stale_after_ms).then_some("behind"),
                    };
                    let missing =
                        |reason| IncompleteShard { shard, reason, behind_ms: Some(behind_ms) };
                    completeness.missing.extend(reason.map(missing));
                }
                Err(error) => {
                    completeness.stale_checkpoint |= error == LiveError::StaleCheckpoint;
                    completeness.missing.push(IncompleteShard {
                        shard,
                        reason: error.reason(),
                        behind_ms: None,
                    });
                }
            }
        }
        completeness.missing.sort_unstable_by_key(|missing| missing.shard);
        completeness
    }

    /// Whether the snapshot is too old for a shard; a new snapshot may fix that.
    pub(super) fn has_stale_checkpoint(&self) -> bool {
        self.stale_checkpoint
    }

    /// Sets the number of events whose labels were dropped at the series limit.
    pub(crate) fn with_overflow(self, overflow: Option<u64>) -> Self {
        Self { overflow, ..self }
    }

    /// Notes what was served in the range of the query.
    pub(super) fn with_generations(self, mut served: Vec<ServedHours>) -> Self {
        served.retain(|piece| !piece.generation.is_ingest());
        Self { generations: served, ..self }
    }

    /// Whether the answer lacks anything.
    pub fn is_partial(&self) -> bool {
        !self.missing.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::invariants::tests::violations;

    #[test]
    fn a_shard_that_nobody_reported_on_is_missing_and_a_violation() {
        let asked = [(ShardId(0), None), (ShardId(1), None)];
        let reports = vec![(ShardId(0), Err(LiveError::Overloaded))];
        assert_eq!(
            violations(Invariant::HonestQueries, || drop(QueryCompleteness::of(
                &asked, &reports, 0, 1
            ))),
            1
        );
        let whole = vec![reports[0], (ShardId(1), Err(LiveError::StaleCheckpoint))];
        assert_eq!(
            violations(Invariant::HonestQueries, || drop(QueryCompleteness::of(
                &asked, &whole, 0, 1
            ))),
            0
        );
        let twice = vec![whole[0], whole[1], whole[1]];
        assert_eq!(
            violations(Invariant::HonestQueries, || drop(QueryCompleteness::of(
                &asked, &twice, 0, 1
            ))),
            1
        );
    }
}
