//! Queries: one store snapshot ⊕ exactly the live deltas above its checkpoints, merged into steps and groups.
//!
//! What always holds: a flush that commits in the middle is neither missed nor counted twice; a shard that cannot answer, or has
//! fallen behind, makes the answer `partial` and is named in it.

pub mod absent;
mod accounting;
mod cache;
mod catalogue;
mod completeness;
mod csv;
mod days;
pub mod engine;
pub mod expiry;
pub mod fold;
mod groups;
mod json;
mod listing;
mod matchers;
pub mod params;
mod part;
mod plan;
pub mod quarantine;
mod rank;
pub mod rebuild;
pub mod service;
pub mod status;
mod steps;
pub mod verify;

#[cfg(test)]
mod tests;
