//! What a shard is: a buffer of deltas; the store holds the totals. Pure: no async, no I/O, no clock, no randomness.

pub mod dedup;
pub mod immutable_queue;
pub mod state;
