//! Documents in the archive from which replays are rebuilt: the book of generations, and what each
//! fill has admitted.
//!
//! Names carry what counts of the content: a book is named by its version and a hash of what it
//! decides, a fill by generation, shard, cut and hash. So nodes that write at the same time write
//! the same, or to different places. A document is two lines of JSON: what it is, with a checksum of
//! the second one; and its content.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::CodecError;
use super::generation::GenerationId;
use super::generation_book::GenerationBook;
use super::offset::{LogId, Offset, ShardId};
use super::series::SeriesId;

/// Format version of the documents.
const FORMAT: u32 = 1;
/// What the first line calls the second one.
const KIND: &str = "replays";

/// The book, and where each shard's records divide into those of the live writer and the fill.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BookDocument {
    /// The book as it was stored.
    pub book: GenerationBook,
    /// The cuts of all generations that are served: a rebuild brings back no others.
    pub cuts: Vec<CutReference>,
}

/// From where on a shard has written a generation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CutReference {
    /// The generation.
    pub generation: GenerationId,
    /// The number of the shard.
    pub shard: u32,
    /// The first record of the live writer.
    pub cut: Offset,
    /// The document of what the fill has admitted; `None` if it is not complete.
    pub fill: Option<String>,
}

/// What a complete fill has admitted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FillDocument {
    /// The generation.
    pub generation: GenerationId,
    /// The number of the shard.
    pub shard: u32,
    /// Exclusive end of the records.
    pub cut: Offset,
    /// Series id (32 hexadecimal digits) and the offset that admitted it.
    admitted: Vec<(String, Offset)>,
}

impl FillDocument {
    /// The document of a fill.
    pub fn new(
        generation: GenerationId,
        shard: ShardId,
        cut: Offset,
        admitted: &[(SeriesId, Offset)],
    ) -> Self {
        let mut admitted: Vec<_> =
            admitted.iter().map(|(id, offset)| (id.to_string(), *offset)).collect();
        admitted.sort_unstable();
        Self { generation, shard: shard.0, cut, admitted }
    }

    /// What was admitted.
    ///
    /// # Errors
    /// If something in it is no series id.
    pub fn admitted(&self) -> Result<Vec<(SeriesId, Offset)>, CodecError> {
        let parse = |(digits, offset): &(String, Offset)| {
            let id = u128::from_str_radix(digits, 16).ok().filter(|_| digits.len() == 32);
            let id = id.ok_or_else(|| bad(format!("{digits:?} is no series id")))?;
            Ok((SeriesId(id.to_be_bytes()), *offset))
        };
        self.admitted.iter().map(parse).collect()
    }

    /// Where the document is, given its bytes.
    pub fn path(&self, log: LogId, bytes: &[u8]) -> String {
        format!(
            "{}fill-{:010}-{:04}-{:020}-{:016x}.json",
            prefix(log),
            self.generation.0,
            self.shard,
            self.cut,
            xxhash_rust::xxh3::xxh3_64(bytes)
        )
    }
}

/// Where the documents of a log are.
pub fn prefix(log: LogId) -> String {
    format!("replays/log={log}/")
}

/// A book's name. Books whose names have the same hash decide the same: between them, nothing but
/// time has passed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct BookName {
    /// Version of the book.
    pub version: u64,
    /// Hash of its [decisions](GenerationBook::decisions). Of a store that was rolled back, other
    /// books have the same versions.
    pub hash: u64,
}

impl BookName {
    /// The name of a book.
    ///
    /// # Errors
    /// If it cannot be encoded.
    pub fn of(book: &GenerationBook) -> Result<Self, CodecError> {
        let text = serde_json::to_string(&book.decisions()).map_err(|e| bad(e.to_string()))?;
        Ok(Self { version: book.version(), hash: xxhash_rust::xxh3::xxh3_64(text.as_bytes()) })
    }

    /// Where the book's document is.
    pub fn path(self, log: LogId) -> String {
        format!("{}book-{:020}-{:016x}.json", prefix(log), self.version, self.hash)
    }

    /// Parses the path of a book's document; `None` for any other path.
    pub fn parse(log: LogId, path: &str) -> Option<Self> {
        let name = path.strip_prefix(&prefix(log))?.strip_prefix("book-")?.strip_suffix(".json")?;
        let (version, hash) = name.split_once('-')?;
        let name =
            Self { version: version.parse().ok()?, hash: u64::from_str_radix(hash, 16).ok()? };
        (name.path(log) == path).then_some(name)
    }
}

/// The first line of a document.
#[derive(Debug, Serialize, Deserialize)]
struct Header {
    /// What the second line is.
    rollmill: String,
    format: u32,
    crc32c: String,
}

/// Encodes a document.
///
/// # Errors
/// If it has no JSON form.
pub fn encode(document: &impl Serialize) -> Result<Vec<u8>, CodecError> {
    encode_as(KIND, document)
}

/// Encodes a document of a kind, as [`encode`] does.
///
/// # Errors
/// If it has no JSON form.
pub(super) fn encode_as(kind: &str, document: &impl Serialize) -> Result<Vec<u8>, CodecError> {
    let content = serde_json::to_string(document).map_err(|e| bad(e.to_string()))?;
    let header = Header {
        rollmill: kind.to_owned(),
        format: FORMAT,
        crc32c: format!("{:08x}", crc32c::crc32c(content.as_bytes())),
    };
    let header = serde_json::to_string(&header).map_err(|e| bad(e.to_string()))?;
    Ok(format!("{header}\n{content}\n").into_bytes())
}

/// Decodes a document.
///
/// # Errors
/// If it is damaged, or of a format that this build does not know.
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, CodecError> {
    decode_as(KIND, bytes)
}

/// Decodes a document of a kind, as [`decode`] does.
///
/// # Errors
/// If it is damaged, of another kind, or of a format that this build does not know.
pub(super) fn decode_as<T: DeserializeOwned>(kind: &str, bytes: &[u8]) -> Result<T, CodecError> {
    let text = std::str::from_utf8(bytes).map_err(|e| bad(e.to_string()))?;
    let lines = text
        .split_once('\n')
        .and_then(|(header, rest)| rest.strip_suffix('\n').map(|content| (header, content)));
    let (header, content) = lines.ok_or_else(|| bad("it is cut off".to_owned()))?;
    let header: Header = serde_json::from_str(header).map_err(|e| bad(e.to_string()))?;
    if header.rollmill != kind {
        let found = header.rollmill;
        return Err(bad(format!("it is a document of {found:?}, not of {kind:?}")));
    }
    if header.format != FORMAT {
        let found = header.format;
        return Err(bad(format!("format {found} is unknown, this build reads {FORMAT}")));
    }
    let sum = format!("{:08x}", crc32c::crc32c(content.as_bytes()));
    if sum != header.crc32c {
        return Err(bad(format!("its CRC32C is {sum}, its first line says {}", header.crc32c)));
    }
    serde_json::from_str(content).map_err(|e| bad(e.to_string()))
}

fn bad(why: String) -> CodecError {
    CodecError::new("document in the archive", why)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::generation::DayRange;
    use crate::model::generation_book::NewGeneration;

    const LOG: LogId = LogId([7; 16]);

    fn document() -> BookDocument {
        let mut book = GenerationBook::default();
        let new = NewGeneration {
            tenant: "t".to_owned(),
            metrics: vec!["m".to_owned()],
            days: DayRange::new(0, None).expect("days"),
            rules: "{}".into(),
            started: (1, "k".to_owned()),
        };
        let generation = book.start(new, 3, 1).expect("started");
        book.apply(generation, 5).expect("applied");
        BookDocument { book, cuts: vec![CutReference { generation, shard: 3, cut: 9, fill: None }] }
    }

    #[test]
    fn a_document_is_read_as_it_was_written_and_every_damaged_byte_is_found() {
        let bytes = encode(&document()).expect("encoded");
        assert_eq!(decode::<BookDocument>(&bytes), Ok(document()));
        for at in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[at] ^= 1;
            assert!(decode::<BookDocument>(&damaged).is_err(), "byte {at}");
            assert!(decode::<BookDocument>(&bytes[..at]).is_err());
        }
        let fill = FillDocument::new(GenerationId(1), ShardId(3), 9, &[(SeriesId([5; 16]), 4)]);
        let bytes = encode(&fill).expect("encoded");
        let read: FillDocument = decode(&bytes).expect("decoded");
        assert_eq!(read.admitted(), Ok(vec![(SeriesId([5; 16]), 4)]));
    }

    #[test]
    fn the_bytes_of_a_fill_are_those_of_every_release() {
        let fill = FillDocument::new(GenerationId(1), ShardId(3), 9, &[(SeriesId([5; 16]), 4)]);
        let text = String::from_utf8(encode(&fill).expect("encoded")).expect("text");
        let expected = "{\"rollmill\":\"replays\",\"format\":1,\"crc32c\":\"SUM\"}\n\
                        {\"generation\":1,\"shard\":3,\"cut\":9,\"admitted\":\
                        [[\"05050505050505050505050505050505\",4]]}\n";
        let content = expected.split_once('\n').expect("two lines").1.trim_end();
        let sum = format!("{:08x}", crc32c::crc32c(content.as_bytes()));
        assert_eq!(text, expected.replace("SUM", &sum));
        let path = fill.path(LOG, text.as_bytes());
        let name = format!("{}fill-0000000001-0003-00000000000000000009-", prefix(LOG));
        assert!(path.starts_with(&name), "{path}");
    }

    #[test]
    fn books_are_told_apart_by_version_and_content() {
        let name = BookName::of(&document().book).expect("a name");
        assert_eq!(name.version, document().book.version());
        assert_eq!(BookName::parse(LOG, &name.path(LOG)), Some(name));
        let mut other = document().book;
        assert!(other.gather(1, 100, 3), "time passes");
        let later = BookName::of(&other).expect("a name");
        assert_eq!((later.version, later.hash), (name.version + 1, name.hash));
        assert!(other.gather(100, 100, 3), "the way back is lost");
        let lost = BookName::of(&other).expect("a name");
        assert!(lost > later && lost.hash != name.hash);
        let mut other = document().book;
        other.undo(GenerationId(1)).expect("undone");
        let undone = BookName::of(&other).expect("a name");
        assert!(undone > name && undone.hash != name.hash);
        for path in [name.path(LogId([8; 16])), name.path(LOG) + "x", "book-1-2.json".to_owned()] {
            assert_eq!(BookName::parse(LOG, &path), None, "{path}");
        }
    }
}
