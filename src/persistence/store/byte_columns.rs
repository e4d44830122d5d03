//! Columns that the SQL stores keep as versioned bytes: blocks of ids, outcome notes, and the
//! windows of a manifest row.
//!
//! They begin with a version and, since version 2, end with a checksum: SQLite has none of its own,
//! and a flipped bit in an id would count an event twice. Bytes that do not decode are an error
//! that names the format.

use crate::model::CodecError;
use crate::model::manifest::Tier;
use crate::model::outcome::OutcomeNote;
use crate::model::window::{Hour, Millis};

const VERSION: u8 = 2;
/// The version without a checksum, which is still read.
const UNCHECKED: u8 = 1;
const CHECKSUM: usize = 4;

/// The number that stands for a tier in its column.
pub(super) fn tier_number(tier: Tier) -> i16 {
    match tier {
        Tier::Hot => 0,
        Tier::Cold => 1,
    }
}

pub(super) fn tier(number: i16) -> Result<Tier, CodecError> {
    match number {
        0 => Ok(Tier::Hot),
        1 => Ok(Tier::Cold),
        other => Err(CodecError::new("manifest tier", format!("{other} is neither 0 nor 1"))),
    }
}

/// Version, then per run: append time, number of ids, ids; then the checksum.
pub(super) fn encode_runs(runs: &[(Millis, Vec<u128>)]) -> Vec<u8> {
    let bytes: usize = runs.iter().map(|(_, ids)| 12 + 16 * ids.len()).sum();
    let mut out = Vec::with_capacity(1 + bytes + CHECKSUM);
    out.push(VERSION);
    for (appended, ids) in runs {
        out.extend(appended.to_be_bytes());
        out.extend((ids.len() as u32).to_be_bytes());
        ids.iter().for_each(|id| out.extend_from_slice(&id.to_be_bytes()));
    }
    with_checksum(out)
}

pub(super) fn decode_runs(bytes: &[u8]) -> Result<Vec<(Millis, Vec<u128>)>, CodecError> {
    let mut input = versioned("block of ids", bytes)?;
    let mut runs = Vec::new();
    while !input.is_empty() {
        let appended = i64::from_be_bytes(take("block of ids", &mut input)?);
        let count = u32::from_be_bytes(take("block of ids", &mut input)?);
        let ids = (0..count)
            .map(|_| take("block of ids", &mut input).map(u128::from_be_bytes))
            .collect::<Result<_, _>>()?;
        runs.push((appended, ids));
    }
    Ok(runs)
}

/// Version, then per window: hour, number of events; then the checksum.
pub(super) fn encode_windows(windows: &[(Hour, u64)]) -> Vec<u8> {
    let mut out = vec![VERSION];
    for (hour, events) in windows {
        out.extend(hour.0.to_be_bytes());
        out.extend(events.to_be_bytes());
    }
    with_checksum(out)
}

pub(super) fn decode_windows(bytes: &[u8]) -> Result<Vec<(Hour, u64)>, CodecError> {
    let mut input = versioned("manifest windows", bytes)?;
    let mut windows = Vec::new();
    while !input.is_empty() {
        let hour = Hour(i32::from_be_bytes(take("manifest windows", &mut input)?));
        windows.push((hour, u64::from_be_bytes(take("manifest windows", &mut input)?)));
    }
    Ok(windows)
}

/// Version, then the note's own bytes; then the checksum.
pub(super) fn encode_note(note: &OutcomeNote) -> Vec<u8> {
    let mut out = Vec::with_capacity(1 + note.as_bytes().len() + CHECKSUM);
    out.push(VERSION);
    out.extend_from_slice(note.as_bytes());
    with_checksum(out)
}

pub(super) fn decode_note(bytes: &[u8]) -> Result<OutcomeNote, CodecError> {
    OutcomeNote::from_bytes(versioned("outcome note", bytes)?)
}

fn with_checksum(mut bytes: Vec<u8>) -> Vec<u8> {
    let crc = crc32c::crc32c(&bytes);
    bytes.extend(crc.to_be_bytes());
    bytes
}

fn versioned<'a>(what: &'static str, bytes: &'a [u8]) -> Result<&'a [u8], CodecError> {
    match bytes.split_first() {
        Some((&UNCHECKED, rest)) => Ok(rest),
        Some((&VERSION, rest)) => {
            let Some((content, crc)) = rest.split_last_chunk::<CHECKSUM>() else {
                return Err(CodecError::new(what, "cut off"));
            };
            // The checksum covers the version byte too.
            if crc32c::crc32c(&bytes[..bytes.len() - CHECKSUM]) != u32::from_be_bytes(*crc) {
                return Err(CodecError::new(what, "damaged (checksum)"));
            }
            Ok(content)
        }
        _ => Err(CodecError::new(what, "its version is unknown")),
    }
}

fn take<const N: usize>(what: &'static str, input: &mut &[u8]) -> Result<[u8; N], CodecError> {
    let (head, rest) =
        input.split_first_chunk::<N>().ok_or_else(|| CodecError::new(what, "cut off"))?;
    *input = rest;
    Ok(*head)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::outcome::{UncountedEvent, Verdict};

    #[test]
    fn every_flipped_bit_is_noticed_and_blocks_of_version_1_are_read() {
        let runs = vec![(7, vec![1, u128::MAX]), (9, vec![3])];
        let windows = vec![(Hour(-5), 7), (Hour(3), 1)];
        let (encoded, of_windows) = (encode_runs(&runs), encode_windows(&windows));
        assert_eq!(decode_runs(&encoded), Ok(runs.clone()));
        assert_eq!(decode_windows(&of_windows), Ok(windows.clone()));
        for bit in 0..encoded.len() * 8 {
            let mut damaged = encoded.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(decode_runs(&damaged).is_err(), "bit {bit}");
        }
        for bit in 0..of_windows.len() * 8 {
            let mut damaged = of_windows.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(decode_windows(&damaged).is_err(), "bit {bit}");
        }
        let mut note = OutcomeNote::default();
        note.push(UncountedEvent { offset: 3, index: 1, verdict: Verdict::Duplicate });
        let of_note = encode_note(&note);
        assert_eq!(of_note, [2, 3, 4, 220, 118, 206, 241]);
        assert_eq!(decode_note(&of_note), Ok(note));
        for bit in 0..of_note.len() * 8 {
            let mut damaged = of_note.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(decode_note(&damaged).is_err(), "bit {bit}");
        }
        let unchecked = |bytes: &[u8]| [&[UNCHECKED], &bytes[1..bytes.len() - CHECKSUM]].concat();
        assert_eq!(decode_runs(&unchecked(&encoded)), Ok(runs));
        assert_eq!(decode_windows(&unchecked(&of_windows)), Ok(windows));
    }
}
