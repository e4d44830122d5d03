//! Quantiles: a DDSketch (Masson, Rim, Lee, 2019) with a relative error below 1 %, also for
//! negative values and zero.
//!
//! Buckets are log-linear: each power of two of the magnitude, in units of 10^-9, is divided into
//! 64 equal parts, so a bucket's index is the position of the highest bit and the six bits below
//! it. That is integer arithmetic, the same on every machine. A bucket's midpoint is within 1/128 =
//! 0.79 % of every value in it; magnitudes below 128 units have a bucket each. Counts have 64 bits
//! and buckets never collapse, so merging is addition, and the bytes do not depend on order or
//! splitting.
//!
//! Serialised, version 1: an empty sketch is zero bytes. Otherwise `[1]`, then for each bucket in
//! ascending order of value its signed index (2 bytes, big-endian; negative values have negative
//! indices, zero has 0) and its count as LEB128.

use super::CodecError;
use super::decimal::Decimal;

const VERSION: u8 = 1;
const LINEAR_BITS: u32 = 6;

/// A quantile sketch whose bytes do not depend on order or splitting.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct QuantileSketch(Vec<Bucket>);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Bucket {
    index: i16,
    count: u64,
}

/// The index of the bucket that holds a value.
fn index_of(value: Decimal) -> i16 {
    let magnitude = value.units().unsigned_abs();
    let index = if magnitude < 2 << LINEAR_BITS {
        magnitude as i16
    } else {
        // 64 buckets for each further doubling: at most (91 − 6 + 1) × 64 for the largest value.
        let high = 127 - magnitude.leading_zeros();
        let below = (magnitude >> (high - LINEAR_BITS)) as i16 & ((1 << LINEAR_BITS) - 1);
        (((high - LINEAR_BITS + 1) as i16) << LINEAR_BITS) + below
    };
    if value.units() < 0 { -index } else { index }
}

/// The midpoint of a bucket, in units.
fn middle_of(index: i16) -> i128 {
    let magnitude = i128::from(index.unsigned_abs());
    let middle = if magnitude < 2 << LINEAR_BITS {
        magnitude
    } else {
        let shift = (magnitude >> LINEAR_BITS) - 1;
        let lower = ((magnitude & ((1 << LINEAR_BITS) - 1)) + (1 << LINEAR_BITS)) << shift;
        lower + ((1 << shift) >> 1)
    };
    if index < 0 { -middle } else { middle }
}

impl QuantileSketch {
    /// Adds one value to its bucket.
    pub fn insert(&mut self, value: Decimal) {
        self.add(index_of(value), 1);
    }

    fn add(&mut self, index: i16, count: u64) {
        match self.0.binary_search_by_key(&index, |bucket| bucket.index) {
            Ok(at) => self.0[at].count += count,
            Err(at) => self.0.insert(at, Bucket { index, count }),
        }
    }

    /// Adds the counts of another sketch.
    pub fn merge(&mut self, other: &QuantileSketch) {
        other.0.iter().for_each(|bucket| self.add(bucket.index, bucket.count));
    }

    /// The nearest-rank quantile, the `ceil(q × n)`-th smallest value, within 1 %. `None` if
    /// empty. A bucket's midpoint may lie outside the values in it: callers that know the minimum
    /// and the maximum clamp to them.
    pub fn quantile(&self, q: f64) -> Option<Decimal> {
        let count: u64 = self.0.iter().map(|bucket| bucket.count).sum();
        let rank = ((q * count as f64).ceil() as u64).clamp(1, count.max(1));
        self.value_at(rank - 1)
    }

    /// The value that `rank` values are not larger than, in ascending order, within 1 %. `None` if
    /// there are not that many. Not clamped, as [`Self::quantile`].
    pub fn value_at(&self, rank: u64) -> Option<Decimal> {
        let mut below = 0;
        let found = self.0.iter().find(|bucket| {
            below += bucket.count;
            below > rank
        });
        found.map(|bucket| Decimal::from_units(middle_of(bucket.index)))
    }

    /// Whether no value was added.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Appends the serialised form; an empty sketch appends nothing.
    pub fn encode(&self, out: &mut Vec<u8>) {
        if !self.0.is_empty() {
            out.push(VERSION);
        }
        for bucket in &self.0 {
            out.extend_from_slice(&bucket.index.to_be_bytes());
            let mut count = bucket.count;
            while count >= 0x80 {
                out.push((count as u8 & 0x7f) | 0x80);
                count >>= 7;
            }
            out.push(count as u8);
        }
    }

    /// Decodes the serialised form. Fails if the version is unknown, or if the bytes are cut
    /// off or not canonical.
    pub fn decode(bytes: &[u8]) -> Result<Self, CodecError> {
        let bad = |why: &str| CodecError::new("quantile sketch", why);
        let Some((&version, mut rest)) = bytes.split_first() else { return Ok(Self::default()) };
        if version != VERSION {
            return Err(bad("the version is unknown"));
        }
        let mut buckets: Vec<Bucket> = Vec::new();
        while let Some((index, behind)) = rest.split_first_chunk::<2>() {
            let (count, behind) =
                take_count(behind).ok_or_else(|| bad("a count is cut off or too long"))?;
            let index = i16::from_be_bytes(*index);
            if count == 0 || buckets.last().is_some_and(|last| last.index >= index) {
                return Err(bad("the buckets are not canonical"));
            }
            buckets.push(Bucket { index, count });
            rest = behind;
        }
        if !rest.is_empty() || buckets.is_empty() {
            return Err(bad("cut off"));
        }
        Ok(Self(buckets))
    }

    /// Heap size in bytes.
    pub fn heap_bytes(&self) -> usize {
        self.0.capacity() * size_of::<Bucket>()
    }
}

fn take_count(bytes: &[u8]) -> Option<(u64, &[u8])> {
    let mut count = 0u64;
    for (at, &byte) in bytes.iter().enumerate().take(10) {
        let part = u64::from(byte & 0x7f);
        // `checked_shl` checks the distance only, so bits that were shifted out are looked for.
        count |=
            part.checked_shl(7 * at as u32).filter(|shifted| shifted >> (7 * at as u32) == part)?;
        if byte & 0x80 == 0 {
            // A final zero byte would be a second spelling of the same count.
            return (byte != 0 || at == 0).then_some((count, &bytes[at + 1..]));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::model::decimal::{MAX_MAGNITUDE, UNITS_PER_ONE};

    fn of(values: &[i128]) -> QuantileSketch {
        let mut sketch = QuantileSketch::default();
        values.iter().for_each(|&units| sketch.insert(Decimal::from_units(units)));
        sketch
    }

    fn bytes(sketch: &QuantileSketch) -> Vec<u8> {
        let mut out = Vec::new();
        sketch.encode(&mut out);
        out
    }

    #[test]
    fn golden_buckets() {
        let largest = MAX_MAGNITUDE * UNITS_PER_ONE;
        let indices = [0, 1, 127, 128, 129, 130, 255, 256, UNITS_PER_ONE, -UNITS_PER_ONE, largest]
            .map(|u| index_of(Decimal::from_units(u)));
        assert_eq!(indices, [0, 1, 127, 128, 128, 129, 191, 192, 1591, -1591, 5415]);
        assert_eq!(bytes(&of(&[0, -1, 128, 128])), [1, 255, 255, 1, 0, 0, 1, 0, 128, 2]);
    }

    #[test]
    fn damaged_bytes_are_refused() {
        for bad in [
            &[2u8, 0, 0, 1][..],
            &[1],
            &[1, 0],
            &[1, 0, 0],
            &[1, 0, 0, 0],
            &[1, 0, 1, 1, 0, 0, 1],
            &[1, 0, 0, 0x80, 0],
        ] {
            assert!(QuantileSketch::decode(bad).is_err(), "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn every_quantile_is_within_one_percent_of_the_nearest_rank(
            values in proptest::collection::vec(
                prop_oneof![
                    -2_000i128..2_000,
                    -(1i128 << 89)..(1 << 89),
                    any::<i32>().prop_map(i128::from)
                ],
                1..200,
            ),
            q in 0.0f64..=1.0,
        ) {
            let mut sorted = values.clone();
            sorted.sort_unstable();
            let rank = ((q * sorted.len() as f64).ceil() as usize).max(1);
            let exact = Decimal::from_units(sorted[rank - 1]).to_f64();
            let got = of(&values).quantile(q).expect("not empty").to_f64();
            prop_assert!((got - exact).abs() <= exact.abs() * 0.01, "{got} for {exact}");
        }

        #[test]
        fn bytes_do_not_depend_on_order_or_splitting(
            values in proptest::collection::vec(any::<i64>(), 0..100),
            cut in 0usize..100,
        ) {
            let values: Vec<i128> = values.into_iter().map(i128::from).collect();
            let cut = cut.min(values.len());
            let mut merged = of(&values[cut..]);
            merged.merge(&of(&values[..cut]));
            let mut reversed = values.clone();
            reversed.reverse();
            prop_assert_eq!(bytes(&merged), bytes(&of(&reversed)));
            prop_assert_eq!(QuantileSketch::decode(&bytes(&merged)), Ok(merged));
        }
    }
}
