//! One consistent view: a REPEATABLE READ READ ONLY transaction on a session of the read pool.
//!
//! Matching series are cached per metric and matchers, together with the metric's number of series.
//! Series are only ever added, in an order in which the number grows, so an equal number on the
//! same start of a server means an equal set. [`super::rollups`] describes how rollups are read.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::sync::Arc;

use tokio_postgres::Row;

use super::codec::{UuidBytes, get};
use super::compressed_weeks::CompressedWeeks;
use super::pool::SessionLease;
use super::rollups::RollupScan;
use super::session::{Param, PostgresSession, params};
use super::{StoreError, admin};
use crate::model::flush::{AccountingDelta, DedupRules, QuarantineRow, SeriesInfo};
use crate::model::manifest::{ArchiveFloor, ManifestRow, RangeDecisions, Tier};
use crate::model::matcher::Matcher;
use crate::model::offset::{Checkpoint, Epoch, LogId, Offset, OffsetRange, ShardId};
use crate::model::rollup::Rollup;
use crate::model::series::SeriesId;
use crate::model::window::{Hour, Millis};
use crate::persistence::store::matched_series::{MatchCache, MatchedSeries, SeriesCollector};
use crate::persistence::store::{
    ArchiveSnapshot, AuditSnapshot, CheckpointSnapshot, ExpiryRow, ExpiryTarget, MetricInfo,
    NameRange, QuerySnapshot, RollupQuery, byte_columns, too_many_series,
};

/// The SQL that begins a snapshot; its first statement pins the state.
pub(super) const BEGIN_SNAPSHOT: &str = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY";

/// Selects the columns of a manifest row, in the order in which [`manifest_rows`] reads them.
macro_rules! manifest_columns {
    () => {
        "SELECT shard, from_offset, to_offset, log, epoch, nonce, path, first_appended, \
         last_appended, windows, rows, raw_bytes, bytes, crc32c, tier, coalesce(first_received, \
         first_appended), coalesce(last_received, last_appended) FROM manifest"
    };
}

/// Keyed by start of the server, metric number and matchers.
pub(super) type PostgresMatchCache = MatchCache<(i64, i32, String)>;

/// A consistent view, held until dropped.
pub(super) struct PostgresSnapshot<'a> {
    lease: SessionLease<'a>,
    cache: &'a PostgresMatchCache,
    compressed_weeks: &'a CompressedWeeks,
}

type BytesVisitor<'v> = dyn FnMut(&Arc<SeriesInfo>, Hour, Rollup, &[u8]) + 'v;

impl<'a> PostgresSnapshot<'a> {
    /// `lease` must be inside a transaction that began with [`BEGIN_SNAPSHOT`].
    pub(super) fn new(
        mut lease: SessionLease<'a>,
        cache: &'a PostgresMatchCache,
        compressed: &'a CompressedWeeks,
    ) -> Result<Self, StoreError> {
        // BEGIN alone takes no snapshot: the first statement does.
        lease.session()?.query("SELECT FROM shards LIMIT 1", params![])?;
        Ok(Self { lease, cache, compressed_weeks: compressed })
    }

    fn session(&mut self) -> Result<&mut PostgresSession, StoreError> {
        self.lease.session()
    }

    fn metric(&mut self, tenant: &str, metric: &str) -> Result<Option<(i32, i64)>, StoreError> {
        let sql = "SELECT m.no, m.series_count FROM tenants t JOIN metrics m ON m.tenant_no = \
                   t.no WHERE t.name = $1 AND m.name = $2";
        let rows = self.session()?.query(sql, params![tenant.to_owned(), metric.to_owned()])?;
        rows.first().map(|row| Ok((get(row, 0)?, get(row, 1)?))).transpose()
    }

    fn matched_series(
        &mut self,
        query: &RollupQuery<'_>,
        metric_no: i32,
        count: i64,
    ) -> Result<MatchedSeries, StoreError> {
        // Without matchers the count decides, before any series is read.
        if query.matchers.is_empty() && count as usize > query.max_series {
            return Err(too_many_series(query));
        }
        let key =
            (self.session()?.backend.server_started, metric_no, format!("{:?}", query.matchers));
        let cache = self.cache;
        let matched = cache.get(key, count, || self.match_series(query, metric_no))?;
        // The list may have been cached by a query with a higher limit.
        if matched.len() > query.max_series { Err(too_many_series(query)) } else { Ok(matched) }
    }

    fn match_series(
        &mut self,
        query: &RollupQuery<'_>,
        metric_no: i32,
    ) -> Result<Vec<(i64, Arc<SeriesInfo>)>, StoreError> {
        // An empty value also matches series without the label, which the index does not contain.
        let indexed = query.matchers.iter().find_map(|m| match m {
            Matcher::Equal(name, value) if !value.is_empty() => Some((name.clone(), value.clone())),
            _ => None,
        });
        let mut collector = SeriesCollector::new(query);
        match indexed {
            // PostgreSQL's text cannot hold NUL, so no stored label value contains one.
            Some((_, value)) if value.contains('\0') => {}
            Some((name, value)) => {
                let sql = "SELECT s.no, s.id, s.key FROM label_pairs p JOIN series_labels l ON \
                           l.pair_no = p.no
                    JOIN series s ON s.no = l.series_no WHERE p.metric_no = $1 AND p.name = $2 AND \
                           p.value = $3";
                self.each_series(sql, params![metric_no, name, value], |no, info| {
                    collector.offer(no, info)
                })?;
            }
            None => {
                let sql = "SELECT no, id, key FROM series WHERE metric_no = $1";
                self.each_series(sql, params![metric_no], |no, info| collector.offer(no, info))?;
            }
        }
        Ok(collector.finish())
    }

    fn each_series(
        &mut self,
        sql: &str,
        params: Vec<Param>,
        mut each: impl FnMut(i64, Arc<SeriesInfo>) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        let cache = self.cache;
        self.session()?.for_each_row(sql, params, |row| {
            let info = cache.series(SeriesId(get::<UuidBytes>(row, 1)?.0), get(row, 2)?)?;
            each(get(row, 0)?, info)
        })
    }

    /// Visits all rollups of a metric, ordered by hour and then by series id.
    fn visit_metric_bytes(
        &mut self,
        metric_no: i32,
        (from, to): (Hour, Hour),
        visit: &mut BytesVisitor<'_>,
    ) -> Result<(), StoreError> {
        let mut series: HashMap<i64, Arc<SeriesInfo>> = HashMap::new();
        self.each_series(
            "SELECT no, id, key FROM series WHERE metric_no = $1",
            params![metric_no],
            |no, info| {
                series.insert(no, info);
                Ok(())
            },
        )?;
        let count = series.len() as u64;
        let hours = (from, to);
        let all = RollupScan {
            metric_no,
            hours,
            series: count,
            series_nos: None,
            distinct: true,
            quantiles: true,
            renews_time_limit: true,
        };
        // Numbers are not in the order of ids, so the rows of one hour at a time are sorted.
        let mut hour: (Hour, BTreeMap<SeriesId, (&Arc<SeriesInfo>, Rollup)>) =
            (from, BTreeMap::new());
        let mut bytes = Vec::new();
        let mut finish = |hour: &mut (Hour, BTreeMap<SeriesId, (&Arc<SeriesInfo>, Rollup)>)| {
            for (info, rollup) in std::mem::take(&mut hour.1).into_values() {
                bytes.clear();
                rollup.encode(&mut bytes);
                visit(info, hour.0, rollup, &bytes);
            }
        };
        let compressed = self.compressed_weeks;
        all.run(self.session()?, compressed, &mut |next, no, rollup| {
            if next != hour.0 {
                finish(&mut hour);
                hour.0 = next;
            }
            let info = series.get(&no).ok_or_else(|| {
                StoreError::Invalid(format!(
                    "series number {no} has rollups but no catalogue row: rebuild the store"
                ))
            })?;
            hour.1.insert(info.id, (info, rollup));
            Ok(())
        })?;
        finish(&mut hour);
        Ok(())
    }
}

/// The server answered when the snapshot began, so a timeout now is due to the query.
fn too_long(why: StoreError) -> StoreError {
    match why {
        StoreError::Unavailable(why) => StoreError::TooLong(why),
        other => other,
    }
}

fn range(row: &Row, first: usize) -> Result<OffsetRange, StoreError> {
    Ok(OffsetRange {
        from: get::<i64>(row, first)? as Offset,
        to: get::<i64>(row, first + 1)? as Offset,
    })
}

fn epoch(row: &Row, first: usize) -> Result<Epoch, StoreError> {
    Ok(Epoch { counter: get::<i64>(row, first)? as u64, nonce: get::<i64>(row, first + 1)? as u64 })
}

fn shard(row: &Row, at: usize) -> Result<ShardId, StoreError> {
    Ok(ShardId(get::<i32>(row, at)?.cast_unsigned()))
}

impl CheckpointSnapshot for PostgresSnapshot<'_> {
    fn checkpoints(&mut self) -> Result<Vec<(ShardId, Checkpoint)>, StoreError> {
        let sql =
            "SELECT shard, log, next, archived, epoch, nonce, appended FROM shards ORDER BY shard";
        let checkpoint = |row: &Row| {
            let (next, archived) = (get::<i64>(row, 2)? as Offset, get::<i64>(row, 3)? as Offset);
            let log = LogId(get::<UuidBytes>(row, 1)?.0);
            Ok((
                shard(row, 0)?,
                Checkpoint { log, next, archived, epoch: epoch(row, 4)?, appended: get(row, 6)? },
            ))
        };
        self.session()?.query(sql, params![])?.iter().map(checkpoint).collect()
    }
}

impl QuerySnapshot for PostgresSnapshot<'_> {
    fn revisions(
        &mut self,
        tenant: &str,
        metric: &str,
        days: Range<i32>,
    ) -> Result<Vec<u64>, StoreError> {
        let mut revisions = vec![0; days.len()];
        let Some((metric_no, _)) = self.metric(tenant, metric)? else { return Ok(revisions) };
        let sql =
            "SELECT day, revision FROM revisions WHERE metric_no = $1 AND day >= $2 AND day < $3";
        for row in self.session()?.query(sql, params![metric_no, days.start, days.end])? {
            let day: i32 = get(&row, 0)?;
            revisions[(day - days.start) as usize] = get::<i64>(&row, 1)? as u64;
        }
        Ok(revisions)
    }

    fn rollups(
        &mut self,
        query: &RollupQuery<'_>,
        visit: &mut dyn FnMut(&Arc<SeriesInfo>, Hour, Rollup),
    ) -> Result<(), StoreError> {
        let Some((metric_no, count)) = self.metric(query.tenant, query.metric)? else {
            return Ok(());
        };
        let matched = self.matched_series(query, metric_no, count)?;
        if matched.is_empty() || query.from >= query.to {
            return Ok(());
        }
        // A seek costs about as much as eight rows of a scan. For a range much longer than any
        // data, seeks for every hour would cost more than the scan.
        let hours = (i64::from(query.to.0) - i64::from(query.from.0)).max(1);
        let few = (matched.len() as i64) < count / 8
            || (matched.len() as i64).saturating_mul(hours) <= 32;
        let nos: Vec<i64> = matched.iter().map(|(no, _)| *no).collect();
        let reading = RollupScan {
            metric_no,
            hours: (query.from, query.to),
            series: count.unsigned_abs(),
            series_nos: (few && hours <= 24 * 366).then_some(&*nos),
            distinct: query.distinct,
            quantiles: query.quantiles,
            renews_time_limit: false,
        };
        let compressed = self.compressed_weeks;
        let session = self.session()?;
        let read = reading.run(session, compressed, &mut |hour, no, rollup| {
            query.check_budget()?;
            if let Ok(at) = matched.binary_search_by_key(&no, |(no, _)| *no) {
                visit(&matched[at].1, hour, rollup);
            }
            Ok(())
        });
        read.map_err(|why| if session.is_timed_out() { too_long(why) } else { why })
    }

    fn metrics(
        &mut self,
        tenant: &str,
        page: &NameRange<'_>,
    ) -> Result<Vec<MetricInfo>, StoreError> {
        let sql = "SELECT m.name, m.series_count, m.first_hour, m.last_hour,
            ARRAY(SELECT DISTINCT p.name FROM label_pairs p WHERE p.metric_no = m.no ORDER BY \
                   p.name)
            FROM tenants t JOIN metrics m ON m.tenant_no = t.no
            WHERE t.name = $1 AND m.name > $2 AND m.name >= $3 AND m.name < $4 ORDER BY m.name \
                   LIMIT $5";
        let (from, to) = page.bounds();
        let asked =
            params![tenant.to_owned(), page.after.to_owned(), from.to_owned(), to, page.rows()];
        let metric = |row: &Row| {
            Ok(MetricInfo {
                metric: get(row, 0)?,
                labels: get(row, 4)?,
                series: get::<i64>(row, 1)? as u64,
                first: get::<Option<i32>>(row, 2)?.map(Hour),
                last: get::<Option<i32>>(row, 3)?.map(Hour),
            })
        };
        self.session()?.query(sql, asked)?.iter().map(metric).collect()
    }

    fn label_values(
        &mut self,
        tenant: &str,
        name: &str,
        metric: Option<&str>,
        page: &NameRange<'_>,
    ) -> Result<Vec<String>, StoreError> {
        let sql = "SELECT DISTINCT p.value FROM tenants t JOIN metrics m ON m.tenant_no = t.no \
                   JOIN label_pairs p ON p.metric_no = m.no
            WHERE t.name = $1 AND p.name = $2 AND ($3::text IS NULL OR m.name = $3)
            AND p.value > $4 AND p.value >= $5 AND p.value < $6 ORDER BY p.value LIMIT $7";
        let ((from, to), metric) = (page.bounds(), metric.map(str::to_owned));
        let after = page.after.to_owned();
        let asked = params![
            tenant.to_owned(),
            name.to_owned(),
            metric,
            after,
            from.to_owned(),
            to,
            page.rows()
        ];
        self.session()?.query(sql, asked)?.iter().map(|row| get(row, 0)).collect()
    }

    fn accounting(
        &mut self,
        tenant: &str,
        from: Hour,
        to: Hour,
    ) -> Result<Vec<AccountingDelta>, StoreError> {
        let sql = "SELECT hour, aggregated, deduplicated, quarantined FROM accounting
            WHERE tenant = $1 AND hour >= $2 AND hour < $3 ORDER BY hour";
        let account = |row: &Row| {
            Ok(AccountingDelta {
                tenant: tenant.to_owned(),
                hour: Hour(get(row, 0)?),
                aggregated: get::<i64>(row, 1)? as u64,
                deduplicated: get::<i64>(row, 2)? as u64,
                quarantined: get::<i64>(row, 3)? as u64,
            })
        };
        self.session()?
            .query(sql, params![tenant.to_owned(), from.0, to.0])?
            .iter()
            .map(account)
            .collect()
    }
}

impl ArchiveSnapshot for PostgresSnapshot<'_> {
    fn manifest(&mut self, wanted: Option<ShardId>) -> Result<Vec<ManifestRow>, StoreError> {
        let sql = concat!(
            manifest_columns!(),
            " WHERE $1::integer IS NULL OR shard = $1 ORDER BY shard, from_offset"
        );
        manifest_rows(self.session()?, sql, params![wanted.map(|s| s.0.cast_signed())])
    }

    fn manifest_first(
        &mut self,
        shard: ShardId,
        tier: Option<Tier>,
        limit: usize,
    ) -> Result<Vec<ManifestRow>, StoreError> {
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        let sql = concat!(
            manifest_columns!(),
            " WHERE shard = $1 AND ($2::smallint IS NULL OR tier = $2) ORDER BY from_offset LIMIT \
             $3"
        );
        manifest_rows(
            self.session()?,
            sql,
            params![shard.0.cast_signed(), tier.map(byte_columns::tier_number), limit],
        )
    }

    fn last_archived(&mut self, shard: ShardId) -> Result<Option<Millis>, StoreError> {
        let sql = "SELECT max(at) FROM (SELECT last_appended AS at FROM (SELECT last_appended \
                   FROM manifest WHERE shard = $1
            ORDER BY from_offset DESC LIMIT 1) AS newest UNION ALL SELECT appended FROM \
                   archive_floors WHERE shard = $1) AS times";
        let rows = self.session()?.query(sql, params![shard.0.cast_signed()])?;
        rows.first().map_or(Ok(None), |row| get(row, 0))
    }

    fn receipts(
        &mut self,
        shard: ShardId,
        from: Offset,
        limit: usize,
    ) -> Result<Vec<(Offset, Millis)>, StoreError> {
        let sql = "SELECT to_offset, coalesce(last_received, last_appended) FROM manifest WHERE \
                   shard = $1 AND from_offset >= $2
            ORDER BY from_offset LIMIT $3";
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        let rows =
            self.session()?.query(sql, params![shard.0.cast_signed(), from as i64, limit])?;
        rows.iter().map(|row| Ok((get::<i64>(row, 0)? as Offset, get(row, 1)?))).collect()
    }

    fn archive_extent(&mut self, shard: ShardId) -> Result<(u64, Option<Offset>), StoreError> {
        let sql = "SELECT count(*), min(from_offset) FROM manifest WHERE shard = $1";
        let rows = self.session()?.query(sql, params![shard.0.cast_signed()])?;
        let extent = |row: &Row| {
            Ok((
                get::<i64>(row, 0)?.unsigned_abs(),
                get::<Option<i64>>(row, 1)?.map(|at| at as Offset),
            ))
        };
        rows.first().map_or(Ok((0, None)), extent)
    }

    fn archive_floors(&mut self) -> Result<Vec<(ShardId, ArchiveFloor)>, StoreError> {
        let sql = "SELECT shard, \"offset\", appended, hour FROM archive_floors ORDER BY shard";
        let rows = self.session()?.query(sql, params![])?;
        rows.iter().map(|row| Ok((shard(row, 0)?, admin::floor(row, 1)?))).collect()
    }

    fn expiry(&mut self, of: ExpiryTarget) -> Result<Option<ExpiryRow>, StoreError> {
        let rows = self
            .session()?
            .query("SELECT note, said FROM expiry WHERE shard = $1", params![of.code()])?;
        rows.first()
            .map(|row| Ok(ExpiryRow { note: get(row, 0)?, approvals: get(row, 1)? }))
            .transpose()
    }

    fn expiries(&mut self) -> Result<Vec<(ExpiryTarget, ExpiryRow)>, StoreError> {
        let rows = self
            .session()?
            .query("SELECT shard, note, said FROM expiry ORDER BY shard", params![])?;
        let read = |row: &Row| {
            Ok((
                ExpiryTarget::from_code(get(row, 0)?),
                ExpiryRow { note: get(row, 1)?, approvals: get(row, 2)? },
            ))
        };
        rows.iter().map(read).collect()
    }

    fn decisions(
        &mut self,
        wanted: ShardId,
        range: OffsetRange,
    ) -> Result<RangeDecisions, StoreError> {
        let of_range = || params![wanted.0.cast_signed(), range.from as i64, range.to as i64];
        let mut decisions = RangeDecisions::default();
        let sql = "SELECT id, admitted_offset FROM series WHERE shard = $1 AND admitted_offset >= \
                   $2 AND admitted_offset < $3
            ORDER BY admitted_offset, id";
        self.session()?.for_each_row(sql, of_range(), |row| {
            decisions
                .admitted
                .push((SeriesId(get::<UuidBytes>(row, 0)?.0), get::<i64>(row, 1)? as Offset));
            Ok(())
        })?;
        let sql = "SELECT \"offset\", idx, discarded FROM quarantine WHERE shard = $1 AND \
                   \"offset\" >= $2 AND \"offset\" < $3
            ORDER BY \"offset\", idx";
        self.session()?.for_each_row(sql, of_range(), |row| {
            decisions.quarantined.push((
                get::<i64>(row, 0)? as Offset,
                get::<i64>(row, 1)? as u32,
                get(row, 2)?,
            ));
            Ok(())
        })?;
        Ok(decisions)
    }
}

impl AuditSnapshot for PostgresSnapshot<'_> {
    fn rollup_bytes(
        &mut self,
        from: Hour,
        to: Hour,
        visit: &mut dyn FnMut(&Arc<SeriesInfo>, Hour, Rollup, &[u8]),
    ) -> Result<(), StoreError> {
        let sql = "SELECT m.no FROM metrics m JOIN tenants t ON t.no = m.tenant_no ORDER BY \
                   t.name, m.name";
        for row in self.session()?.query(sql, params![])? {
            // The full time limit per metric: reading a whole store takes longer than a transaction
            // may.
            self.session()?.restart_time_limit();
            self.visit_metric_bytes(get(&row, 0)?, (from, to), visit)?;
        }
        Ok(())
    }

    fn dedup_rules(&mut self, shard: ShardId) -> Result<DedupRules, StoreError> {
        admin::dedup_rules(self.session()?, shard)
    }

    fn admissions(&mut self, shard: ShardId) -> Result<Vec<(SeriesId, Offset)>, StoreError> {
        let mut admissions = Vec::new();
        let sql = "SELECT id, admitted_offset FROM series WHERE shard = $1";
        self.session()?.for_each_row(sql, params![shard.0.cast_signed()], |row| {
            admissions.push((SeriesId(get::<UuidBytes>(row, 0)?.0), get::<i64>(row, 1)? as Offset));
            Ok(())
        })?;
        Ok(admissions)
    }

    fn ledger(&mut self) -> Result<Vec<AccountingDelta>, StoreError> {
        let sql = "SELECT tenant, hour, aggregated, deduplicated, quarantined FROM accounting \
                   ORDER BY tenant, hour";
        let account = |row: &Row| {
            Ok(AccountingDelta {
                tenant: get(row, 0)?,
                hour: Hour(get(row, 1)?),
                aggregated: get::<i64>(row, 2)? as u64,
                deduplicated: get::<i64>(row, 3)? as u64,
                quarantined: get::<i64>(row, 4)? as u64,
            })
        };
        self.session()?.query(sql, params![])?.iter().map(account).collect()
    }

    fn quarantine(&mut self) -> Result<Vec<QuarantineRow>, StoreError> {
        let sql = "SELECT shard, \"offset\", idx, tenant, appended, reason, discarded, record \
                   FROM quarantine
            ORDER BY shard, \"offset\", idx";
        let mut quarantine = Vec::new();
        self.session()?.for_each_row(sql, params![], |row| {
            quarantine.push(QuarantineRow {
                shard: shard(row, 0)?,
                offset: get::<i64>(row, 1)? as Offset,
                index: get::<i64>(row, 2)? as u32,
                tenant: get(row, 3)?,
                received: get(row, 4)?,
                reason: get(row, 5)?,
                discarded: get(row, 6)?,
                record: get(row, 7)?,
            });
            Ok(())
        })?;
        Ok(quarantine)
    }
}

fn manifest_rows(
    session: &mut PostgresSession,
    sql: &'static str,
    params: Vec<Param>,
) -> Result<Vec<ManifestRow>, StoreError> {
    let mut manifest = Vec::new();
    session.for_each_row(sql, params, |row| {
        manifest.push(ManifestRow {
            log: LogId(get::<UuidBytes>(row, 3)?.0),
            shard: shard(row, 0)?,
            range: range(row, 1)?,
            epoch: epoch(row, 4)?,
            path: get(row, 6)?,
            appended: (get(row, 7)?, get(row, 8)?),
            windows: byte_columns::decode_windows(get(row, 9)?)?,
            rows: get::<i64>(row, 10)? as u64,
            raw_bytes: get::<i64>(row, 11)? as u64,
            bytes: get::<i64>(row, 12)? as u64,
            crc32c: get::<i64>(row, 13)? as u32,
            tier: byte_columns::tier(get::<i16>(row, 14)?)?,
            received: (get(row, 15)?, get(row, 16)?),
        });
        Ok(())
    })?;
    Ok(manifest)
}
