//! Migration of a node that has replays: one that is applied, one that was undone, one that is
//! ready, and one that is still being filled in. Real Kafka, PostgreSQL and S3.

use std::collections::BTreeMap;
use std::time::Duration;

use rollmill::model::generation::{GenerationId, Writer};
use rollmill::model::window::Hour;
use rollmill::persistence::store::SnapshotSource;
use rollmill::persistence::store::sqlite::SqliteStore;
use serde_json::Value;

use crate::migrate::{MigrationCase, send, wait};
use crate::support::Server;

const WITHOUT_PAGE_1: &str = "[[rule]]\nname = \"no page 1\"\nwhere = { labels = '{page=\"p1\"}' \
                              }\ndrop = true\n";
const TWICE: &str = "[[rule]]\nname = \"twice\"\nscale_value = { multiply = 2 }\n";
/// The day that the applied replay corrects.
const CORRECTED: [&str; 4] = ["--from", "2013-03-01", "--to", "2013-03-02"];

/// Numbers of the replays.
struct Replays {
    applied: u64,
    undone: u64,
    ready: u64,
    filling: u64,
}

fn replay(node: &Server, args: &[&str]) -> String {
    let output = Server::cli(&[&["replay"], args, &["--url", &node.url]].concat());
    let text = String::from_utf8_lossy(&[&*output.stdout, &*output.stderr].concat()).into_owned();
    assert!(output.status.success(), "{args:?}: {text}");
    String::from_utf8(output.stdout).expect("text")
}

fn start(node: &Server, days: &[&str], rules: &[&str]) -> u64 {
    let args = [&["start", "--json", "--metric", "sales"], days, rules].concat();
    let answer: Value = serde_json::from_str(&replay(node, &args)).expect("JSON");
    answer["id"].as_u64().expect("a number")
}

fn state(node: &Server, id: u64) -> Value {
    node.get(&format!("/v1/replays/{id}")).1["state"].clone()
}

fn is_ready(node: &Server, id: u64) {
    wait("the replay is ready", || state(node, id) == "ready");
}

fn change(node: &Server, what: &str, id: u64) {
    replay(node, &[what, &id.to_string()]);
}

/// What is served of the corrected day, and by which replays.
fn served(node: &Server) -> (Value, Value) {
    let path = "/v1/query?metric=sales&from=2013-03-01T00:00:00Z&to=2013-03-02T00:00:00Z&step=1d";
    let mut answer = Value::Null;
    wait("a complete answer", || {
        answer = node.get(path).1;
        answer["completeness"]["partial"] == false
    });
    (answer["series"].clone(), answer["completeness"]["generations"].clone())
}

/// Actions of the audit list, the oldest first.
fn audited(node: &Server) -> Vec<(u64, String)> {
    let listed = node.get("/v1/replays").1;
    let entries = listed["audit"].as_array().expect("an audit list").iter().rev();
    let entry = |entry: &Value| {
        let id = entry["id"].as_u64().expect("a number");
        (id, entry["action"].as_str().expect("an action").to_owned())
    };
    // Rows are counted in the background, and noted when they are.
    entries.map(entry).filter(|(_, action)| action != "counted").collect()
}

/// Stored rows of a replay.
type Rows = BTreeMap<(Writer, String, i32), Vec<u8>>;

fn rows(store: &dyn SnapshotSource, id: u64) -> Rows {
    let mut rows = Rows::new();
    let mut snapshot = store.snapshot().expect("a snapshot");
    let (id, all) = (GenerationId(id), (Hour(i32::MIN / 2), Hour(i32::MAX / 2)));
    snapshot
        .generation_rows(id, ("default", "sales"), all, &mut |writer, info, hour, _, bytes| {
            rows.insert((writer, format!("{:?}", info.series), hour.0), bytes.to_vec());
            Ok(())
        })
        .expect("rows");
    rows
}

/// Makes the replays on a node that has a history. Returns what was served before and after the
/// apply.
fn seed(case: &MigrationCase, dir: &std::path::Path) -> (Replays, [(Value, Value); 2]) {
    let file = |name: &str, text: &str| {
        let path = dir.join(name);
        std::fs::write(&path, text).expect("written");
        path.display().to_string()
    };
    let (dropped, twice) = (file("drop.toml", WITHOUT_PAGE_1), file("twice.toml", TWICE));
    let node = case.embedded(&[]);
    let before = served(&node);
    let applied = start(&node, &CORRECTED, &["--rules", &dropped]);
    is_ready(&node, applied);
    change(&node, "apply", applied);
    let after = served(&node);
    assert_ne!(before.0, after.0);
    let undone =
        start(&node, &["--from", "2025-12-31", "--to", "2026-01-01"], &["--rules", &twice]);
    is_ready(&node, undone);
    change(&node, "apply", undone);
    change(&node, "undo", undone);
    let ready = start(&node, &["--from", "2026-01-01"], &["--rules", &twice]);
    is_ready(&node, ready);
    let release = Server::cli(&["quarantine", "release", "--all", "--url", &node.url]);
    assert!(release.status.success(), "{}", String::from_utf8_lossy(&release.stderr));
    assert_eq!(node.stop(), Some(0));

    let node = case.embedded(&[("replay.max_rate", "1")]);
    let filling = start(&node, &CORRECTED, &["--rules", &twice]);
    wait("all shards have adopted it", || {
        let shown = node.get(&format!("/v1/replays/{filling}")).1;
        assert_eq!(shown["state"], "building", "{shown}");
        let waits = shown["progress"]["waits_for"].as_array().expect("shards").clone();
        waits.iter().all(|shard| shard["reason"] == "filling")
    });
    // The log alone has the last of these.
    send(&node, 2_000, 2_100);
    node.kill();
    (Replays { applied, undone, ready, filling }, [before, after])
}

#[test]
fn replays_go_along_and_go_on_in_whatever_state_they_are() {
    let case = MigrationCase::new("migrate_replays");
    case.seed_history();
    let dir = tempfile::tempdir().expect("a directory");
    let (replays, [before, after]) = seed(&case, dir.path());
    let Replays { applied, undone, ready, filling } = replays;
    // While the store is copied, and while it is compared.
    for step in [4, 5] {
        case.kill_at(step, Duration::from_millis(3));
    }
    let done = case.migrate_to_end();
    assert_eq!(done["replays"], serde_json::json!([applied, undone, ready, filling]), "{done}");
    let source = SqliteStore::open_read_only(case.data().join("store.sqlite")).expect("the source");
    for id in [applied, undone, ready, filling] {
        let (left, right) = (rows(&*source, id), rows(&*case.postgres(), id));
        assert!(left == right, "replay {id}: {} rows and {}", left.len(), right.len());
        assert!(id == filling || left.len() > 20, "replay {id}: {} rows", left.len());
    }

    let node = case.node();
    wait("the node is ready", || node.get("/readyz").0 == 200);
    let late = served(&node);
    assert_eq!(late.1, after.1, "the same replay is served");
    assert_eq!((state(&node, applied), state(&node, undone)), ("applied".into(), "undone".into()));
    assert_eq!(state(&node, ready), "ready");
    let actions = ["start", "apply", "start", "apply", "undo", "start", "start"];
    let of = [applied, applied, undone, undone, undone, ready, filling];
    let expected: Vec<_> = of.into_iter().zip(actions.map(str::to_owned)).collect();
    assert_eq!(audited(&node), expected);
    is_ready(&node, filling);
    send(&node, 3_000, 3_100);
    for id in [undone, ready] {
        change(&node, "apply", id);
    }
    change(&node, "undo", applied);
    assert_eq!(served(&node).1, before.1, "nothing but what ingest made");
    change(&node, "apply", filling);
    assert_eq!(served(&node).1[0]["generation"], filling);
    assert_eq!(node.stop(), Some(0));
    let report = case.verify();
    assert!(report["equal"] == true && report["not_verifiable"].is_null(), "{report}");
    assert_eq!(report["replays"].as_array().map(Vec::len), Some(4), "{report}");
}
