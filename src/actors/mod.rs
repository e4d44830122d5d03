//! How shards, gateways and the archiver run: thin ractor shells around pure
//! decisions, typed handles, credit.
//!
//! ractor's mailboxes are unbounded, so nothing is sent to one without credit. A shard has at most
//! one wake-up outstanding and pulls records from the log itself; a gateway receives a request only
//! within the in-flight limits of the edge and of the log. Any actor may die at any time:
//! everything worth keeping is in the log, the store or the archive.

pub mod archive_maintenance;
pub mod archiver;
pub mod catalogue;
pub mod clock_watch;
pub mod dedup_watch;
pub mod document_error;
pub mod gap_reader;
pub mod gateway;
pub mod gateway_pool;
pub mod generation_documents;
pub mod generation_keeper;
pub mod live;
pub mod record_builder;
pub mod release_fold;
pub mod set_watch;
pub mod settled_documents;
pub mod shard;
pub mod shard_ports;
pub mod shard_table;
pub mod ticker;
