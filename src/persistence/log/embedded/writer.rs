//! The writer: gathers requests into groups, commits each group as one frame, answers.

use std::io;
use std::os::unix::fs::FileExt;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use tokio::sync::oneshot;

use super::Shared;
use super::frame;
use super::segment::{Header, Segment};
use crate::model::offset::{Offset, ShardId};
use crate::persistence::log::{AppendError, AppendRequest};
use crate::telemetry;

type Reply = oneshot::Sender<Result<i64, AppendError>>;

/// Requests that wait for the writer.
#[derive(Default)]
pub struct Queue {
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
    pub fn push(&self, request: AppendRequest, reply: Reply, limit: u64) -> Result<(), AppendError> {
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
    pub fn close(&self, why: &str) {
        self.lock().closed.get_or_insert_with(|| why.to_owned());
        self.woken.notify_one();
    }

    /// The next group; none when closed and empty.
    fn group(&self, max_bytes: u64) -> Option<Vec<(AppendRequest, Reply)>> {
        let mut waiting = self.lock();
        while waiting.requests.is_empty() {
            if waiting.closed.is_some() {
                return None;
            }
            waiting = self.woken.wait(waiting).unwrap_or_else(PoisonError::into_inner);
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

/// A client that no longer waits needs no answer.
fn answer(reply: Reply, outcome: Result<i64, AppendError>) {
    let _ = reply.send(outcome);
}

/// Where the next frame goes.
pub struct Position {
    /// Position in the last segment.
    pub at: u64,
    /// Sequence number.
    pub sequence: u64,
    /// Append time of the last frame.
    pub appended: i64,
    /// End of every shard.
    pub ends: Vec<Offset>,
}

/// Starts the writer's thread.
pub fn start(shared: Arc<Shared>, position: Position) -> Result<std::thread::JoinHandle<()>, String> {
    let encoder = frame::Encoder::new(shared.salt)?;
    let writer = Writer { shared, position, encoder };
    std::thread::Builder::new().name("log-writer".to_owned()).spawn(move || writer.run()).map_err(|e| e.to_string())
}

struct Writer {
    shared: Arc<Shared>,
    position: Position,
    encoder: frame::Encoder,
}

impl Writer {
    fn run(mut self) {
        while let Some(group) = self.shared.queue.group(self.shared.options.max_commit_bytes as u64) {
            let (requests, replies): (Vec<_>, Vec<_>) = group.into_iter().unzip();
            let records: Vec<(ShardId, Bytes)> = requests.into_iter().flat_map(|r| r.records).collect();
            match self.commit(&records) {
                Ok(appended) => replies.into_iter().for_each(|reply| answer(reply, Ok(appended))),
                Err(Failure::NothingWritten(error)) => {
                    replies.into_iter().for_each(|reply| answer(reply, Err(error.clone())));
                }
                Err(Failure::Fatal(why)) => {
                    tracing::error!(%why, "the log stops: what is durable is unknown until it is read again");
                    replies.into_iter().for_each(|reply| answer(reply, Err(AppendError::Unknown(why.clone()))));
                    self.shared.queue.fail_all(&why);
                    return;
                }
            }
        }
    }

    fn commit(&mut self, records: &[(ShardId, Bytes)]) -> Result<i64, Failure> {
        let appended = self.shared.options.clock.now().max(self.position.appended);
        let sequence = self.position.sequence;
        let (frame, plain) = self.encoder.encode(sequence, appended, records, &self.position.ends);
        let segment = self.segment_for(self.encoder.bytes.len() as u64)?;
        let at = self.position.at;
        if let Err(error) = segment.file.write_all_at(&self.encoder.bytes, at) {
            // A part may stand there: without cutting it off, a later start could not tell it from damage.
            let cut = segment.file.metadata().and_then(|m| segment.file.set_len(at).and_then(|()| segment.file.set_len(m.len())));
            return Err(match cut {
                Ok(()) => nothing_written(&error),
                Err(_) => Failure::Fatal(error.to_string()),
            });
        }
        segment.file.sync_data().map_err(|e| Failure::Fatal(format!("fdatasync failed: {e}")))?;
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
        self.position.at = at + self.encoder.bytes.len() as u64;
        self.position.sequence += 1;
        self.position.appended = appended;
        self.shared.appended.send_modify(|commits| *commits += 1);
        Ok(appended)
    }

    /// The segment that takes the next frame: the last one, or a new one when that is full.
    fn segment_for(&mut self, len: u64) -> Result<Arc<Segment>, Failure> {
        let lost = || Failure::Fatal("the list of segments is lost".to_owned());
        let last = self.shared.segments.read().ok().and_then(|s| s.back().cloned()).ok_or_else(lost)?;
        let header_len = Header::len(self.position.ends.len());
        if self.position.at == header_len || self.position.at + len <= self.shared.options.segment_bytes {
            return Ok(last);
        }
        let header = Header {
            log: self.shared.id,
            number: last.header.number + 1,
            first_sequence: self.position.sequence,
            firsts: self.position.ends.clone(),
        };
        // Sealed first: an older segment without its index would be refused at the next start.
        last.seal(self.position.at).map_err(|e| nothing_written(&e))?;
        let reserve = self.shared.options.segment_bytes.max(header_len + len);
        let next = Segment::create(&self.shared.options.dir, header, reserve).map_err(|e| nothing_written(&e))?;
        let next = Arc::new(next);
        self.shared.segments.write().map_err(|_| lost())?.push_back(next.clone());
        self.position.at = header_len;
        Ok(next)
    }
}

enum Failure {
    /// Nothing of the group is on disk; the next group may succeed.
    NothingWritten(AppendError),
    /// The log cannot go on.
    Fatal(String),
}

fn nothing_written(error: &io::Error) -> Failure {
    Failure::NothingWritten(match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge => AppendError::DiskFull,
        _ => AppendError::Closed(error.to_string()),
    })
}
