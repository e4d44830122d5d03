//! What a start finds: sealed segments by their index, the last one by a scan; a torn tail is cut, real damage refused.

use std::collections::VecDeque;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::frame::{self, aligned};
use super::segment::{Header, Segment};

/// What was found at start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Recovery {
    /// Bytes of the last segment that were scanned.
    pub scanned_bytes: u64,
    /// Bytes of a torn commit, never acknowledged, that were cut off.
    pub torn_bytes: u64,
}

/// The state of a log on disk.
pub struct Found {
    /// Its segments, oldest first; empty for a new log.
    pub segments: VecDeque<Arc<Segment>>,
    /// Where the next frame goes in the last one.
    pub position: u64,
    /// Its sequence number.
    pub sequence: u64,
    /// Append time of the last frame.
    pub appended: i64,
    /// Whether the last segment is sealed.
    pub sealed: bool,
    /// What happened.
    pub recovery: Recovery,
}

/// Reads the state of the log in `dir`.
///
/// # Errors
/// Names the file and what is wrong with it.
pub fn find(dir: &Path, writable: bool) -> Result<Found, String> {
    let paths = segment_paths(dir)?;
    let mut found = Found {
        segments: VecDeque::new(),
        position: 0,
        sequence: 0,
        appended: i64::MIN,
        sealed: true,
        recovery: Recovery::default(),
    };
    let last = paths.len();
    for (number, path) in paths.iter().enumerate() {
        let segment = match Segment::open(path, writable) {
            Ok(segment) => segment,
            // A crash between creating a segment and writing its header leaves an empty one at the end: nothing was in it.
            Err(_) if number + 1 == last && number > 0 && is_blank(path) => {
                if writable {
                    std::fs::remove_file(path).map_err(|e| format!("{}: {e}", path.display()))?;
                }
                continue;
            }
            Err(why) => return Err(why),
        };
        follows(found.segments.back(), &segment)?;
        let sealed = segment.load_index()?;
        if !sealed && number + 1 < last && !paths[number + 1..].iter().all(|p| is_blank(p)) {
            return Err(format!("{}: the index of this older segment is missing or damaged", path.display()));
        }
        found.sealed = sealed;
        found.segments.push_back(Arc::new(segment));
    }
    let Some(segment) = found.segments.back().cloned() else { return Ok(found) };
    scan(&segment, &mut found)?;
    Ok(found)
}

fn segment_paths(dir: &Path) -> Result<Vec<PathBuf>, String> {
    let entries = std::fs::read_dir(dir).map_err(|e| format!("{}: {e}", dir.display()))?;
    let mut paths = Vec::new();
    for entry in entries {
        let path = entry.map_err(|e| format!("{}: {e}", dir.display()))?.path();
        if path.extension().is_some_and(|e| e == "seg") {
            paths.push(path);
        }
    }
    paths.sort();
    Ok(paths)
}

fn is_blank(path: &Path) -> bool {
    std::fs::read(path).is_ok_and(|bytes| bytes.iter().all(|&b| b == 0))
}

fn follows(before: Option<&Arc<Segment>>, segment: &Segment) -> Result<(), String> {
    let Some(before) = before else { return Ok(()) };
    let named = |why: &str| format!("{}: {why}", segment.path.display());
    if segment.header.log != before.header.log || segment.header.firsts.len() != before.header.firsts.len() {
        return Err(named("belongs to another log than the segment before it"));
    }
    if segment.header.number != before.header.number + 1 {
        return Err(named("the segment before it is missing"));
    }
    let ends = (0..).map(crate::model::offset::ShardId).zip(&segment.header.firsts);
    if ends.into_iter().any(|(shard, &first)| before.end(shard) != first) {
        return Err(named("does not continue where the segment before it ends"));
    }
    Ok(())
}

/// Scans the last segment. A sealed one is only walked for its last frame's sequence number and time.
fn scan(segment: &Arc<Segment>, found: &mut Found) -> Result<(), String> {
    let named = |why: String| format!("{}: {why}", segment.path.display());
    let size = segment.file.metadata().map_err(|e| named(e.to_string()))?.len();
    let mut bytes = vec![0; size as usize];
    segment.file.read_exact_at(&mut bytes, 0).map_err(|e| named(e.to_string()))?;
    let mut at = Header::len(segment.header.firsts.len()) as usize;
    found.sequence = segment.header.first_sequence;
    let salt = frame::salt(segment.header.log);
    while let Some(frame) = bytes.get(at..).and_then(|rest| frame::decode(salt, rest)) {
        if frame.sequence != found.sequence {
            return Err(named(format!("byte {at}: frame {} stands where {} is due", frame.sequence, found.sequence)));
        }
        if !found.sealed {
            segment.note(at as u64, &frame);
        }
        found.sequence += 1;
        found.appended = frame.appended;
        at += aligned(frame.len);
    }
    found.position = at as u64;
    found.recovery.scanned_bytes = at as u64;
    if !found.sealed {
        let rest = bytes.get(at..).unwrap_or_default();
        if let Some(later) = valid_frame_after(salt, rest, found.sequence) {
            return Err(named(format!(
                "byte {at}: a damaged frame is followed by a good one at byte {}: this is no torn write but lost data; restore \
                 the file from a backup, or move it away and rebuild from the archive",
                at + later
            )));
        }
        let torn = rest.iter().rposition(|&b| b != 0).map_or(0, |last| last + 1);
        found.recovery.torn_bytes = torn as u64;
    }
    Ok(())
}

/// Position of an undamaged frame of a later sequence number in `rest`, where a frame was due.
fn valid_frame_after(salt: u32, rest: &[u8], sequence: u64) -> Option<usize> {
    (8..rest.len()).step_by(8).find(|&at| {
        rest[at..].starts_with(&frame::MAGIC) && frame::decode(salt, &rest[at..]).is_some_and(|frame| frame.sequence > sequence)
    })
}
