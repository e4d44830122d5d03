//! Admission of series: beyond a tenant's limit, events go to the overflow series of their metric.
//!
//! The limit decides, and the offset of each admission is stored with the series. Recomputing obeys what was stored, whatever the limit is
//! by then; so does a shard that folds archived records once more, because their objects say what it admitted there.

use foldhash::fast::FixedState;
use hashbrown::HashMap;

use crate::model::offset::Offset;
use crate::model::series::{Series, SeriesId};

/// The series that this shard has admitted.
#[derive(Debug)]
pub struct Admission {
    admitted: HashMap<SeriesId, Offset, FixedState>,
    rule: Rule,
}

#[derive(Debug)]
enum Rule {
    /// Series of one tenant, at most; below an offset, what was decided before.
    Limit { limit: u64, counts: HashMap<String, u64, FixedState>, decided: Decided },
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
    /// What the catalogue knows, by tenant, under a limit per tenant.
    pub fn limited(limit: u64, catalogue: Vec<(String, Vec<SeriesId>)>) -> Self {
        let mut counts = HashMap::default();
        let mut admitted = HashMap::default();
        for (tenant, ids) in catalogue {
            counts.insert(tenant, ids.len() as u64);
            // Whatever the catalogue knows was admitted below the checkpoint.
            admitted.extend(ids.into_iter().map(|id| (id, 0)));
        }
        Self { admitted, rule: Rule::Limit { limit, counts, decided: Decided::default() } }
    }

    /// As it was: each series from the offset on at which it was admitted.
    pub fn recorded(admissions: Vec<(SeriesId, Offset)>) -> Self {
        Self { admitted: admissions.into_iter().collect(), rule: Rule::Recorded }
    }

    /// Learns what was admitted in records below `to` that are folded once more: there, nothing else is.
    pub fn learn(&mut self, admissions: &[(SeriesId, Offset)], to: Offset) {
        if let Rule::Limit { decided, .. } = &mut self.rule {
            decided.below = decided.below.max(to);
            decided.pending.extend(admissions.iter().filter(|(id, _)| !self.admitted.contains_key(id)).copied());
        }
    }

    /// Whether the series is admitted at the offset.
    pub fn knows(&self, id: SeriesId, offset: Offset) -> bool {
        self.admitted.get(&id).is_some_and(|&from| from <= offset)
    }

    /// Admits a series that is not known, if its tenant has room, which the overflow series always has, or if it was admitted then.
    pub fn admit(&mut self, id: SeriesId, series: &Series, offset: Offset) -> bool {
        let Rule::Limit { limit, counts, decided } = &mut self.rule else { return false };
        let count = counts.entry_ref(series.tenant.as_str()).or_insert(0);
        let is_overflow = series.is_overflow();
        let admits = match offset < decided.below {
            true => decided.pending.get(&id).is_some_and(|from| *from <= offset),
            false => *count < *limit || is_overflow,
        };
        if admits {
            *count += u64::from(!is_overflow);
            self.admitted.insert(id, decided.pending.remove(&id).unwrap_or(offset));
        }
        admits
    }

    /// Whether a refusal holds for the rest of a batch: as long as nothing but the limit decides.
    pub fn refusals_last(&self, offset: Offset) -> bool {
        matches!(&self.rule, Rule::Limit { decided, .. } if offset >= decided.below)
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
        let taken: Vec<bool> = (1..4).map(|n| admission.admit(series(n).0, &series(n).1, 7)).collect();
        assert_eq!(taken, [true, false, false]);
        let overflow = series(1).1.overflow();
        assert!(admission.admit(SeriesId::of_key(&overflow.key()), &overflow, 8), "the overflow series has no limit");
        assert!(admission.admit(series(9).0, &Series::new("other", "m", []), 9), "nor have other tenants");
    }

    #[test]
    fn what_was_admitted_is_admitted_again_where_it_was_and_behind_it_the_limit_decides() {
        let (known, later, never) = (series(1), series(2), series(3));
        let mut admission = Admission::limited(2, vec![("t".to_owned(), vec![known.0])]);
        admission.learn(&[(known.0, 4), (later.0, 6)], 10);
        assert!(!admission.admit(later.0, &later.1, 5), "it went to the overflow series then");
        assert!(!admission.admit(never.0, &never.1, 5), "there is room now, there was none then");
        assert!(admission.admit(later.0, &later.1, 6));
        assert!(admission.knows(later.0, 6) && !admission.refusals_last(9) && admission.refusals_last(10));
        assert!(!admission.admit(never.0, &never.1, 10), "what was admitted then fills the limit");
        let mut wider = Admission::limited(3, vec![("t".to_owned(), vec![known.0])]);
        wider.learn(&[(later.0, 6)], 10);
        assert!(wider.admit(later.0, &later.1, 6) && wider.admit(never.0, &never.1, 10));
    }

    #[test]
    fn recorded_admissions_hold_from_their_offset_on() {
        let mut admission = Admission::recorded(vec![(series(1).0, 5)]);
        assert_eq!([4, 5, 6].map(|offset| admission.knows(series(1).0, offset)), [false, true, true]);
        assert!(!admission.admit(series(2).0, &series(2).1, 9));
    }
}
