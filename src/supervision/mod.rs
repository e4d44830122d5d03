//! When actors are run again: a tree of supervisors over gateways, shards and archive, and the
//! orderly end.
//!
//! What always holds: a failed child is started again after a backoff; recovery comes from store
//! and log, never from the memory of the dead actor. A child over its restart intensity either
//! fails its supervisor (gateways, archive) or is tried for ever (shards: one bad shard must not
//! take its neighbours along). A shard runs where the log assigns it, and nowhere twice.

pub mod ownership;
pub mod policy;
pub mod shards;
pub mod supervisor;
