//! Admission of series: beyond a tenant's limit, events go to the overflow series of their metric;
//! beyond its limit of metric names, to the overflow series of the tenant.
//!
//! The limits decide, and the offset of each admission is stored with the series. Recomputing obeys
//! what was stored, whatever the limits are by then; so does a shard that folds archived records
//! once more, because their objects say what it admitted there.
//!
//! The overflow series of a metric may be written by several shards, and the catalogue notes only
//! one of them: it says nothing about what a shard decided. So from the first name on that a shard
//! refuses a tenant, it uses overflow series of its own for that tenant, whose admissions tell
//! refused names from those that only have no room for a further series ([`Admission::overflow`]).

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use foldhash::fast::FixedState;
use hashbrown::{HashMap, HashSet};

use crate::model::offset::{Offset, ShardId};
use crate::model::series::{Series, SeriesId, metric_hash};

/// The metric names of each tenant, as far as this process knows: those of the catalogue, and those
/// that its shards let in since.
///
/// Names are only ever added, so a name that was refused once is refused for the life of the
/// process, unless another one let it in.
#[derive(Debug)]
pub struct Census {
    limit: usize,
    names: Mutex<HashMap<String, HashSet<u64, FixedState>, FixedState>>,
}

impl Census {
    /// At most so many names for each tenant.
    pub fn new(limit: usize) -> Arc<Self> {
        Arc::new(Self { limit, names: Mutex::default() })
    }

    fn names(&self) -> MutexGuard<'_, HashMap<String, HashSet<u64, FixedState>, FixedState>> {
        // Sets of numbers: an insertion that panicked left nothing half done that matters.
        self.names.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Learns names that the catalogue has, whatever the limit.
    pub fn learn(&self, catalogue: &[(String, String)]) {
        let mut names = self.names();
        for (tenant, metric) in catalogue {
            names.entry_ref(tenant.as_str()).or_default().insert(metric_hash(tenant, metric));
        }
    }

    /// Whether the tenant may use the name, which it does from now on.
    pub fn admits(&self, tenant: &str, metric: &str) -> bool {
        let hash = metric_hash(tenant, metric);
        let mut names = self.names();
        let known = names.entry_ref(tenant).or_default();
        if known.contains(&hash) {
            return true;
        }
        known.len() < self.limit && known.insert(hash)
    }

    /// How many names each tenant may use, and how many this one does.
    pub fn usage(&self, tenant: &str) -> (usize, usize) {
        (self.limit, self.names().get(tenant).map_or(0, HashSet::len))
    }
}

/// The series that this shard has admitted.
#[derive(Debug)]
pub struct Admission {
    shard: ShardId,
    admitted: HashMap<SeriesId, Offset, FixedState>,
    rule: Rule,
}

#[derive(Debug)]
enum Rule {
    /// Series of one tenant, at most, and names; below an offset, what was decided before.
    Limit {
        limit: u64,
        counts: HashMap<String, u64, FixedState>,
        decided: Decided,
        census: Option<Arc<Census>>,
        /// The last record of which an event went to the overflow series that shards share.
        shared_at: Option<Offset>,
    },
    /// Nothing is admitted that was not then.
    Recorded,
}

/// What was admitted in records that are folded once more.
#[derive(Debug, Default)]
struct Decided {
    below: Offset,
    pending: HashMap<SeriesId, Offset, FixedState>,
}

impl Admission {
    /// What the catalogue knows, by tenant, under a limit per tenant; names have no limit.
    pub fn limited(limit: u64, catalogue: Vec<(String, Vec<SeriesId>)>) -> Self {
        let mut counts = HashMap::default();
        let mut admitted = HashMap::default();
        for (tenant, ids) in catalogue {
            counts.insert(tenant, ids.len() as u64);
            // Whatever the catalogue knows was admitted below the checkpoint.
            admitted.extend(ids.into_iter().map(|id| (id, 0)));
        }
        let rule = Rule::Limit {
            limit,
            counts,
            decided: Decided::default(),
            census: None,
            shared_at: None,
        };
        Self { shard: ShardId(0), admitted, rule }
    }

    /// As it was: each series from the offset on at which it was admitted.
    pub fn recorded(admissions: Vec<(SeriesId, Offset)>) -> Self {
        Self { shard: ShardId(0), admitted: admissions.into_iter().collect(), rule: Rule::Recorded }
    }

    /// Of which shard.
    #[must_use]
    pub fn of_shard(self, shard: ShardId) -> Self {
        Self { shard, ..self }
    }

    /// Under a limit of names, too.
    #[must_use]
    pub fn with_census(mut self, names: Arc<Census>) -> Self {
        if let Rule::Limit { census, .. } = &mut self.rule {
            *census = Some(names);
        }
        self
    }

    /// Learns what was admitted in records below `to` that are folded once more: there, nothing
    /// else is.
    pub fn learn(&mut self, admissions: &[(SeriesId, Offset)], to: Offset) {
        if let Rule::Limit { decided, .. } = &mut self.rule {
            decided.below = decided.below.max(to);
            decided.pending.extend(
                admissions.iter().filter(|(id, _)| !self.admitted.contains_key(id)).copied(),
            );
        }
    }

    /// Whether the series is admitted at the offset.
    pub fn knows(&self, id: SeriesId, offset: Offset) -> bool {
        self.admitted.get(&id).is_some_and(|&from| from <= offset)
    }

    /// As [`Admission::knows`], or it was admitted there by then and its event only comes now.
    fn was_admitted(&self, series: &Series, offset: Offset) -> bool {
        let id = SeriesId::of_key(&series.key());
        let pending = |from: &Offset| *from <= offset;
        self.knows(id, offset)
            || matches!(&self.rule, Rule::Limit { decided, .. } if offset < decided.below && decided.pending.get(&id).is_some_and(pending))
    }

    /// Admits a series that is not known, if its tenant has room for it and for its metric, which
    /// overflow series always have, or if it was admitted then.
    pub fn admit(&mut self, id: SeriesId, series: &Series, offset: Offset) -> bool {
        let Rule::Limit { limit, counts, decided, census, .. } = &mut self.rule else {
            return false;
        };
        let count = counts.entry_ref(series.tenant.as_str()).or_insert(0);
        let is_overflow = series.is_overflow();
        let named =
            || census.as_ref().is_none_or(|census| census.admits(&series.tenant, &series.metric));
        let admits = match offset < decided.below {
            true => decided.pending.get(&id).is_some_and(|from| *from <= offset),
            false => is_overflow || *count < *limit && named(),
        };
        if admits {
            *count += u64::from(!is_overflow);
            self.admitted.insert(id, decided.pending.remove(&id).unwrap_or(offset));
        }
        admits
    }

    /// The overflow series that takes an event of a series that is not admitted. Which one follows
    /// from the admissions of this shard's own overflow series alone, so that recomputing finds
    /// it again:
    ///
    /// - While no name of the tenant was refused here, it is that of the metric, which shards
    ///   share.
    /// - The first refusal admits this shard's overflow series of the tenant. From then on a metric
    ///   that may be used has an overflow series of this shard, admitted with its first event; what
    ///   has none was refused.
    /// - In the very record of the first refusal, what came before it must not have gone to the
    ///   shared series: then it waits.
    pub fn overflow(&mut self, series: &Series, offset: Offset) -> Series {
        let (of_tenant, of_metric) =
            (series.overflow_of_tenant(self.shard), series.overflow_of_shard(self.shard));
        let refused_before = self.was_admitted(&of_tenant, offset);
        let own = refused_before && self.was_admitted(&of_metric, offset);
        let Rule::Limit { decided, census: Some(census), shared_at, .. } = &mut self.rule else {
            return if own {
                of_metric
            } else if refused_before {
                of_tenant
            } else {
                series.overflow()
            };
        };
        if offset < decided.below {
            return if own {
                of_metric
            } else if refused_before {
                of_tenant
            } else {
                series.overflow()
            };
        }
        let named = own || census.admits(&series.tenant, &series.metric);
        match (refused_before, named) {
            (true, true) => of_metric,
            (true, false) => of_tenant,
            (false, false) if *shared_at != Some(offset) => of_tenant,
            (false, _) => {
                *shared_at = Some(offset);
                series.overflow()
            }
        }
    }

    /// Whether a refusal holds for the rest of a batch: as long as nothing but the limit of series
    /// decides.
    pub fn refusals_last(&self, offset: Offset) -> bool {
        matches!(&self.rule, Rule::Limit { decided, census: None, .. } if offset >= decided.below)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn series(n: u8) -> (SeriesId, Series) {
        let series = Series::new("t", "m", [("n".to_owned(), n.to_string())]);
        (SeriesId::of_key(&series.key()), series)
    }

    #[test]
    fn the_limit_counts_what_the_catalogue_knows() {
        let mut admission = Admission::limited(2, vec![("t".to_owned(), vec![series(0).0])]);
        assert!(admission.knows(series(0).0, 0));
        let taken: Vec<bool> =
            (1..4).map(|n| admission.admit(series(n).0, &series(n).1, 7)).collect();
        assert_eq!(taken, [true, false, false]);
        let overflow = series(1).1.overflow();
        assert!(
            admission.admit(SeriesId::of_key(&overflow.key()), &overflow, 8),
            "the overflow series has no limit"
        );
        assert!(
            admission.admit(series(9).0, &Series::new("other", "m", []), 9),
            "nor have other tenants"
        );
    }

    #[test]
    fn what_was_admitted_is_admitted_again_where_it_was_and_behind_it_the_limit_decides() {
        let (known, later, never) = (series(1), series(2), series(3));
        let mut admission = Admission::limited(2, vec![("t".to_owned(), vec![known.0])]);
        admission.learn(&[(known.0, 4), (later.0, 6)], 10);
        assert!(!admission.admit(later.0, &later.1, 5), "it went to the overflow series then");
        assert!(!admission.admit(never.0, &never.1, 5), "there is room now, there was none then");
        assert!(admission.admit(later.0, &later.1, 6));
        assert!(
            admission.knows(later.0, 6)
                && !admission.refusals_last(9)
                && admission.refusals_last(10)
        );
        assert!(!admission.admit(never.0, &never.1, 10), "what was admitted then fills the limit");
        let mut wider = Admission::limited(3, vec![("t".to_owned(), vec![known.0])]);
        wider.learn(&[(later.0, 6)], 10);
        assert!(wider.admit(later.0, &later.1, 6) && wider.admit(never.0, &never.1, 10));
    }

    #[test]
    fn recorded_admissions_hold_from_their_offset_on() {
        let mut admission = Admission::recorded(vec![(series(1).0, 5)]);
        assert_eq!(
            [4, 5, 6].map(|offset| admission.knows(series(1).0, offset)),
            [false, true, true]
        );
        assert!(!admission.admit(series(2).0, &series(2).1, 9));
    }

    fn of_metric(metric: &str, n: u8) -> (SeriesId, Series) {
        let series = Series::new("t", metric, [("n".to_owned(), n.to_string())]);
        (SeriesId::of_key(&series.key()), series)
    }

    /// Where an event goes: its series, or what stands in for it, admitted as a batch does it.
    fn place(
        admission: &mut Admission,
        (id, series): &(SeriesId, Series),
        offset: Offset,
    ) -> Series {
        if admission.knows(*id, offset) || admission.admit(*id, series, offset) {
            return series.clone();
        }
        let overflow = admission.overflow(series, offset);
        let id = SeriesId::of_key(&overflow.key());
        let _new = !admission.knows(id, offset) && admission.admit(id, &overflow, offset);
        overflow
    }

    #[test]
    fn names_beyond_the_limit_share_one_metric() {
        let census = Census::new(2);
        census.learn(&[("t".to_owned(), "old".to_owned())]);
        let mut admission =
            Admission::limited(9, vec![]).of_shard(ShardId(7)).with_census(census.clone());
        assert_eq!(place(&mut admission, &of_metric("old", 1), 0), of_metric("old", 1).1);
        assert_eq!(place(&mut admission, &of_metric("new", 1), 1), of_metric("new", 1).1);
        for n in 0..50_u64 {
            let placed = place(&mut admission, &of_metric(&format!("more{n}"), 1), 2 + n);
            assert_eq!(
                (placed.metric.as_str(), placed.is_overflow(), placed.label("shard")),
                ("__overflow__", true, "7")
            );
        }
        assert_eq!(
            place(&mut admission, &of_metric("new", 2), 60),
            of_metric("new", 2).1,
            "known names go on"
        );
        assert_eq!(census.usage("t"), (2, 2));
        assert_eq!(census.usage("other"), (2, 0));
    }

    #[test]
    fn overflow_of_series_stays_that_of_the_metric_while_no_name_is_refused() {
        let mut admission =
            Admission::limited(1, vec![]).of_shard(ShardId(7)).with_census(Census::new(10));
        place(&mut admission, &of_metric("a", 1), 0);
        assert_eq!(place(&mut admission, &of_metric("a", 2), 1), of_metric("a", 2).1.overflow());
        assert_eq!(place(&mut admission, &of_metric("b", 1), 2), of_metric("b", 1).1.overflow());
    }

    proptest::proptest! {
        /// Two shards that share a census, and the same records folded again from what the catalogue noted: an overflow series that both
        /// write to is noted for the first one only.
        #[test]
        fn recomputing_finds_every_place_again(
            events in proptest::collection::vec((0_usize..2, 0_u8..6, 0_u8..4, proptest::bool::ANY), 1..80),
            names in 0_usize..5,
            limit in 0_u64..6,
            forget in 0_usize..80,
        ) {
            let census = Census::new(names);
            let new = |shard: usize, catalogue, census: &Arc<Census>| {
                Admission::limited(limit, catalogue).of_shard(ShardId(shard as u32)).with_census(census.clone())
            };
            let mut live = [new(0, vec![], &census), new(1, vec![], &census)];
            let mut noted: [Vec<(SeriesId, Offset)>; 2] = Default::default();
            let mut catalogue: Vec<(String, String)> = Vec::new();
            let mut places = Vec::new();
            let mut offsets = [0_u64; 2];
            for (at, (shard, metric, n, next)) in events.iter().copied().enumerate() {
                // Series are routed: none is of both shards.
                let event = of_metric(&format!("m{metric}"), n * 2 + shard as u8);
                offsets[shard] += u64::from(next);
                let offset = offsets[shard];
                if at == forget {
                    // A start: what is known is what the catalogue noted, and the names in it.
                    let census = Census::new(names + 1);
                    census.learn(&catalogue);
                    for shard in 0..2 {
                        offsets[shard] += 1;
                        let ids = noted[shard].iter().map(|(id, _)| *id).collect();
                        live[shard] = new(shard, vec![("t".to_owned(), ids)], &census);
                    }
                }
                let offset = offsets[shard].max(offset);
                let placed = place(&mut live[shard], &event, offset);
                let id = SeriesId::of_key(&placed.key());
                if !noted.iter().flatten().any(|(other, _)| *other == id) {
                    noted[shard].push((id, offset));
                    catalogue.push(("t".to_owned(), placed.metric.clone()));
                }
                places.push((shard, event, offset, placed));
            }
            for (shard, noted) in noted.iter().enumerate() {
                let mut recorded = Admission::recorded(noted.clone()).of_shard(ShardId(shard as u32));
                let mut learned = new(shard, vec![], &Census::new(0));
                learned.learn(noted, u64::MAX);
                for (_, event, offset, placed) in places.iter().filter(|(of, ..)| *of == shard) {
                    proptest::prop_assert_eq!(&place(&mut recorded, event, *offset), placed, "recorded, {}", offset);
                    proptest::prop_assert_eq!(&place(&mut learned, event, *offset), placed, "learned, {}", offset);
                }
            }
        }
    }
}
