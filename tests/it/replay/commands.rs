//! The commands, as a stranger types them: mistakes, keys, Ctrl-C, what is printed.

use std::process::{Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};

use super::*;
use crate::support::handles;

const FEW: [(&str, &str); 2] = [("shards.count", "3"), ("flush.interval", "200ms")];

/// A server with some flights in it.
fn with_flights(dir: &Path, events: usize, settings: &[(&str, &str)]) -> Server {
    let server = Server::start(&dir.join("data"), &[&FEW[..], settings].concat());
    let (_, rows) = flights(events);
    let rows = rows.iter().enumerate();
    send(&server, &rows.map(|(n, row)| event("departure_delay", n, row)).collect::<Vec<_>>());
    wait_flushed(&server, events as u64);
    server
}

const FLIGHTS: [&str; 4] = ["--metric", "departure_delay", "--from", "2013-01-01"];

#[test]
fn mistakes_are_told_and_start_nothing() {
    let dir = tempfile::tempdir().expect("a directory");
    let server = with_flights(dir.path(), 100, &[]);
    let wrong = "[[rule]]\nname = \"x\"\ndropp = true\n\n[[rule]]\nscale_value = { divide = 0 }\n";
    let wrong = file(dir.path(), "wrong.toml", wrong);
    let all = |more: &[&'static str]| [&FLIGHTS[..], more].concat();
    let told: [(Vec<&str>, i32, &[&str]); 12] = [
        (vec![], 2, &["--metric NAME"]),
        (vec!["--metric", "departure_delay"], 2, &["--from 2026-01-31"]),
        (vec!["--metric", "nope", "--from", "2013-01-01"], 2, &["\"nope\"", "rollmill metrics"]),
        (
            vec!["--metric", "departure_delay", "--from", "soon"],
            2,
            &["--from: \"soon\" is no time"],
        ),
        (
            vec!["--metric", "departure_delay", "--from", "2013-01-02T05:00:00Z"],
            2,
            &["whole days of UTC", "2013-01-02", "2013-01-03"],
        ),
        (all(&["--to", "2012-12-31"]), 2, &["there is no day"]),
        (all(&["--set-label", "plan"]), 2, &["LABEL=/PROPERTY"]),
        (all(&["--set-label", "plan=/~2"]), 2, &["--set-label: "]),
        (all(&["--dry-run", "--apply"]), 2, &["cannot be used with"]),
        ([&FLIGHTS[..], &["--rules", &wrong]].concat(), 2, &["did you mean drop?", "divided by 0"]),
        (vec!["show", "9"], 1, &["there is no replay 9", "replay_not_found"]),
        (vec!["apply", "x"], 2, &["invalid value 'x'"]),
    ];
    for (args, code, expected) in told {
        let output = replay(&server, &args);
        let text = said(&output);
        assert_eq!(output.status.code(), Some(code), "{args:?}: {text}");
        for part in expected {
            assert!(text.contains(part), "{args:?} does not say {part:?}: {text}");
        }
    }
    let away = [&["replay"], &FLIGHTS[..], &["--url", "http://127.0.0.1:1"]].concat();
    let away = Server::cli(&away);
    assert_eq!(away.status.code(), Some(1));
    assert!(said(&away).contains("cannot reach http://127.0.0.1:1"), "{}", said(&away));
    assert_eq!(replay_ok(&server, &["ls"]).trim(), "there are no replays");
    assert_eq!(replay_ok(&server, &["ls", "--audit"]).trim(), "nothing was done to replays");
    let help = said(&Server::cli(&["replay", "--help"]));
    assert!(help.contains("Examples:") && help.contains("--set-label plan=/plan"), "{help}");
    assert_eq!(server.stop(), Some(0));
}

/// Makes a key; the key itself.
fn key(file: &str, tenant: &str, scopes: &str) -> String {
    let args = ["keys", "add", "--tenant", tenant, "--scopes", scopes, "--file", file];
    let output = Server::cli(&args);
    assert!(output.status.success(), "{}", said(&output));
    String::from_utf8(output.stdout).expect("text").trim().to_owned()
}

#[test]
fn a_key_needs_the_scope_and_reaches_the_replays_of_its_tenant_only() {
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("keys.toml").display().to_string();
    let [writer, admin] = ["write", "read,admin"].map(|scopes| key(&file, "shop", scopes));
    let other = key(&file, "rival", "write,read,admin");
    let settings = [("auth.keys_file", file.as_str()), ("flush.interval", "200ms")];
    let server = Server::start(&dir.path().join("data"), &settings);
    for key in [&writer, &other] {
        let bearer = format!("Bearer {key}");
        let event = r#"{"metric":"sales","properties":{"plan":"free"}}"#;
        let answer =
            server.post_as(event.as_bytes(), "application/json", &[("authorization", &bearer)]);
        assert_eq!(answer.0, 202);
    }
    let with = |key: &str, args: &[&str]| replay(&server, &[args, &["--key", key]].concat());
    let sales = ["--metric", "sales", "--from", "-1d", "--set-label", "plan=/plan"];
    wait_until("the event is in the store", || {
        let started = with(&admin, &[&["start"], &sales[..]].concat());
        started.status.success()
    });
    assert!(said(&replay(&server, &["ls"])).contains("401"));
    assert!(said(&with(&writer, &["ls"])).contains("403"));
    // Another tenant's replay is like one that never was.
    for what in ["show", "diff", "apply", "undo", "cancel"] {
        let text = said(&with(&other, &[what, "1"]));
        assert!(text.contains("there is no replay 1"), "{what}: {text}");
    }
    assert!(said(&with(&other, &["ls"])).contains("there are no replays"));
    wait_until("it is ready", || said(&with(&admin, &["show", "1"])).contains("ready"));
    let applied = with(&admin, &["apply", "1"]);
    assert!(applied.status.success(), "{}", said(&applied));
    // Who did it, when, and how many rows it changed: by the name of the key, not the key.
    let name = said(&Server::cli(&["keys", "list", "--file", &file]));
    let name = name.lines().find(|line| line.contains("admin") && line.contains("shop"));
    let name = name.and_then(|line| line.split_whitespace().next()).expect("a name").to_owned();
    assert!(admin.starts_with(&name), "{name}");
    wait_until("its rows are counted", || said(&with(&admin, &["show", "1"])).contains("counted"));
    for args in [&["show", "1"][..], &["ls", "--audit"]] {
        let text = said(&with(&admin, args));
        for part in [name.as_str(), "start", "apply: 2 rows changed (1 added, 1 removed", "Z"] {
            assert!(text.contains(part), "{args:?} lacks {part:?}: {text}");
        }
        assert!(!text.contains(&admin), "{text}");
    }
    assert_eq!(server.stop(), Some(0));
}

#[test]
fn ctrl_c_leaves_the_replay_running_and_says_how_to_go_on() {
    let dir = tempfile::tempdir().expect("a directory");
    // It takes five minutes, so that nothing below finds it ready.
    let server = with_flights(dir.path(), 3_000, &[("replay.max_rate", "10")]);
    let child = Command::new(env!("CARGO_BIN_EXE_rollmill"))
        .arg("replay")
        .args(FLIGHTS)
        .args(["--apply", "--url", &server.url])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("it starts");
    wait_until("it is filling", || {
        let (_, all) = server.get("/v1/replays");
        all["replays"][0]["progress"]["waits_for"][0]["reason"] == "filling"
    });
    // The server may fill it before the command has its answer, and then Ctrl-C would just end it.
    wait_until("it listens for Ctrl-C", || handles(child.id(), Signal::INT));
    let pid = Pid::from_raw(child.id().cast_signed()).expect("a process");
    kill_process(pid, Signal::INT).expect("sent");
    let output = child.wait_with_output().expect("it ends");
    let text = said(&output);
    assert_eq!(output.status.code(), Some(130), "{text}");
    assert!(
        text.contains("replay 1 goes on") && text.contains("rollmill replay apply 1"),
        "{text}"
    );
    let early = replay(&server, &["apply", "1"]);
    assert_eq!(early.status.code(), Some(1));
    let why = said(&early);
    assert!(
        why.contains("replay 1 is not ready: it has counted ") && why.contains(" waits for shard "),
        "{why}"
    );
    let waits = replay_ok(&server, &["show", "1"]);
    assert!(waits.contains("building") && waits.contains("filling"), "{waits}");
    // One more for these days is refused while it is built.
    let twice = replay(&server, &[&["start"], &FLIGHTS[..]].concat());
    assert!(said(&twice).contains("apply or cancel it first"), "{}", said(&twice));
    // Without a limit, it is soon at its end.
    let data = server.data.clone();
    assert_eq!(server.stop(), Some(0));
    let server = Server::start(&data, &FEW);
    wait_ready(&server, 1);
    replay_ok(&server, &["apply", "1"]);
    let refused = replay(&server, &["cancel", "1"]);
    assert!(said(&refused).contains("undo it first"), "{}", said(&refused));
    replay_ok(&server, &["undo", "1"]);
    assert!(said(&replay(&server, &["undo", "1"])).contains("cannot be undone"));
    replay_ok(&server, &["cancel", "1"]);
    stop_and_verify(server);
}

#[test]
fn a_difference_is_a_table_csv_or_json_and_all_say_the_same() {
    let dir = tempfile::tempdir().expect("a directory");
    let server = with_flights(dir.path(), 1_500, &[]);
    let rules =
        "[[rule]]\nname = \"united\"\nwhere = { labels = '{carrier=\"UA\"}' }\ndrop = true\n";
    let rules = file(dir.path(), "united.toml", rules);
    let asked = [&FLIGHTS[..], &["--to", "2013-01-03", "--rules", &rules]].concat();
    let tried = replay(&server, &[&asked[..], &["--dry-run", "--limit", "3"]].concat());
    assert_eq!(tried.status.code(), Some(3), "{}", said(&tried));
    let table = String::from_utf8(tried.stdout).expect("text");
    assert!(table.contains("largest changes") && table.contains("carrier=UA"), "{table}");
    assert_eq!(table.lines().filter(|line| line.contains("removed ")).count(), 3, "{table}");

    let output = replay(&server, &[&asked[..], &["--output", "csv"]].concat());
    assert!(output.status.success(), "{}", said(&output));
    let mut reader = csv::Reader::from_reader(&output.stdout[..]);
    let rows: Vec<_> = reader.records().map(|row| row.expect("a row")).collect();
    let id = "2";
    let json = replay(&server, &["diff", id, "--output", "json"]);
    assert_eq!(json.status.code(), Some(3));
    let json = String::from_utf8(json.stdout).expect("text");
    let mut lines: Vec<serde_json::Value> =
        json.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    let totals = lines.pop().expect("totals")["totals"].clone();
    assert_eq!(
        (rows.len(), rows.len() as u64),
        (lines.len(), totals["removed"].as_u64().expect("rows"))
    );
    assert!(lines.iter().zip(&rows).all(|(line, row)| line["time"] == row[0]));
    assert!(table.contains(&format!("{} removed, 0 changed", rows.len())), "{table}");
    let events = |side: &str| totals[side]["count"].as_u64().expect("a count");
    let dropped = show(&server, 2)["dropped"].as_u64().expect("a count");
    assert_eq!(events("before") - events("after"), dropped);
    assert_eq!(server.stop(), Some(0));
}
