//! Recent frames in memory, so that the shards that follow the log do not read it from disk.

use std::collections::VecDeque;

use bytes::Bytes;

use super::segment::RunAt;

/// The newest frames, up to a number of bytes.
pub struct TailCache {
    limit: usize,
    bytes: usize,
    /// `(segment, position, frame)`, ascending.
    frames: VecDeque<(u64, u64, Bytes)>,
}

impl TailCache {
    /// An empty cache of at most `limit` bytes.
    pub fn new(limit: usize) -> Self {
        Self { limit, bytes: 0, frames: VecDeque::new() }
    }

    /// Adds the newest frame.
    pub fn push(&mut self, segment: u64, position: u64, frame: Bytes) {
        self.bytes += frame.len();
        self.frames.push_back((segment, position, frame));
        while self.bytes > self.limit {
            let Some((_, _, oldest)) = self.frames.pop_front() else { break };
            self.bytes -= oldest.len();
        }
    }

    /// The payload of a run, if its frame is here.
    pub fn get(&self, segment: u64, run: &RunAt) -> Option<Bytes> {
        let behind = self.frames.partition_point(|(s, position, _)| (*s, *position) <= (segment, run.at));
        let (s, position, frame) = self.frames.get(behind.checked_sub(1)?)?;
        let at = run.at.checked_sub(*position)? as usize;
        (*s == segment && at + run.len as usize <= frame.len()).then(|| frame.slice(at..at + run.len as usize))
    }
}
