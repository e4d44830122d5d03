//! Several nodes as one: which of them are there, and live reads over all of them (ractor_cluster).
//!
//! | file | what |
//! |---|---|
//! | `membership/` | the actor that dials, accepts, watches and drops peers |
//! | `listener.rs`, `gate.rs` | where other nodes come in, and what they may bring before they have shown the cookie |
//! | `peer.rs`, `directory.rs` | what is known of each, and who owns which shard |
//! | `reader.rs` | the asking side: one call per node and query |
//! | `door.rs`, `serve.rs` | the answering side |
//! | `wire.rs` | the messages |
//!
//! What always holds: no answer is used that is not for exactly the checkpoint of the query's
//! snapshot; nothing waits longer than its deadline; a node that is gone, frozen or cut off costs
//! one call its deadline and later ones nothing. What ractor_cluster does not do is done here (ADR
//! 0012): heartbeats with a deadline, dialling again, limits, an address bound on purpose.

pub mod directory;
pub mod endpoint;
mod gate;
mod listener;
pub mod membership;
pub mod peer;
pub mod reader;
pub mod server;
pub mod tls;
pub mod wire;

#[cfg(test)]
mod tests;
