//! The request and the answer for the names that shards add to the catalogue. Pure.

use serde::{Deserialize, Serialize};

use super::{ShardCheckpoint, WireFreshness};
use crate::actors::catalogue::{
    CatalogueGrowth, CatalogueNames, CatalogueQuery, MAX_NAMES, NewMetric,
};
use crate::model::CodecError;
use crate::model::generation::GenerationId;
use crate::model::window::Hour;

/// Asks for the names that some shards add to the catalogue.
#[allow(missing_docs, reason = "the names say it")]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CatalogueRequest {
    pub tenant: String,
    /// The label whose values are wanted, of one metric or of all. None asks for metric names.
    pub values: Option<(String, Option<String>)>,
    /// Only names that start with this.
    pub prefix: String,
    /// Only names greater than this one.
    pub after: String,
    /// Maximum number of names, in ascending order.
    pub limit: u64,
    /// The shards, each with the position to answer from.
    pub places: Vec<ShardCheckpoint>,
    /// Metrics, each with the number of a generation besides generation 0 that is served. Version
    /// 3 can only say that there are none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub others: Vec<(String, u64)>,
}

/// Most generations of metrics that one request names, above what anybody serves.
const MAX_OTHERS: usize = 32_768;

impl CatalogueRequest {
    /// The request for these shards.
    pub fn of(question: &CatalogueQuery<'_>, places: Vec<ShardCheckpoint>) -> Self {
        let values = match question.names {
            CatalogueNames::Metrics => None,
            CatalogueNames::Values(label, metric) => {
                Some((label.to_owned(), metric.map(str::to_owned)))
            }
        };
        let (prefix, after) = (question.prefix.to_owned(), question.after.to_owned());
        Self {
            tenant: question.tenant.to_owned(),
            values,
            prefix,
            after,
            limit: question.limit as u64,
            places,
            others: question.others.iter().map(|(of, id)| ((*of).to_owned(), id.0)).collect(),
        }
    }

    /// The generations that are served, in the terms of the catalogue.
    ///
    /// # Errors
    /// If they are too many.
    pub fn others(&self) -> Result<Vec<(&str, GenerationId)>, CodecError> {
        if self.others.len() > MAX_OTHERS {
            let why = format!("it names more than {MAX_OTHERS} generations");
            return Err(CodecError::new("question", why));
        }
        Ok(self.others.iter().map(|(metric, id)| (metric.as_str(), GenerationId(*id))).collect())
    }

    /// The query in the terms of the catalogue, with what [`CatalogueRequest::others`] returned.
    ///
    /// # Errors
    /// If it asks for more names than a reply may hold.
    pub fn query<'q>(
        &'q self,
        others: &'q [(&'q str, GenerationId)],
    ) -> Result<CatalogueQuery<'q>, CodecError> {
        let limit = usize::try_from(self.limit).unwrap_or(usize::MAX);
        if limit > MAX_NAMES {
            return Err(CodecError::new(
                "question",
                format!("it is for more than {MAX_NAMES} names"),
            ));
        }
        let names = match &self.values {
            None => CatalogueNames::Metrics,
            Some((label, metric)) => CatalogueNames::Values(label, metric.as_deref()),
        };
        Ok(CatalogueQuery {
            tenant: &self.tenant,
            names,
            prefix: &self.prefix,
            after: &self.after,
            limit,
            others,
        })
    }
}

/// The names that one shard adds to the catalogue.
#[allow(missing_docs, reason = "the names say it")]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CatalogueBody {
    /// How fresh the answer is.
    pub reach: WireFreshness,
    /// Ascending by name; empty if values were asked for.
    pub metrics: Vec<MetricRow>,
    /// Ascending; empty if metrics were asked for.
    pub values: Vec<String>,
}

/// What one shard adds to one metric.
#[allow(missing_docs, reason = "the names say it")]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MetricRow {
    pub metric: String,
    pub labels: Vec<String>,
    /// Number of series, without the overflow series.
    pub series: u64,
    /// Whether the shard has an overflow series that the store lacks.
    pub overflow: bool,
    /// First and last window; None if there are only series.
    pub hours: Option<(i32, i32)>,
}

impl CatalogueBody {
    /// The wire form of a shard's growth.
    pub fn of(reach: WireFreshness, growth: CatalogueGrowth) -> Self {
        let row = |(metric, new): (String, NewMetric)| MetricRow {
            metric,
            labels: new.labels.into_iter().collect(),
            series: new.series,
            overflow: new.overflow,
            hours: new.hours.map(|(first, last)| (first.0, last.0)),
        };
        Self {
            reach,
            metrics: growth.metrics.into_iter().map(row).collect(),
            values: growth.values.into_iter().collect(),
        }
    }

    /// The shard's growth, validated against the query.
    ///
    /// # Errors
    /// If it contains anything that was not asked for.
    pub fn growth(&self, question: &CatalogueQuery<'_>) -> Result<CatalogueGrowth, CodecError> {
        let foreign = |what: &str| {
            CodecError::new("catalogue", format!("it holds {what}, which was not asked for"))
        };
        let (count, alone) = match question.names {
            CatalogueNames::Metrics => (self.metrics.len(), self.values.is_empty()),
            CatalogueNames::Values(..) => (self.values.len(), self.metrics.is_empty()),
        };
        if count > question.limit || !alone {
            return Err(foreign("other names, or more of them"));
        }
        let mut names = self.metrics.iter().map(|row| &row.metric).chain(&self.values);
        if let Some(name) = names.find(|name| !question.contains(name)) {
            return Err(foreign(&format!("the name {name:?}")));
        }
        let new = |row: &MetricRow| NewMetric {
            labels: row.labels.iter().cloned().collect(),
            series: row.series,
            overflow: row.overflow,
            hours: row.hours.map(|(first, last)| (Hour(first), Hour(last))),
        };
        let metrics = self.metrics.iter().map(|row| (row.metric.clone(), new(row))).collect();
        Ok(CatalogueGrowth { metrics, values: self.values.iter().cloned().collect() })
    }
}
