//! What an answer lacks: shards that did not answer, or are behind.

use std::fmt::Write;

use super::json;
use crate::actors::live::{LiveError, Reports};
use crate::model::offset::ShardId;
use crate::model::window::Millis;

/// A shard that the answer lacks, or that is behind.
struct Missing {
    shard: ShardId,
    reason: &'static str,
    behind_ms: Option<i64>,
}

/// How much of the truth an answer is.
pub struct Completeness {
    missing: Vec<Missing>,
    as_of: Millis,
    shards: usize,
    moved: bool,
    overflow: Option<u64>,
}

impl Completeness {
    /// From what the shards reported. One whose report is older than `stale_after_ms` is behind.
    pub fn of(reports: &Reports, now: Millis, stale_after_ms: i64) -> Self {
        let mut completeness = Self { missing: Vec::new(), as_of: now, shards: reports.len(), moved: false, overflow: None };
        for &(shard, report) in reports {
            match report {
                Ok(report) => {
                    completeness.as_of = completeness.as_of.min(report.as_of);
                    let behind_ms = report.age_ms;
                    // What it lacks another owner may have shown: however little it is, the answer must not seem to be all.
                    let reason =
                        if report.recovering { Some("recovering") } else { (behind_ms > stale_after_ms).then_some("behind") };
                    let missing = |reason| Missing { shard, reason, behind_ms: Some(behind_ms) };
                    completeness.missing.extend(reason.map(missing));
                }
                Err(error) => {
                    completeness.moved |= error == LiveError::Moved;
                    completeness.missing.push(Missing { shard, reason: error.reason(), behind_ms: None });
                }
            }
        }
        completeness.missing.sort_unstable_by_key(|missing| missing.shard);
        completeness
    }

    /// Whether a shard moved between the snapshot and its answer: a new snapshot knows where to.
    pub fn moved(&self) -> bool {
        self.moved
    }

    /// With the number of events whose labels are not kept, if the answer would tell labels apart.
    pub fn with_overflow(self, overflow: Option<u64>) -> Self {
        Self { overflow, ..self }
    }

    /// Whether anything is missing.
    pub fn partial(&self) -> bool {
        !self.missing.is_empty()
    }

    /// Its JSON.
    pub fn render(&self, out: &mut String) {
        _ = write!(out, "{{\"partial\":{},\"shards\":{},\"missing\":[", self.partial(), self.shards);
        for (at, missing) in self.missing.iter().enumerate() {
            let comma = if at > 0 { "," } else { "" };
            _ = write!(out, "{comma}{{\"shard\":{},\"reason\":\"{}\"", missing.shard, missing.reason);
            if let Some(behind) = missing.behind_ms {
                _ = write!(out, ",\"behind_ms\":{behind}");
            }
            out.push('}');
        }
        out.push(']');
        if let Some(overflow) = self.overflow {
            _ = write!(out, ",\"overflow\":{overflow}");
        }
        out.push_str(",\"as_of\":");
        json::time(out, self.as_of);
        out.push('}');
    }
}
