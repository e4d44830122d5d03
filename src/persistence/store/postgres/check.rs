//! How PostgreSQL is looked through for damage ([`super::super::check`]): in one snapshot, week by
//! week.
//!
//! Rows have no checksum of ours: pages have the server's (`initdb --data-checksums`), and a
//! damaged one fails the statement that reads it, which is found here and named (ADR 31).

use std::time::Duration;

use tokio_postgres::Row;
use tokio_postgres::types::Type;

use super::codec::{Id, get};
use super::session::{Session, params};
use super::{Damage, PostgresStore, StoreError, snapshot};
use crate::persistence::store::check::{self, Columns, Found, Tables, VisitRow};

/// No statement of a week takes so long, unless it is stuck.
const PATIENCE: Duration = Duration::from_secs(3_600);

/// Joins of whole weeks are what the planner's own ways are for; queries have them off.
const SETTINGS: &str = "SET LOCAL enable_hashjoin = on; SET LOCAL enable_mergejoin = on; SET \
                        LOCAL enable_sort = on; SAVEPOINT look";

/// First hour and the one behind the last of every partition.
const PARTITIONS: &str = "SELECT DISTINCT substring(bound FROM 'FROM \\(''?(-?\\d+)')::bigint, \
                          substring(bound FROM 'TO \\(''?(-?\\d+)')::bigint
    FROM (SELECT pg_get_expr(c.relpartbound, c.oid) AS bound FROM pg_inherits i JOIN pg_class c ON \
                          c.oid = i.inhrelid
    JOIN pg_class p ON p.oid = i.inhparent JOIN pg_namespace n ON n.oid = p.relnamespace
    WHERE n.nspname = 'rollmill' AND p.relname IN ('rollups', 'sketches') AND p.relkind = 'p') AS \
                          parts ORDER BY 1";
const CHUNKS: &str = "SELECT DISTINCT range_start_integer, range_end_integer FROM \
                      timescaledb_information.chunks
    WHERE hypertable_schema = 'rollmill' AND hypertable_name IN ('rollups', 'sketches') ORDER BY 1";

impl PostgresStore {
    pub(super) fn look_for_damage(&self, tell: &mut dyn FnMut(Damage)) -> Result<(), StoreError> {
        let mut lease = self.readers.begin(snapshot::BEGIN)?;
        let session = lease.session()?;
        session
            .batch(format!("SET LOCAL statement_timeout = {}; {SETTINGS}", PATIENCE.as_millis()))?;
        let mut found = Found::new(tell);
        check::contradictions(&mut View(session), &mut found)?;
        found.end();
        Ok(())
    }
}

struct View<'a>(&'a mut Session);

impl Tables for View<'_> {
    fn each(&mut self, sql: &str, visit: &mut VisitRow<'_>) -> Result<(), StoreError> {
        self.0.allow(PATIENCE);
        let mut failed = None;
        // A row that cannot be used is no reason to leave the others unread: the session serves the
        // next statement.
        self.0.each(sql, params![], |row| {
            failed = failed.take().or_else(|| visit(row).err());
            Ok(())
        })?;
        failed.map_or(Ok(()), Err)
    }

    fn pieces(&mut self) -> Result<Vec<(i64, i64)>, StoreError> {
        let mut pieces = Vec::new();
        for sql in [Some(PARTITIONS), Some(CHUNKS).filter(|_| self.0.backend.timescale)]
            .into_iter()
            .flatten()
        {
            self.0.allow(PATIENCE);
            for row in self.0.query(sql, params![])? {
                pieces.push((get(&row, 0)?, get(&row, 1)?));
            }
        }
        Ok(pieces)
    }

    fn recover(&mut self) -> Result<(), StoreError> {
        self.0.allow(PATIENCE);
        Ok(self.0.batch("ROLLBACK TO SAVEPOINT look".to_owned())?)
    }
}

impl Columns for Row {
    fn int(&self, at: usize) -> Result<Option<i64>, StoreError> {
        match self.columns().get(at).map(|column| column.type_()) {
            Some(&Type::INT2) => Ok(get::<Option<i16>>(self, at)?.map(i64::from)),
            Some(&Type::INT4) => Ok(get::<Option<i32>>(self, at)?.map(i64::from)),
            _ => get(self, at),
        }
    }

    fn text(&self, at: usize) -> Result<&str, StoreError> {
        get(self, at)
    }

    fn bytes(&self, at: usize) -> Result<Vec<u8>, StoreError> {
        match self.columns().get(at).map(|column| column.type_()) {
            Some(&Type::UUID) => Ok(get::<Id>(self, at)?.0.to_vec()),
            _ => get(self, at),
        }
    }
}
