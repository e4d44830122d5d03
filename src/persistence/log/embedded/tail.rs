//! The end of the log on disk: where the next frame goes, and how one segment ends and the next
//! begins.
//!
//! Memory always knows what is on disk, also after a step that failed. Steps that may need space,
//! inodes or descriptors come first and change nothing that exists: the next segment becomes
//! durable under a temporary name, then the last one gets its index, then the next one its final
//! name. A frame is written only over zeros. Anything else after the last frame is cut off first,
//! and if it may have been a commit, a copy becomes durable before that.
//!
//! A step that fails returns [`TailError::Refused`] if nothing of the frame is in the log, so that
//! it can be retried, and [`TailError::Fatal`] if the disk left open whether something is durable.

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::recovery::{RecoveredLog, TailContent};
use super::segment::{self, FOOTER_LEN, SealOutcome, Segment, SegmentHeader, UnpublishedSegment};
use crate::persistence::log::AppendError;

/// Minimum size of the smaller segments that are created when the disk is short of space.
const MIN_SEGMENT_BYTES: u64 = 1 << 20;
/// Minimum growth of an open segment that cannot be rolled yet.
const GROWTH_BYTES: u64 = 1 << 20;
/// Upper limit for a saved commit; more than the largest commit.
const MAX_SAVED_BYTES: u64 = 64 << 20;
/// Number of saved commits; a further one replaces the oldest.
const MAX_SAVED_COMMITS: usize = 8;
/// The extension of files that hold saved commits.
const DAMAGED_EXTENSION: &str = "damaged";

/// Why a step at the end of the log failed.
#[derive(Debug)]
pub(super) enum TailError {
    /// Nothing of it is in the log. A retry may succeed.
    Refused(AppendError),
    /// It is unknown what is durable. The log must stop.
    Fatal(String),
}

impl From<io::Error> for TailError {
    fn from(error: io::Error) -> Self {
        TailError::Refused(AppendError::from_io(&error))
    }
}

/// The state of the last segment's file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum TailState {
    /// Only zeros follow the last frame.
    Open,
    /// Something other than a frame may follow the last frame.
    Dirty {
        /// How many bytes of it may have been a commit and must be saved.
        to_save: u64,
    },
    /// The index follows the last frame.
    Sealed,
}

/// The log's directory. Held open, so that syncing it never needs a descriptor.
#[derive(Debug)]
pub(super) struct LogDir {
    path: PathBuf,
    file: File,
}

impl LogDir {
    /// Opens the directory. Fails if the disk or the process refuses.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        Ok(Self { path: path.to_owned(), file: File::open(path)? })
    }

    /// Makes creations, renames and removals in the directory durable. Fails with the
    /// error of the disk.
    pub(super) fn sync(&self) -> io::Result<()> {
        self.file.sync_all()
    }

    /// Free bytes of the file system, or `None` if it does not say.
    fn free(&self) -> Option<u64> {
        let stats = rustix::fs::fstatvfs(&self.file).ok()?;
        (stats.f_blocks > 0).then(|| stats.f_bavail.saturating_mul(stats.f_frsize))
    }

    /// How much a new segment reserves: `wanted`, or half of the free space if that is less. Store
    /// and archive need space too, and the log can free only what they have written.
    fn reserve(&self, wanted: u64, least: u64) -> Result<u64, TailError> {
        let reserve = self.free().map_or(wanted, |free| wanted.min(free / 2));
        if reserve < least { Err(TailError::Refused(AppendError::DiskFull)) } else { Ok(reserve) }
    }
}

/// The last segment and the position of the next frame.
pub(super) struct LogTail {
    dir: Arc<LogDir>,
    segment_bytes: u64,
    segment: Arc<Segment>,
    /// For writing the last segment. Opened on first use, because a disk that refuses writes
    /// can still be read.
    file: Option<Arc<File>>,
    /// Position of the next frame.
    at: u64,
    /// Reserved bytes of the last segment.
    capacity: u64,
    state: TailState,
}

impl LogTail {
    /// Creates the first segment of a new log.
    ///
    /// # Errors
    /// [`TailError::Refused`] if the disk refuses the segment, [`TailError::Fatal`] if
    /// syncing the directory fails.
    pub(super) fn create(
        dir: Arc<LogDir>,
        header: SegmentHeader,
        segment_bytes: u64,
    ) -> Result<Self, TailError> {
        let (segment, file, capacity) = create_segment(&dir, header, segment_bytes, 0)?;
        let at = SegmentHeader::len(segment.header.first_offsets.len());
        Ok(Self {
            dir,
            segment_bytes,
            segment,
            file: Some(file),
            at,
            capacity,
            state: TailState::Open,
        })
    }

    /// The end of an existing log, whose last segment is `segment`. Fails if the
    /// segment's file is missing.
    pub(super) fn open(
        dir: Arc<LogDir>,
        segment: Arc<Segment>,
        found: &RecoveredLog,
        segment_bytes: u64,
    ) -> io::Result<Self> {
        let state = match found.tail {
            TailContent::Empty => TailState::Open,
            TailContent::TornCommit(to_save) => TailState::Dirty { to_save },
            TailContent::PartialIndex => TailState::Dirty { to_save: 0 },
            TailContent::SealedIndex => TailState::Sealed,
        };
        let capacity = segment.size()?.min(segment_bytes).max(found.position);
        Ok(Self { dir, segment_bytes, segment, file: None, at: found.position, capacity, state })
    }

    /// The segment that the next frame goes into.
    pub(super) fn segment(&self) -> &Arc<Segment> {
        &self.segment
    }

    /// False if an older release wrote the last segment: it would cut off frames of this version,
    /// so the segment gets no more.
    fn accepts_frames(&self) -> bool {
        self.segment.header.version == segment::VERSION
    }

    /// Whether a frame of this length fits into the last segment.
    fn fits(&self, len: u64) -> bool {
        self.state == TailState::Open
            && self.accepts_frames()
            && self.at + len + FOOTER_LEN as u64 <= self.capacity
    }

    /// Checks that the disk accepts a frame of this length, as far as possible without writing one:
    /// makes room for it and writes zeros over zeros. Returns the segment that was started, if any.
    ///
    /// # Errors
    /// As for [`Self::make_room`].
    pub(super) fn probe(
        &mut self,
        len: u64,
        header: impl FnOnce(u64) -> SegmentHeader,
    ) -> Result<Option<Arc<Segment>>, TailError> {
        let new_segment = self.make_room(len, header)?;
        let at = self.at;
        self.writable_file()?.write_all_at(&[0; FOOTER_LEN], at)?;
        Ok(new_segment)
    }

    /// Makes room for a frame of this length. Returns the segment that was started for it, if any.
    /// `header` makes the header of the segment with the given number.
    ///
    /// # Errors
    /// [`TailError::Refused`] if the disk refuses, [`TailError::Fatal`] if a sync fails.
    pub(super) fn make_room(
        &mut self,
        len: u64,
        header: impl FnOnce(u64) -> SegmentHeader,
    ) -> Result<Option<Arc<Segment>>, TailError> {
        self.truncate_dirty()?;
        if self.fits(len) {
            return Ok(None);
        }
        // A segment without frames is extended: a roll would leave an empty one behind.
        if self.state == TailState::Open
            && self.accepts_frames()
            && self.at == SegmentHeader::len(self.segment.header.first_offsets.len())
        {
            self.extend(len)?;
            return Ok(None);
        }
        match self.roll(len, header(self.segment.header.number + 1)) {
            // Others may have used up the descriptors. The log must not stop for that, so this
            // segment grows beyond its size.
            Err(TailError::Refused(AppendError::NoDescriptors))
                if self.state == TailState::Open
                    && self.accepts_frames()
                    && self.file.is_some() =>
            {
                self.extend(len)?;
                Ok(None)
            }
            Err(failure) => Err(failure),
            Ok(()) => Ok(Some(self.segment.clone())),
        }
    }

    /// Writes a frame that there is room for and syncs it. Returns its position.
    ///
    /// # Errors
    /// [`TailError::Refused`] if the write fails, [`TailError::Fatal`] if the sync fails.
    pub(super) fn write(&mut self, frame: &[u8]) -> Result<u64, TailError> {
        let at = self.at;
        let file = self.writable_file()?;
        if let Err(error) = file.write_all_at(frame, at) {
            self.state = TailState::Dirty { to_save: 0 };
            self.try_truncate_dirty();
            return Err(error.into());
        }
        // Never retried: the kernel may have dropped the dirty pages, so a second sync would lie.
        file.sync_data().map_err(|e| TailError::Fatal(format!("fdatasync failed: {e}")))?;
        self.at = at + frame.len() as u64;
        Ok(at)
    }

    fn writable_file(&mut self) -> io::Result<Arc<File>> {
        if let Some(file) = &self.file {
            return Ok(file.clone());
        }
        let file = Arc::new(File::options().read(true).write(true).open(&self.segment.path)?);
        self.segment.set_open_file(Some(file.clone()));
        self.file = Some(file.clone());
        Ok(file)
    }

    /// Reserves more space in the last segment.
    fn extend(&mut self, len: u64) -> Result<(), TailError> {
        let end = self.at + (len + FOOTER_LEN as u64).max(GROWTH_BYTES.min(self.segment_bytes));
        segment::reserve(&*self.writable_file()?, end)?;
        self.capacity = self.capacity.max(end);
        Ok(())
    }

    /// Seals the last segment and starts the next one.
    fn roll(&mut self, len: u64, header: SegmentHeader) -> Result<(), TailError> {
        // Reserves the next segment before it seals this one: without space for it, nothing
        // changes.
        let unpublished = prepare_segment(&self.dir, header, self.segment_bytes, len)?;
        if self.state == TailState::Open {
            let file = self.writable_file()?;
            match self.segment.seal(&file, self.at) {
                SealOutcome::Durable => self.state = TailState::Sealed,
                SealOutcome::Partial(error) => {
                    self.state = TailState::Dirty { to_save: 0 };
                    self.try_truncate_dirty();
                    return Err(error.into());
                }
                SealOutcome::Unknown(error) => {
                    return Err(TailError::Fatal(format!("fsync of an index failed: {error}")));
                }
            }
        }
        let (segment, file, capacity) = publish_segment(&self.dir, unpublished)?;
        self.segment.set_open_file(None);
        self.at = SegmentHeader::len(segment.header.first_offsets.len());
        (self.segment, self.file, self.capacity, self.state) =
            (segment, Some(file), capacity, TailState::Open);
        Ok(())
    }

    /// Cleans up after a failed write, if possible. Otherwise the next write does it.
    fn try_truncate_dirty(&mut self) {
        if let Err(why) = self.truncate_dirty() {
            tracing::debug!(?why, "what a failed write left is cut off before the next one");
        }
    }

    /// Cuts off anything other than a frame after the last frame.
    fn truncate_dirty(&mut self) -> Result<(), TailError> {
        let TailState::Dirty { to_save } = self.state else { return Ok(()) };
        let file = self.writable_file()?;
        if to_save > 0 {
            let kept = save_damaged(&self.dir, &self.segment, &file, self.at, to_save)?;
            tracing::warn!(
                segment = %self.segment.path.display(), byte = self.at, bytes = to_save,
                kept_in = %kept.display(),
                "cut a damaged or torn commit off the log: if it was torn it was never \
                 acknowledged, and if the disk damaged it, it may have been"
            );
            // The copy is durable: if the cut fails, the retry must not save it again.
            self.state = TailState::Dirty { to_save: 0 };
        }
        file.set_len(self.at)?;
        // The file must be zeros after the last frame, even if the disk has no blocks for them: a
        // write that fails there is cut off again.
        file.set_len(self.capacity.max(self.at + FOOTER_LEN as u64))?;
        file.sync_all().map_err(|e| TailError::Fatal(format!("fsync of a cut failed: {e}")))?;
        self.state = TailState::Open;
        Ok(())
    }
}

fn prepare_segment(
    dir: &LogDir,
    header: SegmentHeader,
    segment_bytes: u64,
    len: u64,
) -> Result<(UnpublishedSegment, u64), TailError> {
    let floor = SegmentHeader::len(header.first_offsets.len()) + len + FOOTER_LEN as u64;
    let wanted = segment_bytes.max(floor);
    let reserve = dir.reserve(wanted, floor.max(MIN_SEGMENT_BYTES.min(segment_bytes)))?;
    Ok((UnpublishedSegment::create(&dir.path, header, reserve)?, reserve))
}

fn publish_segment(
    dir: &LogDir,
    (unpublished, capacity): (UnpublishedSegment, u64),
) -> Result<(Arc<Segment>, Arc<File>, u64), TailError> {
    // If the sync fails, it is unknown whether a crash would keep the rename.
    let (segment, file) = unpublished.publish()?;
    dir.sync()
        .map_err(|e| TailError::Fatal(format!("fsync of the log's directory failed: {e}")))?;
    Ok((Arc::new(segment), file, capacity))
}

fn create_segment(
    dir: &LogDir,
    header: SegmentHeader,
    segment_bytes: u64,
    len: u64,
) -> Result<(Arc<Segment>, Arc<File>, u64), TailError> {
    publish_segment(dir, prepare_segment(dir, header, segment_bytes, len)?)
}

/// Copies a damaged commit into a file next to the segments, durably.
fn save_damaged(
    dir: &LogDir,
    segment: &Segment,
    file: &File,
    at: u64,
    bytes: u64,
) -> io::Result<PathBuf> {
    let mut commit = vec![0; bytes.min(MAX_SAVED_BYTES) as usize];
    file.read_exact_at(&mut commit, at)?;
    let stem = format!("{:012}-{at:012}", segment.header.number);
    let mut path = dir.path.join(format!("{stem}.{DAMAGED_EXTENSION}"));
    for n in 1..MAX_SAVED_COMMITS {
        match std::fs::read(&path) {
            // Saved by an attempt that failed before the cut.
            Ok(kept) if kept == commit => break,
            // Another commit was saved from the same position.
            Ok(_) => path = dir.path.join(format!("{stem}-{n}.{DAMAGED_EXTENSION}")),
            Err(error) if error.kind() == io::ErrorKind::NotFound => break,
            Err(error) => return Err(error),
        }
    }
    let mut others: Vec<_> = std::fs::read_dir(&dir.path)?
        .filter_map(|entry| entry.ok().map(|entry| entry.path()))
        .filter(|other| other.extension().is_some_and(|e| e == DAMAGED_EXTENSION) && *other != path)
        .collect();
    others.sort();
    let surplus = (others.len() + 1).saturating_sub(MAX_SAVED_COMMITS);
    others.iter().take(surplus).try_for_each(std::fs::remove_file)?;
    let copy = File::options().create(true).truncate(true).write(true).mode(0o600).open(&path)?;
    copy.write_all_at(&commit, 0)?;
    copy.sync_all()?;
    dir.sync()?;
    Ok(path)
}

/// Saves and cuts off the damaged last commit of a log that no process has open. Returns the file
/// that holds it and its size in bytes, or `None` if there is no such commit. Fails with the
/// error of the disk.
pub(super) fn truncate_tail(
    dir: &Path,
    found: &RecoveredLog,
) -> Result<Option<(PathBuf, u64)>, String> {
    let (Some(segment), TailContent::TornCommit(bytes)) = (found.segments.back(), found.tail)
    else {
        return Ok(None);
    };
    let named = |e: io::Error| format!("{}: {e}", segment.path.display());
    let dir = LogDir::open(dir).map_err(named)?;
    let file = File::options().read(true).write(true).open(&segment.path).map_err(named)?;
    let kept = save_damaged(&dir, segment, &file, found.position, bytes).map_err(named)?;
    let len = file.metadata().map_err(named)?.len();
    let cut = file
        .set_len(found.position)
        .and_then(|()| file.set_len(len))
        .and_then(|()| file.sync_all());
    cut.map_err(named)?;
    Ok(Some((kept, bytes)))
}
