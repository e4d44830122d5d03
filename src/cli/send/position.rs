//! The position file (`--resume`): which part of which inputs has been sent.
//!
//! A position identifies inputs by content: it holds a hash of everything sent of each, which tells
//! a file that has grown from another file under the same name. It also holds the run's id, so that
//! events sent but not recorded before a crash get the same ids again.

use std::collections::HashMap;
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use serde::{Deserialize, Serialize};

use super::input_reader::FileIdentity;

const VERSION: u32 = 2;

/// What is recorded of one input.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct InputEntry {
    /// Number of the input, part of its events' ids; never reused.
    pub(super) source: u64,
    /// Absolute path; `-` for standard input.
    pub(super) name: String,
    #[serde(flatten)]
    pub(super) identity: Option<FileIdentity>,
    /// Decompressed bytes that have been sent.
    pub(super) offset: u64,
    /// BLAKE3 hash of those bytes, in hexadecimal.
    pub(super) hash: String,
}

/// The content of a position file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct SendPosition {
    version: u32,
    /// Random id of the run, made once.
    pub(super) run: String,
    pub(super) inputs: Vec<InputEntry>,
    /// Set if an earlier release wrote the file: the number of events sent of the only input.
    #[serde(skip)]
    pub(super) old_events: Option<u64>,
}

impl SendPosition {
    /// The position of a new run.
    pub(super) fn new(run: String) -> Self {
        Self { version: VERSION, run, inputs: Vec::new(), old_events: None }
    }

    /// Reads a position; `None` if there is no file.
    pub(super) fn read(path: &Path, new_run: &str) -> anyhow::Result<Option<Self>> {
        let text = match std::fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => {
                return Err(error).with_context(|| format!("cannot read {}", path.display()));
            }
        };
        // A bare number is the position file of an earlier release.
        if let Ok(events) = text.trim().parse() {
            return Ok(Some(Self { old_events: Some(events), ..Self::new(new_run.to_owned()) }));
        }
        let position: Self = serde_json::from_str(&text).with_context(|| {
            format!("{} does not hold a position of `rollmill send`", path.display())
        })?;
        if position.version != VERSION {
            bail!(
                "{} is a position of version {}; this release knows {VERSION}",
                path.display(),
                position.version
            );
        }
        Ok(Some(position))
    }

    /// Replaces the file atomically: after a crash it holds the old or the new position.
    pub(super) fn write(&self, path: &Path) -> anyhow::Result<()> {
        let next = PathBuf::from(format!("{}.next", path.display()));
        let write = || -> std::io::Result<()> {
            let mut file = std::fs::File::create(&next)?;
            file.write_all(format!("{}\n", serde_json::to_string_pretty(self)?).as_bytes())?;
            // Before the rename, or a power cut could leave an empty file under the name.
            file.sync_all()?;
            std::fs::rename(&next, path)
        };
        write().with_context(|| format!("cannot keep the position in {}", path.display()))
    }

    /// Finds or adds the entry of each input. `begins` checks whether an input begins with what the
    /// entry says was sent. Fails if an input has the name of an entry but begins differently.
    pub(super) fn resolve(
        &mut self,
        inputs: &[(String, Option<FileIdentity>)],
        mut begins: impl FnMut(usize, &InputEntry) -> anyhow::Result<bool>,
    ) -> anyhow::Result<Vec<usize>> {
        let mut found: Vec<Option<usize>> = vec![None; inputs.len()];
        let mut taken = vec![false; self.inputs.len()];
        let mut by_identity: HashMap<FileIdentity, Vec<usize>> = HashMap::new();
        let mut by_name: HashMap<String, Vec<usize>> = HashMap::new();
        for (at, entry) in self.inputs.iter().enumerate() {
            by_name.entry(entry.name.clone()).or_default().push(at);
            if let Some(identity) = entry.identity {
                by_identity.entry(identity).or_default().push(at);
            }
        }
        // By inode first: a rotated log has moved, and its name now belongs to another file.
        for (at, (name, identity)) in inputs.iter().enumerate() {
            let same = identity
                .and_then(|identity| by_identity.get(&identity))
                .map_or(&[][..], Vec::as_slice);
            // Two names may be links to one file; each keeps its own entry.
            let candidates = || same.iter().copied().filter(|entry| !taken[*entry]);
            let named = candidates().find(|entry| self.inputs[*entry].name == *name);
            let Some(entry) = named.or_else(|| candidates().next()) else { continue };
            if begins(at, &self.inputs[entry])? {
                self.inputs[entry].name.clone_from(name);
                (found[at], taken[entry]) = (Some(entry), true);
            }
        }
        for (at, (name, identity)) in
            inputs.iter().enumerate().filter(|(at, _)| found[*at].is_none()).collect::<Vec<_>>()
        {
            let same = by_name.get(name).map_or(&[][..], Vec::as_slice);
            found[at] = match same.iter().copied().find(|entry| !taken[*entry]) {
                // The beginning of a stream can be checked only while it is read.
                Some(entry) if identity.is_none() || begins(at, &self.inputs[entry])? => {
                    self.inputs[entry].identity = *identity;
                    taken[entry] = true;
                    Some(entry)
                }
                Some(entry) => bail!(self.inputs[entry].mismatch()),
                None => Some(self.add(name, *identity)),
            };
        }
        Ok(found.into_iter().flatten().collect())
    }

    fn add(&mut self, name: &str, identity: Option<FileIdentity>) -> usize {
        // Entries are in the order of their numbers, so the last one has the highest.
        let source = self.inputs.last().map_or(0, |entry| entry.source + 1);
        let hash = blake3::Hasher::new().finalize().to_hex().to_string();
        self.inputs.push(InputEntry { source, name: name.to_owned(), identity, offset: 0, hash });
        self.inputs.len() - 1
    }
}

impl InputEntry {
    /// The error for an input with this entry's name but other content.
    pub(super) fn mismatch(&self) -> InputMismatch {
        let name = if self.name == STDIN { "standard input" } else { &self.name };
        InputMismatch(format!(
            "{name} is not what this position belongs to: its first {} bytes differ from those \
             that were sent. If it holds other events, give it a position of its own: --resume \
             with another file",
            self.offset
        ))
    }
}

/// An input that does not belong to the position; running again would not help.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct InputMismatch(pub(super) String);

/// The name of standard input in a position.
pub(super) const STDIN: &str = "-";

#[cfg(test)]
mod tests {
    use super::*;

    fn identity(inode: u64) -> Option<FileIdentity> {
        Some(FileIdentity { device: 1, inode })
    }

    #[test]
    fn a_position_is_read_as_it_was_written() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("a.pos");
        assert_eq!(SendPosition::read(&path, "r").expect("no file"), None);
        let mut position = SendPosition::new("r".to_owned());
        position.add("/a", identity(7));
        position.add("-", None);
        position.write(&path).expect("written");
        assert_eq!(SendPosition::read(&path, "other").expect("read"), Some(position));
        for other in ["{}", "nothing", "{\"version\":9,\"run\":\"\",\"inputs\":[]}"] {
            std::fs::write(&path, other).expect("written");
            assert!(SendPosition::read(&path, "r").is_err(), "{other}");
        }
    }

    #[test]
    fn a_position_of_an_earlier_release_is_a_number_of_events() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("a.pos");
        std::fs::write(&path, "336776").expect("written");
        assert_eq!(
            SendPosition::read(&path, "r").expect("read").and_then(|position| position.old_events),
            Some(336_776)
        );
    }

    /// Resolves files given by name, inode and content; returns their numbers.
    fn resolve(
        position: &mut SendPosition,
        files: &[(&str, u64, &str)],
    ) -> anyhow::Result<Vec<u64>> {
        let inputs: Vec<_> =
            files.iter().map(|(name, inode, _)| ((*name).to_owned(), identity(*inode))).collect();
        let begins = |at: usize, entry: &InputEntry| {
            let content = files[at].2.as_bytes();
            Ok(content
                .get(..entry.offset as usize)
                .is_some_and(|sent| blake3::hash(sent).to_hex().as_str() == entry.hash))
        };
        let found = position.resolve(&inputs, begins)?;
        for (at, (_, _, content)) in found.iter().zip(files) {
            position.inputs[*at].offset = content.len() as u64;
            position.inputs[*at].hash = blake3::hash(content.as_bytes()).to_hex().to_string();
        }
        Ok(found.into_iter().map(|at| position.inputs[at].source).collect())
    }

    #[test]
    fn an_input_is_known_by_what_was_sent_of_it() {
        let mut position = SendPosition::new("r".to_owned());
        assert_eq!(
            resolve(&mut position, &[("/a", 1, "abc"), ("/b", 2, "b")]).expect("new"),
            [0, 1]
        );
        assert_eq!(resolve(&mut position, &[("/a", 1, "abcd")]).expect("grown"), [0]);
        assert_eq!(
            resolve(&mut position, &[("/a", 9, "abcde")]).expect("copied back under its name"),
            [0]
        );
        let why = resolve(&mut position, &[("/a", 9, "xyz")]).expect_err("rewritten").to_string();
        assert!(why.contains("/a is not what this position belongs to"), "{why}");
        assert!(resolve(&mut position, &[("/a", 9, "ab")]).is_err(), "shorter");
        assert!(
            resolve(&mut position, &[("/a", 8, "xyzxyz")]).is_err(),
            "another file under the name"
        );
    }

    #[test]
    fn a_log_that_is_rotated_keeps_its_entry_and_the_new_one_has_its_own() {
        let mut position = SendPosition::new("r".to_owned());
        assert_eq!(resolve(&mut position, &[("/log", 1, "abc")]).expect("new"), [0]);
        assert_eq!(
            resolve(&mut position, &[("/log", 2, "xyz"), ("/log.1", 1, "abcd")]).expect("rotated"),
            [1, 0]
        );
        assert_eq!(
            resolve(&mut position, &[("/log.2", 1, "abcd"), ("/log.1", 2, "xyz")]).expect("again"),
            [0, 1]
        );
        assert_eq!(
            resolve(&mut position, &[("/x", 7, "abc"), ("/y", 7, "abc")])
                .expect("two names of one file"),
            [2, 3]
        );
        assert_eq!(
            resolve(&mut position, &[("/y", 7, "abc"), ("/x", 7, "abc")]).expect("again"),
            [3, 2]
        );
        assert_eq!(
            resolve(&mut position, &[("/other", 2, "new")]).expect("a number that is given again"),
            [4]
        );
    }
}
