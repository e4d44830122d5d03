//! Documents in the archive of what people decided about events that were set aside: a rebuild
//! settles them again.
//!
//! Objects say what ingest decided. Who releases or discards an event later decides only in the
//! store, so that is written down beside the objects. A document has what was decided in one shard
//! since the one before. Names carry shard and number: of two documents that name an event, as
//! after a rollback of the store, the one with the greater number counts.

use serde::{Deserialize, Serialize};

use super::CodecError;
use super::offset::{LogId, Offset, ShardId};
use super::replay_document::{decode_as, encode_as};

/// What the first line calls the second one.
const KIND: &str = "settled";

/// What became of an event that had been set aside.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Settlement {
    /// It is counted.
    Released,
    /// It never will be.
    Discarded,
}

/// An event, and what was decided about it.
#[allow(missing_docs, reason = "the names say it")]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct SettledEvent {
    pub offset: Offset,
    pub index: u32,
    pub settlement: Settlement,
}

/// What was decided in one shard.
#[allow(missing_docs, reason = "the names say it")]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SettledDocument {
    pub shard: u32,
    pub events: Vec<SettledEvent>,
}

impl SettledDocument {
    /// The bytes of the document.
    ///
    /// # Errors
    /// If it has no JSON form.
    pub fn encode(&self) -> Result<Vec<u8>, CodecError> {
        encode_as(KIND, self)
    }

    /// Reads a document.
    ///
    /// # Errors
    /// If it is damaged, or of a format that this build does not know.
    pub fn decode(bytes: &[u8]) -> Result<Self, CodecError> {
        decode_as(KIND, bytes)
    }
}

/// Where the documents of a log are.
pub fn prefix(log: LogId) -> String {
    format!("settled/log={log}/")
}

/// A document's name.
#[allow(missing_docs, reason = "the names say it")]
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct SettledName {
    pub shard: ShardId,
    /// Grows with each document of the shard.
    pub number: u64,
    /// Hash of the bytes: nodes that write at the same time write over nothing.
    pub hash: u64,
}

impl SettledName {
    /// The name of a document.
    pub fn new(shard: ShardId, number: u64, bytes: &[u8]) -> Self {
        Self { shard, number, hash: xxhash_rust::xxh3::xxh3_64(bytes) }
    }

    /// Where the document is.
    pub fn path(self, log: LogId) -> String {
        format!("{}{:04}-{:020}-{:016x}.json", prefix(log), self.shard.0, self.number, self.hash)
    }

    /// Parses the path of a document; `None` for any other path.
    pub fn parse(log: LogId, path: &str) -> Option<Self> {
        let name = path.strip_prefix(&prefix(log))?.strip_suffix(".json")?;
        let mut parts = name.split('-');
        let (shard, number, hash) = (parts.next()?, parts.next()?, parts.next()?);
        let name = Self {
            shard: ShardId(shard.parse().ok()?),
            number: number.parse().ok()?,
            hash: u64::from_str_radix(hash, 16).ok()?,
        };
        (name.path(log) == path).then_some(name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOG: LogId = LogId([7; 16]);

    fn document() -> SettledDocument {
        let event = |offset, settlement| SettledEvent { offset, index: 2, settlement };
        let events = vec![event(5, Settlement::Released), event(9, Settlement::Discarded)];
        SettledDocument { shard: 3, events }
    }

    #[test]
    fn the_bytes_are_those_of_every_release_and_every_damaged_byte_is_found() {
        let bytes = document().encode().expect("encoded");
        let text = String::from_utf8(bytes.clone()).expect("text");
        let content = r#"{"shard":3,"events":[{"offset":5,"index":2,"settlement":"released"},{"offset":9,"index":2,"settlement":"discarded"}]}"#;
        let sum = crc32c::crc32c(content.as_bytes());
        let first = format!(r#"{{"rollmill":"settled","format":1,"crc32c":"{sum:08x}"}}"#);
        assert_eq!(text, format!("{first}\n{content}\n"));
        assert_eq!(SettledDocument::decode(&bytes), Ok(document()));
        for at in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[at] ^= 1;
            assert!(SettledDocument::decode(&damaged).is_err(), "byte {at}");
        }
        let other = crate::model::replay_document::encode(&document()).expect("encoded");
        assert!(SettledDocument::decode(&other).is_err(), "of another kind");
    }

    #[test]
    fn names_read_as_they_print_and_sort_by_shard_and_number() {
        let name = SettledName::new(ShardId(3), 7, b"x");
        assert_eq!(SettledName::parse(LOG, &name.path(LOG)), Some(name));
        assert!(
            name < SettledName::new(ShardId(3), 8, b"")
                && name < SettledName { shard: ShardId(4), ..name }
        );
        let path = name.path(LOG);
        for wrong in [name.path(LogId([8; 16])), format!("{path}x"), path.replace("0003-", "3-")] {
            assert_eq!(SettledName::parse(LOG, &wrong), None, "{wrong}");
        }
    }
}
