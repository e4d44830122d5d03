//! `GET /v1/quarantine`, `POST /v1/quarantine/release` and `POST /v1/quarantine/discard`.

use std::collections::BTreeMap;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Where an event lies: the record's shard and offset, and the event's index in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct EventPlace {
    /// Its shard.
    pub shard: u32,
    /// Offset of its record.
    pub offset: u64,
    /// Index in its record.
    pub index: u32,
}

impl FromStr for EventPlace {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || {
            format!(
                "{text:?} is no event: write SHARD/OFFSET/INDEX, as `rollmill quarantine list` \
                 prints it"
            )
        };
        let mut parts = text.split('/');
        let mut part = || parts.next().and_then(|part| part.parse::<u64>().ok()).ok_or_else(wrong);
        let (shard, offset, index) = (part()?, part()?, part()?);
        match (u32::try_from(shard), u32::try_from(index), parts.next()) {
            (Ok(shard), Ok(index), None) => Ok(Self { shard, offset, index }),
            _ => Err(wrong()),
        }
    }
}

impl std::fmt::Display for EventPlace {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}/{}", self.shard, self.offset, self.index)
    }
}

/// What is set aside.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct QuarantineAnswer {
    /// The events.
    pub events: Vec<QuarantinedEvent>,
    /// How many more there are.
    #[serde(default)]
    pub more: u64,
}

/// An event that is set aside.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct QuarantinedEvent {
    /// Its shard.
    pub shard: u32,
    /// Offset of its record.
    pub offset: u64,
    /// Index in its record.
    pub index: u32,
    /// Whose it is; empty if nobody can tell.
    pub tenant: String,
    /// When it was received.
    #[cfg_attr(test, schemars(with = "Option<String>"))]
    pub received: Option<jiff::Timestamp>,
    /// Why it was set aside.
    pub reason: String,
    /// Whether it was given up.
    pub discarded: bool,
    /// The event as it was understood; null if its record cannot be read, or is nobody's.
    pub event: Option<UnderstoodEvent>,
    /// Bytes of a record that is nobody's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes: Option<u64>,
}

impl QuarantinedEvent {
    /// Where it lies.
    pub fn place(&self) -> EventPlace {
        EventPlace { shard: self.shard, offset: self.offset, index: self.index }
    }
}

/// An event as it was understood.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct UnderstoodEvent {
    /// Its series; null if the key cannot be read.
    pub series: Option<SeriesName>,
    /// Its time.
    #[cfg_attr(test, schemars(with = "Option<String>"))]
    pub timestamp: Option<jiff::Timestamp>,
    /// Its value, a decimal.
    pub value: Option<String>,
    /// Its user.
    pub user: Option<String>,
    /// Its id.
    pub id: Option<String>,
    /// As the client sent it, if that is UTF-8.
    pub raw: Option<String>,
}

/// A series by its metric and labels.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct SeriesName {
    /// The metric.
    pub metric: String,
    /// The labels.
    pub labels: BTreeMap<String, String>,
}

/// The answer to a release.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct ReleaseAnswer {
    /// The event.
    pub released: EventPlace,
    /// The series that counts it now.
    pub counted_in: Option<SeriesName>,
}

/// The answer to a discard.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct DiscardAnswer {
    /// The event.
    pub discarded: EventPlace,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_read_as_they_print() {
        assert_eq!(
            "12/3456/7".parse::<EventPlace>().map(|p| p.to_string()),
            Ok("12/3456/7".to_owned())
        );
        for wrong in ["", "1", "1/2", "1/2/3/4", "a/2/3", "1/2/-3", "4294967296/2/3"] {
            assert!(wrong.parse::<EventPlace>().is_err(), "{wrong}");
        }
    }
}
