//! Columns that are not plain numbers: exact decimals, 128-bit ids, and rows of a binary COPY.
//!
//! A decimal is sent as `numeric`: groups of four decimal digits, the first of weight 10000^w.
//! Units of 10^-9 do not fill whole groups, so the fraction is written as twelve digits, the last
//! three of which are zero.

use bytes::{BufMut, Bytes, BytesMut};
use tokio_postgres::Row;
use tokio_postgres::types::{FromSql, IsNull, ToSql, Type, accepts, to_sql_checked};

use super::StoreError;
use crate::model::decimal::{Decimal, UNITS_PER_ONE};
use crate::model::rollup::RollupFigures;

type BoxError = Box<dyn std::error::Error + Sync + Send>;

/// 16 bytes, stored as a `uuid`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct UuidBytes(pub(super) [u8; 16]);

impl ToSql for UuidBytes {
    fn to_sql(&self, _: &Type, out: &mut BytesMut) -> Result<IsNull, BoxError> {
        out.put_slice(&self.0);
        Ok(IsNull::No)
    }
    accepts!(UUID);
    to_sql_checked!();
}

impl<'a> FromSql<'a> for UuidBytes {
    fn from_sql(_: &Type, raw: &'a [u8]) -> Result<Self, BoxError> {
        Ok(Self(raw.try_into()?))
    }
    accepts!(UUID);
}

/// Units of 10^-9, stored as a `numeric`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct NumericUnits(pub(super) i128);

const GROUP: u128 = 10_000;
const NEGATIVE: u16 = 0x4000;
/// Number of groups of the fraction.
const FRACTION: usize = 3;

impl NumericUnits {
    fn encode(self, out: &mut BytesMut) {
        let magnitude = self.0.unsigned_abs();
        let fraction = (magnitude % UNITS_PER_ONE as u128) * 1_000;
        let mut groups: Vec<u16> = Vec::with_capacity(12);
        let mut rest = fraction;
        for _ in 0..FRACTION {
            groups.push((rest % GROUP) as u16);
            rest /= GROUP;
        }
        let mut whole = magnitude / UNITS_PER_ONE as u128;
        while whole > 0 {
            groups.push((whole % GROUP) as u16);
            whole /= GROUP;
        }
        // The groups are least significant first up to here. PostgreSQL strips zero groups at both
        // ends.
        while groups.last() == Some(&0) {
            groups.pop();
        }
        let weight = groups.len() as i16 - 1 - FRACTION as i16;
        let trailing = groups.iter().take_while(|group| **group == 0).count();
        let digits = (0..9).take_while(|n| !fraction.is_multiple_of(10_u128.pow(12 - n))).count();
        out.put_i16((groups.len() - trailing) as i16);
        out.put_i16(if groups.is_empty() { 0 } else { weight });
        out.put_u16(if self.0 < 0 { NEGATIVE } else { 0 });
        out.put_u16(digits as u16);
        groups[trailing..].iter().rev().for_each(|group| out.put_u16(*group));
    }
}

impl<'a> FromSql<'a> for NumericUnits {
    fn from_sql(_: &Type, raw: &'a [u8]) -> Result<Self, BoxError> {
        let field = |at: usize| -> Result<u16, BoxError> {
            let bytes = raw.get(2 * at..2 * at + 2).ok_or("a numeric is cut off")?;
            Ok(u16::from_be_bytes(bytes.try_into()?))
        };
        let (count, weight, sign) = (field(0)?, field(1)?.cast_signed(), field(2)?);
        if sign != 0 && sign != NEGATIVE {
            return Err("a numeric is not finite".into());
        }
        let mut units: i128 = 0;
        for at in 0..count {
            let group = i128::from(field(4 + usize::from(at))?);
            // Group `at` counts multiples of 10^(4 (weight - at)), and one is 10^9 units.
            let exponent = 4 * (i32::from(weight) - i32::from(at)) + 9;
            let part = match u32::try_from(exponent) {
                Ok(up) => 10_i128.checked_pow(up).and_then(|factor| factor.checked_mul(group)),
                Err(_) => {
                    let down = 10_i128
                        .checked_pow(exponent.unsigned_abs())
                        .ok_or("a numeric is too small")?;
                    (group % down == 0).then_some(group / down)
                }
            };
            units = part
                .and_then(|part| units.checked_add(part))
                .ok_or("a numeric is no whole number of 10^-9 units")?;
        }
        Ok(Self(if sign == NEGATIVE { -units } else { units }))
    }
    accepts!(NUMERIC);
}

/// Count, value count, sum, min and max from five columns.
pub(super) fn figures(row: &Row, first: usize) -> Result<RollupFigures, StoreError> {
    let bound = |at: usize| -> Result<Option<Decimal>, StoreError> {
        Ok(get::<Option<NumericUnits>>(row, at)?
            .map(|NumericUnits(units)| Decimal::from_units(units)))
    };
    Ok(RollupFigures {
        count: get::<i64>(row, first)? as u64,
        value_count: get::<i64>(row, first + 1)? as u64,
        sum: get::<NumericUnits>(row, first + 2)?.0,
        min: bound(first + 3)?,
        max: bound(first + 4)?,
    })
}

/// Reads one column. A value that does not decode means a damaged database.
pub(super) fn get<'a, T: FromSql<'a>>(row: &'a Row, at: usize) -> Result<T, StoreError> {
    row.try_get(at).map_err(|e| {
        let cause =
            std::error::Error::source(&e).map(|cause| format!(": {cause}")).unwrap_or_default();
        StoreError::Invalid(format!(
            "postgres: {e}{cause}: restore the database from a backup, or rebuild it from the \
             archive"
        ))
    })
}

/// Size in bytes at which a chunk of a COPY is sent.
const CHUNK: usize = 256 * 1024;

/// Encodes the rows of a binary COPY.
#[derive(Debug)]
pub(super) struct CopyRows {
    done: Vec<Bytes>,
    open: BytesMut,
}

impl CopyRows {
    pub(super) fn new() -> Self {
        let mut open = BytesMut::with_capacity(CHUNK);
        open.put_slice(b"PGCOPY\n\xff\r\n\0");
        // No flags, no header extension.
        open.put_i64(0);
        Self { done: Vec::new(), open }
    }

    pub(super) fn begin_row(&mut self, columns: i16) {
        if self.open.len() >= CHUNK {
            self.done.push(
                std::mem::replace(&mut self.open, BytesMut::with_capacity(CHUNK + 4096)).freeze(),
            );
        }
        self.open.put_i16(columns);
    }

    pub(super) fn int(&mut self, value: i32) {
        self.open.put_i32(4);
        self.open.put_i32(value);
    }

    pub(super) fn bigint(&mut self, value: i64) {
        self.open.put_i32(8);
        self.open.put_i64(value);
    }

    pub(super) fn numeric(&mut self, value: Option<i128>) {
        let Some(units) = value else { return self.open.put_i32(-1) };
        self.sized(|out| NumericUnits(units).encode(out));
    }

    pub(super) fn bytea(&mut self, write: impl FnOnce(&mut Vec<u8>)) {
        let mut bytes = Vec::new();
        write(&mut bytes);
        self.sized(|out| out.put_slice(&bytes));
    }

    fn sized(&mut self, write: impl FnOnce(&mut BytesMut)) {
        let at = self.open.len();
        self.open.put_i32(0);
        write(&mut self.open);
        let length = (self.open.len() - at - 4) as i32;
        self.open[at..at + 4].copy_from_slice(&length.to_be_bytes());
    }

    /// The encoded chunks, including the trailer.
    pub(super) fn finish(mut self) -> Vec<Bytes> {
        self.open.put_i16(-1);
        self.done.push(self.open.freeze());
        self.done
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn encoded(units: i128) -> Vec<u8> {
        let mut out = BytesMut::new();
        NumericUnits(units).encode(&mut out);
        out.to_vec()
    }

    fn decoded(raw: &[u8]) -> Result<i128, String> {
        NumericUnits::from_sql(&Type::NUMERIC, raw).map(|units| units.0).map_err(|e| e.to_string())
    }

    #[test]
    fn numbers_are_encoded_as_the_server_does() {
        // Groups, weight, sign, digits shown, then the groups.
        let golden: [(i128, &[i16]); 7] = [
            (0, &[0, 0, 0, 0]),
            (UNITS_PER_ONE, &[1, 0, 0, 0, 1]),
            (19_990_000_000, &[2, 0, 0, 2, 19, 9900]),
            (-1, &[1, -3, 0x4000, 9, 1000]),
            (10_000 * UNITS_PER_ONE, &[1, 1, 0, 0, 1]),
            (100_000_000, &[1, -1, 0, 1, 1000]),
            (12_345_678 * UNITS_PER_ONE + 5, &[5, 1, 0, 9, 1234, 5678, 0, 0, 5000]),
        ];
        for (units, fields) in golden {
            let bytes: Vec<u8> = fields.iter().flat_map(|field| field.to_be_bytes()).collect();
            assert_eq!(encoded(units), bytes, "{units}");
        }
    }

    #[test]
    fn what_is_no_decimal_of_ours_is_refused() {
        for fields in
            [&[0, 0, -0x4000, 0][..], &[1, -3, 0, 12, 1], &[1, 30, 0, 0, 1], &[2, 0, 0, 0, 1]]
        {
            let bytes: Vec<u8> =
                fields.iter().flat_map(|field: &i16| field.to_be_bytes()).collect();
            assert!(decoded(&bytes).is_err(), "{fields:?}");
        }
    }

    proptest! {
        #[test]
        fn decimals_return(units in any::<i128>(), shift in 0_u32..127) {
            let units = (units >> shift).max(-i128::MAX);
            prop_assert_eq!(decoded(&encoded(units)), Ok(units));
        }
    }
}
