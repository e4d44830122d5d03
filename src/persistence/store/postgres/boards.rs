//! Boards: one row each, changed by compare-and-set on its version.

use tokio_postgres::Row;

use super::codec::get;
use super::session::{Param, PostgresSession, params};
use super::{PostgresStore, StoreError};
use crate::model::board::{BoardChange, BoardId, NewBoard, StoredBoard, next_version};
use crate::model::budget::QueryBudget;
use crate::model::offset::ShardId;
use crate::persistence::store::BoardStore;
use crate::persistence::store::boards::stored;

/// Of one tenant, boards are changed one after the other, so that their number stays exact. Nothing
/// else takes this lock.
const LOCK: &str = "SELECT pg_advisory_xact_lock(7094703, hashtext($1))";

/// A board from the first six columns.
fn read(row: &Row) -> Result<StoredBoard, StoreError> {
    let text = |at| get::<String>(row, at);
    stored((text(0)?, get(row, 1)?, get(row, 2)?), (text(3)?, text(4)?, text(5)?))
}

fn lock_version(
    session: &mut PostgresSession,
    tenant: &str,
    id: &BoardId,
) -> Result<Option<u64>, StoreError> {
    session.query(LOCK, params![tenant.to_owned()])?;
    let sql = "SELECT version FROM boards WHERE tenant = $1 AND id = $2 FOR UPDATE";
    let rows = session.query(sql, params![tenant.to_owned(), id.as_str().to_owned()])?;
    rows.first().map(|row| Ok(get::<i64>(row, 0)? as u64)).transpose()
}

/// Writes a board over what is there.
pub(super) fn upsert(tenant: &str, board: &StoredBoard) -> (&'static str, Vec<Param>) {
    let sql = "INSERT INTO boards (tenant, id, version, changed, by, name, document) VALUES ($1, $2, \
               $3, $4, $5, $6, $7) ON CONFLICT (tenant, id) DO UPDATE SET version = \
               excluded.version, changed = excluded.changed, by = excluded.by, name = \
               excluded.name, document = excluded.document";
    let params = params![
        tenant.to_owned(),
        board.id.as_str().to_owned(),
        board.version as i64,
        board.changed,
        board.by.clone(),
        board.name.clone(),
        board.document.clone()
    ];
    (sql, params)
}

fn put(
    session: &mut PostgresSession,
    expected: Option<u64>,
    new: &NewBoard<'_>,
    max: usize,
) -> Result<BoardChange, StoreError> {
    let found = lock_version(session, new.tenant, new.id)?;
    if found != expected {
        return Ok(BoardChange::Conflict(found));
    }
    if found.is_none() {
        let has = "SELECT count(*) FROM boards WHERE tenant = $1";
        let rows = session.query(has, params![new.tenant.to_owned()])?;
        let has = rows.first().map_or(Ok(0), |row| get::<i64>(row, 0))?;
        if has >= i64::try_from(max).unwrap_or(i64::MAX) {
            return Ok(BoardChange::Full);
        }
    }
    let board = StoredBoard {
        id: new.id.clone(),
        version: next_version(found, new.now),
        changed: new.now,
        by: new.by.to_owned(),
        name: new.name.to_owned(),
        document: new.document.to_owned(),
    };
    let (sql, params) = upsert(new.tenant, &board);
    session.execute(sql, params)?;
    Ok(BoardChange::Done(board.version))
}

impl PostgresStore {
    fn read_boards(
        &self,
        request: Option<&QueryBudget>,
        sql: &str,
        params: Vec<Param>,
    ) -> Result<Vec<StoredBoard>, StoreError> {
        let request = request.map(QueryBudget::cancel_flag);
        let mut lease = self.readers.begin_for("BEGIN READ ONLY", request.as_ref())?;
        let rows = lease.session()?.query(sql, params)?;
        let boards = rows.iter().map(read).collect();
        lease.session()?.commit()?;
        boards
    }
}

impl BoardStore for PostgresStore {
    fn boards(
        &self,
        tenant: &str,
        after: &str,
        limit: usize,
        request: Option<&QueryBudget>,
    ) -> Result<Vec<StoredBoard>, StoreError> {
        let sql = "SELECT id, version, changed, by, name, '' FROM boards WHERE tenant = $1 AND id > \
                   $2 ORDER BY id LIMIT $3";
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        self.read_boards(request, sql, params![tenant.to_owned(), after.to_owned(), limit])
    }

    fn board(
        &self,
        tenant: &str,
        id: &BoardId,
        request: Option<&QueryBudget>,
    ) -> Result<Option<StoredBoard>, StoreError> {
        let sql = "SELECT id, version, changed, by, name, document FROM boards WHERE tenant = $1 AND \
                   id = $2";
        let key = params![tenant.to_owned(), id.as_str().to_owned()];
        Ok(self.read_boards(request, sql, key)?.pop())
    }

    fn put_board(
        &self,
        expected: Option<u64>,
        board: &NewBoard<'_>,
        max: usize,
        request: Option<&QueryBudget>,
    ) -> Result<BoardChange, StoreError> {
        let request = request.map(QueryBudget::cancel_flag);
        self.transaction_for(ShardId(0), request.as_ref(), |session| {
            put(session, expected, board, max)
        })
    }

    fn delete_board(
        &self,
        tenant: &str,
        id: &BoardId,
        expected: u64,
        request: Option<&QueryBudget>,
    ) -> Result<BoardChange, StoreError> {
        let request = request.map(QueryBudget::cancel_flag);
        self.transaction_for(ShardId(0), request.as_ref(), |session| {
            let found = lock_version(session, tenant, id)?;
            if found != Some(expected) {
                return Ok(BoardChange::Conflict(found));
            }
            let sql = "DELETE FROM boards WHERE tenant = $1 AND id = $2";
            session.execute(sql, params![tenant.to_owned(), id.as_str().to_owned()])?;
            Ok(BoardChange::Done(expected))
        })
    }
}
