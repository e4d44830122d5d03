//! What shards hold that the store's catalogue lacks, summed up for one question: names, never
//! series one by one. Pure.

use std::collections::{BTreeMap, BTreeSet};

use crate::model::window::Hour;
use crate::shards::state::CatalogueEntry;

/// Names of one answer at most. Nodes refuse each other's questions for more.
pub const MAX_NAMES: usize = 10_001;

/// Which names are wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CatalogueNames<'a> {
    /// Those of metrics.
    Metrics,
    /// The values of a label, of one metric or of all.
    Values(&'a str, Option<&'a str>),
}

/// A page of a tenant's names.
#[derive(Debug, Clone, Copy)]
pub struct CatalogueQuery<'a> {
    /// Whose.
    pub tenant: &'a str,
    /// Which.
    pub names: CatalogueNames<'a>,
    /// They begin with this.
    pub prefix: &'a str,
    /// They come after this one.
    pub after: &'a str,
    /// At most so many, the first ones.
    pub limit: usize,
}

impl CatalogueQuery<'_> {
    /// Whether a name is of the page, but for its limit.
    pub fn contains(&self, name: &str) -> bool {
        name > self.after && name.starts_with(self.prefix)
    }
}

/// What a shard adds to a metric.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NewMetric {
    /// Names of labels.
    pub labels: BTreeSet<String>,
    /// Series, beside the overflow series.
    pub series: u64,
    /// Whether the overflow series is among what is new.
    pub overflow: bool,
    /// First and last window in which there is something.
    pub hours: Option<(Hour, Hour)>,
}

/// What a shard adds to a page of names.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CatalogueGrowth {
    /// By name, if metrics are wanted.
    pub metrics: BTreeMap<String, NewMetric>,
    /// If values are wanted.
    pub values: BTreeSet<String>,
}

/// Bytes of a name beside its text, on the wire and in memory, rounded up.
const NAME_BYTES: usize = 48;

impl CatalogueGrowth {
    /// Adds one entry of the shard, if it is asked for.
    pub fn add(&mut self, question: &CatalogueQuery<'_>, entry: CatalogueEntry<'_>) {
        match (question.names, entry) {
            (CatalogueNames::Metrics, CatalogueEntry::Series(info)) => {
                let series = &info.series;
                let Some(metric) = self.metric(question, &series.metric) else { return };
                if series.is_overflow() {
                    metric.overflow = true;
                } else {
                    metric.series += 1;
                }
                for (name, _) in &series.labels {
                    if !metric.labels.contains(name) {
                        metric.labels.insert(name.clone());
                    }
                }
            }
            (CatalogueNames::Metrics, CatalogueEntry::Window(metric, hour)) => {
                let Some(metric) = self.metric(question, metric) else { return };
                metric.hours = Some(
                    metric
                        .hours
                        .map_or((hour, hour), |(first, last)| (first.min(hour), last.max(hour))),
                );
            }
            (CatalogueNames::Values(label, metric), CatalogueEntry::Series(info)) => {
                let value = info.series.label(label);
                let wanted = metric.is_none_or(|metric| metric == info.series.metric);
                if wanted
                    && !value.is_empty()
                    && question.contains(value)
                    && !self.values.contains(value)
                {
                    self.values.insert(value.to_owned());
                    if self.values.len() > question.limit {
                        self.values.pop_last();
                    }
                }
            }
            (CatalogueNames::Values(..), CatalogueEntry::Window(..)) => {}
        }
    }

    /// The metric of that name; none if it is not of the page.
    fn metric(&mut self, question: &CatalogueQuery<'_>, name: &str) -> Option<&mut NewMetric> {
        if !question.contains(name) {
            return None;
        }
        if !self.metrics.contains_key(name) {
            self.metrics.insert(name.to_owned(), NewMetric::default());
            if self.metrics.len() > question.limit {
                self.metrics.pop_last();
            }
        }
        self.metrics.get_mut(name)
    }

    /// Bytes it takes, rounded up.
    pub fn bytes(&self) -> usize {
        let name = |name: &String| NAME_BYTES + name.len();
        let metric = |(metric, new): (&String, &NewMetric)| {
            2 * NAME_BYTES + metric.len() + new.labels.iter().map(name).sum::<usize>()
        };
        self.metrics.iter().map(metric).sum::<usize>() + self.values.iter().map(name).sum::<usize>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::flush::SeriesInfo;
    use crate::model::series::{Series, SeriesId};

    fn info(metric: &str, labels: &[(&str, &str)]) -> SeriesInfo {
        let series = Series::new(
            "t",
            metric,
            labels.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())),
        );
        SeriesInfo { id: SeriesId::of_key(&series.key()), series }
    }

    #[test]
    fn a_page_holds_the_first_names_whatever_the_order() {
        let names = ["d", "b", "a", "c", "zz"];
        let mut question = CatalogueQuery {
            tenant: "t",
            names: CatalogueNames::Metrics,
            prefix: "",
            after: "a",
            limit: 2,
        };
        let mut growth = CatalogueGrowth::default();
        for name in names {
            growth.add(&question, CatalogueEntry::Series(&info(name, &[("page", name)])));
            growth.add(&question, CatalogueEntry::Window(name, Hour(7)));
        }
        assert_eq!(growth.metrics.keys().collect::<Vec<_>>(), ["b", "c"]);
        assert_eq!(growth.metrics["b"].hours, Some((Hour(7), Hour(7))));
        question = CatalogueQuery {
            names: CatalogueNames::Values("page", None),
            after: "",
            prefix: "z",
            ..question
        };
        let mut growth = CatalogueGrowth::default();
        names.iter().for_each(|name| {
            growth.add(&question, CatalogueEntry::Series(&info("m", &[("page", name)])))
        });
        assert_eq!(growth.values.iter().collect::<Vec<_>>(), ["zz"]);
        question = CatalogueQuery {
            names: CatalogueNames::Values("page", Some("other")),
            prefix: "",
            ..question
        };
        let mut growth = CatalogueGrowth::default();
        names.iter().for_each(|name| {
            growth.add(&question, CatalogueEntry::Series(&info("m", &[("page", name)])))
        });
        assert!(growth.values.is_empty() && growth.bytes() == 0);
    }
}
