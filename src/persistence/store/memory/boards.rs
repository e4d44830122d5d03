//! Boards: a map by tenant and id.

use std::sync::Arc;

use super::{MemoryStore, StoreWrite};
use crate::model::board::{BoardChange, BoardId, NewBoard, StoredBoard, next_version};
use crate::model::budget::QueryBudget;
use crate::persistence::store::{BoardStore, StoreError};

impl BoardStore for MemoryStore {
    fn boards(
        &self,
        tenant: &str,
        after: &str,
        limit: usize,
        _: Option<&QueryBudget>,
    ) -> Result<Vec<StoredBoard>, StoreError> {
        let state = Arc::clone(&self.lock());
        let of_tenant = state.boards.iter().filter(|((of, _), _)| of == tenant);
        let behind = of_tenant.filter(|((_, id), _)| id.as_str() > after);
        let listed = |board: &StoredBoard| StoredBoard { document: String::new(), ..board.clone() };
        Ok(behind.take(limit).map(|(_, board)| listed(board)).collect())
    }

    fn board(
        &self,
        tenant: &str,
        id: &BoardId,
        _: Option<&QueryBudget>,
    ) -> Result<Option<StoredBoard>, StoreError> {
        Ok(self.lock().boards.get(&(tenant.to_owned(), id.clone())).cloned())
    }

    fn put_board(
        &self,
        expected: Option<u64>,
        board: &NewBoard<'_>,
        max: usize,
        _: Option<&QueryBudget>,
    ) -> Result<BoardChange, StoreError> {
        self.write(StoreWrite::Boards, |state| {
            let key = (board.tenant.to_owned(), board.id.clone());
            let found = state.boards.get(&key).map(|board| board.version);
            if found != expected {
                return Ok(BoardChange::Conflict(found));
            }
            let has = state.boards.keys().filter(|(of, _)| of == board.tenant).count();
            if found.is_none() && has >= max {
                return Ok(BoardChange::Full);
            }
            let version = next_version(found, board.now);
            let stored = StoredBoard {
                id: board.id.clone(),
                version,
                changed: board.now,
                by: board.by.to_owned(),
                name: board.name.to_owned(),
                document: board.document.to_owned(),
            };
            Arc::make_mut(state).boards.insert(key, stored);
            Ok(BoardChange::Done(version))
        })
    }

    fn delete_board(
        &self,
        tenant: &str,
        id: &BoardId,
        expected: u64,
        _: Option<&QueryBudget>,
    ) -> Result<BoardChange, StoreError> {
        self.write(StoreWrite::Boards, |state| {
            let key = (tenant.to_owned(), id.clone());
            let found = state.boards.get(&key).map(|board| board.version);
            if found != Some(expected) {
                return Ok(BoardChange::Conflict(found));
            }
            Arc::make_mut(state).boards.remove(&key);
            Ok(BoardChange::Done(expected))
        })
    }
}
