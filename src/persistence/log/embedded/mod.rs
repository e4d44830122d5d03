//! The embedded log: one physical, segmented, group-committed log per data directory, shared by all shards.
//!
//! One thread writes: while one fdatasync runs, the next group of requests gathers, and becomes one frame, whole or not at all.
//! Frames are written and made durable strictly one after the other, so a crash can tear only the last one. A failed fdatasync
//! ends the log at once: what is on disk is then unknown, and only a start that reads it again may go on.

mod cache;
mod frame;
mod payload;
mod recovery;
mod segment;
mod writer;

#[cfg(test)]
mod tests;

use std::collections::{BTreeSet, VecDeque};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, RwLock};

use tokio::sync::{oneshot, watch};

use self::cache::TailCache;
pub use self::recovery::Recovery;
use self::segment::{Header, RunAt, Segment, sync_dir};
use self::writer::Queue;
use super::{AppendError, AppendRequest, AppendTicket, EventLog, LogError};
use crate::clock::Clock;
use crate::model::flush::LogRecord;
use crate::model::offset::{LogId, Offset, ShardId};

/// How a log is opened.
#[derive(Clone)]
pub struct LogOptions {
    /// Its directory.
    pub dir: PathBuf,
    /// Number of shards; a log that exists must have the same.
    pub shard_count: u32,
    /// A segment is sealed at this size.
    pub segment_bytes: u64,
    /// More bytes waiting than this, and appends are refused.
    pub max_waiting_bytes: u64,
    /// Payload bytes of one commit; the measured best lies between 256 KiB and 1 MiB.
    pub max_commit_bytes: usize,
    /// Bytes of recent records kept in memory for readers.
    pub tail_cache_bytes: usize,
    /// Identity given to a log that does not exist yet: random.
    pub log_id_if_new: [u8; 16],
    /// Time of append.
    pub clock: Arc<dyn Clock>,
}

struct Shared {
    id: LogId,
    salt: u32,
    options: LogOptions,
    segments: RwLock<VecDeque<Arc<Segment>>>,
    ends: Vec<AtomicU64>,
    cache: Mutex<TailCache>,
    queue: Queue,
    appended: watch::Sender<u64>,
    /// One process has the directory, so it owns every shard, for ever.
    assigned: watch::Sender<Arc<BTreeSet<ShardId>>>,
}

/// The embedded log.
pub struct EmbeddedLog {
    shared: Arc<Shared>,
    writer: Mutex<Option<std::thread::JoinHandle<()>>>,
}

impl EmbeddedLog {
    /// Opens or creates a log and starts its writer.
    ///
    /// # Errors
    /// If the directory cannot be used, or what is in it is damaged: names the file, the position and the way out.
    pub fn open(options: LogOptions) -> Result<(Arc<Self>, Recovery), String> {
        let named = |e: std::io::Error| format!("{}: {e}", options.dir.display());
        std::fs::create_dir_all(&options.dir).map_err(named)?;
        let found = recovery::find(&options.dir, true)?;
        let recovery = found.recovery;
        let (shared, position) = Self::shared(options, found, true)?;
        let thread = writer::start(shared.clone(), position)?;
        Ok((Arc::new(Self { shared, writer: Mutex::new(Some(thread)) }), recovery))
    }

    /// Reads a log that another process may be writing: everything durable at this moment, and no appends.
    ///
    /// # Errors
    /// As [`EmbeddedLog::open`], and if there is no log.
    pub fn open_read_only(dir: &std::path::Path, clock: Arc<dyn Clock>) -> Result<Arc<Self>, String> {
        let found = recovery::find(dir, false)?;
        let shard_count = found.segments.back().map_or(0, |s| s.header.firsts.len() as u32);
        if shard_count == 0 {
            return Err(format!("{}: there is no log", dir.display()));
        }
        let options = LogOptions {
            dir: dir.to_owned(),
            shard_count,
            segment_bytes: 0,
            max_waiting_bytes: 0,
            max_commit_bytes: 0,
            tail_cache_bytes: 0,
            log_id_if_new: [0; 16],
            clock,
        };
        let (shared, _) = Self::shared(options, found, false)?;
        shared.queue.close("it was opened to be read");
        Ok(Arc::new(Self { shared, writer: Mutex::new(None) }))
    }

    fn shared(
        options: LogOptions,
        mut found: recovery::Found,
        writable: bool,
    ) -> Result<(Arc<Shared>, writer::Position), String> {
        let shards = options.shard_count;
        if let Some(other) = found.segments.back().map(|s| s.header.firsts.len() as u32).filter(|&n| n != shards) {
            return Err(format!(
                "{}: this log has {other} shards, the configuration says shards.count = {shards}: the number is fixed when a \
                 data directory is created; set it back to {other}",
                options.dir.display()
            ));
        }
        let last = found.segments.back().cloned();
        let id = last.as_ref().map_or(LogId(options.log_id_if_new), |s| s.header.log);
        let end = |shard: u32| last.as_ref().map_or(0, |s| s.end(ShardId(shard)));
        let ends: Vec<Offset> = (0..shards).map(end).collect();
        if writable {
            Self::make_writable(&options, &mut found, id, &ends)?;
        }
        let position =
            writer::Position { at: found.position, sequence: found.sequence, appended: found.appended, ends: ends.clone() };
        let shared = Shared {
            id,
            salt: frame::salt(id),
            cache: Mutex::new(TailCache::new(options.tail_cache_bytes)),
            options,
            segments: RwLock::new(found.segments),
            ends: ends.into_iter().map(AtomicU64::new).collect(),
            queue: Queue::default(),
            appended: watch::Sender::new(0),
            assigned: watch::Sender::new(Arc::new((0..shards).map(ShardId).collect())),
        };
        Ok((Arc::new(shared), position))
    }

    /// Cuts a torn tail, or begins a segment where the last one is sealed or none is there.
    fn make_writable(options: &LogOptions, found: &mut recovery::Found, id: LogId, ends: &[Offset]) -> Result<(), String> {
        let named = |e: std::io::Error| format!("{}: {e}", options.dir.display());
        if let Some(last) = found.segments.back().filter(|_| !found.sealed) {
            let reserved = last.file.metadata().map_err(named)?.len();
            if found.recovery.torn_bytes > 0 {
                last.file.set_len(found.position).map_err(named)?;
                last.file.set_len(reserved).map_err(named)?;
                last.file.sync_all().map_err(named)?;
                tracing::warn!(bytes = found.recovery.torn_bytes, "cut a torn commit, never acknowledged, off the log");
            }
            return Ok(());
        }
        let number = found.segments.back().map_or(0, |s| s.header.number + 1);
        let header = Header { log: id, number, first_sequence: found.sequence, firsts: ends.to_vec() };
        found.position = Header::len(ends.len());
        let segment = Segment::create(&options.dir, header, options.segment_bytes).map_err(named)?;
        found.segments.push_back(Arc::new(segment));
        Ok(())
    }
}

impl Shared {
    fn end(&self, shard: ShardId) -> Offset {
        self.ends.get(shard.0 as usize).map_or(0, |end| end.load(Ordering::Acquire))
    }

    fn segments(&self) -> Vec<Arc<Segment>> {
        self.segments.read().map(|all| all.iter().cloned().collect()).unwrap_or_default()
    }

    fn payload(&self, segment: &Segment, run: &RunAt) -> Result<bytes::Bytes, LogError> {
        let cached = self.cache.lock().ok().and_then(|cache| cache.get(segment.header.number, run));
        cached.map_or_else(|| segment.payload(run).map_err(LogError::Corrupt), Ok)
    }
}

impl EventLog for EmbeddedLog {
    fn id(&self) -> LogId {
        self.shared.id
    }

    fn shard_count(&self) -> u32 {
        self.shared.options.shard_count
    }

    fn append(&self, request: AppendRequest) -> Result<AppendTicket, AppendError> {
        let (reply, ticket) = oneshot::channel();
        if let Some((shard, _)) = request.records.iter().find(|(shard, _)| shard.0 >= self.shard_count()) {
            return Err(AppendError::Closed(format!("shard {shard} does not exist")));
        }
        self.shared.queue.push(request, reply, self.shared.options.max_waiting_bytes)?;
        Ok(ticket)
    }

    fn start(&self, shard: ShardId) -> Offset {
        self.shared.segments().first().map_or(0, |s| s.header.firsts[shard.0 as usize])
    }

    fn end(&self, shard: ShardId) -> Offset {
        self.shared.end(shard)
    }

    fn assignment(&self) -> watch::Receiver<Arc<BTreeSet<ShardId>>> {
        self.shared.assigned.subscribe()
    }

    fn read(&self, shard: ShardId, from: Offset, max_bytes: usize) -> Result<Vec<LogRecord>, LogError> {
        let end = self.shared.end(shard);
        if from > end {
            return Err(LogError::BeyondEnd { shard, from, end });
        }
        let segments = self.shared.segments();
        let start = segments.first().map_or(0, |s| s.header.firsts[shard.0 as usize]);
        if from < start {
            return Err(LogError::Released { shard, from, start });
        }
        let mut records = Vec::new();
        let mut left = max_bytes as i64;
        for segment in segments.iter().filter(|s| s.end(shard) > from) {
            for run in segment.runs_from(shard, from, left.max(1) as usize) {
                let payload = self.shared.payload(segment, &run)?;
                let damaged = || LogError::Corrupt(format!("{}: a run does not decode", segment.path.display()));
                records.extend(frame::records_of(run.first, run.appended, &payload, from).ok_or_else(damaged)?);
                left -= payload.len() as i64;
                if left <= 0 {
                    break;
                }
            }
            if left <= 0 {
                break;
            }
        }
        // A frame is noted in its segment before its end is published: what is not yet acknowledged is not shown.
        records.truncate(records.partition_point(|record| record.offset < end));
        Ok(records)
    }

    fn release(&self, floors: &[Offset]) -> Result<u64, LogError> {
        let failed = |e: std::io::Error| LogError::Io(e.to_string());
        let mut freed = 0;
        loop {
            let mut segments =
                self.shared.segments.write().map_err(|_| LogError::Io("the list of segments is lost".to_owned()))?;
            let Some(oldest) = segments.front().filter(|_| segments.len() > 1).cloned() else { break };
            let done = |(shard, &floor): (u32, &Offset)| oldest.end(ShardId(shard)) <= floor;
            if !(0u32..).zip(floors).all(done) || floors.len() != self.shared.ends.len() {
                break;
            }
            freed += oldest.file.metadata().map_err(failed)?.len();
            std::fs::remove_file(&oldest.path).map_err(failed)?;
            segments.pop_front();
        }
        if freed > 0 {
            sync_dir(&self.shared.options.dir).map_err(failed)?;
        }
        Ok(freed)
    }

    fn appended(&self) -> watch::Receiver<u64> {
        self.shared.appended.subscribe()
    }

    fn bytes_on_disk(&self) -> u64 {
        self.shared.segments().iter().filter_map(|s| s.file.metadata().ok()).map(|m| m.len()).sum()
    }

    fn close(&self) {
        self.shared.queue.close("the log is closing");
        let thread = self.writer.lock().ok().and_then(|mut writer| writer.take());
        if thread.is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the log's writer died; what was not acknowledged may or may not be durable");
        }
    }
}

impl Drop for EmbeddedLog {
    fn drop(&mut self) {
        self.close();
    }
}
