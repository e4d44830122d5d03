//! Replay: fills generations from the archive.
//!
//! [`shard_replay`] folds the archived records of one shard into one generation, transaction by
//! transaction. [`plan`] says which objects it reads, [`pace`] how fast. Objects of older releases
//! do not say which of their events were counted: [`undecided`] has the shard's driver decide it
//! again. [`node`] chooses what a node fills, [`actor`] runs it.

pub mod actor;
pub mod node;
pub mod pace;
pub mod plan;
mod set_aside;
pub mod shard_replay;
#[cfg(test)]
mod tests;
pub mod undecided;
