//! MessagePack bodies: a map, or an array of maps.

use std::borrow::Cow;
use std::ops::Range;

use super::error::ApiError;
use super::parse::{EventFields, LabelList, NumberField, TextField, TimeField, too_many};
use crate::model::event::{EventError, EventErrorCode};
use crate::model::msgpack_reader::{DecodeReason, MsgpackReader, Token};

/// Splits a body into its events, as ranges.
///
/// # Errors
/// 400 if it is neither map nor array, or its events cannot be separated; 413 above `max` events.
pub fn split(body: &[u8], max: usize) -> Result<Vec<Range<usize>>, ApiError> {
    let mut reader = MsgpackReader::new(body);
    let broken = |at: usize, why: DecodeReason| {
        ApiError::unreadable(format!("not readable MessagePack: {why}, at byte {at}"))
    };
    let count = match reader.token().map_err(|why| broken(0, why))? {
        // Checked before the loop: the declared count must not make the server parse more.
        Token::Array(n) if n as usize > max => return Err(too_many(max)),
        Token::Array(n) => n,
        Token::Map(_) => {
            reader.rewind(0);
            1
        }
        _ => return Err(broken(0, "a body is a map or an array of maps")),
    };
    let mut events = Vec::new();
    for _ in 0..count {
        let at = reader.position();
        events.push(reader.skip_value().map_err(|why| broken(at, why))?);
    }
    if reader.position() != body.len() {
        Err(broken(reader.position(), "bytes behind the end"))
    } else {
        Ok(events)
    }
}

const NAMES: [&[u8]; 7] =
    [b"metric", b"timestamp", b"value", b"labels", b"user", b"id", b"properties"];

/// Parses one event into its fields, without checking their values.
///
/// # Errors
/// If it is not a map, has unknown or repeated fields, or is nested too deeply.
pub fn event(raw: &[u8]) -> Result<EventFields<'_>, String> {
    fields(raw).map_err(|why| format!("not a readable event: {why}"))
}

/// The id of an event that is not parsed otherwise, so that its refusal can name it. `None` unless
/// it occurs exactly once before any broken part.
pub fn id(raw: &[u8]) -> Option<String> {
    let mut reader = MsgpackReader::new(raw);
    let Ok(Token::Map(count)) = reader.token() else { return None };
    let mut found: Option<&[u8]> = None;
    for _ in 0..count {
        let (Ok(name), Ok(value)) = (reader.skip_value(), reader.skip_value()) else { break };
        if matches!(MsgpackReader::new(&raw[name]).token(), Ok(Token::Str(b"id")))
            && found.replace(&raw[value]).is_some()
        {
            return None;
        }
    }
    match MsgpackReader::new(found?).token() {
        Ok(Token::Str(id)) => String::from_utf8(id.to_vec()).ok(),
        _ => None,
    }
}

fn fields(raw: &[u8]) -> Result<EventFields<'_>, DecodeReason> {
    let mut reader = MsgpackReader::new(raw);
    let Token::Map(count) = reader.token()? else { return Err("an event is a map") };
    let mut fields = EventFields {
        metric: TextField::Absent,
        timestamp: TimeField::Absent,
        value: NumberField::Absent,
        labels: &[],
        user: TextField::Absent,
        id: TextField::Absent,
    };
    let mut seen = [false; NAMES.len()];
    for _ in 0..count {
        let Token::Str(name) = reader.token()? else { return Err("a field name is not a string") };
        let at = NAMES.iter().position(|n| *n == name).ok_or("an unknown field")?;
        if std::mem::replace(&mut seen[at], true) {
            return Err("a field is there twice");
        }
        match at {
            0 => fields.metric = text(reader.token_of_scalar()?),
            1 => fields.timestamp = time(reader.token_of_scalar()?),
            2 => fields.value = number(reader.token_of_scalar()?),
            3 => {
                fields.labels = Some(&raw[reader.skip_checked()?])
                    // 0xc0 is nil, which means no labels.
                    .filter(|raw| **raw != [0xc0])
                    .unwrap_or_default()
            }
            4 => fields.user = text(reader.token_of_scalar()?),
            5 => fields.id = text(reader.token_of_scalar()?),
            _ => {
                let raw = &raw[reader.skip_checked()?];
                MsgpackReader::new(raw).check_text()?;
            }
        }
    }
    Ok(fields)
}

fn text(token: Token<'_>) -> TextField<'_> {
    match token {
        Token::Nil => TextField::Absent,
        Token::Str(s) => std::str::from_utf8(s)
            .map_or(TextField::Invalid, |s| TextField::Present(Cow::Borrowed(s))),
        _ => TextField::Invalid,
    }
}

fn time(token: Token<'_>) -> TimeField<'_> {
    match token {
        Token::Nil => TimeField::Absent,
        Token::Int(n) => TimeField::Millis(n.clamp(i64::MIN.into(), i64::MAX.into()) as i64),
        Token::Str(s) => {
            std::str::from_utf8(s).map_or(TimeField::Invalid, |s| TimeField::Text(Cow::Borrowed(s)))
        }
        _ => TimeField::Invalid,
    }
}

fn number(token: Token<'_>) -> NumberField<'_> {
    match token {
        Token::Nil => NumberField::Null,
        Token::Str(s) => std::str::from_utf8(s)
            .map_or(NumberField::Invalid, |s| NumberField::Text(Cow::Borrowed(s))),
        other => other
            .number_text()
            .map_or(NumberField::Invalid, |text| NumberField::Text(Cow::Owned(text))),
    }
}

/// Parses and checks MessagePack labels.
///
/// # Errors
/// `labels_invalid` if it is not a map of strings, or there are too many or duplicate labels.
pub fn labels(raw: &[u8]) -> Result<Vec<(String, String)>, EventError> {
    let wrong = |why: &str| {
        EventError::new(
            EventErrorCode::LabelsInvalid,
            format!("labels are a map of strings: {why}"),
        )
    };
    let mut reader = MsgpackReader::new(raw);
    let string = |reader: &mut MsgpackReader<'_>| match reader.token() {
        Ok(Token::Str(s)) => String::from_utf8(s.to_vec()).map_err(|_| wrong("not UTF-8")),
        _ => Err(wrong("not a string")),
    };
    let Ok(Token::Map(count)) = reader.token() else { return Err(wrong("not a map")) };
    let mut found = LabelList::default();
    for _ in 0..count {
        let (name, value) = (string(&mut reader)?, string(&mut reader)?);
        found.push(name, value).map_err(|why| wrong(&why))?;
    }
    Ok(found.into_labels())
}
