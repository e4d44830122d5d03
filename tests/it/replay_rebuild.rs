//! A store that is lost after a replay was applied is rebuilt with it: the same rows of both
//! writers, the same answers. `rollmill verify` recomputes the replay before and after.

use std::collections::BTreeMap;
use std::path::Path;

use rollmill::model::generation::{GenerationId, Writer};
use rollmill::model::window::Hour;
use rollmill::node::offline;
use serde_json::Value;

use crate::postgres;
use crate::rebuild::{ConfiguredNode, flights, moved_away};
use crate::support::{Server, wait_until};

const RULES: &str = r#"
[[rule]]
name = "no flights from Newark"
where = { labels = '{origin="EWR"}' }
drop = true

[[rule]]
name = "the flight as a label"
set_label = { label = "flight", property = "/flight" }
"#;
const QUERY: &str =
    "/v1/query?metric=delay&from=2013-01-01T00:00:00Z&to=2014-01-02T00:00:00Z&step=1d&by=origin";

/// Rows of a replay by writer, series and hour.
type Rows = BTreeMap<(Writer, String, i32), Vec<u8>>;

fn rows(node: &ConfiguredNode, generation: u64) -> Rows {
    let (config, data) = node.parsed();
    let store = offline::store(&config, &data).expect("the store");
    let mut rows = Rows::new();
    let mut snapshot = store.snapshot().expect("a snapshot");
    let (id, all) = (GenerationId(generation), (Hour(i32::MIN / 2), Hour(i32::MAX / 2)));
    snapshot
        .generation_rows(id, ("default", "delay"), all, &mut |writer, info, hour, _, bytes| {
            rows.insert((writer, format!("{:?}", info.series), hour.0), bytes.to_vec());
            Ok(())
        })
        .expect("rows");
    rows
}

/// The version of the stored book, and the highest one in the archive.
fn books(node: &ConfiguredNode) -> (u64, u64) {
    let (config, data) = node.parsed();
    let store = offline::store(&config, &data).expect("the store");
    let stored = store.snapshot().and_then(|mut s| s.generation_book()).expect("a book");
    let mut highest = 0;
    let folder = data.archive().join("replays");
    for log in std::fs::read_dir(&folder).into_iter().flatten().flatten() {
        for file in std::fs::read_dir(log.path()).expect("a folder").flatten() {
            let name = file.file_name().to_string_lossy().into_owned();
            let version = name.strip_prefix("book-").and_then(|rest| rest.split('-').next());
            highest = highest.max(version.and_then(|v| v.parse().ok()).unwrap_or(0));
        }
    }
    (stored.version(), highest)
}

/// A complete answer: a node that takes writes may not have claimed all of its shards yet.
fn answer(server: &Server) -> Value {
    server.await_query(QUERY, |_| true)
}

/// Sends, replays and applies while events come; the number of the replay.
fn served(node: &ConfiguredNode, dir: &Path) -> u64 {
    let server = node.start(&[]);
    for n in 0..4 {
        assert_eq!(server.post(&flights(250 * n, 250 * (n + 1))).0, 202);
        node.await_flushed();
        node.await_archived();
    }
    let file = dir.join("rules.toml");
    std::fs::write(&file, RULES).expect("written");
    let file = file.display().to_string();
    let range = ["--metric", "delay", "--from", "2013-01-01", "--to", "2014-01-02"];
    let args = [&["replay"], &range[..], &["--rules", &file, "--apply", "--url", &server.url]];
    let args = args.concat();
    let replay = std::thread::scope(|scope| {
        let running = scope.spawn(|| Server::cli(&args));
        for n in 4..8 {
            assert_eq!(server.post(&flights(250 * n, 250 * (n + 1))).0, 202);
            assert_eq!(server.post(&flights(250 * n, 250 * n + 50)).0, 202, "a retry");
        }
        running.join().expect("it ran")
    });
    let said = String::from_utf8_lossy(&[replay.stdout, replay.stderr].concat()).into_owned();
    assert!(replay.status.success(), "{said}");
    assert_eq!(server.post(&flights(1_900, 2_400)).0, 202, "after the apply");
    node.await_flushed();
    wait_until("the book is in the archive", || {
        let (stored, archived) = books(node);
        stored > 1 && stored == archived
    });
    let listed = server.get("/v1/replays").1;
    let id = listed["replays"][0]["id"].as_u64();
    assert_eq!(server.stop(), Some(0));
    id.unwrap_or_else(|| panic!("no replay: {listed}"))
}

fn verified(node: &ConfiguredNode) -> Value {
    let report: Value = serde_json::from_str(&node.succeeds(&["verify", "--json"])).expect("JSON");
    assert_eq!(report["equal"], true, "{report}");
    report
}

fn is_rebuilt(node: &ConfiguredNode, lose: impl Fn()) {
    let id = served(node, &node.root);
    let report = verified(node);
    assert_eq!(report["replays"][0]["replay"], id);
    assert!(report["replays"][0]["rows"].as_u64() > Some(100), "{report}");
    let before = rows(node, id);
    assert!(before.keys().any(|(writer, ..)| writer.to_string().ends_with("live")));
    assert!(before.keys().any(|(writer, ..)| writer.to_string().ends_with("fill")));
    let server = node.start(&[]);
    let expected = answer(&server);
    assert_eq!(expected["completeness"]["generations"][0]["generation"], id, "{expected}");
    assert_eq!(server.stop(), Some(0));

    lose();
    let planned: Value =
        serde_json::from_str(&node.succeeds(&["rebuild", "--dry-run", "--json"])).expect("JSON");
    assert_eq!(planned["replays"], serde_json::json!([id]));
    let said = node.succeeds(&["rebuild"]);
    assert!(said.contains("served as before: replays") && said.contains("way back"), "{said}");
    let after = rows(node, id);
    assert_eq!(after.len(), before.len());
    for (row, bytes) in &before {
        assert_eq!(after.get(row), Some(bytes), "{row:?}");
    }
    assert_eq!(verified(node)["replays"], report["replays"]);
    let server = node.start(&[]);
    let found = answer(&server);
    assert_eq!(found["series"], expected["series"]);
    assert_eq!(found["completeness"]["generations"], expected["completeness"]["generations"]);
    let undone = Server::cli(&["replay", "undo", &id.to_string(), "--url", &server.url]);
    assert!(!undone.status.success(), "the way back is lost");
    assert_eq!(server.post(&flights(2_400, 2_500)).0, 202);
    node.await_flushed();
    assert_eq!(server.stop(), Some(0));
    assert!(rows(node, id).len() > before.len(), "it is written as before");
    verified(node);
}

#[test]
fn a_store_lost_after_a_replay_is_rebuilt_with_it() {
    let node = ConfiguredNode::with("", String::new());
    is_rebuilt(&node, || _ = moved_away(node.parsed().1.root()));
    let lost = node.root.join("lost-again");
    std::fs::create_dir(&lost).expect("a directory");
    let data = node.parsed().1;
    for name in ["store.sqlite", "store.sqlite-wal", "store.sqlite-shm"] {
        let file = data.root().join(name);
        if file.exists() {
            std::fs::rename(file, lost.join(name)).expect("moved");
        }
    }
    node.succeeds(&["rebuild", "--without-replays"]);
    assert_eq!(verified(&node)["replays"], serde_json::json!([]));
    let server = node.start(&[]);
    assert_eq!(answer(&server)["completeness"].get("generations"), None, "what ingest made");
    assert_eq!(server.stop(), Some(0));
}

#[test]
fn a_store_lost_in_postgres_after_a_replay_is_rebuilt_with_it() {
    let server = postgres::shared();
    let (first, second) = (server.database(), server.database());
    let node = ConfiguredNode::with(&server.url(&first), String::new());
    is_rebuilt(&node, || node.configure(&server.url(&second)));
}
