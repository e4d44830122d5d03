//! The catalogue: numbers of series and metrics.
//!
//! A number is cached only after the transaction that assigned it has committed, and only for one
//! start of one server: a failover may lose commits and assign the same numbers to other series. An
//! id that belongs to another series is refused, and with it the whole transaction. New rows of
//! tables that shards share are inserted in key order, so that two flushes never deadlock.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, PoisonError};

use super::StoreError;
use super::codec::{UuidBytes, get};
use super::session::{PostgresSession, params};
use crate::model::flush::{Delta, SeriesInfo};
use crate::model::generation::{GenerationId, Writer, WriterPart};
use crate::model::offset::{Offset, ShardId};
use crate::model::series::{Series, SeriesId};
use crate::persistence::store::SeriesScope;

/// A series with its numbers.
#[derive(Debug, Clone)]
pub(super) struct NumberedSeries {
    pub(super) metric_no: i32,
    pub(super) series_no: i64,
    info: Arc<SeriesInfo>,
}

/// Series of one scope with their numbers.
pub(super) type SeriesNumbers = HashMap<SeriesId, NumberedSeries>;

/// The series of one transaction.
pub(super) type ScopedNumbers = Vec<(SeriesScope, SeriesNumbers)>;

/// The columns `generation` and `part` of a scope's metrics and series.
fn columns(scope: SeriesScope) -> (i64, i16) {
    (scope.generation().0 as i64, scope.part().map_or(0, part_code))
}

/// The column `part` of a writer's series.
pub(super) fn part_code(part: WriterPart) -> i16 {
    match part {
        WriterPart::Live => 1,
        WriterPart::Fill => 2,
    }
}

/// The writer that the columns `shard` and `part` name.
pub(super) fn writer(shard: i32, part: i16) -> Result<Writer, StoreError> {
    let part = match part {
        1 => WriterPart::Live,
        2 => WriterPart::Fill,
        other => {
            return Err(StoreError::Invalid(format!(
                "part {other} of a generation is unknown: start the newest version of Rollmill \
                 that has written this store"
            )));
        }
    };
    Ok(Writer { shard: ShardId(shard.cast_unsigned()), part })
}

/// Committed series that were used recently, for one start of a server.
#[derive(Debug, Default)]
pub(super) struct PostgresSeriesCache(Mutex<(i64, HashMap<SeriesScope, SeriesNumbers>)>);

/// At this size the cache is emptied and refills with the series in use.
const CACHE_MAX_SERIES: usize = 2_000_000;
/// Most rows of one statement.
const PART: usize = 10_000;

impl PostgresSeriesCache {
    /// Splits `wanted` into cached series and the rest.
    fn split<'a>(
        &self,
        server: i64,
        scope: SeriesScope,
        wanted: Vec<SeriesWrite<'a>>,
    ) -> Result<(SeriesNumbers, Vec<SeriesWrite<'a>>), StoreError> {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (mut found, mut rest) = (SeriesNumbers::new(), Vec::new());
        let of_scope = known.1.get(&scope).filter(|_| known.0 == server);
        for series in wanted {
            match of_scope.and_then(|of_scope| of_scope.get(&series.info.id)) {
                Some(numbered) => {
                    check_same_series(&numbered.info, series.info)?;
                    found.insert(series.info.id, numbered.clone());
                }
                None => rest.push(series),
            }
        }
        Ok((found, rest))
    }

    /// Caches the series of a committed transaction.
    pub(super) fn remember(&self, server: i64, numbers: ScopedNumbers) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let cached: usize = known.1.values().map(HashMap::len).sum();
        let new: usize = numbers.iter().map(|(_, numbers)| numbers.len()).sum();
        if known.0 != server || cached + new > CACHE_MAX_SERIES {
            *known = (server, HashMap::new());
        }
        for (scope, numbers) in numbers.into_iter().filter(|(_, numbers)| !numbers.is_empty()) {
            known.1.entry(scope).or_default().extend(numbers);
        }
    }

    /// Forgets the series of a generation that is gone.
    pub(super) fn forget(&self, generation: GenerationId) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.1.retain(|scope, _| scope.generation() != generation);
    }
}

/// A series of a transaction, with the offset at which it is admitted if it is new.
#[derive(Clone, Copy)]
struct SeriesWrite<'a> {
    info: &'a Arc<SeriesInfo>,
    offset: Offset,
}

fn check_same_series(known: &SeriesInfo, new: &SeriesInfo) -> Result<(), StoreError> {
    if known.series == new.series { Ok(()) } else { Err(super::super::collision(known, new)) }
}

/// The number of new series per metric.
pub(super) type SeriesGrowth = BTreeMap<i32, i64>;

/// The numbers of all series that a transaction writes in one scope; new ones are admitted, and
/// counted in `growth`. Those in `admitted` have their own offset, other new ones are admitted at
/// `at`. Scopes are numbered in the order of their generations, so that no two transactions wait for
/// each other's new rows.
pub(super) fn number_series(
    session: &mut PostgresSession,
    known: &PostgresSeriesCache,
    scope: SeriesScope,
    (admitted, deltas): (&[(Arc<SeriesInfo>, Offset)], &[Delta]),
    (shard, at): (ShardId, Offset),
    growth: &mut SeriesGrowth,
) -> Result<SeriesNumbers, StoreError> {
    let mut wanted: BTreeMap<SeriesId, SeriesWrite<'_>> = BTreeMap::new();
    let series = admitted.iter().map(|(info, offset)| SeriesWrite { info, offset: *offset });
    for series in
        series.chain(deltas.iter().map(|delta| SeriesWrite { info: &delta.series, offset: at }))
    {
        check_same_series(wanted.entry(series.info.id).or_insert(series).info, series.info)?;
    }
    let (mut numbers, rest) =
        known.split(session.backend.server_started, scope, wanted.into_values().collect())?;
    for part in rest.chunks(PART) {
        look_up(session, (scope, shard), part, &mut numbers)?;
    }
    let missing: Vec<SeriesWrite<'_>> =
        rest.into_iter().filter(|w| !numbers.contains_key(&w.info.id)).collect();
    if !missing.is_empty() {
        admit(session, (scope, shard), &missing, &mut numbers, growth)?;
    }
    Ok(numbers)
}

fn look_up(
    session: &mut PostgresSession,
    (scope, shard): (SeriesScope, ShardId),
    wanted: &[SeriesWrite<'_>],
    numbers: &mut SeriesNumbers,
) -> Result<(), StoreError> {
    let ids: Vec<UuidBytes> = wanted.iter().map(|w| UuidBytes(w.info.id.0)).collect();
    let infos: HashMap<SeriesId, &Arc<SeriesInfo>> =
        wanted.iter().map(|w| (w.info.id, w.info)).collect();
    let (sql, params) = match scope {
        SeriesScope::Ingest => {
            let sql = "SELECT id, no, metric_no, key FROM series WHERE id = ANY($1) AND part = 0";
            (sql, params![ids])
        }
        SeriesScope::Writer(..) => {
            let sql = "SELECT s.id, s.no, s.metric_no, s.key FROM metrics m JOIN series s ON \
                       s.metric_no = m.no
                WHERE m.generation = $2 AND s.shard = $3 AND s.part = $4 AND s.id = ANY($1)";
            let (generation, part) = columns(scope);
            (sql, params![ids, generation, shard.0.cast_signed(), part])
        }
    };
    for row in session.query(sql, params)? {
        let id = SeriesId(get::<UuidBytes>(&row, 0)?.0);
        let Some(info) = infos.get(&id) else { continue };
        check_same_series(&SeriesInfo { id, series: Series::from_key(get(&row, 3)?)? }, info)?;
        numbers.insert(
            id,
            NumberedSeries {
                series_no: get(&row, 1)?,
                metric_no: get(&row, 2)?,
                info: Arc::clone(info),
            },
        );
    }
    Ok(())
}

fn admit(
    session: &mut PostgresSession,
    (scope, shard): (SeriesScope, ShardId),
    missing: &[SeriesWrite<'_>],
    numbers: &mut SeriesNumbers,
    growth: &mut SeriesGrowth,
) -> Result<(), StoreError> {
    let metrics = metrics(session, scope, missing)?;
    let metric_of = |series: &Series| -> Result<i32, StoreError> {
        let key = (series.tenant.clone(), series.metric.clone());
        metrics
            .get(&key)
            .copied()
            .ok_or_else(|| StoreError::Failed(format!("metric {} was not numbered", series.metric)))
    };
    // Collected over all series first, so that label pairs are inserted in key order.
    let mut labels: Labels<'_> = BTreeMap::new();
    for part in missing.chunks(PART) {
        let metric_nos =
            part.iter().map(|w| metric_of(&w.info.series)).collect::<Result<Vec<i32>, _>>()?;
        let given = insert_series(session, (scope, shard), part, &metric_nos)?;
        for (w, metric_no) in part.iter().zip(metric_nos) {
            let series_no = *given
                .get(&w.info.id)
                .ok_or_else(|| StoreError::Failed(format!("series {} got no number", w.info.id)))?;
            numbers.insert(
                w.info.id,
                NumberedSeries { metric_no, series_no, info: Arc::clone(w.info) },
            );
            *growth.entry(metric_no).or_default() += 1;
            for (name, value) in &w.info.series.labels {
                labels.entry((metric_no, name, value)).or_default().push(series_no);
            }
        }
    }
    let labels: Vec<_> = labels.into_iter().collect();
    labels.chunks(PART).try_for_each(|part| insert_labels(session, part))
}

/// Metric number, name and value of a label.
type Label<'a> = (i32, &'a str, &'a str);
/// Series numbers by label of a metric.
type Labels<'a> = BTreeMap<Label<'a>, Vec<i64>>;

fn insert_series(
    session: &mut PostgresSession,
    (scope, shard): (SeriesScope, ShardId),
    series: &[SeriesWrite<'_>],
    metric_nos: &[i32],
) -> Result<HashMap<SeriesId, i64>, StoreError> {
    let ids: Vec<UuidBytes> = series.iter().map(|w| UuidBytes(w.info.id.0)).collect();
    let keys: Vec<Vec<u8>> = series.iter().map(|w| w.info.series.key()).collect();
    let offsets: Vec<i64> = series.iter().map(|w| w.offset as i64).collect();
    let sql = "INSERT INTO series (metric_no, id, key, admitted_offset, shard, part)
        SELECT w.metric_no, w.id, w.key, w.at, $5, $6
        FROM unnest($1::integer[], $2::uuid[], $3::bytea[], $4::bigint[]) AS w (metric_no, id, \
               key, at) ORDER BY w.id RETURNING id, no";
    let by = (shard.0.cast_signed(), columns(scope).1);
    let rows = session.query(sql, params![metric_nos.to_vec(), ids, keys, offsets, by.0, by.1])?;
    rows.iter().map(|row| Ok((SeriesId(get::<UuidBytes>(row, 0)?.0), get(row, 1)?))).collect()
}

/// The numbers of the metrics of some series, by tenant and name.
fn metrics(
    session: &mut PostgresSession,
    scope: SeriesScope,
    series: &[SeriesWrite<'_>],
) -> Result<BTreeMap<(String, String), i32>, StoreError> {
    let names: BTreeSet<(&str, &str)> =
        series.iter().map(|w| (&*w.info.series.tenant, &*w.info.series.metric)).collect();
    let (tenants, metrics): (Vec<String>, Vec<String>) =
        names.iter().map(|(t, m)| ((*t).to_owned(), (*m).to_owned())).unzip();
    let select = "SELECT t.name, m.name, m.no FROM unnest($1::text[], $2::text[]) AS w (tenant, \
                  metric)
        JOIN tenants t ON t.name = w.tenant JOIN metrics m ON m.tenant_no = t.no AND m.name = \
                  w.metric AND m.generation = $3";
    let (generation, _) = columns(scope);
    let mut found = BTreeMap::new();
    // The second round reads what the inserts left, including rows of a concurrent transaction.
    for again in [false, true] {
        for row in session.query(select, params![tenants.clone(), metrics.clone(), generation])? {
            found.insert((get(&row, 0)?, get(&row, 1)?), get(&row, 2)?);
        }
        if again || found.len() == names.len() {
            break;
        }
        // Sorted and without repetition: every statement locks rows in key order.
        let new = "INSERT INTO tenants (name) SELECT DISTINCT name FROM unnest($1::text[]) AS w \
                   (name)
            WHERE NOT EXISTS (SELECT FROM tenants t WHERE t.name = w.name) ORDER BY name ON \
                   CONFLICT DO NOTHING";
        session.execute(new, params![tenants.clone()])?;
        let new =
            "INSERT INTO metrics (tenant_no, name, generation) SELECT t.no, w.metric, $3 FROM \
                   unnest($1::text[], $2::text[]) AS w (tenant, metric)
            JOIN tenants t ON t.name = w.tenant WHERE NOT EXISTS (SELECT FROM metrics m WHERE \
                   m.tenant_no = t.no AND m.name = w.metric AND m.generation = $3)
            ORDER BY t.no, w.metric ON CONFLICT DO NOTHING";
        session.execute(new, params![tenants.clone(), metrics.clone(), generation])?;
    }
    Ok(found)
}

/// Records which series carry which labels.
fn insert_labels(
    session: &mut PostgresSession,
    labels: &[(Label<'_>, Vec<i64>)],
) -> Result<(), StoreError> {
    let metric_nos: Vec<i32> = labels.iter().map(|(key, _)| key.0).collect();
    let names: Vec<String> = labels.iter().map(|(key, _)| key.1.to_owned()).collect();
    let values: Vec<String> = labels.iter().map(|(key, _)| key.2.to_owned()).collect();
    let new = "INSERT INTO label_pairs (metric_no, name, value)
        SELECT w.metric_no, w.name, w.value FROM unnest($1::integer[], $2::text[], $3::text[]) AS \
               w (metric_no, name, value)
        WHERE NOT EXISTS (SELECT FROM label_pairs p WHERE p.metric_no = w.metric_no AND p.name = \
               w.name AND p.value = w.value)
        ORDER BY w.metric_no, w.name COLLATE \"C\", w.value COLLATE \"C\" ON CONFLICT DO NOTHING";
    session.execute(new, params![metric_nos.clone(), names.clone(), values.clone()])?;
    let select = "SELECT w.at, p.no FROM unnest($1::integer[], $2::text[], $3::text[]) WITH \
                  ORDINALITY AS w (metric_no, name, value, at)
        JOIN label_pairs p ON p.metric_no = w.metric_no AND p.name = w.name AND p.value = w.value";
    let (mut pair_nos, mut series_nos) = (Vec::new(), Vec::new());
    for row in session.query(select, params![metric_nos, names, values])? {
        let at: i64 = get(&row, 0)?;
        for series_no in labels.get(at as usize - 1).into_iter().flat_map(|(_, nos)| nos) {
            pair_nos.push(get::<i64>(&row, 1)?);
            series_nos.push(*series_no);
        }
    }
    let sql = "INSERT INTO series_labels (pair_no, series_no) SELECT * FROM unnest($1::bigint[], \
               $2::bigint[])";
    session.execute(sql, params![pair_nos, series_nos])?;
    Ok(())
}
