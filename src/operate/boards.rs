//! Boards: saved panels of a tenant, in the store, with compare-and-set on their version.
//!
//! A board is checked here and nowhere else, so the store has none that is larger than the limits.
//! Its question is the page's own: the server bounds it and does not read it.

use std::sync::Arc;

use super::service::{BoardAuthor, BoardPage, BoardService, BoardVersion, OperateError};
use crate::api::boards::{Board, BoardInfo, BoardsAnswer};
use crate::api::timestamp;
use crate::clock::Clock;
use crate::model::board::{BoardChange, BoardId, NewBoard, StoredBoard};
use crate::model::budget::QueryBudget;
use crate::persistence::store::BoardStore;

/// Longest name and title, in characters.
const MAX_NAME: usize = 200;
/// Columns of the page.
const COLUMNS: u16 = 12;
/// Heights of a panel, in pixels.
const HEIGHTS: std::ops::RangeInclusive<u16> = 80..=4_000;

/// How large boards may be, and how many a tenant may have: `boards.*`.
#[derive(Debug, Clone, Copy)]
pub struct BoardLimits {
    /// Boards of a tenant.
    pub boards: usize,
    /// Bytes of a board, as JSON.
    pub bytes: usize,
    /// Panels of a board.
    pub panels: usize,
}

/// Boards of a store.
pub struct StoreBoards {
    store: Arc<dyn BoardStore>,
    clock: Arc<dyn Clock>,
    limits: BoardLimits,
}

impl StoreBoards {
    /// Creates the service on this store.
    pub fn new(
        store: Arc<dyn BoardStore>,
        clock: Arc<dyn Clock>,
        limits: BoardLimits,
    ) -> Arc<Self> {
        Arc::new(Self { store, clock, limits })
    }
}

/// Why a board is refused, with the way out; `None` if it is none.
fn mistake(board: &Board, limits: &BoardLimits) -> Option<OperateError> {
    let wrong = |why: String| Some(OperateError::BoardInvalid(why));
    // A name is in lists of its own, and PostgreSQL has no text with the character NUL.
    let is_name = !board.name.trim().is_empty()
        && board.name.chars().count() <= MAX_NAME
        && !board.name.contains(char::is_control);
    if !is_name {
        let why = format!("the name of a board is 1 to {MAX_NAME} characters, none of control");
        return wrong(why);
    }
    if board.panels.len() > limits.panels {
        let (has, max) = (board.panels.len(), limits.panels);
        let why = format!(
            "the board has {has} panels, at most {max} are kept (boards.max_panels): make two of it"
        );
        return Some(OperateError::BoardTooLarge(why));
    }
    for (at, panel) in board.panels.iter().enumerate() {
        let of = format!("panel {at} (from 0)");
        if panel.title.chars().count() > MAX_NAME {
            return wrong(format!("{of}: a title is at most {MAX_NAME} characters"));
        }
        if panel.width.is_some_and(|width| !(1..=COLUMNS).contains(&width)) {
            return wrong(format!("{of}: width is a number of columns from 1 to {COLUMNS}"));
        }
        if panel.height.is_some_and(|height| !HEIGHTS.contains(&height)) {
            let (least, most) = (HEIGHTS.start(), HEIGHTS.end());
            return wrong(format!("{of}: height is {least} to {most} pixels"));
        }
    }
    None
}

fn too_many_bytes(bytes: usize, limits: &BoardLimits) -> OperateError {
    let max = limits.bytes;
    OperateError::BoardTooLarge(format!(
        "the board has {bytes} bytes, at most {max} are kept (boards.max_bytes): make two of it"
    ))
}

/// A board from the bytes of a request, and the document that is stored.
fn read(body: &[u8], limits: &BoardLimits) -> Result<(Board, String), OperateError> {
    // Before it is parsed, which takes several times as much memory.
    if body.len() > limits.bytes {
        return Err(too_many_bytes(body.len(), limits));
    }
    let board: Board = serde_json::from_slice(body).map_err(|error| {
        OperateError::BoardInvalid(format!(
            "a board is {{\"name\":\"…\",\"panels\":[{{\"title\":\"…\",\"question\":\"…\"}}]}}: {:.200}",
            error.to_string()
        ))
    })?;
    if let Some(mistake) = mistake(&board, limits) {
        return Err(mistake);
    }
    let document = serde_json::to_string(&board)
        .map_err(|error| OperateError::BoardInvalid(format!("it cannot be kept: {error}")))?;
    if document.len() > limits.bytes {
        return Err(too_many_bytes(document.len(), limits));
    }
    Ok((board, document))
}

fn info(id: String, name: String, version: u64, (changed, by): (i64, String)) -> BoardInfo {
    BoardInfo { id, name, version, changed: timestamp(changed), by }
}

fn unknown(id: &BoardId) -> OperateError {
    OperateError::NoBoard(format!("there is no board {}: see GET /v1/boards", id.as_str()))
}

/// The version that a change left, or why there is none.
fn settled(change: BoardChange, id: &BoardId, limits: &BoardLimits) -> Result<u64, OperateError> {
    match change {
        BoardChange::Done(version) => Ok(version),
        BoardChange::Conflict(Some(version)) => Err(OperateError::BoardChanged(format!(
            "board {} is of version {version} by now: read it again, and change that",
            id.as_str()
        ))),
        BoardChange::Conflict(None) => Err(OperateError::BoardChanged(format!(
            "there is no board {} any more: make it anew with If-None-Match: *",
            id.as_str()
        ))),
        BoardChange::Full => Err(OperateError::TooManyBoards(format!(
            "the tenant has {} boards, which is as many as it may have (boards.max): delete one",
            limits.boards
        ))),
    }
}

impl BoardService for StoreBoards {
    fn list(
        &self,
        tenant: &str,
        page: &BoardPage,
        budget: &QueryBudget,
    ) -> Result<BoardsAnswer, OperateError> {
        let mut found = self.store.boards(tenant, &page.after, page.limit + 1, Some(budget))?;
        let has_more = found.len() > page.limit;
        found.truncate(page.limit);
        let next = found.last().filter(|_| has_more).map(|last| last.id.as_str().to_owned());
        let boards = found.into_iter().map(|board| {
            let StoredBoard { id, version, changed, by, name, .. } = board;
            info(id.as_str().to_owned(), name, version, (changed, by))
        });
        Ok(BoardsAnswer { boards: boards.collect(), next })
    }

    fn show(
        &self,
        tenant: &str,
        id: &BoardId,
        budget: &QueryBudget,
    ) -> Result<(u64, String), OperateError> {
        let found = self.store.board(tenant, id, Some(budget))?;
        found.map(|board| (board.version, board.document)).ok_or_else(|| unknown(id))
    }

    fn put(
        &self,
        author: &BoardAuthor,
        id: &BoardId,
        (expected, body): (BoardVersion, &[u8]),
        budget: &QueryBudget,
    ) -> Result<BoardInfo, OperateError> {
        let (board, document) = read(body, &self.limits)?;
        let now = self.clock.now();
        let new = NewBoard {
            tenant: &author.tenant,
            id,
            now,
            by: &author.by,
            name: &board.name,
            document: &document,
        };
        let before = match expected {
            BoardVersion::New => None,
            BoardVersion::Is(version) => Some(version),
        };
        let change = self.store.put_board(before, &new, self.limits.boards, Some(budget))?;
        let version = settled(change, id, &self.limits)?;
        Ok(info(id.as_str().to_owned(), board.name, version, (now, author.by.clone())))
    }

    fn delete(
        &self,
        tenant: &str,
        id: &BoardId,
        version: u64,
        budget: &QueryBudget,
    ) -> Result<(), OperateError> {
        match self.store.delete_board(tenant, id, version, Some(budget))? {
            BoardChange::Conflict(None) => Err(unknown(id)),
            change => settled(change, id, &self.limits).map(drop),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: BoardLimits = BoardLimits { boards: 2, bytes: 1_000, panels: 2 };

    fn refusal(body: &str) -> OperateError {
        read(body.as_bytes(), &LIMITS).expect_err(body)
    }

    #[test]
    fn a_board_is_kept_as_it_was_sent_and_has_one_form() {
        let sent = r#"{ "panels": [{"question": "metric=a&by=\u003cscript\u003e", "title": "</script>",
            "width": 6}], "name": "Läden <b>" }"#;
        let (board, document) = read(sent.as_bytes(), &LIMITS).expect("a board");
        // Golden: what stores hold, and what an older board must go on being read as.
        let kept = r#"{"name":"Läden <b>","panels":[{"title":"</script>","question":"metric=a&by=<script>","width":6}]}"#;
        assert_eq!(document, kept);
        assert_eq!(read(document.as_bytes(), &LIMITS), Ok((board, document.clone())));
        let least = r#"{"name":"x","panels":[]}"#;
        assert_eq!(read(least.as_bytes(), &LIMITS).expect("a board").1, least);
    }

    #[test]
    fn what_is_too_large_or_wrong_is_named() {
        let panel = r#"{"title":"t","question":"q"}"#;
        for (body, part) in [
            ("", "a board is {"),
            ("[]", "a board is {"),
            (r#"{"name":"x"}"#, "panels"),
            (r#"{"name":"x","panels":[],"owner":"me"}"#, "owner"),
            (r#"{"name":" ","panels":[]}"#, "name"),
            (r#"{"name":"a\u0000b","panels":[]}"#, "name"),
            (r#"{"name":"a\nb","panels":[]}"#, "name"),
            (r#"{"name":"x","panels":[{"title":"t"}]}"#, "question"),
            (r#"{"name":"x","panels":[{"title":"t","question":"q","width":13}]}"#, "panel 0"),
            (r#"{"name":"x","panels":[{"title":"t","question":"q","height":1}]}"#, "height"),
            (r#"{"name":"x","panels":[{"title":"t","question":"q","width":-1}]}"#, "-1"),
        ] {
            let why = refusal(body);
            assert!(matches!(&why, OperateError::BoardInvalid(why) if why.contains(part)), "{why}");
        }
        let name = format!(r#"{{"name":"{}","panels":[]}}"#, "ä".repeat(201));
        assert!(matches!(refusal(&name), OperateError::BoardInvalid(_)));
        let many = format!(r#"{{"name":"x","panels":[{panel},{panel},{panel}]}}"#);
        let long = format!(r#"{{"name":"x","panels":[]}}{}"#, " ".repeat(1_000));
        let deep = "[".repeat(900);
        for (body, part) in [(&many, "boards.max_panels"), (&long, "boards.max_bytes")] {
            let why = refusal(body);
            assert!(
                matches!(&why, OperateError::BoardTooLarge(why) if why.contains(part)),
                "{why}"
            );
        }
        assert!(matches!(refusal(&deep), OperateError::BoardInvalid(_)));
    }
}
