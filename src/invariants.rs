//! The catalogue of invariants. Each has an id and one sentence, and is checked by tests, by the
//! simulation and by the running server.

/// An invariant of the system. Docs, metrics and tests refer to it by its id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Invariant {
    /// I1: every acknowledged event is in the log or in an archived range.
    AckedIsDurable,
    /// I2: every rollup equals the fold, in offset order, of the distinct events of
    /// its series and hour.
    ExactEffect,
    /// I3: at any moment the store's rollups equal the fold of the records below its checkpoint.
    PrefixAtomicity,
    /// I4: the manifest's ranges tile `[archive floor, archived)` of each shard, and the log is
    /// released only below min(rolled up, archived).
    ArchiveTiles,
    /// I5: the flushes of a shard form one unbroken chain and epochs never decrease.
    SingleWriter,
    /// I6: an answer marked complete holds everything acknowledged before its `as_of`; otherwise it
    /// is partial and says why.
    HonestQueries,
    /// I7: accepted = aggregated + de-duplicated + quarantined + pending.
    Accounting,
    /// I8: no request reads or changes another tenant's data.
    Isolation,
    /// I9: memory, queues and sizes stay below their limits.
    Bounded,
    /// I10: once faults stop, everything is applied, flushed and archived in bounded time.
    Liveness,
    /// I11: what is recomputed from archive and log equals the stored rollups, bit for bit.
    Rebuildable,
    /// I12: a log that lost or reordered data stops the shard. It never resets it.
    FailLoud,
    /// I13: the rows of a writer in a generation are the fold, under its rules, of the counted
    /// events that it has passed: a fill those below its cursor, a live writer those from the cut
    /// on.
    GenerationEffect,
    /// I14: an answer shows in each hour the one generation that is served there, and all of it.
    OneGeneration,
    /// I15: what is served or can be served again by an undo is filled in, and still written.
    ServedIsWhole,
}

impl Invariant {
    /// Every invariant, in the order of their ids.
    pub const ALL: [Invariant; 15] = [
        Invariant::AckedIsDurable,
        Invariant::ExactEffect,
        Invariant::PrefixAtomicity,
        Invariant::ArchiveTiles,
        Invariant::SingleWriter,
        Invariant::HonestQueries,
        Invariant::Accounting,
        Invariant::Isolation,
        Invariant::Bounded,
        Invariant::Liveness,
        Invariant::Rebuildable,
        Invariant::FailLoud,
        Invariant::GenerationEffect,
        Invariant::OneGeneration,
        Invariant::ServedIsWhole,
    ];

    /// The id in metrics, docs and messages.
    pub fn id(self) -> &'static str {
        match self {
            Invariant::AckedIsDurable => "I1",
            Invariant::ExactEffect => "I2",
            Invariant::PrefixAtomicity => "I3",
            Invariant::ArchiveTiles => "I4",
            Invariant::SingleWriter => "I5",
            Invariant::HonestQueries => "I6",
            Invariant::Accounting => "I7",
            Invariant::Isolation => "I8",
            Invariant::Bounded => "I9",
            Invariant::Liveness => "I10",
            Invariant::Rebuildable => "I11",
            Invariant::FailLoud => "I12",
            Invariant::GenerationEffect => "I13",
            Invariant::OneGeneration => "I14",
            Invariant::ServedIsWhole => "I15",
        }
    }
}

/// Returns `holds`. A violation is counted and logged; debug builds panic as well, so that no
/// test passes with one.
pub fn check(invariant: Invariant, holds: bool, what: impl FnOnce() -> String) -> bool {
    if !holds {
        let what = what();
        metrics::counter!(crate::telemetry::INVARIANT_VIOLATIONS, "id" => invariant.id())
            .increment(1);
        tracing::error!(invariant = invariant.id(), %what, "invariant violated");
        // Last, so that a panic does not hide the metric and the log line.
        debug_assert!(holds, "invariant {} violated: {what}", invariant.id());
    }
    holds
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Runs `work` and returns how many violations of this invariant it added to
    /// `rollmill_invariant_violations_total`. Catches the panic of debug builds.
    pub(crate) fn violations(invariant: Invariant, work: impl FnOnce()) -> u64 {
        let recorder = metrics_exporter_prometheus::PrometheusBuilder::new().build_recorder();
        let handle = recorder.handle();
        let ended = metrics::with_local_recorder(&recorder, || {
            std::panic::catch_unwind(std::panic::AssertUnwindSafe(work))
        });
        let line =
            format!("{}{{id=\"{}\"}} ", crate::telemetry::INVARIANT_VIOLATIONS, invariant.id());
        let page = handle.render();
        let counted = page
            .lines()
            .find_map(|shown| shown.strip_prefix(&line))
            .map_or(0, |count| count.parse().expect("a count"));
        assert_eq!(ended.is_err(), counted > 0, "{page}");
        counted
    }

    #[test]
    fn a_violation_is_counted_under_its_id() {
        for invariant in Invariant::ALL {
            assert_eq!(
                violations(
                    invariant,
                    || assert!(!check(invariant, false, || "planted".to_owned()))
                ),
                1
            );
            assert_eq!(
                violations(invariant, || assert!(check(invariant, true, || unreachable!(
                    "it holds"
                )))),
                0
            );
        }
    }
}
