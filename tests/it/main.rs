//! The real binary, used as its users use it.

#[path = "../support/mod.rs"]
mod support;

mod basics;
mod flights;
mod restored_log;
