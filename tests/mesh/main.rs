//! Several nodes, each a process: they all give the same answer, and a partial one while nodes are
//! killed, frozen or cut off.
// Waiting for processes takes real time.
#![allow(clippy::disallowed_methods)]
// A test exports nothing, and cleans up without checking for errors.
#![allow(unreachable_pub, clippy::let_underscore_must_use)]

mod node;
#[path = "../support/ports.rs"]
mod ports;
#[path = "../support/proxy.rs"]
mod proxy;
#[path = "../support/rng.rs"]
mod rng;

use std::collections::BTreeSet;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use node::{CALL_TIMEOUT, DEAD_AFTER, Node, PATIENCE, SHARDS, START, Spec};
use proxy::{Proxy, ProxyPlan};

fn free_ports<const N: usize>() -> [u16; N] {
    [(); N].map(|()| ports::free(ports::MESH))
}

/// All six hours by page, with sketches. The range ends in the future, so that no node is skipped
/// for holding nothing.
fn everything() -> String {
    format!(
        "metric=views&from={START}&to=2100000000000&step=1d&by=page&agg=count,sum,min,max,\
         distinct,p95"
    )
}

fn missing(answer: &Value) -> Vec<(u64, String)> {
    let missing = answer["completeness"]["missing"].as_array().expect("an array");
    missing
        .iter()
        .map(|m| {
            (
                m["shard"].as_u64().expect("a shard"),
                m["reason"].as_str().expect("a reason").to_owned(),
            )
        })
        .collect()
}

fn all_are(shards: impl IntoIterator<Item = u64>, reason: &str) -> Vec<(u64, String)> {
    shards.into_iter().map(|shard| (shard, reason.to_owned())).collect()
}

fn count(answer: &Value) -> u64 {
    let points = answer["series"]
        .as_array()
        .expect("series")
        .iter()
        .flat_map(|s| s["points"].as_array().expect("points"));
    points.map(|p| p["count"].as_u64().expect("a count")).sum()
}

/// The answer of a single node that owns everything.
fn alone(dir: &Path, query: &str) -> Value {
    let [port] = free_ports();
    let mut node = Node::start(dir, &Spec::new("alone", port, &[], 0..SHARDS));
    complete(&mut node, query)["series"].clone()
}

/// Queries until the answer is complete: a machine that stalls for longer than a deadline causes a
/// partial one.
fn complete(node: &mut Node, query: &str) -> Value {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let (answer, took) = node.query(query);
        assert!(took < CALL_TIMEOUT * 5, "late by {took:?}");
        if answer["completeness"]["partial"] == false {
            return answer;
        }
        assert!(
            Instant::now() < deadline,
            "still partial: {}\n{}",
            answer["completeness"],
            node.said()
        );
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Queries until the answer is complete again and as expected.
fn await_complete(node: &mut Node, expected: &Value) {
    assert_eq!(complete(node, &everything())["series"], *expected);
}

/// Queries until exactly these shards are missing, and none for lack of time.
fn await_missing(node: &mut Node, expected: &[(u64, String)]) -> Value {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let (answer, _) = node.query(&everything());
        if missing(&answer) == expected {
            return answer;
        }
        assert!(
            Instant::now() < deadline,
            "not {expected:?}: {}\n{}",
            answer["completeness"],
            node.said()
        );
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Asks for names until none are missing for lack of time. Returns metrics and values.
fn complete_names(node: &mut Node, ask: &str) -> Value {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let (found, missing) = names(node, ask);
        if missing.is_empty() {
            return found;
        }
        assert!(Instant::now() < deadline, "still missing: {missing:?}\n{}", node.said());
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Metrics and values as a node lists them, and the shards that each list lacks.
fn names(node: &mut Node, ask: &str) -> (Value, Vec<(u64, String)>) {
    let answer = node.ask(ask);
    let missing: Vec<_> = ["metrics", "values"].map(|list| missing(&answer[list])).concat();
    (json!([answer["metrics"]["metrics"], answer["values"]["values"]]), missing)
}

/// Creates an authority, and in each of these directories its certificate for 127.0.0.1.
fn certificates(dir: &Path, nodes: &[&str]) {
    let ca_key = rcgen::KeyPair::generate().expect("a key");
    let mut params = rcgen::CertificateParams::new(vec![]).expect("parameters");
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let ca = params.self_signed(&ca_key).expect("an authority");
    let issuer = rcgen::Issuer::new(params, ca_key);
    for node in nodes {
        let key = rcgen::KeyPair::generate().expect("a key");
        let params =
            rcgen::CertificateParams::new(vec!["127.0.0.1".to_owned()]).expect("parameters");
        let cert = params.signed_by(&key, &issuer).expect("signed");
        std::fs::create_dir_all(dir.join(node)).expect("a directory");
        let write = |name: &str, text: String| {
            std::fs::write(dir.join(node).join(name), text).expect("written")
        };
        write("cert.pem", cert.pem());
        write("key.pem", key.serialize_pem());
        write("ca.pem", ca.pem());
    }
}

#[test]
fn any_of_three_nodes_over_tls_answers_as_one_would() {
    let dir = tempfile::tempdir().expect("a directory");
    certificates(dir.path(), &["a", "b", "c"]);
    certificates(&dir.path().join("foreign"), &["d"]);
    let [a, b, c, d] = free_ports();
    let spec = |name: &str, port, owned: &[u32]| Spec {
        tls: Some(dir.path().join(name)),
        // A node's own address is among its peers: one configuration fits all.
        ..Spec::new(name, port, &[a, b, c], owned.iter().copied())
    };
    let specs = [spec("a", a, &[0, 1, 2]), spec("b", b, &[3, 4, 5]), spec("c", c, &[6, 7])];
    let mut nodes = specs.map(|spec| Node::start(dir.path(), &spec));
    for (node, others) in nodes.iter_mut().zip([["b", "c"], ["a", "c"], ["a", "b"]]) {
        node.await_elected(&others);
    }
    let hour = START + 3_600_000;
    for query in [
        everything(),
        format!(
            "metric=views&from={START}&to=2100000000000&step=1d&by=page&where={{page=~\"/1.*\",\
             page!=\"/11\"}}"
        ),
        format!("metric=views&from={START}&to={}&step=1h&agg=count,sum", START + 6 * 3_600_000),
        format!("metric=views&from={hour}&to={}&step=1h&agg=distinct", hour + 3_600_000),
        format!("metric=absent&from={START}&to=2100000000000&step=1d"),
    ] {
        let expected = alone(dir.path(), &query);
        for node in &mut nodes {
            let answer = complete(node, &query);
            assert_eq!(answer["series"], expected, "{query}: {answer}");
        }
    }
    for node in &mut nodes {
        let (mut books, deadline) = (node.ask("books"), Instant::now() + PATIENCE);
        while books["completeness"]["partial"] != false {
            assert!(Instant::now() < deadline, "{books}");
            books = node.ask("books");
        }
        let sum = |name: &str| {
            books["hours"]
                .as_array()
                .expect("hours")
                .iter()
                .filter_map(|h| h[name].as_u64())
                .sum::<u64>()
        };
        assert_eq!(
            (sum("accepted"), sum("aggregated") + sum("pending")),
            (1_200, 1_200),
            "{books}"
        );
        assert!(sum("pending") > 500, "{books}");
    }
    // A certificate of another authority is refused, even with the right cookie.
    let mut stranger = Node::start(
        dir.path(),
        &Spec { tls: Some(dir.path().join("foreign/d")), ..Spec::new("d", d, &[a], [0]) },
    );
    stranger.await_said("TLS");
    assert_eq!(stranger.ask("peers"), json!([]));
    nodes[0].await_peers(&["b", "c"]);
}

#[test]
fn every_node_lists_the_names_that_another_holds_in_memory_or_says_what_it_lacks() {
    let dir = tempfile::tempdir().expect("a directory");
    let [a, b, c] = free_ports();
    let mut alone = Node::start(dir.path(), &Spec::new("alone", c, &[], 0..SHARDS));
    let (expected, lacks) = names(&mut alone, "names");
    assert_eq!(
        (&expected[0][0]["series"], expected[1].as_array().map(Vec::len), lacks),
        (&56.into(), Some(56), vec![])
    );
    let mut near = Node::start(dir.path(), &Spec::new("a", a, &[b], 0..4));
    let far = Node::start(dir.path(), &Spec::new("b", b, &[], 4..8));
    near.await_peers(&["b"]);
    await_complete(&mut near, &alone.query(&everything()).0["series"]);
    assert_eq!(complete_names(&mut near, "names"), expected);
    // A page of names is the same wherever the names are held.
    for page in ["prefix=/4", "after=/4&limit=7", "prefix=/5&limit=1"] {
        let page = format!("names metric=views&{page}");
        assert_eq!(complete_names(&mut near, &page), complete_names(&mut alone, &page));
    }
    far.kill();
    let (left, lacks) = names(&mut near, "names");
    assert_eq!(lacks, [all_are(4..8, "unreachable"), all_are(4..8, "unreachable")].concat());
    let left = left[1].as_array().expect("values").len();
    assert!((41..56).contains(&left), "what is stored, and its own new ones: {left}");
}

#[test]
fn closed_windows_that_nobody_holds_cost_no_call() {
    let dir = tempfile::tempdir().expect("a directory");
    let [a, b] = free_ports();
    let mut near = Node::start(dir.path(), &Spec::new("a", a, &[b], 0..4));
    let _far = Node::start(dir.path(), &Spec::new("b", b, &[], 4..8));
    near.await_peers(&["b"]);
    let calls = |node: &mut Node, outcome: &str| {
        let name = format!("rollmill_mesh_calls_total{{outcome=\"{outcome}\"}}");
        node.ask("metrics")[name].as_f64().unwrap_or(0.0) as u64
    };
    let before = format!("metric=views&from={}&to={START}&step=1d", START - 86_400_000);
    complete(&mut near, &before);
    assert_eq!((calls(&mut near, "answered"), calls(&mut near, "left_out")), (0, 1));
    complete(&mut near, &everything());
    assert_eq!(calls(&mut near, "answered"), 1);
}

#[test]
fn a_wrong_cookie_is_refused_and_said_once() {
    let dir = tempfile::tempdir().expect("a directory");
    let [a, b] = free_ports();
    let mut near = Node::start(dir.path(), &Spec::new("a", a, &[], 0..4));
    let wrong = "another cookie, of as many bytes as needed";
    let mut far = Node::start(
        dir.path(),
        &Spec { cookie: wrong.to_owned(), ..Spec::new("b", b, &[a], 4..8) },
    );
    let refusals =
        [(&near, "a connection was refused"), (&far, "do both nodes have the same cookie")];
    refusals.iter().for_each(|(node, words)| node.await_said(words));
    // It is dialled again and again, but logged once.
    std::thread::sleep(Duration::from_secs(3));
    for (node, words) in refusals {
        let said = node.said();
        assert_eq!(said.matches(words).count(), 1, "{said}");
        for secret in [wrong, node::COOKIE] {
            assert!(!said.contains(secret), "{said}");
        }
    }
    let dialled = near.said().lines().count() + far.said().lines().count();
    assert!(dialled < 20, "nothing spins:\n{}{}", near.said(), far.said());
    assert_eq!((near.ask("peers"), far.ask("peers")), (json!([]), json!([])));
    let (answer, took) = far.query(&everything());
    assert_eq!(missing(&answer), all_are(0..4, "unavailable"), "nobody is known to own them");
    // The best of several, because a machine that stalls delays any of them.
    let took = (0..5).map(|_| far.query(&everything()).1).min().min(Some(took));
    assert!(took < Some(CALL_TIMEOUT), "{took:?}");
}

#[test]
fn a_node_that_is_killed_is_missing_by_name_and_comes_back() {
    let dir = tempfile::tempdir().expect("a directory");
    let expected = alone(dir.path(), &everything());
    let [a, b] = free_ports();
    let mut near = Node::start(dir.path(), &Spec::new("a", a, &[b], 0..4));
    let far = || Node::start(dir.path(), &Spec::new("b", b, &[a], 4..8));
    let node = far();
    near.await_elected(&["b"]);
    await_complete(&mut near, &expected);
    node.kill();
    let (answer, took) = near.query(&everything());
    assert_eq!(missing(&answer), all_are(4..8, "unreachable"), "{}", near.said());
    assert!(took < CALL_TIMEOUT * 3, "{took:?}");
    assert!(
        count(&answer) < 1_200 && count(&answer) > 600,
        "the store's half is there, and the near half of the rest"
    );
    let took = (0..5).map(|_| near.query(&everything()).1).min();
    assert!(took < Some(CALL_TIMEOUT / 2), "a node that is gone costs nothing: {took:?}");
    let _back = far();
    await_complete(&mut near, &expected);
}

#[test]
fn a_frozen_node_costs_one_deadline_then_nothing_and_comes_back() {
    let dir = tempfile::tempdir().expect("a directory");
    let expected = alone(dir.path(), &everything());
    let [a, b, c] = free_ports();
    let mut near = Node::start(dir.path(), &Spec::new("a", a, &[b, c], 0..3));
    let far = Node::start(dir.path(), &Spec::new("b", b, &[a, c], 3..6));
    let mut other = Node::start(dir.path(), &Spec::new("c", c, &[a, b], 6..8));
    for (node, others) in [(&mut near, ["b", "c"]), (&mut other, ["a", "b"])] {
        node.await_elected(&others);
        await_complete(node, &expected);
    }
    far.freeze();
    let (began, frozen) = (Instant::now(), all_are(3..6, "unreachable"));
    // Whether nothing else is missing. If the machine stalls for longer than a deadline, the node
    // that is not frozen misses it too.
    let lacks_only_the_frozen = |answer: &Value| {
        let lacks = missing(answer);
        assert!(frozen.iter().all(|shard| lacks.contains(shard)), "{lacks:?}");
        lacks == frozen
    };
    for node in [&mut near, &mut other] {
        let (answer, took) = node.query(&everything());
        lacks_only_the_frozen(&answer);
        assert!(took < CALL_TIMEOUT * 3, "{took:?}");
    }
    let (mut asked, mut hindered) = (0, 0);
    while began.elapsed() < DEAD_AFTER + CALL_TIMEOUT * 2 {
        for node in [&mut near, &mut other] {
            let (answer, took) = node.query(&everything());
            asked += 1;
            let is_prompt = lacks_only_the_frozen(&answer) && took < CALL_TIMEOUT * 3 / 4;
            hindered += u32::from(!is_prompt);
        }
    }
    // A stalling machine hinders some queries; a deadline would delay all of them.
    assert!(hindered * 4 < asked, "{hindered} of {asked} later queries waited or lack more");
    for node in [&mut near, &mut other] {
        await_missing(node, &frozen);
    }
    [&near, &other].iter().for_each(|node| node.await_said("does not answer"));
    far.thaw();
    for node in [&mut near, &mut other] {
        await_complete(node, &expected);
    }
}

#[test]
fn a_hole_in_the_network_is_a_partial_answer_in_time_and_heals() {
    let dir = tempfile::tempdir().expect("a directory");
    let expected = alone(dir.path(), &everything());
    let [a, b] = free_ports();
    let hole = Proxy::start(b, 1);
    let mut near = Node::start(dir.path(), &Spec::new("a", a, &[hole.port], 0..4));
    let mut far = Node::start(dir.path(), &Spec::new("b", b, &[], 4..8));
    await_complete(&mut near, &expected);
    await_complete(&mut far, &expected);
    for round in 0..2 {
        hole.set(ProxyPlan { stall: true, ..ProxyPlan::default() });
        for (node, shards) in [(&mut near, 4..8), (&mut far, 0..4)] {
            let (answer, took) = node.query(&everything());
            assert_eq!(missing(&answer), all_are(shards, "unreachable"), "round {round}");
            assert!(took < CALL_TIMEOUT * 3, "{took:?}");
        }
        // Once for less than `DEAD_AFTER`, once for longer.
        std::thread::sleep(DEAD_AFTER * round);
        hole.set(ProxyPlan::default());
        await_complete(&mut near, &expected);
        await_complete(&mut far, &expected);
    }
}

#[test]
fn an_owner_of_an_old_epoch_adds_nothing() {
    let dir = tempfile::tempdir().expect("a directory");
    let [a, b] = free_ports();
    // All shards have been claimed since this node owned some, and it does not know it yet.
    let _zombie = Node::start(dir.path(), &Spec::new("b", b, &[], 4..8));
    let mut near = Node::start(dir.path(), &Spec { lives: 2, ..Spec::new("a", a, &[b], 0..4) });
    near.await_peers(&["b"]);
    let answer = await_missing(&mut near, &all_are(4..8, "moved"));
    let mut without = Node::start(
        dir.path(),
        &Spec { lives: 2, ..Spec::new("w", free_ports::<1>()[0], &[], 0..4) },
    );
    let (alone, _) = without.query(&everything());
    assert_eq!(answer["series"], alone["series"], "as if the old owner were not there");
    assert_eq!(missing(&alone), all_are(4..8, "unavailable"));
}

#[test]
fn answers_that_are_too_large_are_missing_and_the_session_lives() {
    let dir = tempfile::tempdir().expect("a directory");
    let [a, b] = free_ports();
    let _far = Node::start(dir.path(), &Spec { max_answer: 3_000, ..Spec::new("b", b, &[], 4..8) });
    let mut near = Node::start(dir.path(), &Spec::new("a", a, &[b], 0..4));
    near.await_peers(&["b"]);
    let deadline = Instant::now() + PATIENCE;
    let missing = loop {
        let missing = missing(&near.query(&everything()).0);
        // For lack of time, on a machine that stalls.
        if !missing.iter().any(|(_, reason)| reason == "unreachable") {
            break missing;
        }
        assert!(Instant::now() < deadline, "{missing:?}\n{}", near.said());
        std::thread::sleep(Duration::from_millis(50));
    };
    assert!(
        !missing.is_empty()
            && missing.iter().all(|(shard, reason)| *shard >= 4 && reason == "too_large"),
        "{missing:?}"
    );
    let shards: BTreeSet<_> = missing.iter().map(|(shard, _)| *shard).collect();
    assert!(shards.len() < 4, "what fits is there: {missing:?}");
    // A smaller query is answered over the same session.
    complete(
        &mut near,
        &format!("metric=views&from={START}&to=2100000000000&step=1d&where={{page=\"/7\"}}"),
    );
}

#[test]
fn a_crowd_with_one_question_makes_one_call() {
    let dir = tempfile::tempdir().expect("a directory");
    let expected = alone(dir.path(), &everything());
    let [a, b] = free_ports();
    // No deadline ends the call while the owner is frozen.
    let spec = |name, port, peers: &[u16], owned: std::ops::Range<u32>| Spec {
        call_timeout: PATIENCE,
        dead_after: PATIENCE,
        ..Spec::new(name, port, peers, owned)
    };
    let far = Node::start(dir.path(), &spec("b", b, &[], 4..8));
    let mut near = Node::start(dir.path(), &spec("a", a, &[b], 0..4));
    near.await_peers(&["b"]);
    let calls = |near: &mut Node| {
        near.ask("metrics")["rollmill_mesh_calls_total{outcome=\"answered\"}"]
            .as_f64()
            .unwrap_or(0.0)
    };
    // On a slow machine, some of the crowd may arrive after the answer: so the owner is frozen for
    // longer each time.
    let seen: Vec<f64> = (0..5_u32)
        .map(|attempt| {
            await_complete(&mut near, &expected);
            let before = calls(&mut near);
            far.freeze();
            let answers = std::thread::scope(|scope| {
                scope.spawn(|| {
                    std::thread::sleep(Duration::from_secs(1 << attempt));
                    far.thaw();
                });
                near.ask(&format!("crowd {}", everything()))
            });
            let answers = answers.as_array().expect("answers");
            let whole: Vec<_> = answers
                .iter()
                .filter(|answer| answer["completeness"]["partial"] == false)
                .collect();
            assert!(whole.iter().all(|answer| answer["series"] == expected), "{answers:?}");
            if whole.len() == 100 { calls(&mut near) - before } else { 0.0 }
        })
        .take_while(|calls| *calls != 1.0)
        .collect();
    assert!(seen.len() < 5, "one call for a hundred queries, not {seen:?}");
}
