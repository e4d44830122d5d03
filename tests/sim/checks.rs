//! The oracle's checks: after every commit, after every run of the archiver, and at the end.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use rollmill::api::quarantine::EventPlace;
use rollmill::invariants::Invariant;
use rollmill::model::budget::QueryBudget;
use rollmill::model::flush::{FlushGuard, SeriesInfo};
use rollmill::model::offset::{Checkpoint, Offset, OffsetRange, ShardId};
use rollmill::model::outcome::{Outcome, OutcomeNote, Verdict};
use rollmill::model::rollup::Rollup;
use rollmill::model::window::Hour;
use rollmill::operate::quarantine::StoreQuarantine;
use rollmill::operate::service::{QuarantineScope, QuarantineService};
use rollmill::persistence::archive::chain::ObjectChains;
use rollmill::persistence::archive::{Archive, ArchivedRecords};
use rollmill::persistence::log::LogReader;
use rollmill::persistence::store::memory::MemoryStore;
use rollmill::persistence::store::{
    AuditSnapshot, NameRange, QuerySnapshot, RollupQuery, ShardStore, SnapshotSource,
};
use rollmill::recompute::fold::FoldRules;
use rollmill::recompute::rebuild::{self, StoreRebuild};
use rollmill::recompute::verify;
use rollmill::shards::series::MetricNameRegistry;

use crate::doubles::checkpoint;
use crate::fold::{
    EventPosition, METRIC, OracleFold, OracleRows, TENANTS, difference, merge, overflow_id,
};
use crate::plants::Plant;
use crate::releases::SimSettlements;
use crate::report::{Fault, Violation, ensure};
use crate::world::SimWorld;

const ALWAYS: (Hour, Hour) = (Hour(i32::MIN), Hour(i32::MAX));

/// The rows as queries read them.
fn stored_rows(snapshot: &mut dyn QuerySnapshot) -> OracleRows {
    let mut rows = OracleRows::new();
    for tenant in TENANTS {
        let (from, to) = ALWAYS;
        let all = RollupQuery {
            generation: rollmill::model::generation::GenerationId::INGEST,
            tenant,
            metric: METRIC,
            matchers: &[],
            from,
            to,
            distinct: true,
            quantiles: true,
            max_series: 100,
            budget: None,
        };
        let mut visit = |info: &Arc<SeriesInfo>, hour: Hour, rollup: Rollup| {
            _ = rows.insert((info.id, hour.0), rollup)
        };
        snapshot.rollups(&all, &mut visit).expect("the double answers");
    }
    rows
}

/// The rows as `verify` reads them: the stored bytes must be those of the rollup.
fn stored_bytes(snapshot: &mut dyn AuditSnapshot) -> OracleRows {
    let mut rows = OracleRows::new();
    let mut visit = |info: &Arc<SeriesInfo>, hour: Hour, rollup: Rollup, bytes: &[u8]| {
        let mut encoded = Vec::new();
        rollup.encode(&mut encoded);
        assert_eq!(encoded, bytes, "stored bytes of {info:?} {hour:?}");
        rows.insert((info.id, hour.0), rollup);
    };
    snapshot.rollup_bytes(ALWAYS.0, ALWAYS.1, &mut visit).expect("the double answers");
    rows
}

/// Everything a store contains, except revisions, owners and recent ids.
fn dump_store(store: &dyn ShardStore, shards: usize) -> Vec<String> {
    let mut snapshot = store.snapshot().expect("the double answers");
    let mut all =
        vec![format!("{:?}", stored_bytes(&mut *snapshot)), format!("{:?}", snapshot.quarantine())];
    for (shard, at) in snapshot.checkpoints().expect("the double answers") {
        all.push(format!("{shard} {:?} {} {}", at.log, at.next, at.archived));
        let above = OffsetRange { from: at.archived, to: at.next };
        let decisions = snapshot.decisions(shard, above).expect("the double answers");
        let noted = decisions.outcomes.map(|note| note.iter().collect::<Vec<_>>());
        all.push(format!("{shard} noted {noted:?}"));
    }
    for shard in (0..shards as u32).map(ShardId) {
        all.push(format!("{:?}", snapshot.manifest(Some(shard))));
        let mut admissions = snapshot.admissions(shard).expect("the double answers");
        // Which shard made an overflow series, and when, decides nothing: it always has room. After
        // a release it may be another shard.
        let is_overflow = |id| (0..TENANTS.len()).any(|tenant| overflow_id(tenant) == id);
        admissions.retain(|(id, _)| !is_overflow(*id));
        admissions.sort_unstable();
        all.push(format!("{shard} admitted {admissions:?}"));
    }
    for tenant in [TENANTS[0], TENANTS[1], ""] {
        all.push(format!("{:?}", snapshot.metrics(tenant, &NameRange::ALL)));
        all.push(format!("{:?}", snapshot.accounting(tenant, ALWAYS.0, ALWAYS.1)));
    }
    all
}

impl SimWorld {
    /// Checks I5, and then I2, I3 and I7 on the state that a commit has left behind.
    pub fn after_commit(
        &mut self,
        shard: ShardId,
        before: Option<Checkpoint>,
        guard: &FlushGuard,
        ok: bool,
    ) -> Result<(), Violation> {
        let after = checkpoint(&*self.store, shard);
        let moved = before.map(|c| c.next) != after.map(|c| c.next);
        if moved || ok {
            let chain =
                before.is_some_and(|c| c.epoch == guard.epoch && c.next == guard.range.from);
            // Without any fence, the rows must reveal the bug as well; this check
            // would always come first.
            ensure(Invariant::SingleWriter, chain || self.has_plant(Plant::NoFence), || {
                format!("{guard:?} was written on top of {before:?}")
            })?;
            crate::doubles::with_dice(&self.dice, |dice| dice.stats.commits += 1);
        }
        self.check_store(false)
    }

    /// Rollups, accounting and quarantine are the fold of the records below the checkpoints.
    pub fn check_store(&mut self, full: bool) -> Result<(), Violation> {
        let store = self.store.clone();
        let mut snapshot = store.snapshot().expect("the double answers");
        let set_aside = snapshot.quarantine().expect("the double answers");
        for (shard, at) in snapshot.checkpoints().expect("the double answers") {
            let s = shard.0 as usize;
            ensure(Invariant::SingleWriter, at.epoch.counter >= self.epochs[s], || {
                format!("the epoch of shard {s} went back")
            })?;
            self.epochs[s] = at.epoch.counter;
            let there = at.next <= self.history[s].len() as u64 && at.next >= self.oracle[s].next;
            ensure(Invariant::PrefixAtomicity, there, || {
                format!("the checkpoint of shard {s} is {at:?}")
            })?;
            let stored: BTreeSet<EventPosition> = set_aside
                .iter()
                .filter(|q| q.shard == shard)
                .map(|q| (q.offset, q.index))
                .collect();
            let SimSettlements { released, discarded } = self.settlements[s].clone();
            let mut places = stored.clone();
            places.extend(released.keys().chain(&discarded));
            if full {
                self.oracle[s] = OracleFold::default();
            }
            while self.oracle[s].next < at.next {
                let record = &self.history[s][self.oracle[s].next as usize];
                self.oracle[s].fold_record(record, self.setup.rules, &places);
            }
            self.oracle[s].release(&self.history[s], &released);
            self.check_quarantine(s, &stored)?;
        }
        let expected = match &self.oracle[..] {
            [only] => Cow::Borrowed(&only.rows),
            all => {
                let mut expected = OracleRows::new();
                all.iter().for_each(|fold| merge(&mut expected, &fold.rows));
                Cow::Owned(expected)
            }
        };
        let found = if full { stored_bytes(&mut *snapshot) } else { stored_rows(&mut *snapshot) };
        if full || found != *expected {
            let why = difference(&expected, &found);
            ensure(Invariant::PrefixAtomicity, why.is_none() && found == *expected, || {
                why.unwrap_or_default()
            })?;
        }
        self.check_accounting(&mut *snapshot)
    }

    fn check_quarantine(
        &self,
        s: usize,
        stored: &BTreeSet<EventPosition>,
    ) -> Result<(), Violation> {
        let expected = &self.oracle[s].quarantined;
        // What was discarded goes with its record.
        let discarded = &self.settlements[s].discarded;
        let gone = |place: &EventPosition| self.expired && discarded.contains(place);
        let same = stored.is_subset(expected) && expected.difference(stored).all(gone);
        ensure(Invariant::Accounting, same, || {
            format!("set aside: expected {expected:?}, stored {stored:?}")
        })?;
        let innocent = stored.iter().find(|p| {
            self.history[s][p.0 as usize].events.is_some() && !self.convictable[s].contains(p)
        });
        ensure(Invariant::ExactEffect, innocent.is_none(), || {
            format!("{innocent:?} was set aside without eight deaths")
        })
    }

    fn check_accounting(&self, snapshot: &mut dyn QuerySnapshot) -> Result<(), Violation> {
        let mut expected: BTreeMap<(&str, i32), [u64; 3]> = BTreeMap::new();
        for (key, counts) in self.oracle.iter().flat_map(|fold| &fold.accounting) {
            expected.entry(*key).or_default().iter_mut().zip(counts).for_each(|(sum, n)| *sum += n);
        }
        expected.retain(|_, counts| *counts != [0; 3]);
        let mut found = BTreeMap::new();
        for tenant in [TENANTS[0], TENANTS[1], ""] {
            for row in snapshot.accounting(tenant, ALWAYS.0, ALWAYS.1).expect("the double answers")
            {
                found.insert(
                    (tenant, row.hour.0),
                    [row.aggregated, row.deduplicated, row.quarantined],
                );
            }
        }
        ensure(Invariant::Accounting, expected == found, || {
            format!("expected {expected:?}, found {found:?}")
        })?;
        let (accepted, counted) = (
            self.oracle.iter().map(|f| f.events).sum::<u64>(),
            found.values().flatten().sum::<u64>(),
        );
        ensure(Invariant::Accounting, accepted == counted, || {
            format!("{accepted} accepted, {counted} accounted for")
        })
    }

    /// I4: the manifest tiles the log up to the archived offset with the log's own records, and
    /// nothing else was released.
    pub fn check_archive(&mut self, full: bool) -> Result<(), Violation> {
        let mut snapshot = self.store.snapshot().expect("the double answers");
        for (shard, at) in snapshot.checkpoints().expect("the double answers") {
            let s = shard.0 as usize;
            let floor = at.next.min(at.archived);
            let start = self.log.start(shard);
            ensure(
                Invariant::ArchiveTiles,
                start <= floor || self.can_recover_gap(shard, &at, start),
                || format!("the log of shard {s} begins at {start}, above {at:?}"),
            )?;
            if !full && self.archived[s] == (at.archived, start) {
                continue;
            }
            self.archived[s] = (at.archived, start);
            let rows = snapshot.manifest(Some(shard)).expect("the double answers");
            let mut next = match self.expired {
                true => rows.first().map_or(at.archived, |row| row.range.from),
                false => 0,
            };
            for (index, row) in rows.iter().enumerate() {
                ensure(
                    Invariant::ArchiveTiles,
                    row.range.from == next && row.range.to > next,
                    || format!("shard {s}: {:?} follows {next}", row.range),
                )?;
                next = row.range.to;
                if !full && index < self.verified[s] {
                    continue;
                }
                let read = self.archive.read_all(row);
                let logged = &self.history[s][row.range.from as usize..row.range.to as usize];
                let same = read.as_ref().is_ok_and(|ArchivedRecords { records, .. }| {
                    let pairs = (row.range.from..).zip(logged);
                    let logged =
                        pairs.map(|(offset, l)| (offset, l.appended, l.received, &l.payload));
                    records
                        .iter()
                        .map(|r| (r.offset, r.appended, r.received, &r.payload))
                        .eq(logged)
                });
                ensure(Invariant::ArchiveTiles, same, || {
                    format!(
                        "shard {s}: object {:?} is not what the log held: {:?}",
                        row.range,
                        read.as_ref().err()
                    )
                })?;
                self.check_outcomes(s, row.range, read.ok().and_then(|read| read.outcomes))?;
            }
            self.verified[s] = rows.len();
            ensure(Invariant::ArchiveTiles, next == at.archived, || {
                format!("shard {s}: rows up to {next}, archived {at:?}")
            })?;
        }
        Ok(())
    }

    /// I7: an object says of every event what the oracle says of it.
    fn check_outcomes(
        &self,
        s: usize,
        range: OffsetRange,
        found: Option<OutcomeNote>,
    ) -> Result<(), Violation> {
        let oracle = &self.oracle[s];
        // After a rollback, the oracle starts over and may not be there yet.
        if oracle.next < range.to {
            return Ok(());
        }
        let of_events = |places: &BTreeSet<EventPosition>, outcome| {
            let within = places.range((range.from, 0)..(range.to, 0)).copied();
            let are_events =
                within.filter(|(offset, _)| self.history[s][*offset as usize].events.is_some());
            are_events.map(|place| (place, outcome)).collect::<BTreeMap<_, _>>()
        };
        let mut expected = of_events(&oracle.duplicates, Outcome::Duplicate);
        let released = oracle.released.keys().copied();
        let set_aside = oracle.quarantined.iter().copied().chain(released).collect();
        expected.extend(of_events(&set_aside, Outcome::Quarantined));
        let events = found.as_ref().map(|note| {
            let single = note.iter().filter(|e| e.verdict != Verdict::RecordQuarantined);
            single.map(|e| ((e.offset, e.index), e.verdict.outcome())).collect::<BTreeMap<_, _>>()
        });
        ensure(Invariant::Accounting, events.as_ref() == Some(&expected), || {
            format!("outcomes of {range:?} of shard {s}: {events:?}, expected {expected:?}")
        })
    }

    /// Whether the archive holds what the log has released and a rolled-back store still needs.
    fn can_recover_gap(&self, shard: ShardId, at: &Checkpoint, start: Offset) -> bool {
        let chains = || {
            ObjectChains::of(
                &[at.log],
                shard,
                self.archive.list(at.log, shard).expect("the double answers"),
            )
        };
        self.rolled_back
            && chains().covering(at.archived, OffsetRange { from: at.archived, to: start }).is_ok()
    }

    /// All checks, once everything has settled.
    pub fn check_everything(&mut self) -> Result<(), Violation> {
        self.check_store(true)?;
        self.check_archive(true)?;
        for s in 0..self.shards() {
            let shard = ShardId(s as u32);
            let start = self.log.start(shard);
            let kept = self.log.read(shard, start, usize::MAX).expect("reads");
            let same = kept
                .iter()
                .map(|r| &r.payload)
                .eq(self.history[s].iter().skip(start as usize).map(|l| &l.payload));
            ensure(Invariant::AckedIsDurable, same, || format!("the log of shard {s} changed"))?;
        }
        for (r, request) in self.requests.iter().enumerate().filter(|(_, request)| request.acked) {
            let lost = request.records.iter().find(|(shard, payload, _)| {
                !self.history[shard.0 as usize].iter().any(|logged| logged.payload == *payload)
            });
            ensure(Invariant::AckedIsDurable, lost.is_none(), || {
                format!("request {r} was acknowledged and is not in the log")
            })?;
        }
        while !self.put_settlements(0) {}
        self.verify()?;
        self.rebuild()?;
        self.release_all()?;
        self.verify()
    }

    /// A store rebuilt from the archive's listing and the log equals the present one to the bit,
    /// whatever leftovers of crashes the listing contains. This does not hold after a rollback of
    /// the store, because leftovers then carry decisions that no longer count.
    fn rebuild(&mut self) -> Result<(), Violation> {
        if self.rolled_back || self.expired || !self.rng.chance(200) {
            return Ok(());
        }
        let (store, log) = (MemoryStore::rebuilding(), self.log.clone());
        let rules = self.setup.rules;
        let rebuild = StoreRebuild {
            store: &*store,
            archive: &*self.archive,
            log: &*log,
            rules: FoldRules {
                dedup_horizon_ms: rules.horizon_ms,
                dedup_max_ids: rules.max_ids,
                max_delta_bytes: 1_000,
                shard_count: self.setup.shards,
            },
            max_series: rules.max_series as u64,
            metric_names: MetricNameRegistry::new(100),
            max_ahead_ms: 0,
            nonce: 1,
            replays: &rebuild::replays::ServedReplays::default(),
        };
        let plans = rebuild::plan(&*self.archive, &*log, &[], false);
        let report = plans.and_then(|plans| rebuild.run(&plans, false, &mut |_| ()));
        self.hit(Fault::Rebuilt);
        ensure(Invariant::Rebuildable, report.is_ok(), || format!("rebuild: {report:?}"))?;
        self.settle_again(&store)?;
        let (found, expected) =
            (dump_store(&*store, self.shards()), dump_store(&*self.store, self.shards()));
        for (found, expected) in found.iter().zip(&expected) {
            ensure(Invariant::Rebuildable, found == expected, || {
                format!("rebuilt: {found}\n was {expected}")
            })?;
        }
        self.check_settled_again(&store)?;
        let ids = |store: &dyn ShardStore, s: usize| -> Vec<u128> {
            let blocks = store.recent_ids(ShardId(s as u32), i64::MIN).expect("the double answers");
            blocks.into_iter().flat_map(|block| block.runs).flat_map(|(_, ids)| ids).collect()
        };
        for s in 0..self.shards() {
            // How far the ids reach back beyond the horizon depends on the size of the flushes.
            let (found, expected) = (ids(&*store, s), ids(&*self.store, s));
            let same = found.ends_with(&expected) || expected.ends_with(&found);
            ensure(Invariant::Rebuildable, same, || {
                format!("shard {s}: ids {found:?}, expected {expected:?}")
            })?;
        }
        Ok(())
    }

    /// `rollmill verify` agrees for any range of hours.
    fn verify(&mut self) -> Result<(), Violation> {
        if !self.rng.chance(200) {
            return Ok(());
        }
        let hour = self.now.div_euclid(3_600_000) as i32;
        let hours =
            self.rng.pick(&[(i32::MIN, i32::MAX), (hour - 1, hour + 1), (hour - 30, hour - 20)]);
        let log = self.log.clone();
        let sources = verify::VerifySources {
            store: &*self.store,
            archive: &*self.archive,
            open_log: &|| Ok(log.clone()),
            dedup_horizon_ms: self.setup.rules.horizon_ms,
            dedup_max_ids: self.setup.rules.max_ids,
            only: None,
        };
        let report = verify::verify(&sources, Hour(hours.0)..Hour(hours.1), &mut |_, _| ());
        let agrees = report.as_ref().is_ok_and(verify::VerifyReport::is_equal);
        self.hit(Fault::Verified);
        ensure(Invariant::Rebuildable, agrees, || format!("verify of hours {hours:?}: {report:?}"))
    }

    /// Once everything in quarantine is released, every tenant has in every hour exactly what it
    /// would have had without poison, but for what was discarded.
    fn release_all(&mut self) -> Result<(), Violation> {
        let set_aside =
            self.store.snapshot().and_then(|mut s| s.quarantine()).expect("the double answers");
        let desk = StoreQuarantine::new(self.store.clone(), self.mended_limits());
        for row in set_aside.iter().filter(|row| !row.tenant.is_empty() && !row.discarded) {
            let place = EventPlace { shard: row.shard.0, offset: row.offset, index: row.index };
            let settled = desk.release(
                &QuarantineScope { tenant: row.tenant.as_str().into(), unowned: false },
                place,
                &QueryBudget::default(),
            );
            ensure(Invariant::ExactEffect, settled.is_ok(), || {
                format!("{place:?} is not released: {settled:?}")
            })?;
        }
        let by_tenant = |rows: &OracleRows| {
            let mut sums: BTreeMap<(usize, i32), Rollup> = BTreeMap::new();
            for ((id, hour), rollup) in rows {
                let tenant = (0..2).find(|t| crate::fold::overflow_id(*t) == *id);
                let tenant = tenant.or_else(|| {
                    (0..12).find(|i| crate::fold::series(1)[*i].id == *id).map(|i| i / 6)
                });
                sums.entry((tenant.expect("a known series"), *hour)).or_default().merge(rollup);
            }
            sums
        };
        let mut expected = OracleRows::new();
        for s in 0..self.shards() {
            let (mut fold, discarded) = (OracleFold::default(), &self.settlements[s].discarded);
            self.history[s]
                .iter()
                .for_each(|record| fold.fold_record(record, self.setup.rules, discarded));
            merge(&mut expected, &fold.rows);
        }
        let found = stored_rows(&mut *self.store.snapshot().expect("the double answers"));
        ensure(Invariant::ExactEffect, by_tenant(&expected) == by_tenant(&found), || {
            "released events do not make up what poison took away".to_owned()
        })
    }
}
