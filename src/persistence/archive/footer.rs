//! The footer of an archive object: its identity, its shard's decisions about the records, and a
//! checksum of the whole file.
//!
//! A lost store is rebuilt from footers. New keys may be appended; readers ignore keys that they do
//! not know. The checksum covers the file with zeros in place of the checksum itself, so that an
//! object can be verified without its manifest row.

use bytes::Bytes;
use parquet::file::metadata::KeyValue;
use serde::{Deserialize, Serialize};

use crate::model::CodecError;
use crate::model::flush::LogRecord;
use crate::model::generation::GenerationId;
use crate::model::manifest::{ObjectName, RangeDecisions};
use crate::model::offset::{Epoch, LogId, OffsetRange, ShardId};
use crate::model::series::SeriesId;
use crate::model::window::Millis;

/// Format version. Version 1 had one time per record, which was both append and received time;
/// version 2 had no outcomes.
const VERSION: &str = "3";
/// The versions that are read.
const VERSIONS: [&str; 3] = ["1", "2", VERSION];
/// There if the object says what became of its events. The value is for people.
const OUTCOMES: &str = "rollmill.outcomes";
const DECISIONS: &str = "rollmill.decisions";
const CHECKSUM_KEY: &str = "rollmill.crc32c";
/// In place of the checksum while it is computed; has as many digits.
const CHECKSUM_PLACEHOLDER: [u8; 8] = *b"00000000";
/// What follows the key in the file: the Thrift header of the next field, a string of eight bytes.
const CHECKSUM_FIELD: [u8; 2] = [0x18, 8];
/// Length of the metadata and magic number, four bytes each, which end a Parquet file.
const TAIL_LEN: usize = 8;

/// When the records of an object were received and appended. All bounds are inclusive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ObjectTimes {
    /// Append time of the first and last record.
    pub(super) appended: (Millis, Millis),
    /// Least and greatest received time, which need not be those of the first and last record.
    pub(super) received: (Millis, Millis),
}

impl ObjectTimes {
    /// Computes the times of consecutive records. Fails if `records` is empty.
    pub(super) fn of(records: &[LogRecord]) -> Result<Self, CodecError> {
        let none = || CodecError::new("archive object", "an object needs at least one record");
        let (first, last) = (records.first().ok_or_else(none)?, records.last().ok_or_else(none)?);
        let received = records.iter().map(|record| record.received);
        let range = received
            .fold((first.received, first.received), |(low, high), at| (low.min(at), high.max(at)));
        Ok(Self { appended: (first.appended, last.appended), received: range })
    }
}

/// The keys and values that identify the object.
pub(super) fn location_pairs(
    log: LogId,
    shard: ShardId,
    name: ObjectName,
) -> Vec<(&'static str, String)> {
    vec![
        ("rollmill.log", log.to_string()),
        ("rollmill.shard", shard.to_string()),
        ("rollmill.from", name.range.from.to_string()),
        ("rollmill.to", name.range.to.to_string()),
        ("rollmill.epoch", name.epoch.counter.to_string()),
        ("rollmill.nonce", format!("{:016x}", name.epoch.nonce)),
    ]
}

/// All keys and values of the footer.
pub(super) fn footer_pairs(
    log: LogId,
    shard: ShardId,
    name: ObjectName,
    times: ObjectTimes,
    decisions: &RangeDecisions,
) -> Result<Vec<(&'static str, String)>, CodecError> {
    let mut pairs = vec![("rollmill.version", VERSION.to_owned())];
    pairs.append(&mut location_pairs(log, shard, name));
    let range = |(low, high): (Millis, Millis)| format!("{low}..{high}");
    pairs.push(("rollmill.appended", range(times.appended)));
    pairs.push(("rollmill.received", range(times.received)));
    pairs.push((
        DECISIONS,
        serde_json::to_string(&WrittenDecisions::of(decisions)).map_err(|e| bad(e.to_string()))?,
    ));
    if decisions.outcomes.is_some() {
        pairs.push((OUTCOMES, "of every event".to_owned()));
    }
    // Last, because `checksum_position` takes the last occurrence of the key.
    pairs.push((CHECKSUM_KEY, String::from_utf8_lossy(&CHECKSUM_PLACEHOLDER).into_owned()));
    Ok(pairs)
}

/// The key-value metadata of an object that was read.
pub(super) struct ObjectFooter<'a>(pub(super) Option<&'a Vec<KeyValue>>);

impl ObjectFooter<'_> {
    fn value(&self, key: &str) -> Option<&str> {
        self.0
            .into_iter()
            .flatten()
            .find(|pair| pair.key == key)
            .and_then(|pair| pair.value.as_deref())
    }

    /// Checks the format version and that the footer names this object.
    pub(super) fn check(
        &self,
        log: LogId,
        shard: ShardId,
        name: ObjectName,
    ) -> Result<(), CodecError> {
        let version = self.value("rollmill.version").unwrap_or("nothing");
        if !VERSIONS.contains(&version) {
            return Err(bad(format!(
                "format version {version} is unknown, this build reads {}: use the version of \
                 Rollmill that wrote it",
                VERSIONS.join(", ")
            )));
        }
        for (key, expected) in location_pairs(log, shard, name) {
            if self.value(key) != Some(&expected) {
                let found = self.value(key).unwrap_or("nothing");
                return Err(bad(format!(
                    "its footer has {found} for {key}, expected was {expected}"
                )));
            }
        }
        Ok(())
    }

    /// Parses the identity of the object and checks the format version.
    pub(super) fn object(&self) -> Result<(LogId, ShardId, ObjectName), CodecError> {
        let text = |key: &'static str| {
            self.value(key).ok_or_else(|| bad(format!("its footer has no {key}")))
        };
        let number = |key| {
            text(key)?
                .parse::<u64>()
                .map_err(|e| bad(format!("its footer has no number for {key}: {e}")))
        };
        let digits = |key| {
            u128::from_str_radix(text(key)?, 16).map_err(|e| bad(format!("its footer: {key}: {e}")))
        };
        let log = LogId(digits("rollmill.log")?.to_be_bytes());
        let shard =
            ShardId(u32::try_from(number("rollmill.shard")?).map_err(|e| bad(e.to_string()))?);
        let range = OffsetRange::new(number("rollmill.from")?, number("rollmill.to")?)
            .ok_or_else(|| bad("its footer has a range that runs backwards"))?;
        let nonce = u64::try_from(digits("rollmill.nonce")?).map_err(|e| bad(e.to_string()))?;
        let name = ObjectName { range, epoch: Epoch { counter: number("rollmill.epoch")?, nonce } };
        self.check(log, shard, name)?;
        Ok((log, shard, name))
    }

    /// Whether the object says what became of its events.
    pub(super) fn has_outcomes(&self) -> bool {
        self.value(OUTCOMES).is_some()
    }

    /// The decisions about the records but for the outcomes, which are in the rows. `None` in
    /// objects written before decisions were recorded.
    pub(super) fn decisions(&self) -> Result<Option<RangeDecisions>, CodecError> {
        let Some(text) = self.value(DECISIONS) else { return Ok(None) };
        let written: WrittenDecisions =
            serde_json::from_str(text).map_err(|e| bad(format!("{DECISIONS}: {e}")))?;
        written.decisions().map(Some)
    }
}

/// The JSON form of [`RangeDecisions`].
#[derive(Debug, Serialize, Deserialize)]
struct WrittenDecisions {
    /// Series id (32 hexadecimal digits) and the offset that admitted it.
    admitted: Vec<(String, u64)>,
    /// Generation, series id and offset; none in objects of before there were generations.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    generations: Vec<(u64, String, u64)>,
    /// Offset, event index, and whether the event was given up. The name is part of the format.
    set_aside: Vec<(u64, u32, bool)>,
}

impl WrittenDecisions {
    fn of(decisions: &RangeDecisions) -> Self {
        let admitted =
            decisions.admitted.iter().map(|(id, offset)| (id.to_string(), *offset)).collect();
        let generations = decisions.generations.iter();
        let generations =
            generations.map(|(of, id, offset)| (of.0, id.to_string(), *offset)).collect();
        Self { admitted, generations, set_aside: decisions.quarantined.clone() }
    }

    fn decisions(self) -> Result<RangeDecisions, CodecError> {
        let id = |digits: &str| match digits.len() {
            32 => u128::from_str_radix(digits, 16)
                .map(|id| SeriesId(id.to_be_bytes()))
                .map_err(|e| bad(e.to_string())),
            _ => Err(bad(format!("{DECISIONS}: {digits:?} is no series id"))),
        };
        let admitted = self
            .admitted
            .iter()
            .map(|(digits, offset)| Ok((id(digits)?, *offset)))
            .collect::<Result<_, _>>()?;
        let generations = self.generations.iter();
        let generations = generations
            .map(|(of, digits, offset)| Ok((GenerationId(*of), id(digits)?, *offset)))
            .collect::<Result<_, CodecError>>()?;
        let quarantined = self.set_aside;
        Ok(RangeDecisions { admitted, generations, quarantined, outcomes: None })
    }
}

/// Position of the checksum's digits, or `None` if the object has no checksum.
fn checksum_position(bytes: &[u8]) -> Option<usize> {
    let (rest, tail) = bytes.split_at_checked(bytes.len().checked_sub(TAIL_LEN)?)?;
    let length = u32::from_le_bytes(tail.first_chunk().copied()?) as usize;
    let footer_at = rest.len().checked_sub(length)?;
    let wanted = [CHECKSUM_KEY.as_bytes(), &CHECKSUM_FIELD].concat();
    let found = rest[footer_at..].windows(wanted.len()).rposition(|window| window == wanted)?;
    let at = footer_at + found + wanted.len();
    (at + CHECKSUM_PLACEHOLDER.len() <= rest.len()).then_some(at)
}

fn checksum(bytes: &[u8], at: usize) -> [u8; 8] {
    let sum = crc32c::crc32c_append(crc32c::crc32c(&bytes[..at]), &CHECKSUM_PLACEHOLDER);
    let digits =
        format!("{:08x}", crc32c::crc32c_append(sum, &bytes[at + CHECKSUM_PLACEHOLDER.len()..]));
    digits.as_bytes().first_chunk().copied().unwrap_or(CHECKSUM_PLACEHOLDER)
}

/// Computes the checksum of a finished file and writes it over the placeholder.
pub(super) fn write_checksum(bytes: &mut [u8]) -> Result<(), CodecError> {
    let at = checksum_position(bytes).ok_or_else(|| bad("it has no place for its checksum"))?;
    let sum = checksum(bytes, at);
    bytes[at..at + sum.len()].copy_from_slice(&sum);
    Ok(())
}

/// Verifies the checksum; false if the object has none. Call it before parsing: the Parquet library
/// may panic on damaged bytes.
pub(super) fn verify_checksum(bytes: &Bytes) -> Result<bool, CodecError> {
    let Some(at) = checksum_position(bytes) else { return Ok(false) };
    let (found, expected) = (&bytes[at..at + CHECKSUM_PLACEHOLDER.len()], checksum(bytes, at));
    if found == expected {
        return Ok(true);
    }
    let text = String::from_utf8_lossy;
    Err(bad(format!("its CRC32C is {}, its footer says {}", text(&expected), text(found))))
}

fn bad(why: impl Into<String>) -> CodecError {
    CodecError::new("archive object", why)
}
