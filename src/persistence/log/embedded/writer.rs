//! The writer thread: gathers requests into groups, commits each group as one frame, and answers.
//!
//! While the disk refuses writes, it probes the disk once per second even without requests: the log
//! reports that it accepts writes again only after a successful probe.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::oneshot;

use super::Shared;
use super::frame;
use super::segment::{self, Segment, SegmentHeader};
use super::tail::{LogTail, TailError};
use crate::clock::Stopwatch;
use crate::invariants::{Invariant, check};
use crate::model::offset::{Offset, ShardId};
use crate::persistence::log::{AppendError, AppendRequest};
use crate::telemetry;

/// Interval between probes of a disk that refuses writes.
const PROBE_EVERY: Duration = Duration::from_secs(1);
/// The log counts as writable if there is room for this fraction of a segment or for the largest
/// commit, whichever is less. A small event that still fits does not mean that the next one will.
const ROOM_DIVISOR: u64 = 8;

type AppendReply = oneshot::Sender<Result<i64, AppendError>>;

/// Requests that wait for the writer thread.
#[derive(Default)]
pub(super) struct AppendQueue {
    state: Mutex<QueueState>,
    woken: Condvar,
}

#[derive(Default)]
struct QueueState {
    requests: std::collections::VecDeque<(AppendRequest, AppendReply)>,
    bytes: u64,
    closed: Option<String>,
}

/// Bytes that a request counts for: its payloads, and 64 per record for its bookkeeping.
fn size(request: &AppendRequest) -> u64 {
    request.records.iter().map(|(_, payload)| payload.len() as u64 + 64).sum()
}

impl AppendQueue {
    fn lock(&self) -> MutexGuard<'_, QueueState> {
        // A poisoned lock is harmless: every change leaves the queue consistent.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Queues a request for the writer.
    pub(super) fn push(
        &self,
        request: AppendRequest,
        reply: AppendReply,
        limit: u64,
    ) -> Result<(), AppendError> {
        let mut waiting = self.lock();
        if let Some(why) = &waiting.closed {
            return Err(AppendError::Closed(why.clone()));
        }
        let bytes = size(&request);
        // An empty queue accepts a request above the limit, which could otherwise never be written.
        if waiting.bytes > 0 && waiting.bytes + bytes > limit {
            return Err(AppendError::Overloaded { waiting_bytes: waiting.bytes, limit });
        }
        waiting.bytes += bytes;
        waiting.requests.push_back((request, reply));
        drop(waiting);
        self.woken.notify_one();
        Ok(())
    }

    /// Refuses further requests. Those already queued are still written.
    pub(super) fn close(&self, why: &str) {
        self.lock().closed.get_or_insert_with(|| why.to_owned());
        self.woken.notify_one();
    }

    /// Why the queue is closed, or `None` if it is open.
    pub(super) fn closed_reason(&self) -> Option<String> {
        self.lock().closed.clone()
    }

    /// Waits for the next group. Returns an empty one after `patience`, and `None` once the queue
    /// is closed and empty.
    fn next_group(
        &self,
        max_bytes: u64,
        patience: Option<Duration>,
    ) -> Option<Vec<(AppendRequest, AppendReply)>> {
        let mut waiting = self.lock();
        while waiting.requests.is_empty() {
            if waiting.closed.is_some() {
                return None;
            }
            let Some(patience) = patience else {
                waiting = self.woken.wait(waiting).unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            let (woken, timeout) =
                self.woken.wait_timeout(waiting, patience).unwrap_or_else(PoisonError::into_inner);
            waiting = woken;
            if timeout.timed_out() && waiting.requests.is_empty() && waiting.closed.is_none() {
                return Some(Vec::new());
            }
        }
        let mut group = Vec::new();
        let mut bytes = 0;
        while let Some((request, _)) = waiting.requests.front() {
            let size = size(request);
            // A request above the limit becomes a group of its own.
            if !group.is_empty() && bytes + size > max_bytes {
                break;
            }
            bytes += size;
            group.extend(waiting.requests.pop_front());
        }
        waiting.bytes -= bytes;
        Some(group)
    }

    /// Closes the queue and fails everything in it.
    fn fail_all(&self, why: &str) {
        self.close(why);
        for (_, reply) in self.lock().requests.drain(..) {
            answer(reply, Err(AppendError::Closed(why.to_owned())));
        }
    }
}

fn answer(reply: AppendReply, outcome: Result<i64, AppendError>) {
    #[expect(
        clippy::let_underscore_must_use,
        reason = "a client that no longer waits needs no answer"
    )]
    let _ = reply.send(outcome);
}

/// The state of the log before the next frame.
pub(super) struct LogPosition {
    /// Sequence number of the next frame.
    pub sequence: u64,
    /// Append time of the last frame; 0 before the first.
    pub appended: i64,
    /// Exclusive end of every shard.
    pub ends: Vec<Offset>,
}

/// The state of the writer thread.
pub(super) struct SegmentWriter {
    shared: Arc<Shared>,
    position: LogPosition,
    tail: LogTail,
    encoder: frame::FrameEncoder,
    /// Since the last probe of the disk.
    tried: Stopwatch,
    /// Requests refused since the disk last accepted one.
    refused: u64,
}

impl SegmentWriter {
    /// Creates the writer and probes the disk, so that the log knows from the start whether it
    /// accepts writes. Fails if memory is short, or the probe leaves open what is durable. A disk
    /// that refuses is no error.
    pub(super) fn new(
        shared: Arc<Shared>,
        position: LogPosition,
        tail: LogTail,
    ) -> Result<Self, String> {
        let encoder = frame::FrameEncoder::new(shared.salt)?;
        let mut writer =
            Self { shared, position, tail, encoder, tried: Stopwatch::start(), refused: 0 };
        match writer.probe_disk() {
            Err(TailError::Fatal(why)) => Err(why),
            Ok(()) | Err(TailError::Refused(_)) => Ok(writer),
        }
    }

    /// Starts the writer thread. Fails if the thread cannot be started.
    pub(super) fn start(self) -> Result<std::thread::JoinHandle<()>, String> {
        std::thread::Builder::new()
            .name("log-writer".to_owned())
            .spawn(move || self.run())
            .map_err(|e| e.to_string())
    }

    fn run(mut self) {
        let max_bytes = self.shared.options.max_commit_bytes as u64;
        loop {
            let refusing = self.shared.current_refusal().is_some();
            let Some(group) =
                self.shared.queue.next_group(max_bytes, refusing.then_some(PROBE_EVERY))
            else {
                return;
            };
            let (requests, replies): (Vec<_>, Vec<_>) = group.into_iter().unzip();
            let mut tried = Ok(());
            // Requests may arrive more often than the disk is worth probing.
            if refusing && self.tried.elapsed() >= PROBE_EVERY {
                tried = self.probe_disk();
            }
            if let Err(TailError::Fatal(why)) = tried {
                return self.end(&why, replies);
            }
            if replies.is_empty() {
                continue;
            }
            let records: Vec<(ShardId, Bytes)> =
                requests.into_iter().flat_map(|r| r.records).collect();
            match self.commit(&records) {
                Ok(appended) => replies.into_iter().for_each(|reply| answer(reply, Ok(appended))),
                Err(TailError::Refused(error)) => {
                    self.refused += replies.len() as u64;
                    self.refuse(&error);
                    replies.into_iter().for_each(|reply| answer(reply, Err(error.clone())));
                }
                Err(TailError::Fatal(why)) => return self.end(&why, replies),
            }
        }
    }

    /// Stops the log after a failure that leaves open what is durable.
    fn end(&self, why: &str, replies: Vec<AppendReply>) {
        tracing::error!(%why, "the log stops: what is durable is unknown until it is read again");
        replies
            .into_iter()
            .for_each(|reply| answer(reply, Err(AppendError::Unknown(why.to_owned()))));
        self.shared.queue.fail_all(why);
    }

    /// Probes whether the disk accepts writes, and records the result.
    fn probe_disk(&mut self) -> Result<(), TailError> {
        self.tried = Stopwatch::start();
        let options = &self.shared.options;
        let room = (options.max_commit_bytes as u64).min(options.segment_bytes / ROOM_DIVISOR);
        let new_segment =
            self.tail.probe(room, |number| header(&self.shared, &self.position, number));
        match self.publish_segment(new_segment) {
            Ok(()) => self.clear_refusal(),
            Err(TailError::Refused(error)) => {
                self.refuse(&error);
                return Err(TailError::Refused(error));
            }
            Err(fatal) => return Err(fatal),
        }
        Ok(())
    }

    fn refuse(&self, error: &AppendError) {
        let before = self.shared.set_refusal(Some(error.clone()));
        if before.as_ref() != Some(error) {
            tracing::warn!(code = error.code(), "the log refuses writes: {error}");
        }
    }

    fn clear_refusal(&mut self) {
        if self.shared.set_refusal(None).is_some() {
            let refused = std::mem::take(&mut self.refused);
            tracing::warn!(refused, "the log takes writes again");
        }
    }

    fn commit(&mut self, records: &[(ShardId, Bytes)]) -> Result<i64, TailError> {
        let stamp = self.shared.stamp();
        let sequence = self.position.sequence;
        let (frame, plain) = self.encoder.encode(sequence, stamp, records, &self.position.ends);
        let new_segment = self.tail.make_room(self.encoder.bytes.len() as u64, |number| {
            header(&self.shared, &self.position, number)
        });
        self.publish_segment(new_segment)?;
        let at = self.tail.write(&self.encoder.bytes)?;
        let segment = self.tail.segment();
        // Index the runs first and publish the ends afterwards: a reader that sees an end must find
        // every record below it.
        segment.add_runs(at, &frame);
        // Without the cache, readers fall back to the disk.
        if let Ok(mut cache) = self.shared.cache.lock() {
            // Copied, because the encoder reuses its buffer.
            let records = Bytes::copy_from_slice(&self.encoder.plain);
            for (run, plain) in frame.runs.iter().zip(plain) {
                cache.push(segment.header.number, at + run.at as u64, records.slice(plain));
            }
        }
        let before: Offset = self.position.ends.iter().sum();
        for run in &frame.runs {
            let shard = run.shard.0 as usize;
            self.position.ends[shard] = run.first + u64::from(run.records);
            self.shared.ends[shard].store(self.position.ends[shard], Ordering::Release);
        }
        check_offsets(records.len(), before, self.position.ends.iter().sum());
        metrics::counter!(telemetry::LOG_COMMITS).increment(1);
        metrics::counter!(telemetry::LOG_BYTES).increment(self.encoder.bytes.len() as u64);
        self.position.sequence += 1;
        self.position.appended = stamp.appended;
        Ok(stamp.appended)
    }

    /// Makes a segment that was just started visible to readers.
    fn publish_segment(
        &self,
        new_segment: Result<Option<Arc<Segment>>, TailError>,
    ) -> Result<(), TailError> {
        if let Some(segment) = new_segment? {
            let lost = || TailError::Fatal("the list of segments is lost".to_owned());
            self.shared.segments.write().map_err(|_| lost())?.push_back(segment);
        }
        Ok(())
    }
}

/// The header of a segment that starts with the next frame.
fn header(shared: &Shared, position: &LogPosition, number: u64) -> SegmentHeader {
    let (log, first_sequence, appended) = (shared.id, position.sequence, position.appended);
    SegmentHeader {
        version: segment::VERSION,
        log,
        number,
        first_sequence,
        appended,
        first_offsets: position.ends.clone(),
    }
}

/// I1, before anybody hears of the commit: every record of it has an offset, so that a reader finds
/// it below the end. `before` and `after` are the ends of all shards together.
fn check_offsets(records: usize, before: Offset, after: Offset) {
    let given = after.saturating_sub(before);
    check(Invariant::AckedIsDurable, given == records as u64, || {
        format!("a commit of {records} records moved the ends of the log by {given}")
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::invariants::tests::violations;

    #[test]
    fn a_commit_that_gives_a_record_no_offset_is_a_violation() {
        let found = |records, before, after| {
            violations(Invariant::AckedIsDurable, || check_offsets(records, before, after))
        };
        assert_eq!((found(3, 10, 13), found(0, 10, 10)), (0, 0));
        assert_eq!((found(3, 10, 12), found(3, 10, 14), found(1, 10, 9)), (1, 1, 1));
    }
}
