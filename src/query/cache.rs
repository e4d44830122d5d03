//! Parts of answers over whole days that lie behind, kept by revision.
//!
//! The flush moves the revision of every (tenant, metric, UTC day) that it writes, in its
//! transaction, and a query reads the revisions in its own snapshot. A part is found under its
//! revision only, so it is never stale: a late event makes it unreachable, whenever it comes. Live
//! deltas are merged afterwards and never kept. What does not fit is forgotten, least recently used
//! first. Behind the cache of the process there may be a second one that the nodes share; what it
//! loses is only read again.

use std::sync::Arc;

use super::groups::{DayPart, SeriesGroup};
use super::part::PartName;
use super::request::QueryRequest;
use crate::persistence::cache::SharedCache;
use crate::telemetry;

/// Bytes of a point beside its sketches, and of a group beside its points.
const OVERHEAD: usize = 160;
/// Days that are asked of the second cache at once.
const BATCH: usize = 16;

#[derive(Debug, PartialEq, Eq, Hash)]
struct CacheKey {
    tenant: String,
    query: String,
    day: i32,
    revision: u64,
}

/// A part of an answer.
pub(super) type CachedPart = Arc<DayPart>;

/// The cache of an engine; none if it may hold nothing.
pub(super) struct DayCache {
    local: Option<moka::sync::Cache<CacheKey, CachedPart>>,
    shared: Option<Arc<dyn SharedCache>>,
}

fn weight(part: &DayPart) -> usize {
    let point = |(_, rollup): &(i64, crate::model::rollup::Rollup)| {
        OVERHEAD + rollup.distinct.heap_bytes() + rollup.quantiles.heap_bytes()
    };
    let group = |group: &SeriesGroup| {
        OVERHEAD
            + group.key.iter().map(|value| value.len() + 24).sum::<usize>()
            + group.points.iter().map(point).sum::<usize>()
    };
    OVERHEAD + part.groups.iter().map(group).sum::<usize>()
}

impl DayCache {
    /// A cache of so many bytes, with a second one behind it if there is one; 0 turns both off.
    pub(super) fn new(bytes: u64, second: Option<Arc<dyn SharedCache>>) -> Self {
        let weigher = |key: &CacheKey, part: &CachedPart| {
            u32::try_from(weight(part) + key.tenant.len() + key.query.len()).unwrap_or(u32::MAX)
        };
        let first = (bytes > 0)
            .then(|| moka::sync::Cache::builder().max_capacity(bytes).weigher(weigher).build());
        Self { shared: second.filter(|_| first.is_some()), local: first }
    }

    /// Looks up the parts of days, in their order.
    pub(super) fn look_up<'a>(
        &'a self,
        tenant: &'a str,
        request: &'a QueryRequest,
        days: &'a [(i32, u64)],
    ) -> DayLookup<'a> {
        DayLookup { cache: self, tenant, request, days, found: Vec::new().into_iter() }
    }

    /// Keeps the part of a day.
    pub(super) fn put(
        &self,
        tenant: &str,
        request: &QueryRequest,
        day: i32,
        revision: u64,
        part: CachedPart,
    ) {
        if let Some(second) = &self.shared {
            let name = PartName::new(tenant, request, day, revision);
            second.put(name.public(), name.encode(&part));
        }
        self.insert_local(tenant, request, day, revision, part);
    }

    fn insert_local(
        &self,
        tenant: &str,
        request: &QueryRequest,
        day: i32,
        revision: u64,
        part: CachedPart,
    ) {
        if let Some(first) = &self.local {
            first.insert(key(tenant, request, day, revision), part);
        }
    }

    fn get_local(
        &self,
        tenant: &str,
        request: &QueryRequest,
        day: i32,
        revision: u64,
    ) -> Option<CachedPart> {
        let found = self.local.as_ref()?.get(&key(tenant, request, day, revision));
        metrics::counter!(telemetry::QUERY_CACHE, "outcome" => if found.is_some() { "hit" } else { "miss" }).increment(1);
        found
    }

    /// The parts of days, by day: first in the process, then the rest together in the second cache.
    /// Days of revision 0 have none.
    fn get_batch(
        &self,
        tenant: &str,
        request: &QueryRequest,
        days: &[(i32, u64)],
    ) -> Vec<Option<CachedPart>> {
        let first = |(day, revision): &(i32, u64)| {
            if *revision == 0 { None } else { self.get_local(tenant, request, *day, *revision) }
        };
        let mut found: Vec<Option<CachedPart>> = days.iter().map(first).collect();
        let Some(second) = &self.shared else { return found };
        let missing: Vec<usize> =
            (0..days.len()).filter(|at| days[*at].1 > 0 && found[*at].is_none()).collect();
        if missing.is_empty() {
            return found;
        }
        let names: Vec<PartName> = missing
            .iter()
            .map(|at| PartName::new(tenant, request, days[*at].0, days[*at].1))
            .collect();
        let answers = second.get(&names.iter().map(PartName::public).collect::<Vec<_>>());
        for ((at, name), bytes) in missing.into_iter().zip(&names).zip(answers) {
            let decoded = bytes.map(|bytes| name.decode(&bytes));
            let outcome = match &decoded {
                None => "miss",
                Some(Ok(_)) => "hit",
                Some(Err(_)) => "invalid",
            };
            metrics::counter!(telemetry::QUERY_SECOND_CACHE, "outcome" => outcome).increment(1);
            if let Some(Ok(part)) = decoded {
                let part = Arc::new(part);
                self.insert_local(tenant, request, days[at].0, days[at].1, part.clone());
                found[at] = Some(part);
            }
        }
        found
    }
}

/// The parts of days, looked up a few days ahead, so that a long range neither asks day by day nor
/// holds everything at once.
pub(super) struct DayLookup<'a> {
    cache: &'a DayCache,
    tenant: &'a str,
    request: &'a QueryRequest,
    days: &'a [(i32, u64)],
    found: std::vec::IntoIter<Option<CachedPart>>,
}

impl DayLookup<'_> {
    /// The part of the next day, if it is kept.
    pub(super) fn next_part(&mut self) -> Option<CachedPart> {
        if self.found.len() == 0 {
            let (now, later) = self.days.split_at(self.days.len().min(BATCH));
            self.days = later;
            self.found = self.cache.get_batch(self.tenant, self.request, now).into_iter();
        }
        self.found.next().flatten()
    }
}

fn key(tenant: &str, request: &QueryRequest, day: i32, revision: u64) -> CacheKey {
    CacheKey { tenant: tenant.to_owned(), query: request.cache_key.clone(), day, revision }
}
