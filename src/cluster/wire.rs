//! The messages between nodes: a version byte, then MessagePack. Pure.
//!
//! A message carries the least version that can say it: one that names a generation besides
//! generation 0 is of version 4, everything else of version 3, byte for byte as before. So nodes of
//! both releases understand each other until a replay is served, and what an older node would
//! misread it refuses. A message of another version is refused with its number, never guessed at.
//! Times travel as ages
//! because the clocks of two nodes differ; the requester counts them back from the moment at which
//! it sent the request.

mod accounting;
mod catalogue;
mod live;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;

pub use self::accounting::{AccountingBody, AccountingRequest};
pub use self::catalogue::{CatalogueBody, CatalogueRequest, MetricRow};
pub use self::live::{DeltaRow, LiveBody, LiveRequest, MatcherText, ROW_BYTES};
use crate::actors::live::LiveError;
use crate::model::CodecError;
use crate::model::offset::{Checkpoint, Epoch, LogId, ShardId};

/// The newest version; any change of the messages below needs a new one.
pub const VERSION: u8 = 4;
/// Version of messages that name no generation besides generation 0.
const WITHOUT_GENERATIONS: u8 = 3;

/// A message that knows the least version that can say it.
pub trait WireMessage: Serialize {
    /// The least version that can say this message.
    fn version(&self) -> u8;
}

/// A request of one node to another.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum PeerRequest {
    /// A heartbeat; asks for a [`NodeAnnouncement`].
    Beat,
    /// Asks for the live deltas of some shards.
    Live(LiveRequest),
    /// Asks for the counts that some shards have not flushed yet.
    Accounting(AccountingRequest),
    /// Asks for the names that some shards add to the catalogue.
    Catalogue(CatalogueRequest),
}

impl WireMessage for PeerRequest {
    fn version(&self) -> u8 {
        let names_generations = match self {
            Self::Live(request) => !request.generations.is_empty(),
            Self::Catalogue(request) => !request.others.is_empty(),
            Self::Beat | Self::Accounting(_) => false,
        };
        if names_generations { VERSION } else { WITHOUT_GENERATIONS }
    }
}

/// The reply to a request. One answer per shard asked.
#[allow(missing_docs, reason = "the names say it")]
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum PeerReply {
    Beat(NodeAnnouncement),
    Live(Vec<ShardAnswer<LiveBody>>),
    Accounting(Vec<ShardAnswer<AccountingBody>>),
    Catalogue(Vec<ShardAnswer<CatalogueBody>>),
    /// The node serves as many requests as `cluster.max_reads` allows.
    Overloaded,
    /// The node does not accept the request; says why.
    Refused(String),
}

impl WireMessage for PeerReply {
    // The asker knows which generations it has asked for.
    fn version(&self) -> u8 {
        WITHOUT_GENERATIONS
    }
}

/// A shard with the exact position from which it is asked, or has answered.
#[allow(missing_docs, reason = "the names say it")]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShardCheckpoint {
    pub shard: u32,
    pub log: [u8; 16],
    /// The next offset to apply, which is the first one asked for.
    pub next: u64,
    /// The counter and the nonce of the epoch.
    pub epoch: (u64, u64),
}

impl ShardCheckpoint {
    /// The position of the shard in a query's snapshot.
    pub fn of(shard: ShardId, at: &Checkpoint) -> Self {
        Self {
            shard: shard.0,
            log: at.log.0,
            next: at.next,
            epoch: (at.epoch.counter, at.epoch.nonce),
        }
    }

    /// As a checkpoint without an archived offset, which live reads do not need.
    pub fn checkpoint(&self) -> Checkpoint {
        let epoch = Epoch { counter: self.epoch.0, nonce: self.epoch.1 };
        Checkpoint { log: LogId(self.log), next: self.next, archived: 0, epoch, appended: None }
    }
}

/// The answer of one shard, with the position that it answers from.
#[allow(missing_docs, reason = "the names say it")]
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ShardAnswer<B> {
    /// Equal to the position asked for; otherwise the answer is discarded.
    pub place: ShardCheckpoint,
    pub outcome: Result<B, ShardFailure>,
}

/// Why a shard has no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ShardFailure {
    /// It has changed owners or no longer keeps the batches above that position.
    Moved,
    /// The node does not own it.
    NotHere,
    /// The answer does not fit `cluster.max_answer`.
    TooLarge,
    /// It cannot start on that node until an operator fixes the cause.
    Stopped,
}

impl From<LiveError> for ShardFailure {
    // The peer reports only on its own shards, so an unreachable shard is simply not there.
    fn from(error: LiveError) -> Self {
        match error {
            LiveError::StaleCheckpoint => ShardFailure::Moved,
            LiveError::TooLarge => ShardFailure::TooLarge,
            LiveError::Stopped => ShardFailure::Stopped,
            LiveError::Unavailable | LiveError::Unreachable | LiveError::Overloaded => {
                ShardFailure::NotHere
            }
        }
    }
}

impl From<ShardFailure> for LiveError {
    fn from(failure: ShardFailure) -> Self {
        match failure {
            ShardFailure::Moved => LiveError::StaleCheckpoint,
            ShardFailure::NotHere => LiveError::Unavailable,
            ShardFailure::TooLarge => LiveError::TooLarge,
            ShardFailure::Stopped => LiveError::Stopped,
        }
    }
}

/// How fresh an answer is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct WireFreshness {
    /// How long ago everything appended by then had been applied, by the owner's clock.
    pub age_ms: i64,
    /// Number of records in the log that are not applied yet.
    pub behind: u64,
    /// Whether the owner is still applying what the log held when it claimed the shard.
    pub recovering: bool,
    /// Whether the shard has stopped until an operator fixes the cause.
    pub stopped: bool,
}

/// The reply to a heartbeat: the shards that a node owns and the windows it holds in memory.
#[allow(missing_docs, reason = "the names say it")]
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeAnnouncement {
    pub shards: Vec<ShardAnnouncement>,
    /// Shards that cannot start on the node until an operator fixes the cause.
    pub stopped: Vec<u32>,
    /// By hash of tenant and metric, the hours for which any owned shard holds deltas. None if
    /// there are too many to list.
    pub windows: Option<Vec<(u64, Vec<i32>)>>,
    /// The node's status for `/v1/status`; opaque to the mesh.
    pub card: ByteBuf,
}

/// The position of an owned shard: its memory holds the records `[from, applied)`.
#[allow(missing_docs, reason = "the names say it")]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShardAnnouncement {
    /// Start of its memory, with its epoch.
    pub from: ShardCheckpoint,
    /// How fresh its memory is.
    pub reach: WireFreshness,
}

/// Encodes a message with its version.
///
/// # Errors
/// If it cannot be serialised, which is a bug.
pub fn encode<T: WireMessage>(message: &T) -> Result<Vec<u8>, CodecError> {
    let mut bytes = vec![message.version()];
    rmp_serde::encode::write(&mut bytes, message)
        .map_err(|e| CodecError::new("mesh message", e.to_string()))?;
    Ok(bytes)
}

/// Decodes a message, after checking its version.
///
/// # Errors
/// If it has another version, or is malformed.
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, CodecError> {
    match bytes.split_first() {
        Some((&(WITHOUT_GENERATIONS..=VERSION), body)) => {
            rmp_serde::from_slice(body).map_err(|e| CodecError::new("mesh message", e.to_string()))
        }
        Some((other, _)) => {
            let why = format!(
                "it is of version {other}, this node speaks versions {WITHOUT_GENERATIONS} to \
                 {VERSION}: run the same release on all nodes"
            );
            Err(CodecError::new("mesh message", why))
        }
        None => Err(CodecError::new("mesh message", "it is empty")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::decimal::Decimal;
    use crate::model::matcher::Matcher;
    use crate::model::rollup::Rollup;
    use crate::model::window::Hour;

    fn rollup() -> Rollup {
        let mut rollup = Rollup::default();
        rollup.add(Some(Decimal::from_units(-1_500_000_000)), Some(7));
        rollup.add(None, Some(8));
        rollup
    }

    #[test]
    fn golden_bytes_of_a_question_and_an_answer() {
        let place = ShardCheckpoint { shard: 3, log: [9; 16], next: 5, epoch: (2, 77) };
        let ask = AccountingRequest { tenant: "t".to_owned(), from: 1, to: 2, places: vec![place] };
        let bytes = encode(&PeerRequest::Accounting(ask.clone())).expect("encodes");
        let hex: String = bytes.iter().map(|b| format!("{b:02x}")).collect();
        let log = "09".repeat(16);
        assert_eq!(hex, format!("0381aa4163636f756e74696e6794a1740102919403dc0010{log}0592024d"));
        assert_eq!(decode::<PeerRequest>(&bytes), Ok(PeerRequest::Accounting(ask)));
        let row = DeltaRow::of(0, Hour(4), &rollup(), false, false);
        let body = LiveBody {
            reach: WireFreshness { age_ms: 1, behind: 2, recovering: true, stopped: false },
            series: vec![ByteBuf::from(*b"k")],
            rows: vec![row],
        };
        let reply = PeerReply::Live(vec![
            ShardAnswer { place, outcome: Ok(body) },
            ShardAnswer { place, outcome: Err(ShardFailure::Moved) },
        ]);
        let bytes = encode(&reply).expect("encodes");
        assert_eq!((bytes[0], decode::<PeerReply>(&bytes)), (3, Ok(reply)));
    }

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|b| format!("{b:02x}")).collect()
    }

    #[test]
    fn golden_bytes_of_questions_with_and_without_generations() {
        let text = |text: &str| text.to_owned();
        let live = |generations| {
            PeerRequest::Live(LiveRequest {
                tenant: text("t"),
                metric: text("m"),
                from: 1,
                to: 30,
                distinct: false,
                quantiles: true,
                overflow: false,
                matchers: Vec::new(),
                places: Vec::new(),
                generations,
            })
        };
        let names = |others| {
            let (prefix, after) = (text("p"), text(""));
            let (tenant, values, places) = (text("t"), None, Vec::new());
            let limit = 5;
            PeerRequest::Catalogue(CatalogueRequest {
                tenant,
                values,
                prefix,
                after,
                limit,
                places,
                others,
            })
        };
        let (live_head, names_head) = ("81a44c697665", "81a9436174616c6f677565");
        for (message, golden) in [
            // As version 3 has always written them.
            (live(Vec::new()), format!("03{live_head}99a174a16d011ec2c3c29090")),
            (names(Vec::new()), format!("03{names_head}96a174c0a170a00590")),
            (
                live(vec![(1, 24, 0), (24, 30, 300)]),
                format!("04{live_head}9aa174a16d011ec2c3c2909092930118009318 1ecd012c")
                    .replace(' ', ""),
            ),
            (names(vec![(text("m"), 2)]), format!("04{names_head}97a174c0a170a005909192a16d02")),
        ] {
            let bytes = encode(&message).expect("encodes");
            assert_eq!(hex(&bytes), golden);
            assert_eq!(decode::<PeerRequest>(&bytes), Ok(message));
        }
    }

    #[test]
    fn rollups_come_back_to_the_bit_and_sketches_only_when_wanted() {
        let rollup = rollup();
        assert_eq!(DeltaRow::of(0, Hour(4), &rollup, true, true).rollup(), Ok(rollup.clone()));
        let bare = DeltaRow::of(0, Hour(4), &rollup, false, false).rollup().expect("decodes");
        assert_eq!(
            (bare.figures, bare.distinct.is_empty(), bare.quantiles.is_empty()),
            (rollup.figures, true, true)
        );
    }

    #[test]
    fn matchers_match_the_same_after_the_way() {
        let series = |page: &str| {
            crate::model::series::Series::new("t", "m", [("page".to_owned(), page.to_owned())])
        };
        let regex = |text: &str| regex::Regex::new(text).expect("an expression");
        for matcher in [
            Matcher::Equal("page".to_owned(), "/a".to_owned()),
            Matcher::NotEqual("page".to_owned(), "/a".to_owned()),
            Matcher::Regex("page".to_owned(), regex("^(?:/[ab])$")),
            Matcher::NotRegex("page".to_owned(), regex("^(?:/[ab])$")),
        ] {
            let text = MatcherText::from(&matcher);
            let bytes = rmp_serde::to_vec(&text).expect("encodes");
            let back = rmp_serde::from_slice::<MatcherText>(&bytes)
                .expect("decodes")
                .compile()
                .expect("compiles");
            for page in ["/a", "/b", "/c", ""] {
                assert_eq!(
                    back.matches(&series(page)),
                    matcher.matches(&series(page)),
                    "{text:?} {page}"
                );
            }
        }
    }

    #[test]
    fn another_version_and_garbage_are_refused_by_name() {
        let mut bytes = encode(&PeerRequest::Beat).expect("encodes");
        for version in [2, 5] {
            bytes[0] = version;
            let why = decode::<PeerRequest>(&bytes).expect_err("refused").to_string();
            let named = why.contains(&format!("version {version}"));
            assert!(named && why.contains("versions 3 to 4"), "{why}");
        }
        assert!(decode::<PeerRequest>(&[]).is_err());
        assert!(decode::<PeerRequest>(&[VERSION, 0xc1, 0xff]).is_err());
        let huge = [VERSION, 0x81, 0xa4, b'L', b'i', b'v', b'e', 0xdd, 0xff, 0xff, 0xff, 0xff];
        assert!(
            decode::<PeerReply>(&huge).is_err(),
            "a length without its bytes allocates nothing"
        );
        let too_large = MatcherText::Regex("a".to_owned(), "(a{1000}){1000}".to_owned());
        assert!(too_large.compile().is_err());
    }
}
