//! The messages between nodes: a version byte, then MessagePack. Pure.
//!
//! A message of another version is refused with its number, never guessed at. Times travel as ages
//! because the clocks of two nodes differ; the requester counts them back from the moment at which
//! it sent the request.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;

use crate::actors::catalogue::{
    CatalogueGrowth, CatalogueNames, CatalogueQuery, MAX_NAMES, NewMetric,
};
use crate::actors::live::LiveError;
use crate::model::CodecError;
use crate::model::decimal::Decimal;
use crate::model::flush::AccountingDelta;
use crate::model::matcher::Matcher;
use crate::model::offset::{Checkpoint, Epoch, LogId, ShardId};
use crate::model::rollup::{Rollup, RollupFigures};
use crate::model::window::Hour;

/// Version of all messages below; any change of theirs needs a new one.
pub const VERSION: u8 = 3;

/// Memory limit of one compiled expression in bytes, the same as on the requesting node.
const REGEX_BYTES: usize = 1 << 20;

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

/// A matcher: label name, then the value or the text of an anchored expression.
#[allow(missing_docs, reason = "the names say it")]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum MatcherText {
    Equal(String, String),
    NotEqual(String, String),
    Regex(String, String),
    NotRegex(String, String),
}

impl From<&Matcher> for MatcherText {
    fn from(matcher: &Matcher) -> Self {
        match matcher {
            Matcher::Equal(name, value) => Self::Equal(name.clone(), value.clone()),
            Matcher::NotEqual(name, value) => Self::NotEqual(name.clone(), value.clone()),
            Matcher::Regex(name, regex) => Self::Regex(name.clone(), regex.as_str().to_owned()),
            Matcher::NotRegex(name, regex) => {
                Self::NotRegex(name.clone(), regex.as_str().to_owned())
            }
        }
    }
}

impl MatcherText {
    /// Compiles the expression of a regex matcher.
    ///
    /// # Errors
    /// If an expression is invalid or too large.
    pub fn compile(self) -> Result<Matcher, CodecError> {
        let regex = |text: &str| {
            let built = regex::RegexBuilder::new(text).size_limit(REGEX_BYTES).build();
            built.map_err(|e| CodecError::new("matcher", format!("{text:?}: {e}")))
        };
        Ok(match self {
            Self::Equal(name, value) => Matcher::Equal(name, value),
            Self::NotEqual(name, value) => Matcher::NotEqual(name, value),
            Self::Regex(name, text) => Matcher::Regex(name, regex(&text)?),
            Self::NotRegex(name, text) => Matcher::NotRegex(name, regex(&text)?),
        })
    }
}

/// Asks for the live deltas of some shards.
#[allow(missing_docs, reason = "the names say it")]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LiveRequest {
    pub tenant: String,
    pub metric: String,
    /// Inclusive, in hours since 1970.
    pub from: i32,
    /// Exclusive, in hours since 1970.
    pub to: i32,
    /// Whether to send the sketches of distinct users.
    pub distinct: bool,
    /// Whether to send the quantile sketches.
    pub quantiles: bool,
    /// Whether to send the overflow series, whatever the matchers say.
    pub overflow: bool,
    /// A series must pass all of them.
    pub matchers: Vec<MatcherText>,
    /// The shards, each with the position to answer from.
    pub places: Vec<ShardCheckpoint>,
}

/// Asks for the unflushed event counts of some shards.
#[allow(missing_docs, reason = "the names say it")]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AccountingRequest {
    pub tenant: String,
    /// Hour of append, inclusive.
    pub from: i32,
    /// Hour of append, exclusive.
    pub to: i32,
    /// The shards, each with the position to answer from.
    pub places: Vec<ShardCheckpoint>,
}

/// Asks for the names that some shards add to the catalogue.
#[allow(missing_docs, reason = "the names say it")]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CatalogueRequest {
    pub tenant: String,
    /// The label whose values are wanted, of one metric or of all. None asks for metric names.
    pub values: Option<(String, Option<String>)>,
    /// Only names that start with this.
    pub prefix: String,
    /// Only names greater than this one.
    pub after: String,
    /// Maximum number of names, in ascending order.
    pub limit: u64,
    /// The shards, each with the position to answer from.
    pub places: Vec<ShardCheckpoint>,
}

impl CatalogueRequest {
    /// The request for these shards.
    pub fn of(question: &CatalogueQuery<'_>, places: Vec<ShardCheckpoint>) -> Self {
        let values = match question.names {
            CatalogueNames::Metrics => None,
            CatalogueNames::Values(label, metric) => {
                Some((label.to_owned(), metric.map(str::to_owned)))
            }
        };
        let (prefix, after) = (question.prefix.to_owned(), question.after.to_owned());
        Self {
            tenant: question.tenant.to_owned(),
            values,
            prefix,
            after,
            limit: question.limit as u64,
            places,
        }
    }

    /// The query in the terms of the catalogue.
    ///
    /// # Errors
    /// If it asks for more names than a reply may hold.
    pub fn query(&self) -> Result<CatalogueQuery<'_>, CodecError> {
        let limit = usize::try_from(self.limit).unwrap_or(usize::MAX);
        if limit > MAX_NAMES {
            return Err(CodecError::new(
                "question",
                format!("it is for more than {MAX_NAMES} names"),
            ));
        }
        let names = match &self.values {
            None => CatalogueNames::Metrics,
            Some((label, metric)) => CatalogueNames::Values(label, metric.as_deref()),
        };
        Ok(CatalogueQuery {
            tenant: &self.tenant,
            names,
            prefix: &self.prefix,
            after: &self.after,
            limit,
        })
    }
}

/// The names that one shard adds to the catalogue.
#[allow(missing_docs, reason = "the names say it")]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CatalogueBody {
    /// How fresh the answer is.
    pub reach: WireFreshness,
    /// Ascending by name; empty if values were asked for.
    pub metrics: Vec<MetricRow>,
    /// Ascending; empty if metrics were asked for.
    pub values: Vec<String>,
}

/// What one shard adds to one metric.
#[allow(missing_docs, reason = "the names say it")]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MetricRow {
    pub metric: String,
    pub labels: Vec<String>,
    /// Number of series, without the overflow series.
    pub series: u64,
    /// Whether the shard has an overflow series that the store lacks.
    pub overflow: bool,
    /// First and last window; None if there are only series.
    pub hours: Option<(i32, i32)>,
}

impl CatalogueBody {
    /// The wire form of a shard's growth.
    pub fn of(reach: WireFreshness, growth: CatalogueGrowth) -> Self {
        let row = |(metric, new): (String, NewMetric)| MetricRow {
            metric,
            labels: new.labels.into_iter().collect(),
            series: new.series,
            overflow: new.overflow,
            hours: new.hours.map(|(first, last)| (first.0, last.0)),
        };
        Self {
            reach,
            metrics: growth.metrics.into_iter().map(row).collect(),
            values: growth.values.into_iter().collect(),
        }
    }

    /// The shard's growth, validated against the query.
    ///
    /// # Errors
    /// If it contains anything that was not asked for.
    pub fn growth(&self, question: &CatalogueQuery<'_>) -> Result<CatalogueGrowth, CodecError> {
        let foreign = |what: &str| {
            CodecError::new("catalogue", format!("it holds {what}, which was not asked for"))
        };
        let (count, alone) = match question.names {
            CatalogueNames::Metrics => (self.metrics.len(), self.values.is_empty()),
            CatalogueNames::Values(..) => (self.values.len(), self.metrics.is_empty()),
        };
        if count > question.limit || !alone {
            return Err(foreign("other names, or more of them"));
        }
        let mut names = self.metrics.iter().map(|row| &row.metric).chain(&self.values);
        if let Some(name) = names.find(|name| !question.contains(name)) {
            return Err(foreign(&format!("the name {name:?}")));
        }
        let new = |row: &MetricRow| NewMetric {
            labels: row.labels.iter().cloned().collect(),
            series: row.series,
            overflow: row.overflow,
            hours: row.hours.map(|(first, last)| (Hour(first), Hour(last))),
        };
        let metrics = self.metrics.iter().map(|row| (row.metric.clone(), new(row))).collect();
        Ok(CatalogueGrowth { metrics, values: self.values.iter().cloned().collect() })
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

/// The live deltas of one shard.
#[allow(missing_docs, reason = "the names say it")]
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LiveBody {
    /// How fresh the answer is.
    pub reach: WireFreshness,
    /// Series keys; rows refer to them by index.
    pub series: Vec<ByteBuf>,
    pub rows: Vec<DeltaRow>,
}

/// One delta. Sketches are in their stored form, and empty if not wanted.
#[allow(missing_docs, reason = "the names say it")]
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DeltaRow {
    /// Index of its series in [`LiveBody::series`].
    pub series: u32,
    /// In hours since 1970.
    pub hour: i32,
    /// Event count and value count.
    pub counts: (u64, u64),
    /// In units of 10^-9, as a big-endian i128.
    pub sum: ByteBuf,
    /// Minimum and maximum like `sum`; empty if no event has a value.
    pub bounds: (ByteBuf, ByteBuf),
    pub distinct: ByteBuf,
    pub quantiles: ByteBuf,
}

/// Upper bound of the bytes of a row without its sketches.
pub const ROW_BYTES: usize = 96;

fn units(units: Option<i128>) -> ByteBuf {
    units.map_or_else(ByteBuf::new, |units| ByteBuf::from(units.to_be_bytes()))
}

fn from_units(bytes: &ByteBuf) -> Result<Option<i128>, CodecError> {
    match bytes.len() {
        0 => Ok(None),
        _ => match bytes.as_slice().try_into() {
            Ok(bytes) => Ok(Some(i128::from_be_bytes(bytes))),
            Err(_) => Err(CodecError::new("delta", format!("a number of {} bytes", bytes.len()))),
        },
    }
}

impl DeltaRow {
    /// Encodes a delta with the wanted sketches.
    pub fn of(series: u32, hour: Hour, rollup: &Rollup, distinct: bool, quantiles: bool) -> Self {
        let figures = &rollup.figures;
        let mut sketches = (Vec::new(), Vec::new());
        if distinct && !rollup.distinct.is_empty() {
            rollup.distinct.encode(&mut sketches.0);
        }
        if quantiles && !rollup.quantiles.is_empty() {
            rollup.quantiles.encode(&mut sketches.1);
        }
        Self {
            series,
            hour: hour.0,
            counts: (figures.count, figures.value_count),
            sum: units(Some(figures.sum)),
            bounds: (
                units(figures.min.map(Decimal::units)),
                units(figures.max.map(Decimal::units)),
            ),
            distinct: ByteBuf::from(sketches.0),
            quantiles: ByteBuf::from(sketches.1),
        }
    }

    /// Decodes the delta with its sketches.
    ///
    /// # Errors
    /// If a number or a sketch is malformed.
    pub fn rollup(&self) -> Result<Rollup, CodecError> {
        let figures = RollupFigures {
            count: self.counts.0,
            value_count: self.counts.1,
            sum: from_units(&self.sum)?.unwrap_or(0),
            min: from_units(&self.bounds.0)?.map(Decimal::from_units),
            max: from_units(&self.bounds.1)?.map(Decimal::from_units),
        };
        Rollup::with_sketches(figures, &self.distinct, &self.quantiles)
    }

    /// Upper bound of the encoded bytes.
    pub fn bytes(&self) -> usize {
        ROW_BYTES + self.distinct.len() + self.quantiles.len()
    }
}

/// The unflushed event counts of one shard.
#[allow(missing_docs, reason = "the names say it")]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AccountingBody {
    /// How fresh the answer is.
    pub reach: WireFreshness,
    /// Hour of append with the counts of aggregated, de-duplicated and quarantined events.
    pub hours: Vec<(i32, [u64; 3])>,
}

impl AccountingBody {
    /// The rows of the tenant that was asked for.
    pub fn rows(&self, tenant: &str) -> impl Iterator<Item = AccountingDelta> {
        self.hours.iter().map(|(hour, [aggregated, deduplicated, quarantined])| AccountingDelta {
            tenant: tenant.to_owned(),
            hour: Hour(*hour),
            aggregated: *aggregated,
            deduplicated: *deduplicated,
            quarantined: *quarantined,
        })
    }
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
pub fn encode<T: Serialize>(message: &T) -> Result<Vec<u8>, CodecError> {
    let mut bytes = vec![VERSION];
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
        Some((&VERSION, body)) => {
            rmp_serde::from_slice(body).map_err(|e| CodecError::new("mesh message", e.to_string()))
        }
        Some((other, _)) => {
            let why = format!(
                "it is of version {other}, this node speaks version {VERSION}: run the same \
                 release on all nodes"
            );
            Err(CodecError::new("mesh message", why))
        }
        None => Err(CodecError::new("mesh message", "it is empty")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
        assert_eq!(decode::<PeerReply>(&encode(&reply).expect("encodes")), Ok(reply));
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
            let back = decode::<MatcherText>(&encode(&text).expect("encodes"))
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
        bytes[0] = 4;
        let why = decode::<PeerRequest>(&bytes).expect_err("refused").to_string();
        assert!(why.contains("version 4") && why.contains("version 3"), "{why}");
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
