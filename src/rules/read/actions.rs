//! Reads the keys of actions.

use std::collections::BTreeMap;

use super::table::Table;
use super::{MAX_LIST, Reader};
use crate::model::decimal::Decimal;
use crate::model::event::check_label;
use crate::rules::action::Action;
use crate::rules::document::{Node, NodeValue};

const ACTIONS: &[&str] =
    &["drop", "set_label", "remove_label", "map_label", "set_value", "set_user", "scale_value"];

impl Reader {
    pub(super) fn action(&mut self, rule: &Table<'_>) -> Option<Action> {
        // Each is read even if there are several, so that all their mistakes are reported.
        let read: Vec<Option<Action>> = rule
            .given(ACTIONS)
            .into_iter()
            .filter_map(|name| rule.get(name).map(|node| (name, node)))
            .map(|(name, node)| self.action_of(rule, name, node))
            .collect();
        self.only_one(rule, ACTIONS, "the action")?;
        read.into_iter().next().flatten()
    }

    fn action_of(&mut self, rule: &Table<'_>, name: &str, node: &Node) -> Option<Action> {
        let path = rule.path(name);
        match name {
            "drop" => match self.flag(rule, name, true)? {
                true => Some(Action::Drop),
                false => self.wrong(rule, name, "false means nothing: leave it out".to_owned()),
            },
            "remove_label" => {
                let label = self.text(node, &path)?.to_owned();
                self.checked_label(node, &path, &label, "")?;
                Some(Action::RemoveLabel(label))
            }
            "set_label" => self.set_label(node, &path),
            "map_label" => self.map_label(node, &path),
            "set_value" => {
                let table = self.table(node, &path, &["property"])?;
                self.pointer(&table, "property").map(Action::SetValue)
            }
            "set_user" => {
                let table = self.table(node, &path, &["property"])?;
                self.pointer(&table, "property").map(Action::SetUser)
            }
            _ => self.scale_value(node, &path),
        }
    }

    /// Reports a label that no event could have.
    fn checked_label(&mut self, node: &Node, path: &str, name: &str, value: &str) -> Option<()> {
        match check_label(name, value) {
            Ok(()) => Some(()),
            Err(why) => {
                self.mistakes.add(node.line, path, why.message);
                None
            }
        }
    }

    fn label(&mut self, table: &Table<'_>) -> Option<String> {
        let label = self.required_text(table, "label")?.to_owned();
        let node = table.get("label")?;
        self.checked_label(node, &table.path("label"), &label, "")?;
        Some(label)
    }

    fn set_label(&mut self, node: &Node, path: &str) -> Option<Action> {
        let table = self.table(node, path, &["label", "value", "property"])?;
        let label = self.label(&table);
        match self.only_one(&table, &["value", "property"], "where the value comes from")? {
            "property" => {
                let property = self.pointer(&table, "property");
                Some(Action::SetLabelFrom { label: label?, property: property? })
            }
            name => {
                let value = self.required_text(&table, name)?.to_owned();
                let label = label?;
                self.checked_label(table.get(name)?, &table.path(name), &label, &value)?;
                Some(Action::SetLabel { label, value })
            }
        }
    }

    fn map_label(&mut self, node: &Node, path: &str) -> Option<Action> {
        let table = self.table(node, path, &["label", "values"])?;
        let label = self.label(&table);
        let path = table.path("values");
        let Some(node) = table.get("values") else {
            return self.wrong(&table, "values", "is missing".to_owned());
        };
        let NodeValue::Table(members) = &node.value else {
            self.expected(node, &path, "a table of old values and new ones");
            return None;
        };
        if members.is_empty() || members.len() > MAX_LIST {
            let message = format!("{} entries: at least 1, at most {MAX_LIST}", members.len());
            return self.wrong(&table, "values", message);
        }
        let label = label?;
        let mut values = Some(BTreeMap::new());
        for member in members {
            let path = format!("{path}.{}", member.name);
            let read = self.text(&member.node, &path).and_then(|new| {
                // No event has an old value that is invalid, so it is a mistake too.
                self.checked_label(&member.node, &path, &label, &member.name)?;
                self.checked_label(&member.node, &path, &label, new)?;
                Some((member.name.clone(), new.to_owned()))
            });
            match (read, &mut values) {
                (Some((old, new)), Some(values)) => drop(values.insert(old, new)),
                _ => values = None,
            }
        }
        values.map(|values| Action::MapLabel { label, values })
    }

    fn scale_value(&mut self, node: &Node, path: &str) -> Option<Action> {
        let table = self.table(node, path, &["multiply", "divide"])?;
        if table.given(&["multiply", "divide"]).is_empty() {
            self.mistakes.add(node.line, path, "multiply or divide is missing".to_owned());
            return None;
        }
        let mut factor = |name: &str| match table.get(name) {
            Some(node) => self.number(node, &table.path(name)),
            None => Some(Decimal::ONE),
        };
        let (multiply, divide) = (factor("multiply"), factor("divide"));
        let (multiply, divide) = (multiply?, divide?);
        if divide == Decimal::ZERO {
            return self.wrong(&table, "divide", "nothing can be divided by 0".to_owned());
        }
        Some(Action::ScaleValue { multiply, divide })
    }
}
