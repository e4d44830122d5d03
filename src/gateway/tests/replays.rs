//! Replays over HTTP: whose they are, what is refused, and with which code. The service is the real
//! one, on the double of the store.

use super::*;
use crate::api::replays::{Replay, ReplaysAnswer, StartReplay};
use crate::model::generation::DayRange;
use crate::model::generation_book::NewGeneration;
use crate::operate::replays::tests::World;
use crate::operate::service::ReplayService;
use crate::persistence::store::GenerationStore;

/// Replay 1 of tenant `default`, which waits for every shard.
pub(super) fn service() -> Arc<dyn ReplayService> {
    let world = World::new();
    let mut book = world.book().as_ref().clone();
    let new = NewGeneration {
        tenant: "default".to_owned(),
        metrics: vec!["m".to_owned()],
        days: DayRange::ALWAYS,
        rules: r#"{"rule":[]}"#.into(),
        started: (NOW, "somebody".to_owned()),
    };
    book.start(new, 3, 1).expect("started");
    assert_eq!(world.store.swap_generations(0, &book, None), Ok(true));
    world.replays
}

/// A gateway with keys of `acme`, whose metric is `views`, and of `shop`.
fn two_tenants(world: &World) -> (Arc<Gateway>, [String; 2]) {
    let keys = ["acme", "shop"].map(|tenant| {
        let (plain, prefix, sha256) = new_key([tenant.len() as u8 + tenant.as_bytes()[0]; 24]);
        let (tenant, scopes) = (tenant.to_owned(), vec![Scope::Admin]);
        (plain, StoredKey { prefix, sha256, tenant, scopes, expires_ms: None })
    });
    let plain = [keys[0].0.clone(), keys[1].0.clone()];
    let keys = KeyTable::of(KeysFile { keys: keys.into_iter().map(|(_, key)| key).collect() });
    let mut deps = deps(None, Config::defaults(), keys);
    deps.replays = world.replays.clone();
    (Gateway::new(deps), plain)
}

async fn ask(
    gateway: &Arc<Gateway>,
    key: &str,
    method: &str,
    path: &str,
    body: &str,
) -> (u16, String) {
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header("authorization", format!("Bearer {key}"))
        .header("content-type", "application/json")
        .body(Body::from(body.to_owned()))
        .unwrap();
    let (status, answer, _) = call(gateway, request).await;
    (status.as_u16(), answer)
}

#[tokio::test]
async fn a_replay_is_its_tenants_alone_and_the_audit_list_says_whose_key_it_was() {
    let mut world = World::new();
    let (gateway, [acme, shop]) = two_tenants(&world);
    let body =
        r#"{"metrics":["views"],"from":"1970-01-01","rules":{"rule":[{"name":"x","drop":true}]}}"#;
    let (status, answer) = ask(&gateway, &acme, "POST", "/v1/replays", body).await;
    assert_eq!(status, 200, "{answer}");
    let started: Replay = serde_json::from_str(&answer).unwrap();
    assert_eq!((started.id, &started.by), (1, &acme[..11].to_owned()));
    for (method, path) in [
        ("GET", "/v1/replays/1"),
        ("GET", "/v1/replays/1/diff"),
        ("POST", "/v1/replays/1/apply"),
        ("POST", "/v1/replays/1/undo"),
        ("POST", "/v1/replays/1/cancel"),
    ] {
        let of_another = ask(&gateway, &shop, method, path, "").await;
        let of_nobody = ask(&gateway, &acme, method, &path.replace("/1", "/99"), "").await;
        assert_eq!((of_another.0, of_nobody.0), (404, 404), "{method} {path}");
        assert_eq!(of_another.1.replace('1', "99"), of_nobody.1, "nothing tells them apart");
        assert!(of_nobody.1.contains("replay_not_found"), "{}", of_nobody.1);
    }
    let list = ask(&gateway, &shop, "GET", "/v1/replays", "").await.1;
    assert_eq!(list, r#"{"replays":[],"audit":[]}"#);
    let (status, answer) = ask(&gateway, &acme, "POST", "/v1/replays/1/apply", "").await;
    assert!(status == 409 && answer.contains("replay_not_ready"), "{status} {answer}");
    assert!(answer.contains("shard 0 (until its next flush)"), "{answer}");
    for shard in 0..2 {
        world.adopt(shard, &[1]);
        world.fill(shard, 1, 20, Vec::new());
    }
    for (change, state) in [("apply", "applied"), ("undo", "undone"), ("cancel", "leaving")] {
        let path = format!("/v1/replays/1/{change}");
        let (status, answer) = ask(&gateway, &acme, "POST", &path, "").await;
        assert!(status == 200 && answer.contains(&format!("\"state\":\"{state}\"")), "{answer}");
    }
    let (status, answer) = ask(&gateway, &acme, "POST", "/v1/replays/1/cancel", "").await;
    assert!(status == 409 && answer.contains("replay_refused"), "{status} {answer}");
    let list = ask(&gateway, &acme, "GET", "/v1/replays", "").await.1;
    let list: ReplaysAnswer = serde_json::from_str(&list).unwrap();
    assert!(list.audit.iter().all(|entry| entry.by == started.by), "{:?}", list.audit);
}

#[tokio::test]
async fn requests_that_cannot_be_are_refused_with_what_to_send() {
    let world = World::new();
    let (gateway, [acme, _]) = two_tenants(&world);
    for (body, code, word) in [
        ("{}", "body_invalid", "metrics"),
        (r#"{"metrics":[],"from":"1970-01-01"}"#, "replay_invalid", "metrics"),
        (r#"{"metrics":["views"],"from":"1970-01-01T07:00:00Z"}"#, "replay_invalid", "1970-01-02"),
        (r#"{"metrics":["other"],"from":"1970-01-01"}"#, "replay_invalid", "rollmill metrics"),
        (
            r#"{"metrics":["views"],"from":"1970-01-01","rules":{"rule":[{"name":"x"}]}}"#,
            "rules_invalid",
            "line 1",
        ),
    ] {
        let (status, answer) = ask(&gateway, &acme, "POST", "/v1/replays", body).await;
        assert_eq!(status, 400, "{body}: {answer}");
        assert!(answer.contains(code) && answer.contains(word), "{body}: {answer}");
    }
    for (query, code) in [
        ("rows=some", "rows_invalid"),
        ("limit=0", "limit_invalid"),
        ("limit=1001", "limit_invalid"),
        ("format=xml", "format_invalid"),
        ("after=x", "replay_invalid"),
        ("row=all", "parameter_unknown"),
    ] {
        let path = format!("/v1/replays/1/diff?{query}");
        let (status, answer) = ask(&gateway, &acme, "GET", &path, "").await;
        assert!(status == 400 && answer.contains(code), "{query}: {status} {answer}");
    }
}

#[tokio::test]
async fn a_difference_comes_as_json_and_as_csv() {
    let mut world = World::new();
    let (gateway, [acme, _]) = two_tenants(&world);
    let request = StartReplay {
        metrics: vec!["views".to_owned()],
        from: "1970-01-01".to_owned(),
        to: None,
        rules: None,
    };
    let body = serde_json::to_string(&request).unwrap();
    assert_eq!(ask(&gateway, &acme, "POST", "/v1/replays", &body).await.0, 200);
    for path in ["/v1/replays/1/diff", "/v1/replays/1/diff?format=csv"] {
        let (status, answer) = ask(&gateway, &acme, "GET", path, "").await;
        assert!(status == 409 && answer.contains("replay_not_ready"), "{status} {answer}");
        assert!(answer.contains("shard 0 (until its next flush)"), "{answer}");
    }
    for shard in 0..2 {
        world.adopt(shard, &[1]);
        world.fill(shard, 1, 20, Vec::new());
    }
    let (_, answer) = ask(&gateway, &acme, "GET", "/v1/replays/1/diff?limit=1", "").await;
    let diff: crate::api::replays::ReplayDiff = serde_json::from_str(&answer).unwrap();
    assert_eq!((diff.totals.removed, diff.rows.len(), diff.next), (3, 1, None));
    for path in ["/v1/replays/1/diff?format=csv", "/v1/replays/1/diff"] {
        let mut request = Request::get(path).header("authorization", format!("Bearer {acme}"));
        if !path.contains("csv") {
            request = request.header("accept", "text/csv");
        }
        let (status, table, _) = call(&gateway, request.body(Body::empty()).unwrap()).await;
        assert_eq!((status, table.lines().count()), (StatusCode::OK, 4), "{table}");
        assert!(table.starts_with("time,metric,labels,change,count_before"), "{table}");
    }
    assert_eq!(ask(&gateway, &acme, "POST", "/v1/replays/1/cancel", "").await.0, 200);
    let (status, answer) = ask(&gateway, &acme, "GET", "/v1/replays/1/diff", "").await;
    assert!(status == 409 && answer.contains("replay_refused"), "{status} {answer}");
}

/// The exit code of a command line.
async fn command(line: String) -> String {
    let run = move || {
        let code = crate::cli::run_line(&line.split(' ').collect::<Vec<_>>());
        code.map_or_else(|error| format!("{error:#}"), |code| format!("{code:?}"))
    };
    tokio::task::spawn_blocking(run).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_commands_do_one_step_each_and_their_exit_codes_say_what_came_of_it() {
    let mut world = World::new();
    let (gateway, [acme, _]) = two_tenants(&world);
    let (address, _stop) = serve(gateway).await;
    let server = format!("--url http://{address} --key {acme}");
    let run = async |words: &str| command(format!("rollmill replay {words} {server}")).await;
    let (done, differs) = ("ExitCode(unix_exit_status(0))", "ExitCode(unix_exit_status(3))");
    let wrong = run("start --metric views --from 1970-01-01T07:00:00Z").await;
    assert!(wrong.contains("whole days of UTC"), "{wrong}");
    assert_eq!(run("start --metric views --from 1970-01-01 --set-label plan=/plan").await, done);
    assert_eq!(run("show 1").await, done);
    let refused = run("apply 1").await;
    assert!(refused.contains("replay_not_ready") && refused.contains("shard 0"), "{refused}");
    for output in ["table", "csv", "json"] {
        // An error, so the exit code is 1: 3 would say that rows differ.
        let refused = run(&format!("diff 1 --output {output}")).await;
        assert!(refused.contains("replay_not_ready") && refused.contains("shard 0"), "{refused}");
    }
    for shard in 0..2 {
        world.adopt(shard, &[1]);
        world.fill(shard, 1, 20, Vec::new());
    }
    for output in ["table", "csv", "json"] {
        assert_eq!(run(&format!("diff 1 --output {output}")).await, differs, "{output}");
    }
    for step in ["apply 1", "ls", "ls --audit", "undo 1 --json", "cancel 1"] {
        assert_eq!(run(step).await, done, "{step}");
    }
    let gone = run("diff 99").await;
    assert!(gone.contains("replay_not_found"), "{gone}");
}
