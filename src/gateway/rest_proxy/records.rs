//! The records of a produce request: the event in each, and the bytes kept of it.

use std::ops::Range;

use axum::http::StatusCode;
use base64::Engine;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use bytes::Bytes;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::super::error::ApiError;
use super::super::parse;
use crate::model::json_scan::{self, JsonMember, JsonMembers, ScanError};
use crate::model::stored_json::check_stored_json;

/// Decodes base64 with or without padding.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &base64::alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// Encoding of keys and values, as the content type names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum EmbeddedFormat {
    /// Keys and values are JSON.
    Json,
    /// Base64 strings that hold JSON.
    Binary,
}

/// A record, as ranges of the bytes that go to the log: `event` is parsed, `raw` is kept. A key is
/// opaque and kept with the event, as `{"key": …, "value": EVENT}`. It is not used as an id,
/// because two records of one key are different records.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ProduceRecord {
    pub(super) event: Range<usize>,
    pub(super) raw: Range<usize>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SentRecord<'a> {
    #[serde(borrow, default)]
    key: Option<&'a RawValue>,
    #[serde(borrow, default)]
    value: Option<&'a RawValue>,
    #[serde(borrow, default)]
    partition: Option<&'a RawValue>,
}

/// Splits a body into records and returns the bytes that their ranges point into. A record that
/// holds no event has the reason instead. Fails with 400 if the body cannot be read, 413 above
/// `max` records, 422 if it has none.
pub(super) fn read(
    embedded: EmbeddedFormat,
    body: &Bytes,
    max: usize,
) -> Result<(Bytes, Vec<Result<ProduceRecord, String>>), ApiError> {
    let records = records_of(body)?;
    let sent = parse::split_array(&body[..records.end], records.start, max)?;
    if sent.is_empty() {
        return Err(unprocessable("records is empty"));
    }
    let sent = sent.into_iter().map(|range| &body[range]);
    match embedded {
        EmbeddedFormat::Json => Ok((body.clone(), sent.map(|sent| json(body, sent)).collect())),
        EmbeddedFormat::Binary => {
            let mut kept = Vec::with_capacity(body.len());
            let records = sent.map(|sent| binary(&mut kept, sent)).collect();
            Ok((Bytes::from(kept), records))
        }
    }
}

/// The range of the `records` array in a body.
fn records_of(body: &[u8]) -> Result<Range<usize>, ApiError> {
    let broken =
        |broken: ScanError| ApiError::unreadable(format!("broken JSON: {}", broken.describe(body)));
    let start = json_scan::skip_space(body, parse::bom_len(body));
    if body.get(start) != Some(&b'{') {
        return Err(ApiError::unreadable("a request is an object with records"));
    }
    json_scan::whole_value(body, start).map_err(broken)?;
    let mut records = None;
    for member in JsonMembers::of(body, start) {
        let JsonMember { name, value } = member.map_err(broken)?;
        if &body[name] == b"\"records\"" && records.replace(value).is_some() {
            return Err(ApiError::unreadable("records is there twice"));
        }
    }
    let records = records.filter(|records| body[records.clone()].first() == Some(&b'['));
    records.ok_or_else(|| unprocessable("records is missing or no array"))
}

fn unprocessable(message: &str) -> ApiError {
    ApiError::new(StatusCode::UNPROCESSABLE_ENTITY, "records_invalid", message)
}

/// Key and value of a record, if it is allowed.
fn key_and_value(sent: &[u8]) -> Result<(Option<&str>, &str), String> {
    if sent.first() != Some(&b'{') {
        return Err("a record is an object with a value".to_owned());
    }
    let sent: SentRecord<'_> = serde_json::from_slice(sent)
        .map_err(|e| format!("not a readable record: {}", parse::quoted_error(&e)))?;
    if sent.partition.is_some() {
        return Err(
            "the series of an event decides on its partition: leave partition out".to_owned()
        );
    }
    let value = sent.value.ok_or("a record without a value holds no event")?;
    let key = sent.key.map(RawValue::get);
    key.map_or(Ok(()), |key| check_stored_json("the key", key))?;
    Ok((key, value.get()))
}

fn json(body: &[u8], sent: &[u8]) -> Result<ProduceRecord, String> {
    let (key, value) = key_and_value(sent)?;
    let event = range_in(body, value.as_bytes());
    let raw = if key.is_some() { range_in(body, sent) } else { event.clone() };
    Ok(ProduceRecord { event, raw })
}

/// The range of `part`, a slice of `whole`, in it.
fn range_in(whole: &[u8], part: &[u8]) -> Range<usize> {
    let start = part.as_ptr() as usize - whole.as_ptr() as usize;
    start..start + part.len()
}

fn binary(kept: &mut Vec<u8>, sent: &[u8]) -> Result<ProduceRecord, String> {
    let (key, value) = key_and_value(sent)?;
    let value: String =
        serde_json::from_str(value).map_err(|_| "a binary value is a string of base64")?;
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
    Ok(ProduceRecord { event, raw: start..kept.len() })
}
