//! Columns that are not plain integers: 128-bit units, blocks of ids, windows of a manifest row.
//!
//! Blocks begin with a version; bytes that do not decode are an error that names the format.

use rusqlite::types::{ToSqlOutput, Value, ValueRef};
use rusqlite::{Row, ToSql};

use crate::model::CodecError;
use crate::model::decimal::Decimal;
use crate::model::manifest::Tier;
use crate::model::rollup::Figures;
use crate::model::window::{Hour, Millis};

const VERSION: u8 = 1;

/// Units of 10^-9: an integer when they fit 64 bits, 16 big-endian bytes otherwise.
pub(super) struct Units(pub(super) i128);

impl ToSql for Units {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(ToSqlOutput::Owned(match i64::try_from(self.0) {
            Ok(small) => Value::Integer(small),
            Err(_) => Value::Blob(self.0.to_be_bytes().to_vec()),
        }))
    }
}

fn units(row: &Row<'_>, column: usize) -> rusqlite::Result<Option<i128>> {
    let value = row.get_ref(column)?;
    match value {
        ValueRef::Null => Ok(None),
        ValueRef::Integer(small) => Ok(Some(i128::from(small))),
        ValueRef::Blob(bytes) if bytes.len() == 16 => {
            let mut units = [0; 16];
            units.copy_from_slice(bytes);
            Ok(Some(i128::from_be_bytes(units)))
        }
        _ => Err(rusqlite::Error::InvalidColumnType(column, "units".to_owned(), value.data_type())),
    }
}

/// Count, value count, sum, min, max from five columns.
pub(super) fn figures(row: &Row<'_>, first: usize) -> rusqlite::Result<Figures> {
    Ok(Figures {
        count: row.get::<_, i64>(first)? as u64,
        value_count: row.get::<_, i64>(first + 1)? as u64,
        sum: units(row, first + 2)?.unwrap_or(0),
        min: units(row, first + 3)?.map(Decimal::from_units),
        max: units(row, first + 4)?.map(Decimal::from_units),
    })
}

pub(super) fn tier_number(tier: Tier) -> i64 {
    match tier {
        Tier::Hot => 0,
        Tier::Cold => 1,
    }
}

pub(super) fn tier(number: i64) -> Result<Tier, CodecError> {
    match number {
        0 => Ok(Tier::Hot),
        1 => Ok(Tier::Cold),
        other => Err(CodecError::new("manifest tier", format!("{other} is neither 0 nor 1"))),
    }
}

/// Version, then per run: append time, number of ids, ids.
pub(super) fn encode_runs(runs: &[(Millis, Vec<u128>)]) -> Vec<u8> {
    let mut out = vec![VERSION];
    for (appended, ids) in runs {
        out.extend(appended.to_be_bytes());
        out.extend((ids.len() as u32).to_be_bytes());
        out.extend(ids.iter().flat_map(|id| id.to_be_bytes()));
    }
    out
}

pub(super) fn decode_runs(bytes: &[u8]) -> Result<Vec<(Millis, Vec<u128>)>, CodecError> {
    let mut input = versioned("block of ids", bytes)?;
    let mut runs = Vec::new();
    while !input.is_empty() {
        let appended = i64::from_be_bytes(take("block of ids", &mut input)?);
        let count = u32::from_be_bytes(take("block of ids", &mut input)?);
        let ids = (0..count).map(|_| take("block of ids", &mut input).map(u128::from_be_bytes)).collect::<Result<_, _>>()?;
        runs.push((appended, ids));
    }
    Ok(runs)
}

/// Version, then per window: hour, events.
pub(super) fn encode_windows(windows: &[(Hour, u64)]) -> Vec<u8> {
    let mut out = vec![VERSION];
    for (hour, events) in windows {
        out.extend(hour.0.to_be_bytes());
        out.extend(events.to_be_bytes());
    }
    out
}

pub(super) fn decode_windows(bytes: &[u8]) -> Result<Vec<(Hour, u64)>, CodecError> {
    let mut input = versioned("manifest windows", bytes)?;
    let mut windows = Vec::new();
    while !input.is_empty() {
        let hour = Hour(i32::from_be_bytes(take("manifest windows", &mut input)?));
        windows.push((hour, u64::from_be_bytes(take("manifest windows", &mut input)?)));
    }
    Ok(windows)
}

fn versioned<'a>(what: &'static str, bytes: &'a [u8]) -> Result<&'a [u8], CodecError> {
    match bytes.split_first() {
        Some((&VERSION, rest)) => Ok(rest),
        _ => Err(CodecError::new(what, "its version is unknown")),
    }
}

fn take<const N: usize>(what: &'static str, input: &mut &[u8]) -> Result<[u8; N], CodecError> {
    let (head, rest) = input.split_first_chunk::<N>().ok_or_else(|| CodecError::new(what, "cut off"))?;
    *input = rest;
    Ok(*head)
}
