//! The real binary, used as its users use it.

#[path = "../support/mod.rs"]
mod support;

#[path = "../support/postgres.rs"]
mod postgres;

mod archive;
mod basics;
mod bench;
mod flights;
mod hostile;
mod keys;
mod quarantine;
mod rest_proxy;
mod restored_log;
mod startup;
mod status;
mod store_postgres;
mod tenants;
