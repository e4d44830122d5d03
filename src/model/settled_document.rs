//! Documents in the archive of what people decided about events that were set aside: a rebuild
//! settles them again.
//!
//! Objects say what ingest decided. Who releases or discards an event later decides only in the
//! store, so that is written down beside the objects. A document has what was decided in one shard
//! since the one before. Names carry shard and number: of two documents that name an event, as
//! after a rollback of the store, the one with the greater number counts. Names also carry the last
//! record of which a document speaks: once that has expired, nobody needs to read it.

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
    /// Nothing: it waits for a decision. Only a document says so, and only of an event that an
    /// earlier one calls settled: the store has lost that since.
    Waiting,
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

    /// The name of the document, given its bytes.
    pub fn name(&self, number: u64, bytes: &[u8]) -> SettledName {
        SettledName {
            shard: ShardId(self.shard),
            number,
            last: self.events.iter().map(|event| event.offset).max().unwrap_or(0),
            hash: xxhash_rust::xxh3::xxh3_64(bytes),
        }
    }
}

/// Where the documents of a log are.
pub fn prefix(log: LogId) -> String {
    format!("settled/log={log}/")
}

/// A document's name. Of two documents of a shard, the greater name is the newer one.
#[allow(missing_docs, reason = "the names say it")]
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct SettledName {
    pub shard: ShardId,
    /// Grows with each document of the shard.
    pub number: u64,
    /// The greatest offset of an event in it.
    pub last: Offset,
    /// Hash of the bytes: nodes that write at the same time write over nothing.
    pub hash: u64,
}

impl SettledName {
    /// Where the document is.
    pub fn path(self, log: LogId) -> String {
        let Self { shard, number, last, hash } = self;
        format!("{}{:04}-{number:020}-{last:020}-{hash:016x}.json", prefix(log), shard.0)
    }

    /// Parses the path of a document; `None` for any other path.
    pub fn parse(log: LogId, path: &str) -> Option<Self> {
        let name = path.strip_prefix(&prefix(log))?.strip_suffix(".json")?;
        let mut parts = name.split('-');
        let name = Self {
            shard: ShardId(parts.next()?.parse().ok()?),
            number: parts.next()?.parse().ok()?,
            last: parts.next()?.parse().ok()?,
            hash: u64::from_str_radix(parts.next()?, 16).ok()?,
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
        let events = vec![
            event(5, Settlement::Released),
            event(9, Settlement::Discarded),
            event(6, Settlement::Waiting),
        ];
        SettledDocument { shard: 3, events }
    }

    #[test]
    fn the_bytes_are_those_of_every_release_and_every_damaged_byte_is_found() {
        let bytes = document().encode().expect("encoded");
        let text = String::from_utf8(bytes.clone()).expect("text");
        let content = r#"{"shard":3,"events":[{"offset":5,"index":2,"settlement":"released"},{"offset":9,"index":2,"settlement":"discarded"},{"offset":6,"index":2,"settlement":"waiting"}]}"#;
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
        let name = document().name(7, b"x");
        assert_eq!((name.shard, name.number, name.last), (ShardId(3), 7, 9));
        assert_eq!(SettledName::parse(LOG, &name.path(LOG)), Some(name));
        let file = "0003-00000000000000000007-00000000000000000009-";
        assert!(name.path(LOG).starts_with(&format!("{}{file}", prefix(LOG))));
        assert!(
            name < SettledName { number: 8, last: 0, ..name }
                && name < SettledName { shard: ShardId(4), ..name }
        );
        let path = name.path(LOG);
        for wrong in [name.path(LogId([8; 16])), format!("{path}x"), path.replace("0003-", "3-")] {
            assert_eq!(SettledName::parse(LOG, &wrong), None, "{wrong}");
        }
    }
}
