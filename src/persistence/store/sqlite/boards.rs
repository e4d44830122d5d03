//! Boards: one row each, with a checksum, because nothing else has what it holds.

use rusqlite::{Connection, Row, params};

use super::{SqliteStore, StoreError, codec, query_optional};
use crate::model::board::{BoardChange, BoardId, NewBoard, StoredBoard, next_version};
use crate::model::budget::QueryBudget;
use crate::persistence::store::BoardStore;
use crate::persistence::store::boards::stored;

const COLUMNS: &str = "id, version, changed, by, name, document";

/// The checksum of a board.
pub(super) fn checksum(tenant: &str, board: &StoredBoard) -> i64 {
    codec::row_checksum(&[
        tenant.as_bytes(),
        board.id.as_str().as_bytes(),
        &board.version.to_be_bytes(),
        &board.changed.to_be_bytes(),
        board.by.as_bytes(),
        board.name.as_bytes(),
        board.document.as_bytes(),
    ])
}

/// A board from the first six columns.
fn read(row: &Row<'_>) -> Result<StoredBoard, StoreError> {
    stored((row.get(0)?, row.get(1)?, row.get(2)?), (row.get(3)?, row.get(4)?, row.get(5)?))
}

/// The boards of all tenants, each with its row's checksum.
pub(super) fn all(
    connection: &Connection,
) -> Result<Vec<(String, StoredBoard, Option<i64>)>, StoreError> {
    let sql = format!("SELECT {COLUMNS}, tenant, sum FROM boards ORDER BY tenant, id");
    let mut statement = connection.prepare(&sql)?;
    let mut rows = statement.query([])?;
    let mut all = Vec::new();
    while let Some(row) = rows.next()? {
        all.push((row.get(6)?, read(row)?, row.get(7)?));
    }
    Ok(all)
}

fn version_of(tx: &Connection, tenant: &str, id: &BoardId) -> Result<Option<u64>, StoreError> {
    let sql = "SELECT version FROM boards WHERE tenant = ? AND id = ?";
    query_optional(tx, sql, [tenant, id.as_str()], |row| Ok(row.get::<_, i64>(0)? as u64))
}

fn put(
    tx: &Connection,
    expected: Option<u64>,
    new: &NewBoard<'_>,
    max: usize,
) -> Result<BoardChange, StoreError> {
    let found = version_of(tx, new.tenant, new.id)?;
    if found != expected {
        return Ok(BoardChange::Conflict(found));
    }
    let has = "SELECT count(*) FROM boards WHERE tenant = ?";
    let has: i64 = tx.prepare_cached(has)?.query_row([new.tenant], |row| row.get(0))?;
    if found.is_none() && has >= i64::try_from(max).unwrap_or(i64::MAX) {
        return Ok(BoardChange::Full);
    }
    let board = StoredBoard {
        id: new.id.clone(),
        version: next_version(found, new.now),
        changed: new.now,
        by: new.by.to_owned(),
        name: new.name.to_owned(),
        document: new.document.to_owned(),
    };
    let sql =
        "INSERT OR REPLACE INTO boards (tenant, id, version, changed, by, name, document, sum)
        VALUES (?, ?, ?, ?, ?, ?, ?, ?)";
    tx.prepare_cached(sql)?.execute(params![
        new.tenant,
        board.id.as_str(),
        board.version as i64,
        board.changed,
        board.by,
        board.name,
        board.document,
        checksum(new.tenant, &board)
    ])?;
    Ok(BoardChange::Done(board.version))
}

impl BoardStore for SqliteStore {
    fn boards(
        &self,
        tenant: &str,
        after: &str,
        limit: usize,
        _: Option<&QueryBudget>,
    ) -> Result<Vec<StoredBoard>, StoreError> {
        let reader = self.readers.take()?;
        let sql = "SELECT id, version, changed, by, name, '' FROM boards WHERE tenant = ? AND id > \
                   ? ORDER BY id LIMIT ?";
        let mut statement = reader.connection()?.prepare_cached(sql)?;
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        let mut rows = statement.query(params![tenant, after, limit])?;
        let mut boards = Vec::new();
        while let Some(row) = rows.next()? {
            boards.push(read(row)?);
        }
        Ok(boards)
    }

    fn board(
        &self,
        tenant: &str,
        id: &BoardId,
        _: Option<&QueryBudget>,
    ) -> Result<Option<StoredBoard>, StoreError> {
        let reader = self.readers.take()?;
        let sql = format!("SELECT {COLUMNS} FROM boards WHERE tenant = ? AND id = ?");
        let found =
            query_optional(reader.connection()?, &sql, [tenant, id.as_str()], |row| Ok(read(row)))?;
        found.transpose()
    }

    fn put_board(
        &self,
        expected: Option<u64>,
        board: &NewBoard<'_>,
        max: usize,
        _: Option<&QueryBudget>,
    ) -> Result<BoardChange, StoreError> {
        self.writer()?.transaction(|tx, _| put(tx, expected, board, max))
    }

    fn delete_board(
        &self,
        tenant: &str,
        id: &BoardId,
        expected: u64,
        _: Option<&QueryBudget>,
    ) -> Result<BoardChange, StoreError> {
        self.writer()?.transaction(|tx, _| {
            let found = version_of(tx, tenant, id)?;
            if found != Some(expected) {
                return Ok(BoardChange::Conflict(found));
            }
            let sql = "DELETE FROM boards WHERE tenant = ? AND id = ?";
            tx.prepare_cached(sql)?.execute([tenant, id.as_str()])?;
            Ok(BoardChange::Done(expected))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::persistence::store::StoreInspection;

    #[test]
    fn a_damaged_board_is_found() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("store.db");
        let store = SqliteStore::open(&path).expect("a store");
        let id = BoardId::parse("shop").expect("an id");
        let board =
            NewBoard { tenant: "acme", id: &id, now: 1, by: "rm_1", name: "Shop", document: "{}" };
        assert_eq!(store.put_board(None, &board, 9, None), Ok(BoardChange::Done(1)));
        let raw = Connection::open(&path).expect("the file");
        raw.execute_batch("UPDATE boards SET document = '[]'").expect("damaged");
        let mut found = Vec::new();
        store.check(&mut |damage| found.push(damage)).expect("looks");
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].location == "boards" && found[0].reason.contains("shop"), "{found:?}");
    }
}
