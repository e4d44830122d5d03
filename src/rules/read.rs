//! Reads a file of rules, and reports all its mistakes at once.

mod actions;
mod conditions;
mod table;

use super::document::{self, Node, NodeValue, RulesFormat};
use super::mistakes::{Mistakes, RuleMistakes, quoted};
use super::{Rule, RuleSet};
use table::Table;

/// Most bytes of a file, and of its canonical form.
pub const MAX_FILE_BYTES: usize = 256 * 1024;
/// Most rules of a file. Every event passes all of them.
pub const MAX_RULES: usize = 100;
/// Longest name of a rule, in bytes.
pub const MAX_NAME_BYTES: usize = 100;
/// Most comparisons of properties in one rule.
pub const MAX_PROPERTY_TESTS: usize = 16;
/// Most entries of one list of constants, or of one `map_label`.
pub const MAX_LIST: usize = 1_000;
/// Most regular expressions of a file. Compiled, each may have a mebibyte.
pub const MAX_REGEXES: usize = 64;

const RULE_KEYS: &[&str] = &[
    "name",
    "where",
    "drop",
    "set_label",
    "remove_label",
    "map_label",
    "set_value",
    "set_user",
    "scale_value",
];

impl RuleSet {
    /// Reads the text of a file.
    ///
    /// # Errors
    /// All mistakes at once, each with its line and its key, and what is allowed there.
    pub fn parse(text: &str, format: RulesFormat) -> Result<Self, RuleMistakes> {
        let mut reader = Reader { mistakes: Mistakes::default(), regexes: 0 };
        let rules = reader.file(text, format);
        reader.mistakes.into_result().map(|()| rules)
    }
}

/// Collects mistakes while it reads. What has one is left out of the result, which is then not used.
struct Reader {
    mistakes: Mistakes,
    /// Regular expressions that were compiled so far.
    regexes: usize,
}

impl Reader {
    fn file(&mut self, text: &str, format: RulesFormat) -> RuleSet {
        if text.len() > MAX_FILE_BYTES {
            let message = format!("{} bytes, at most {MAX_FILE_BYTES}", text.len());
            self.mistakes.add(1, "", message);
            return RuleSet::default();
        }
        let Some(root) = document::read(text, format, &mut self.mistakes) else {
            return RuleSet::default();
        };
        let rules = self.rules(&root);
        let canonical = rules.canonical_json().len();
        if canonical > MAX_FILE_BYTES {
            let message = format!("{canonical} bytes as canonical JSON, at most {MAX_FILE_BYTES}");
            self.mistakes.add(1, "", message);
        }
        rules
    }

    fn rules(&mut self, root: &Node) -> RuleSet {
        let Some(table) = self.table(root, "", &["rule"]) else { return RuleSet::default() };
        let list = table.get("rule").and_then(|node| self.list(node, "rule", MAX_RULES));
        let mut rules: Vec<Rule> = Vec::new();
        for (at, node) in list.unwrap_or_default().iter().enumerate() {
            let place = format!("rule {}: ", at + 1);
            let Some(rule) = self.rule(node, &place) else { continue };
            if rules.iter().any(|other| other.name == rule.name) {
                let message = format!("another rule has the name {}", quoted(&rule.name));
                self.mistakes.add(node.line, &format!("{place}name"), message);
            }
            rules.push(rule);
        }
        RuleSet { rules }
    }

    fn rule(&mut self, node: &Node, place: &str) -> Option<Rule> {
        let table = self.table(node, place, RULE_KEYS)?;
        let name = self.name(&table);
        let condition = match table.get("where") {
            Some(node) => self.condition(node, &table.path("where")),
            None => Some(Default::default()),
        };
        let action = self.action(&table);
        Some(Rule { name: name?, condition: condition?, action: action? })
    }

    fn name(&mut self, table: &Table<'_>) -> Option<String> {
        let name = self.required_text(table, "name")?;
        if (1..=MAX_NAME_BYTES).contains(&name.len()) && !name.chars().any(char::is_control) {
            return Some(name.to_owned());
        }
        let message = format!("a name has 1 to {MAX_NAME_BYTES} bytes, and no control characters");
        self.wrong(table, "name", message)
    }

    /// The items of a list; a list that is too long is cut.
    fn list<'n>(&mut self, node: &'n Node, path: &str, max: usize) -> Option<&'n [Node]> {
        let NodeValue::List(items) = &node.value else {
            let what = if path == "rule" { "a list: write [[rule]]" } else { "a list" };
            self.expected(node, path, what);
            return None;
        };
        if items.len() > max {
            let message = format!("{} entries, at most {max}", items.len());
            self.mistakes.add(node.line, path, message);
        }
        Some(&items[..items.len().min(max)])
    }

    fn expected(&mut self, node: &Node, path: &str, what: &str) {
        self.mistakes.add(
            node.line,
            path,
            format!("{}, where there should be {what}", node.value.kind()),
        );
    }
}
