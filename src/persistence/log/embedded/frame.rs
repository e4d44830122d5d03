//! Frames: one commit of the log, whole or not at all.
//!
//! All numbers are little-endian. A frame starts at a multiple of 8 bytes:
//!
//! | bytes | field |
//! |---|---|
//! | 4 | magic `RMF1` |
//! | 4 | length of the whole frame, without padding |
//! | 4 | CRC32C of everything behind this field, continued from the CRC32C of the log id |
//! | 4 | number of runs |
//! | 8 | sequence number, one more than the frame before |
//! | 8 | append time, ms |
//! | 32 each | runs, ascending by shard: shard (4), records (4), first offset (8), length of the payload (4), CRC32C of it (4), zero (8) |
//! | | the payloads of the runs: each record with its length (4) before it, stored as [`super::payload`] says |

use std::ops::Range;

use bytes::Bytes;

use super::payload::Packer;
use crate::model::flush::LogRecord;
use crate::model::offset::{LogId, Offset, ShardId};

/// Begins every frame.
pub const MAGIC: [u8; 4] = *b"RMF1";
/// Bytes before the runs.
pub const HEADER: usize = 32;
/// Bytes of one run's entry.
pub const RUN: usize = 32;
/// Longest frame a reader believes.
pub const MAX_FRAME: usize = 256 << 20;

/// Rounds up to where the next frame may start.
pub fn aligned(len: usize) -> usize {
    len.next_multiple_of(8)
}

/// The records of one shard within a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Run {
    /// Whose.
    pub shard: ShardId,
    /// How many.
    pub records: u32,
    /// Offset of the first.
    pub first: Offset,
    /// Where the payload stands, from the start of the frame.
    pub at: usize,
    /// Its length.
    pub len: usize,
    /// Its checksum.
    pub crc: u32,
}

/// A frame's header and runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// Length without padding.
    pub len: usize,
    /// Sequence number.
    pub sequence: u64,
    /// Append time of every record inside.
    pub appended: i64,
    /// The runs.
    pub runs: Vec<Run>,
}

/// The salt of a log's checksums: its id, so that bytes which a client sent can never pass for a frame.
pub fn salt(log: LogId) -> u32 {
    crc32c::crc32c(&log.0)
}

/// Encodes frames, in buffers that it keeps.
pub struct Encoder {
    salt: u32,
    packer: Packer,
    /// The frame, padded.
    pub bytes: Vec<u8>,
    /// The runs' records one after the other, as they are.
    pub plain: Vec<u8>,
}

impl Encoder {
    /// An encoder for a log with this salt.
    ///
    /// # Errors
    /// If there is no memory for compression.
    pub fn new(salt: u32) -> Result<Self, String> {
        Ok(Self { salt, packer: Packer::new()?, bytes: Vec::new(), plain: Vec::new() })
    }

    /// Encodes a frame into [`Self::bytes`], and says where in [`Self::plain`] the records of each run stand. `records` are in order
    /// of arrival; those of a shard keep that order.
    pub fn encode(
        &mut self,
        sequence: u64,
        appended: i64,
        records: &[(ShardId, Bytes)],
        ends: &[Offset],
    ) -> (Frame, Vec<Range<usize>>) {
        let mut order: Vec<u32> = (0..records.len() as u32).collect();
        order.sort_by_key(|&i| records[i as usize].0);
        let groups: Vec<&[u32]> = order.chunk_by(|&a, &b| records[a as usize].0 == records[b as usize].0).collect();
        let out = &mut self.bytes;
        out.clear();
        out.resize(HEADER + groups.len() * RUN, 0);
        self.plain.clear();
        let (mut runs, mut plain) = (Vec::with_capacity(groups.len()), Vec::with_capacity(groups.len()));
        for (number, group) in groups.iter().enumerate() {
            let from = self.plain.len();
            for &i in *group {
                let payload = &records[i as usize].1;
                self.plain.extend_from_slice(&(payload.len() as u32).to_le_bytes());
                self.plain.extend_from_slice(payload);
            }
            plain.push(from..self.plain.len());
            let at = out.len();
            self.packer.pack(&self.plain[from..], out);
            let shard = records[group[0] as usize].0;
            let (len, crc) = (out.len() - at, crc32c::crc32c(&out[at..]));
            let run = Run { shard, records: group.len() as u32, first: ends[shard.0 as usize], at, len, crc };
            put_run(&run, &mut out[HEADER + number * RUN..][..RUN]);
            runs.push(run);
        }
        let len = out.len();
        out[..4].copy_from_slice(&MAGIC);
        out[4..8].copy_from_slice(&(len as u32).to_le_bytes());
        out[12..16].copy_from_slice(&(runs.len() as u32).to_le_bytes());
        out[16..24].copy_from_slice(&sequence.to_le_bytes());
        out[24..32].copy_from_slice(&appended.to_le_bytes());
        let crc = crc32c::crc32c_append(self.salt, &out[12..]);
        out[8..12].copy_from_slice(&crc.to_le_bytes());
        out.resize(aligned(len), 0);
        (Frame { len, sequence, appended, runs }, plain)
    }
}

fn put_run(run: &Run, entry: &mut [u8]) {
    entry[..4].copy_from_slice(&run.shard.0.to_le_bytes());
    entry[4..8].copy_from_slice(&run.records.to_le_bytes());
    entry[8..16].copy_from_slice(&run.first.to_le_bytes());
    entry[16..20].copy_from_slice(&(run.len as u32).to_le_bytes());
    entry[20..24].copy_from_slice(&run.crc.to_le_bytes());
}

/// How long the frame at the start of `bytes` says that it is, if that may be; its other bytes need not be good.
pub fn claimed_len(bytes: &[u8]) -> Option<usize> {
    let len = bytes.get(4..8).and_then(|b| b.try_into().ok()).map(u32::from_le_bytes)? as usize;
    (HEADER..=MAX_FRAME).contains(&len).then_some(len)
}

/// Reads the frame at the start of `bytes`; `None` if there is no whole, undamaged one.
pub fn decode(salt: u32, bytes: &[u8]) -> Option<Frame> {
    let word = |at: usize| bytes.get(at..at + 4).and_then(|b| b.try_into().ok()).map(u32::from_le_bytes);
    let long = |at: usize| bytes.get(at..at + 8).and_then(|b| b.try_into().ok()).map(u64::from_le_bytes);
    if bytes.get(..4)? != MAGIC {
        return None;
    }
    let len = word(4)? as usize;
    let whole = bytes.get(..len).filter(|_| (HEADER..=MAX_FRAME).contains(&len))?;
    if crc32c::crc32c_append(salt, &whole[12..]) != word(8)? {
        return None;
    }
    let mut at = HEADER + (word(12)? as usize).checked_mul(RUN)?;
    let runs = (0..word(12)? as usize)
        .map(|number| {
            let entry = HEADER + number * RUN;
            let len = word(entry + 16)? as usize;
            let run = Run {
                shard: ShardId(word(entry)?),
                records: word(entry + 4)?,
                first: long(entry + 8)?,
                at,
                len,
                crc: word(entry + 20)?,
            };
            at += len;
            Some(run)
        })
        .collect::<Option<Vec<_>>>()?;
    (at == len).then_some(Frame { len, sequence: long(16)?, appended: long(24)?.cast_signed(), runs })
}

/// The records of a run from offset `from` on, sharing `payload`; `None` if the run is damaged.
pub fn records_of(run_first: Offset, appended: i64, payload: &Bytes, from: Offset) -> Option<Vec<LogRecord>> {
    let mut records = Vec::new();
    let (mut at, mut offset) = (0usize, run_first);
    while at < payload.len() {
        let len = payload.get(at..at + 4).and_then(|b| b.try_into().ok()).map(u32::from_le_bytes)? as usize;
        at += 4;
        if at + len > payload.len() {
            return None;
        }
        if offset >= from {
            records.push(LogRecord { offset, appended, payload: payload.slice(at..at + len) });
        }
        at += len;
        offset += 1;
    }
    Some(records)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_trip_groups_by_shard_and_any_flipped_byte_is_noticed() {
        let records: Vec<_> = [(2, "c"), (0, "a"), (2, "dd")].map(|(s, p)| (ShardId(s), Bytes::from(p))).to_vec();
        let mut encoder = Encoder::new(5).expect("memory");
        let (frame, plain) = encoder.encode(9, 77, &records, &[5, 0, 7]);
        assert_eq!(&encoder.plain[plain[1].clone()], b"\x01\0\0\0c\x02\0\0\0dd");
        let bytes = encoder.bytes;
        assert_eq!(decode(5, &bytes), Some(frame.clone()));
        assert_eq!((frame.runs[0].first, frame.runs[1].first, frame.runs[1].records), (5, 7, 2));
        let run = &frame.runs[1];
        let payload = Bytes::from(bytes.clone()).slice(run.at..run.at + run.len);
        let read = records_of(run.first, 77, &payload, 8).expect("undamaged");
        assert_eq!((read.len(), read[0].offset, &read[0].payload[..]), (1, 8, &b"dd"[..]));
        for at in 0..frame.len {
            let mut damaged = bytes.clone();
            damaged[at] ^= 1;
            assert_eq!(decode(5, &damaged), None, "byte {at}");
        }
    }
}
