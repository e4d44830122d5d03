//! MessagePack bodies: a map, or an array of maps. The walker is iterative and bounded in depth. It
//! never allocates by a declared length before that many bytes are there.

use std::borrow::Cow;
use std::ops::Range;

use rmp::Marker;

use super::error::ApiError;
use super::parse::{
    EventFields, LabelList, MAX_DEPTH, NumberField, TextField, TimeField, too_many,
};
use crate::model::event::{EventError, EventErrorCode};

struct ValueReader<'a> {
    bytes: &'a [u8],
    at: usize,
}

enum Token<'a> {
    Nil,
    Int(i128),
    Float(f64),
    Float32(f32),
    Str(&'a [u8]),
    Other,
    Reserved,
    Array(u32),
    Map(u32),
}

type DecodeReason = &'static str;

impl<'a> ValueReader<'a> {
    fn take(&mut self, n: usize) -> Result<&'a [u8], DecodeReason> {
        let rest = &self.bytes[self.at..];
        let (taken, _) = rest.split_at_checked(n).ok_or("cut off")?;
        self.at += n;
        Ok(taken)
    }
    fn uint(&mut self, n: usize) -> Result<u64, DecodeReason> {
        Ok(self.take(n)?.iter().fold(0, |v, &b| (v << 8) | u64::from(b)))
    }
    fn blob(&mut self, width: usize, extra: usize) -> Result<&'a [u8], DecodeReason> {
        let len = usize::try_from(self.uint(width)?).map_err(|_| "a length is too long")?;
        self.take(len.saturating_add(extra))
    }
    fn token(&mut self) -> Result<Token<'a>, DecodeReason> {
        let marker = Marker::from_u8(self.take(1)?[0]);
        Ok(match marker {
            Marker::Null => Token::Nil,
            Marker::True | Marker::False => Token::Other,
            // Consumed as one byte: only the event that holds it is refused, and the walk can
            // continue.
            Marker::Reserved => Token::Reserved,
            Marker::FixPos(n) => Token::Int(i128::from(n)),
            Marker::FixNeg(n) => Token::Int(i128::from(n)),
            Marker::U8 => Token::Int(i128::from(self.uint(1)?)),
            Marker::U16 => Token::Int(i128::from(self.uint(2)?)),
            Marker::U32 => Token::Int(i128::from(self.uint(4)?)),
            Marker::U64 => Token::Int(i128::from(self.uint(8)?)),
            Marker::I8 => Token::Int(i128::from(self.uint(1)? as i8)),
            Marker::I16 => Token::Int(i128::from(self.uint(2)? as i16)),
            Marker::I32 => Token::Int(i128::from(self.uint(4)? as i32)),
            Marker::I64 => Token::Int(i128::from(self.uint(8)? as i64)),
            Marker::F32 => Token::Float32(f32::from_bits(self.uint(4)? as u32)),
            Marker::F64 => Token::Float(f64::from_bits(self.uint(8)?)),
            Marker::FixStr(n) => Token::Str(self.take(usize::from(n))?),
            Marker::Str8 => Token::Str(self.blob(1, 0)?),
            Marker::Str16 => Token::Str(self.blob(2, 0)?),
            Marker::Str32 => Token::Str(self.blob(4, 0)?),
            Marker::Bin8 => self.blob(1, 0).map(|_| Token::Other)?,
            Marker::Bin16 => self.blob(2, 0).map(|_| Token::Other)?,
            Marker::Bin32 => self.blob(4, 0).map(|_| Token::Other)?,
            Marker::Ext8 => self.blob(1, 1).map(|_| Token::Other)?,
            Marker::Ext16 => self.blob(2, 1).map(|_| Token::Other)?,
            Marker::Ext32 => self.blob(4, 1).map(|_| Token::Other)?,
            Marker::FixExt1 => self.take(2).map(|_| Token::Other)?,
            Marker::FixExt2 => self.take(3).map(|_| Token::Other)?,
            Marker::FixExt4 => self.take(5).map(|_| Token::Other)?,
            Marker::FixExt8 => self.take(9).map(|_| Token::Other)?,
            Marker::FixExt16 => self.take(17).map(|_| Token::Other)?,
            Marker::FixArray(n) => Token::Array(u32::from(n)),
            Marker::Array16 => Token::Array(self.uint(2)? as u32),
            Marker::Array32 => Token::Array(self.uint(4)? as u32),
            Marker::FixMap(n) => Token::Map(u32::from(n)),
            Marker::Map16 => Token::Map(self.uint(2)? as u32),
            Marker::Map32 => Token::Map(self.uint(4)? as u32),
        })
    }
    /// Skips one value of any depth. Keeps a single count of the values still missing, so it needs
    /// no stack. Every value takes at least one byte, so a huge declared count ends with the body.
    fn skip_value(&mut self) -> Result<Range<usize>, DecodeReason> {
        let (start, mut missing) = (self.at, 1u64);
        while missing > 0 {
            missing = missing.saturating_sub(1).saturating_add(match self.token()? {
                Token::Array(n) => u64::from(n),
                Token::Map(n) => u64::from(n) * 2,
                _ => 0,
            });
        }
        Ok(start..self.at)
    }
    /// Skips one value that will be stored: it must be well-formed, and shallow enough for later
    /// readers of the archive.
    fn skip_checked(&mut self) -> Result<Range<usize>, DecodeReason> {
        let start = self.at;
        let mut open: smallvec::SmallVec<[u64; 16]> = smallvec::smallvec![1];
        while let Some(left) = open.last_mut() {
            if *left == 0 {
                open.pop();
                continue;
            }
            *left -= 1;
            match self.token()? {
                Token::Array(n) => open.push(u64::from(n)),
                Token::Map(n) => open.push(u64::from(n) * 2),
                Token::Reserved => return Err("a reserved marker"),
                _ => {}
            }
            if open.len() > MAX_DEPTH {
                return Err("nested too deeply");
            }
        }
        Ok(start..self.at)
    }
    /// Checks that every string in a stored value is UTF-8, as readers of the archive expect.
    /// Arbitrary bytes have the type `bin`.
    fn check_text(&mut self) -> Result<(), DecodeReason> {
        while self.at < self.bytes.len() {
            if let Token::Str(text) = self.token()? {
                std::str::from_utf8(text).map_err(|_| "a string in the properties is not UTF-8")?;
            }
        }
        Ok(())
    }
}

/// Splits a body into its events, as ranges.
///
/// # Errors
/// 400 if it is neither map nor array, or its events cannot be separated; 413 above `max` events.
pub fn split(body: &[u8], max: usize) -> Result<Vec<Range<usize>>, ApiError> {
    let mut reader = ValueReader { bytes: body, at: 0 };
    let broken = |at: usize, why: DecodeReason| {
        ApiError::unreadable(format!("not readable MessagePack: {why}, at byte {at}"))
    };
    let count = match reader.token().map_err(|why| broken(0, why))? {
        // Checked before the loop: the declared count must not make the server parse more.
        Token::Array(n) if n as usize > max => return Err(too_many(max)),
        Token::Array(n) => n,
        Token::Map(_) => {
            reader.at = 0;
            1
        }
        _ => return Err(broken(0, "a body is a map or an array of maps")),
    };
    let mut events = Vec::new();
    for _ in 0..count {
        let at = reader.at;
        events.push(reader.skip_value().map_err(|why| broken(at, why))?);
    }
    if reader.at != body.len() {
        Err(broken(reader.at, "bytes behind the end"))
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
    let mut reader = ValueReader { bytes: raw, at: 0 };
    let Ok(Token::Map(count)) = reader.token() else { return None };
    let mut found: Option<&[u8]> = None;
    for _ in 0..count {
        let (Ok(name), Ok(value)) = (reader.skip_value(), reader.skip_value()) else { break };
        if matches!(ValueReader { bytes: &raw[name], at: 0 }.token(), Ok(Token::Str(b"id")))
            && found.replace(&raw[value]).is_some()
        {
            return None;
        }
    }
    match (ValueReader { bytes: found?, at: 0 }).token() {
        Ok(Token::Str(id)) => String::from_utf8(id.to_vec()).ok(),
        _ => None,
    }
}

fn fields(raw: &[u8]) -> Result<EventFields<'_>, DecodeReason> {
    let mut reader = ValueReader { bytes: raw, at: 0 };
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
                ValueReader { bytes: raw, at: 0 }.check_text()?;
            }
        }
    }
    Ok(fields)
}

impl<'a> ValueReader<'a> {
    /// Reads a scalar; an array or map is skipped and read as [`Token::Other`].
    fn token_of_scalar(&mut self) -> Result<Token<'a>, DecodeReason> {
        let start = self.at;
        match self.token()? {
            Token::Array(_) | Token::Map(_) => {
                self.at = start;
                self.skip_checked().map(|_| Token::Other)
            }
            Token::Reserved => Err("a reserved marker"),
            scalar => Ok(scalar),
        }
    }
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

/// Floats become decimals by their shortest text, so that 0.1 stays 0.1; NaN
/// and infinities are invalid.
fn number(token: Token<'_>) -> NumberField<'_> {
    match token {
        Token::Nil => NumberField::Null,
        Token::Int(n) => NumberField::Text(Cow::Owned(n.to_string())),
        Token::Float(f) if f.is_finite() => NumberField::Text(Cow::Owned(f.to_string())),
        Token::Float32(f) if f.is_finite() => NumberField::Text(Cow::Owned(f.to_string())),
        Token::Str(s) => std::str::from_utf8(s)
            .map_or(NumberField::Invalid, |s| NumberField::Text(Cow::Borrowed(s))),
        _ => NumberField::Invalid,
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
    let mut reader = ValueReader { bytes: raw, at: 0 };
    let string = |reader: &mut ValueReader<'_>| match reader.token() {
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
