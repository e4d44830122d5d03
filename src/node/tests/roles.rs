//! Nodes with different roles on one log and one store.

use super::*;
use crate::config::Roles;

fn with_roles(roles: &str) -> Config {
    quick().with(|c| {
        c.node.roles = Roles::parse(roles).expect("roles");
        c.node.name = Some(roles.to_owned());
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gateway_without_a_store_takes_writes_that_other_nodes_count() {
    let cluster = Cluster::new();
    let gateway = cluster.node(&cluster.log, &with_roles("gateway")).await;
    for id in 0..20 {
        assert_eq!(post(&gateway, id).await.0, 202);
    }
    let (status, answer) = get(&gateway, "/v1/query?metric=m").await;
    assert_eq!(
        (status, answer["error"]["code"].as_str()),
        (503, Some("no_query_role")),
        "{answer}"
    );
    assert_eq!(get(&gateway, "/readyz").await.0, 200);
    let (status, answer) = get(&gateway, "/readyz?role=shards").await;
    assert_eq!(status, 503);
    assert!(
        answer["error"]["message"].as_str().is_some_and(|why| why.contains("node.roles")),
        "{answer}"
    );
    let (status, answer) = get(&gateway, "/v1/status").await;
    assert_eq!(
        (status, &answer["shards"], &answer["healthy"]),
        (200, &serde_json::json!([]), &false.into()),
        "{answer}"
    );
    assert_eq!(answer["nodes"][0]["roles"], serde_json::json!(["gateway"]), "{answer}");

    let log = cluster.log.join();
    log.assign(all());
    let node = cluster.node(&log, &with_roles("shards,query")).await;
    until("everything is counted", || node.slots.all_fresh(1_000)).await;
    let (status, answer) = get(&node, "/v1/query?metric=m&step=all").await;
    assert_eq!((status, &answer["series"][0]["points"][0]["count"]), (200, &20.into()), "{answer}");
    let (status, answer) = post(&node, 99).await;
    assert_eq!(
        (status, answer["error"]["code"].as_str()),
        (503, Some("no_gateway_role")),
        "{answer}"
    );
    assert_eq!(get(&node, "/readyz").await.0, 200);

    // A node with the query role alone knows that another one has the shards, and says so in its
    // answers.
    let asker = cluster.node(&cluster.log.join(), &with_roles("query")).await;
    let (status, answer) = get(&asker, "/v1/query?metric=m&step=all").await;
    assert_eq!((status, &answer["completeness"]["partial"]), (200, &true.into()), "{answer}");
    assert_eq!(
        answer["completeness"]["missing"].as_array().map(Vec::len),
        Some(SHARDS as usize),
        "{answer}"
    );
    let answer = await_status(&asker, |answer| answer["healthy"] == true).await;
    assert_eq!(answer["shards"][3]["owner"], "elsewhere", "{answer}");
    for node in [gateway, asker, node] {
        node.stop().await.expect("stops");
    }
}

/// The first status that passes; a busy machine may fall behind for a moment.
async fn await_status(node: &Node, pass: impl Fn(&serde_json::Value) -> bool) -> serde_json::Value {
    let began = Stopwatch::start();
    loop {
        let (status, answer) = get(node, "/v1/status").await;
        assert_eq!(status, 200, "{answer}");
        if pass(&answer) {
            return answer;
        }
        assert!(began.elapsed() < Duration::from_secs(120), "{answer}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_status_tells_owners_lag_and_what_is_wrong() {
    let cluster = Cluster::new();
    let log = cluster.log.join();
    log.assign((1..SHARDS).map(ShardId).collect());
    let node = cluster.node(&log, &quick().with(|c| c.node.name = Some("a".to_owned()))).await;
    for id in 0..200 {
        append(&log, &some_event(id)).await;
    }
    let answer = await_status(&node, |answer| {
        let shards = answer["shards"].as_array().expect("shards");
        shards[1..].iter().all(|shard| {
            shard["lag"] == 0 && shard["age_ms"].as_i64().is_some_and(|age| age < 1_000)
        })
    })
    .await;
    assert_eq!((&answer["healthy"], &answer["store"]), (&false.into(), &"reachable".into()));
    assert_eq!(
        (&answer["nodes"][0]["name"], &answer["nodes"][0]["shards"]),
        (&"a".into(), &(SHARDS - 1).into())
    );
    let shards = answer["shards"].as_array().expect("shards");
    assert_eq!(
        (&shards[0]["owner"], &shards[0]["problem"]),
        (&"none".into(), &"no_owner".into()),
        "it was never claimed"
    );
    for shard in &shards[1..] {
        assert_eq!(
            (&shard["owner"], &shard["node"], &shard["problem"]),
            (&"here".into(), &"a".into(), &serde_json::Value::Null)
        );
        assert_eq!(
            (&shard["lag"], &shard["next"], &shard["epoch"]),
            (&0.into(), &shard["end"], &1.into()),
            "{shard}"
        );
    }
    // The archive catches up.
    until("archived", || {
        (1..SHARDS).all(|s| {
            let slot = node.slots.entry(ShardId(s));
            slot.archived() == log.end(ShardId(s))
        })
    })
    .await;
    await_status(&node, |answer| answer["shards"][5]["archive_lag"] == 0).await;

    // With the store down, a node still reports what it knows of its own shards.
    let other = cluster.log.join();
    let second = cluster.node(&other, &quick().with(|c| c.node.name = Some("b".to_owned()))).await;
    other.assign([ShardId(0)].into());
    until("owned", || second.slots.entry(ShardId(0)).epoch().is_some()).await;
    let answer = await_status(&node, |answer| answer["healthy"] == true).await;
    assert_eq!(answer["shards"][0]["owner"], "elsewhere", "{answer}");
    node.stop().await.expect("stops");
    let (_, answer) = get(&second, "/v1/status").await;
    assert_eq!(answer["shards"][1]["owner"], "elsewhere", "as far as the store tells: {answer}");
    second.stop().await.expect("stops");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stopping_node_fails_readyz_first_and_finishes_what_it_took() {
    let cluster = Cluster::new();
    cluster.log.assign(all());
    let config = quick().with(|c| {
        (c.server.drain_delay, c.shards.handover) =
            (Duration::from_secs(4), Duration::from_secs(30))
    });
    let node = cluster.node(&cluster.log, &config).await;
    let began = Stopwatch::start();
    while get(&node, "/readyz").await.0 != 200 {
        assert!(began.elapsed() < Duration::from_secs(120), "not ready");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let address = node.address;
    let stopping = tokio::spawn(node.stop());
    // A load balancer polls, and keeps sending until the poll fails.
    let writes = tokio::task::spawn_blocking(move || {
        let agent: ureq::Agent =
            ureq::Agent::config_builder().http_status_as_error(false).build().into();
        let (mut taken, began) = (Vec::new(), Stopwatch::start());
        while agent
            .get(format!("http://{address}/readyz"))
            .call()
            .is_ok_and(|answer| answer.status() == 200)
        {}
        let noticed = began.elapsed();
        while taken.len() < 20 {
            let body = format!(r#"{{"metric":"m","id":"{}"}}"#, taken.len());
            let request = agent
                .post(format!("http://{address}/v1/events"))
                .header("content-type", "application/json");
            taken.push(request.send(body).expect("connections are taken").status().as_u16());
        }
        (noticed, taken)
    });
    let (noticed, taken) = writes.await.expect("no panic");
    assert!(noticed < Duration::from_secs(2), "noticed after {noticed:?}");
    assert!(taken.iter().all(|status| *status == 202), "{taken:?}");
    stopping.await.expect("no panic").expect("stops");
    assert!(cluster.log.held().borrow().is_empty(), "every shard is let go");
    assert!(matches!(
        cluster.log.append(some_event(1).request()),
        Err(crate::persistence::log::AppendError::Closed(_))
    ));

    // The next owner has nothing to read: everything was flushed before the shards were
    // relinquished.
    let checkpoints =
        cluster.store.snapshot().expect("a snapshot").checkpoints().expect("checkpoints");
    for (shard, checkpoint) in checkpoints {
        assert_eq!(checkpoint.next, cluster.log.end(shard), "shard {shard}");
    }
    let total: u64 = (0..SHARDS).map(|s| cluster.log.end(ShardId(s))).sum();
    assert_eq!(total, taken.len() as u64);
}
