//! What Rollmill stands on: the ports `EventLog`, `RollupStore`, `Archive` and `SharedCache`, and
//! their implementations.
//!
//! Every implementation of a port passes that port's conformance suite, the in-memory doubles of
//! the simulation included.

pub mod archive;
pub mod cache;
pub mod log;
pub mod store;
