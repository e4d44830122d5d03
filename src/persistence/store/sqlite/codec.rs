//! Columns that are not plain integers: 128-bit units, and the blocks of ids and windows that all
//! SQL stores encode alike.

use rusqlite::types::{ToSqlOutput, Value, ValueRef};
use rusqlite::{Row, ToSql};

pub(super) use super::super::byte_columns::{
    decode_note, decode_runs, decode_windows, encode_note, encode_runs, encode_windows, tier,
    tier_number,
};
use crate::model::decimal::Decimal;
use crate::model::rollup::RollupFigures;

/// The checksum of a row: CRC32C over its columns in order, each preceded by its length, so that
/// bytes cannot move between columns unnoticed.
pub(super) fn row_checksum(columns: &[&[u8]]) -> i64 {
    i64::from(columns.iter().fold(0, |crc, column| {
        crc32c::crc32c_append(crc32c::crc32c_append(crc, &[column.len() as u8]), column)
    }))
}

/// Units of 10^-9: an integer if they fit 64 bits, otherwise 16 big-endian bytes.
pub(super) struct SqliteUnits(pub(super) i128);

impl ToSql for SqliteUnits {
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

/// Count, value count, sum, min and max from five columns.
pub(super) fn figures(row: &Row<'_>, first: usize) -> rusqlite::Result<RollupFigures> {
    Ok(RollupFigures {
        count: row.get::<_, i64>(first)? as u64,
        value_count: row.get::<_, i64>(first + 1)? as u64,
        sum: units(row, first + 2)?.unwrap_or(0),
        min: units(row, first + 3)?.map(Decimal::from_units),
        max: units(row, first + 4)?.map(Decimal::from_units),
    })
}
