//! The real binary, used as its users use it.
#![allow(clippy::disallowed_methods)]
// waiting for processes takes real time
// A test has no external callers, and its clean-up is best effort.
#![allow(unreachable_pub, clippy::let_underscore_must_use)]

#[path = "../support/mod.rs"]
mod support;

#[path = "../support/postgres.rs"]
mod postgres;
#[path = "../support/s3.rs"]
mod s3;

#[path = "../support/redis.rs"]
mod redis_server;

#[path = "../support/proxy.rs"]
mod proxy;
#[path = "../support/rng.rs"]
mod rng;

mod answers;
mod archive;
mod basics;
mod bench;
mod clock;
mod commands;
mod container;
mod dedup_memory;
mod disk;
mod docs;
mod flights;
mod hostile;
mod image;
mod kafka;
#[cfg(feature = "kafka-tls")]
mod kafka_tls;
mod keys;
mod lost_log;
mod machine;
mod mesh;
mod metrics;
mod migrate;
mod migrate_replays;
mod operate;
mod pipes;
mod private;
mod prometheus;
mod quarantine;
mod rebuild;
mod rebuild_cluster;
mod redis_cache;
mod replay;
mod replay_rebuild;
mod rest_proxy;
mod restored_log;
mod rules;
mod s3_archive;
mod sdks;
mod send;
mod shares;
mod startup;
mod status;
mod store_postgres;
mod tenants;
mod topic_move;
mod verify_store;
mod views;
mod waiting;
