//! Nouns, checked at construction, and the algebra over them. Pure: no async, no I/O, no clock, no
//! randomness.
//!
//! Everything here is a function of its arguments, to the bit, on every machine, because rollups
//! are rebuilt from the archive and compared byte by byte. All serialised forms carry a version and
//! are pinned by golden bytes in their tests.

pub mod batch;
pub mod board;
pub mod budget;
pub mod clock;
pub mod decimal;
pub mod distinct;
pub mod documented_settlements;
pub mod event;
pub mod expiry;
pub mod flush;
pub mod generation;
pub mod generation_book;
pub mod generation_keeping;
pub mod generation_status;
pub mod json_member;
pub mod json_scan;
pub mod manifest;
pub mod matcher;
pub mod matcher_syntax;
pub mod msgpack_reader;
pub mod offset;
pub mod outcome;
pub mod quantiles;
pub mod query_charge;
pub mod record;
pub mod release;
pub mod replay_document;
pub mod rollup;
pub mod series;
pub mod served;
pub mod settled_document;
pub mod share;
pub mod stored_json;
pub mod suggest;
pub mod window;

/// Bytes that do not decode: names the expected format and what is wrong.
#[allow(missing_docs, reason = "the names say it")]
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("cannot decode {what}: {why}")]
pub struct CodecError {
    pub what: &'static str,
    pub why: String,
}

impl CodecError {
    /// An error about the format `what`.
    pub fn new(what: &'static str, why: impl Into<String>) -> Self {
        Self { what, why: why.into() }
    }
}
