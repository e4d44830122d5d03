//! Queries: one store snapshot plus exactly the live deltas above its checkpoints, merged into time
//! steps and groups.
//!
//! A flush that commits during a query is neither missed nor counted twice. A shard that cannot
//! answer, or has fallen behind, makes the answer `partial` and is named in it.

pub mod accounting;
pub mod answer;
mod cache;
mod catalogue;
pub mod completeness;
mod days;
pub mod engine;
pub mod error;
pub mod groups;
mod part;
mod rank;
pub mod request;
pub mod service;
pub mod steps;
mod stored;
pub mod without_role;

#[cfg(test)]
mod tests;
