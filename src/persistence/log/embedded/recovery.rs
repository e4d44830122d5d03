//! Start-up: loads sealed segments from their index and scans the last one.
//!
//! A torn write and a flipped bit cannot always be told apart. A frame that a valid one follows,
//! and a frame that is complete but wrong inside, are damage: the log is refused, because the frame
//! may have been acknowledged. Anything else after the last valid frame may be a torn commit. It is
//! cut off before the next frame is written, but saved first ([`super::tail`]). Recovery itself
//! changes nothing, so a log can be read on a disk that refuses writes.

use std::collections::VecDeque;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::frame::{self, aligned};
use super::segment::{self, IndexState, Segment, SegmentHeader};
use crate::model::clock::AppendStamp;
use crate::model::offset::ShardId;

/// The smallest unit that a disk writes atomically.
const SECTOR: usize = 512;

/// How often a log is read that another process changes while it is read. A segment is released or
/// sealed once in many megabytes.
const READ_ATTEMPTS: u32 = 32;

/// What recovery found in the last segment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LogRecovery {
    /// Bytes scanned in the last segment.
    pub scanned_bytes: u64,
    /// Bytes of a torn or damaged commit after its last valid frame.
    pub torn_bytes: u64,
}

/// How to treat the end of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RecoveryMode {
    /// Another process may be writing: ignores an incomplete commit.
    Read,
    /// Refuses a damaged commit; a torn one will be cut off.
    Write,
    /// An operator asked to discard the last commit, whether damaged or torn.
    Truncate,
}

/// What is after the last valid frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TailContent {
    /// Zeros, where the next frame goes.
    Empty,
    /// A torn or damaged commit of this many bytes.
    TornCommit(u64),
    /// The remains of an index that was never complete or that a frame overwrote. The frames hold
    /// all of its information.
    PartialIndex,
    /// The index of a sealed segment.
    SealedIndex,
}

/// The state of a log on disk.
pub(super) struct RecoveredLog {
    /// Oldest first; empty if the log is new.
    pub segments: VecDeque<Arc<Segment>>,
    /// Position of the next frame in the last segment.
    pub position: u64,
    /// Sequence number of the next frame.
    pub sequence: u64,
    /// The times of the last frame; `None` in a log without frames.
    pub stamp: Option<AppendStamp>,
    /// What is at `position`.
    pub tail: TailContent,
    pub recovery: LogRecovery,
}

/// Reads the state of the log in `dir`. Changes nothing. Fails if the log is damaged or cannot be
/// read. The message names the file and what is wrong.
pub(super) fn recover(dir: &Path, purpose: RecoveryMode) -> Result<RecoveredLog, String> {
    let mut attempts = match purpose {
        RecoveryMode::Read => READ_ATTEMPTS,
        RecoveryMode::Write | RecoveryMode::Truncate => 1,
    };
    loop {
        let before = extents(dir)?;
        attempts -= 1;
        match recover_once(dir, purpose) {
            // A writer that releases or seals a segment meanwhile makes it look damaged.
            Err(_) if attempts > 0 && extents(dir)? != before => {}
            found => return found,
        }
    }
}

/// The segments and their sizes.
fn extents(dir: &Path) -> Result<Vec<(PathBuf, Option<u64>)>, String> {
    let size = |path: &PathBuf| path.metadata().map(|file| file.len()).ok();
    Ok(segment_paths(dir)?.into_iter().map(|path| (path.clone(), size(&path))).collect())
}

fn recover_once(dir: &Path, purpose: RecoveryMode) -> Result<RecoveredLog, String> {
    let paths = segment_paths(dir)?;
    let mut found = RecoveredLog {
        segments: VecDeque::new(),
        position: 0,
        sequence: 0,
        stamp: None,
        tail: TailContent::SealedIndex,
        recovery: LogRecovery::default(),
    };
    let last = paths.len();
    let mut index = IndexState::Absent;
    for (number, path) in paths.iter().enumerate() {
        let segment = match Segment::open(path) {
            Ok(segment) => segment,
            // Older versions could leave an empty segment at the end. The next segment replaces it.
            Err(_) if number + 1 == last && number > 0 && is_blank(path) => continue,
            Err(why) => return Err(why),
        };
        check_continuity(found.segments.back(), &segment)?;
        index = segment.load_index()?;
        // Only the last segment may be unsealed.
        if index != IndexState::Loaded
            && number + 1 < last
            && !paths[number + 1..].iter().all(|p| is_blank(p))
        {
            return Err(format!(
                "{}: the index of this older segment is missing or damaged",
                path.display()
            ));
        }
        // Only the newest segment stays open.
        if let Some(before) = found.segments.back() {
            before.set_open_file(None);
        }
        found.segments.push_back(Arc::new(segment));
    }
    let Some(segment) = found.segments.back().cloned() else { return Ok(found) };
    scan_segment(&segment, index, purpose, &mut found)?;
    Ok(found)
}

fn segment_paths(dir: &Path) -> Result<Vec<PathBuf>, String> {
    let entries = std::fs::read_dir(dir).map_err(|e| format!("{}: {e}", dir.display()))?;
    let mut paths = Vec::new();
    for entry in entries {
        let path = entry.map_err(|e| format!("{}: {e}", dir.display()))?.path();
        if path.extension().is_some_and(|e| e == segment::EXTENSION) {
            paths.push(path);
        }
    }
    paths.sort();
    Ok(paths)
}

fn is_blank(path: &Path) -> bool {
    std::fs::read(path).is_ok_and(|bytes| is_zero(&bytes))
}

fn is_zero(bytes: &[u8]) -> bool {
    bytes.iter().all(|&b| b == 0)
}

fn check_continuity(before: Option<&Arc<Segment>>, segment: &Segment) -> Result<(), String> {
    let Some(before) = before else { return Ok(()) };
    let named = |why: &str| format!("{}: {why}", segment.path.display());
    if segment.header.log != before.header.log
        || segment.header.first_offsets.len() != before.header.first_offsets.len()
    {
        return Err(named("belongs to another log than the segment before it"));
    }
    if segment.header.number != before.header.number + 1 {
        return Err(named("the segment before it is missing"));
    }
    let ends = (0..).map(ShardId).zip(&segment.header.first_offsets);
    if ends.into_iter().any(|(shard, &first)| before.end(shard) != first) {
        return Err(named("does not continue where the segment before it ends"));
    }
    Ok(())
}

/// Scans the last segment. If it is sealed, this only finds the sequence number and the times
/// of its last frame.
fn scan_segment(
    segment: &Arc<Segment>,
    index: IndexState,
    purpose: RecoveryMode,
    found: &mut RecoveredLog,
) -> Result<(), String> {
    let named = |why: String| format!("{}: {why}", segment.path.display());
    let file = segment.file().map_err(|e| named(e.to_string()))?;
    let size = file.metadata().map_err(|e| named(e.to_string()))?.len();
    let mut bytes = vec![0; size as usize];
    file.read_exact_at(&mut bytes, 0).map_err(|e| named(e.to_string()))?;
    let mut at = SegmentHeader::len(segment.header.first_offsets.len()) as usize;
    found.sequence = segment.header.first_sequence;
    found.stamp = stamp_before(found, segment);
    let salt = frame::salt(segment.header.log);
    while let Some(frame) = bytes.get(at..).and_then(|rest| frame::decode(salt, rest)) {
        if frame.sequence != found.sequence {
            return Err(named(format!(
                "byte {at}: frame {} stands where {} is due",
                frame.sequence, found.sequence
            )));
        }
        if index != IndexState::Loaded {
            segment.add_runs(at as u64, &frame);
        }
        found.sequence += 1;
        found.stamp = Some(frame.stamp);
        at += aligned(frame.len);
    }
    found.position = at as u64;
    found.recovery.scanned_bytes = at as u64;
    if index == IndexState::Loaded {
        return Ok(());
    }
    let rest = bytes.get(at..).unwrap_or_default();
    if let Some(later) = valid_frame_after(salt, rest, found.sequence) {
        return Err(named(format!(
            "byte {at}: a damaged frame is followed by a good one at byte {}: this is no torn \
             write but lost data; restore the file from a backup, or move it away and rebuild \
             from the archive",
            at + later
        )));
    }
    found.tail = tail_content(segment, index, at, rest);
    match found.tail {
        TailContent::SealedIndex => return Err(named("the index is damaged".to_owned())),
        // The writer may be in the middle of this commit.
        _ if purpose == RecoveryMode::Read => found.tail = TailContent::Empty,
        TailContent::TornCommit(len) => {
            if purpose == RecoveryMode::Write && is_whole(at, rest) {
                return Err(named(format!(
                    "byte {at}: the last commit is there to its last byte, and damaged inside: \
                     this is no torn write, and it may have been acknowledged; restore the file \
                     from a backup, or give the commit up with `rollmill log cut`, which keeps \
                     its {len} bytes in a file beside the log"
                )));
            }
            found.recovery.torn_bytes = len;
        }
        TailContent::Empty | TailContent::PartialIndex => {}
    }
    Ok(())
}

/// Classifies what follows the last valid frame, which ends at `at`, in a segment without a loaded
/// index. [`TailContent::SealedIndex`] means that the index was complete once and is damaged.
fn tail_content(segment: &Segment, index: IndexState, at: usize, rest: &[u8]) -> TailContent {
    let Some(last) = rest.iter().rposition(|&b| b != 0) else { return TailContent::Empty };
    // Versions up to 0.1 wrote frames over the index of a sealed segment if they could not create
    // the next one.
    if matches!(index, IndexState::Damaged { position: Some(position) } if at as u64 > position) {
        return TailContent::PartialIndex;
    }
    // What sealing would have written here, to compare with.
    let whole = segment.index(at as u64);
    if is_partial_write(&rest[..=last], &whole, at) {
        return TailContent::PartialIndex;
    }
    match index {
        IndexState::Damaged { .. } => TailContent::SealedIndex,
        IndexState::Absent | IndexState::Loaded => TailContent::TornCommit(last as u64 + 1),
    }
}

/// Whether `found`, at position `at`, is what a crash may leave of `written`: each sector is either
/// written or still zero.
fn is_partial_write(found: &[u8], written: &[u8], at: usize) -> bool {
    let mut from = 0;
    while from < found.len() {
        let to = (from + SECTOR - (at + from) % SECTOR).min(found.len());
        if !is_zero(&found[from..to]) && written.get(from..to) != Some(&found[from..to]) {
            return false;
        }
        from = to;
    }
    true
}

/// Whether the frame at position `at`, which is not valid, was written completely: its last byte
/// and all of its sectors are there.
fn is_whole(at: usize, rest: &[u8]) -> bool {
    let Some(len) = frame::claimed_len(rest) else { return false };
    let Some((frame, after)) = rest.split_at_checked(aligned(len)) else { return false };
    // A last byte of zero may be one that was never written.
    if frame[len - 1] == 0 {
        return false;
    }
    let mut from = 0;
    while from < len {
        let to = (from + SECTOR - (at + from) % SECTOR).min(len);
        if is_zero(&frame[from..to]) {
            return false;
        }
        from = to;
    }
    is_zero(after)
}

/// The times of the last frame before a segment, as far as they are known: earlier segments may
/// have been released, and older releases did not note it in the header.
fn stamp_before(found: &RecoveredLog, segment: &Segment) -> Option<AppendStamp> {
    let noted = Some(segment.header.appended).filter(|appended| *appended != 0);
    let indexed = found.segments.iter().filter_map(|segment| segment.last_appended());
    noted.into_iter().chain(indexed).max().map(AppendStamp::from_single_time)
}

/// Position of a valid frame with a later sequence number in `rest`, where the
/// frame `sequence` is expected.
fn valid_frame_after(salt: u32, rest: &[u8], sequence: u64) -> Option<usize> {
    (8..rest.len()).step_by(8).find(|&at| {
        frame::header_len(&rest[at..]).is_some()
            && frame::decode(salt, &rest[at..]).is_some_and(|frame| frame.sequence > sequence)
    })
}
