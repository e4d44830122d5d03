//! Boards: saved panels of a tenant, each one document with a version for compare-and-set. Pure.

use super::window::Millis;

/// Longest id, in bytes.
const MAX_ID: usize = 64;

/// The id of a board, unique for its tenant: 1 to 64 of `a-z`, `0-9` and `-`, not beginning with `-`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct BoardId(String);

impl BoardId {
    /// Checks an id; `None` if it is none.
    pub fn parse(text: &str) -> Option<Self> {
        let is_of_id =
            |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        let is_id = (1..=MAX_ID).contains(&text.len()) && text.bytes().all(is_of_id);
        (is_id && !text.starts_with('-')).then(|| Self(text.to_owned()))
    }

    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// A board as it is stored.
#[allow(missing_docs, reason = "the names say it")]
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredBoard {
    pub id: BoardId,
    pub version: u64,
    /// By the wall clock.
    pub changed: Millis,
    /// The prefix of the key that changed it.
    pub by: String,
    /// What people call it.
    pub name: String,
    /// The document, as JSON.
    pub document: String,
}

/// A board as somebody wants it to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NewBoard<'a> {
    /// The tenant of the key.
    pub tenant: &'a str,
    /// The id in the address.
    pub id: &'a BoardId,
    /// Wall time in milliseconds.
    pub now: Millis,
    /// The prefix of the key.
    pub by: &'a str,
    /// What people call it.
    pub name: &'a str,
    /// The document, as JSON.
    pub document: &'a str,
}

/// What became of a change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BoardChange {
    /// It is done; the board has this version.
    Done(u64),
    /// The board is of another version; `None` if there is none.
    Conflict(Option<u64>),
    /// The tenant has as many boards as it may.
    Full,
}

/// The version that follows. It never repeats for an id, not even after the board was deleted and
/// made again, so that nobody overwrites a board that they have not seen.
pub fn next_version(before: Option<u64>, now: Millis) -> u64 {
    let after = before.map_or(1, |before| before.saturating_add(1));
    after.max(u64::try_from(now).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_stand_in_an_address_as_they_are() {
        let long = "a".repeat(64);
        for id in ["shop", "a", "2026-q1", "0197-aa", &long] {
            assert_eq!(BoardId::parse(id).expect(id).as_str(), id);
        }
        for id in ["", "-a", "A", "a b", "a/b", "ä", "..", "a_b", "<script>", &"a".repeat(65)] {
            assert_eq!(BoardId::parse(id), None, "{id}");
        }
    }

    #[test]
    fn versions_grow_whatever_the_clock_says() {
        assert_eq!(next_version(None, 5_000), 5_000);
        assert_eq!(next_version(Some(5_000), 5_000), 5_001);
        assert_eq!(next_version(Some(9_000), 5_000), 9_001, "the clock went back");
        assert_eq!(next_version(None, -1), 1);
    }
}
