//! Compares the accounting recomputed from the records with the stored one. Pure.

use std::collections::BTreeMap;

use crate::model::flush::AccountingDelta;
use crate::model::window::Hour;
use crate::persistence::store::StoreDamage;

/// Events by tenant and hour: aggregated, de-duplicated, quarantined.
type LedgerRows = BTreeMap<(String, Hour), [u64; 3]>;

/// The counts of all shards' folds.
#[derive(Debug, Default)]
pub(super) struct RecomputedLedger {
    rows: LedgerRows,
    /// Some shard was not folded from its first record: its earlier events are in the stored counts
    /// and not in these.
    is_partial: bool,
}

fn add(rows: &mut LedgerRows, row: &AccountingDelta) {
    let counts = rows.entry((row.tenant.clone(), row.hour)).or_default();
    for (count, more) in counts.iter_mut().zip([row.aggregated, row.deduplicated, row.quarantined])
    {
        *count += more;
    }
}

impl RecomputedLedger {
    /// Adds the counts of a shard's fold; `whole` says whether they cover all its records.
    pub(super) fn add(&mut self, whole: bool, accounting: &[AccountingDelta]) {
        self.is_partial |= !whole;
        accounting.iter().for_each(|row| add(&mut self.rows, row));
    }

    /// Whether the counts cover all records, so that they can be compared.
    pub(super) fn is_whole(&self) -> bool {
        !self.is_partial
    }

    /// The differences from the stored accounting; empty if the counts are partial.
    pub(super) fn compare(&self, stored: &[AccountingDelta]) -> Vec<StoreDamage> {
        if self.is_partial {
            return Vec::new();
        }
        let mut books = LedgerRows::new();
        stored.iter().for_each(|row| add(&mut books, row));
        let keys: std::collections::BTreeSet<_> = books.keys().chain(self.rows.keys()).collect();
        let counts = |rows: &LedgerRows, key| rows.get(key).copied().unwrap_or_default();
        let told = |[aggregated, deduplicated, quarantined]: [u64; 3]| {
            format!(
                "{aggregated} aggregated, {deduplicated} de-duplicated, {quarantined} quarantined"
            )
        };
        keys.into_iter()
            .map(|key| (key, counts(&books, key), counts(&self.rows, key)))
            .filter(|(_, stored, counted)| stored != counted)
            .map(|((tenant, hour), stored, counted)| StoreDamage {
                location: "accounting".to_owned(),
                reason: format!(
                    "{tenant}, hour {}: it says {}; the records give {}",
                    time(*hour),
                    told(stored),
                    told(counted)
                ),
            })
            .collect()
    }
}

fn time(hour: Hour) -> String {
    jiff::Timestamp::from_millisecond(hour.start())
        .map_or_else(|_| hour.0.to_string(), |time| time.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(tenant: &str, hour: i32, counts: [u64; 3]) -> AccountingDelta {
        let [aggregated, deduplicated, quarantined] = counts;
        AccountingDelta {
            tenant: tenant.to_owned(),
            hour: Hour(hour),
            aggregated,
            deduplicated,
            quarantined,
        }
    }

    #[test]
    fn books_are_compared_row_by_row_if_all_records_were_folded() {
        let mut books = RecomputedLedger::default();
        books.add(true, &[row("a", 1, [3, 1, 0]), row("a", 1, [2, 0, 0])]);
        books.add(true, &[row("b", 2, [1, 0, 1])]);
        assert_eq!(books.compare(&[row("a", 1, [5, 1, 0]), row("b", 2, [1, 0, 1])]), []);
        let found = books.compare(&[row("a", 1, [12, 1, 0]), row("c", 3, [1, 0, 0])]);
        let places: Vec<&str> = found
            .iter()
            .map(|damage| damage.reason.split(',').next().unwrap_or_default())
            .collect();
        assert_eq!(places, ["a", "b", "c"], "changed, missing, too many");
        assert!(
            found[0].reason.contains("it says 12 aggregated")
                && found[0].reason.contains("the records give 5 aggregated")
        );
        books.add(false, &[]);
        assert!(!books.is_whole() && books.compare(&[]).is_empty());
    }
}
