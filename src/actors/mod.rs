//! How shards, gateways and the archiver are run: thin ractor shells around pure decisions, typed handles, credit.

pub mod gateway;
pub mod live;
