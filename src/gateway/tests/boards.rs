//! Boards over HTTP: versions, scopes, tenants, limits, and names with script in them.

use axum::http::HeaderMap;

use super::*;
use crate::model::board::{BoardId, NewBoard};
use crate::operate::boards::{BoardLimits, StoreBoards};
use crate::operate::service::BoardService;
use crate::persistence::store::BoardStore;
use crate::persistence::store::memory::MemoryStore;

/// Boards in memory; tenant acme has board 1.
pub(super) fn service() -> Arc<dyn BoardService> {
    let store = MemoryStore::new();
    for tenant in ["acme", "default"] {
        let id = BoardId::parse("1").expect("an id");
        let (by, name, document) = ("rm_0", "One", r#"{"name":"One","panels":[]}"#);
        let board = NewBoard { tenant, id: &id, now: NOW, by, name, document };
        store.put_board(None, &board, 9, None).expect("made");
    }
    let limits = BoardLimits { boards: 2, bytes: 4_096, panels: 3 };
    StoreBoards::new(store, ManualClock::at(NOW), limits)
}

fn key(seed: u8, tenant: &str, scopes: &[Scope]) -> (String, StoredKey) {
    let (plain, prefix, sha256) = new_key([seed; 24]);
    let (tenant, scopes) = (tenant.to_owned(), scopes.to_vec());
    (plain, StoredKey { prefix, sha256, tenant, scopes, expires_ms: None })
}

async fn ask(
    gateway: &Arc<Gateway>,
    (method, path): (&str, &str),
    headers: &[(&str, &str)],
    body: &str,
) -> (u16, HeaderMap, String) {
    let mut request = Request::builder()
        .method(method)
        .uri(path)
        .header("host", "localhost")
        .header("content-type", "application/json");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let request = request.body(Body::from(body.to_owned())).unwrap();
    let response = routes::router(gateway.clone()).oneshot(request).await.unwrap();
    let (parts, body) = response.into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    (parts.status.as_u16(), parts.headers, String::from_utf8_lossy(&body).into_owned())
}

const SHOP: &str = r#"{"name":"</script><script>alert(1)</script>","panels":[{"title":"<img src=x onerror=alert(1)>","question":"metric=order&by=\"><svg onload=alert(1)>"}]}"#;

#[tokio::test]
async fn a_board_is_made_read_changed_and_deleted_by_its_version() {
    let (gateway, _) = gateway(Config::defaults(), KeyTable::open());
    let path = "/v1/boards/shop";
    assert_eq!(ask(&gateway, ("GET", path), &[], "").await.0, 404);
    let new = [("if-none-match", "*")];
    let (status, headers, answer) = ask(&gateway, ("PUT", path), &new, SHOP).await;
    let tag = headers["etag"].to_str().unwrap().to_owned();
    assert_eq!((status, tag.as_str()), (201, format!("\"{NOW}\"").as_str()), "{answer}");
    assert!(answer.contains(r#""by":"without a key""#), "{answer}");
    let (status, headers, shown) = ask(&gateway, ("GET", path), &[], "").await;
    assert_eq!(
        (status, shown.as_str(), headers["etag"].to_str().unwrap()),
        (200, SHOP, tag.as_str())
    );
    // It is JSON and nothing else, whatever its name looks like.
    assert_eq!(headers["content-type"], "application/json");
    assert_eq!(headers["x-content-type-options"], "nosniff");
    let known = [("if-none-match", tag.as_str())];
    let (status, _, nothing) = ask(&gateway, ("GET", path), &known, "").await;
    assert_eq!((status, nothing.as_str()), (304, ""));

    let (status, _, answer) = ask(&gateway, ("PUT", path), &new, SHOP).await;
    assert!(status == 412 && answer.contains(&NOW.to_string()), "{status} {answer}");
    assert_eq!(ask(&gateway, ("PUT", path), &[], SHOP).await.0, 428);
    let stale = [("if-match", "\"1\"")];
    assert_eq!(ask(&gateway, ("PUT", path), &stale, SHOP).await.0, 412);
    let (status, headers, _) =
        ask(&gateway, ("PUT", path), &[("if-match", &tag)], r#"{"name":"Shop","panels":[]}"#).await;
    let next = headers["etag"].to_str().unwrap().to_owned();
    assert_eq!((status, next), (200, format!("\"{}\"", NOW + 1)));

    let (_, _, list) = ask(&gateway, ("GET", "/v1/boards?limit=1"), &[], "").await;
    let list: serde_json::Value = serde_json::from_str(&list).unwrap();
    assert_eq!((&list["boards"][0]["id"], &list["next"]), (&"1".into(), &"1".into()));
    let (_, _, list) = ask(&gateway, ("GET", "/v1/boards?after=1"), &[], "").await;
    let list: serde_json::Value = serde_json::from_str(&list).unwrap();
    assert_eq!((&list["boards"][0]["name"], list.get("next")), (&"Shop".into(), None));

    assert_eq!(ask(&gateway, ("DELETE", path), &[], "").await.0, 428);
    assert_eq!(ask(&gateway, ("DELETE", path), &new, "").await.0, 400);
    assert_eq!(ask(&gateway, ("DELETE", path), &[("if-match", &tag)], "").await.0, 412);
    let newest = format!("\"{}\"", NOW + 1);
    assert_eq!(ask(&gateway, ("DELETE", path), &[("if-match", &newest)], "").await.0, 204);
    assert_eq!(ask(&gateway, ("DELETE", path), &[("if-match", &newest)], "").await.0, 404);
    for limit in ["0", "201", "x", "-1"] {
        let path = format!("/v1/boards?limit={limit}");
        assert_eq!(ask(&gateway, ("GET", &path), &[], "").await.0, 400, "{limit}");
    }
}

#[tokio::test]
async fn keys_see_and_change_the_boards_of_their_tenant_alone() {
    use Scope::{Admin, Operator, Read, Write};
    let keys = [
        key(1, "acme", &[Write]),
        key(2, "acme", &[Read]),
        key(3, "acme", &[Write, Read]),
        key(4, "acme", &[Admin]),
        key(5, "acme", &[Operator]),
        key(6, "globex", &[Write, Read, Admin]),
    ];
    let table = KeysFile { keys: keys.iter().map(|(_, stored)| stored.clone()).collect() };
    let (gateway, _) = gateway(Config::defaults(), KeyTable::of(table));
    let as_key = async |at: usize, what: (&str, &str), more: &[(&str, &str)], body: &str| {
        let bearer = format!("Bearer {}", keys[at].0);
        let headers = [&[("authorization", bearer.as_str())], more].concat();
        ask(&gateway, what, &headers, body).await
    };
    let one = "/v1/boards/1";
    for (at, sees, changes) in
        [(0, 403, 403), (1, 200, 403), (2, 200, 412), (3, 403, 412), (4, 403, 403)]
    {
        assert_eq!(as_key(at, ("GET", one), &[], "").await.0, sees, "{at}");
        assert_eq!(as_key(at, ("GET", "/v1/boards"), &[], "").await.0, sees, "{at}");
        let stale = [("if-match", "\"1\"")];
        assert_eq!(as_key(at, ("PUT", one), &stale, SHOP).await.0, changes, "{at}");
        assert_eq!(as_key(at, ("DELETE", one), &stale, "").await.0, changes, "{at}");
    }
    // Another tenant has boards of the same ids, and neither learns of the other's.
    assert_eq!(as_key(5, ("GET", one), &[], "").await.0, 404);
    let tag = format!("\"{NOW}\"");
    assert_eq!(as_key(5, ("DELETE", one), &[("if-match", &tag)], "").await.0, 404);
    assert_eq!(as_key(5, ("PUT", one), &[("if-match", &tag)], SHOP).await.0, 412);
    let new = [("if-none-match", "*")];
    assert_eq!(as_key(5, ("PUT", one), &new, SHOP).await.0, 201);
    assert!(as_key(2, ("GET", one), &[], "").await.2.contains("One"));
    let (_, _, made) = as_key(2, ("PUT", "/v1/boards/b"), &new, SHOP).await;
    assert!(made.contains(&keys[2].1.prefix), "who made it: {made}");
    let (status, _, answer) = as_key(2, ("PUT", "/v1/boards/c"), &new, SHOP).await;
    assert!(status == 422 && answer.contains("too_many_boards"), "{status} {answer}");
}

#[tokio::test]
async fn what_is_no_board_or_too_large_is_refused_with_the_way_out() {
    let (gateway, _) = gateway(Config::defaults(), KeyTable::open());
    let new = [("if-none-match", "*")];
    let panel = r#"{"title":"t","question":"q"}"#;
    let many = format!(r#"{{"name":"x","panels":[{panel},{panel},{panel},{panel}]}}"#);
    let long =
        format!(r#"{{"name":"x","panels":[{{"title":"t","question":"{}"}}]}}"#, "q".repeat(5_000));
    let deep = format!(r#"{{"name":"x","panels":{}1{}}}"#, "[".repeat(1_500), "]".repeat(1_500));
    for (body, status, code) in [
        ("", 400, "board_invalid"),
        ("null", 400, "board_invalid"),
        (r#"{"name":"x","panels":[],"extra":1}"#, 400, "board_invalid"),
        (deep.as_str(), 400, "board_invalid"),
        (many.as_str(), 422, "board_too_large"),
        (long.as_str(), 422, "board_too_large"),
    ] {
        let (got, _, answer) = ask(&gateway, ("PUT", "/v1/boards/x"), &new, body).await;
        assert!(got == status && answer.contains(code), "{body:.50}: {got} {answer}");
        assert!(answer.len() < 1_000, "it does not repeat the board");
    }
    for id in ["A", "a_b", "-a", "%3Cscript%3E", "..%2f1", &"a".repeat(65)] {
        let path = format!("/v1/boards/{id}");
        let (status, _, answer) = ask(&gateway, ("PUT", &path), &new, SHOP).await;
        assert!(status == 400 && answer.contains("board_id_invalid"), "{id}: {status} {answer}");
    }
    let plain = [("if-none-match", "*"), ("content-type", "text/plain")];
    let request = Request::put("/v1/boards/x")
        .header("host", "localhost")
        .header(plain[0].0, plain[0].1)
        .header(plain[1].0, plain[1].1)
        .body(Body::from(SHOP))
        .unwrap();
    assert_eq!(call(&gateway, request).await.0, StatusCode::UNSUPPORTED_MEDIA_TYPE);
}
