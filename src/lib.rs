//! Rollmill: events in over HTTP or WebSocket, exact hourly rollups out, nothing lost and nothing
//! counted twice.
//!
//! The rooms stand in levels; an import always points to a lower one (`tests/tidy/` holds the
//! matrix). `ARCHITECTURE.md` is the map.

// Unit tests share helpers with the test binaries, and tidy up without asking. The product is
// checked by the build without them.
#![cfg_attr(test, allow(unreachable_pub, clippy::let_underscore_must_use))]

pub mod clock;
pub mod invariants;
pub mod telemetry;

pub mod api;
pub mod model;

pub mod config;
pub mod shards;

pub mod persistence;

pub mod actors;
pub mod recompute;

pub mod cluster;
pub mod query;
pub mod supervision;

pub mod operate;

pub mod gateway;

pub mod node;

pub mod migrate;

pub mod cli;
