//! What the SDKs of others send: requests of Segment and RudderStack, PostHog, the Measurement
//! Protocol of Google Analytics 4, and CloudEvents.
//!
//! One file for each of them says where the events of a request are, and what each says of itself:
//! its name, id, user and time. A [`Mapping`] makes that an event of Rollmill. What was sent is kept
//! whole, as the event's properties. docs/reference/collect.md is the page for those who use it.

mod cloudevents;
mod event;
mod fields;
mod ga4;
mod ga4_check;
mod mapped;
mod mapping;
mod mapping_file;
mod pointer_tree;
mod posthog;
mod request;
mod segment;
#[cfg(test)]
mod tests;
mod time;

pub use cloudevents::{BINARY_ATTRIBUTES, binary_event, header_text};
pub use event::{RewrittenEvent, SentEvent};
pub use ga4_check::{ValidationMessage, check as check_ga4};
pub use mapped::{MappedEvent, MappedValue};
pub use mapping::Mapping;
pub use mapping_file::{MAX_ENTRIES, MAX_FILE_BYTES, MappingMistakes};
pub use request::{Form, SentRequest, SplitError};
pub use time::SKEW_THRESHOLD_MS;

/// Whose interface a request came in by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Source {
    /// Segment's HTTP tracking API, and RudderStack's.
    Segment,
    /// PostHog's capture endpoints.
    PostHog,
    /// The Measurement Protocol of Google Analytics 4.
    Ga4,
    /// CloudEvents over HTTP.
    CloudEvents,
}

impl Source {
    /// Every source, with its name in a mapping.
    pub const ALL: [(Self, &'static str); 4] = [
        (Self::Segment, "segment"),
        (Self::PostHog, "posthog"),
        (Self::Ga4, "ga4"),
        (Self::CloudEvents, "cloudevents"),
    ];

    /// Its name in a mapping and in metrics.
    pub fn name(self) -> &'static str {
        Self::ALL.iter().find(|(source, _)| *source == self).map_or("", |(_, name)| name)
    }
}
