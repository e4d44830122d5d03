//! The keys file on disk: read whole, replaced whole.
//!
//! Invariants: a reader sees the old file or the new one, never a mix, because the new one is
//! written to a temporary file, synced and renamed. Only its owner may read it, and a file that
//! others may write is refused, because they could grant themselves access. Concurrent editors are
//! serialised by a lock. The file holds hashes, never keys. If an edit fails, the old file remains,
//! or the error says that it does not.

use std::fs::{DirBuilder, File};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};

const WRITE_OF_OTHERS: u32 = 0o022;

/// What a key may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Scope {
    /// Send events, on any interface.
    Write,
    /// Query rollups and metric names.
    Read,
    /// Release and discard quarantined events of the own tenant.
    Admin,
    /// Operate the node: `/metrics`, the status, records without a known tenant.
    /// Sees no tenant's events.
    Operator,
}

/// A key as the keys file stores it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StoredKey {
    /// First characters of the key, to name it by.
    pub prefix: String,
    /// SHA-256 of the whole key, in hexadecimal.
    pub sha256: String,
    /// Tenant that the key authenticates.
    pub tenant: String,
    /// What the key may do.
    pub scopes: Vec<Scope>,
    /// Expiry in milliseconds since the Unix epoch, exclusive; `None` if it never expires.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_ms: Option<i64>,
}

/// The keys file: TOML, or JSON if its name ends in `.json`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeysFile {
    /// In the order in which they were added.
    #[serde(default)]
    pub keys: Vec<StoredKey>,
}

/// Why the keys file cannot be read or changed.
#[derive(Debug, thiserror::Error)]
#[error("the keys file {path} cannot be used: {why}")]
pub struct KeysError {
    /// Path of the keys file.
    pub path: String,
    /// What is wrong, for people.
    pub why: String,
}

fn error(path: &Path, why: impl std::fmt::Display) -> KeysError {
    KeysError { path: path.display().to_string(), why: why.to_string() }
}

fn is_json(path: &Path) -> bool {
    path.extension().is_some_and(|e| e == "json")
}

/// Reads and checks a keys file.
///
/// # Errors
/// If others may write it, it cannot be read, or an entry is invalid.
pub fn read(path: &Path) -> Result<KeysFile, KeysError> {
    let mode = std::fs::metadata(path).map_err(|e| error(path, e))?.permissions().mode();
    if mode & WRITE_OF_OTHERS != 0 {
        return Err(error(
            path,
            format!(
                "others may write it (mode {:04o}), and so make themselves keys: chmod go-w",
                mode & 0o7777
            ),
        ));
    }
    let text = std::fs::read_to_string(path).map_err(|e| error(path, e))?;
    let file: KeysFile = if is_json(path) {
        serde_json::from_str(&text).map_err(|e| error(path, e))?
    } else {
        toml::from_str(&text).map_err(|e| error(path, e))?
    };
    // A hash in any other form never matches, and would silently lock its owner out.
    let is_hash = |text: &str| {
        text.len() == 64 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
    };
    match file.keys.iter().find(|k| k.tenant.is_empty() || !is_hash(&k.sha256)) {
        Some(key) => Err(error(
            path,
            format!(
                "key {} needs a tenant and a sha256 of 64 hexadecimal digits, in lower case",
                key.prefix
            ),
        )),
        None => Ok(file),
    }
}

/// Edits a keys file, creating it if it is missing. If `change` fails, nothing is written. Fails as
/// [`read`] and `change` do, or if the file cannot be written.
pub fn edit<T>(
    path: &Path,
    change: impl FnOnce(&mut KeysFile) -> Result<T, String>,
) -> Result<T, KeysError> {
    let dir = directory(path);
    DirBuilder::new().recursive(true).mode(0o700).create(&dir).map_err(|e| error(path, e))?;
    // Locks the directory, because each rename replaces the file itself.
    let held = File::open(&dir).map_err(|e| error(path, e))?;
    flock(&held, FlockOperation::LockExclusive).map_err(|e| error(path, e))?;
    let mut file = match read(path) {
        Err(_) if !path.exists() => KeysFile::default(),
        other => other?,
    };
    let answer = change(&mut file).map_err(|why| error(path, why))?;
    replace(path, &file).map_err(|e| error(path, e))?;
    // Without syncing the directory, the rename itself may be lost in a power cut.
    held.sync_all()
        .map_err(|e| error(path, format!("it was changed, but a power cut may undo that: {e}")))?;
    Ok(answer)
}

fn directory(path: &Path) -> PathBuf {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
        _ => PathBuf::from("."),
    }
}

fn replace(path: &Path, file: &KeysFile) -> std::io::Result<()> {
    let text = if is_json(path) {
        serde_json::to_string_pretty(file).map_err(std::io::Error::other)?
    } else {
        toml::to_string(file).map_err(std::io::Error::other)?
    };
    let mut name =
        path.file_name().ok_or_else(|| std::io::Error::other("the path names no file"))?.to_owned();
    name.push(".new");
    let beside = path.with_file_name(name);
    // A leftover of an editor that was killed: the lock excludes a living one.
    if let Err(e) = std::fs::remove_file(&beside)
        && e.kind() != std::io::ErrorKind::NotFound
    {
        return Err(e);
    }
    // Private from the start: others must not be able to open it while it is written.
    let mut new = File::options().write(true).create_new(true).mode(0o600).open(&beside)?;
    new.write_all(text.as_bytes())?;
    new.sync_all()?;
    std::fs::rename(&beside, path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gateway::auth::{Scope, StoredKey};

    fn key(prefix: &str) -> StoredKey {
        let (prefix, scopes) = (prefix.to_owned(), vec![Scope::Write, Scope::Read]);
        StoredKey {
            prefix,
            sha256: "0".repeat(64),
            tenant: "acme".into(),
            scopes,
            expires_ms: Some(7),
        }
    }

    fn add(path: &Path, prefix: &str) -> Result<(), KeysError> {
        edit(path, |file| {
            file.keys.push(key(prefix));
            Ok(())
        })
    }

    #[test]
    fn what_is_written_is_read_and_private() {
        let dir = tempfile::tempdir().expect("a directory");
        for name in ["keys.toml", "keys.json", "deeper/keys.toml"] {
            let path = dir.path().join(name);
            add(&path, "a").expect("the first");
            add(&path, "b").expect("the second");
            assert_eq!(read(&path).expect("reads").keys, [key("a"), key("b")]);
            assert_eq!(
                std::fs::metadata(&path).expect("there").permissions().mode() & 0o777,
                0o600
            );
        }
    }

    #[test]
    fn a_refused_change_and_a_broken_file_stay_as_they_are() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("keys.toml");
        add(&path, "a").expect("written");
        let refused = edit(&path, |file| {
            file.keys.clear();
            Err::<(), _>("no".to_owned())
        });
        assert!(refused.is_err());
        assert_eq!(read(&path).expect("reads").keys.len(), 1);
        std::fs::write(&path, "keys = 7").expect("written");
        assert!(add(&path, "b").is_err(), "a broken file is not emptied");
        assert_eq!(std::fs::read_to_string(&path).expect("reads"), "keys = 7");
    }

    #[test]
    fn a_hash_that_would_never_match_is_refused() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("keys.toml");
        for (hash, taken) in [
            ("a1".repeat(32), true),
            ("A1".repeat(32), false),
            ("g1".repeat(32), false),
            ("a1".repeat(31), false),
        ] {
            let key = StoredKey { sha256: hash.clone(), ..key("a") };
            std::fs::write(&path, toml::to_string(&KeysFile { keys: vec![key] }).expect("TOML"))
                .expect("written");
            assert_eq!(read(&path).is_ok(), taken, "{hash}");
        }
    }

    #[test]
    fn a_file_that_others_may_write_is_refused() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("keys.toml");
        add(&path, "a").expect("written");
        for (mode, taken) in
            [(0o600, true), (0o644, true), (0o664, false), (0o666, false), (0o602, false)]
        {
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).expect("set");
            let outcome = read(&path);
            assert_eq!(outcome.is_ok(), taken, "{mode:o}");
            assert_eq!(add(&path, "b").is_ok(), taken, "{mode:o}");
            assert!(
                outcome.is_ok() || outcome.expect_err("refused").to_string().contains("chmod go-w")
            );
        }
    }

    #[test]
    fn editors_at_once_lose_nothing() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("keys.toml");
        std::thread::scope(|scope| {
            for n in 0..8 {
                let path = &path;
                scope.spawn(move || add(path, &n.to_string()).expect("written"));
            }
        });
        assert_eq!(read(&path).expect("reads").keys.len(), 8);
    }
}
