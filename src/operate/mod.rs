//! What operators see and do: where nodes and shards stand, what was set aside, what expires.
//!
//! On failure nothing was changed, or the answer says that the outcome is unknown.

pub mod absent;
pub mod expiry;
pub mod quarantine;
pub mod service;
pub mod status;
