//! Segment files: a header, frames and, once sealed, the index of all runs with a footer.
//!
//! Header, 64 bytes and 8 per shard, padded: magic `RMLOGSEG`, version (4), shard count (4), log id
//! (16), segment number (8), sequence number of the first frame (8), CRC32C of all that and of the
//! offsets (4), zero (4), append time of the last frame before the segment (8); then the first
//! offset of each shard. In a sealed segment, the last frame is followed by the index (48 bytes per
//! run; 40 before version 3, without the received time) and 32 bytes of footer: magic `RMLOGEND`,
//! position of the index (8), number of runs (8), CRC32C of the index (4), CRC32C of the footer
//! (4).

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use super::frame::{Frame, RunLocation, aligned};
use super::payload::decompress;
use crate::model::offset::{LogId, Offset, ShardId};

const MAGIC: &[u8; 8] = b"RMLOGSEG";
const END_MAGIC: &[u8; 8] = b"RMLOGEND";
/// Version 2 may contain compressed runs and is otherwise the same as version 1. Version 3 contains
/// frames of version 2, and its index has the received time. Segments of an older version take no
/// frames of version 2, because an older release would cut them off.
pub(super) const VERSION: u32 = 3;
const WITH_RECEIVED: u32 = 3;
const OLDEST_VERSION: u32 = 1;
const FIXED_LEN: usize = 64;
const ENTRY_LEN: usize = 48;
const OLD_ENTRY_LEN: usize = 40;
/// Length of the footer. As many bytes stay zero after the last frame of an open segment, so that
/// nothing a client sent can pass for a footer.
pub(super) const FOOTER_LEN: usize = 32;
/// The extension of files that a start reads.
pub(super) const EXTENSION: &str = "seg";
/// The extension of segments that are not published yet, which a start ignores.
const TEMP_EXTENSION: &str = "seg-new";

/// The header of a segment file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct SegmentHeader {
    /// [`VERSION`], unless an older release wrote the segment.
    pub version: u32,
    pub log: LogId,
    /// Number of the segment, from 0.
    pub number: u64,
    /// Sequence number of the first frame.
    pub first_sequence: u64,
    /// Append time of the last frame before the segment; 0 if there was none, or an older
    /// release wrote the segment.
    pub appended: i64,
    /// For each shard, the offset of its first record in this segment or a later one.
    pub first_offsets: Vec<Offset>,
}

impl SegmentHeader {
    /// The header of a log's first segment.
    pub(super) fn first(log: LogId, first_sequence: u64, firsts: Vec<Offset>) -> Self {
        Self {
            version: VERSION,
            log,
            number: 0,
            first_sequence,
            appended: 0,
            first_offsets: firsts,
        }
    }

    /// Length of the header, which is the position of the first frame.
    pub(super) fn len(shards: usize) -> u64 {
        aligned(FIXED_LEN + shards * 8) as u64
    }

    pub(super) fn encode(&self) -> Vec<u8> {
        let mut out = vec![0; Self::len(self.first_offsets.len()) as usize];
        out[..8].copy_from_slice(MAGIC);
        out[8..12].copy_from_slice(&self.version.to_le_bytes());
        out[12..16].copy_from_slice(&(self.first_offsets.len() as u32).to_le_bytes());
        out[16..32].copy_from_slice(&self.log.0);
        out[32..40].copy_from_slice(&self.number.to_le_bytes());
        out[40..48].copy_from_slice(&self.first_sequence.to_le_bytes());
        out[56..64].copy_from_slice(&self.appended.to_le_bytes());
        for (slot, first) in out[FIXED_LEN..].chunks_exact_mut(8).zip(&self.first_offsets) {
            slot.copy_from_slice(&first.to_le_bytes());
        }
        let crc = crc32c::crc32c(&out);
        out[48..52].copy_from_slice(&crc.to_le_bytes());
        out
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<Self, String> {
        let fixed = bytes.get(..FIXED_LEN).ok_or("the header is cut off")?;
        if &fixed[..8] != MAGIC {
            return Err("this is no segment of a Rollmill log".to_owned());
        }
        let version = u64_at(fixed, 8) as u32;
        if !(OLDEST_VERSION..=VERSION).contains(&version) {
            return Err(format!(
                "segment version {version} is unknown, this build reads {OLDEST_VERSION} to \
                 {VERSION}: start the version of Rollmill that wrote it"
            ));
        }
        let shards = (u64_at(fixed, 8) >> 32) as usize;
        let mut whole =
            bytes.get(..Self::len(shards) as usize).ok_or("the header is cut off")?.to_vec();
        let crc = u64_at(&whole, 48) as u32;
        whole[48..52].fill(0);
        if crc32c::crc32c(&whole) != crc {
            return Err("the header is damaged".to_owned());
        }
        let mut log = [0; 16];
        log.copy_from_slice(&whole[16..32]);
        let firsts = (0..shards).map(|shard| u64_at(&whole, FIXED_LEN + shard * 8)).collect();
        let (number, first_sequence, appended) =
            (u64_at(&whole, 32), u64_at(&whole, 40), u64_at(&whole, 56).cast_signed());
        Ok(Self {
            version,
            log: LogId(log),
            number,
            first_sequence,
            appended,
            first_offsets: firsts,
        })
    }
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let mut word = [0; 8];
    word.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(word)
}

/// A segment file and its index.
#[derive(Debug)]
pub(super) struct Segment {
    pub path: PathBuf,
    pub header: SegmentHeader,
    /// The open file of the newest segment. Older ones are opened for each read, so that a long log
    /// does not exhaust the file descriptors.
    open_file: Mutex<Option<Arc<File>>>,
    /// By shard, in offset order.
    runs: RwLock<Vec<Vec<RunLocation>>>,
}

/// A durable segment under a temporary name, which a start ignores.
pub(super) struct UnpublishedSegment {
    header: SegmentHeader,
    path: PathBuf,
    temp_path: PathBuf,
    file: File,
}

impl UnpublishedSegment {
    /// Writes an empty segment under a temporary name. Reserves its blocks, so that a full disk
    /// shows here and not in the middle of a commit. Fails if the disk refuses. A temporary file
    /// may be left; the next attempt overwrites it.
    pub(super) fn create(dir: &Path, header: SegmentHeader, reserve: u64) -> io::Result<Self> {
        let path = Segment::path(dir, header.number);
        let temp_path = path.with_extension(TEMP_EXTENSION);
        let made = (|| {
            let file = File::options()
                .create(true)
                .truncate(true)
                .read(true)
                .write(true)
                .mode(0o600)
                .open(&temp_path)?;
            self::reserve(
                &file,
                reserve.max(SegmentHeader::len(header.first_offsets.len()) + FOOTER_LEN as u64),
            )?;
            file.write_all_at(&header.encode(), 0)?;
            // Durable before it gets its final name.
            file.sync_all()?;
            Ok(file)
        })();
        match made {
            Ok(file) => Ok(Self { header, path, temp_path, file }),
            Err(error) => {
                if let Err(left) = std::fs::remove_file(&temp_path) {
                    tracing::debug!(
                        %left,
                        path = %temp_path.display(),
                        "an unfinished segment stays; the next attempt writes over it"
                    );
                }
                Err(error)
            }
        }
    }

    /// Renames the segment to its final name. Durable only after [`super::tail::LogDir::sync`].
    /// Fails if the disk refuses. Nothing has changed then.
    pub(super) fn publish(self) -> io::Result<(Segment, Arc<File>)> {
        std::fs::rename(&self.temp_path, &self.path)?;
        let file = Arc::new(self.file);
        let segment = Segment::of(self.path, self.header);
        segment.set_open_file(Some(file.clone()));
        Ok((segment, file))
    }
}

/// Reserves the blocks up to `end`. If the file system cannot reserve, only extends the file. Fails
/// if the disk refuses.
pub(super) fn reserve(file: &File, end: u64) -> io::Result<()> {
    match rustix::fs::fallocate(file, rustix::fs::FallocateFlags::empty(), 0, end) {
        Err(rustix::io::Errno::OPNOTSUPP) => file.set_len(end),
        other => Ok(other?),
    }
}

/// The result of sealing a segment.
pub(super) enum SealOutcome {
    /// Index and footer are durable.
    Durable,
    /// Some of the index may be after the last frame.
    Partial(io::Error),
    /// The sync failed: the index may or may not be durable.
    Unknown(io::Error),
}

impl Segment {
    /// The path of the segment with this number.
    pub(super) fn path(dir: &Path, number: u64) -> PathBuf {
        dir.join(format!("{number:012}.{EXTENSION}"))
    }

    fn of(path: PathBuf, header: SegmentHeader) -> Self {
        let runs = RwLock::new(vec![Vec::new(); header.first_offsets.len()]);
        Self { path, header, open_file: Mutex::new(None), runs }
    }

    /// Opens a segment for reading and reads its header. Fails if it cannot be read or
    /// its header is invalid.
    pub(super) fn open(path: &Path) -> Result<Self, String> {
        let named = |why: String| format!("{}: {why}", path.display());
        let file = File::open(path).map_err(|e| named(e.to_string()))?;
        let mut start = vec![0; FIXED_LEN];
        read_some(&file, &mut start, 0).map_err(|e| named(e.to_string()))?;
        let shards = (u64_at(&start, 8) >> 32) as usize;
        // The shard count is not verified yet: a damaged one must not size the buffer.
        start.resize((SegmentHeader::len(shards) as usize).min(1 << 20), 0);
        read_some(&file, &mut start, 0).map_err(|e| named(e.to_string()))?;
        let segment = Self::of(path.to_owned(), SegmentHeader::decode(&start).map_err(named)?);
        segment.set_open_file(Some(Arc::new(file)));
        Ok(segment)
    }

    /// Sets the file that readers share, or `None` to let each of them open it.
    pub(super) fn set_open_file(&self, file: Option<Arc<File>>) {
        *self.open_file.lock().unwrap_or_else(PoisonError::into_inner) = file;
    }

    /// The file, for reading. Fails if it cannot be opened, for example because
    /// the segment was released.
    pub(super) fn file(&self) -> io::Result<Arc<File>> {
        let held = self.open_file.lock().unwrap_or_else(PoisonError::into_inner).clone();
        held.map_or_else(|| File::open(&self.path).map(Arc::new), Ok)
    }

    /// Size of the file in bytes. Fails if the segment was released.
    pub(super) fn size(&self) -> io::Result<u64> {
        Ok(std::fs::metadata(&self.path)?.len())
    }

    /// Adds the runs of the frame at `position` to the index in memory.
    pub(super) fn add_runs(&self, position: u64, frame: &Frame) {
        if let Ok(mut runs) = self.runs.write() {
            for run in &frame.runs {
                let at = RunLocation {
                    first: run.first,
                    records: run.records,
                    len: run.len as u32,
                    at: position + run.at as u64,
                    appended: frame.stamp.appended,
                    received: frame.stamp.clocks.wall,
                    crc: run.crc,
                };
                runs[run.shard.0 as usize].push(at);
            }
        }
    }

    /// Exclusive end of the shard in this segment.
    pub(super) fn end(&self, shard: ShardId) -> Offset {
        let last = self.runs.read().ok().and_then(|runs| runs[shard.0 as usize].last().copied());
        last.map_or(self.header.first_offsets[shard.0 as usize], |run| {
            run.first + u64::from(run.records)
        })
    }

    /// Append time of the last frame, if there is one.
    pub(super) fn last_appended(&self) -> Option<i64> {
        let runs = self.runs.read().ok()?;
        runs.iter().filter_map(|runs| runs.last()).map(|run| run.appended).max()
    }

    /// The runs of a shard, starting with the one that contains `from`: about `max_bytes` in total,
    /// and at least one if there is any.
    pub(super) fn runs_from(
        &self,
        shard: ShardId,
        from: Offset,
        max_bytes: usize,
    ) -> Vec<RunLocation> {
        let Ok(runs) = self.runs.read() else { return Vec::new() };
        let runs = &runs[shard.0 as usize];
        let first = runs.partition_point(|run| run.first + u64::from(run.records) <= from);
        let mut left = max_bytes as i64;
        runs[first..]
            .iter()
            .take_while(|run| {
                let take = left > 0;
                left -= i64::from(run.len);
                take
            })
            .copied()
            .collect()
    }

    /// Length of an index entry in this segment's version.
    fn entry_len(&self) -> usize {
        if self.header.version >= WITH_RECEIVED { ENTRY_LEN } else { OLD_ENTRY_LEN }
    }

    /// Reads the records of a run, verifies and decompresses them. Fails if the run cannot be
    /// read or is damaged.
    pub(super) fn payload(&self, run: &RunLocation) -> Result<bytes::Bytes, RunReadError> {
        let mut payload = vec![0; run.len as usize];
        let named = |why: String| format!("{} at byte {}: {why}", self.path.display(), run.at);
        // Retention may delete the file while a reader still holds the segment.
        let file = self.file().map_err(|e| match e.kind() {
            io::ErrorKind::NotFound => RunReadError::Released,
            _ => RunReadError::Io(named(e.to_string())),
        })?;
        file.read_exact_at(&mut payload, run.at).map_err(|e| match e.kind() {
            // The index knows bytes that the file has lost.
            io::ErrorKind::UnexpectedEof => RunReadError::Corrupt(named(e.to_string())),
            _ => RunReadError::Io(named(e.to_string())),
        })?;
        if crc32c::crc32c(&payload) != run.crc {
            return Err(RunReadError::Corrupt(named(
                "the records are damaged (checksum)".to_owned(),
            )));
        }
        decompress(payload.into())
            .ok_or_else(|| RunReadError::Corrupt(named("the records do not decompress".to_owned())))
    }

    /// Writes index and footer after the last frame, truncates the reserved rest
    /// and syncs the file.
    pub(super) fn seal(&self, file: &File, end: u64) -> SealOutcome {
        let index = self.index(end);
        if let Err(error) =
            file.write_all_at(&index, end).and_then(|()| file.set_len(end + index.len() as u64))
        {
            return SealOutcome::Partial(error);
        }
        // One sync covers the index and the new length.
        file.sync_all().map_or_else(SealOutcome::Unknown, |()| SealOutcome::Durable)
    }

    /// The bytes of index and footer for frames that end at `end`.
    pub(super) fn index(&self, end: u64) -> Vec<u8> {
        let mut out = Vec::new();
        let mut count = 0u64;
        if let Ok(runs) = self.runs.read() {
            for (shard, run) in (0u32..)
                .zip(runs.iter())
                .flat_map(|(shard, runs)| runs.iter().map(move |run| (shard, run)))
            {
                out.extend_from_slice(&shard.to_le_bytes());
                out.extend_from_slice(&run.records.to_le_bytes());
                out.extend_from_slice(&run.first.to_le_bytes());
                out.extend_from_slice(&run.at.to_le_bytes());
                out.extend_from_slice(&run.appended.to_le_bytes());
                out.extend_from_slice(&run.len.to_le_bytes());
                out.extend_from_slice(&run.crc.to_le_bytes());
                if self.entry_len() == ENTRY_LEN {
                    out.extend_from_slice(&run.received.to_le_bytes());
                }
                count += 1;
            }
        }
        let index_crc = crc32c::crc32c(&out);
        let at = out.len();
        out.extend_from_slice(END_MAGIC);
        out.extend_from_slice(&end.to_le_bytes());
        out.extend_from_slice(&count.to_le_bytes());
        out.extend_from_slice(&index_crc.to_le_bytes());
        let crc = crc32c::crc32c(&out[at..]);
        out.extend_from_slice(&crc.to_le_bytes());
        out
    }

    /// Loads the index of a sealed segment into memory. Fails if the file cannot be read, or the
    /// index does not fit the header.
    pub(super) fn load_index(&self) -> Result<IndexState, String> {
        let named = |why: &str| format!("{}: {why}", self.path.display());
        let file = self.file().map_err(|e| named(&e.to_string()))?;
        let size = file.metadata().map_err(|e| named(&e.to_string()))?.len();
        let Some(at) = size.checked_sub(FOOTER_LEN as u64) else { return Ok(IndexState::Absent) };
        let mut footer = [0; FOOTER_LEN];
        file.read_exact_at(&mut footer, at).map_err(|e| named(&e.to_string()))?;
        if &footer[..8] != END_MAGIC {
            return Ok(IndexState::Absent);
        }
        let (position, count) = (u64_at(&footer, 8), u64_at(&footer, 16));
        // The index must end exactly where the footer begins.
        if crc32c::crc32c(&footer[..28]) != (u64_at(&footer, 24) >> 32) as u32
            || position.checked_add(count.saturating_mul(self.entry_len() as u64)) != Some(at)
        {
            return Ok(IndexState::Damaged { position: None });
        }
        let mut index = vec![0; (at - position) as usize];
        file.read_exact_at(&mut index, position).map_err(|e| named(&e.to_string()))?;
        if crc32c::crc32c(&index) != u64_at(&footer, 24) as u32 {
            return Ok(IndexState::Damaged { position: Some(position) });
        }
        if let Ok(mut runs) = self.runs.write() {
            for entry in index.chunks_exact(self.entry_len()) {
                let (words, lengths) = (u64_at(entry, 0), u64_at(entry, 32));
                let appended = u64_at(entry, 24).cast_signed();
                let run = RunLocation {
                    first: u64_at(entry, 8),
                    records: (words >> 32) as u32,
                    len: lengths as u32,
                    at: u64_at(entry, 16),
                    appended,
                    // Before version 3 there was one time, which was both.
                    received: if entry.len() == ENTRY_LEN {
                        u64_at(entry, 40).cast_signed()
                    } else {
                        appended
                    },
                    crc: (lengths >> 32) as u32,
                };
                runs.get_mut(words as u32 as usize)
                    .ok_or_else(|| named("the index names an unknown shard"))?
                    .push(run);
            }
        }
        Ok(IndexState::Loaded)
    }
}

/// What was found where the index of a segment belongs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names say it")]
pub(super) enum IndexState {
    /// No footer, as in the segment that was written last.
    Absent,
    /// The index is in memory.
    Loaded,
    /// There is a footer, but the footer or the index is not as written.
    Damaged {
        /// The end of the frames when it was written, if the footer is intact.
        position: Option<u64>,
    },
}

/// Why a run could not be read.
pub(super) enum RunReadError {
    /// The segment was released.
    Released,
    /// The disk or the process refused, for example for lack of file descriptors.
    Io(String),
    /// The bytes are not those that were written.
    Corrupt(String),
}

/// Reads until the buffer is full or the file ends. Leaves the rest of the buffer unchanged.
fn read_some(file: &File, buffer: &mut [u8], position: u64) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match file.read_at(&mut buffer[filled..], position + filled as u64)? {
            0 => break,
            n => filled += n,
        }
    }
    Ok(filled)
}
