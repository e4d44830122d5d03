//! Rollmill: events in over HTTP or WebSocket, exact hourly rollups out, nothing lost and nothing
//! counted twice.
//!
//! Modules form layers: an import always points to a lower one (`tests/tidy/` holds the matrix).
//! `ARCHITECTURE.md` is the map.

// Unit tests share helpers with the test binaries and ignore errors while cleaning up. The build
// without tests applies both lints to the product.
#![cfg_attr(test, allow(unreachable_pub, clippy::let_underscore_must_use))]

pub mod clock;
pub mod invariants;
pub mod telemetry;

pub mod api;
pub mod model;

pub mod promql;
pub mod rules;

pub mod collect;
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
