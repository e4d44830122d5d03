//! Answers as data, which each edge renders in its own format. Pure.

use std::collections::BTreeMap;

use super::completeness::QueryCompleteness;
use super::groups::SeriesGroup;
use super::request::{Aggregate, QueryRequest};
use crate::actors::catalogue::{CatalogueNames, CatalogueQuery};
use crate::model::budget::{AbortReason, QueryBudget};
use crate::model::decimal::{Decimal, divide_half_even};
use crate::model::query_charge::QueryCharge;
use crate::model::rollup::Rollup;
use crate::model::window::Millis;
use crate::persistence::store::MetricInfo;

/// The answer to a query. Its memory stays charged to the query's budget until it is dropped.
#[allow(missing_docs, reason = "the names say it")]
#[derive(Debug)]
pub struct QueryOutput<'a> {
    pub request: &'a QueryRequest,
    /// In the requested order; points ascending. Buckets without events have no point.
    pub series: Vec<SeriesGroup>,
    pub completeness: QueryCompleteness,
    /// Length of each bucket in seconds by its start; filled only if a rate is requested.
    seconds: BTreeMap<Millis, i64>,
    charge: QueryCharge<'a>,
}

/// The value of one aggregate at one point.
#[allow(missing_docs, reason = "the names say it")]
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum FigureValue {
    /// A count of events or users.
    Whole(u64),
    Rate(f64),
    /// A sum or an average, in units of 10^-9.
    Units(i128),
    /// A minimum, maximum or quantile.
    Value(Decimal),
    /// No event of the bucket has a value.
    Absent,
}

impl<'a> QueryOutput<'a> {
    /// Builds an answer; its series must be those of the request.
    ///
    /// # Errors
    /// If a bucket ends beyond the calendar's range.
    pub fn new(
        request: &'a QueryRequest,
        series: Vec<SeriesGroup>,
        completeness: QueryCompleteness,
        charge: QueryCharge<'a>,
    ) -> Result<Self, String> {
        let mut seconds = BTreeMap::new();
        if request.aggregates.contains(&Aggregate::Rate) {
            for &(start, _) in series.iter().flat_map(|series| &series.points) {
                if let std::collections::btree_map::Entry::Vacant(unknown) = seconds.entry(start) {
                    let bucket = request.bucket(start)?;
                    unknown.insert((bucket.end - start) / 1_000);
                }
            }
        }
        Ok(Self { request, series, completeness, seconds, charge })
    }

    /// Number of points in all series.
    pub fn points(&self) -> usize {
        self.series.iter().map(|series| series.points.len()).sum()
    }

    /// Charges memory for rendering; returns why the query was aborted, if it was.
    pub fn charge(&mut self, bytes: usize) -> Option<AbortReason> {
        self.charge.add_bytes(bytes);
        self.charge.budget().abort_reason()
    }

    /// Computes the value of an aggregate for the point that starts at `start`.
    pub fn figure(&self, aggregate: Aggregate, start: Millis, rollup: &Rollup) -> FigureValue {
        let figures = &rollup.figures;
        match aggregate {
            Aggregate::Count => FigureValue::Whole(figures.count),
            Aggregate::Distinct => FigureValue::Whole(rollup.distinct.estimate()),
            Aggregate::Rate => {
                let seconds = self.seconds.get(&start).copied().unwrap_or(1);
                FigureValue::Rate(figures.count as f64 / seconds.max(1) as f64)
            }
            _ if figures.value_count == 0 => FigureValue::Absent,
            Aggregate::Sum => FigureValue::Units(figures.sum),
            Aggregate::Avg => {
                FigureValue::Units(divide_half_even(figures.sum, i128::from(figures.value_count)))
            }
            Aggregate::Min => figures.min.map_or(FigureValue::Absent, FigureValue::Value),
            Aggregate::Max => figures.max.map_or(FigureValue::Absent, FigureValue::Value),
            Aggregate::Quantile(q, _) => {
                rollup.quantile(q).map_or(FigureValue::Absent, FigureValue::Value)
            }
        }
    }
}

/// One page of a list of names.
#[allow(missing_docs, reason = "the names say it")]
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamePage<T> {
    /// In ascending order of their names.
    pub items: Vec<T>,
    /// The last name of this page, to pass as `after`; None on the last page.
    pub next: Option<String>,
    pub completeness: QueryCompleteness,
}

/// A page of a tenant's metrics.
pub type MetricsPage = NamePage<MetricInfo>;
/// A page of the values of a label.
pub type LabelValuesPage = NamePage<String>;

/// Which page of a list of names to return.
#[allow(missing_docs, reason = "the names say it")]
#[derive(Debug, Clone)]
pub struct PageRequest {
    /// Only names that start with this; all if empty.
    pub prefix: String,
    /// Only names greater than this one; all if empty.
    pub after: String,
    /// Maximum number of names on the page.
    pub limit: usize,
}

impl PageRequest {
    /// The range to read from the store: one more than the limit, to know whether there
    /// is a next page.
    pub(super) fn store_page<'b>(
        &'b self,
        budget: &'b QueryBudget,
    ) -> crate::persistence::store::NameRange<'b> {
        let (prefix, after) = (self.prefix.as_str(), self.after.as_str());
        crate::persistence::store::NameRange {
            prefix,
            after,
            limit: self.limit + 1,
            budget: Some(budget),
        }
    }

    /// The query for the shards that matches [`Self::store_page`].
    pub(super) fn catalogue_query<'b>(
        &'b self,
        tenant: &'b str,
        names: CatalogueNames<'b>,
    ) -> CatalogueQuery<'b> {
        CatalogueQuery {
            tenant,
            names,
            prefix: &self.prefix,
            after: &self.after,
            limit: self.limit + 1,
            others: &[],
        }
    }

    /// Truncates the list at the limit and sets `next` if there is more.
    pub(super) fn paginate<T>(
        &self,
        mut items: Vec<T>,
        completeness: QueryCompleteness,
        name: impl Fn(&T) -> &str,
    ) -> NamePage<T> {
        let more = items.len() > self.limit;
        items.truncate(self.limit);
        let next = items.last().filter(|_| more).map(|last| name(last).to_owned());
        NamePage { items, next, completeness }
    }
}
