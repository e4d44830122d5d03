//! Expands what is to be sent: files, directories, patterns, standard input. It excludes files that
//! the command itself writes: sending refused lines would refuse them again, without end.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};

use crate::cli::UsageError;

/// One input to send.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum InputSource {
    Stdin,
    File(PathBuf),
}

impl InputSource {
    /// The name for messages.
    pub(super) fn name(&self) -> String {
        match self {
            Self::Stdin => "standard input".to_owned(),
            Self::File(path) => path.display().to_string(),
        }
    }
}

/// Extensions of the files sent from a directory, with or without one of `COMPRESSED`.
const ENDINGS: [&str; 5] = [".ndjson", ".jsonl", ".json", ".csv", ".tsv"];
const COMPRESSED: [&str; 3] = [".gz", ".zst", ".zstd"];

/// Expands the arguments to inputs, each once, in their order; those of a directory or pattern by
/// name. Files that the command writes (`own`) are skipped in directories and patterns, and an
/// error if named. `notes` receives what is skipped.
pub(super) fn expand(
    named: &[PathBuf],
    own: &[PathBuf],
    notes: &mut Vec<String>,
) -> anyhow::Result<Vec<InputSource>> {
    let own: Vec<InodeKey> = own.iter().filter_map(|path| identity(path)).collect();
    let is_own = |path: &Path| identity(path).is_some_and(|identity| own.contains(&identity));
    let mut sources = Vec::new();
    for path in named {
        if path.as_os_str() == "-" {
            sources.push(InputSource::Stdin);
        } else if path.is_dir() {
            let (before, mut walk) =
                (sources.len(), DirectoryWalk { is_own: &is_own, seen: HashSet::new(), notes });
            walk.directory(path, &mut sources)?;
            if sources.len() == before {
                notes.push(format!("{} holds no file to send", path.display()));
            }
        } else if is_own(path) {
            let message = format!(
                "{} is what this command writes to: it cannot be sent at the same time",
                path.display()
            );
            bail!(UsageError(message));
        } else if path.exists() || !is_pattern(path) {
            sources.push(InputSource::File(path.clone()));
        } else {
            let found = matching(path)?;
            if found.is_empty() {
                bail!(UsageError(format!("no file matches {}", path.display())));
            }
            let (own, others): (Vec<_>, Vec<_>) = found.into_iter().partition(|path| is_own(path));
            notes.extend(own.iter().map(|path| skip_note(path)));
            sources.extend(others.into_iter().map(InputSource::File));
        }
    }
    let mut known = HashSet::new();
    sources.retain(|source| {
        let identity = match source {
            InputSource::Stdin => None,
            InputSource::File(path) => {
                Some(std::fs::canonicalize(path).unwrap_or_else(|_| path.clone()))
            }
        };
        let new = known.insert(identity);
        if !new {
            notes.push(format!("{} is named twice and sent once", source.name()));
        }
        new
    });
    Ok(sources)
}

/// Device and inode, which identify a file or directory under any name.
type InodeKey = (u64, u64);

fn identity(path: &Path) -> Option<InodeKey> {
    use std::os::unix::fs::MetadataExt;
    // Special files such as /dev/null may be read and written at the same time.
    let metadata =
        std::fs::metadata(path).ok().filter(|metadata| metadata.is_file() || metadata.is_dir())?;
    Some((metadata.dev(), metadata.ino()))
}

fn skip_note(path: &Path) -> String {
    format!("{} is left alone: it is what this command writes to", path.display())
}

/// A recursive walk. It enters each directory once, so that circular links end.
struct DirectoryWalk<'a> {
    is_own: &'a dyn Fn(&Path) -> bool,
    seen: HashSet<InodeKey>,
    notes: &'a mut Vec<String>,
}

impl DirectoryWalk<'_> {
    /// Adds the files below a directory that have a data extension and are not hidden.
    fn directory(&mut self, path: &Path, sources: &mut Vec<InputSource>) -> anyhow::Result<()> {
        if identity(path).is_some_and(|identity| !self.seen.insert(identity)) {
            self.notes.push(format!(
                "{} is left alone: it is a directory that was entered already",
                path.display()
            ));
            return Ok(());
        }
        for path in entries(path)? {
            let name = name_of(&path);
            if name.starts_with('.') {
                continue;
            }
            if path.is_dir() {
                self.directory(&path, sources)?;
            } else if (self.is_own)(&path) {
                self.notes.push(skip_note(&path));
            } else if is_data(&name) {
                sources.push(InputSource::File(path));
            } else {
                self.notes.push(format!(
                    "{} is left alone: its name ends in none of {}",
                    path.display(),
                    ENDINGS.join(", ")
                ));
            }
        }
        Ok(())
    }
}

fn is_data(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    let plain = COMPRESSED.iter().find_map(|ending| name.strip_suffix(ending)).unwrap_or(&name);
    ENDINGS.iter().any(|ending| plain.ends_with(ending))
}

fn entries(path: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let read = || -> std::io::Result<Vec<PathBuf>> {
        let mut paths: Vec<PathBuf> = std::fs::read_dir(path)?
            .map(|entry| entry.map(|entry| entry.path()))
            .collect::<Result<_, _>>()?;
        paths.sort();
        Ok(paths)
    };
    read().with_context(|| format!("cannot read the directory {}", path.display()))
}

fn name_of(path: &Path) -> String {
    path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

fn is_pattern(path: &Path) -> bool {
    path.to_string_lossy().contains(['*', '?'])
}

/// The files that a pattern matches, for shells that do not expand it.
fn matching(pattern: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let mut found = vec![PathBuf::new()];
    for part in pattern.components() {
        let text = part.as_os_str().to_string_lossy();
        let mut next = Vec::new();
        for path in found {
            if !text.contains(['*', '?']) {
                next.push(path.join(part));
                continue;
            }
            let within = if path.as_os_str().is_empty() { Path::new(".") } else { &path };
            if within.is_dir() {
                let names = entries(within)?.into_iter().map(|entry| name_of(&entry));
                let visible = names.filter(|name| !name.starts_with('.') || text.starts_with('.'));
                next.extend(
                    visible
                        .filter(|name| matches(text.as_bytes(), name.as_bytes()))
                        .map(|name| path.join(name)),
                );
            }
        }
        found = next;
    }
    found.retain(|path| path.is_file());
    Ok(found)
}

/// Glob match of a name: `*` is any number of bytes, `?` exactly one.
fn matches(pattern: &[u8], name: &[u8]) -> bool {
    match (pattern.first(), name.first()) {
        (None, None) => true,
        (Some(b'*'), _) => {
            matches(&pattern[1..], name) || (!name.is_empty() && matches(pattern, &name[1..]))
        }
        (Some(b'?'), Some(_)) => matches(&pattern[1..], &name[1..]),
        (Some(a), Some(b)) if a == b => matches(&pattern[1..], &name[1..]),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(sources: &[InputSource], root: &Path) -> Vec<String> {
        let relative =
            |source: &InputSource| source.name().replace(&format!("{}/", root.display()), "");
        sources.iter().map(relative).collect()
    }

    #[test]
    fn directories_and_patterns_are_files_by_name_and_each_is_sent_once() {
        let dir = tempfile::tempdir().expect("a directory");
        let root = dir.path();
        for file in
            ["b/2.csv", "b/1.csv.gz", "b/deep/3.ndjson", "b/.hidden.csv", "b/notes.md", "c/1.csv"]
        {
            let path = root.join(file);
            std::fs::create_dir_all(path.parent().expect("a parent")).expect("made");
            std::fs::write(path, "x").expect("written");
        }
        let mut notes = Vec::new();
        let sources =
            expand(&[root.join("c/1.csv"), root.join("b")], &[], &mut notes).expect("sources");
        assert_eq!(names(&sources, root), ["c/1.csv", "b/1.csv.gz", "b/2.csv", "b/deep/3.ndjson"]);
        assert!(notes.len() == 1 && notes[0].contains("notes.md is left alone"), "{notes:?}");
        let sources = expand(
            &[root.join("?/*.csv"), root.join("b/2.csv"), "-".into(), "-".into()],
            &[],
            &mut notes,
        )
        .expect("sources");
        assert_eq!(names(&sources, root), ["b/2.csv", "c/1.csv", "standard input"]);
        assert!(
            notes[1].contains("2.csv is named twice")
                && notes[2].contains("standard input is named twice"),
            "{notes:?}"
        );
        assert!(expand(&[root.join("none*")], &[], &mut notes).is_err());
        assert_eq!(expand(&[root.join("none")], &[], &mut notes).expect("opened later").len(), 1);
    }

    #[test]
    fn links_in_a_circle_have_an_end() {
        let dir = tempfile::tempdir().expect("a directory");
        let root = dir.path();
        std::fs::write(root.join("a.csv"), "x").expect("written");
        for link in ["x", "y"] {
            std::os::unix::fs::symlink(".", root.join(link)).expect("linked");
        }
        let mut notes = Vec::new();
        let sources = expand(&[root.to_owned()], &[], &mut notes).expect("sources");
        assert_eq!(names(&sources, root), ["a.csv"]);
        assert!(
            notes.len() == 2 && notes[0].contains("x is left alone: it is a directory"),
            "{notes:?}"
        );
    }

    #[test]
    fn what_the_command_writes_is_no_input() {
        let dir = tempfile::tempdir().expect("a directory");
        let root = dir.path();
        for file in ["a.ndjson", "bad.ndjson", "sent.json"] {
            std::fs::write(root.join(file), "x").expect("written");
        }
        std::os::unix::fs::symlink("bad.ndjson", root.join("link.ndjson")).expect("linked");
        let own = [root.join("bad.ndjson"), root.join("sent.json"), root.join("not-there")];
        for named in [root.to_owned(), root.join("*")] {
            let mut notes = Vec::new();
            let sources = expand(&[named], &own, &mut notes).expect("sources");
            assert_eq!(names(&sources, root), ["a.ndjson"]);
            assert_eq!(
                notes.iter().filter(|note| note.contains("what this command writes to")).count(),
                3,
                "{notes:?}"
            );
        }
        for named in ["bad.ndjson", "link.ndjson"] {
            assert!(expand(&[root.join(named)], &own, &mut Vec::new()).is_err(), "{named}");
        }
    }

    #[test]
    fn stars_match_as_in_a_shell() {
        for (pattern, name, is) in [
            ("*", "", true),
            ("a*c", "abbc", true),
            ("a*c", "ab", false),
            ("?b", "ab", true),
            ("?", "", false),
        ] {
            assert_eq!(matches(pattern.as_bytes(), name.as_bytes()), is, "{pattern} {name}");
        }
    }
}
