//! Copies the store, and compares the copy with the original.

use std::collections::HashMap;

use anyhow::{Context, ensure};

use super::{MigrationSource, MigrationStep, ProgressFn};
use crate::model::flush::SeriesInfo;
use crate::model::generation::{Writer, WriterPart};
use crate::model::generation_book::GenerationBook;
use crate::model::manifest::Tier;
use crate::model::offset::{LogId, Offset, ShardId};
use crate::model::series::SeriesId;
use crate::model::window::Hour;
use crate::persistence::store::postgres::PostgresStore;
use crate::persistence::store::sqlite::SqliteStore;
use crate::persistence::store::transfer::TransferBatch;
use crate::persistence::store::{SnapshotSource, StoreSnapshot};

pub(super) fn copy_store(
    source: &MigrationSource,
    target: &PostgresStore,
    log: LogId,
    tiers: &HashMap<String, Tier>,
    progress: ProgressFn<'_>,
) -> anyhow::Result<()> {
    let from = SqliteStore::open_read_only(source.data.store())?;
    let all = from.counts()?.rows;
    let mut done = 0;
    progress(MigrationStep::Store, done, all);
    let days = from.rollup_days()?;
    let copied = target.import(log, &days, |take| {
        from.export(&mut |mut piece| {
            // The target archive may hold an object in another tier than the source.
            if let TransferBatch::Manifest(rows) = &mut piece {
                rows.iter_mut()
                    .for_each(|row| row.tier = tiers.get(&row.path).copied().unwrap_or(row.tier));
            }
            let rows = piece.len() as u64;
            take(piece)?;
            done += rows;
            progress(MigrationStep::Store, done, all);
            Ok(())
        })
    });
    copied.context("the store was not copied; run migrate again")
}

/// Checks that both stores hold the same bytes.
pub(super) fn compare(
    source: &MigrationSource,
    target: &PostgresStore,
    progress: ProgressFn<'_>,
) -> anyhow::Result<()> {
    let from = SqliteStore::open_read_only(source.data.store())?;
    let counts = from.counts()?;
    let all = counts.rollups + counts.replayed;
    // Twice, because both stores are read.
    progress(MigrationStep::Compare, 0, 2 * all);
    let mut done = 0;
    let mut progress = |rows: u64| {
        done += rows;
        progress(MigrationStep::Compare, done, 2 * all);
    };
    let here = StoreDigest::read(from.as_ref(), &mut progress)?;
    let there = StoreDigest::read(target, &mut progress)?;
    let differing = here.differing(&there);
    ensure!(
        differing.is_empty(),
        "{} ({} rollups) and {} ({}) differ in {}: somebody else writes there; empty the database \
         and run migrate again",
        target.address(),
        there.rollups,
        source.data.store().display(),
        here.rollups,
        differing.join(", ")
    );
    Ok(())
}

/// What a snapshot of a store shows, part by part: everything that answers are made of, and that a
/// fill or a release decides by.
#[derive(Debug, PartialEq, Eq)]
struct StoreDigest {
    /// Number of rollups, of all generations.
    rollups: u64,
    /// What each part is, and its hash.
    parts: Vec<(&'static str, blake3::Hash)>,
}

/// Hashes one part after the other.
struct DigestWriter<'a> {
    digest: StoreDigest,
    hasher: blake3::Hasher,
    progress: &'a mut dyn FnMut(u64),
}

impl DigestWriter<'_> {
    fn bytes(&mut self, bytes: &[u8]) {
        self.hasher.update(&(bytes.len() as u64).to_be_bytes()).update(bytes);
    }

    fn text(&mut self, text: std::fmt::Arguments<'_>) {
        self.bytes(text.to_string().as_bytes());
    }

    fn row(&mut self, info: &SeriesInfo, hour: Hour, bytes: &[u8]) {
        self.digest.rollups += 1;
        self.bytes(&info.series.key());
        self.hasher.update(&info.id.0).update(&hour.0.to_be_bytes());
        self.bytes(bytes);
        if self.digest.rollups.is_multiple_of(1024) {
            (self.progress)(1024);
        }
    }

    /// Series by id: stores list them in orders of their own.
    fn admissions(&mut self, by: std::fmt::Arguments<'_>, mut admitted: Vec<(SeriesId, Offset)>) {
        admitted.sort_unstable();
        self.text(by);
        self.bytes(&(admitted.len() as u64).to_be_bytes());
        for (id, offset) in admitted {
            self.hasher.update(&id.0).update(&offset.to_be_bytes());
        }
    }

    fn end(&mut self, part: &'static str) {
        let hash = std::mem::take(&mut self.hasher).finalize();
        self.digest.parts.push((part, hash));
    }
}

impl StoreDigest {
    /// Reads the store in one snapshot. `progress` counts rollups.
    fn read(store: &dyn SnapshotSource, progress: &mut dyn FnMut(u64)) -> anyhow::Result<Self> {
        let digest = Self { rollups: 0, parts: Vec::new() };
        let mut writer = DigestWriter { digest, hasher: blake3::Hasher::new(), progress };
        let mut snapshot = store.snapshot()?;
        let always = (Hour(i32::MIN), Hour(i32::MAX));
        snapshot.rollup_bytes(always.0, always.1, &mut |info, hour, _, bytes| {
            writer.row(info, hour, bytes);
        })?;
        writer.end("rollups");
        let book = snapshot.generation_book()?;
        writer.bytes(&serde_json::to_vec(&*book)?);
        writer.end("what is decided about replays");
        for (id, generation) in book.generations() {
            for metric in &generation.metrics {
                let of = (&*generation.tenant, &**metric);
                snapshot.generation_rows(*id, of, always, &mut |by, info, hour, _, bytes| {
                    writer.text(format_args!("{by}"));
                    writer.row(info, hour, bytes);
                    Ok(())
                })?;
            }
        }
        writer.end("rollups of replays");
        read_progress(&mut *snapshot, &book, &mut writer)?;
        let shards = snapshot.set_versions()?.into_iter().map(|(shard, _)| shard).collect();
        read_decisions(&mut *snapshot, (&book, shards), &mut writer)?;
        (writer.progress)(writer.digest.rollups % 1024);
        Ok(writer.digest)
    }

    /// The parts that are not the same in another store.
    fn differing(&self, other: &Self) -> Vec<&'static str> {
        let pairs = self.parts.iter().zip(&other.parts);
        pairs.filter(|(here, there)| here != there).map(|(here, _)| here.0).collect()
    }
}

/// How far fills and shards are.
fn read_progress(
    snapshot: &mut dyn StoreSnapshot,
    book: &GenerationBook,
    writer: &mut DigestWriter<'_>,
) -> anyhow::Result<()> {
    for id in book.generations().keys() {
        for (shard, at) in snapshot.fill_progress(*id)? {
            writer.text(format_args!("{id} {shard} {} {}", at.cut, at.cursor));
        }
    }
    for (shard, version) in snapshot.set_versions()? {
        writer.text(format_args!("{shard} {version}"));
    }
    writer.end("how far replays are");
    Ok(())
}

/// What verifying, filling and releasing decide by: which series were admitted where, what rules
/// have dropped and done, and what became of quarantined events.
fn read_decisions(
    snapshot: &mut dyn StoreSnapshot,
    (book, shards): (&GenerationBook, Vec<ShardId>),
    writer: &mut DigestWriter<'_>,
) -> anyhow::Result<()> {
    for shard in &shards {
        writer.admissions(format_args!("{shard}"), snapshot.admissions(*shard)?);
        for id in book.generations().keys() {
            for part in [WriterPart::Live, WriterPart::Fill] {
                let by = Writer { shard: *shard, part };
                let admitted = snapshot.generation_admissions(*id, by)?;
                writer.admissions(format_args!("{id} {by}"), admitted);
            }
        }
    }
    writer.end("admitted series");
    for id in book.generations().keys() {
        let mut dropped = snapshot.dropped_events(*id)?;
        dropped.sort_unstable_by(|(a, of_a), (b, of_b)| {
            (&of_a.tenant, &of_a.metric, of_a.day, a).cmp(&(
                &of_b.tenant,
                &of_b.metric,
                of_b.day,
                b,
            ))
        });
        writer.text(format_args!("{id} {dropped:?} {:?}", snapshot.rule_counts(*id)?));
    }
    writer.end("what rules have dropped and changed");
    for row in snapshot.quarantine()? {
        writer.text(format_args!("{} {} {}", row.shard, row.offset, row.index));
        writer.text(format_args!("{}", row.discarded));
        writer.bytes(&row.record);
    }
    for shard in shards {
        writer.text(format_args!("{shard} {:?}", snapshot.released_events(shard)?));
    }
    writer.end("quarantined events");
    Ok(())
}

#[cfg(test)]
mod tests;
