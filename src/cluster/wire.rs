//! What nodes say to each other: one byte of version, then MessagePack. Pure.
//!
//! A message of another version is refused with its number, never guessed at. Times travel as ages,
//! because the clocks of two nodes differ: the asker counts them back from the moment at which it
//! asked.

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

/// Version of everything below.
pub const VERSION: u8 = 3;

/// Memory of one compiled expression of a question: what its asker has granted it.
const REGEX_BYTES: usize = 1 << 20;

/// What one node asks of another.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum PeerRequest {
    /// Are you there, and what do you own?
    Beat,
    /// The live deltas of some shards.
    Live(LiveRequest),
    /// What some shards have counted.
    Accounting(AccountingRequest),
    /// The names that some shards add to the catalogue.
    Catalogue(CatalogueRequest),
}

/// What it answers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum PeerReply {
    /// What it owns.
    Beat(NodeAnnouncement),
    /// The answer of each shard asked.
    Live(Vec<ShardAnswer<LiveBody>>),
    /// The answer of each shard asked.
    Accounting(Vec<ShardAnswer<AccountingBody>>),
    /// The answer of each shard asked.
    Catalogue(Vec<ShardAnswer<CatalogueBody>>),
    /// It answers as many questions as it may.
    Overloaded,
    /// It does not understand the question; says why.
    Refused(String),
}

/// A shard and the exact place in it from which on it is asked, or from which on it has answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShardCheckpoint {
    /// The shard.
    pub shard: u32,
    /// The log.
    pub log: [u8; 16],
    /// The checkpoint's next offset.
    pub next: u64,
    /// Counter and nonce of the epoch.
    pub epoch: (u64, u64),
}

impl ShardCheckpoint {
    /// Where the snapshot of a query stands.
    pub fn of(shard: ShardId, at: &Checkpoint) -> Self {
        Self {
            shard: shard.0,
            log: at.log.0,
            next: at.next,
            epoch: (at.epoch.counter, at.epoch.nonce),
        }
    }

    /// The checkpoint asked for; nobody asks for its archived offset.
    pub fn checkpoint(&self) -> Checkpoint {
        let epoch = Epoch { counter: self.epoch.0, nonce: self.epoch.1 };
        Checkpoint { log: LogId(self.log), next: self.next, archived: 0, epoch, appended: None }
    }
}

/// A matcher; expressions travel as text.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum MatcherText {
    /// `name="value"`
    Equal(String, String),
    /// `name!="value"`
    NotEqual(String, String),
    /// `name=~"regex"`, anchored.
    Regex(String, String),
    /// `name!~"regex"`, anchored.
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
    /// The matcher.
    ///
    /// # Errors
    /// If an expression is not valid or too large.
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

/// A question about live deltas.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LiveRequest {
    /// Whose.
    pub tenant: String,
    /// Which metric.
    pub metric: String,
    /// First hour.
    pub from: i32,
    /// First hour behind.
    pub to: i32,
    /// Whether distinct users are wanted.
    pub distinct: bool,
    /// Whether quantiles are wanted.
    pub quantiles: bool,
    /// Whether the overflow series is wanted, whatever the matchers say.
    pub overflow: bool,
    /// All must match.
    pub matchers: Vec<MatcherText>,
    /// Which shards, from where on.
    pub places: Vec<ShardCheckpoint>,
}

/// A question about accounting.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AccountingRequest {
    /// Whose.
    pub tenant: String,
    /// First hour of append.
    pub from: i32,
    /// First hour behind.
    pub to: i32,
    /// Which shards, from where on.
    pub places: Vec<ShardCheckpoint>,
}

/// A question about names.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CatalogueRequest {
    /// Whose.
    pub tenant: String,
    /// The label whose values are wanted, of one metric or of all; otherwise the names of metrics
    /// are.
    pub values: Option<(String, Option<String>)>,
    /// They begin with this.
    pub prefix: String,
    /// They come after this one.
    pub after: String,
    /// At most so many, the first ones.
    pub limit: u64,
    /// Which shards, from where on.
    pub places: Vec<ShardCheckpoint>,
}

impl CatalogueRequest {
    /// A question about these shards.
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

    /// The question.
    ///
    /// # Errors
    /// If it is for more names than nodes send to each other.
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

/// The names that one shard adds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CatalogueBody {
    /// How far they reach.
    pub reach: WireFreshness,
    /// Metrics, ascending.
    pub metrics: Vec<MetricRow>,
    /// Values, ascending.
    pub values: Vec<String>,
}

/// What a shard adds to one metric.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MetricRow {
    /// Its name.
    pub metric: String,
    /// Names of labels.
    pub labels: Vec<String>,
    /// Series, beside the overflow series.
    pub series: u64,
    /// Whether the overflow series is new.
    pub overflow: bool,
    /// First and last window.
    pub hours: Option<(i32, i32)>,
}

impl CatalogueBody {
    /// What a shard adds.
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

    /// What the shard adds, if all of it belongs to the question.
    ///
    /// # Errors
    /// If it holds what was not asked for.
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

/// The answer of one shard, and from where on it has answered.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ShardAnswer<B> {
    /// Exactly the place that was asked for, or the answer is not for this question.
    pub place: ShardCheckpoint,
    /// The answer, or why there is none.
    pub outcome: Result<B, ShardFailure>,
}

/// Why a shard has no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ShardFailure {
    /// Its owner or its batches moved.
    Moved,
    /// It is not owned there.
    NotHere,
    /// Its answer is larger than nodes send to each other.
    TooLarge,
    /// It cannot begin there until somebody mends what stops it.
    Stopped,
}

impl From<LiveError> for ShardFailure {
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

/// How far an answer reaches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct WireFreshness {
    /// How long ago everything appended was applied, by the owner's clock.
    pub age_ms: i64,
    /// Records of the log not applied yet.
    pub behind: u64,
    /// Whether the owner has not reached yet what the log held when it claimed the shard.
    pub recovering: bool,
    /// Whether the shard stands still until somebody mends what stopped it.
    pub stopped: bool,
}

/// Deltas of one shard.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LiveBody {
    /// How far they reach.
    pub reach: WireFreshness,
    /// The keys of the series.
    pub series: Vec<ByteBuf>,
    /// The deltas.
    pub rows: Vec<DeltaRow>,
}

/// One delta: index of the series, hour, figures, sketches as they are stored (empty if not
/// wanted).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DeltaRow {
    /// Index of its series.
    pub series: u32,
    /// The window.
    pub hour: i32,
    /// Count and value count.
    pub counts: (u64, u64),
    /// Sum in units of 10^-9, big-endian.
    pub sum: ByteBuf,
    /// Smallest and largest value, in the same form; empty if there is none.
    pub bounds: (ByteBuf, ByteBuf),
    /// Distinct users.
    pub distinct: ByteBuf,
    /// Quantiles.
    pub quantiles: ByteBuf,
}

/// Bytes of a row beside its sketches, rounded up.
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
    /// A delta, with the sketches that are wanted.
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

    /// The delta.
    ///
    /// # Errors
    /// If a number or a sketch does not decode.
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

    /// Bytes it takes, rounded up.
    pub fn bytes(&self) -> usize {
        ROW_BYTES + self.distinct.len() + self.quantiles.len()
    }
}

/// What one shard has counted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AccountingBody {
    /// How far it reaches.
    pub reach: WireFreshness,
    /// Hour of append; aggregated, de-duplicated, quarantined.
    pub hours: Vec<(i32, [u64; 3])>,
}

impl AccountingBody {
    /// The rows, of the tenant that was asked for.
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

/// What a node owns, and which windows it holds in memory.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeAnnouncement {
    /// The shards it owns.
    pub shards: Vec<ShardAnnouncement>,
    /// Shards that cannot begin there until somebody mends what stops them.
    pub stopped: Vec<u32>,
    /// By hash of tenant and metric, the hours that any of these shards holds deltas of; none if
    /// there are too many to say.
    pub windows: Option<Vec<(u64, Vec<i32>)>>,
    /// What it says of itself to people; opaque here.
    pub card: ByteBuf,
}

/// Where an owned shard stands: its memory holds the records `[from, applied)`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShardAnnouncement {
    /// Where its memory begins, and its epoch.
    pub from: ShardCheckpoint,
    /// How far it reaches.
    pub reach: WireFreshness,
}

/// The bytes of a message.
///
/// # Errors
/// If it cannot be written down, which is a bug.
pub fn encode<T: Serialize>(message: &T) -> Result<Vec<u8>, CodecError> {
    let mut bytes = vec![VERSION];
    rmp_serde::encode::write(&mut bytes, message)
        .map_err(|e| CodecError::new("mesh message", e.to_string()))?;
    Ok(bytes)
}

/// The message of bytes.
///
/// # Errors
/// If it is of another version, or does not decode.
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
