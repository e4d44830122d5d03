//! The recipes: wrong events replaced by right ones in one moment, and old objects replayed where
//! they are.

use std::collections::BTreeSet;

use super::*;

/// Rules of the recipe in docs/how-to/reprocess.md, word by word.
fn documented_rules() -> String {
    let page = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/how-to/reprocess.md");
    let page = std::fs::read_to_string(page).expect("the page");
    let recipe = page.split("## Correct by re-sending").nth(1).expect("the recipe");
    let block = recipe.split("```toml\n").nth(1).and_then(|rest| rest.split("```").next());
    block
        .expect("a block of rules")
        .lines()
        .map(|line| line.trim_start().to_owned() + "\n")
        .collect()
}

/// Sales of one day: of a batch, each of this value.
fn sales(batch: &str, ids: &str, value: u64) -> Vec<String> {
    let sale = |n: u64| {
        let time = format!("2026-01-30T{:02}:15:00Z", n % 24);
        let labels = format!(r#"{{"shop":"s{}"}}"#, n % 5);
        let tail = format!(r#""labels":{labels},"properties":{{"batch":"{batch}"}}"#);
        format!(
            r#"{{"metric":"sales","id":"{ids}{n}","value":{value},"timestamp":"{time}",{tail}}}"#
        )
    };
    (0..300).map(sale).collect()
}

const DAY: &str = "/v1/query?metric=sales&step=all&agg=count,sum&from=2026-01-30T00:00:00Z&\
                   to=2026-01-31T00:00:00Z";

/// Count and sum of the day.
fn totals(answer: &serde_json::Value) -> (u64, u64) {
    let point = &answer["series"][0]["points"][0];
    (point["count"].as_u64().unwrap_or(0), point["sum"].as_u64().unwrap_or(0))
}

#[test]
fn wrong_events_leave_and_right_ones_appear_at_one_moment() {
    let dir = tempfile::tempdir().expect("a directory");
    let server = Server::start(&dir.path().join("data"), &[("shards.count", "3")]);
    // A batch that was right, and one whose values are a hundred times too large.
    send(&server, &sales("2026-01-29", "good", 3));
    send(&server, &sales("2026-01-30a", "bad", 700));
    server.await_query(DAY, |answer| totals(answer) == (600, 300 * 3 + 300 * 700));
    wait_flushed(&server, 600);
    let rules = file(dir.path(), "wrong-batch.toml", &documented_rules());
    let days = ["--metric", "sales", "--from", "2026-01-30", "--to", "2026-01-31"];
    let id = start(&server, &[&days[..], &["--rules", &rules]].concat());
    wait_ready(&server, id);
    let id = id.to_string();
    // The right ones, under ids of their own, and twice.
    let right = sales("2026-01-30b", "right", 7);
    send(&server, &right);
    send(&server, &right);
    let before = (900, 300 * 3 + 300 * 700 + 300 * 7);
    server.await_query(DAY, |answer| totals(answer) == before);
    wait_flushed(&server, 1_200);

    let done = AtomicBool::new(false);
    let seen = std::thread::scope(|scope| {
        let watching = scope.spawn(|| {
            let mut seen = BTreeSet::new();
            while !done.load(Ordering::SeqCst) {
                let (status, answer) = server.get(DAY);
                assert_eq!(status, 200, "{answer}");
                if answer["completeness"]["partial"] == false {
                    seen.insert(totals(&answer));
                }
            }
            seen
        });
        let _ended = EndReaders(&done);
        let differs = replay(&server, &["diff", &id]);
        assert_eq!(differs.status.code(), Some(3), "{}", said(&differs));
        let text = said(&differs);
        assert!(text.contains("213,000") && text.contains("3,000"), "sums of both sides: {text}");
        replay_ok(&server, &["apply", &id]);
        server.await_query(DAY, |answer| totals(answer) == (600, 300 * 3 + 300 * 7));
        done.store(true, Ordering::SeqCst);
        watching.join().expect("readers")
    });
    let after = (600, 300 * 3 + 300 * 7);
    assert!(seen.is_subset(&BTreeSet::from([before, after])), "something between: {seen:?}");
    // What people read says that the day is corrected.
    let query = ["query", "sales", "--from", "2026-01-30", "--to", "2026-01-31", "--url"];
    let shown = said(&Server::cli(&[&query[..], &[&server.url]].concat()));
    assert!(
        shown.contains(&format!("corrected by replay {id} (2026-01-30T00:00:00Z to ")),
        "{shown}"
    );
    replay_ok(&server, &["undo", &id]);
    server.await_query(DAY, |answer| totals(answer) == before);
    stop_and_verify(server);
}

fn objects(data: &Path) -> Vec<serde_json::Value> {
    let output = Server::cli(&["archive", "ls", "--json", "--data", &data.display().to_string()]);
    assert!(output.status.success(), "{}", said(&output));
    serde_json::from_slice(&output.stdout).expect("JSON")
}

#[test]
fn objects_in_the_cold_store_are_replayed_where_they_are() {
    let dir = tempfile::tempdir().expect("a directory");
    let cold = dir.path().join("cold");
    let settings = [
        ("shards.count", "2"),
        ("flush.interval", "200ms"),
        ("archive.max_delay", "200ms"),
        ("archive.cold_url", &format!("file://{}", cold.display())),
        ("archive.cold_after", "100ms"),
    ];
    let data = dir.path().join("data");
    let server = Server::start(&data, &settings);
    let (_, rows) = flights(2_000);
    let events: Vec<String> =
        rows.iter().enumerate().map(|(n, row)| event("departure_delay", n, row)).collect();
    let mut sent = 0;
    for part in events.chunks(1_000) {
        send(&server, part);
        sent += part.len() as u64;
        wait_flushed(&server, sent);
        wait_until("all of it is in the cold store", || {
            let objects = objects(&data);
            let events = objects.iter().filter_map(|object| object["events"].as_u64());
            events.sum::<u64>() == sent && objects.iter().all(|object| object["tier"] == "cold")
        });
    }
    let before = objects(&data);
    let files = |objects: &[serde_json::Value], tier: &Path| {
        let path = |object: &serde_json::Value| tier.join(object["path"].as_str().expect("a path"));
        objects.iter().filter(|object| path(object).exists()).count()
    };
    let hot = data.join("archive");
    wait_until("none is left in the hot store", || files(&before, &hot) == 0);
    let rules =
        "[[rule]]\nname = \"dest\"\nset_label = { label = \"dest\", property = \"/dest\" }\n";
    let rules = file(dir.path(), "dest.toml", rules);
    let args = ["--metric", "departure_delay", "--from", "2013-01-01", "--rules", &rules];
    let applied = replay(&server, &[&args[..], &["--apply"]].concat());
    assert!(applied.status.success(), "{}", said(&applied));
    let path = format!("/v1/query?metric=departure_delay&step=all&by=dest&{ALL_FLIGHTS}");
    let answer = server.await_query(&path, |answer| answer["series"].as_array().is_some());
    let series = answer["series"].as_array().expect("series");
    let counts: BTreeMap<String, u64> = series
        .iter()
        .map(|one| {
            let dest = one["labels"]["dest"].as_str().unwrap_or_default().to_owned();
            (dest, one["points"][0]["count"].as_u64().expect("a count"))
        })
        .collect();
    let mut expected: BTreeMap<String, u64> = BTreeMap::new();
    rows.iter().for_each(|row| *expected.entry(row[4].to_owned()).or_default() += 1);
    assert_eq!(counts, expected);
    assert_eq!(objects(&data), before, "objects are where they were");
    assert_eq!((files(&before, &hot), files(&before, &cold)), (0, before.len()));
    let config = format!("archive.cold_url = \"file://{}\"\n", cold.display());
    let config = file(dir.path(), "node.toml", &config);
    stop_and_verify_with(server, &["--config", &config]);
}
