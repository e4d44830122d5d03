//! What Rollmill stands on: the ports `EventLog`, `RollupStore` and `Archive`, and their implementations.
//!
//! Every implementation of a port passes that port's conformance suite, the in-memory doubles of the simulation included.

pub mod archive;
pub mod log;
pub mod store;
