//! Room `query`.

pub mod service;
