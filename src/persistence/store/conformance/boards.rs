//! Boards: compare-and-set, limits, tenants, pages.

use super::*;
use crate::model::board::{BoardChange, BoardId, NewBoard, StoredBoard};

fn id(text: &str) -> BoardId {
    BoardId::parse(text).expect("an id")
}

fn new<'a>(tenant: &'a str, id: &'a BoardId, now: Millis, document: &'a str) -> NewBoard<'a> {
    NewBoard { tenant, id, now, by: "rm_1", name: "Läden <b>", document }
}

pub(super) fn boards_change_by_their_version(store: &dyn RollupStore) {
    let (shop, other) = (id("shop"), id("a-2"));
    let put = |expected, board: NewBoard<'_>| {
        store.put_board(expected, &board, 2, None).expect("an answer")
    };
    assert_eq!(store.boards("acme", "", 9, None), Ok(vec![]));
    assert_eq!(store.board("acme", &shop, None), Ok(None));
    assert_eq!(put(Some(1), new("acme", &shop, 5, "{}")), BoardChange::Conflict(None));
    assert_eq!(
        put(None, new("acme", &shop, 1_000, "{\"a\":\"'\\u0000\"}")),
        BoardChange::Done(1_000)
    );
    assert_eq!(put(None, new("acme", &shop, 9_000, "{}")), BoardChange::Conflict(Some(1_000)));
    assert_eq!(put(Some(999), new("acme", &shop, 9_000, "{}")), BoardChange::Conflict(Some(1_000)));
    let stored = StoredBoard {
        id: shop.clone(),
        version: 1_000,
        changed: 1_000,
        by: "rm_1".to_owned(),
        name: "Läden <b>".to_owned(),
        document: "{\"a\":\"'\\u0000\"}".to_owned(),
    };
    assert_eq!(store.board("acme", &shop, None), Ok(Some(stored.clone())));
    // The clock went back, and the version goes on.
    assert_eq!(put(Some(1_000), new("acme", &shop, 7, "{\"b\":1}")), BoardChange::Done(1_001));
    let changed =
        StoredBoard { version: 1_001, changed: 7, document: "{\"b\":1}".to_owned(), ..stored };
    assert_eq!(store.board("acme", &shop, None), Ok(Some(changed.clone())));

    // As many as a tenant may have; others have their own.
    assert_eq!(put(None, new("acme", &other, 2_000, "{}")), BoardChange::Done(2_000));
    assert_eq!(put(None, new("acme", &id("third"), 2_000, "{}")), BoardChange::Full);
    assert_eq!(put(Some(1_001), new("acme", &shop, 2_000, "{}")), BoardChange::Done(2_000));
    assert_eq!(put(None, new("globex", &shop, 3_000, "{}")), BoardChange::Done(3_000));
    let ids = |after: &str, limit| -> Vec<String> {
        let found = store.boards("acme", after, limit, None).expect("an answer");
        assert!(found.iter().all(|board| board.document.is_empty() && board.name == "Läden <b>"));
        found.into_iter().map(|board| board.id.as_str().to_owned()).collect()
    };
    assert_eq!(
        (ids("", 9), ids("", 1), ids("a-2", 9)),
        (
            vec!["a-2".to_owned(), "shop".to_owned()],
            vec!["a-2".to_owned()],
            vec!["shop".to_owned()]
        )
    );

    let delete =
        |tenant, id, version| store.delete_board(tenant, id, version, None).expect("an answer");
    assert_eq!(delete("acme", &shop, 1_001), BoardChange::Conflict(Some(2_000)));
    assert_eq!(delete("globex", &other, 2_000), BoardChange::Conflict(None));
    assert_eq!(delete("acme", &shop, 2_000), BoardChange::Done(2_000));
    assert_eq!(delete("acme", &shop, 2_000), BoardChange::Conflict(None));
    assert_eq!((ids("", 9), store.board("acme", &shop, None)), (vec!["a-2".to_owned()], Ok(None)));
    assert!(store.board("globex", &shop, None).is_ok_and(|board| board.is_some()));
    store.check(&mut |damage| panic!("{damage:?}")).expect("looks");
}

/// Of many at once, one wins: with the same version, and for the last place.
pub(super) fn one_of_many_changes_wins(store: &dyn RollupStore) {
    let run = |expected: Option<u64>, id_of: &(dyn Fn(usize) -> BoardId + Sync), max| {
        std::thread::scope(|scope| {
            let one = |n: usize| {
                let id = id_of(n);
                let document = format!("{{\"n\":{n}}}");
                store.put_board(expected, &new("acme", &id, 10, &document), max, None)
            };
            let all: Vec<_> = (0..6).map(|n| scope.spawn(move || one(n))).collect();
            let done = all.into_iter().map(|one| one.join().expect("no panic"));
            done.filter(|change| matches!(change, Ok(BoardChange::Done(_)))).count()
        })
    };
    assert_eq!(run(None, &|_| id("same"), 100), 1);
    assert_eq!(run(Some(10), &|_| id("same"), 100), 1);
    assert_eq!(run(None, &|n| id(&format!("b{n}")), 4), 3, "there is one already");
}
