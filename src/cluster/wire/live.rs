//! The request and the answer for the live deltas of shards. Pure.

use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;

use super::{ShardCheckpoint, WireFreshness};
use crate::model::CodecError;
use crate::model::decimal::Decimal;
use crate::model::generation::GenerationId;
use crate::model::matcher::Matcher;
use crate::model::rollup::{Rollup, RollupFigures};
use crate::model::served::{ServedHours, covers};
use crate::model::window::Hour;

/// Memory limit of one compiled expression in bytes, the same as on the requesting node.
const REGEX_BYTES: usize = 1 << 20;
/// Most pieces of a range, above what any pointer has.
const MAX_PIECES: usize = 4_096;

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
    /// Covers the range: start and end of hours, and the number of the generation whose deltas are
    /// wanted there. Empty asks for generation 0, which is what version 3 can say.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub generations: Vec<(i32, i32, u64)>,
}

impl LiveRequest {
    /// The wire form of the pieces of a query.
    pub fn generations_of(served: &[ServedHours]) -> Vec<(i32, i32, u64)> {
        if served.iter().all(|piece| piece.generation.is_ingest()) {
            return Vec::new();
        }
        served.iter().map(|piece| (piece.from.0, piece.to.0, piece.generation.0)).collect()
    }

    /// The pieces of the query.
    ///
    /// # Errors
    /// If they do not cover the range, or are too many.
    pub fn served(&self) -> Result<Vec<ServedHours>, CodecError> {
        let (from, to) = (Hour(self.from), Hour(self.to));
        if self.generations.is_empty() {
            return Ok(if from < to { vec![ServedHours::ingest(from, to)] } else { Vec::new() });
        }
        if self.generations.len() > MAX_PIECES {
            let why = format!("it has more than {MAX_PIECES} pieces");
            return Err(CodecError::new("question", why));
        }
        let piece = |&(from, to, generation): &(i32, i32, u64)| {
            let generation = GenerationId(generation);
            ServedHours { from: Hour(from), to: Hour(to), generation }
        };
        let served: Vec<ServedHours> = self.generations.iter().map(piece).collect();
        match covers(&served, from, to) {
            true => Ok(served),
            false => Err(CodecError::new("question", "its pieces do not cover its range")),
        }
    }
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
