//! CloudEvents 1.0 over HTTP: structured, batched and binary.
//!
//! Source and id together tell the copies of an event apart from other events.

use std::borrow::Cow;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::event::SentEvent;
use super::fields;
use super::time;
use crate::model::event::{EventError, EventErrorCode, MAX_ID_BYTES};

/// Most attributes of an event of binary content, each a header.
pub const BINARY_ATTRIBUTES: usize = 64;

#[derive(Deserialize)]
struct Event<'a> {
    #[serde(borrow)]
    specversion: Option<&'a RawValue>,
    #[serde(borrow)]
    id: Option<&'a RawValue>,
    #[serde(borrow)]
    source: Option<&'a RawValue>,
    #[serde(borrow, rename = "type")]
    kind: Option<&'a RawValue>,
    #[serde(borrow)]
    time: Option<&'a RawValue>,
}

/// Reads an event in the JSON format. Fails with its refusal.
pub(super) fn read(event: &str) -> Result<SentEvent<'_>, EventError> {
    let event: Event<'_> = fields::parse(event)?;
    let required = |field, code, name: &str| {
        fields::text(field)
            .ok_or_else(|| EventError::new(code, format!("a CloudEvent has the attribute {name}")))
    };
    let version = required(event.specversion, EventErrorCode::EventUnreadable, "specversion")?;
    if version != "1" && !version.starts_with("1.") {
        let message = "the specversion of a CloudEvent is 1.0";
        return Err(EventError::new(EventErrorCode::EventUnreadable, message));
    }
    let id = required(event.id, EventErrorCode::IdInvalid, "id")?;
    let source = required(event.source, EventErrorCode::IdInvalid, "source")?;
    let name = required(event.kind, EventErrorCode::MetricInvalid, "type")?;
    Ok(SentEvent {
        name,
        kind: "",
        id: Some(Cow::Owned(id_of(&source, &id))),
        user: None,
        timestamp: time::parse(event.time.map(RawValue::get))?,
    })
}

/// One id of both: readable where it is short. A source is a URI and has no spaces.
fn id_of(source: &str, id: &str) -> String {
    if source.len() + 1 + id.len() <= MAX_ID_BYTES && !source.contains(' ') {
        format!("{source} {id}")
    } else {
        fields::hash(&[source.as_bytes(), id.as_bytes()])
    }
}

/// The value of an attribute in a header: percent escapes of UTF-8. `None` if it is neither.
pub fn header_text(value: &[u8]) -> Option<String> {
    let (mut bytes, mut rest) = (Vec::with_capacity(value.len()), value.iter());
    while let Some(byte) = rest.next() {
        let mut digit = || char::from(*rest.next()?).to_digit(16);
        bytes.push(match byte {
            b'%' => (digit()? * 16 + digit()?) as u8,
            byte => *byte,
        });
    }
    String::from_utf8(bytes).ok()
}

/// An event of binary content in the JSON format: `attributes` are those of the headers, without
/// `ce-`. Data that is not JSON is kept as text, or in base64.
///
/// # Errors
/// If there are more than [`BINARY_ATTRIBUTES`].
pub fn binary_event(
    attributes: &[(String, String)],
    content_type: Option<&str>,
    data: &[u8],
) -> Result<Vec<u8>, EventError> {
    if attributes.len() > BINARY_ATTRIBUTES {
        let message = format!("a CloudEvent has at most {BINARY_ATTRIBUTES} attributes");
        return Err(EventError::new(EventErrorCode::EventUnreadable, message));
    }
    let mut event = Vec::with_capacity(data.len() + 256);
    event.push(b'{');
    let kind = content_type.map(|kind| ("datacontenttype", kind));
    let all = attributes.iter().map(|(name, value)| (name.as_str(), value.as_str())).chain(kind);
    for (name, value) in all {
        let (name, value) = (serde_json::Value::from(name), serde_json::Value::from(value));
        event.extend_from_slice(format!("{name}:{value},").as_bytes());
    }
    push_data(&mut event, content_type.unwrap_or("application/json"), data);
    match event.last_mut() {
        Some(last) if *last == b',' => *last = b'}',
        _ => event.push(b'}'),
    }
    Ok(event)
}

fn push_data(event: &mut Vec<u8>, content_type: &str, data: &[u8]) {
    let media = content_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    let is_json = media.ends_with("/json") || media.ends_with("+json");
    if data.is_empty() {
        return;
    }
    if is_json {
        event.extend_from_slice(b"\"data\":");
        event.extend_from_slice(data);
        return;
    }
    let text = std::str::from_utf8(data).ok().filter(|_| media.starts_with("text/"));
    match text {
        Some(text) => {
            let text = serde_json::Value::from(text);
            event.extend_from_slice(format!("\"data\":{text}").as_bytes());
        }
        None => {
            event.extend_from_slice(b"\"data_base64\":\"");
            event.extend_from_slice(STANDARD.encode(data).as_bytes());
            event.push(b'"');
        }
    }
}
