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
}

impl Completeness {
    /// From what the shards reported. One whose report is older than `stale_after_ms` is behind.
    pub fn of(reports: &Reports, now: Millis, stale_after_ms: i64) -> Self {
        let mut completeness = Self { missing: Vec::new(), as_of: now, shards: reports.len(), moved: false };
        for &(shard, report) in reports {
            match report {
                Ok(report) => {
                    completeness.as_of = completeness.as_of.min(report.as_of);
                    let behind_ms = report.age_ms;
                    if behind_ms > stale_after_ms {
                        completeness.missing.push(Missing { shard, reason: "behind", behind_ms: Some(behind_ms) });
                    }
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
        out.push_str("],\"as_of\":");
        json::time(out, self.as_of);
        out.push('}');
    }
}
