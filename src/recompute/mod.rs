//! Recomputation from archive and log: the shard driver runs over records that exist already.
//!
//! `continuity` checks whether a shard can resume from its checkpoint. `fold` runs the driver in
//! memory. `verify` compares the result with the store byte by byte. `rebuild` recreates a lost
//! store. None of them serves: the store is either only read, or not served from before it is
//! complete.

pub mod continuity;
pub mod fold;
#[cfg(test)]
mod generation_world;
pub mod rebuild;
pub mod replay;
pub mod verify;
