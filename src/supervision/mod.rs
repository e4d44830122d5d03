//! Restarts and the orderly shutdown of actors: a tree of supervisors over
//! gateways, shards and archive.
//!
//! A failed child is restarted after a back-off. Recovery comes from store and log, never from the
//! memory of the dead actor. A child over its restart intensity either fails its supervisor
//! (gateways, archive) or is retried for ever (shards: one bad shard must not take its neighbours
//! down). A shard runs where the log assigns it, and has at most one actor on a node.

pub mod ownership;
pub mod policy;
pub mod replays;
pub mod shards;
pub mod supervisor;
