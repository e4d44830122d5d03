//! What shards hold that the store's catalogue lacks, summarised for one query: names and counts,
//! never individual series. Pure.

use std::collections::{BTreeMap, BTreeSet};

use crate::model::generation::GenerationId;
use crate::model::series::Series;
use crate::model::window::Hour;
use crate::shards::state::CatalogueEntry;

/// Most names in one answer. Nodes refuse requests of other nodes for more.
pub const MAX_NAMES: usize = 10_001;

/// Which names a query asks for.
#[allow(missing_docs, reason = "the name says it")]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CatalogueNames<'a> {
    Metrics,
    /// Values of a label, of one metric or, if `None`, of all metrics.
    Values(&'a str, Option<&'a str>),
}

/// A page of a tenant's names: the first `limit` names after `after` (exclusive)
/// that start with `prefix`.
#[allow(missing_docs, reason = "the names say it")]
#[derive(Debug, Clone, Copy)]
pub struct CatalogueQuery<'a> {
    pub tenant: &'a str,
    pub names: CatalogueNames<'a>,
    pub prefix: &'a str,
    pub after: &'a str,
    pub limit: usize,
    /// Metrics of the page, each with a generation besides generation 0 that is served on some of
    /// its days. Of other generations nothing may be shown.
    pub others: &'a [(&'a str, GenerationId)],
}

impl CatalogueQuery<'_> {
    /// Whether a name belongs to the page, limit aside.
    pub fn contains(&self, name: &str) -> bool {
        name > self.after && name.starts_with(self.prefix)
    }

    /// Whether a generation besides generation 0 is served on some days of a metric.
    pub fn is_served(&self, metric: &str, generation: GenerationId) -> bool {
        self.others.contains(&(metric, generation))
    }
}

/// What a shard adds to a metric.
#[allow(missing_docs, reason = "the name says it")]
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NewMetric {
    pub labels: BTreeSet<String>,
    /// Number of new series of generation 0, overflow series excluded. What other generations add
    /// may be the same series.
    pub series: u64,
    /// Whether the overflow series of generation 0 is new.
    pub overflow: bool,
    /// First and last hour with data (inclusive).
    pub hours: Option<(Hour, Hour)>,
}

impl NewMetric {
    fn add_labels(&mut self, series: &Series) {
        for (name, _) in &series.labels {
            // Looked up first, because most labels are known and a clone allocates.
            if !self.labels.contains(name) {
                self.labels.insert(name.clone());
            }
        }
    }
}

/// What a shard adds to a page of names.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CatalogueGrowth {
    /// By name, when metrics are asked for.
    pub metrics: BTreeMap<String, NewMetric>,
    /// When label values are asked for.
    pub values: BTreeSet<String>,
}

/// Upper bound of a name's bytes without its text, on the wire and in memory.
const NAME_BYTES: usize = 48;

impl CatalogueGrowth {
    /// Adds one entry of the shard if the query asks for it.
    pub fn add(&mut self, query: &CatalogueQuery<'_>, entry: CatalogueEntry<'_>) {
        match (query.names, entry) {
            (_, CatalogueEntry::Other(generation, info))
                if !query.is_served(&info.series.metric, generation) => {}
            (CatalogueNames::Metrics, CatalogueEntry::Series(info)) => {
                let series = &info.series;
                let Some(metric) = self.metric(query, &series.metric) else { return };
                if series.is_overflow() {
                    metric.overflow = true;
                } else {
                    metric.series += 1;
                }
                metric.add_labels(series);
            }
            (CatalogueNames::Metrics, CatalogueEntry::Other(_, info)) => {
                if let Some(metric) = self.metric(query, &info.series.metric) {
                    metric.add_labels(&info.series);
                }
            }
            (CatalogueNames::Metrics, CatalogueEntry::Window(metric, hour)) => {
                let Some(metric) = self.metric(query, metric) else { return };
                metric.hours = Some(
                    metric
                        .hours
                        .map_or((hour, hour), |(first, last)| (first.min(hour), last.max(hour))),
                );
            }
            (
                CatalogueNames::Values(label, metric),
                CatalogueEntry::Series(info) | CatalogueEntry::Other(_, info),
            ) => {
                let value = info.series.label(label);
                let wanted = metric.is_none_or(|metric| metric == info.series.metric);
                if wanted
                    && !value.is_empty()
                    && query.contains(value)
                    && !self.values.contains(value)
                {
                    self.values.insert(value.to_owned());
                    // The page needs only the first names, so the last one can go: memory
                    // stays within the limit.
                    if self.values.len() > query.limit {
                        self.values.pop_last();
                    }
                }
            }
            (CatalogueNames::Values(..), CatalogueEntry::Window(..)) => {}
        }
    }

    /// The entry of a metric; `None` if its name is not on the page.
    fn metric(&mut self, query: &CatalogueQuery<'_>, name: &str) -> Option<&mut NewMetric> {
        if !query.contains(name) {
            return None;
        }
        if !self.metrics.contains_key(name) {
            self.metrics.insert(name.to_owned(), NewMetric::default());
            if self.metrics.len() > query.limit {
                self.metrics.pop_last();
            }
        }
        // `None` if the new name itself was the one beyond the limit.
        self.metrics.get_mut(name)
    }

    /// Upper bound of the bytes it takes.
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
        let mut query = CatalogueQuery {
            tenant: "t",
            names: CatalogueNames::Metrics,
            prefix: "",
            after: "a",
            limit: 2,
            others: &[],
        };
        let mut growth = CatalogueGrowth::default();
        for name in names {
            growth.add(&query, CatalogueEntry::Series(&info(name, &[("page", name)])));
            growth.add(&query, CatalogueEntry::Window(name, Hour(7)));
        }
        assert_eq!(growth.metrics.keys().collect::<Vec<_>>(), ["b", "c"]);
        assert_eq!(growth.metrics["b"].hours, Some((Hour(7), Hour(7))));
        query = CatalogueQuery {
            names: CatalogueNames::Values("page", None),
            after: "",
            prefix: "z",
            ..query
        };
        let mut growth = CatalogueGrowth::default();
        names.iter().for_each(|name| {
            growth.add(&query, CatalogueEntry::Series(&info("m", &[("page", name)])))
        });
        assert_eq!(growth.values.iter().collect::<Vec<_>>(), ["zz"]);
        query = CatalogueQuery {
            names: CatalogueNames::Values("page", Some("other")),
            prefix: "",
            ..query
        };
        let mut growth = CatalogueGrowth::default();
        names.iter().for_each(|name| {
            growth.add(&query, CatalogueEntry::Series(&info("m", &[("page", name)])))
        });
        assert!(growth.values.is_empty() && growth.bytes() == 0);
    }
}
