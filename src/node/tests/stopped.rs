//! A failure of one shard or partition must not affect the others: damage, records of another
//! release, partitions that are not shards.

use super::*;
use crate::recompute::verify::{VerifySources, verify};

/// An event that belongs to this shard.
fn event_of(shard: ShardId, id: u64) -> Event {
    let mut all = (0..SERIES).map(|series| Event { series, ..some_event(id) });
    all.find(|event| event.request().records[0].0 == shard).expect("a series of each shard")
}

async fn append_raw(log: &MemoryLog, shard: ShardId, payload: Vec<u8>) {
    let request = AppendRequest { records: vec![(shard, payload.into())] };
    log.append(request).expect("taken").await.expect("answered").expect("durable");
}

async fn query(node: &Node) -> serde_json::Value {
    let (status, answer) = get(node, "/v1/query?metric=m&step=all").await;
    assert_eq!(status, 200, "{answer}");
    answer
}

/// The entry of the shard in `/v1/status`.
async fn stands(node: &Node, shard: ShardId) -> serde_json::Value {
    let (status, answer) = get(node, "/v1/status").await;
    assert_eq!((status, &answer["healthy"]), (200, &false.into()), "{answer}");
    answer["shards"][shard.0 as usize].clone()
}

fn epoch(cluster: &Cluster, shard: ShardId) -> u64 {
    let checkpoints =
        cluster.store.snapshot().expect("a snapshot").checkpoints().expect("checkpoints");
    checkpoints.into_iter().find(|(id, _)| *id == shard).expect("claimed").1.epoch.counter
}

/// Waits until the node has applied all of the log in these shards. A shard that has something to
/// apply is stale a second later, which is soon on a busy machine.
async fn until_applied(cluster: &Cluster, node: &Node, shards: &BTreeSet<ShardId>) {
    until("everything is applied", || {
        shards.iter().all(|shard| {
            let slot = node.slots.entry(*shard);
            slot.epoch().is_some() && slot.applied() == cluster.log.end(*shard)
        })
    })
    .await;
}

fn config() -> Config {
    quick().with(|c| c.query.stale_after = Duration::from_secs(1))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn partitions_that_are_no_shards_are_left_alone() {
    let cluster = Cluster::new();
    let log = cluster.log.join();
    let beyond: BTreeSet<ShardId> =
        [ShardId(SHARDS), ShardId(SHARDS + 7), ShardId(u32::MAX)].into();
    // At start-up, and while the node runs.
    log.assign([ShardId(0)].into_iter().chain(beyond.clone()).collect());
    let mut node = cluster.node(&log, &config()).await;
    log.assign(all().into_iter().chain(beyond).collect());
    for id in 0..100 {
        append(&cluster.log, &some_event(id)).await;
    }
    until_applied(&cluster, &node, &all()).await;
    until("the node is ready", || node.slots.all_fresh(1_000)).await;
    let answer = query(&node).await;
    assert_eq!(
        (&answer["completeness"]["partial"], &answer["completeness"]["shards"]),
        (&false.into(), &SHARDS.into()),
        "{answer}"
    );
    let gave_up = tokio::time::timeout(Duration::from_millis(300), node.await_failure()).await;
    assert!(gave_up.is_err(), "the supervision tree is whole");
    node.stop().await.expect("stops");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_record_of_another_release_stops_its_shard_alone_and_says_so_everywhere() {
    let cluster = Cluster::new();
    let log = cluster.log.join();
    log.assign(all());
    let node = cluster.node(&log, &config()).await;
    let shard = ShardId(3);
    append(&cluster.log, &event_of(shard, 1)).await;
    let mut newer = event_of(shard, 2).request().records[0].1.to_vec();
    newer[1] = 100;
    append_raw(&cluster.log, shard, newer).await;
    append(&cluster.log, &event_of(shard, 3)).await;
    append(&cluster.log, &event_of(ShardId(4), 4)).await;
    let slot = node.slots.entry(shard).clone();
    until("it stops", || slot.stop_reason().is_some()).await;
    until("what lies below is flushed", || slot.committed() == 1).await;
    let others: BTreeSet<_> = all().into_iter().filter(|other| *other != shard).collect();
    until_applied(&cluster, &node, &others).await;
    tokio::time::sleep(Duration::from_millis(1_200)).await;
    assert_eq!(
        (slot.applied(), epoch(&cluster, shard)),
        (1, 1),
        "it stands still, and does not start again"
    );
    let answer = query(&node).await;
    assert_eq!(
        (
            &answer["completeness"]["partial"],
            answer["completeness"]["missing"].as_array().map(Vec::len)
        ),
        (&true.into(), Some(1))
    );
    let missing = &answer["completeness"]["missing"][0];
    assert_eq!((&missing["shard"], &missing["reason"]), (&3.into(), &"stopped".into()), "{answer}");
    assert_eq!(get(&node, "/readyz").await.0, 200, "the other shards are served");
    let stands = stands(&node, shard).await;
    assert_eq!(stands["problem"], "stopped", "{stands}");
    assert!(stands["why"].as_str().is_some_and(|why| why.contains("version 100")), "{stands}");
    let (_, quarantine) = get(&node, "/v1/quarantine").await;
    assert_eq!(quarantine["events"], serde_json::json!([]), "nothing is passed over");
    node.stop().await.expect("stops");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_that_is_damaged_in_one_shard_stops_it_and_it_goes_on_when_it_is_mended() {
    let cluster = Cluster::new();
    let log = cluster.log.join();
    log.assign(all());
    let shard = ShardId(5);
    for id in 0..3 {
        append(&cluster.log, &event_of(shard, id)).await;
    }
    cluster.log.damage(shard, Some(2));
    let node = cluster.node(&log, &config()).await;
    let slot = node.slots.entry(shard).clone();
    until("it stops", || slot.stop_reason().is_some()).await;
    until("what lies below is flushed", || slot.committed() == 2).await;
    until("the node is ready", || node.slots.all_fresh(1_000)).await;
    assert_eq!(get(&node, "/readyz").await.0, 200);
    assert_eq!(epoch(&cluster, shard), 1, "no start would mend it");
    let stands = stands(&node, shard).await;
    assert!(
        stands["why"].as_str().is_some_and(|why| why.contains("offset 2 is not there")),
        "{stands}"
    );
    cluster.log.damage(shard, None);
    until("it goes on", || slot.committed() == 3 && slot.stop_reason().is_none()).await;
    node.stop().await.expect("stops");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn verify_names_the_shard_that_cannot_be_read_and_verifies_the_others() {
    let cluster = Cluster::new();
    let log = cluster.log.join();
    log.assign(all());
    // With nothing archived, the verification reads everything from the log.
    let node = cluster
        .node(&log, &config().with(|c| c.archive.max_delay = Duration::from_secs(3_600)))
        .await;
    let shard = ShardId(5);
    for id in 0..200 {
        append(&cluster.log, &some_event(id)).await;
    }
    append_raw(&cluster.log, ShardId(6), b"garbage".to_vec()).await;
    let committed =
        || node.slots.iter().all(|(shard, slot)| slot.committed() == cluster.log.end(shard));
    until("everything is flushed", committed).await;
    node.stop().await.expect("stops");
    let verified = |only: Option<ShardId>| {
        let opened = log.clone() as Arc<dyn EventLog>;
        let sources = VerifySources {
            store: &*cluster.store,
            archive: &*cluster.archive,
            open_log: &|| Ok(opened.clone()),
            dedup_horizon_ms: 3_600_000,
            dedup_max_ids: 262_144,
            only,
        };
        let hours = crate::model::window::Hour(i32::MIN)..crate::model::window::Hour(i32::MAX);
        verify(&sources, hours, &mut |_, _| ()).expect("a report")
    };
    let whole = verified(None);
    assert!(
        whole.is_equal() && whole.shards == u64::from(SHARDS) && whole.quarantined == 1,
        "{whole:?}"
    );
    let alone = verified(Some(shard));
    assert!(
        alone.is_equal()
            && alone.shards == 1
            && alone.rows > 0
            && alone.rows < whole.rows
            && alone.quarantined == 0,
        "{alone:?}"
    );
    cluster.log.damage(shard, Some(1));
    let found = verified(None);
    assert!(found.differences.is_empty() && !found.is_equal(), "{found:?}");
    assert_eq!(
        (found.unverified.len(), found.unverified[0].0, found.rows),
        (1, shard, whole.rows - alone.rows)
    );
    assert!(
        found.unverified[0].1.contains("shard 5")
            && found.unverified[0].1.contains("offset 1 is not there"),
        "{found:?}"
    );
    assert!(verified(Some(ShardId(6))).is_equal(), "it can be asked for alone");
    // A difference in another shard is found nevertheless.
    let damaged = verified(Some(shard));
    assert_eq!((damaged.rows, damaged.unverified.len()), (0, 1), "{damaged:?}");
}
