//! What an event of an SDK says of itself, and the event of Rollmill that is kept of it.

use std::borrow::Cow;
use std::ops::Range;

use super::mapped::{MappedEvent, MappedValue};

/// An event as its client sent it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SentEvent<'a> {
    /// What the event is called: what a mapping knows it by.
    pub name: Cow<'a, str>,
    /// The kind of call, such as `track`; empty where there are none.
    pub kind: &'a str,
    /// The client's own id of the event; equal ids are one event.
    pub id: Option<Cow<'a, str>>,
    /// Whom to count as distinct, unless the mapping says otherwise.
    pub user: Option<Cow<'a, str>>,
    /// When it happened, by our clock; `None` if the client does not say.
    pub timestamp: Option<i64>,
}

/// An event of Rollmill that was written to a buffer, as ranges of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RewrittenEvent {
    /// The whole event, as `POST /v1/events` takes it.
    pub raw: Range<usize>,
    /// Its labels; empty if there are none.
    pub labels: Range<usize>,
    /// Its properties: what was sent.
    pub properties: Range<usize>,
}

/// Appends an event to a buffer: what was mapped, and as properties what was sent, with what its
/// request says of all its events in front. `event` is an object, `shared` the beginning of one: a
/// brace, and members with a comma behind each; or nothing.
pub(super) fn write(
    out: &mut Vec<u8>,
    sent: &SentEvent<'_>,
    mapped: &MappedEvent<'_>,
    shared: &[u8],
    event: &[u8],
) -> RewrittenEvent {
    let start = out.len();
    out.extend_from_slice(b"{\"metric\":");
    push_text(out, &mapped.metric);
    if let Some(at) = sent.timestamp {
        out.extend_from_slice(b",\"timestamp\":");
        out.extend_from_slice(at.to_string().as_bytes());
    }
    match &mapped.value {
        MappedValue::Default => {}
        MappedValue::None => out.extend_from_slice(b",\"value\":null"),
        MappedValue::Text(text) => {
            out.extend_from_slice(b",\"value\":");
            push_text(out, text);
        }
    }
    let labels = push_labels(out, &mapped.labels);
    for (name, text) in [(&b",\"user\":"[..], &mapped.user), (b",\"id\":", &sent.id)] {
        if let Some(text) = text {
            out.extend_from_slice(name);
            push_text(out, text);
        }
    }
    out.extend_from_slice(b",\"properties\":");
    let from = out.len();
    push_merged(out, shared, event);
    let properties = from..out.len();
    out.push(b'}');
    RewrittenEvent { raw: start..out.len(), labels, properties }
}

fn push_labels(out: &mut Vec<u8>, labels: &[(&str, Cow<'_, str>)]) -> Range<usize> {
    if labels.is_empty() {
        return 0..0;
    }
    out.extend_from_slice(b",\"labels\":");
    let start = out.len();
    for (at, (name, value)) in labels.iter().enumerate() {
        out.push(if at == 0 { b'{' } else { b',' });
        push_text(out, name);
        out.push(b':');
        push_text(out, value);
    }
    out.push(b'}');
    start..out.len()
}

/// Appends an object with the members of both; of equal names the event's comes last, and counts.
fn push_merged(out: &mut Vec<u8>, shared: &[u8], event: &[u8]) {
    let inner = match event.strip_prefix(b"{") {
        Some(inner) if !shared.is_empty() => inner,
        _ => return out.extend_from_slice(event),
    };
    match shared.strip_suffix(b",") {
        Some(alone) if inner.trim_ascii_start() == b"}" => out.extend_from_slice(alone),
        _ => out.extend_from_slice(shared),
    }
    out.extend_from_slice(inner);
}

/// Appends a text as a string of JSON.
fn push_text(out: &mut Vec<u8>, text: &str) {
    if text.bytes().any(|b| matches!(b, b'"' | b'\\' | 0..=0x1f)) {
        out.extend_from_slice(serde_json::Value::from(text).to_string().as_bytes());
    } else {
        out.push(b'"');
        out.extend_from_slice(text.as_bytes());
        out.push(b'"');
    }
}
