//! What operators see and do: status of nodes and shards, quarantine, expiry, replays.
//!
//! A call that fails has changed nothing, or says that the outcome is unknown.

pub mod boards;
pub mod expiry;
pub mod quarantine;
pub mod replays;
pub mod service;
pub mod status;
pub mod without_store;
