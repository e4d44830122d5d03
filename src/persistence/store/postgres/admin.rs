//! Claims with takeover, blocks of ids, progress of the archive, and what a starting shard reads.

use std::time::{Duration, SystemTime};

use tokio_postgres::error::SqlState;

use super::codec::{UuidBytes, get};
use super::generations::{BookCache, note_cuts};
use super::session::{Param, PostgresSession, params};
use super::{StoreError, quarantine};
use crate::model::flush::{Claim, DedupBlock, DedupRule, DedupRules, SuspectEvent};
use crate::model::generation::MaintainedSet;
use crate::model::manifest::{ArchiveFloor, ManifestRow, ShardRestore, Tier};
use crate::model::offset::{Checkpoint, Epoch, LogId, Offset, OffsetRange, ShardId};
use crate::model::series::{AdmittedSeries, OVERFLOW_IN_KEY, SeriesId};
use crate::model::window::{Hour, Millis};
use crate::persistence::store::{ExpiryTarget, byte_columns};

/// How long a claim waits for the previous owner's transaction to end by itself before terminating
/// it.
pub(super) const CLAIM_WAIT: Duration = Duration::from_millis(250);

/// Locks the shard's row. Returns its log, if the shard was ever claimed; `None` if the row stays
/// locked by another transaction.
pub(super) fn lock_shard(
    session: &mut PostgresSession,
    shard: ShardId,
) -> Result<Option<Option<LogId>>, StoreError> {
    match session
        .query("SELECT log FROM shards WHERE shard = $1 FOR UPDATE", params![shard.0.cast_signed()])
    {
        Ok(rows) => Ok(Some(
            rows.first().map(|row| get::<UuidBytes>(row, 0).map(|id| LogId(id.0))).transpose()?,
        )),
        Err(failure) if failure.sql_state() == Some(&SqlState::LOCK_NOT_AVAILABLE) => Ok(None),
        Err(failure) => Err(failure.into()),
    }
}

/// Claims the shard, whose row is locked by this transaction.
pub(super) fn claim(
    session: &mut PostgresSession,
    books: &BookCache,
    shard: ShardId,
    (found, log): (Option<LogId>, LogId),
    nonce: u64,
) -> Result<Claim, StoreError> {
    let no = shard.0.cast_signed();
    if let Some(found) = found.filter(|found| *found != log) {
        return Err(super::super::other_log(shard, found, log));
    }
    // A mark that is still set means that the last owner did not get past that event.
    session.execute(
        "INSERT INTO suspects AS s SELECT shard, marked_offset, marked_index, 1 FROM shards WHERE \
         shard = $1 AND marked_offset IS NOT NULL
         ON CONFLICT (shard, \"offset\", idx) DO UPDATE SET deaths = s.deaths + 1",
        params![no],
    )?;
    let suspects = suspects(session, no)?;
    let newest = match found {
        Some(_) => MaintainedSet::default(),
        // Locked, so that the set of a new shard is not forgotten before its row can be seen.
        None => books.lock(session)?.newest_set(),
    };
    let sql = "INSERT INTO shards AS s (shard, log, next, archived, epoch, nonce, attempts, \
               owner, owner_pid, owner_started, set_version, set_next)
        VALUES ($1, $2, 0, 0, 1, $3, 1, current_setting('application_name'), $4, $5, $6, 0)
        ON CONFLICT (shard) DO UPDATE SET epoch = s.epoch + 1, nonce = excluded.nonce, attempts = \
               s.attempts + 1, marked_offset = NULL,
        owner = excluded.owner, owner_pid = excluded.owner_pid, owner_started = \
               excluded.owner_started
        RETURNING next, archived, epoch, attempts, log, appended, set_version";
    let (backend, begins_with) = (session.backend, newest.version as i64);
    let owner = (nonce as i64, backend.pid, backend.started);
    let rows = session
        .query(sql, params![no, UuidBytes(log.0), owner.0, owner.1, owner.2, begins_with])?;
    let row = rows
        .first()
        .ok_or_else(|| StoreError::Failed(format!("the claim of shard {shard} returned no row")))?;
    // Two first claims may race: there is no row to lock, so the second one finds the first one's
    // log.
    let found = LogId(get::<UuidBytes>(row, 4)?.0);
    if found != log {
        return Err(super::super::other_log(shard, found, log));
    }
    let checkpoint = Checkpoint {
        log,
        next: get::<i64>(row, 0)? as Offset,
        archived: get::<i64>(row, 1)? as Offset,
        epoch: Epoch { counter: get::<i64>(row, 2)? as u64, nonce },
        appended: get(row, 5)?,
    };
    let attempts = u32::try_from(get::<i64>(row, 3)?).unwrap_or(u32::MAX);
    // Whoever else has made the row meanwhile has the first epoch, and may have flushed.
    if checkpoint.epoch.counter == 1 && !newest.ranges.is_empty() {
        // All of its records are still to come, so there is nothing to be filled in.
        note_cuts(session, &newest.generations(), shard, (log, 0))?;
    }
    let set = adopted_set(session, books, shard, get::<i64>(row, 6)? as u64)?;
    Ok(Claim { checkpoint, attempts, suspects, set })
}

fn adopted_set(
    session: &mut PostgresSession,
    books: &BookCache,
    shard: ShardId,
    version: u64,
) -> Result<MaintainedSet, StoreError> {
    if version == 0 {
        return Ok(MaintainedSet::default());
    }
    books
        .current(session)?
        .adopted_set(version)
        .ok_or_else(|| super::super::unknown_set(shard, version))
}

fn suspects(session: &mut PostgresSession, shard: i32) -> Result<Vec<SuspectEvent>, StoreError> {
    let sql =
        "SELECT \"offset\", idx, deaths FROM suspects WHERE shard = $1 ORDER BY \"offset\", idx";
    let suspect = |row: &tokio_postgres::Row| -> Result<SuspectEvent, StoreError> {
        let number = |at: usize| get::<i64>(row, at).map(|n| u32::try_from(n).unwrap_or(u32::MAX));
        Ok(SuspectEvent {
            offset: get::<i64>(row, 0)? as Offset,
            index: number(1)?,
            deaths: number(2)?,
        })
    };
    session.query(sql, params![shard])?.iter().map(suspect).collect()
}

/// Terminates the backends that are inside a transaction of the shard. Each is identified by
/// process id, start time and name, so that a process that reuses an id is never hit. Returns
/// how many were found.
pub(super) fn terminate_holders(
    session: &mut PostgresSession,
    names: &str,
) -> Result<usize, StoreError> {
    let sql = "SELECT pid, backend_start, application_name FROM pg_stat_activity WHERE datname = \
               current_database()
        AND pid <> pg_backend_pid() AND xact_start IS NOT NULL AND starts_with(application_name, \
               $1)";
    let holders = session.query(sql, params![names.to_owned()])?;
    for row in &holders {
        let (pid, started, name) =
            (get::<i32>(row, 0)?, get::<SystemTime>(row, 1)?, get::<String>(row, 2)?);
        tracing::warn!(
            pid,
            name,
            "ending the transaction of a shard's previous owner, which stands in the way of the \
             new one"
        );
        session.query(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid = $1 AND \
             backend_start = $2 AND application_name = $3",
            params![pid, started, name],
        )?;
    }
    Ok(holders.len())
}

pub(super) fn mark_suspect(
    session: &mut PostgresSession,
    shard: ShardId,
    epoch: Epoch,
    offset: Offset,
    index: u32,
) -> Result<(), StoreError> {
    let sql = "UPDATE shards SET marked_offset = $1, marked_index = $2 WHERE shard = $3 AND epoch \
               = $4 AND nonce = $5";
    let owner = (shard.0.cast_signed(), epoch.counter as i64, epoch.nonce as i64);
    let moved = session
        .execute(sql, params![offset as i64, i64::from(index), owner.0, owner.1, owner.2])?;
    if moved == 1 { Ok(()) } else { Err(StoreError::Refused { shard }) }
}

pub(super) fn set_dedup_rule(
    session: &mut PostgresSession,
    shard: ShardId,
    epoch: Epoch,
    from: Offset,
    rule: DedupRule,
) -> Result<(), StoreError> {
    let (no, from) = (shard.0.cast_signed(), from as i64);
    let sql = "SELECT next <= $4 OR NOT EXISTS (SELECT FROM dedup_rules WHERE shard = $1) FROM \
               shards
        WHERE shard = $1 AND epoch = $2 AND nonce = $3 FOR UPDATE";
    let rows = session.query(sql, params![no, epoch.counter as i64, epoch.nonce as i64, from])?;
    if !rows.first().map(|row| get::<bool>(row, 0)).transpose()?.unwrap_or(false) {
        return Err(StoreError::Refused { shard });
    }
    session.execute(
        "DELETE FROM dedup_rules WHERE shard = $1 AND from_offset >= $2",
        params![no, from],
    )?;
    let (sql, params) = dedup_rule_insert(shard, from as Offset, rule);
    session.execute(sql, params)?;
    Ok(())
}

/// The statement that records a rule.
pub(super) fn dedup_rule_insert(
    shard: ShardId,
    from: Offset,
    rule: DedupRule,
) -> (&'static str, Vec<Param>) {
    let params = params![shard.0.cast_signed(), from as i64, rule.horizon_ms, rule.max_ids as i64];
    (
        "INSERT INTO dedup_rules (shard, from_offset, horizon_ms, max_ids) VALUES ($1, $2, $3, $4)",
        params,
    )
}

pub(super) fn dedup_rules(
    session: &mut PostgresSession,
    shard: ShardId,
) -> Result<DedupRules, StoreError> {
    let sql = "SELECT from_offset, horizon_ms, max_ids FROM dedup_rules WHERE shard = $1 ORDER BY \
               from_offset";
    let rule = |row: &tokio_postgres::Row| -> Result<(Offset, DedupRule), StoreError> {
        let rule = DedupRule { horizon_ms: get(row, 1)?, max_ids: get::<i64>(row, 2)? as usize };
        Ok((get::<i64>(row, 0)? as Offset, rule))
    };
    Ok(DedupRules(
        session
            .query(sql, params![shard.0.cast_signed()])?
            .iter()
            .map(rule)
            .collect::<Result<_, _>>()?,
    ))
}

pub(super) fn insert_manifest_row(
    session: &mut PostgresSession,
    owner: Epoch,
    row: &ManifestRow,
) -> Result<(), StoreError> {
    let (shard, from, to) = (row.shard.0.cast_signed(), row.range.from as i64, row.range.to as i64);
    let (epoch, nonce) = (owner.counter as i64, owner.nonce as i64);
    // The compare-and-set comes first: it locks the shard's row, and a stale owner inserts nothing.
    let moved = session.execute(
        "UPDATE shards SET archived = $1 WHERE shard = $2 AND log = $3 AND archived = $4 AND \
         epoch = $5 AND nonce = $6",
        params![to, shard, UuidBytes(row.log.0), from, epoch, nonce],
    )?;
    if moved != 1 {
        return Err(StoreError::Refused { shard: row.shard });
    }
    write_manifest_row(session, row)
}

/// Writes the row, and deletes the outcome notes that its object has made superfluous.
fn write_manifest_row(session: &mut PostgresSession, row: &ManifestRow) -> Result<(), StoreError> {
    let forget = "DELETE FROM outcome_notes WHERE shard = $1 AND to_offset <= $2";
    let place = params![row.shard.0.cast_signed(), row.range.to as i64];
    Ok(session.execute_all(vec![(forget, place), manifest_insert(row)])?)
}

/// The statement that inserts a manifest row.
pub(super) fn manifest_insert(row: &ManifestRow) -> (&'static str, Vec<Param>) {
    let params = params![
        row.shard.0.cast_signed(),
        row.range.from as i64,
        row.range.to as i64,
        UuidBytes(row.log.0),
        row.epoch.counter as i64,
        row.epoch.nonce as i64,
        row.path.clone(),
        row.appended.0,
        row.appended.1,
        byte_columns::encode_windows(&row.windows),
        row.rows as i64,
        row.raw_bytes as i64,
        row.bytes as i64,
        i64::from(row.crc32c),
        byte_columns::tier_number(row.tier),
        row.received.0,
        row.received.1
    ];
    (
        "INSERT INTO manifest VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, \
         $14, $15, $16, $17)",
        params,
    )
}

pub(super) fn set_tier(
    session: &mut PostgresSession,
    row: &ManifestRow,
    tier: Tier,
) -> Result<bool, StoreError> {
    let sql = "UPDATE manifest SET tier = $1 WHERE shard = $2 AND from_offset = $3 AND path = $4";
    let place = (row.shard.0.cast_signed(), row.range.from as i64);
    Ok(session.execute(
        sql,
        params![byte_columns::tier_number(tier), place.0, place.1, row.path.clone()],
    )? == 1)
}

pub(super) fn swap_expiry(
    session: &mut PostgresSession,
    of: ExpiryTarget,
    before: Option<&str>,
    after: &str,
) -> Result<bool, StoreError> {
    let (no, after) = (of.code(), after.to_owned());
    let changed = match before {
        None => session.execute(
            "INSERT INTO expiry (shard, note) VALUES ($1, $2) ON CONFLICT (shard) DO NOTHING",
            params![no, after],
        )?,
        Some(before) => {
            let sql = "UPDATE expiry SET note = $1 WHERE shard = $2 AND note = $3";
            session.execute(sql, params![after, no, before.to_owned()])?
        }
    };
    Ok(changed == 1)
}

pub(super) fn approve_expiry(
    session: &mut PostgresSession,
    of: &[ExpiryTarget],
) -> Result<u64, StoreError> {
    let numbers: Vec<i32> = of.iter().map(|one| one.code()).collect();
    Ok(session
        .execute("UPDATE expiry SET said = said + 1 WHERE shard = ANY($1)", params![numbers])?)
}

pub(super) fn expire_object(
    session: &mut PostgresSession,
    row: &ManifestRow,
) -> Result<bool, StoreError> {
    let shard = row.shard.0.cast_signed();
    let sql = "DELETE FROM manifest WHERE shard = $1 AND from_offset = $2 AND path = $3
        AND from_offset = (SELECT min(from_offset) FROM manifest WHERE shard = $1)";
    if session.execute(sql, params![shard, row.range.from as i64, row.path.clone()])? != 1 {
        return Ok(false);
    }
    let sql = "SELECT \"offset\", appended, hour FROM archive_floors WHERE shard = $1 FOR UPDATE";
    let before =
        session.query(sql, params![shard])?.first().map(|row| floor(row, 0)).transpose()?;
    let floor = ArchiveFloor::after_expiry(before, row);
    set_floor(session, row.shard, floor)?;
    quarantine::forget_settled(session, row.shard, floor.offset)?;
    Ok(true)
}

fn set_floor(
    session: &mut PostgresSession,
    shard: ShardId,
    floor: ArchiveFloor,
) -> Result<(), StoreError> {
    session.execute(
        "INSERT INTO archive_floors VALUES ($1, $2, $3, $4) ON CONFLICT (shard) DO UPDATE SET \
         \"offset\" = excluded.\"offset\",
         appended = excluded.appended, hour = excluded.hour",
        params![shard.0.cast_signed(), floor.offset as i64, floor.appended, floor.hour.0],
    )?;
    Ok(())
}

pub(super) fn restore(session: &mut PostgresSession, of: &ShardRestore) -> Result<(), StoreError> {
    let (shard, Checkpoint { log, next, archived, epoch, .. }) =
        (of.shard.0.cast_signed(), of.checkpoint);
    let backend = session.backend;
    // On conflict `next` stays where the flushes of the rebuild have moved it. Should the archived
    // offset go back, the notes below its former place are gone.
    session.execute(
        "INSERT INTO shards AS s (shard, log, next, archived, epoch, nonce, attempts, owner, \
         owner_pid, owner_started)
         VALUES ($1, $2, $3, $4, $5, $6, 0, current_setting('application_name'), $7, $8)
         ON CONFLICT (shard) DO UPDATE SET archived = excluded.archived, epoch = excluded.epoch, \
         nonce = excluded.nonce,
         noted_from = CASE WHEN excluded.archived < s.archived THEN \
         greatest(s.noted_from, s.archived) ELSE s.noted_from END",
        params![
            shard,
            UuidBytes(log.0),
            next as i64,
            archived as i64,
            epoch.counter as i64,
            epoch.nonce as i64,
            backend.pid,
            backend.started
        ],
    )?;
    if let Some(floor) = of.floor {
        set_floor(session, of.shard, floor)?;
    }
    for row in &of.manifest {
        let sql = "DELETE FROM manifest WHERE shard = $1 AND from_offset >= $2";
        session.execute(sql, params![shard, row.range.from as i64])?;
        write_manifest_row(session, row)?;
    }
    for (id, offset) in &of.admitted {
        let sql = "UPDATE series SET shard = $1, admitted_offset = $2 WHERE id = $3 AND part = \
                   0";
        session.execute(sql, params![shard, *offset as i64, UuidBytes(id.0)])?;
    }
    Ok(())
}

/// Reads an archive floor from the columns that begin at `at`.
pub(super) fn floor(row: &tokio_postgres::Row, at: usize) -> Result<ArchiveFloor, StoreError> {
    Ok(ArchiveFloor {
        offset: get::<i64>(row, at)? as Offset,
        appended: get(row, at + 1)?,
        hour: Hour(get(row, at + 2)?),
    })
}

pub(super) fn recent_ids(
    session: &mut PostgresSession,
    shard: ShardId,
    since: Millis,
) -> Result<Vec<DedupBlock>, StoreError> {
    let sql = "SELECT from_offset, to_offset, first_appended, last_appended, block FROM dedup
        WHERE shard = $1 AND last_appended >= $2 ORDER BY from_offset";
    let mut blocks = Vec::new();
    session.for_each_row(sql, params![shard.0.cast_signed(), since], |row| {
        blocks.push(DedupBlock {
            range: OffsetRange {
                from: get::<i64>(row, 0)? as Offset,
                to: get::<i64>(row, 1)? as Offset,
            },
            appended: (get(row, 2)?, get(row, 3)?),
            runs: byte_columns::decode_runs(get(row, 4)?)?,
        });
        Ok(())
    })?;
    Ok(blocks)
}

pub(super) fn admitted_series(
    session: &mut PostgresSession,
    shard: ShardId,
) -> Result<Vec<(String, AdmittedSeries)>, StoreError> {
    let sql = "SELECT t.name, s.id, CASE WHEN position($2::bytea IN s.key) > 0 THEN s.key END
        FROM series s JOIN metrics m ON m.no = s.metric_no JOIN tenants t ON t.no = m.tenant_no
        WHERE s.shard = $1 AND s.part = 0 ORDER BY t.name, s.id";
    let mut tenants: Vec<(String, AdmittedSeries)> = Vec::new();
    let of = params![shard.0.cast_signed(), OVERFLOW_IN_KEY.as_bytes()];
    session.for_each_row(sql, of, |row| {
        let tenant: &str = get(row, 0)?;
        if tenants.last().is_none_or(|(last, _)| last != tenant) {
            tenants.push((tenant.to_owned(), AdmittedSeries::default()));
        }
        let (id, key) = (SeriesId(get::<UuidBytes>(row, 1)?.0), get::<Option<&[u8]>>(row, 2)?);
        match tenants.last_mut() {
            Some((_, admitted)) => Ok(admitted.add(id, key)?),
            None => Ok(()),
        }
    })?;
    Ok(tenants)
}

pub(super) fn metric_names(
    session: &mut PostgresSession,
) -> Result<Vec<(String, String)>, StoreError> {
    let mut names = Vec::new();
    session.for_each_row(
        "SELECT t.name, m.name FROM metrics m JOIN tenants t ON t.no = m.tenant_no WHERE \
         m.generation = 0",
        params![],
        |row| {
            names.push((get(row, 0)?, get(row, 1)?));
            Ok(())
        },
    )?;
    Ok(names)
}
