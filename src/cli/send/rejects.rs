//! Refused lines: named on the terminal, and kept unchanged in a file (`--rejects`), with the
//! reasons in a second one.

use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};

use anyhow::Context;

/// Most refused events named at the end of a run.
const NAMED: usize = 10;
/// Longest CSV header that is looked for in an existing rejects file, in bytes.
const MAX_HEADER: u64 = 1 << 20;

/// A refused line, with its reason.
#[derive(Debug)]
pub(super) struct RejectedLine<'a> {
    pub(super) input: &'a str,
    pub(super) line: u64,
    pub(super) code: &'a str,
    pub(super) message: &'a str,
    /// The bytes as they are in the input.
    pub(super) raw: &'a [u8],
    /// Header of its file, if that is CSV.
    pub(super) header: Option<&'a [u8]>,
}

/// Collects, counts and keeps refused lines.
#[derive(Debug, Default)]
pub(super) struct RejectsWriter {
    files: Option<RejectFiles>,
    pub(super) count: u64,
    named: Vec<String>,
}

#[derive(Debug)]
struct RejectFiles {
    path: PathBuf,
    lines: File,
    reasons: File,
    /// The last CSV header written; another one is repeated before its rows.
    header: Option<Vec<u8>>,
}

impl RejectsWriter {
    /// Opens the files for appending: a repeated run must not overwrite what an
    /// earlier one has kept.
    pub(super) fn new(path: Option<&Path>) -> anyhow::Result<Self> {
        let open = |path: &Path| {
            let opened = OpenOptions::new().create(true).append(true).open(path);
            opened.with_context(|| format!("cannot open {}", path.display()))
        };
        let files = path.map(|path| {
            let lines = open(path)?;
            let mut header = Vec::new();
            // An earlier run may have written the header; rows below the same one need no other.
            let first = File::open(path).and_then(|file| {
                BufReader::new(file.take(MAX_HEADER)).read_until(b'\n', &mut header)
            });
            first.with_context(|| format!("cannot read {}", path.display()))?;
            let header = header.strip_suffix(b"\n").map(<[u8]>::to_vec);
            anyhow::Ok(RejectFiles {
                path: path.to_owned(),
                lines,
                reasons: open(&reasons(path))?,
                header,
            })
        });
        Ok(Self { files: files.transpose()?, ..Self::default() })
    }

    pub(super) fn add(&mut self, reject: &RejectedLine<'_>) -> anyhow::Result<()> {
        self.count += 1;
        let reason = format!(
            "{}:{}: {}: {}",
            reject.input,
            reject.line,
            reject.code,
            printable(reject.message)
        );
        if let Some(files) = &mut self.files {
            files
                .add(reject, &reason)
                .with_context(|| format!("cannot write to {}", files.path.display()))?;
        }
        if self.named.len() < NAMED {
            self.named.push(reason);
        }
        Ok(())
    }

    /// The first refusals, how many more there are, and where all are kept.
    pub(super) fn report(&self) -> Vec<String> {
        let mut lines: Vec<String> =
            self.named.iter().map(|reason| format!("  {reason}")).collect();
        let more = self.count - self.named.len() as u64;
        if more > 0 {
            lines.push(format!("  and {more} more"));
        }
        match (&self.files, self.count) {
            (_, 0) => {}
            (Some(files), _) => {
                lines.push(format!(
                    "  kept in {}, the reasons in {}",
                    files.path.display(),
                    reasons(&files.path).display()
                ));
            }
            (None, _) => {
                lines.push("  --rejects FILE keeps such lines, to be repaired and sent".to_owned())
            }
        }
        lines
    }
}

impl RejectFiles {
    fn add(&mut self, reject: &RejectedLine<'_>, reason: &str) -> std::io::Result<()> {
        let mut text = Vec::with_capacity(reject.raw.len() + 1);
        if let Some(header) = reject.header
            && self.header.as_deref() != Some(header)
        {
            text.extend_from_slice(header);
            text.push(b'\n');
            self.header = Some(header.to_vec());
        }
        text.extend_from_slice(reject.raw);
        text.push(b'\n');
        self.lines.write_all(&text)?;
        self.reasons.write_all(format!("{reason}\n").as_bytes())
    }
}

/// Path of the file with one reason per refused line: `FILE:LINE: CODE: MESSAGE`.
pub(super) fn reasons(path: &Path) -> PathBuf {
    PathBuf::from(format!("{}.reasons", path.display()))
}

/// Replaces control characters, so that a message stays on one line and moves no cursor.
fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_kept_as_they_were_and_can_be_sent_again() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("bad");
        for run in 0..2 {
            let mut rejects = RejectsWriter::new(Some(&path)).expect("opened");
            for line in 2..14u64 {
                let raw = format!("{run},{line}");
                let (input, code, message, header) =
                    ("in.csv", "value_invalid", "no\n\u{1b}number", Some(&b"a,b"[..]));
                rejects
                    .add(&RejectedLine { input, line, code, message, raw: raw.as_bytes(), header })
                    .expect("kept");
            }
            let report = rejects.report();
            assert_eq!(report[0], "  in.csv:2: value_invalid: no  number");
            assert!(
                report.len() == 12
                    && report[10] == "  and 2 more"
                    && report[11].contains("bad.reasons"),
                "{report:?}"
            );
        }
        let kept = std::fs::read_to_string(&path).expect("kept");
        let lines: Vec<&str> = kept.lines().collect();
        assert_eq!(
            (lines.len(), lines[0], lines[1], lines[13]),
            (25, "a,b", "0,2", "1,2"),
            "one header"
        );
        assert_eq!(std::fs::read_to_string(reasons(&path)).expect("kept").lines().count(), 24);
    }
}
