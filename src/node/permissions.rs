//! File permissions: only the node's own user may read and write its data.
//!
//! New files are private because the umask is set before any is created ([`set_umask`]). The data
//! directory of an older version is closed at start-up. Files with secrets are checked before they
//! are trusted.

use std::fs::{DirBuilder, Permissions};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::Path;

use anyhow::{Context, bail};

const OTHERS: u32 = 0o007;
const WRITE_OF_OTHERS: u32 = 0o022;
const READ_OF_ALL: u32 = 0o004;

/// Sets the umask, so that whatever this process creates is accessible to its user only.
pub fn set_umask() {
    rustix::process::umask(rustix::fs::Mode::RWXG | rustix::fs::Mode::RWXO);
}

/// Creates a data directory, or closes one that is open to everybody. Access for a group is kept:
/// somebody granted it on purpose.
///
/// # Errors
/// If it cannot be created.
pub(super) fn secure_directory(dir: &Path) -> anyhow::Result<()> {
    let made = DirBuilder::new().recursive(true).mode(0o700).create(dir);
    made.with_context(|| format!("cannot create the data directory {}", dir.display()))?;
    let mode = std::fs::metadata(dir)
        .with_context(|| format!("cannot use {}", dir.display()))?
        .permissions()
        .mode();
    if mode & OTHERS == 0 {
        return Ok(());
    }
    match std::fs::set_permissions(dir, Permissions::from_mode(0o700)) {
        Ok(()) => {
            tracing::warn!(
                dir = %dir.display(),
                "everybody could look into the data directory: now only its owner can (0700)"
            );
        }
        Err(why) => {
            tracing::warn!(
                dir = %dir.display(),
                %why,
                "everybody can look into the data directory, and it cannot be closed: chmod 0700"
            );
        }
    }
    Ok(())
}

/// Checks the permissions of a file with secrets; warns if everybody can read it.
///
/// # Errors
/// If others may write it, so that its content may be theirs.
pub(super) fn check_secret_file(what: &str, path: &Path) -> anyhow::Result<()> {
    let mode = std::fs::metadata(path)
        .with_context(|| format!("cannot read {what} {}", path.display()))?
        .permissions()
        .mode();
    if mode & WRITE_OF_OTHERS != 0 {
        bail!(
            "{what} {}: others may write it (mode {:04o}): chmod go-w",
            path.display(),
            mode & 0o7777
        );
    }
    if mode & READ_OF_ALL != 0 {
        let file = path.display();
        tracing::warn!(%file, "everybody on this machine can read {what}: chmod 0600");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(path: &Path) -> u32 {
        std::fs::metadata(path).expect("there").permissions().mode() & 0o777
    }

    #[test]
    fn a_data_directory_is_closed_to_others_and_stays_open_to_a_group() {
        let dir = tempfile::tempdir().expect("a directory");
        for (before, after) in [
            (None, 0o700),
            (Some(0o755), 0o700),
            (Some(0o777), 0o700),
            (Some(0o750), 0o750),
            (Some(0o700), 0o700),
        ] {
            let path = dir.path().join(format!("{before:?}"));
            if let Some(before) = before {
                std::fs::create_dir(&path).expect("made");
                std::fs::set_permissions(&path, Permissions::from_mode(before)).expect("set");
            }
            secure_directory(&path).expect("usable");
            assert_eq!(mode(&path), after, "{before:?}");
        }
    }

    #[test]
    fn a_secret_that_others_may_write_is_refused() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("cookie");
        assert!(check_secret_file("cluster.cookie_file", &path).is_err(), "it is not there");
        std::fs::write(&path, "x").expect("written");
        for (mode, taken) in [
            (0o600, true),
            (0o640, true),
            (0o644, true),
            (0o666, false),
            (0o620, false),
            (0o602, false),
        ] {
            std::fs::set_permissions(&path, Permissions::from_mode(mode)).expect("set");
            let outcome = check_secret_file("cluster.cookie_file", &path);
            assert_eq!(outcome.is_ok(), taken, "{mode:o}");
            assert!(outcome.is_ok() || format!("{outcome:?}").contains("chmod go-w"));
        }
    }
}
