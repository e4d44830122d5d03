//! Compares the catalogue with what the keys of the series say.

use std::collections::{BTreeMap, HashMap};
use std::hash::BuildHasher;

use foldhash::fast::FixedState;

use super::rollups::for_each_hour;
use super::{DamageCollector, StoreError, TableReader, number};
use crate::model::series::{Series, SeriesId};

#[derive(Default)]
struct MetricTally {
    tenant: String,
    name: String,
    counted: i64,
    hours: (Option<i64>, Option<i64>),
    series: i64,
    seen: (Option<i64>, Option<i64>),
}

impl MetricTally {
    fn span_holds_rows(&self) -> bool {
        let Some((first, last)) = self.seen.0.zip(self.seen.1) else { return true };
        self.hours.0.is_some_and(|from| from <= first) && self.hours.1.is_some_and(|to| last <= to)
    }
}

/// A digest of the labels of a series, independent of their order: the wrapping sum of their
/// hashes, and their number.
type LabelDigest = (u64, u64);

fn add_label(labels: &mut LabelDigest, metric_no: i64, name: &str, value: &str) {
    // A fixed seed, because both sides of the comparison have to hash alike.
    let hash = FixedState::with_seed(7).hash_one((metric_no, name, value));
    *labels = (labels.0.wrapping_add(hash), labels.1 + 1);
}

/// Compares tenants, metrics and the label index with what the keys of the series say.
pub(super) fn catalogue(
    tables: &mut dyn TableReader,
    found: &mut DamageCollector<'_>,
) -> Result<(), StoreError> {
    // A key names tenant, metric and labels, so the other tables are checked against it.
    let mut metrics = metrics(tables, found)?;
    let mut expected: HashMap<i64, LabelDigest> = HashMap::new();
    tables.for_each_row("SELECT no, metric_no, id, key FROM series", &mut |row| {
        let (no, metric_no) = (number(row, 0)?, number(row, 1)?);
        let (id, key) = (row.bytes(2)?, row.bytes(3)?);
        if SeriesId::of_key(&key).0[..] != id[..] {
            found.add("series", format!("series {no}: its id is not that of its key"));
        }
        let Ok(series) = Series::from_key(&key) else {
            found.add("series", format!("series {no}: its key does not decode"));
            return Ok(());
        };
        match metrics.get_mut(&metric_no) {
            Some(metric) if metric.tenant == series.tenant && metric.name == series.metric => {
                metric.series += 1
            }
            Some(metric) => {
                let (tenant, name) = (&metric.tenant, &metric.name);
                let why = format!(
                    "series {no}: it is of {}/{}, and stands under {tenant}/{name}",
                    series.tenant, series.metric
                );
                found.add("metrics", why);
                metric.series += 1;
            }
            None => found.add("metrics", format!("series {no}: there is no metric {metric_no}")),
        }
        let labels = expected.entry(no).or_default();
        series.labels.iter().for_each(|(name, value)| add_label(labels, metric_no, name, value));
        Ok(())
    })?;
    for metric in metrics.values().filter(|metric| metric.series != metric.counted) {
        let MetricTally { tenant, name, counted, series, .. } = metric;
        found.add(
            "metrics",
            format!("{tenant}/{name}: series_count is {counted}, and there are {series}"),
        );
    }
    let wide = tables.metrics_with_wide_spans()?;
    let is_wrong = |(no, metric): &(&i64, &MetricTally)| match wide.contains(no) {
        true => !metric.span_holds_rows(),
        false => metric.hours != metric.seen,
    };
    for (_, metric) in metrics.iter().filter(is_wrong) {
        let MetricTally { tenant, name, hours, seen, .. } = metric;
        let why = match seen.0 {
            None => format!(
                "{tenant}/{name}: it should have rollups from hour {:?} to {:?}, and has none",
                hours.0, hours.1
            ),
            Some(_) => format!(
                "{tenant}/{name}: first_hour and last_hour are {hours:?}, the rollups are of \
                 {seen:?}"
            ),
        };
        found.add("metrics", why);
    }
    labels(tables, expected, found)
}

fn metrics(
    tables: &mut dyn TableReader,
    found: &mut DamageCollector<'_>,
) -> Result<BTreeMap<i64, MetricTally>, StoreError> {
    let mut tenants: HashMap<i64, String> = HashMap::new();
    tables.for_each_row("SELECT no, name FROM tenants", &mut |row| {
        tenants.insert(number(row, 0)?, row.text(1)?.to_owned());
        Ok(())
    })?;
    let mut metrics = BTreeMap::new();
    tables.for_each_row(
        "SELECT no, tenant_no, name, series_count, first_hour, last_hour FROM metrics",
        &mut |row| {
            let (no, tenant_no) = (number(row, 0)?, number(row, 1)?);
            let Some(tenant) = tenants.get(&tenant_no) else {
                found.add("tenants", format!("metric {no}: there is no tenant {tenant_no}"));
                return Ok(());
            };
            let (name, counted, hours) =
                (row.text(2)?.to_owned(), number(row, 3)?, (row.int(4)?, row.int(5)?));
            metrics.insert(
                no,
                MetricTally {
                    tenant: tenant.clone(),
                    name,
                    counted,
                    hours,
                    ..MetricTally::default()
                },
            );
            Ok(())
        },
    )?;
    for_each_hour(tables, &mut |metric_no, hour| match metrics.get_mut(&metric_no) {
        Some(MetricTally { seen, .. }) => {
            *seen = (
                Some(seen.0.map_or(hour, |first| first.min(hour))),
                Some(seen.1.map_or(hour, |last| last.max(hour))),
            );
        }
        None => found.add(
            "metrics",
            format!("there are rollups of metric {metric_no} in hour {hour}, and no such metric"),
        ),
    })?;
    Ok(metrics)
}

fn labels(
    tables: &mut dyn TableReader,
    expected: HashMap<i64, LabelDigest>,
    found: &mut DamageCollector<'_>,
) -> Result<(), StoreError> {
    let mut indexed: HashMap<i64, LabelDigest> = HashMap::new();
    // LEFT JOIN, so that a label without its pair is reported and not dropped.
    let sql = "SELECT l.series_no, l.pair_no, p.metric_no, coalesce(p.name, ''), \
               coalesce(p.value, '') FROM series_labels l
        LEFT JOIN label_pairs p ON p.no = l.pair_no";
    tables.for_each_row(sql, &mut |row| {
        let series = number(row, 0)?;
        match row.int(2)? {
            None => found.add(
                "label_pairs",
                format!("series {series}: there is no label {}", number(row, 1)?),
            ),
            Some(metric_no) => {
                add_label(indexed.entry(series).or_default(), metric_no, row.text(3)?, row.text(4)?)
            }
        }
        Ok(())
    })?;
    for (series, labels) in &expected {
        if indexed.remove(series).unwrap_or_default() != *labels {
            found.add(
                "label_pairs",
                format!("series {series}: the index of labels has others than its key"),
            );
        }
    }
    for series in indexed.keys() {
        found.add(
            "series_labels",
            format!("there are labels of series {series}, and no such series"),
        );
    }
    let sql = "SELECT p.no FROM label_pairs p WHERE NOT EXISTS (SELECT 1 FROM series_labels l \
               WHERE l.pair_no = p.no)";
    tables.for_each_row(sql, &mut |row| {
        found.add("label_pairs", format!("no series has label {}", number(row, 0)?));
        Ok(())
    })
}
