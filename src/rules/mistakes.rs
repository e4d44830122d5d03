//! Everything that is wrong with a file of rules.

use crate::model::suggest::{excerpt, nearest_name};

/// Most mistakes that are listed. One misplaced bracket can make thousands.
const MAX_LISTED: usize = 100;

/// One mistake.
#[allow(missing_docs, reason = "the names say it")]
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RuleMistake {
    /// The line of the file, from 1.
    pub line: usize,
    /// The rule and the key, such as `rule 3: where.labels`; empty if the whole file is meant.
    pub key: String,
    /// What is wrong, and what is allowed.
    pub message: String,
}

impl std::fmt::Display for RuleMistake {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.key.as_str() {
            "" => write!(f, "{}: {}", self.line, self.message),
            key => write!(f, "{}: {key}: {}", self.line, self.message),
        }
    }
}

/// All mistakes of a file, in the order of its lines.
#[derive(Debug, Clone, PartialEq, Eq, Default, thiserror::Error)]
#[error("the rules have {} mistake(s)", listed.len() + hidden)]
pub struct RuleMistakes {
    /// At most 100 of them.
    pub listed: Vec<RuleMistake>,
    /// How many more there are.
    pub hidden: usize,
}

/// Collects mistakes while a file is read.
#[derive(Debug, Default)]
pub(super) struct Mistakes(RuleMistakes);

impl Mistakes {
    pub(super) fn add(&mut self, line: usize, key: &str, message: String) {
        if self.0.listed.len() == MAX_LISTED {
            self.0.hidden += 1;
            return;
        }
        let key = key.chars().filter(|c| !c.is_control()).take(MAX_KEY).collect();
        self.0.listed.push(RuleMistake { line, key, message });
    }

    /// A key that is not among the known ones.
    pub(super) fn unknown_key(&mut self, line: usize, key: &str, name: &str, known: &[&str]) {
        let nearest = nearest_name(name, known.iter().map(|name| (*name).to_owned()));
        let hint = nearest.map(|name| format!(" did you mean {name}?")).unwrap_or_default();
        self.add(line, key, format!("no such key;{hint} allowed: {}", known.join(", ")));
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.listed.is_empty()
    }

    /// The mistakes by line. Fails with them if there are any.
    pub(super) fn into_result(mut self) -> Result<(), RuleMistakes> {
        if self.is_empty() {
            return Ok(());
        }
        self.0.listed.sort_by_key(|mistake| mistake.line);
        Err(self.0)
    }
}

/// Most characters of a key that a message repeats; keys are part of an untrusted file.
const MAX_KEY: usize = 160;

/// A text of the file for a message, quoted.
pub(super) fn quoted(text: &str) -> String {
    format!("{:?}", excerpt(text))
}
