//! Tables of a file, and the simple values in them.

use super::Reader;
use crate::model::decimal::{Decimal, DecimalError};
use crate::rules::document::{Member, Node, NodeValue};
use crate::rules::mistakes::quoted;

/// A table whose keys are all known.
pub(super) struct Table<'n> {
    members: &'n [Member],
    line: usize,
    place: String,
}

impl<'n> Table<'n> {
    pub(super) fn get(&self, name: &str) -> Option<&'n Node> {
        self.members.iter().find(|member| member.name == name).map(|member| &member.node)
    }

    /// Where a key stands, for messages.
    pub(super) fn path(&self, name: &str) -> String {
        format!("{}{name}", self.place)
    }

    /// The line of a key, or of the table if it is missing.
    pub(super) fn line(&self, name: &str) -> usize {
        self.members.iter().find(|member| member.name == name).map_or(self.line, |m| m.line)
    }

    /// The given ones of these keys.
    pub(super) fn given(&self, names: &[&'static str]) -> Vec<&'static str> {
        names.iter().copied().filter(|name| self.get(name).is_some()).collect()
    }
}

impl Reader {
    /// Reads a table. `place` is what stands before the names of its keys, without a dot.
    pub(super) fn table<'n>(
        &mut self,
        node: &'n Node,
        place: &str,
        known: &[&str],
    ) -> Option<Table<'n>> {
        let NodeValue::Table(members) = &node.value else {
            self.expected(node, place.trim_end_matches(": "), "a table");
            return None;
        };
        let dot = if place.is_empty() || place.ends_with(": ") { "" } else { "." };
        let table = Table { members, line: node.line, place: format!("{place}{dot}") };
        for member in members.iter().filter(|member| !known.contains(&member.name.as_str())) {
            let path = table.path(&member.name);
            self.mistakes.unknown_key(member.line, &path, &member.name, known);
        }
        Some(table)
    }

    /// Reports a mistake at a key; always `None`.
    pub(super) fn wrong<T>(&mut self, table: &Table<'_>, name: &str, message: String) -> Option<T> {
        self.mistakes.add(table.line(name), &table.path(name), message);
        None
    }

    /// The one of these keys that is given. Reports none or several.
    pub(super) fn only_one(
        &mut self,
        table: &Table<'_>,
        names: &[&'static str],
        what: &str,
    ) -> Option<&'static str> {
        let given = table.given(names);
        let key = table.place.trim_end_matches([':', ' ', '.']);
        let message = match given.as_slice() {
            [one] => return Some(one),
            [] => format!("{what} is missing: one of {}", names.join(", ")),
            several => {
                format!("{} are given: {what} is exactly one of them", several.join(" and "))
            }
        };
        self.mistakes.add(table.line, key, message);
        None
    }

    pub(super) fn text<'n>(&mut self, node: &'n Node, path: &str) -> Option<&'n str> {
        match &node.value {
            NodeValue::Text(text) => Some(text),
            _ => {
                self.expected(node, path, "a text");
                None
            }
        }
    }

    pub(super) fn required_text<'n>(&mut self, table: &Table<'n>, name: &str) -> Option<&'n str> {
        match table.get(name) {
            Some(node) => self.text(node, &table.path(name)),
            None => self.wrong(table, name, "is missing".to_owned()),
        }
    }

    /// A key that is true or false; `default` if it is missing.
    pub(super) fn flag(&mut self, table: &Table<'_>, name: &str, default: bool) -> Option<bool> {
        match table.get(name).map(|node| (node, &node.value)) {
            None => Some(default),
            Some((_, NodeValue::Bool(value))) => Some(*value),
            Some((node, _)) => {
                self.expected(node, &table.path(name), "true or false");
                None
            }
        }
    }

    /// A number with all the digits that were written. Programs may write it as a text.
    pub(super) fn number(&mut self, node: &Node, path: &str) -> Option<Decimal> {
        let (NodeValue::Number(text) | NodeValue::Text(text)) = &node.value else {
            self.expected(node, path, "a number");
            return None;
        };
        let message = match Decimal::parse_exact(text) {
            Ok(Some(number)) => return Some(number),
            Ok(None) => format!("{}: at most 9 digits behind the point", quoted(text)),
            Err(DecimalError::Syntax) => format!("{} is no decimal number", quoted(text)),
            Err(DecimalError::OutOfRange) => format!("{} is beyond ±10^18", quoted(text)),
        };
        self.mistakes.add(node.line, path, message);
        None
    }
}
