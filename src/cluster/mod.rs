//! The mesh: several nodes as one, with membership and live reads across them (ractor_cluster).
//!
//! | file | what |
//! |---|---|
//! | `membership/` | the actor that dials, accepts, watches and drops peers |
//! | `listener`, `handshake_limit`, `tls` | incoming connections, limited until authenticated |
//! | `peer`, `directory` | what is known of each peer, and who owns which shard |
//! | `reader` | the requesting side: one call per node and query |
//! | `endpoint`, `server` | the answering side |
//! | `wire` | the messages |
//!
//! An answer is used only if it is for exactly the checkpoint of the query's snapshot. Nothing
//! waits longer than its deadline. A node that is dead, frozen or cut off costs one call its
//! deadline, and later calls nothing. This module adds what ractor_cluster lacks (ADR 0012):
//! heartbeats with a deadline, redialling, limits, and an explicitly bound address.

pub mod directory;
pub mod endpoint;
mod handshake_limit;
mod listener;
pub mod membership;
pub mod peer;
pub mod reader;
pub mod server;
pub mod tls;
pub mod wire;

#[cfg(test)]
mod tests;
