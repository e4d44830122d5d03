//! What a shard is: a buffer of deltas; the store holds the totals. Pure: no async, no I/O, no
//! clock, no randomness.
//!
//! [`driver::ShardDriver`] decides everything about an owned shard, and [`state::ShardState`]
//! within it holds its memory; a seeded loop can put them through millions of crash points. A new
//! owner begins with empty aggregates at the checkpoint and the ids of the horizon; whatever it
//! lost with its memory is still in the log.

pub mod batch;
pub mod dedup;
pub mod driver;
pub mod immutable_queue;
pub mod poison;
pub mod release;
pub mod series;
pub mod state;
