//! The port for boards. They are no part of what a rebuild makes: nothing but the store has them.

use super::StoreError;
use crate::model::board::{BoardChange, BoardId, NewBoard, StoredBoard};
use crate::model::budget::QueryBudget;

/// Boards of tenants. Even while the store does not answer, every method fails soon after
/// `request` has ended: with [`StoreError::QueryEnded`] if nothing was written, with
/// [`StoreError::Unknown`] if the commit was under way.
pub trait BoardStore: Send + Sync + 'static {
    /// The tenant's boards with ids greater than `after`, ascending, at most `limit`, without
    /// their documents.
    ///
    /// # Errors
    /// If the store does not answer, or holds what is no board.
    fn boards(
        &self,
        tenant: &str,
        after: &str,
        limit: usize,
        request: Option<&QueryBudget>,
    ) -> Result<Vec<StoredBoard>, StoreError>;
    /// One board, with its document.
    ///
    /// # Errors
    /// Like [`BoardStore::boards`].
    fn board(
        &self,
        tenant: &str,
        id: &BoardId,
        request: Option<&QueryBudget>,
    ) -> Result<Option<StoredBoard>, StoreError>;
    /// Makes a board if `expected` is `None`, or replaces the one of that version: compare-and-set.
    /// A tenant never has more than `max`.
    ///
    /// # Errors
    /// Any failure to write.
    fn put_board(
        &self,
        expected: Option<u64>,
        board: &NewBoard<'_>,
        max: usize,
        request: Option<&QueryBudget>,
    ) -> Result<BoardChange, StoreError>;
    /// Deletes the board of that version: compare-and-set.
    ///
    /// # Errors
    /// Any failure to write.
    fn delete_board(
        &self,
        tenant: &str,
        id: &BoardId,
        expected: u64,
        request: Option<&QueryBudget>,
    ) -> Result<BoardChange, StoreError>;
}

/// A board from its columns. Only what [`BoardId::parse`] takes is ever written.
pub(super) fn stored(
    (id, version, changed): (String, i64, i64),
    (by, name, document): (String, String, String),
) -> Result<StoredBoard, StoreError> {
    let id = BoardId::parse(&id)
        .ok_or_else(|| StoreError::Invalid(format!("{id:?} in the table boards is no id")))?;
    Ok(StoredBoard { id, version: version as u64, changed, by, name, document })
}
