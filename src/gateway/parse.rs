//! JSON bodies: one event, an array, or NDJSON. Fields stay slices of the body; no tree is ever built.

use std::borrow::Cow;
use std::ops::Range;

use serde::Deserialize;
use serde::de::{Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;

use super::error::ApiError;
use crate::model::event::{EventError, EventErrorCode, MAX_LABELS};

/// Deepest nesting of `properties`: whoever reads the archive later may recurse.
pub const MAX_DEPTH: usize = 64;

/// A field that is a string.
#[derive(Debug)]
pub enum Text<'a> {
    /// Not there, or null.
    Absent,
    /// There.
    Is(Cow<'a, str>),
    /// Of another type.
    Wrong,
}

/// A timestamp as sent.
#[derive(Debug)]
pub enum Time<'a> {
    /// Not there, or null.
    Absent,
    /// Milliseconds.
    Millis(i64),
    /// RFC 3339.
    Text(Cow<'a, str>),
    /// Neither.
    Wrong,
}

/// A value as sent.
#[derive(Debug)]
pub enum Number<'a> {
    /// Not there: 1.
    Absent,
    /// Null: counts without a value.
    Null,
    /// A decimal.
    Text(Cow<'a, str>),
    /// Neither, or not finite.
    Wrong,
}

/// An event as sent, whatever the format.
#[derive(Debug)]
pub struct Fields<'a> {
    /// `metric`.
    pub metric: Text<'a>,
    /// `timestamp`.
    pub timestamp: Time<'a>,
    /// `value`.
    pub value: Number<'a>,
    /// `labels`, unparsed; empty if absent.
    pub labels: &'a [u8],
    /// `user`.
    pub user: Text<'a>,
    /// `id`.
    pub id: Text<'a>,
}

fn present<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<&'de RawValue>, D::Error> {
    <&RawValue>::deserialize(deserializer).map(Some)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct JsonEvent<'a> {
    #[serde(default, borrow, deserialize_with = "present")]
    metric: Option<&'a RawValue>,
    #[serde(default, borrow, deserialize_with = "present")]
    timestamp: Option<&'a RawValue>,
    #[serde(default, borrow, deserialize_with = "present")]
    value: Option<&'a RawValue>,
    #[serde(default, borrow, deserialize_with = "present")]
    labels: Option<&'a RawValue>,
    #[serde(default, borrow, deserialize_with = "present")]
    user: Option<&'a RawValue>,
    #[serde(default, borrow, deserialize_with = "present")]
    id: Option<&'a RawValue>,
    #[serde(default, borrow, deserialize_with = "present")]
    properties: Option<&'a RawValue>,
}

/// Reads one event.
///
/// # Errors
/// 400 if it is no object, or has unknown or repeated fields.
pub fn json_event(text: &str) -> Result<Fields<'_>, ApiError> {
    // Serde would take an array of fields for a struct.
    if !text.trim_start().starts_with('{') {
        return Err(ApiError::unreadable("an event is an object"));
    }
    let event: JsonEvent<'_> = serde_json::from_str(text).map_err(|e| unreadable(&e))?;
    if event.properties.is_some_and(|p| depth_exceeds(p.get(), MAX_DEPTH)) {
        return Err(ApiError::unreadable(format!("properties are nested deeper than {MAX_DEPTH}")));
    }
    Ok(Fields {
        metric: string(event.metric),
        timestamp: match event.timestamp.map(RawValue::get) {
            None | Some("null") => Time::Absent,
            Some(raw) if raw.starts_with('"') => unquote(raw).map_or(Time::Wrong, Time::Text),
            Some(raw) => raw.parse().map_or(Time::Wrong, Time::Millis),
        },
        value: match event.value.map(RawValue::get) {
            None => Number::Absent,
            Some("null") => Number::Null,
            Some(raw) if raw.starts_with('"') => unquote(raw).map_or(Number::Wrong, Number::Text),
            Some(raw) => Number::Text(Cow::Borrowed(raw)),
        },
        labels: event.labels.map(RawValue::get).filter(|raw| *raw != "null").map_or(&[], str::as_bytes),
        user: string(event.user),
        id: string(event.id),
    })
}

fn unreadable(error: &serde_json::Error) -> ApiError {
    // The message may quote what the client sent: escaped and cut.
    let text: String = error.to_string().escape_debug().take(200).collect();
    ApiError::unreadable(format!("not a readable event: {text}"))
}

fn string(raw: Option<&RawValue>) -> Text<'_> {
    match raw.map(RawValue::get) {
        None | Some("null") => Text::Absent,
        Some(raw) if raw.starts_with('"') => unquote(raw).map_or(Text::Wrong, Text::Is),
        Some(_) => Text::Wrong,
    }
}

fn unquote(raw: &str) -> Option<Cow<'_, str>> {
    if raw.contains('\\') {
        return serde_json::from_str::<String>(raw).ok().map(Cow::Owned);
    }
    raw.strip_prefix('"')?.strip_suffix('"').map(Cow::Borrowed)
}

fn depth_exceeds(json: &str, limit: usize) -> bool {
    let (mut depth, mut quoted, mut escaped) = (0usize, false, false);
    for byte in json.bytes() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if quoted => escaped = true,
            b'"' => quoted = !quoted,
            b'[' | b'{' if !quoted => depth += 1,
            b']' | b'}' if !quoted => depth = depth.saturating_sub(1),
            _ => {}
        }
        if depth > limit {
            return true;
        }
    }
    false
}

/// The events of a JSON body (an object or an array), as ranges of it.
///
/// # Errors
/// 400 if it is not JSON, 413 for more than `max` events.
pub fn split_json(body: &str, max: usize) -> Result<Vec<Range<usize>>, ApiError> {
    let trimmed = body.trim();
    if !trimmed.starts_with('[') {
        return if trimmed.is_empty() {
            Err(ApiError::unreadable("the body is empty"))
        } else {
            Ok(vec![range_in(body, trimmed)])
        };
    }
    let mut input = serde_json::Deserializer::from_str(body);
    let events = input.deserialize_seq(Elements { max }).map_err(|e| unreadable(&e))?;
    if events.len() > max {
        return Err(too_many(max));
    }
    input.end().map_err(|e| unreadable(&e))?;
    Ok(events.into_iter().map(|raw| range_in(body, raw.get())).collect())
}

/// The events of an NDJSON body, blank lines left out.
///
/// # Errors
/// 413 for more than `max` events.
pub fn split_ndjson(body: &str, max: usize) -> Result<Vec<Range<usize>>, ApiError> {
    let lines: Vec<_> = body.lines().map(str::trim).filter(|l| !l.is_empty()).take(max + 1).map(|l| range_in(body, l)).collect();
    if lines.len() > max { Err(too_many(max)) } else { Ok(lines) }
}

/// 413 for too many events.
pub fn too_many(max: usize) -> ApiError {
    ApiError::too_large(format!("a request holds at most {max} events (accept.max_events): send several"))
}

/// Where `part`, a slice of `whole`, stands in it.
pub(super) fn range_in(whole: &str, part: &str) -> Range<usize> {
    let start = part.as_ptr() as usize - whole.as_ptr() as usize;
    start..start + part.len()
}

struct Elements {
    max: usize,
}

impl<'de> Visitor<'de> for Elements {
    type Value = Vec<&'de RawValue>;
    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("an array of events")
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
        let mut events = Vec::new();
        while let Some(raw) = seq.next_element()? {
            events.push(raw);
            if events.len() > self.max {
                // One too many tells the caller; the rest is only skipped, never kept.
                while seq.next_element::<IgnoredAny>()?.is_some() {}
                break;
            }
        }
        Ok(events)
    }
}

struct Labels;

impl<'de> Visitor<'de> for Labels {
    type Value = Vec<(String, String)>;
    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("an object of strings")
    }
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut labels: Vec<(String, String)> = Vec::new();
        while let Some((name, value)) = map.next_entry::<String, String>()? {
            if labels.len() == MAX_LABELS {
                return Err(A::Error::custom(format!("more than {MAX_LABELS} labels")));
            }
            if labels.iter().any(|(n, _)| *n == name) {
                return Err(A::Error::custom("a label is there twice"));
            }
            labels.push((name, value));
        }
        Ok(labels)
    }
}

/// Reads JSON labels.
///
/// # Errors
/// `labels_invalid`.
pub fn json_labels(raw: &[u8]) -> Result<Vec<(String, String)>, EventError> {
    let mut input = serde_json::Deserializer::from_slice(raw);
    input.deserialize_map(Labels).map_err(|e| {
        let why: String = e.to_string().escape_debug().take(200).collect();
        EventError::new(EventErrorCode::LabelsInvalid, format!("labels are an object of strings: {why}"))
    })
}
