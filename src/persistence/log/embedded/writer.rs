//! The writer: gathers requests into groups, commits each group as one frame, answers.
//!
//! While the disk takes no writes, it looks again every second, also when nobody asks: only then
//! does the log say that it takes them again.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::oneshot;

use super::Shared;
use super::frame;
use super::segment::{self, Header, Segment};
use super::tail::{Failure, Tail};
use crate::clock::Stopwatch;
use crate::model::offset::{Offset, ShardId};
use crate::persistence::log::{AppendError, AppendRequest};
use crate::telemetry;

/// How often a disk that takes no writes is tried.
const TRY_EVERY: Duration = Duration::from_secs(1);
/// A log takes writes if there is room for such a part of a segment, or for the largest commit: a
/// small event that fits into what is left is no sign that the next one does.
const ROOM: u64 = 8;

type Reply = oneshot::Sender<Result<i64, AppendError>>;

/// Requests that wait for the writer.
#[derive(Default)]
pub(super) struct Queue {
    state: Mutex<Waiting>,
    woken: Condvar,
}

#[derive(Default)]
struct Waiting {
    requests: std::collections::VecDeque<(AppendRequest, Reply)>,
    bytes: u64,
    closed: Option<String>,
}

fn size(request: &AppendRequest) -> u64 {
    request.records.iter().map(|(_, payload)| payload.len() as u64 + 64).sum()
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        // Nothing panics while holding it, and a queue is whole at every moment.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Hands a request to the writer.
    pub(super) fn push(
        &self,
        request: AppendRequest,
        reply: Reply,
        limit: u64,
    ) -> Result<(), AppendError> {
        let mut waiting = self.lock();
        if let Some(why) = &waiting.closed {
            return Err(AppendError::Closed(why.clone()));
        }
        let bytes = size(&request);
        if waiting.bytes > 0 && waiting.bytes + bytes > limit {
            return Err(AppendError::Overloaded { waiting_bytes: waiting.bytes, limit });
        }
        waiting.bytes += bytes;
        waiting.requests.push_back((request, reply));
        drop(waiting);
        self.woken.notify_one();
        Ok(())
    }

    /// Refuses everything from here on; what waits is still written.
    pub(super) fn close(&self, why: &str) {
        self.lock().closed.get_or_insert_with(|| why.to_owned());
        self.woken.notify_one();
    }

    /// Why nothing more is taken, if nothing is.
    pub(super) fn closed(&self) -> Option<String> {
        self.lock().closed.clone()
    }

    /// The next group, an empty one after `patience`; none when closed and empty.
    fn group(
        &self,
        max_bytes: u64,
        patience: Option<Duration>,
    ) -> Option<Vec<(AppendRequest, Reply)>> {
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
            if !group.is_empty() && bytes + size > max_bytes {
                break;
            }
            bytes += size;
            group.extend(waiting.requests.pop_front());
        }
        waiting.bytes -= bytes;
        Some(group)
    }

    fn fail_all(&self, why: &str) {
        self.close(why);
        for (_, reply) in self.lock().requests.drain(..) {
            answer(reply, Err(AppendError::Closed(why.to_owned())));
        }
    }
}

fn answer(reply: Reply, outcome: Result<i64, AppendError>) {
    #[expect(
        clippy::let_underscore_must_use,
        reason = "a client that no longer waits needs no answer"
    )]
    let _ = reply.send(outcome);
}

/// What the next frame is.
pub(super) struct Position {
    /// Sequence number.
    pub sequence: u64,
    /// Append time of the last frame; 0 before the first.
    pub appended: i64,
    /// End of every shard.
    pub ends: Vec<Offset>,
}

/// Writes the log.
pub(super) struct Writer {
    shared: Arc<Shared>,
    position: Position,
    tail: Tail,
    encoder: frame::Encoder,
    tried: Stopwatch,
    /// Requests refused since the disk took the last one.
    refused: u64,
}

impl Writer {
    /// A writer that has found out whether the disk takes writes.
    ///
    /// # Errors
    /// If there is no memory, or the disk does not say what is durable.
    pub(super) fn new(shared: Arc<Shared>, position: Position, tail: Tail) -> Result<Self, String> {
        let encoder = frame::Encoder::new(shared.salt)?;
        let mut writer =
            Self { shared, position, tail, encoder, tried: Stopwatch::start(), refused: 0 };
        match writer.try_disk() {
            Err(Failure::Fatal(why)) => Err(why),
            Ok(()) | Err(Failure::Refused(_)) => Ok(writer),
        }
    }

    /// Starts its thread.
    ///
    /// # Errors
    /// If there is none.
    pub(super) fn start(self) -> Result<std::thread::JoinHandle<()>, String> {
        std::thread::Builder::new()
            .name("log-writer".to_owned())
            .spawn(move || self.run())
            .map_err(|e| e.to_string())
    }

    fn run(mut self) {
        let max_bytes = self.shared.options.max_commit_bytes as u64;
        loop {
            let refusing = self.shared.refusing().is_some();
            let Some(group) = self.shared.queue.group(max_bytes, refusing.then_some(TRY_EVERY))
            else {
                return;
            };
            let (requests, replies): (Vec<_>, Vec<_>) = group.into_iter().unzip();
            let mut tried = Ok(());
            if refusing && self.tried.elapsed() >= TRY_EVERY {
                tried = self.try_disk();
            }
            if let Err(Failure::Fatal(why)) = tried {
                return self.end(&why, replies);
            }
            if replies.is_empty() {
                continue;
            }
            let records: Vec<(ShardId, Bytes)> =
                requests.into_iter().flat_map(|r| r.records).collect();
            match self.commit(&records) {
                Ok(appended) => replies.into_iter().for_each(|reply| answer(reply, Ok(appended))),
                Err(Failure::Refused(error)) => {
                    self.refused += replies.len() as u64;
                    self.refuse(&error);
                    replies.into_iter().for_each(|reply| answer(reply, Err(error.clone())));
                }
                Err(Failure::Fatal(why)) => return self.end(&why, replies),
            }
        }
    }

    fn end(&self, why: &str, replies: Vec<Reply>) {
        tracing::error!(%why, "the log stops: what is durable is unknown until it is read again");
        replies
            .into_iter()
            .for_each(|reply| answer(reply, Err(AppendError::Unknown(why.to_owned()))));
        self.shared.queue.fail_all(why);
    }

    /// Finds out whether the disk takes writes.
    fn try_disk(&mut self) -> Result<(), Failure> {
        self.tried = Stopwatch::start();
        let options = &self.shared.options;
        let room = (options.max_commit_bytes as u64).min(options.segment_bytes / ROOM);
        let begun = self.tail.probe(room, |number| header(&self.shared, &self.position, number));
        match self.listed(begun) {
            Ok(()) => self.take_again(),
            Err(Failure::Refused(error)) => {
                self.refuse(&error);
                return Err(Failure::Refused(error));
            }
            Err(fatal) => return Err(fatal),
        }
        Ok(())
    }

    fn refuse(&self, error: &AppendError) {
        let before = self.shared.refuse(Some(error.clone()));
        if before.as_ref() != Some(error) {
            tracing::warn!(code = error.code(), "the log refuses writes: {error}");
        }
    }

    fn take_again(&mut self) {
        if self.shared.refuse(None).is_some() {
            let refused = std::mem::take(&mut self.refused);
            tracing::warn!(refused, "the log takes writes again");
        }
    }

    fn commit(&mut self, records: &[(ShardId, Bytes)]) -> Result<i64, Failure> {
        let stamp = self.shared.stamp();
        let sequence = self.position.sequence;
        let (frame, plain) = self.encoder.encode(sequence, stamp, records, &self.position.ends);
        let begun = self.tail.make_room(self.encoder.bytes.len() as u64, |number| {
            header(&self.shared, &self.position, number)
        });
        self.listed(begun)?;
        let at = self.tail.write(&self.encoder.bytes)?;
        let segment = self.tail.segment();
        segment.note(at, &frame);
        if let Ok(mut cache) = self.shared.cache.lock() {
            let records = Bytes::copy_from_slice(&self.encoder.plain);
            for (run, plain) in frame.runs.iter().zip(plain) {
                cache.push(segment.header.number, at + run.at as u64, records.slice(plain));
            }
        }
        for run in &frame.runs {
            let shard = run.shard.0 as usize;
            self.position.ends[shard] = run.first + u64::from(run.records);
            self.shared.ends[shard].store(self.position.ends[shard], Ordering::Release);
        }
        metrics::counter!(telemetry::LOG_COMMITS).increment(1);
        metrics::counter!(telemetry::LOG_BYTES).increment(self.encoder.bytes.len() as u64);
        self.position.sequence += 1;
        self.position.appended = stamp.appended;
        self.shared.appended.send_modify(|commits| *commits += 1);
        Ok(stamp.appended)
    }

    /// Shows readers the segment that was begun, if one was.
    fn listed(&self, begun: Result<Option<Arc<Segment>>, Failure>) -> Result<(), Failure> {
        if let Some(segment) = begun? {
            let lost = || Failure::Fatal("the list of segments is lost".to_owned());
            self.shared.segments.write().map_err(|_| lost())?.push_back(segment);
        }
        Ok(())
    }
}

/// The header of the segment that begins with the next frame.
fn header(shared: &Shared, position: &Position, number: u64) -> Header {
    let (log, first_sequence, appended) = (shared.id, position.sequence, position.appended);
    Header {
        version: segment::VERSION,
        log,
        number,
        first_sequence,
        appended,
        firsts: position.ends.clone(),
    }
}
