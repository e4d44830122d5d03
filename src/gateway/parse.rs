//! JSON bodies: one event, an array, or NDJSON. Fields stay slices of the body; no tree is built.
//!
//! A body is split into events before any is parsed, so that an error inside one event
//! refuses only that event.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::ops::Range;

use serde::Deserialize;
use serde::de::{Deserializer, Error as _, MapAccess, Visitor};
use serde_json::value::RawValue;

use super::error::ApiError;
use crate::model::event::{self, EventError, EventErrorCode};
use crate::model::json_scan::{self, JsonMembers, ScanError};
use crate::model::stored_json::check_stored_json;

/// A field that must be a string.
#[derive(Debug)]
pub enum TextField<'a> {
    /// The field is missing or null.
    Absent,
    /// A string, unescaped.
    Present(Cow<'a, str>),
    /// The field has another type.
    Invalid,
}

/// A timestamp as the client sent it.
#[derive(Debug)]
pub enum TimeField<'a> {
    /// The field is missing or null.
    Absent,
    /// Milliseconds since the Unix epoch; the nearest that 64 bits hold.
    Millis(i64),
    /// A string, to be parsed as RFC 3339.
    Text(Cow<'a, str>),
    /// The field has another type.
    Invalid,
}

/// A value as the client sent it.
#[derive(Debug)]
pub enum NumberField<'a> {
    /// Missing, which means 1.
    Absent,
    /// Null: the event counts, but has no value.
    Null,
    /// A number or string, to be parsed as a decimal.
    Text(Cow<'a, str>),
    /// Any other type, or not finite.
    Invalid,
}

/// The unvalidated fields of an event, common to all formats.
#[derive(Debug)]
#[allow(missing_docs, reason = "the names say it")]
pub struct EventFields<'a> {
    pub metric: TextField<'a>,
    pub timestamp: TimeField<'a>,
    pub value: NumberField<'a>,
    /// Unparsed bytes; empty if missing or null.
    pub labels: &'a [u8],
    pub user: TextField<'a>,
    pub id: TextField<'a>,
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

/// Parses one event into its fields, without checking their values.
///
/// # Errors
/// If it is not a JSON object, has unknown or repeated fields, or its properties could not be
/// decoded by readers of the archive.
pub fn json_event(raw: &[u8]) -> Result<EventFields<'_>, String> {
    // Serde would accept an array of the fields as a struct.
    if raw.get(json_scan::skip_space(raw, 0)) != Some(&b'{') {
        return Err("an event is an object".to_owned());
    }
    let text = std::str::from_utf8(raw)
        .map_err(|e| format!("not UTF-8 from byte {} of the event on", e.valid_up_to()))?;
    let event: JsonEvent<'_> = serde_json::from_str(text)
        .map_err(|e| format!("not a readable event: {}", quoted_error(&e)))?;
    event
        .properties
        .map_or(Ok(()), |properties| check_stored_json("properties", properties.get()))?;
    Ok(EventFields {
        metric: string(event.metric),
        timestamp: match event.timestamp.map(RawValue::get) {
            None | Some("null") => TimeField::Absent,
            Some(raw) if raw.starts_with('"') => {
                unquote(raw).map_or(TimeField::Invalid, TimeField::Text)
            }
            Some(raw) => {
                event::saturating_millis(raw).map_or(TimeField::Invalid, TimeField::Millis)
            }
        },
        value: match event.value.map(RawValue::get) {
            None => NumberField::Absent,
            Some("null") => NumberField::Null,
            Some(raw) if raw.starts_with('"') => {
                unquote(raw).map_or(NumberField::Invalid, NumberField::Text)
            }
            Some(raw) => NumberField::Text(Cow::Borrowed(raw)),
        },
        labels: event
            .labels
            .map(RawValue::get)
            .filter(|raw| *raw != "null")
            .map_or(&[], str::as_bytes),
        user: string(event.user),
        id: string(event.id),
    })
}

/// The id of an event that is not parsed otherwise, so that its refusal can name it. `None` unless
/// it occurs exactly once before any broken part.
pub fn json_id(raw: &[u8]) -> Option<String> {
    let members = JsonMembers::of(raw, json_scan::skip_space(raw, 0)).map_while(Result::ok);
    let mut ids = members.filter(|member| &raw[member.name.clone()] == b"\"id\"");
    let (Some(id), None) = (ids.next(), ids.next()) else { return None };
    serde_json::from_slice(&raw[id.value]).ok()
}

/// The error text, escaped and truncated: it may quote what the client sent.
pub(super) fn quoted_error(error: &serde_json::Error) -> String {
    error.to_string().escape_debug().take(200).collect()
}

fn string(raw: Option<&RawValue>) -> TextField<'_> {
    match raw.map(RawValue::get) {
        None | Some("null") => TextField::Absent,
        Some(raw) if raw.starts_with('"') => {
            unquote(raw).map_or(TextField::Invalid, TextField::Present)
        }
        Some(_) => TextField::Invalid,
    }
}

fn unquote(raw: &str) -> Option<Cow<'_, str>> {
    if raw.contains('\\') {
        return serde_json::from_str::<String>(raw).ok().map(Cow::Owned);
    }
    raw.strip_prefix('"')?.strip_suffix('"').map(Cow::Borrowed)
}

/// Splits a JSON body (an object or an array) into its events, as ranges.
///
/// # Errors
/// 400 if it is neither, or its events cannot be separated; 413 above `max` events.
pub fn split_json(body: &[u8], max: usize) -> Result<Vec<Range<usize>>, ApiError> {
    split_json_in(body, bom_len(body)..body.len(), max)
}

/// Like [`split_json`], for a part of a text; errors name lines and columns of the whole text.
/// Fails as [`split_json`] does.
pub fn split_json_in(
    text: &[u8],
    part: Range<usize>,
    max: usize,
) -> Result<Vec<Range<usize>>, ApiError> {
    let text = &text[..part.end];
    let start = json_scan::skip_space(text, part.start);
    match text.get(start) {
        None => Err(ApiError::unreadable("the body is empty")),
        Some(b'[') => split_array(text, start, max),
        Some(b'{') => match json_scan::whole_value(text, start) {
            Ok(event) => Ok(vec![event]),
            Err(broken) => {
                let hint = "several events are an array, or lines of application/x-ndjson";
                Err(ApiError::unreadable(format!("broken JSON: {}; {hint}", broken.describe(text))))
            }
        },
        Some(_) => Err(ApiError::unreadable(
            "a body is an event, an array of events, or lines of them (application/x-ndjson)",
        )),
    }
}

/// The elements of the array that begins at `start` and is followed by white space only. Fails with
/// 400 if they cannot be separated, 413 above `max`.
pub(super) fn split_array(
    text: &[u8],
    start: usize,
    max: usize,
) -> Result<Vec<Range<usize>>, ApiError> {
    let broken =
        |broken: ScanError| ApiError::unreadable(format!("broken JSON: {}", broken.describe(text)));
    let (found, end) = json_scan::elements(text, start, max).map_err(broken)?;
    if found.len() > max {
        return Err(too_many(max));
    }
    match json_scan::skip_space(text, end) {
        at if at < text.len() => {
            Err(broken(ScanError { at, part_start: at, why: "something stands behind the end" }))
        }
        _ => Ok(found),
    }
}

/// Splits an NDJSON body into its events, skipping blank lines. A line feed always ends a line.
///
/// # Errors
/// 413 above `max` events.
pub fn split_ndjson(body: &[u8], max: usize) -> Result<Vec<Range<usize>>, ApiError> {
    let (mut lines, mut start) = (Vec::new(), bom_len(body));
    for line in body[start..].split(|b| *b == b'\n') {
        let event = line.trim_ascii();
        if !event.is_empty() {
            if lines.len() == max {
                return Err(too_many(max));
            }
            let from = start + line.len() - line.trim_ascii_start().len();
            lines.push(from..from + event.len());
        }
        start += line.len() + 1;
    }
    Ok(lines)
}

/// Length of the UTF-8 byte order mark that some editors prepend; JSON does not allow it.
pub(super) fn bom_len(body: &[u8]) -> usize {
    if body.starts_with(b"\xef\xbb\xbf") { 3 } else { 0 }
}

/// The error 413 for a request of too many events.
pub fn too_many(max: usize) -> ApiError {
    ApiError::too_large(format!(
        "a request holds at most {max} events (accept.max_events): send several"
    ))
}

/// Labels while they are parsed. A label with an empty value equals a missing one, so it does not
/// count toward the limit.
#[derive(Default)]
pub(super) struct LabelList {
    labels: Vec<(String, String)>,
    empty: BTreeSet<String>,
}

impl LabelList {
    /// Adds a label; names are checked only where validation would not see them later. Fails if
    /// there are too many, the name is a duplicate, or an empty label has an invalid name.
    pub(super) fn push(&mut self, name: String, value: String) -> Result<(), String> {
        if self.empty.contains(&name) || self.labels.iter().any(|(n, _)| *n == name) {
            return Err("a label is there twice".to_owned());
        }
        if value.is_empty() {
            event::check_label(&name, &value).map_err(|e| e.message)?;
            self.empty.insert(name);
            return Ok(());
        }
        event::check_label_count(self.labels.len() + 1).map_err(|e| e.message)?;
        self.labels.push((name, value));
        Ok(())
    }

    /// The labels that have a value.
    pub(super) fn into_labels(self) -> Vec<(String, String)> {
        self.labels
    }
}

struct Labels;

impl<'de> Visitor<'de> for Labels {
    type Value = LabelList;
    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("an object of strings")
    }
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut labels = LabelList::default();
        while let Some((name, value)) = map.next_entry::<String, String>()? {
            labels.push(name, value).map_err(A::Error::custom)?;
        }
        Ok(labels)
    }
}

/// Parses and checks JSON labels.
///
/// # Errors
/// `labels_invalid` if it is not an object of strings, or there are too many or duplicate labels.
pub fn json_labels(raw: &[u8]) -> Result<Vec<(String, String)>, EventError> {
    let mut input = serde_json::Deserializer::from_slice(raw);
    input.deserialize_map(Labels).map(LabelList::into_labels).map_err(|e| {
        EventError::new(
            EventErrorCode::LabelsInvalid,
            format!("labels are an object of strings: {}", quoted_error(&e)),
        )
    })
}
