//! The API keys of a running node: read at start-up, and again whenever the file changes.
//!
//! An unusable file changes nothing: the current keys stay in force, and the log says why, once per
//! change. Only a node that was started without keys is open; deleting the file does not open a
//! node.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use arc_swap::ArcSwap;
use tokio::sync::Notify;

use crate::config::Config;
use crate::gateway::auth::KeyTable;

/// Polling interval of the file: a revoked key is refused after this and one read.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// Identifies a version of the file: inode, modification time and size. An edit renames a
/// new file into place.
type FileStamp = Option<(u64, i64, i64, u64)>;

/// The keys of a node, with what it takes to reload them.
pub struct ApiKeys {
    /// The keys in force, swapped at every reload.
    pub table: Arc<ArcSwap<KeyTable>>,
    file: Option<(PathBuf, FileStamp)>,
    reload: Arc<Notify>,
}

/// Reads the keys that the configuration names; without a keys file the node is open.
///
/// # Errors
/// If the file cannot be used.
pub fn load(config: &Config) -> anyhow::Result<ApiKeys> {
    let Some(path) = config.auth.keys_file.clone() else {
        return Ok(ApiKeys {
            table: Arc::new(ArcSwap::from_pointee(KeyTable::open())),
            file: None,
            reload: Arc::default(),
        });
    };
    // Stamped before it is read: a change in between leads to another read.
    let mark = file_stamp(&path);
    let table = KeyTable::load(&path).context("`rollmill keys add` makes a keys file")?;
    Ok(ApiKeys {
        table: Arc::new(ArcSwap::from_pointee(table)),
        file: Some((path, mark)),
        reload: Arc::default(),
    })
}

fn file_stamp(path: &Path) -> FileStamp {
    let seen = std::fs::metadata(path).ok()?;
    Some((seen.ino(), seen.mtime(), seen.mtime_nsec(), seen.len()))
}

impl ApiKeys {
    /// Whether requests need no key.
    pub fn is_open(&self) -> bool {
        self.table.load().is_open()
    }

    /// Notify this to read the file again even if it looks unchanged.
    pub fn reload(&self) -> Arc<Notify> {
        self.reload.clone()
    }

    /// Polls the file until the node stops; returns at once if there is none.
    pub async fn watch(self) {
        let Some((path, mut seen)) = self.file else { return };
        let mut tick = tokio::time::interval(CHECK_INTERVAL);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = tick.tick() => {}
                () = self.reload.notified() => seen = None,
            }
            let file = path.clone();
            let looked = tokio::task::spawn_blocking(move || {
                let now = file_stamp(&file);
                (now, (now != seen).then(|| KeyTable::load(&file)))
            });
            match looked.await {
                Ok((_, None)) => {}
                Ok((now, Some(Ok(table)))) => {
                    seen = now;
                    self.table.store(Arc::new(table));
                    let file = path.display();
                    tracing::info!(%file, "the keys file was read again and is in force");
                }
                Ok((now, Some(Err(error)))) => {
                    seen = now;
                    tracing::warn!(
                        %error,
                        "the keys file changed and cannot be used: the keys read before stay in \
                         force"
                    );
                }
                Err(error) => tracing::error!(%error, "looking at the keys file crashed"),
            }
        }
    }
}
