//! Frames. A frame is one commit of the log, and is read back whole or not at all.
//!
//! All numbers are little-endian. A frame starts at a multiple of 8 bytes:
//!
//! - 4 bytes: magic `RMF2`
//! - 4 bytes: length of the whole frame, without padding
//! - 4 bytes: CRC32C of everything after this field, seeded with the CRC32C of the log id
//! - 4 bytes: number of runs
//! - 8 bytes: sequence number, one more than that of the previous frame
//! - 8 bytes: append time in ms
//! - 8 bytes: received time in ms, from the wall clock
//! - 8 bytes: boot clock in ms
//! - 8 bytes: id of the boot that the boot clock counts from; 0 if unknown
//! - 32 bytes per run, ascending by shard: shard (4), number of records (4), first offset (8),
//!   length of the payload (4), CRC32C of the payload (4), zero (8)
//! - the payloads of the runs: each record preceded by its length (4), stored as described in
//!   [`super::payload`]
//!
//! The header of a version 1 frame (`RMF1`) ends with the append time, which is also its received
//! time.

use std::ops::Range;

use bytes::Bytes;

use super::payload::{MAX_FRAME, RunCompressor};
use crate::model::clock::{AppendStamp, ClockReading};
use crate::model::flush::LogRecord;
use crate::model::offset::{LogId, Offset, ShardId};

/// The first bytes of every frame.
pub(super) const MAGIC: [u8; 4] = *b"RMF2";
const OLD_MAGIC: [u8; 4] = *b"RMF1";
/// Length of the header, which precedes the runs.
const HEADER_LEN: usize = 56;
const OLD_HEADER_LEN: usize = 32;
/// Length of the entry of a run.
pub(super) const RUN_ENTRY_LEN: usize = 32;

/// Rounds up to the next position at which a frame may start.
pub(super) fn aligned(len: usize) -> usize {
    len.next_multiple_of(8)
}

/// The location of a run in its segment, as the index has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct RunLocation {
    /// Offset of the first record.
    pub first: Offset,
    /// Number of records in the run.
    pub records: u32,
    /// Length of the stored payload in bytes.
    pub len: u32,
    /// Position of the payload in the file.
    pub at: u64,
    pub appended: i64,
    pub received: i64,
    /// CRC32C of the stored payload.
    pub crc: u32,
}

/// The records of one shard in a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct FrameRun {
    pub shard: ShardId,
    /// Number of records in the run.
    pub records: u32,
    /// Offset of the first record.
    pub first: Offset,
    /// Position of the stored payload, from the start of the frame.
    pub at: usize,
    /// Length of the stored payload in bytes.
    pub len: usize,
    /// CRC32C of the stored payload.
    pub crc: u32,
}

/// The header and the runs of a frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Frame {
    /// Length in bytes, without padding.
    pub len: usize,
    pub sequence: u64,
    /// The times that all records of the frame share.
    pub stamp: AppendStamp,
    pub runs: Vec<FrameRun>,
}

/// The seed of a log's checksums, derived from its id: bytes that a client sent can never
/// pass for a frame.
pub(super) fn salt(log: LogId) -> u32 {
    crc32c::crc32c(&log.0)
}

/// Encodes frames into buffers that it reuses.
pub(super) struct FrameEncoder {
    salt: u32,
    compressor: RunCompressor,
    /// The last frame, with padding.
    pub bytes: Vec<u8>,
    /// The uncompressed records of its runs, one run after the other.
    pub plain: Vec<u8>,
}

impl FrameEncoder {
    /// An encoder for a log with this checksum seed. Fails if zstd cannot allocate its context.
    pub(super) fn new(salt: u32) -> Result<Self, String> {
        Ok(Self { salt, compressor: RunCompressor::new()?, bytes: Vec::new(), plain: Vec::new() })
    }

    /// Encodes a frame into [`Self::bytes`]. Returns it with the range of each run's records in
    /// [`Self::plain`]. `records` are in order of arrival, and the records of a shard keep that
    /// order. `ends` are the offsets that the shards' next records get.
    pub(super) fn encode(
        &mut self,
        sequence: u64,
        stamp: AppendStamp,
        records: &[(ShardId, Bytes)],
        ends: &[Offset],
    ) -> (Frame, Vec<Range<usize>>) {
        // A stable sort: the records of a shard stay in order of arrival.
        let mut order: Vec<u32> = (0..records.len() as u32).collect();
        order.sort_by_key(|&i| records[i as usize].0);
        let groups: Vec<&[u32]> =
            order.chunk_by(|&a, &b| records[a as usize].0 == records[b as usize].0).collect();
        let out = &mut self.bytes;
        out.clear();
        out.resize(HEADER_LEN + groups.len() * RUN_ENTRY_LEN, 0);
        self.plain.clear();
        let (mut runs, mut plain) =
            (Vec::with_capacity(groups.len()), Vec::with_capacity(groups.len()));
        for (number, group) in groups.iter().enumerate() {
            let from = self.plain.len();
            for &i in *group {
                let payload = &records[i as usize].1;
                self.plain.extend_from_slice(&(payload.len() as u32).to_le_bytes());
                self.plain.extend_from_slice(payload);
            }
            plain.push(from..self.plain.len());
            let at = out.len();
            self.compressor.compress(&self.plain[from..], out);
            let shard = records[group[0] as usize].0;
            let (len, crc) = (out.len() - at, crc32c::crc32c(&out[at..]));
            let run = FrameRun {
                shard,
                records: group.len() as u32,
                first: ends[shard.0 as usize],
                at,
                len,
                crc,
            };
            put_run(&run, &mut out[HEADER_LEN + number * RUN_ENTRY_LEN..][..RUN_ENTRY_LEN]);
            runs.push(run);
        }
        let len = out.len();
        // The header comes last, because it has the length and the checksum of the rest.
        out[..4].copy_from_slice(&MAGIC);
        out[4..8].copy_from_slice(&(len as u32).to_le_bytes());
        out[12..16].copy_from_slice(&(runs.len() as u32).to_le_bytes());
        out[16..24].copy_from_slice(&sequence.to_le_bytes());
        out[24..32].copy_from_slice(&stamp.appended.to_le_bytes());
        out[32..40].copy_from_slice(&stamp.clocks.wall.to_le_bytes());
        out[40..48].copy_from_slice(&stamp.clocks.uptime.to_le_bytes());
        out[48..56].copy_from_slice(&stamp.clocks.boot.to_le_bytes());
        let crc = crc32c::crc32c_append(self.salt, &out[12..]);
        out[8..12].copy_from_slice(&crc.to_le_bytes());
        out.resize(aligned(len), 0);
        (Frame { len, sequence, stamp, runs }, plain)
    }
}

fn put_run(run: &FrameRun, entry: &mut [u8]) {
    entry[..4].copy_from_slice(&run.shard.0.to_le_bytes());
    entry[4..8].copy_from_slice(&run.records.to_le_bytes());
    entry[8..16].copy_from_slice(&run.first.to_le_bytes());
    entry[16..20].copy_from_slice(&(run.len as u32).to_le_bytes());
    entry[20..24].copy_from_slice(&run.crc.to_le_bytes());
}

/// The length that the frame at the start of `bytes` claims to have, if it is plausible. The frame
/// itself may be damaged.
pub(super) fn claimed_len(bytes: &[u8]) -> Option<usize> {
    let len = bytes.get(4..8).and_then(|b| b.try_into().ok()).map(u32::from_le_bytes)? as usize;
    (OLD_HEADER_LEN..=MAX_FRAME).contains(&len).then_some(len)
}

/// Decodes the frame at the start of `bytes`, or returns `None` if it is not whole and undamaged.
pub(super) fn decode(salt: u32, bytes: &[u8]) -> Option<Frame> {
    let word =
        |at: usize| bytes.get(at..at + 4).and_then(|b| b.try_into().ok()).map(u32::from_le_bytes);
    let long =
        |at: usize| bytes.get(at..at + 8).and_then(|b| b.try_into().ok()).map(u64::from_le_bytes);
    let header = header_len(bytes)?;
    let len = word(4)? as usize;
    let whole = bytes.get(..len).filter(|_| (header..=MAX_FRAME).contains(&len))?;
    if crc32c::crc32c_append(salt, &whole[12..]) != word(8)? {
        return None;
    }
    let mut at = header + (word(12)? as usize).checked_mul(RUN_ENTRY_LEN)?;
    let runs = (0..word(12)? as usize)
        .map(|number| {
            let entry = header + number * RUN_ENTRY_LEN;
            let len = word(entry + 16)? as usize;
            let run = FrameRun {
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
    let appended = long(24)?.cast_signed();
    let stamp = if header == HEADER_LEN {
        let read = ClockReading {
            wall: long(32)?.cast_signed(),
            uptime: long(40)?.cast_signed(),
            boot: long(48)?,
        };
        AppendStamp { appended, clocks: read }
    } else {
        AppendStamp::from_single_time(appended)
    };
    (at == len).then_some(Frame { len, sequence: long(16)?, stamp, runs })
}

/// Length of the header, from the magic number; `None` if `bytes` do not start like a frame.
pub(super) fn header_len(bytes: &[u8]) -> Option<usize> {
    match bytes.first_chunk() {
        Some(&MAGIC) => Some(HEADER_LEN),
        Some(&OLD_MAGIC) => Some(OLD_HEADER_LEN),
        _ => None,
    }
}

/// The records of a run from offset `from` on, as slices of `payload`; `None` if it is damaged.
pub(super) fn decode_records(
    run: &RunLocation,
    payload: &Bytes,
    from: Offset,
) -> Option<Vec<LogRecord>> {
    let mut records = Vec::new();
    let (mut at, mut offset) = (0usize, run.first);
    let RunLocation { appended, received, .. } = *run;
    while at < payload.len() {
        let len = payload.get(at..at + 4).and_then(|b| b.try_into().ok()).map(u32::from_le_bytes)?
            as usize;
        at += 4;
        if at + len > payload.len() {
            return None;
        }
        if offset >= from {
            records.push(LogRecord {
                offset,
                appended,
                received,
                payload: payload.slice(at..at + len),
            });
        }
        at += len;
        offset += 1;
    }
    Some(records)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    const STAMP: AppendStamp = AppendStamp {
        appended: 77,
        clocks: ClockReading { wall: -5, uptime: 1 << 40, boot: u64::MAX - 3 },
    };

    fn encoded() -> (Frame, Vec<std::ops::Range<usize>>, FrameEncoder) {
        let records: Vec<_> =
            [(2, "c"), (0, "a"), (2, "dd")].map(|(s, p)| (ShardId(s), Bytes::from(p))).to_vec();
        let mut encoder = FrameEncoder::new(5).expect("memory");
        let (frame, plain) = encoder.encode(9, STAMP, &records, &[5, 0, 7]);
        (frame, plain, encoder)
    }

    /// The same frame in version 1, without the three times that version lacked.
    pub(in super::super) fn older(salt: u32, frame: &[u8]) -> Vec<u8> {
        let len = u32::from_le_bytes(*frame[4..].first_chunk().expect("a length")) as usize
            - (HEADER_LEN - OLD_HEADER_LEN);
        let mut old = [&frame[..OLD_HEADER_LEN], &frame[HEADER_LEN..]].concat();
        old[..4].copy_from_slice(&OLD_MAGIC);
        old[4..8].copy_from_slice(&(len as u32).to_le_bytes());
        let crc = crc32c::crc32c_append(salt, &old[12..len]);
        old[8..12].copy_from_slice(&crc.to_le_bytes());
        old.resize(aligned(len), 0);
        old
    }

    #[test]
    fn round_trip_groups_by_shard_and_any_flipped_byte_is_noticed() {
        let (frame, plain, encoder) = encoded();
        assert_eq!(&encoder.plain[plain[1].clone()], b"\x01\0\0\0c\x02\0\0\0dd");
        let bytes = encoder.bytes;
        assert_eq!(decode(5, &bytes), Some(frame.clone()));
        assert_eq!((frame.runs[0].first, frame.runs[1].first, frame.runs[1].records), (5, 7, 2));
        let run = &frame.runs[1];
        let payload = Bytes::from(bytes.clone()).slice(run.at..run.at + run.len);
        let at = RunLocation {
            first: 7,
            records: 2,
            len: run.len as u32,
            at: 0,
            appended: 77,
            received: -5,
            crc: run.crc,
        };
        let read = decode_records(&at, &payload, 8).expect("undamaged");
        assert_eq!((read.len(), read[0].offset, &read[0].payload[..]), (1, 8, &b"dd"[..]));
        assert_eq!((read[0].appended, read[0].received), (77, -5));
        for at in 0..frame.len {
            let mut damaged = bytes.clone();
            damaged[at] ^= 1;
            assert_eq!(decode(5, &damaged), None, "byte {at}");
        }
    }

    #[test]
    fn a_frame_of_version_1_has_one_time_which_is_both() {
        let (frame, _, encoder) = encoded();
        let shorter = HEADER_LEN - OLD_HEADER_LEN;
        let runs = frame.runs.iter().map(|run| FrameRun { at: run.at - shorter, ..*run }).collect();
        let expected = Frame {
            len: frame.len - shorter,
            stamp: AppendStamp::from_single_time(77),
            runs,
            ..frame
        };
        assert_eq!(decode(5, &older(5, &encoder.bytes)), Some(expected));
    }
}
