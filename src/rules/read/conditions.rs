//! Reads the key `where`.

use super::{MAX_LIST, MAX_PROPERTY_TESTS, MAX_REGEXES, Reader};
use crate::model::event::{check_user, parse_rfc3339};
use crate::model::matcher::Matcher;
use crate::model::matcher_syntax;
use crate::model::window::Millis;
use crate::rules::condition::{Comparison, Condition, Constant, PropertyTest, UserTest};
use crate::rules::document::{Node, NodeValue};
use crate::rules::pointer::JsonPointer;
use crate::rules::read::table::Table;

const COMPARISONS: &[&str] = &["equal", "in", "exists", "regex"];
const USER_COMPARISONS: &[&str] = &["equal", "in", "exists"];

impl Reader {
    pub(super) fn condition(&mut self, node: &Node, path: &str) -> Option<Condition> {
        let table = self.table(node, path, &["labels", "properties", "user", "time"])?;
        let labels = table.get("labels").map(|node| self.matchers(node, &table.path("labels")));
        let properties =
            table.get("properties").map(|node| self.properties(node, &table.path("properties")));
        let user = table.get("user").map(|node| self.user(node, &table.path("user")));
        let time = table.get("time").map(|node| self.time(node, &table.path("time")));
        let (from, to) = time.unwrap_or(Some((None, None)))?;
        Some(Condition {
            labels: labels.unwrap_or_else(|| Some(Vec::new()))?,
            properties: properties.unwrap_or_else(|| Some(Vec::new()))?,
            user: user.map_or(Some(None), |user| user.map(Some))?,
            from,
            to,
        })
    }

    fn matchers(&mut self, node: &Node, path: &str) -> Option<Vec<Matcher>> {
        let text = self.text(node, path)?;
        if self.regexes > MAX_REGEXES {
            return None;
        }
        match matcher_syntax::parse(text) {
            Ok(matchers) => {
                let regexes = matchers.iter().filter(|matcher| matcher.is_regex()).count();
                self.count_regexes(regexes, node, path).then_some(matchers)
            }
            Err(why) => {
                self.mistakes.add(node.line, path, why);
                // A text that fails to compile cost as much as one that does not.
                self.count_regexes(1, node, path);
                None
            }
        }
    }

    /// Counts expressions that were compiled. Reports once that there are too many.
    fn count_regexes(&mut self, more: usize, node: &Node, path: &str) -> bool {
        let before = self.regexes;
        self.regexes += more;
        if before <= MAX_REGEXES && self.regexes > MAX_REGEXES {
            let message = format!("more than {MAX_REGEXES} regular expressions in the file");
            self.mistakes.add(node.line, path, message);
        }
        self.regexes <= MAX_REGEXES
    }

    fn properties(&mut self, node: &Node, path: &str) -> Option<Vec<PropertyTest>> {
        let items = self.list(node, path, MAX_PROPERTY_TESTS)?;
        let tests: Vec<Option<PropertyTest>> = items
            .iter()
            .enumerate()
            .map(|(at, item)| self.property_test(item, &format!("{path}[{at}]")))
            .collect();
        tests.into_iter().collect()
    }

    fn property_test(&mut self, node: &Node, path: &str) -> Option<PropertyTest> {
        let table = self.table(node, path, &["at", "equal", "in", "exists", "regex", "not"])?;
        let at = self.pointer(&table, "at");
        let not = self.flag(&table, "not", false);
        let (comparison, exists) = match self.only_one(&table, COMPARISONS, "the comparison")? {
            "exists" => (Some(Comparison::Exists), self.flag(&table, "exists", true)?),
            "regex" => (self.regex(&table), true),
            name => (self.constants(&table, name, Self::constant).map(Comparison::In), true),
        };
        Some(PropertyTest { at: at?, not: not? == exists, comparison: comparison? })
    }

    pub(super) fn pointer(&mut self, table: &Table<'_>, name: &str) -> Option<JsonPointer> {
        let text = self.required_text(table, name)?;
        match JsonPointer::parse(text) {
            Ok(pointer) => Some(pointer),
            Err(why) => self.wrong(table, name, why),
        }
    }

    fn regex(&mut self, table: &Table<'_>) -> Option<Comparison> {
        let text = self.required_text(table, "regex")?;
        let node = table.get("regex")?;
        if !self.count_regexes(1, node, &table.path("regex")) {
            return None;
        }
        match matcher_syntax::anchored(text) {
            Ok(regex) => Some(Comparison::Regex(text.to_owned(), regex)),
            Err(why) => self.wrong(table, "regex", why),
        }
    }

    /// The constants of `equal` or `in`, ascending and different.
    fn constants<T: Ord>(
        &mut self,
        table: &Table<'_>,
        name: &str,
        read: fn(&mut Self, &Node, &str) -> Option<T>,
    ) -> Option<Vec<T>> {
        let (node, path) = (table.get(name)?, table.path(name));
        if name == "equal" {
            return read(self, node, &path).map(|constant| vec![constant]);
        }
        let items = self.list(node, &path, MAX_LIST)?;
        if items.is_empty() {
            return self.wrong(table, name, "nothing can be in an empty list".to_owned());
        }
        let all: Vec<Option<T>> = items.iter().map(|item| read(self, item, &path)).collect();
        let mut all: Vec<T> = all.into_iter().collect::<Option<_>>()?;
        all.sort_unstable();
        all.dedup();
        Some(all)
    }

    fn constant(&mut self, node: &Node, path: &str) -> Option<Constant> {
        match &node.value {
            NodeValue::Text(text) => Some(Constant::Text(text.clone())),
            NodeValue::Bool(value) => Some(Constant::Bool(*value)),
            NodeValue::Number(_) => self.number(node, path).map(Constant::Number),
            _ => {
                self.expected(node, path, "a text, a number, true or false");
                None
            }
        }
    }

    fn user(&mut self, node: &Node, path: &str) -> Option<UserTest> {
        let table = self.table(node, path, &["equal", "in", "exists", "not"])?;
        let not = self.flag(&table, "not", false);
        match self.only_one(&table, USER_COMPARISONS, "the comparison")? {
            "exists" => {
                let exists = self.flag(&table, "exists", true)?;
                Some(UserTest::new(not? == exists, None))
            }
            name => {
                let users = self.constants(&table, name, Self::user_name);
                Some(UserTest::new(not?, Some(users?)))
            }
        }
    }

    fn user_name(&mut self, node: &Node, path: &str) -> Option<String> {
        let user = self.text(node, path)?;
        match check_user(user) {
            Ok(()) => Some(user.to_owned()),
            Err(why) => {
                self.mistakes.add(node.line, path, why.message);
                None
            }
        }
    }

    fn time(&mut self, node: &Node, path: &str) -> Option<(Option<Millis>, Option<Millis>)> {
        let table = self.table(node, path, &["from", "to"])?;
        let mut bound = |name: &str| match table.get(name) {
            Some(node) => self.millis(node, &table.path(name)).map(Some),
            None => Some(None),
        };
        let (from, to) = (bound("from"), bound("to"));
        let (from, to) = (from?, to?);
        if from.is_none() && to.is_none() {
            self.mistakes.add(node.line, path, "from or to is missing".to_owned());
            return None;
        }
        if from.zip(to).is_some_and(|(from, to)| from >= to) {
            return self.wrong(&table, "to", "is not later than from".to_owned());
        }
        Some((from, to))
    }

    fn millis(&mut self, node: &Node, path: &str) -> Option<Millis> {
        let found = match &node.value {
            NodeValue::Number(text) => text.parse().ok(),
            NodeValue::Text(text) | NodeValue::Time(text) => parse_rfc3339(text).ok(),
            _ => None,
        };
        if found.is_none() {
            let message = "a time is RFC 3339 with a zone, as 2026-01-01T00:00:00Z, or whole \
                           milliseconds since 1970";
            self.mistakes.add(node.line, path, message.to_owned());
        }
        found
    }
}
