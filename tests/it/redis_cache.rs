//! The real binary with a second query cache in Redis, which is lost, filled with garbage, frozen
//! and killed.

use std::time::{Duration, Instant};

use crate::redis_server::{PASSWORD, Redis};
use crate::support::{PATIENCE, Server};

const DAY_MS: i64 = 86_400_000;
/// 2020-01-01 in Unix milliseconds.
const START: i64 = 1_577_836_800_000;
const QUESTION: &str = "/v1/query?metric=sales&from=2020-01-01T00:00:00Z&to=2020-02-10T00:00:00Z&\
                        step=1d&by=country&agg=count,sum,p95";

fn send(server: &Server, from: i64, to: i64) {
    let event = |n: i64| {
        let time = START + n % 40 * DAY_MS + n * 1_000;
        let head = format!(r#""metric":"sales","timestamp":{time},"value":"{n}.5""#);
        format!(r#"{{{head},"labels":{{"country":"c{}"}},"id":"{n}"}}"#, n % 5)
    };
    let body: Vec<String> = (from..to).map(event).collect();
    assert_eq!(server.post(&format!("[{}]", body.join(","))).0, 202);
}

fn outcomes(server: &Server, outcome: &str) -> u64 {
    let (_, metrics) = server.get("/metrics");
    let name = format!("rollmill_query_second_cache_total{{outcome=\"{outcome}\"}} ");
    let text = metrics.as_str().expect("text");
    text.lines()
        .find_map(|line| line.strip_prefix(&name))
        .map_or(0, |number| number.parse().expect("a number"))
}

/// Only the series: the rest of the answer depends on the time of the query.
fn ask(server: &Server) -> serde_json::Value {
    server.get(QUESTION).1["series"].clone()
}

/// A different query every time, so that no part of it is in the process's own cache.
fn ask_anew(server: &Server, n: u32) -> (u16, serde_json::Value) {
    let question = format!("{QUESTION}&where={{country!=\"x{n}\"}}");
    server.get(&question.replace('{', "%7B").replace('}', "%7D").replace('"', "%22"))
}

fn count(series: &serde_json::Value) -> u64 {
    let points = series
        .as_array()
        .into_iter()
        .flatten()
        .flat_map(|s| s["points"].as_array().into_iter().flatten());
    points.map(|point| point["count"].as_u64().expect("count")).sum()
}

fn until(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !done() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn answers_stay_right_whatever_becomes_of_the_second_cache() {
    let mut redis = Redis::start();
    let dir = tempfile::tempdir().expect("a directory");
    let data = dir.path().join("data");
    let url = redis.url();
    let settings = [
        ("query.redis", url.as_str()),
        ("query.redis_timeout", "100ms"),
        ("flush.interval", "100ms"),
        ("shards.count", "4"),
    ];
    let server = Server::start(&data, &settings);
    send(&server, 0, 2_000);
    server.await_query(QUESTION, |answer| count(&answer["series"]) == 2_000);
    until("flushed", || server.accounted()[0] == 2_000);
    let truth = ask(&server);
    // At most 32 writes run at once. Parts that arrive meanwhile are dropped and not offered again,
    // so each attempt sends a new query.
    let mut asked = 2_000;
    until("kept", || {
        assert_eq!(ask(&server), truth);
        asked += 1;
        assert_eq!(ask_anew(&server, asked).1["series"], truth);
        outcomes(&server, "kept") >= 60
    });
    server.kill();

    // A new process finds them.
    let server = Server::start(&data, &settings);
    until("found", || {
        assert_eq!(ask(&server), truth);
        outcomes(&server, "hit") + outcomes(&server, "skipped") > 0
    });
    server.kill();

    // Overwrites every key with garbage, some of it of another type.
    let mut connection = redis.connection();
    let keys: Vec<String> =
        redis::cmd("KEYS").arg("rollmill:*").query(&mut connection).expect("keys");
    assert!(keys.len() >= 30);
    for (at, key) in keys.iter().enumerate() {
        let rubbish: Vec<u8> = (0..at * 5).map(|n| (n * 31 + at) as u8).collect();
        redis::cmd("SET")
            .arg(key)
            .arg([&[1_u8][..], &rubbish].concat())
            .query::<()>(&mut connection)
            .expect("set");
    }
    let server = Server::start(&data, &settings);
    until("not believed", || {
        assert_eq!(ask(&server), truth);
        outcomes(&server, "invalid") + outcomes(&server, "skipped") > 0
    });

    // A late event is visible at once.
    send(&server, 2_000, 2_001);
    let late =
        server.await_query(QUESTION, |answer| count(&answer["series"]) == 2_001)["series"].clone();
    assert_ne!(late, truth);

    let mut asked = 1_000;
    until("connected", || {
        asked += 1;
        ask_anew(&server, asked);
        outcomes(&server, "miss") > 0
    });
    let fifty_queries = |first: u32| {
        let watch = Instant::now();
        for n in first..first + 50 {
            let (status, answer) = ask_anew(&server, n);
            assert_eq!((status, &answer["series"]), (200, &late));
        }
        watch.elapsed()
    };
    // With Redis frozen, then dead, answers stay correct and fast.
    let answering = fifty_queries(100);
    redis.pause();
    let silent = fifty_queries(0);
    // It would take minutes more if each query waited for each of its parts.
    assert!(
        silent < 4 * answering + Duration::from_secs(60),
        "50 queries took {answering:?}, and beside a silent Redis {silent:?}"
    );
    let log =
        || std::fs::read_to_string(data.with_extension("server.log")).expect("the server's log");
    until("the silence is noticed", || {
        asked += 1;
        assert_eq!(ask_anew(&server, asked).1["series"], late);
        log().contains("does not answer")
    });
    redis.resume();
    redis.kill();
    for _ in 0..20 {
        assert_eq!(ask(&server), late);
    }
    redis.restart();
    assert_eq!(ask(&server), late);
    assert_eq!(server.stop(), Some(0));
    assert!(!log().contains(PASSWORD), "{}", log());
}
