//! What is computed again from archive and log: the shard driver over records that are already
//! there.
//!
//! `continuity` says whether a shard can go on at all; `fold` runs the driver in memory; `verify` compares the outcome with the store, byte by byte; `rebuild`
//! makes a lost store anew. None of them serves: the store is either only read, or not served from
//! until it is whole.

pub mod continuity;
pub mod fold;
pub mod rebuild;
pub mod verify;
