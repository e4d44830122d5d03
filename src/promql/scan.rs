//! Bounds on the text of a query, checked before anything parses it: the parser and everything
//! behind it recurse, compile regular expressions, and convert durations without limits of their
//! own.

use promql_parser::util::unquote_string;

use super::PromqlError;
use crate::model::matcher_syntax::{MAX_MATCHERS, anchored};
use crate::model::suggest::excerpt;

/// Maximum length of a query in bytes.
const MAX_BYTES: usize = 16 * 1024;
/// Maximum number of operators, brackets and calls. It bounds the depth of the parsed query, and so
/// the stack; the largest panels of published dashboards have about 30.
const MAX_OPERATIONS: usize = 100;
/// More digits than a duration needs; the parser would ignore a number beyond 32 bits.
const MAX_DURATION_DIGITS: usize = 9;

/// Checks the bounds of a query.
///
/// # Errors
/// Names the bound that is exceeded, or what cannot be read.
pub(super) fn check_text(text: &str) -> Result<(), PromqlError> {
    if text.len() > MAX_BYTES {
        return Err(PromqlError::Syntax(format!(
            "the query has {} bytes, at most {MAX_BYTES} are read",
            text.len()
        )));
    }
    Scanner { text, at: 0, operations: 0, regexes: 0, braces: false, duration: false }.run()
}

struct Scanner<'t> {
    text: &'t str,
    at: usize,
    operations: usize,
    regexes: usize,
    /// Inside of `{…}`, whose operators nest nothing.
    braces: bool,
    /// A duration is expected next.
    duration: bool,
}

impl<'t> Scanner<'t> {
    fn rest(&self) -> &'t str {
        self.text.get(self.at..).unwrap_or_default()
    }

    fn run(mut self) -> Result<(), PromqlError> {
        while let Some(c) = self.rest().chars().next() {
            match c {
                '"' | '\'' | '`' => self.quoted().map(drop)?,
                '#' => self.at += self.rest().find('\n').unwrap_or(self.rest().len()),
                '0'..='9' | '.' => self.number()?,
                'a'..='z' | 'A'..='Z' | '_' => self.word()?,
                _ if c.is_whitespace() => self.at += c.len_utf8(),
                _ => self.punctuation(c)?,
            }
        }
        Ok(())
    }

    fn punctuation(&mut self, c: char) -> Result<(), PromqlError> {
        self.at += c.len_utf8();
        match c {
            '{' => self.braces = true,
            '}' => self.braces = false,
            '=' | '!' if self.braces && self.rest().starts_with('~') => {
                self.at += 1;
                self.regex()?;
            }
            '(' | '+' | '-' | '*' | '/' | '%' | '^' | '=' | '!' | '<' | '>' if !self.braces => {
                self.operation()?;
            }
            '[' => {
                self.operation()?;
                self.duration = true;
                return Ok(());
            }
            // Also in the name of a metric, which no number follows.
            ':' => self.duration = true,
            _ => {}
        }
        if !matches!(c, ':' | '+' | '-') {
            self.duration = false;
        }
        Ok(())
    }

    fn operation(&mut self) -> Result<(), PromqlError> {
        self.operations += 1;
        if self.operations <= MAX_OPERATIONS {
            return Ok(());
        }
        Err(PromqlError::Syntax(format!(
            "the query has more than {MAX_OPERATIONS} operators, brackets and calls: split it"
        )))
    }

    fn word(&mut self) -> Result<(), PromqlError> {
        let end = self
            .rest()
            .find(|c: char| !c.is_ascii_alphanumeric() && !matches!(c, '_' | ':'))
            .unwrap_or(self.rest().len());
        let word = self.rest().get(..end).unwrap_or_default().to_ascii_lowercase();
        self.at += end;
        self.duration = word == "offset" && !self.braces;
        let is_operator = matches!(word.as_str(), "and" | "or" | "unless" | "atan2");
        if is_operator && !self.braces { self.operation() } else { Ok(()) }
    }

    fn number(&mut self) -> Result<(), PromqlError> {
        let whole = self
            .rest()
            .find(|c: char| !c.is_ascii_alphanumeric() && !matches!(c, '.' | '_'))
            .unwrap_or(self.rest().len());
        let text = self.rest().get(..whole).unwrap_or_default();
        self.at += whole;
        if !std::mem::take(&mut self.duration) {
            return Ok(());
        }
        check_duration(text)
    }

    /// Reads a quoted string; returns it with its quotes.
    fn quoted(&mut self) -> Result<&'t str, PromqlError> {
        let start = self.rest();
        let mut chars = start.char_indices();
        let quote = chars.next().map(|(_, c)| c);
        while let Some((at, c)) = chars.next() {
            if Some(c) == quote {
                self.at += at + c.len_utf8();
                return Ok(start.get(..at + c.len_utf8()).unwrap_or_default());
            }
            if c == '\\' && quote != Some('`') {
                chars.next();
            }
        }
        Err(PromqlError::Syntax(format!("the quote of {:?} is not closed", excerpt(start))))
    }

    fn regex(&mut self) -> Result<(), PromqlError> {
        self.regexes += 1;
        if self.regexes > MAX_MATCHERS {
            return Err(PromqlError::Syntax(format!(
                "the query has more than {MAX_MATCHERS} regular expressions"
            )));
        }
        self.at += self.rest().len() - self.rest().trim_start().len();
        if !self.rest().starts_with(['"', '\'', '`']) {
            // The parser says what it expects here.
            return Ok(());
        }
        let quoted = self.quoted()?;
        let pattern = unquote_string(quoted).map_err(PromqlError::Syntax)?;
        anchored(&pattern).map(drop).map_err(PromqlError::Syntax)
    }
}

/// Checks that the parser reads a duration whole.
///
/// # Errors
/// If it is none.
pub(super) fn check_duration(text: &str) -> Result<(), PromqlError> {
    let mut digits = 0;
    let mut has_unit = false;
    for c in text.chars() {
        match c {
            '0'..='9' => digits += 1,
            'y' | 'w' | 'd' | 'h' | 'm' | 's' => (digits, has_unit) = (0, true),
            _ => return Err(no_duration(text)),
        }
        if digits > MAX_DURATION_DIGITS {
            return Err(no_duration(text));
        }
    }
    if has_unit { Ok(()) } else { Err(no_duration(text)) }
}

fn no_duration(text: &str) -> PromqlError {
    PromqlError::Syntax(format!(
        "{:?} is no duration: write a number of at most {MAX_DURATION_DIGITS} digits with its \
         unit, as 1h or 7d",
        excerpt(text)
    ))
}
