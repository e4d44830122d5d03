//! Recent records in memory, so that shards at the end of the log are not read from disk.

use std::collections::VecDeque;

use bytes::Bytes;

use super::frame::RunLocation;

/// The records of the newest runs, up to a number of bytes. FIFO eviction.
pub(super) struct TailCache {
    limit: usize,
    bytes: usize,
    /// `(segment, position, records)`, in ascending order.
    runs: VecDeque<(u64, u64, Bytes)>,
}

impl TailCache {
    /// An empty cache of at most `limit` bytes.
    pub(super) fn new(limit: usize) -> Self {
        Self { limit, bytes: 0, runs: VecDeque::new() }
    }

    /// Adds the newest run and evicts the oldest ones above the limit. Runs of one frame share a
    /// buffer, so memory is freed only with the last run of a frame.
    pub(super) fn push(&mut self, segment: u64, position: u64, records: Bytes) {
        self.bytes += records.len();
        self.runs.push_back((segment, position, records));
        while self.bytes > self.limit {
            let Some((_, _, oldest)) = self.runs.pop_front() else { break };
            self.bytes -= oldest.len();
        }
    }

    /// The decompressed records of a run, if cached.
    pub(super) fn get(&self, segment: u64, run: &RunLocation) -> Option<Bytes> {
        // Runs are added in log order, so they are sorted.
        let at = self
            .runs
            .binary_search_by_key(&(segment, run.at), |(s, position, _)| (*s, *position))
            .ok()?;
        self.runs.get(at).map(|(_, _, records)| records.clone())
    }
}
