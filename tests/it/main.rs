//! The real binary, used as its users use it.

#[path = "../support/mod.rs"]
mod support;

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
mod tenants;
