//! Cache of query results per complete UTC day, keyed by generation and revision.
//!
//! A flush changes the revision of every (tenant, metric, generation, UTC day) that it writes, in
//! its own transaction, and a query reads the revisions in its own snapshot. A part is found under its
//! revision only, so it is never stale: a late event makes it unreachable. Live deltas are merged
//! afterwards and never cached. LRU eviction. Behind the cache of the process there may be one that
//! nodes share; whatever that loses is read from the store again.

use std::sync::Arc;

use super::groups::{DayPart, SeriesGroup};
use super::part::{DayRevision, PartName, PartSource};
use crate::model::generation::GenerationId;
use crate::persistence::cache::SharedCache;
use crate::telemetry;

/// Bytes of a point without its sketches, and of a group without its points.
const OVERHEAD: usize = 160;
/// Days per request to the shared cache.
const BATCH: usize = 16;

#[derive(Debug, PartialEq, Eq, Hash)]
struct CacheKey {
    tenant: String,
    query: String,
    generation: GenerationId,
    day: i32,
    revision: u64,
}

/// The result of one day, shared between the cache and running queries.
pub(super) type CachedPart = Arc<DayPart>;

/// The day cache of an engine. Does nothing if its capacity is 0.
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
    /// A cache of `bytes` capacity in front of the `shared` one; 0 turns both off.
    pub(super) fn new(bytes: u64, shared: Option<Arc<dyn SharedCache>>) -> Self {
        let weigher = |key: &CacheKey, part: &CachedPart| {
            u32::try_from(weight(part) + key.tenant.len() + key.query.len()).unwrap_or(u32::MAX)
        };
        let local = (bytes > 0)
            .then(|| moka::sync::Cache::builder().max_capacity(bytes).weigher(weigher).build());
        Self { shared: shared.filter(|_| local.is_some()), local }
    }

    /// Looks up days in order.
    pub(super) fn look_up<'a>(
        &'a self,
        of: PartSource<'a>,
        days: &'a [DayRevision],
    ) -> DayLookup<'a> {
        DayLookup { cache: self, of, days, found: Vec::new().into_iter() }
    }

    /// Stores the result of a day in both caches.
    pub(super) fn put(&self, of: PartSource<'_>, day: DayRevision, part: CachedPart) {
        if let Some(shared) = &self.shared {
            let name = PartName::new(of, day);
            shared.put(name.public(), name.encode(&part));
        }
        self.insert_local(of, day, part);
    }

    fn insert_local(&self, of: PartSource<'_>, day: DayRevision, part: CachedPart) {
        if let Some(local) = &self.local {
            local.insert(key(of, day), part);
        }
    }

    fn get_local(&self, of: PartSource<'_>, day: DayRevision) -> Option<CachedPart> {
        let found = self.local.as_ref()?.get(&key(of, day));
        let outcome = if found.is_some() { "hit" } else { "miss" };
        metrics::counter!(telemetry::QUERY_CACHE, "outcome" => outcome).increment(1);
        found
    }

    /// The cached parts of `days`: from the process first, then the misses in one request to the
    /// shared cache. Revision 0 means the day has no rows and nothing to look up.
    fn get_batch(&self, of: PartSource<'_>, days: &[DayRevision]) -> Vec<Option<CachedPart>> {
        let local = |day: &DayRevision| if day.1 == 0 { None } else { self.get_local(of, *day) };
        let mut found: Vec<Option<CachedPart>> = days.iter().map(local).collect();
        let Some(shared) = &self.shared else { return found };
        let missing: Vec<usize> =
            (0..days.len()).filter(|at| days[*at].1 > 0 && found[*at].is_none()).collect();
        if missing.is_empty() {
            return found;
        }
        let names: Vec<PartName> = missing.iter().map(|at| PartName::new(of, days[*at])).collect();
        let answers = shared.get(&names.iter().map(PartName::public).collect::<Vec<_>>());
        for ((at, name), bytes) in missing.into_iter().zip(&names).zip(answers) {
            let decoded = bytes.map(|bytes| name.decode(&bytes));
            let outcome = match &decoded {
                None => "miss",
                Some(Ok(_)) => "hit",
                Some(Err(_)) => "invalid",
            };
            metrics::counter!(telemetry::QUERY_SECOND_CACHE, "outcome" => outcome).increment(1);
            // Damaged or foreign bytes are a miss: the day is read from the store and written
            // again.
            if let Some(Ok(part)) = decoded {
                let part = Arc::new(part);
                self.insert_local(of, days[at], part.clone());
                found[at] = Some(part);
            }
        }
        found
    }
}

/// Looks up days in batches: a long range needs few requests to the shared cache, and its parts are
/// not all in memory at once.
pub(super) struct DayLookup<'a> {
    cache: &'a DayCache,
    of: PartSource<'a>,
    days: &'a [DayRevision],
    found: std::vec::IntoIter<Option<CachedPart>>,
}

impl DayLookup<'_> {
    /// The part of the next day; None if it is not cached.
    pub(super) fn next_part(&mut self) -> Option<CachedPart> {
        if self.found.len() == 0 {
            let (now, later) = self.days.split_at(self.days.len().min(BATCH));
            self.days = later;
            self.found = self.cache.get_batch(self.of, now).into_iter();
        }
        self.found.next().flatten()
    }
}

fn key(of: PartSource<'_>, (day, revision): DayRevision) -> CacheKey {
    let (tenant, query) = (of.tenant.to_owned(), of.request.cache_key.clone());
    CacheKey { tenant, query, generation: of.generation, day, revision }
}
