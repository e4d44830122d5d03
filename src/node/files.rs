//! The files of the configuration that a running node reads again.

use std::sync::Arc;

use tokio::sync::Notify;
use tokio::task::JoinHandle;

use super::watched_file::WatchedFile;
use super::{keys, mapping};
use crate::collect::Mapping;
use crate::config::Config;
use crate::gateway::auth::KeyTable;

/// What these files say.
pub struct NodeFiles {
    /// The API keys.
    pub keys: WatchedFile<KeyTable>,
    /// What becomes of the events of SDKs.
    pub mapping: WatchedFile<Mapping>,
}

impl NodeFiles {
    /// Reads all of them.
    ///
    /// # Errors
    /// If one cannot be used; the message names it.
    pub fn load(config: &Config) -> anyhow::Result<Self> {
        Ok(Self { keys: keys::load(config)?, mapping: mapping::load(config)? })
    }

    /// Notify these to read all of them again.
    pub(super) fn reloads(&self) -> [Arc<Notify>; 2] {
        [self.keys.reload(), self.mapping.reload()]
    }

    /// Spawns what watches them until the node stops.
    pub(super) fn watch(self) -> [JoinHandle<()>; 2] {
        [tokio::spawn(self.keys.watch()), tokio::spawn(self.mapping.watch())]
    }
}
