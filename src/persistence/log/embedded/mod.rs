//! The embedded log: one segmented, group-committed log per data directory, shared by all shards.
//!
//! A single thread writes. While one fdatasync runs, the next group of requests gathers; it is
//! committed as one frame, atomically. Frames are written and synced strictly one after the other,
//! so a crash can tear only the last one. A failed fdatasync stops the log at once: what is on disk
//! is unknown then, and only a restart that reads it again may continue. A disk that refuses writes
//! stops nothing: the log stays readable and keeps probing the disk ([`tail`]).

mod cache;
mod frame;
mod payload;
mod recovery;
mod segment;
mod tail;
mod writer;

#[cfg(test)]
mod tests;

use std::collections::{BTreeSet, VecDeque};
use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use tokio::sync::{oneshot, watch};

use self::cache::TailCache;
use self::frame::RunLocation;
pub use self::recovery::LogRecovery;
use self::recovery::RecoveryMode;
use self::segment::{RunReadError, Segment, SegmentHeader};
use self::tail::{LogDir, LogTail, TailError};
use self::writer::{AppendQueue, LogPosition, SegmentWriter};
use super::{
    AppendError, AppendRequest, AppendTicket, LogAppender, LogError, LogIdentity, LogReader,
    LogRetention, ShardAssignment,
};
use crate::clock::Clock;
use crate::model::clock::{AppendClock, AppendStamp};
use crate::model::flush::LogRecord;
use crate::model::offset::{LogId, Offset, ShardId};
use crate::model::window::Millis;

/// The parameters of [`EmbeddedLog::open`].
#[derive(Clone)]
#[allow(missing_docs, reason = "the names say it")]
pub struct EmbeddedLogOptions {
    pub dir: PathBuf,
    /// Number of shards. An existing log must have the same.
    pub shard_count: u32,
    /// A segment is sealed when the next frame would exceed this size.
    pub segment_bytes: u64,
    /// Appends are refused while more bytes than this are waiting.
    pub max_waiting_bytes: u64,
    /// Payload bytes of one commit; measured to be best between 256 KiB and 1 MiB.
    pub max_commit_bytes: usize,
    /// Memory for recent records, which readers at the end of the log need not read from disk.
    pub tail_cache_bytes: usize,
    /// Random identity for a log that does not exist yet.
    pub log_id_if_new: [u8; 16],
    /// The source of append and received times.
    pub clock: Arc<dyn Clock>,
}

struct Shared {
    id: LogId,
    salt: u32,
    options: EmbeddedLogOptions,
    segments: RwLock<VecDeque<Arc<Segment>>>,
    ends: Vec<AtomicU64>,
    cache: Mutex<TailCache>,
    queue: AppendQueue,
    /// Why the disk refused the last attempt to write, or `None` if it accepted it.
    refusal: Mutex<Option<AppendError>>,
    /// `None` if the log was opened read-only.
    dir: Option<Arc<LogDir>>,
    /// The clock that stamps the frames.
    append_clock: Mutex<AppendClock>,
    /// Always all shards: one process has the directory.
    assigned: watch::Sender<Arc<BTreeSet<ShardId>>>,
}

/// An open embedded log. Dropping it closes it.
pub struct EmbeddedLog {
    shared: Arc<Shared>,
    writer: Mutex<Option<std::thread::JoinHandle<()>>>,
}

impl EmbeddedLog {
    /// Opens or creates a log and starts its writer. Opens an existing log even if
    /// the disk refuses writes.
    ///
    /// # Errors
    /// If the directory cannot be used or its content is damaged. The message names the file, the
    /// position and the remedy.
    pub fn open(options: EmbeddedLogOptions) -> Result<(Arc<Self>, LogRecovery), String> {
        let named = |e: std::io::Error| format!("{}: {e}", options.dir.display());
        DirBuilder::new().recursive(true).mode(0o700).create(&options.dir).map_err(named)?;
        let mut found = recovery::recover(&options.dir, RecoveryMode::Write)?;
        let recovery = found.recovery;
        let dir = Arc::new(LogDir::open(&options.dir).map_err(named)?);
        let (id, ends) = Self::identity_and_ends(&options, &found)?;
        let tail = match found.segments.back() {
            Some(last) => LogTail::open(dir.clone(), last.clone(), &found, options.segment_bytes)
                .map_err(named)?,
            None => {
                let header = SegmentHeader::first(id, found.sequence, ends.clone());
                let tail = LogTail::create(dir.clone(), header, options.segment_bytes);
                tail.map_err(|failure| {
                    format!("{}: {}", options.dir.display(), failure_text(failure))
                })?
            }
        };
        if found.segments.is_empty() {
            found.segments.push_back(tail.segment().clone());
        }
        let appended = found.stamp.map_or(0, |stamp| stamp.appended);
        let position = LogPosition { sequence: found.sequence, appended, ends: ends.clone() };
        let shared = Self::new_shared(options, found, (id, ends), Some(dir));
        let thread = SegmentWriter::new(shared.clone(), position, tail)?.start()?;
        Ok((Arc::new(Self { shared, writer: Mutex::new(Some(thread)) }), recovery))
    }

    /// Opens a log for reading, even while another process writes it: what is durable at this
    /// moment. Appends are refused.
    ///
    /// # Errors
    /// If there is no log, or it is damaged.
    pub fn open_read_only(
        dir: &std::path::Path,
        clock: Arc<dyn Clock>,
    ) -> Result<Arc<Self>, String> {
        let found = recovery::recover(dir, RecoveryMode::Read)?;
        let shard_count = found.segments.back().map_or(0, |s| s.header.first_offsets.len() as u32);
        if shard_count == 0 {
            return Err(format!("{}: there is no log", dir.display()));
        }
        let options = EmbeddedLogOptions {
            dir: dir.to_owned(),
            shard_count,
            segment_bytes: 0,
            max_waiting_bytes: 0,
            max_commit_bytes: 0,
            tail_cache_bytes: 0,
            log_id_if_new: [0; 16],
            clock,
        };
        let known = Self::identity_and_ends(&options, &found)?;
        let shared = Self::new_shared(options, found, known, None);
        shared.queue.close("it was opened to be read");
        Ok(Arc::new(Self { shared, writer: Mutex::new(None) }))
    }

    /// Discards the last commit of a log that no process has open, if it is torn or damaged.
    /// Returns the file to which it was saved, and its size in bytes.
    ///
    /// # Errors
    /// If the log is damaged elsewhere, or the disk fails.
    pub fn truncate_damaged_tail(dir: &std::path::Path) -> Result<Option<(PathBuf, u64)>, String> {
        tail::truncate_tail(dir, &recovery::recover(dir, RecoveryMode::Truncate)?)
    }

    /// The id of the log that was found or is to be created, and the end of every shard.
    fn identity_and_ends(
        options: &EmbeddedLogOptions,
        found: &recovery::RecoveredLog,
    ) -> Result<(LogId, Vec<Offset>), String> {
        let shards = options.shard_count;
        if let Some(other) = found
            .segments
            .back()
            .map(|s| s.header.first_offsets.len() as u32)
            .filter(|&n| n != shards)
        {
            return Err(format!(
                "{}: this log has {other} shards, the configuration says shards.count = {shards}: \
                 the number is fixed when a data directory is created; set it back to {other}",
                options.dir.display()
            ));
        }
        let last = found.segments.back();
        let id = last.map_or(LogId(options.log_id_if_new), |s| s.header.log);
        Ok((id, (0..shards).map(|shard| last.map_or(0, |s| s.end(ShardId(shard)))).collect()))
    }

    fn new_shared(
        options: EmbeddedLogOptions,
        found: recovery::RecoveredLog,
        (id, ends): (LogId, Vec<Offset>),
        dir: Option<Arc<LogDir>>,
    ) -> Arc<Shared> {
        let shards = options.shard_count;
        let append = Mutex::new(AppendClock::start(found.stamp, options.clock.reading()));
        Arc::new(Shared {
            id,
            salt: frame::salt(id),
            cache: Mutex::new(TailCache::new(options.tail_cache_bytes)),
            options,
            segments: RwLock::new(found.segments),
            ends: ends.into_iter().map(AtomicU64::new).collect(),
            queue: AppendQueue::default(),
            refusal: Mutex::default(),
            dir,
            append_clock: append,
            assigned: watch::Sender::new(Arc::new((0..shards).map(ShardId).collect())),
        })
    }
}

fn failure_text(failure: TailError) -> String {
    match failure {
        TailError::Refused(error) => error.to_string(),
        TailError::Fatal(why) => why,
    }
}

impl Shared {
    fn end(&self, shard: ShardId) -> Offset {
        self.ends.get(shard.0 as usize).map_or(0, |end| end.load(Ordering::Acquire))
    }

    fn segments(&self) -> Vec<Arc<Segment>> {
        self.segments.read().map(|all| all.iter().cloned().collect()).unwrap_or_default()
    }

    /// Stamps a frame that is about to be written.
    fn stamp(&self) -> AppendStamp {
        // A poisoned lock is harmless: only the reading can panic, and that comes before the clock
        // changes.
        self.append_clock
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .stamp(self.options.clock.reading())
    }

    fn payload(
        &self,
        segment: &Segment,
        shard: ShardId,
        run: &RunLocation,
    ) -> Result<bytes::Bytes, LogError> {
        let cached = self.cache.lock().ok().and_then(|cache| cache.get(segment.header.number, run));
        let read = cached.map_or_else(|| segment.payload(run), Ok);
        read.map_err(|unread| match unread {
            RunReadError::Released => {
                LogError::Released { shard, from: run.first, start: segment.end(shard) }
            }
            RunReadError::Io(why) => LogError::Io(why),
            RunReadError::Corrupt(why) => LogError::Corrupt(why),
        })
    }

    fn lock_refusal(&self) -> std::sync::MutexGuard<'_, Option<AppendError>> {
        self.refusal.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn current_refusal(&self) -> Option<AppendError> {
        self.lock_refusal().clone()
    }

    /// Records why the disk refuses writes, or that it accepts them. Returns the previous state.
    fn set_refusal(&self, why: Option<AppendError>) -> Option<AppendError> {
        std::mem::replace(&mut *self.lock_refusal(), why)
    }
}

impl LogIdentity for EmbeddedLog {
    fn id(&self) -> LogId {
        self.shared.id
    }

    fn shard_count(&self) -> u32 {
        self.shared.options.shard_count
    }

    fn is_exclusive(&self) -> bool {
        self.shared.dir.is_some()
    }
}

impl LogAppender for EmbeddedLog {
    fn append(&self, request: AppendRequest) -> Result<AppendTicket, AppendError> {
        let (reply, ticket) = oneshot::channel();
        if let Some((shard, _)) =
            request.records.iter().find(|(shard, _)| shard.0 >= self.shard_count())
        {
            return Err(AppendError::Closed(format!("shard {shard} does not exist")));
        }
        self.shared.queue.push(request, reply, self.shared.options.max_waiting_bytes)?;
        Ok(ticket)
    }

    fn refuses(&self) -> Option<AppendError> {
        self.shared
            .queue
            .closed_reason()
            .map(AppendError::Closed)
            .or_else(|| self.shared.current_refusal())
    }

    fn close(&self) {
        self.shared.queue.close("the log is closing");
        // The writer still commits what is queued, and this waits for it.
        let thread = self.writer.lock().ok().and_then(|mut writer| writer.take());
        if thread.is_some_and(|thread| thread.join().is_err()) {
            tracing::error!(
                "the log's writer died; what was not acknowledged may or may not be durable"
            );
        }
    }
}

impl LogReader for EmbeddedLog {
    fn start(&self, shard: ShardId) -> Offset {
        // A damaged store may ask for a shard that does not exist.
        self.shared
            .segments()
            .first()
            .and_then(|s| s.header.first_offsets.get(shard.0 as usize).copied())
            .unwrap_or(0)
    }

    fn end(&self, shard: ShardId) -> Offset {
        self.shared.end(shard)
    }

    fn read(
        &self,
        shard: ShardId,
        from: Offset,
        max_bytes: usize,
    ) -> Result<Vec<LogRecord>, LogError> {
        let end = self.shared.end(shard);
        if from > end {
            return Err(LogError::BeyondEnd { shard, from, end });
        }
        let segments = self.shared.segments();
        let start = segments.first().map_or(0, |s| s.header.first_offsets[shard.0 as usize]);
        if from < start {
            return Err(LogError::Released { shard, from, start });
        }
        let mut records = Vec::new();
        let mut left = max_bytes as i64;
        for segment in segments.iter().filter(|s| s.end(shard) > from) {
            for run in segment.runs_from(shard, from, left.max(1) as usize) {
                let payload = self.shared.payload(segment, shard, &run)?;
                let damaged = || {
                    LogError::Corrupt(format!("{}: a run does not decode", segment.path.display()))
                };
                records.extend(frame::decode_records(&run, &payload, from).ok_or_else(damaged)?);
                left -= payload.len() as i64;
                if left <= 0 {
                    break;
                }
            }
            if left <= 0 {
                break;
            }
        }
        // The writer adds a frame's runs to the segment before it publishes the new end. Records
        // above the end that was loaded first have not been acknowledged.
        records.truncate(records.partition_point(|record| record.offset < end));
        Ok(records)
    }

    fn append_now(&self) -> Millis {
        self.shared.stamp().appended
    }
}

impl LogRetention for EmbeddedLog {
    fn release(&self, floors: &[Offset]) -> Result<u64, LogError> {
        let failed = |e: std::io::Error| LogError::Io(e.to_string());
        let Some(dir) = &self.shared.dir else { return Ok(0) };
        let mut freed = 0;
        loop {
            let mut segments = self
                .shared
                .segments
                .write()
                .map_err(|_| LogError::Io("the list of segments is lost".to_owned()))?;
            // The last segment is the one being written.
            let Some(oldest) = segments.front().filter(|_| segments.len() > 1).cloned() else {
                break;
            };
            let done = |(shard, &floor): (u32, &Offset)| oldest.end(ShardId(shard)) <= floor;
            if !(0u32..).zip(floors).all(done) || floors.len() != self.shared.ends.len() {
                break;
            }
            let size = oldest.size().map_err(failed)?;
            std::fs::remove_file(&oldest.path).map_err(failed)?;
            segments.pop_front();
            drop(segments);
            // Sync after every removal: if a crash kept the removal of a later segment only, the
            // next start would refuse the log for the gap. Readers need not wait for it.
            dir.sync().map_err(failed)?;
            freed += size;
        }
        Ok(freed)
    }

    fn bytes_on_disk(&self) -> u64 {
        self.shared.segments().iter().filter_map(|s| s.size().ok()).sum()
    }
}

impl ShardAssignment for EmbeddedLog {
    fn assignment(&self) -> watch::Receiver<Arc<BTreeSet<ShardId>>> {
        self.shared.assigned.subscribe()
    }
}

impl Drop for EmbeddedLog {
    fn drop(&mut self) {
        self.close();
    }
}
