//! The port `SharedCache`: a second place for parts of answers, shared by the nodes, behind the cache
//! in each process.
//!
//! Everything in it can be computed again, and what comes out of it is untrusted bytes that the
//! caller checks: to lose it, to fill it with rubbish, or to stop it in the middle of an answer is
//! only slower. Implementation: [`redis`].

pub mod breaker;
pub mod redis;

/// A name, unique for what is kept under it.
pub type PartKey = [u8; 32];

/// A second cache.
pub trait SharedCache: Send + Sync + 'static {
    /// What is kept under the names, in their order. Waits for a few milliseconds at most; what is
    /// not there by then counts as not kept.
    fn get(&self, names: &[PartKey]) -> Vec<Option<Vec<u8>>>;
    /// Keeps bytes under a name, or not. Does not wait.
    fn put(&self, name: PartKey, bytes: Vec<u8>);
}

#[cfg(test)]
#[path = "../../../tests/support/redis.rs"]
mod server;
#[cfg(test)]
mod tests;
