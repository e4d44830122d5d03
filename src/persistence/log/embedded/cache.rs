//! Recent records in memory, so that the shards that follow the log do not read it from disk.

use std::collections::VecDeque;

use bytes::Bytes;

use super::frame::RunLocation;

/// The records of the newest runs, up to a number of bytes.
pub(super) struct TailCache {
    limit: usize,
    bytes: usize,
    /// `(segment, position, records)`, ascending.
    runs: VecDeque<(u64, u64, Bytes)>,
}

impl TailCache {
    /// An empty cache of at most `limit` bytes.
    pub(super) fn new(limit: usize) -> Self {
        Self { limit, bytes: 0, runs: VecDeque::new() }
    }

    /// Adds the newest run. Runs of one frame share its memory, so the oldest ones go a little
    /// later than their bytes say.
    pub(super) fn push(&mut self, segment: u64, position: u64, records: Bytes) {
        self.bytes += records.len();
        self.runs.push_back((segment, position, records));
        while self.bytes > self.limit {
            let Some((_, _, oldest)) = self.runs.pop_front() else { break };
            self.bytes -= oldest.len();
        }
    }

    /// The records of a run, if they are here.
    pub(super) fn get(&self, segment: u64, run: &RunLocation) -> Option<Bytes> {
        let at = self
            .runs
            .binary_search_by_key(&(segment, run.at), |(s, position, _)| (*s, *position))
            .ok()?;
        self.runs.get(at).map(|(_, _, records)| records.clone())
    }
}
