//! The end of the log on disk: where the next frame goes, and how a segment ends and the next one
//! begins.
//!
//! What always holds: memory knows what stands on disk after every step, also after one that
//! failed. Whatever may need space, inodes or descriptors comes first and changes nothing that is
//! there: the next segment is made durable under another name, then the last one gets its index,
//! then the next one its name. A frame is written only where nothing but zeros stands. What stands
//! there and is no frame is cut off first; of what may have been a commit, a copy is made durable
//! before.
//!
//! On failure: [`TailError::Refused`] if nothing of the frame is in the log, and it may be tried
//! again; [`TailError::Fatal`] if the disk did not say whether something is durable.

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::recovery::{RecoveredLog, TailContent};
use super::segment::{self, FOOTER_LEN, SealOutcome, Segment, SegmentHeader, UnpublishedSegment};
use crate::persistence::log::AppendError;

/// Segments that are made smaller, because the disk has little space, are at least so large.
const MIN_SEGMENT_BYTES: u64 = 1 << 20;
/// An open segment that cannot end yet grows by so much at least.
const GROWTH_BYTES: u64 = 1 << 20;
/// Most bytes of a damaged commit that are kept: more than a commit has.
const MAX_SAVED_BYTES: u64 = 64 << 20;
/// Damaged commits that are kept; the oldest goes when there is another.
const MAX_SAVED_COMMITS: usize = 8;
/// What files of damaged commits are called.
const DAMAGED_EXTENSION: &str = "damaged";

/// Why a step failed.
#[derive(Debug)]
pub(super) enum TailError {
    /// Nothing of it is in the log; it may work later.
    Refused(AppendError),
    /// The log cannot go on.
    Fatal(String),
}

impl From<io::Error> for TailError {
    fn from(error: io::Error) -> Self {
        TailError::Refused(AppendError::from_io(&error))
    }
}

/// What the file of the last segment is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum TailState {
    /// Nothing stands behind the last frame.
    Open,
    /// Something that is no frame may stand there; so many bytes of it may have been a commit.
    Dirty {
        /// Bytes to keep.
        aside: u64,
    },
    /// The index stands there.
    Sealed,
}

/// The directory of the log, held open, because making an entry durable must not need a descriptor.
#[derive(Debug)]
pub(super) struct LogDir {
    path: PathBuf,
    file: File,
}

impl LogDir {
    /// Opens it.
    ///
    /// # Errors
    /// If the disk or the process refuses.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        Ok(Self { path: path.to_owned(), file: File::open(path)? })
    }

    /// Makes creations, renamings and removals in it durable.
    ///
    /// # Errors
    /// If the disk refuses.
    pub(super) fn sync(&self) -> io::Result<()> {
        self.file.sync_all()
    }

    /// Bytes that are free; `None` where the file system does not say.
    fn free(&self) -> Option<u64> {
        let stats = rustix::fs::fstatvfs(&self.file).ok()?;
        (stats.f_blocks > 0).then(|| stats.f_bavail.saturating_mul(stats.f_frsize))
    }

    /// How much a new segment reserves: what is wanted, or half of what is free, because store and
    /// archive need space too, and only what they have written is ever released.
    fn reserve(&self, wanted: u64, least: u64) -> Result<u64, TailError> {
        let reserve = self.free().map_or(wanted, |free| wanted.min(free / 2));
        if reserve < least { Err(TailError::Refused(AppendError::DiskFull)) } else { Ok(reserve) }
    }
}

/// The end of the log.
pub(super) struct LogTail {
    dir: Arc<LogDir>,
    segment_bytes: u64,
    segment: Arc<Segment>,
    /// To write the last segment; opened when it is needed, because a disk that takes no writes
    /// can still be read.
    file: Option<Arc<File>>,
    at: u64,
    capacity: u64,
    state: TailState,
}

impl LogTail {
    /// The first segment of a new log.
    ///
    /// # Errors
    /// See [`TailError`].
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

    /// The end of a log that is there, whose last segment is `segment`.
    ///
    /// # Errors
    /// If the segment is gone.
    pub(super) fn open(
        dir: Arc<LogDir>,
        segment: Arc<Segment>,
        found: &RecoveredLog,
        segment_bytes: u64,
    ) -> io::Result<Self> {
        let state = match found.tail {
            TailContent::Empty => TailState::Open,
            TailContent::TornCommit(aside) => TailState::Dirty { aside },
            TailContent::PartialIndex => TailState::Dirty { aside: 0 },
            TailContent::SealedIndex => TailState::Sealed,
        };
        let capacity = segment.size()?.min(segment_bytes).max(found.position);
        Ok(Self { dir, segment_bytes, segment, file: None, at: found.position, capacity, state })
    }

    /// The last segment.
    pub(super) fn segment(&self) -> &Arc<Segment> {
        &self.segment
    }

    /// A segment of an older release takes no frames of this one, which an older release would cut
    /// off: it ends here.
    fn accepts_frames(&self) -> bool {
        self.segment.header.version == segment::VERSION
    }

    /// Whether a frame of so many bytes fits into the last segment.
    fn fits(&self, len: u64) -> bool {
        self.state == TailState::Open
            && self.accepts_frames()
            && self.at + len + FOOTER_LEN as u64 <= self.capacity
    }

    /// Whether the disk takes a frame of so many bytes, as far as can be known without writing one:
    /// makes room for it, and writes zeros where zeros stand.
    ///
    /// # Errors
    /// See [`TailError`].
    pub(super) fn probe(
        &mut self,
        len: u64,
        header: impl FnOnce(u64) -> SegmentHeader,
    ) -> Result<Option<Arc<Segment>>, TailError> {
        let begun = self.make_room(len, header)?;
        let at = self.at;
        self.writable_file()?.write_all_at(&[0; FOOTER_LEN], at)?;
        Ok(begun)
    }

    /// Sees to it that a frame of so many bytes fits; the segment that was begun for it, if one
    /// was. `header` is that of the segment with the number it is given.
    ///
    /// # Errors
    /// See [`TailError`].
    pub(super) fn make_room(
        &mut self,
        len: u64,
        header: impl FnOnce(u64) -> SegmentHeader,
    ) -> Result<Option<Arc<Segment>>, TailError> {
        self.truncate_dirty()?;
        if self.fits(len) {
            return Ok(None);
        }
        if self.state == TailState::Open
            && self.accepts_frames()
            && self.at == SegmentHeader::len(self.segment.header.first_offsets.len())
        {
            self.extend(len)?;
            return Ok(None);
        }
        match self.roll(len, header(self.segment.header.number + 1)) {
            // The log must not stop for something that others have used up: this segment ends
            // later.
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

    /// Writes a frame for which there is room, and makes it durable; its position.
    ///
    /// # Errors
    /// See [`TailError`].
    pub(super) fn write(&mut self, frame: &[u8]) -> Result<u64, TailError> {
        let at = self.at;
        let file = self.writable_file()?;
        if let Err(error) = file.write_all_at(frame, at) {
            self.state = TailState::Dirty { aside: 0 };
            self.try_truncate_dirty();
            return Err(error.into());
        }
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

    /// Reserves more of the last segment.
    fn extend(&mut self, len: u64) -> Result<(), TailError> {
        let end = self.at + (len + FOOTER_LEN as u64).max(GROWTH_BYTES.min(self.segment_bytes));
        segment::reserve(&*self.writable_file()?, end)?;
        self.capacity = self.capacity.max(end);
        Ok(())
    }

    /// Ends the last segment and begins the next.
    fn roll(&mut self, len: u64, header: SegmentHeader) -> Result<(), TailError> {
        let unpublished = prepare_segment(&self.dir, header, self.segment_bytes, len)?;
        if self.state == TailState::Open {
            let file = self.writable_file()?;
            match self.segment.seal(&file, self.at) {
                SealOutcome::Durable => self.state = TailState::Sealed,
                SealOutcome::Partial(error) => {
                    self.state = TailState::Dirty { aside: 0 };
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

    fn try_truncate_dirty(&mut self) {
        if let Err(why) = self.truncate_dirty() {
            tracing::debug!(?why, "what a failed write left is cut off before the next one");
        }
    }

    /// Cuts off what stands behind the last frame and is none.
    fn truncate_dirty(&mut self) -> Result<(), TailError> {
        let TailState::Dirty { aside } = self.state else { return Ok(()) };
        let file = self.writable_file()?;
        if aside > 0 {
            let kept = save_damaged(&self.dir, &self.segment, &file, self.at, aside)?;
            tracing::warn!(
                segment = %self.segment.path.display(), byte = self.at, bytes = aside, kept_in = %kept.display(),
                "cut a damaged or torn commit off the log: if it was torn it was never acknowledged, and if the disk damaged it, it may have been"
            );
            self.state = TailState::Dirty { aside: 0 };
        }
        file.set_len(self.at)?;
        // Zeros stand behind the last frame also where the disk has no blocks for them: a write
        // that fails there is cut off again.
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

/// Copies a damaged commit into a file beside the log, and makes it durable.
fn save_damaged(
    dir: &LogDir,
    segment: &Segment,
    file: &File,
    at: u64,
    bytes: u64,
) -> io::Result<PathBuf> {
    let mut commit = vec![0; bytes.min(MAX_SAVED_BYTES) as usize];
    file.read_exact_at(&mut commit, at)?;
    let place = format!("{:012}-{at:012}", segment.header.number);
    let mut path = dir.path.join(format!("{place}.{DAMAGED_EXTENSION}"));
    for n in 1..MAX_SAVED_COMMITS {
        match std::fs::read(&path) {
            // Of an attempt that ended before the cut.
            Ok(kept) if kept == commit => break,
            // Another one of the same place.
            Ok(_) => path = dir.path.join(format!("{place}-{n}.{DAMAGED_EXTENSION}")),
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

/// Cuts the damaged last commit of a log that nobody has open off, and keeps it; the file it is in,
/// and its bytes. `None` if there is none.
///
/// # Errors
/// If the log is damaged elsewhere, or the disk refuses.
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
