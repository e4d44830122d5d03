//! Queries: one store snapshot ⊕ exactly the live deltas above its checkpoints, merged into steps
//! and groups.
//!
//! What always holds: a flush that commits in the middle is neither missed nor counted twice; a
//! shard that cannot answer, or has fallen behind, makes the answer `partial` and is named in it.

pub mod absent;
pub mod accounting;
pub mod answer;
mod cache;
mod catalogue;
pub mod charge;
pub mod completeness;
mod days;
pub mod engine;
pub mod error;
pub mod groups;
pub mod matchers;
mod part;
mod rank;
pub mod request;
pub mod service;
pub mod steps;

#[cfg(test)]
mod tests;
