//! A file of rules as a tree of values with their lines, whether it is TOML or JSON.

use std::ops::Range;

use serde::de::{Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::mistakes::Mistakes;

/// Deepest nesting of a file. Rules need half of it; the rest is for messages about the wrong key
/// instead of the depth.
const MAX_NESTING: usize = 12;

/// The language of a file of rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RulesFormat {
    /// TOML, for people.
    Toml,
    /// JSON of the same shape, for programs.
    Json,
}

impl RulesFormat {
    /// The language by the extension of the file's name, or else by the first character.
    pub fn of(extension: Option<&str>, text: &str) -> Self {
        match extension {
            Some("toml") => Self::Toml,
            Some("json") => Self::Json,
            // No TOML begins with a brace.
            _ if text.trim_start().starts_with('{') => Self::Json,
            _ => Self::Toml,
        }
    }
}

/// A value, and the line on which it begins.
#[derive(Debug)]
pub(super) struct Node {
    pub(super) line: usize,
    pub(super) value: NodeValue,
}

#[derive(Debug)]
pub(super) enum NodeValue {
    Table(Vec<Member>),
    List(Vec<Node>),
    Text(String),
    /// As it was written, in decimal.
    Number(String),
    Bool(bool),
    /// A date or time of TOML.
    Time(String),
    Null,
}

impl NodeValue {
    /// What it is, for messages.
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Self::Table(_) => "a table",
            Self::List(_) => "a list",
            Self::Text(_) => "a text",
            Self::Number(_) => "a number",
            Self::Bool(_) => "true or false",
            Self::Time(_) => "a date or time",
            Self::Null => "null",
        }
    }
}

/// A key and its value. The line is that of the key.
#[derive(Debug)]
pub(super) struct Member {
    pub(super) name: String,
    pub(super) line: usize,
    pub(super) node: Node,
}

/// Where the lines of a text begin.
struct Lines(Vec<usize>);

impl Lines {
    fn of(text: &str) -> Self {
        Self(text.bytes().enumerate().filter(|(_, b)| *b == b'\n').map(|(at, _)| at + 1).collect())
    }
    /// The line of a byte, from 1.
    fn line(&self, at: usize) -> usize {
        1 + self.0.partition_point(|start| *start <= at)
    }
}

/// Reads a text. `None` if it cannot be read at all; the mistakes say why.
pub(super) fn read(text: &str, format: RulesFormat, mistakes: &mut Mistakes) -> Option<Node> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let lines = Lines::of(text);
    match format {
        RulesFormat::Toml => read_toml(text, &lines, mistakes),
        RulesFormat::Json => read_json(text, &lines, mistakes),
    }
}

fn read_toml(text: &str, lines: &Lines, mistakes: &mut Mistakes) -> Option<Node> {
    let (table, errors) = DeTable::parse_recoverable(text);
    if errors.is_empty() {
        let line = lines.line(table.span().start);
        return Some(toml_table(line, table.get_ref(), lines, mistakes, 0));
    }
    for error in errors {
        let line = error.span().map_or(1, |span| lines.line(span.start));
        mistakes.add(line, "", format!("not readable TOML: {}", error.message()));
    }
    None
}

fn toml_table(
    line: usize,
    table: &DeTable<'_>,
    lines: &Lines,
    mistakes: &mut Mistakes,
    depth: usize,
) -> Node {
    let members = table.iter().map(|(name, value)| Member {
        name: name.get_ref().clone().into_owned(),
        line: lines.line(name.span().start),
        node: toml_value(value, lines, mistakes, depth + 1),
    });
    Node { line, value: NodeValue::Table(members.collect()) }
}

fn toml_value(
    value: &Spanned<DeValue<'_>>,
    lines: &Lines,
    mistakes: &mut Mistakes,
    depth: usize,
) -> Node {
    let line = lines.line(value.span().start);
    if depth > MAX_NESTING {
        mistakes.add(line, "", format!("nested deeper than {MAX_NESTING}"));
        return Node { line, value: NodeValue::Null };
    }
    let value = match value.get_ref() {
        DeValue::Table(table) => return toml_table(line, table, lines, mistakes, depth),
        DeValue::Array(items) => NodeValue::List(
            items.iter().map(|item| toml_value(item, lines, mistakes, depth + 1)).collect(),
        ),
        DeValue::String(text) => NodeValue::Text(text.clone().into_owned()),
        DeValue::Integer(number) if number.radix() == 10 => {
            NodeValue::Number(number.as_str().to_owned())
        }
        // What does not fit is no number to anybody who reads it, and its text is named there.
        DeValue::Integer(number) => NodeValue::Number(
            i128::from_str_radix(number.as_str(), number.radix())
                .map_or_else(|_| number.to_string(), |number| number.to_string()),
        ),
        DeValue::Float(number) => NodeValue::Number(number.as_str().to_owned()),
        DeValue::Boolean(value) => NodeValue::Bool(*value),
        DeValue::Datetime(time) => NodeValue::Time(time.to_string()),
    };
    Node { line, value }
}

fn read_json(text: &str, lines: &Lines, mistakes: &mut Mistakes) -> Option<Node> {
    match serde_json::from_str::<&RawValue>(text) {
        Ok(whole) => {
            let mut reader = JsonReader { text, lines, mistakes };
            Some(reader.node(whole.get(), 0))
        }
        Err(error) => {
            mistakes.add(error.line().max(1), "", format!("not readable JSON: {error}"));
            None
        }
    }
}

/// Reads JSON level by level: `serde_json` checks, and the slices that it lends tell the places.
struct JsonReader<'t, 'm> {
    text: &'t str,
    lines: &'m Lines,
    mistakes: &'m mut Mistakes,
}

impl<'t> JsonReader<'t, '_> {
    fn node(&mut self, part: &'t str, depth: usize) -> Node {
        let line = self.lines.line(range_in(self.text, part).start);
        let value = if depth > MAX_NESTING {
            self.mistakes.add(line, "", format!("nested deeper than {MAX_NESTING}"));
            NodeValue::Null
        } else {
            self.value(part, depth).unwrap_or_else(|error| {
                self.mistakes.add(line, "", format!("not readable JSON: {error}"));
                NodeValue::Null
            })
        };
        Node { line, value }
    }

    fn value(&mut self, part: &'t str, depth: usize) -> Result<NodeValue, serde_json::Error> {
        Ok(match part.as_bytes().first() {
            Some(b'{') => {
                let members = serde_json::Deserializer::from_str(part).deserialize_map(Members)?;
                NodeValue::Table(self.table(members, depth))
            }
            Some(b'[') => {
                let items: Vec<&'t RawValue> = serde_json::from_str(part)?;
                let items = items.into_iter().map(|item| self.node(item.get(), depth + 1));
                NodeValue::List(items.collect())
            }
            Some(b'"') => NodeValue::Text(serde_json::from_str(part)?),
            Some(b'n') => NodeValue::Null,
            Some(b't' | b'f') => NodeValue::Bool(part == "true"),
            // A checked text begins with nothing else.
            _ => NodeValue::Number(part.to_owned()),
        })
    }

    fn table(&mut self, members: Vec<(String, &'t RawValue)>, depth: usize) -> Vec<Member> {
        let mut found: Vec<Member> = Vec::with_capacity(members.len());
        let mut names = std::collections::BTreeSet::new();
        for (name, value) in members {
            let node = self.node(value.get(), depth + 1);
            if !names.insert(name.clone()) {
                self.mistakes.add(node.line, &name, "this key is there twice".to_owned());
                continue;
            }
            found.push(Member { name, line: node.line, node });
        }
        found
    }
}

struct Members;

impl<'de> Visitor<'de> for Members {
    type Value = Vec<(String, &'de RawValue)>;
    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("an object")
    }
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut members = Vec::new();
        while let Some(member) = map.next_entry()? {
            members.push(member);
        }
        Ok(members)
    }
}

/// The range of `part`, a slice of `whole`, in it.
fn range_in(whole: &str, part: &str) -> Range<usize> {
    let start = part.as_ptr() as usize - whole.as_ptr() as usize;
    start..start + part.len()
}
