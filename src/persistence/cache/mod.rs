//! The port `SharedCache`: a cache of partial query results that all nodes share, behind the cache
//! in each process.
//!
//! Its content can be recomputed and is untrusted: callers verify the bytes they get. Losing it,
//! filling it with garbage or stopping it halfway through a query only costs time. Implementation:
//! [`redis`].

pub mod breaker;
pub mod redis;

/// The key of a cached part: a hash of everything that the part depends on.
pub type PartKey = [u8; 32];

/// A cache shared by all nodes. An implementation never fails a query.
pub trait SharedCache: Send + Sync + 'static {
    /// Looks the keys up and returns the values in the same order. Blocks for a few milliseconds at
    /// most; what has not arrived by then counts as a miss.
    fn get(&self, keys: &[PartKey]) -> Vec<Option<Vec<u8>>>;
    /// Stores the bytes if possible. Does not wait, and may drop them.
    fn put(&self, key: PartKey, bytes: Vec<u8>);
}

#[cfg(test)]
#[path = "../../../tests/support/redis.rs"]
mod server;
#[cfg(test)]
mod tests;
