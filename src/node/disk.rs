//! Gauges of disk usage and free space.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::DataDir;
use crate::config::Config;
use crate::persistence::log::LogRetention;
use crate::persistence::store::StoreInspection;
use crate::telemetry;

/// How often disk usage is sampled.
const SAMPLE_INTERVAL: Duration = Duration::from_secs(5);

/// Samples disk usage while the node runs.
pub(super) struct DiskWatch {
    places: Vec<PathBuf>,
    log: Arc<dyn LogRetention>,
    store: Option<Arc<dyn StoreInspection>>,
}

impl DiskWatch {
    /// A sampler for this configuration; local data is below `data.dir`.
    pub(super) fn new(
        config: &Config,
        log: Arc<dyn LogRetention>,
        store: Option<Arc<dyn StoreInspection>>,
    ) -> Self {
        let data = DataDir::new(&config.data.dir);
        let archive = Some(data.archive()).filter(|_| config.archive.url.is_none());
        // Each may be a mount point. One that does not exist yet will be created on its parent's
        // file system.
        let places = [Some(data.root().to_owned()), Some(data.log()), archive]
            .into_iter()
            .flatten()
            .collect();
        Self { places, log, store }
    }

    /// Samples until the node stops.
    pub(super) async fn run(self) {
        let watch = Arc::new(self);
        loop {
            let looking = watch.clone();
            if let Err(error) = tokio::task::spawn_blocking(move || looking.sample()).await {
                tracing::error!(%error, "looking at the disk crashed");
            }
            tokio::time::sleep(SAMPLE_INTERVAL).await;
        }
    }

    fn sample(&self) {
        if let Some(free) = self.places.iter().filter_map(free).min() {
            metrics::gauge!(telemetry::DISK_FREE).set(free as f64);
        }
        metrics::gauge!(telemetry::LOG_SIZE).set(self.log.bytes_on_disk() as f64);
        match self.store.as_ref().map(|store| store.sizes()) {
            None => {}
            Some(Ok(sizes)) => {
                metrics::gauge!(telemetry::STORE_SIZE).set(sizes.store as f64);
                metrics::gauge!(telemetry::ARCHIVE_SIZE).set(sizes.archive as f64);
            }
            // Not a warning: queries report an unreachable store.
            Some(Err(why)) => tracing::debug!(%why, "the store does not say how large it is"),
        }
    }
}

/// Bytes available to this process; None if the file system does not report them.
fn free(place: &PathBuf) -> Option<u64> {
    let stats = rustix::fs::statvfs(place).ok()?;
    (stats.f_blocks > 0).then(|| stats.f_bavail.saturating_mul(stats.f_frsize))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn free_space_is_told_where_there_is_some() {
        let dir = tempfile::tempdir().expect("a directory");
        assert!(free(&dir.path().to_owned()).is_some_and(|bytes| bytes > 0));
        assert_eq!(free(&dir.path().join("nowhere")), None);
    }
}
