//! A cluster moves from one topic to another: nothing is lost or counted twice, and no node uses
//! the old topic afterwards.

use serde_json::Value;

use crate::migrate::MigrationCase;
use crate::rebuild::{ConfiguredNode, await_accounted, equal, everything, flights};
use rollmill::node::offline;

#[test]
fn a_cluster_goes_on_in_a_new_topic() {
    let case = MigrationCase::new("move_old");
    let old = ConfiguredNode::with(&case.url, case.servers());
    let new = ConfiguredNode::with(
        &case.url,
        case.servers().replace("kafka.topic = \"move_old\"", "kafka.topic = \"move_new\""),
    );
    old.succeeds(&["topic", "create"]);
    // The tail of the history is in the topic alone.
    old.seed_history();
    let planned = new.succeeds(&["topic", "move", "--from", "move_old", "--dry-run"]);
    assert!(planned.contains("nothing was changed"), "{planned}");
    new.refused(&["topic", "move", "--from", "move_new"], &["before and after"]);
    // Killed midway, the move resumes.
    new.killed_after(
        &["topic", "move", "--from", "move_old"],
        std::time::Duration::from_millis(1_500),
    );
    let moved: Value =
        serde_json::from_str(&new.succeeds(&["topic", "move", "--from", "move_old", "--json"]))
            .expect("JSON");
    assert!(moved["to"].as_str().is_some_and(|to| to.len() == 32), "{moved}");
    let again: Value =
        serde_json::from_str(&new.succeeds(&["topic", "move", "--from", "move_old", "--json"]))
            .expect("JSON");
    assert_eq!(again["outcome"], "was done before", "{again}");
    old.refused(&["topic", "describe"], &["no identity"]);
    new.succeeds(&["topic", "describe"]);
    new.verify();
    let (config, data) = new.parsed();
    let before = everything(offline::store(&config, &data).expect("the store").as_ref());

    let server = new.start(&[]);
    let [aggregated, deduplicated, _] = server.accounted();
    assert_eq!(aggregated, 2_400);
    assert_eq!(server.post(&flights(1_900, 2_400)).0, 202);
    await_accounted(&server, |accounted| accounted == [aggregated, deduplicated + 500, 0]);
    new.await_flushed();
    let rollups = |all: &[String]| {
        all.iter().filter(|line| line.starts_with("Series")).cloned().collect::<Vec<_>>()
    };
    equal(
        &rollups(&everything(offline::store(&config, &data).expect("the store").as_ref())),
        &rollups(&before),
    );
    assert_eq!(server.post(&flights(2_400, 2_600)).0, 202);
    await_accounted(&server, |accounted| accounted == [aggregated + 200, deduplicated + 500, 0]);
    new.await_flushed();
    new.await_archived();
    assert_eq!(server.stop(), Some(0));
    new.verify();
}
