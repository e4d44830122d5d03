//! `GET /v1/quarantine`, `POST /v1/quarantine/release` and `POST /v1/quarantine/discard`.

use std::collections::BTreeMap;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Identifies an event: the shard and offset of its record, and the event's index in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct EventPlace {
    /// Number of the shard.
    pub shard: u32,
    /// Offset of the record in the shard's log.
    pub offset: u64,
    /// Zero-based index of the event in the record.
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

/// The quarantined events that a key may see.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct QuarantineAnswer {
    /// The events; discarded ones are listed only on request.
    pub events: Vec<QuarantinedEvent>,
    /// How many further events the answer leaves out.
    #[serde(default)]
    pub more: u64,
}

/// One event in the quarantine.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct QuarantinedEvent {
    /// Number of the shard.
    pub shard: u32,
    /// Offset of the record in the shard's log.
    pub offset: u64,
    /// Zero-based index of the event in the record.
    pub index: u32,
    /// Tenant of the event; empty if its record cannot be read.
    pub tenant: String,
    /// When the gateway received it.
    #[cfg_attr(test, schemars(with = "Option<String>"))]
    pub received: Option<jiff::Timestamp>,
    /// Why it was quarantined.
    pub reason: String,
    /// Whether it has been discarded.
    pub discarded: bool,
    /// The parsed event; null if its record cannot be read or has no known tenant.
    pub event: Option<UnderstoodEvent>,
    /// Size of a record that has no known tenant.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes: Option<u64>,
}

impl QuarantinedEvent {
    /// The triple that identifies it in a release or a discard.
    pub fn place(&self) -> EventPlace {
        EventPlace { shard: self.shard, offset: self.offset, index: self.index }
    }
}

/// A quarantined event as the server parsed it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct UnderstoodEvent {
    /// Series of the event; null if its key cannot be read.
    pub series: Option<SeriesName>,
    /// Time of the event.
    #[cfg_attr(test, schemars(with = "Option<String>"))]
    pub timestamp: Option<jiff::Timestamp>,
    /// Value of the event, as decimal text.
    pub value: Option<String>,
    /// User to count as distinct.
    pub user: Option<String>,
    /// Id for de-duplication.
    pub id: Option<String>,
    /// The event's bytes as the client sent them; null if they are not UTF-8.
    pub raw: Option<String>,
}

/// Metric and labels of a series.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct SeriesName {
    /// Name of the metric.
    pub metric: String,
    /// Label values by name.
    pub labels: BTreeMap<String, String>,
}

/// The answer to the release of a quarantined event.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct ReleaseAnswer {
    /// The event that was released.
    pub released: EventPlace,
    /// The series that counts the event now.
    pub counted_in: Option<SeriesName>,
}

/// The answer to the discard of a quarantined event.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct DiscardAnswer {
    /// The event that was discarded.
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
