//! The file of a mapping: TOML, all mistakes at once.

use std::collections::{BTreeMap, BTreeSet};

use serde::Deserialize;

use super::Source;
use super::mapping::{Entry, Mapping, NamePattern};
use super::pointer_tree::PointerTree;
use crate::model::event::{MAX_LABELS, check_label, check_metric};
use crate::model::suggest::{excerpt, nearest_name};
use crate::rules::JsonPointer;

/// Most bytes of a file.
pub const MAX_FILE_BYTES: usize = 256 * 1024;
/// Most entries of a file. Those without one name are tried one after the other, for every event.
pub const MAX_ENTRIES: usize = 500;

/// The calls of Segment that are no `track`, and `track`.
const TYPES: [&str; 6] = ["track", "identify", "page", "screen", "group", "alias"];
const KEYS: [&str; 8] = ["tenant", "source", "type", "event", "metric", "value", "user", "labels"];

/// Everything that is wrong with a file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the mapping has {} mistake(s):\n{}", .0.len(), .0.join("\n"))]
pub struct MappingMistakes(pub Vec<String>);

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    map: Vec<BTreeMap<String, toml::Value>>,
}

impl Mapping {
    /// Reads the text of a file.
    ///
    /// # Errors
    /// All mistakes at once, each with its entry and key, and what is allowed there.
    pub fn parse(text: &str) -> Result<Self, MappingMistakes> {
        if text.len() > MAX_FILE_BYTES {
            let mistake = format!("the file has {} bytes, at most {MAX_FILE_BYTES}", text.len());
            return Err(MappingMistakes(vec![mistake]));
        }
        let file: File = toml::from_str(text).map_err(|e| MappingMistakes(vec![e.to_string()]))?;
        let mut mistakes = Vec::new();
        if file.map.len() > MAX_ENTRIES {
            mistakes
                .push(format!("the file has {} entries, at most {MAX_ENTRIES}", file.map.len()));
        }
        let entries = file.map.iter().take(MAX_ENTRIES).enumerate();
        let entries = entries
            .map(|(at, table)| {
                EntryReader { number: at + 1, table, mistakes: &mut mistakes }.read()
            })
            .collect();
        if mistakes.is_empty() { Ok(Self::of(entries)) } else { Err(MappingMistakes(mistakes)) }
    }
}

/// Reads one entry; what has a mistake is left out of the result, which is then not used.
struct EntryReader<'a> {
    number: usize,
    table: &'a BTreeMap<String, toml::Value>,
    mistakes: &'a mut Vec<String>,
}

impl EntryReader<'_> {
    fn read(mut self) -> Entry {
        self.check_keys();
        let (source, kind) = (self.source(), self.kind());
        let metric = self.text("metric");
        if let Some(Err(why)) = metric.as_deref().map(check_metric) {
            self.wrong("metric", &why.message);
        }
        let name = match self.text("event") {
            None => NamePattern::Any,
            Some(text) => match text.strip_suffix('*') {
                Some("") => NamePattern::Any,
                Some(prefix) => NamePattern::Prefix(prefix.to_owned()),
                None => NamePattern::Exact(text),
            },
        };
        let mut pointers = PointerTree::default();
        let labels = self.labels(metric.is_some(), &mut pointers);
        let mut next = labels.len();
        let mut place = |reader: &mut Self, key| {
            let text = reader.text(key)?;
            reader.add_pointer(key, &text, &mut pointers, next);
            next += 1;
            Some(next - 1)
        };
        let value = place(&mut self, "value");
        let user = place(&mut self, "user");
        let tenant = self.text("tenant");
        Entry { tenant, source, kind, name, metric, labels, pointers, value, user }
    }

    fn wrong(&mut self, key: &str, why: &str) {
        self.mistakes.push(format!("map {}: {}: {why}", self.number, excerpt(key)));
    }

    fn check_keys(&mut self) {
        for key in self.table.keys().filter(|key| !KEYS.contains(&key.as_str())) {
            let nearest = nearest_name(key, KEYS.map(str::to_owned));
            let hint = nearest.map(|name| format!(" did you mean {name}?")).unwrap_or_default();
            let why = format!("no such key;{hint} allowed: {}", KEYS.join(", "));
            self.wrong(key, &why);
        }
    }

    /// A text that is not empty.
    fn text(&mut self, key: &str) -> Option<String> {
        match self.table.get(key)? {
            toml::Value::String(text) if !text.is_empty() => Some(text.clone()),
            _ => {
                self.wrong(key, "a text in quotes that is not empty is expected");
                None
            }
        }
    }

    fn source(&mut self) -> Option<Source> {
        let text = self.text("source")?;
        let found = Source::ALL.iter().find(|(_, name)| *name == text);
        if found.is_none() {
            let names = Source::ALL.map(|(_, name)| name);
            self.wrong("source", &format!("one of {} is expected", names.join(", ")));
        }
        found.map(|(source, _)| *source)
    }

    fn kind(&mut self) -> Option<String> {
        let text = self.text("type")?;
        if !TYPES.contains(&text.as_str()) {
            self.wrong("type", &format!("one of {} is expected", TYPES.join(", ")));
        }
        Some(text)
    }

    fn labels(&mut self, has_metric: bool, pointers: &mut PointerTree) -> Vec<String> {
        let table = match self.table.get("labels") {
            None => return Vec::new(),
            Some(toml::Value::Table(table)) => table,
            Some(_) => {
                self.wrong("labels", "a table is expected: { label = \"/properties/name\" }");
                return Vec::new();
            }
        };
        // Without a metric, the event's name may take a label.
        let most = if has_metric { MAX_LABELS } else { MAX_LABELS - 1 };
        if table.len() > most {
            self.wrong("labels", &format!("{} labels, at most {most}", table.len()));
        }
        let names: BTreeSet<&String> = table.keys().collect();
        for (at, name) in names.iter().enumerate() {
            let key = format!("labels.{name}");
            if let Err(why) = check_label(name, "") {
                self.wrong(&key, &why.message);
            }
            match &table[name.as_str()] {
                toml::Value::String(text) => self.add_pointer(&key, text, pointers, at),
                _ => self.wrong(&key, "a pointer in quotes is expected"),
            }
        }
        names.into_iter().cloned().collect()
    }

    fn add_pointer(&mut self, key: &str, text: &str, tree: &mut PointerTree, number: usize) {
        match JsonPointer::parse(text) {
            Ok(pointer) if !pointer.steps().is_empty() => tree.add(&pointer, number),
            Ok(_) => self.wrong(key, "a pointer begins with /"),
            Err(why) => self.wrong(key, &why),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mistakes(text: &str) -> String {
        Mapping::parse(text).expect_err("mistakes").0.join("\n")
    }

    #[test]
    fn all_mistakes_are_told_at_once() {
        let text = r#"
            [[map]]
            evnt = "x"
            source = "mixpanel"
            type = "click"
            metric = "no metric"
            value = "properties.revenue"
            user = 7
            labels = { "a-b" = "/x", ok = 1, __reserved = "/y" }
            [[map]]
            event = ""
            labels = "/x"
        "#;
        let all = mistakes(text);
        for part in [
            "map 1: evnt: no such key; did you mean event?",
            "map 1: source: one of segment, posthog, ga4, cloudevents",
            "map 1: type: one of track",
            "map 1: metric: a metric is",
            "map 1: value: a pointer begins with /",
            "map 1: user: a text in quotes",
            "map 1: labels.a-b: a label name is",
            "map 1: labels.ok: a pointer in quotes",
            "map 1: labels.__reserved:",
            "map 2: event: a text in quotes",
            "map 2: labels: a table is expected",
        ] {
            assert!(all.contains(part), "{part} in\n{all}");
        }
        assert_eq!(all.lines().count(), 11, "{all}");
    }

    #[test]
    fn files_are_bounded() {
        assert!(mistakes(&" ".repeat(MAX_FILE_BYTES + 1)).contains("at most 262144"));
        assert!(mistakes(&"[[map]]\n".repeat(MAX_ENTRIES + 1)).contains("at most 500"));
        assert_eq!(Mapping::parse(&"[[map]]\n".repeat(MAX_ENTRIES)).map(|m| m.len()), Ok(500));
        let labels = |count: usize| {
            let labels: String = (0..count).map(|n| format!("l{n} = \"/{n}\"\n")).collect();
            format!("[[map]]\nmetric = \"m\"\n[map.labels]\n{labels}")
        };
        assert!(mistakes(&labels(17)).contains("17 labels, at most 16"));
        assert!(Mapping::parse(&labels(16)).is_ok());
        assert!(mistakes(&labels(16).replace("metric = \"m\"\n", "")).contains("at most 15"));
        assert!(mistakes("map = 1").contains("map"), "not a list");
        assert!(mistakes("[[maps]]").contains("maps"), "not a key");
        assert!(Mapping::parse("").expect("no entries").is_empty());
    }
}
