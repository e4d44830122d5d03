//! A tenant's metrics: those in the store merged with those that shards have not flushed yet. Pure.

use std::collections::{BTreeMap, BTreeSet};

use crate::actors::catalogue::{CatalogueGrowth, CatalogueNames, CatalogueQuery};
use crate::model::generation::{GenerationId, Pointer};
use crate::model::generation_book::GenerationBook;
use crate::model::series::OVERFLOW_LABEL;
use crate::model::window::Hour;
use crate::persistence::store::MetricInfo;

/// The metrics of a tenant by name.
#[derive(Debug, Default)]
pub(super) struct MetricCatalogue {
    metrics: BTreeMap<String, MetricInfo>,
    /// Metrics whose overflow series has been counted. Every shard may admit it, but
    /// it is one series.
    overflow: BTreeSet<String>,
    /// The most series that a generation besides generation 0 has of a metric.
    others: BTreeMap<String, u64>,
}

/// The generations besides generation 0 that the tenant's pointers name of the metrics that a
/// query of the catalogue is about, by metric.
pub(super) fn other_generations<'b>(
    book: &'b GenerationBook,
    query: &CatalogueQuery<'_>,
) -> Vec<(&'b str, GenerationId)> {
    let is_asked = |metric: &str| match query.names {
        CatalogueNames::Metrics => query.contains(metric),
        CatalogueNames::Values(_, only) => only.is_none_or(|only| only == metric),
    };
    // Of a page of names, no later ones can be on it.
    let limit = match query.names {
        CatalogueNames::Metrics => query.limit,
        CatalogueNames::Values(..) => usize::MAX,
    };
    let generations = |pointer: &Pointer| -> BTreeSet<GenerationId> {
        pointer.pieces().iter().map(|piece| piece.generation).collect()
    };
    let asked = book.pointers(query.tenant).filter(|(metric, _)| is_asked(metric)).take(limit);
    asked
        .flat_map(|(metric, pointer)| {
            generations(pointer).into_iter().map(|generation| (metric.as_str(), generation))
        })
        .collect()
}

fn add_hours(metric: &mut MetricInfo, first: Option<Hour>, last: Option<Hour>) {
    metric.first = metric.first.into_iter().chain(first).min();
    metric.last = metric.last.into_iter().chain(last).max();
}

impl MetricCatalogue {
    /// Starts from what the store has.
    pub(super) fn stored(metrics: Vec<MetricInfo>) -> Self {
        let has_overflow =
            |info: &&MetricInfo| info.labels.iter().any(|label| label == OVERFLOW_LABEL.0);
        let overflow = metrics.iter().filter(has_overflow).map(|info| info.metric.clone());
        let overflow = overflow.collect();
        let metrics = metrics.into_iter().map(|info| (info.metric.clone(), info)).collect();
        Self { metrics, overflow, others: BTreeMap::new() }
    }

    /// Whether the first `limit` metrics of the store may hold this one: behind a full page only
    /// later ones come.
    pub(super) fn reaches(&self, metric: &str, limit: usize) -> bool {
        let last = self.metrics.last_key_value().map(|(last, _)| last.as_str());
        self.metrics.len() < limit || last.is_some_and(|last| metric <= last)
    }

    /// Unites a metric with what a generation besides generation 0 has of it. Labels and hours are
    /// united. How many series are in both is unknown, so the larger number of series counts.
    pub(super) fn unite(&mut self, info: MetricInfo) {
        let most = self.others.entry(info.metric.clone()).or_default();
        *most = info.series.max(*most);
        let Some(metric) = self.metrics.get_mut(&info.metric) else {
            self.metrics.insert(info.metric.clone(), MetricInfo { series: 0, ..info });
            return;
        };
        add_labels(metric, &info.labels);
        add_hours(metric, info.first, info.last);
    }

    /// Adds what a shard holds above its checkpoint.
    pub(super) fn add(&mut self, growth: &CatalogueGrowth) {
        for (name, new) in &growth.metrics {
            if !self.metrics.contains_key(name) {
                if new.series == 0 && !new.overflow {
                    // Only new hours of stored series: the store lists this metric on another page.
                    continue;
                }
                let none = MetricInfo {
                    metric: name.clone(),
                    labels: Vec::new(),
                    series: 0,
                    first: None,
                    last: None,
                };
                self.metrics.insert(name.clone(), none);
            }
            let Some(metric) = self.metrics.get_mut(name) else { continue };
            let overflows = new.overflow && self.overflow.insert(name.clone());
            metric.series += new.series + u64::from(overflows);
            add_labels(metric, &new.labels);
            let (first, last) = new.hours.unzip();
            add_hours(metric, first, last);
        }
    }

    pub(super) fn metrics(self) -> impl Iterator<Item = MetricInfo> {
        let others = self.others;
        self.metrics.into_values().map(move |info| {
            let most = others.get(&info.metric).copied().unwrap_or(0);
            MetricInfo { series: info.series.max(most), ..info }
        })
    }
}

fn add_labels<'l>(metric: &mut MetricInfo, labels: impl IntoIterator<Item = &'l String>) {
    for label in labels {
        if let Err(at) = metric.labels.binary_search(label) {
            metric.labels.insert(at, label.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::flush::SeriesInfo;
    use crate::model::series::{Series, SeriesId};
    use crate::shards::state::CatalogueEntry;

    fn info(metric: &str, labels: &[(&str, &str)]) -> SeriesInfo {
        let series = Series::new(
            "t",
            metric,
            labels.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())),
        );
        SeriesInfo { id: SeriesId::of_key(&series.key()), series }
    }

    #[test]
    fn what_shards_hold_is_united_with_what_is_stored() {
        let stored = MetricInfo {
            metric: "m".to_owned(),
            labels: vec!["b".to_owned()],
            series: 3,
            first: Some(Hour(5)),
            last: Some(Hour(7)),
        };
        let mut catalogue = MetricCatalogue::stored(vec![stored]);
        let question = CatalogueQuery {
            tenant: "t",
            names: CatalogueNames::Metrics,
            prefix: "",
            after: "",
            limit: 10,
            others: &[],
        };
        let overflow = info("m", &[OVERFLOW_LABEL]);
        let (mut one, mut other) = (CatalogueGrowth::default(), CatalogueGrowth::default());
        for series in
            [&info("m", &[("a", "x"), ("b", "y")]), &info("new", &[("c", "z")]), &overflow]
        {
            one.add(&question, CatalogueEntry::Series(series));
        }
        other.add(&question, CatalogueEntry::Series(&overflow));
        for (metric, hour) in [("m", 6), ("m", 9), ("new", 8), ("new", 2), ("elsewhere", 3)] {
            other.add(&question, CatalogueEntry::Window(metric, Hour(hour)));
        }
        catalogue.add(&one);
        catalogue.add(&other);
        let found: Vec<_> = catalogue
            .metrics()
            .map(|m| (m.metric, m.labels.concat(), m.series, m.first, m.last))
            .collect();
        let hours = |first, last| (Some(Hour(first)), Some(Hour(last)));
        let expected = |metric: &str, labels: &str, series, (first, last)| {
            (metric.to_owned(), labels.to_owned(), series, first, last)
        };
        assert_eq!(
            found,
            [expected("m", "__overflow__ab", 5, hours(5, 9)), expected("new", "c", 1, hours(2, 8))]
        );
    }
}
