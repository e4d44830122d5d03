//! The labels of a series of an answer, the name of the metric among them.

use crate::model::series::label_of;

/// The label that holds the name of the metric.
pub const METRIC_NAME: &str = "__name__";

/// Labels, ascending by name, without empty values.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Labels(Vec<(String, String)>);

impl Labels {
    /// From labels in any order; empty values are dropped.
    pub fn new(labels: impl IntoIterator<Item = (String, String)>) -> Self {
        let mut labels: Vec<_> =
            labels.into_iter().filter(|(_, value)| !value.is_empty()).collect();
        labels.sort_unstable();
        labels.dedup_by(|later, earlier| later.0 == earlier.0);
        Self(labels)
    }

    /// The value of a label; a missing label reads as empty.
    pub fn get(&self, name: &str) -> &str {
        label_of(&self.0, name)
    }

    /// Sets a label; an empty value removes it.
    pub fn set(&mut self, name: &str, value: &str) {
        match self.0.binary_search_by(|(known, _)| known.as_str().cmp(name)) {
            Ok(at) if value.is_empty() => drop(self.0.remove(at)),
            Ok(at) => value.clone_into(&mut self.0[at].1),
            Err(_) if value.is_empty() => {}
            Err(at) => self.0.insert(at, (name.to_owned(), value.to_owned())),
        }
    }

    /// Without the name of the metric.
    pub fn without_name(mut self) -> Self {
        self.set(METRIC_NAME, "");
        self
    }

    /// Only labels of these names.
    pub fn only(&self, names: &[String]) -> Self {
        Self(self.0.iter().filter(|(name, _)| names.contains(name)).cloned().collect())
    }

    /// All but labels of these names and the name of the metric.
    pub fn except(&self, names: &[String]) -> Self {
        let stays = |name: &String| name != METRIC_NAME && !names.contains(name);
        Self(self.0.iter().filter(|(name, _)| stays(name)).cloned().collect())
    }

    /// Names and values, ascending by name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(name, value)| (name.as_str(), value.as_str()))
    }

    /// Bytes on the heap.
    pub(super) fn bytes(&self) -> usize {
        self.0.iter().map(|(name, value)| 48 + name.len() + value.len()).sum()
    }
}
