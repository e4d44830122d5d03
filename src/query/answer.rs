//! Answers as data: what a query found, from which any edge renders its own form. Pure.

use std::collections::BTreeMap;

use super::charge::QueryCharge;
use super::completeness::QueryCompleteness;
use super::groups::SeriesGroup;
use super::request::{Aggregate, QueryRequest};
use crate::actors::catalogue::{CatalogueNames, CatalogueQuery};
use crate::model::budget::{AbortReason, QueryBudget};
use crate::model::decimal::{Decimal, divide_half_even};
use crate::model::rollup::Rollup;
use crate::model::window::Millis;
use crate::persistence::store::MetricInfo;

/// What a query found. What it holds stays charged to the query's budget until it is dropped.
#[derive(Debug)]
pub struct QueryOutput<'a> {
    /// What was asked.
    pub request: &'a QueryRequest,
    /// The series, in the order asked for; points ascending, those without events absent.
    pub series: Vec<SeriesGroup>,
    /// How much of the truth it is.
    pub completeness: QueryCompleteness,
    /// Seconds of each bucket, if they are asked for.
    seconds: BTreeMap<Millis, i64>,
    charge: QueryCharge<'a>,
}

/// One figure of a point.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum FigureValue {
    /// A number of events or users.
    Whole(u64),
    /// Events a second.
    Rate(f64),
    /// A sum or an average, in units of 10^-9.
    Units(i128),
    /// A value.
    Value(Decimal),
    /// No event of the bucket has a value.
    Absent,
}

impl<'a> QueryOutput<'a> {
    /// An answer; its buckets are those of the request.
    ///
    /// # Errors
    /// If a bucket has no end in the calendar.
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

    /// Points of all series.
    pub fn points(&self) -> usize {
        self.series.iter().map(|series| series.points.len()).sum()
    }

    /// Charges memory that is made of the answer; why the query has ended, if it has.
    pub fn charge(&mut self, bytes: usize) -> Option<AbortReason> {
        self.charge.add_bytes(bytes);
        self.charge.budget().abort_reason()
    }

    /// One figure of a point of this answer.
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

/// One page of a long list of names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamePage<T> {
    /// What the page holds, ascending by name.
    pub items: Vec<T>,
    /// The last name of the page, if there are more.
    pub next: Option<String>,
    /// How much of the truth it is.
    pub completeness: QueryCompleteness,
}

/// A page of the metrics.
pub type MetricsPage = NamePage<MetricInfo>;
/// A page of the values of a label.
pub type LabelValuesPage = NamePage<String>;

/// Which page of a list.
#[derive(Debug, Clone)]
pub struct PageRequest {
    /// Names that begin with this.
    pub prefix: String,
    /// Names behind this one.
    pub after: String,
    /// At most so many.
    pub limit: usize,
}

impl PageRequest {
    /// What is asked of the store: one more than the limit, to know whether there are more.
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

    /// What is asked of the shards, to go with [`Self::store_page`].
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
        }
    }

    /// Cuts the list at the limit.
    pub(super) fn into_page<T>(
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
