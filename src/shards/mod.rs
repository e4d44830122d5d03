//! A shard is a buffer of deltas; the store holds the totals. Pure: no async, no I/O,
//! no clock, no randomness.
//!
//! [`driver::ShardDriver`] makes every decision about an owned shard; the [`state::ShardState`]
//! inside it holds the shard's memory. Because both are pure, a seeded loop can take them through
//! millions of crash points. A new owner starts at the checkpoint with empty aggregates and the ids
//! of the de-duplication horizon; everything its predecessor held in memory is still in the log.

pub mod batch;
pub mod dedup;
pub mod delta_table;
pub mod driver;
pub mod fill;
pub mod generations;
pub mod immutable_queue;
pub mod live_query;
pub mod poison;
pub mod release;
pub mod series;
pub mod state;
