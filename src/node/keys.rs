//! The API keys of a running node: read at the start, and again whenever the file changes.
//!
//! A file that cannot be used changes nothing: the keys in force stay, and the log says why, once
//! per change. Only a node that was started without keys is open; losing the file does not open a
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

/// How often the file is looked at: a revoked key is refused after this and one reading.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// What tells one state of the file from another: an edit renames a new file into place.
type FileStamp = Option<(u64, i64, i64, u64)>;

/// The keys of a node.
pub struct ApiKeys {
    /// Those in force.
    pub table: Arc<ArcSwap<KeyTable>>,
    file: Option<(PathBuf, FileStamp)>,
    reload: Arc<Notify>,
}

/// Reads the keys that the configuration names.
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
    // Before the reading: what is written in between is then read again.
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
    /// Whether everything is open.
    pub fn is_open(&self) -> bool {
        self.table.load().is_open()
    }

    /// Told, the file is read again though it looks unchanged.
    pub fn reload(&self) -> Arc<Notify> {
        self.reload.clone()
    }

    /// Looks at the file for as long as the node runs; ends at once if there is none.
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
                    tracing::info!(file = %path.display(), "the keys file was read again and is in force");
                }
                Ok((now, Some(Err(error)))) => {
                    seen = now;
                    tracing::warn!(%error, "the keys file changed and cannot be used: the keys read before stay in force");
                }
                Err(error) => tracing::error!(%error, "looking at the keys file crashed"),
            }
        }
    }
}
