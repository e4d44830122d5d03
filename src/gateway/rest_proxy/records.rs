//! The records of a produce request: the event in each, and what is kept of it.

use std::ops::Range;

use axum::http::StatusCode;
use base64::Engine;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use bytes::Bytes;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::super::error::ApiError;
use super::super::parse;

/// Padding is taken and not asked for.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &base64::alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// How keys and values are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Embedded {
    /// As JSON.
    Json,
    /// As base64 of JSON.
    Binary,
}

/// A record, as ranges of the bytes that go to the log: the event, and what is kept. A key is opaque and kept with the event, as
/// `{"key": …, "value": EVENT}`; it is no id, because records of one key are not the same record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Record {
    pub(super) event: Range<usize>,
    pub(super) raw: Range<usize>,
}

#[derive(Deserialize)]
struct Produce<'a> {
    #[serde(borrow, default)]
    records: Option<&'a RawValue>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Sent<'a> {
    #[serde(borrow, default)]
    key: Option<&'a RawValue>,
    #[serde(borrow, default)]
    value: Option<&'a RawValue>,
    #[serde(borrow, default)]
    partition: Option<&'a RawValue>,
}

/// The records of a body, and the bytes their ranges point into; for a record that holds no event, why.
///
/// # Errors
/// 400 if the body cannot be read, 413 for more than `max` records, 422 for none.
pub(super) fn read(embedded: Embedded, body: &Bytes, max: usize) -> Result<(Bytes, Vec<Result<Record, String>>), ApiError> {
    let text = std::str::from_utf8(body).map_err(|_| ApiError::unreadable("the body is not UTF-8"))?;
    // Serde would take an array for a struct.
    if !text.trim_start().starts_with('{') {
        return Err(ApiError::unreadable("a request is an object with records"));
    }
    let produce: Produce<'_> =
        serde_json::from_str(text).map_err(|e| ApiError::unreadable(format!("not a readable request: {}", shown(&e))))?;
    let records = produce.records.map(RawValue::get).filter(|raw| raw.starts_with('['));
    let records = records.ok_or_else(|| unprocessable("records is missing or no array"))?;
    let sent = parse::split_json(records, max)?;
    if sent.is_empty() {
        return Err(unprocessable("records is empty"));
    }
    let sent = sent.into_iter().map(|range| &records[range]);
    match embedded {
        Embedded::Json => Ok((body.clone(), sent.map(|sent| json(text, sent)).collect())),
        Embedded::Binary => {
            let mut kept = Vec::with_capacity(body.len());
            let records = sent.map(|sent| binary(&mut kept, sent)).collect();
            Ok((Bytes::from(kept), records))
        }
    }
}

fn unprocessable(message: &str) -> ApiError {
    ApiError::new(StatusCode::UNPROCESSABLE_ENTITY, "records_invalid", message)
}

/// The message may quote what the client sent: escaped and cut.
fn shown(error: &serde_json::Error) -> String {
    error.to_string().escape_debug().take(200).collect()
}

/// Key and value of a record that may be taken.
fn opened(sent: &str) -> Result<(Option<&str>, &str), String> {
    if !sent.starts_with('{') {
        return Err("a record is an object with a value".to_owned());
    }
    let sent: Sent<'_> = serde_json::from_str(sent).map_err(|e| format!("not a readable record: {}", shown(&e)))?;
    if sent.partition.is_some() {
        return Err("the series of an event decides on its partition: leave partition out".to_owned());
    }
    let value = sent.value.ok_or("a record without a value holds no event")?;
    Ok((sent.key.map(RawValue::get), value.get()))
}

fn json(body: &str, sent: &str) -> Result<Record, String> {
    let (key, value) = opened(sent)?;
    let event = parse::range_in(body, value);
    let raw = if key.is_some() { parse::range_in(body, sent) } else { event.clone() };
    Ok(Record { event, raw })
}

fn binary(kept: &mut Vec<u8>, sent: &str) -> Result<Record, String> {
    let (key, value) = opened(sent)?;
    let value: String = serde_json::from_str(value).map_err(|_| "a binary value is a string of base64")?;
    let value = BASE64.decode(value).map_err(|_| "a binary value is a string of base64")?;
    let start = kept.len();
    if let Some(key) = key {
        kept.extend_from_slice(format!(r#"{{"key":{key},"value":"#).as_bytes());
    }
    let event = kept.len()..kept.len() + value.len();
    kept.extend_from_slice(&value);
    if key.is_some() {
        kept.push(b'}');
    }
    Ok(Record { event, raw: start..kept.len() })
}
