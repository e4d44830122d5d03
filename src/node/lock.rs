//! The lock of a data directory: one process at a time.

use std::fs::File;
use std::io::ErrorKind;
use std::path::Path;

use anyhow::{Context, bail};
use rustix::fs::{FlockOperation, flock};

use super::permissions;

/// Holds the lock until dropped; the kernel releases it when the process ends in any way.
#[derive(Debug)]
pub struct DataLock(#[allow(dead_code)] File); // held for its lock, never read

/// Creates the directory if needed and locks it.
///
/// # Errors
/// If it cannot be created, or another process holds the lock.
pub fn lock(dir: &Path) -> anyhow::Result<DataLock> {
    permissions::secure_directory(dir)?;
    let path = dir.join("LOCK");
    // A read-only disk cannot create the file, but locking an existing one needs no write.
    let file = File::options().create(true).truncate(false).write(true).open(&path).or_else(
        |why| match why.kind() {
            ErrorKind::ReadOnlyFilesystem => File::open(&path),
            _ => Err(why),
        },
    );
    let file = file.with_context(|| format!("cannot open the lock file {}", path.display()))?;
    if flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
        bail!(
            "another process holds the lock of the data directory {}: stop it, or use another \
             --data",
            dir.display()
        );
    }
    Ok(DataLock(file))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_at_a_time() {
        let dir = tempfile::tempdir().expect("a directory");
        let held = lock(dir.path()).expect("free");
        let refused = lock(dir.path()).expect_err("held").to_string();
        assert!(refused.contains("lock"), "{refused}");
        drop(held);
        assert!(lock(dir.path()).is_ok());
    }
}
