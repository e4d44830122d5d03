//! A file of the configuration that a running node reads again whenever it changes.
//!
//! An unusable file changes nothing: what was read before stays in force, and the log says why, once
//! per change.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::sync::Notify;

/// Polling interval of a file: a change is in force after this and one read.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// Identifies a version of a file: inode, modification time and size. An edit renames a new file
/// into place.
type FileStamp = Option<(u64, i64, i64, u64)>;

/// What a file says, with what it takes to read it again.
pub struct WatchedFile<T> {
    /// What is in force, swapped at every change.
    pub value: Arc<ArcSwap<T>>,
    file: Option<FileSource<T>>,
    reload: Arc<Notify>,
}

struct FileSource<T> {
    /// The configuration key that names the file.
    key: &'static str,
    path: PathBuf,
    seen: FileStamp,
    read: fn(&Path) -> anyhow::Result<T>,
}

impl<T: Send + Sync + 'static> WatchedFile<T> {
    /// What is in force without a file.
    pub fn absent(value: T) -> Self {
        Self { value: Arc::new(ArcSwap::from_pointee(value)), file: None, reload: Arc::default() }
    }

    /// Reads the file that a configuration key names.
    ///
    /// # Errors
    /// As `read`.
    pub fn read(
        key: &'static str,
        path: &Path,
        read: fn(&Path) -> anyhow::Result<T>,
    ) -> anyhow::Result<Self> {
        // Stamped before it is read: a change in between leads to another read.
        let seen = file_stamp(path);
        let value = Arc::new(ArcSwap::from_pointee(read(path)?));
        let file = Some(FileSource { key, path: path.to_owned(), seen, read });
        Ok(Self { value, file, reload: Arc::default() })
    }

    /// Notify this to read the file again even if it looks unchanged.
    pub fn reload(&self) -> Arc<Notify> {
        self.reload.clone()
    }

    /// Polls the file until the node stops; returns at once if there is none.
    pub async fn watch(self) {
        let Some(FileSource { key, path, mut seen, read }) = self.file else { return };
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
                (now, (now != seen).then(|| read(&file)))
            });
            let file = path.display();
            match looked.await {
                Ok((_, None)) => {}
                Ok((now, Some(Ok(value)))) => {
                    seen = now;
                    self.value.store(Arc::new(value));
                    tracing::info!(key, %file, "a file was read again and is in force");
                }
                Ok((now, Some(Err(error)))) => {
                    seen = now;
                    tracing::warn!(
                        key,
                        %file,
                        error = format!("{error:#}"),
                        "a file changed and cannot be used: what was read before stays in force"
                    );
                }
                Err(error) => tracing::error!(key, %error, "looking at a file crashed"),
            }
        }
    }
}

fn file_stamp(path: &Path) -> FileStamp {
    let seen = std::fs::metadata(path).ok()?;
    Some((seen.ino(), seen.mtime(), seen.mtime_nsec(), seen.len()))
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    /// How often the file of the test that changes it was read.
    static READS: AtomicU32 = AtomicU32::new(0);

    fn number(path: &Path) -> anyhow::Result<u32> {
        Ok(std::fs::read_to_string(path)?.trim().parse()?)
    }

    fn counted_number(path: &Path) -> anyhow::Result<u32> {
        READS.fetch_add(1, Ordering::SeqCst);
        number(path)
    }

    /// Moves a new version into the place of the old one, as editors do.
    fn write(path: &Path, text: &str) {
        let beside = path.with_extension("new");
        std::fs::write(&beside, text).expect("written");
        std::fs::rename(&beside, path).expect("moved");
    }

    #[tokio::test]
    async fn a_change_is_in_force_soon_and_a_broken_file_changes_nothing() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("number");
        write(&path, "1");
        let file = WatchedFile::read("a.key", &path, counted_number).expect("a number");
        let (value, reload) = (file.value.clone(), file.reload());
        assert_eq!(**value.load(), 1);
        let watching = tokio::spawn(file.watch());
        let becomes = async |expected: u32| {
            let mut tick = tokio::time::interval(Duration::from_millis(10));
            while **value.load() != expected {
                tick.tick().await;
            }
        };
        // What a read found is in force before the next one begins.
        let is_read_twice = async || {
            for _ in 0..2 {
                let before = READS.load(Ordering::SeqCst);
                reload.notify_one();
                let mut tick = tokio::time::interval(Duration::from_millis(10));
                while READS.load(Ordering::SeqCst) == before {
                    tick.tick().await;
                }
            }
        };
        write(&path, "2");
        becomes(2).await;
        for text in ["no number", ""] {
            write(&path, text);
            is_read_twice().await;
            assert_eq!(**value.load(), 2);
        }
        std::fs::remove_file(&path).expect("removed");
        reload.notify_one();
        write(&path, "3");
        reload.notify_one();
        becomes(3).await;
        watching.abort();
    }

    #[test]
    fn what_cannot_be_read_at_first_is_an_error() {
        let dir = tempfile::tempdir().expect("a directory");
        assert!(WatchedFile::read("a.key", &dir.path().join("none"), number).is_err());
        assert_eq!(**WatchedFile::absent(7).value.load(), 7);
    }
}
