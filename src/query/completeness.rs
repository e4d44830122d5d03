//! What an answer lacks: shards that did not answer, or are behind.

use std::collections::BTreeSet;

use crate::actors::live::{LiveError, ShardFreshness, ShardRead, ShardResults};
use crate::invariants::{Invariant, check};
use crate::model::offset::ShardId;
use crate::model::window::Millis;

/// A shard that the answer lacks, or that is behind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IncompleteShard {
    /// Which one.
    pub shard: ShardId,
    /// Why, in a word.
    pub reason: &'static str,
    /// How far behind it is, if it answered.
    pub behind_ms: Option<i64>,
}

/// How much of the truth an answer is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QueryCompleteness {
    /// What is missing, ascending by shard.
    pub missing: Vec<IncompleteShard>,
    /// Everything that was received before this is in the answer, but for what is missing.
    pub as_of: Millis,
    /// Shards that were asked.
    pub shards: usize,
    /// Events whose labels are not kept, if the answer would tell labels apart.
    pub overflow: Option<u64>,
    stale_checkpoint: bool,
}

/// The shards that nobody reported on. There is a report for each that was asked, if only an error:
/// without one, an answer that lacks the shard would seem whole.
fn unreported(asked: &[ShardRead], reports: &ShardResults) -> Vec<IncompleteShard> {
    let heard: BTreeSet<ShardId> = reports.iter().map(|(shard, _)| *shard).collect();
    let silent: Vec<ShardId> =
        asked.iter().map(|(shard, _)| *shard).filter(|shard| !heard.contains(shard)).collect();
    check(Invariant::HonestQueries, silent.is_empty() && heard.len() == reports.len(), || {
        format!("{} reports of {} shards: none of {silent:?}", reports.len(), asked.len())
    });
    let missing =
        |shard| IncompleteShard { shard, reason: LiveError::Unreachable.reason(), behind_ms: None };
    silent.into_iter().map(missing).collect()
}

impl QueryCompleteness {
    /// From what the shards that were asked reported. One whose report is older than
    /// `stale_after_ms` is behind.
    pub fn of(
        asked: &[ShardRead],
        reports: &ShardResults,
        now: Millis,
        stale_after_ms: i64,
    ) -> Self {
        let mut completeness = Self {
            missing: Vec::new(),
            as_of: now,
            shards: asked.len(),
            stale_checkpoint: false,
            overflow: None,
        };
        completeness.missing = unreported(asked, reports);
        for &(shard, report) in reports {
            match report {
                Ok(report) => {
                    completeness.as_of = completeness.as_of.min(report.as_of);
                    let behind_ms = report.age_ms;
                    // What it lacks another owner may have shown: however little it is, the answer
                    // must not seem to be all.
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

    /// Whether a shard moved between the snapshot and its answer: a new snapshot knows where to.
    pub(super) fn has_stale_checkpoint(&self) -> bool {
        self.stale_checkpoint
    }

    /// With the number of events whose labels are not kept, if the answer would tell labels apart.
    pub(crate) fn with_overflow(self, overflow: Option<u64>) -> Self {
        Self { overflow, ..self }
    }

    /// Whether anything is missing.
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
