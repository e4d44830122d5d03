//! `rollmill send` as users run it: their input, failures on the way, and every event counted once.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Output, Stdio};
use std::sync::{Arc, Mutex};

use rustix::process::Signal;

use crate::proxy::{Proxy, ProxyPlan};
use crate::support::{Server, handles, wait_until};

fn command(url: &str, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_rollmill"));
    std::env::vars()
        .filter(|(name, _)| name.starts_with("ROLLMILL_"))
        .for_each(|(name, _)| _ = command.env_remove(name));
    command
        .arg("send")
        .args(args)
        .args(["--url", url])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

/// Runs it with this standard input. Returns the exit code and the output.
fn send_from(url: &str, stdin: &[u8], args: &[&str]) -> (Option<i32>, String) {
    let mut child = command(url, args).stdin(Stdio::piped()).spawn().expect("it runs");
    child.stdin.take().expect("a pipe").write_all(stdin).expect("written");
    said(child.wait_with_output().expect("it ends"))
}

fn send(url: &str, args: &[&str]) -> (Option<i32>, String) {
    said(command(url, args).stdin(Stdio::null()).output().expect("it runs"))
}

fn said(output: Output) -> (Option<i32>, String) {
    (output.status.code(), String::from_utf8(output.stderr).expect("text"))
}

/// Sends valid input and returns the output.
fn sends(url: &str, args: &[&str]) -> String {
    let (code, said) = send(url, args);
    assert_eq!(code, Some(0), "{args:?}: {said}");
    said
}

fn write(path: &Path, text: impl AsRef<[u8]>) -> String {
    std::fs::create_dir_all(path.parent().expect("a parent")).expect("made");
    std::fs::write(path, text).expect("written");
    path.display().to_string()
}

/// One figure of a metric over all time, once `count` events have arrived; more than that is a
/// failure.
fn figure(server: &Server, metric: &str, agg: &str, count: u64) -> serde_json::Value {
    let path =
        format!("/v1/query?metric={metric}&step=all&from=2013-01-01T00:00:00Z&agg=count,{agg}");
    let answer = server.await_query(&path, |answer| {
        answer["series"][0]["points"][0]["count"].as_u64() >= Some(count)
    });
    // Includes anything acknowledged later, so surplus events show up here.
    let answer = if answer["series"][0]["points"][0]["count"] == count {
        server.await_everything(&path)
    } else {
        answer
    };
    assert_eq!(answer["series"][0]["points"][0]["count"], count, "{metric}");
    answer["series"][0]["points"][0][agg].clone()
}

fn counts(server: &Server, metric: &str, count: u64) {
    figure(server, metric, "sum", count);
}

fn started() -> (tempfile::TempDir, Server) {
    let dir = tempfile::tempdir().expect("a directory");
    let server = Server::start(&dir.path().join("data"), &[("shards.count", "2")]);
    (dir, server)
}

#[test]
fn files_of_one_name_are_different_events() {
    let (dir, server) = started();
    let mon = write(&dir.path().join("mon/export.csv"), "v\n10\n20\n");
    let tue = write(&dir.path().join("tue/export.csv"), "v\n30\n40\n50\n");
    for file in [&mon, &tue] {
        let said = sends(&server.url, &[file, "--metric", "sales", "--value", "v"]);
        assert!(said.contains("sent again, they count again"), "{said}");
    }
    assert_eq!(figure(&server, "sales", "sum", 5), 150);
}

#[test]
fn a_file_that_is_replaced_holds_new_events() {
    let (dir, server) = started();
    let path = dir.path().join("app.ndjson");
    let file = write(&path, "{\"metric\":\"app\"}\n".repeat(3));
    sends(&server.url, &[&file]);
    write(&path, "{\"metric\":\"app\"}\n".repeat(4));
    sends(&server.url, &[&file]);
    counts(&server, "app", 7);
}

#[test]
fn a_position_belongs_to_its_file() {
    let (dir, server) = started();
    let path = dir.path().join("app.ndjson");
    let position = dir.path().join("app.pos").display().to_string();
    let line = "{\"metric\":\"res\",\"value\":1}\n";
    let file = write(&path, line.repeat(10));
    let resume = [file.as_str(), "--resume", &position];
    let said = sends(&server.url, &resume);
    assert!(
        said.contains("10 events are in, 0 were refused") && !said.contains("count again"),
        "{said}"
    );
    let said = sends(&server.url, &resume);
    assert!(
        said.contains("0 events are in") && said.contains("10 are in before, nothing new"),
        "{said}"
    );
    write(&path, line.repeat(13));
    let said = sends(&server.url, &resume);
    assert!(said.contains("10 are in before, 3 are new, from line 11 on"), "{said}");
    counts(&server, "res", 13);

    // Different content under the same name is refused, until it is given its own position file.
    write(&path, "{\"metric\":\"res\",\"value\":2}\n".repeat(6));
    let (code, said) = send(&server.url, &resume);
    assert!(
        code == Some(1) && said.contains("is not what this position belongs to"),
        "{code:?} {said}"
    );
    counts(&server, "res", 13);
    let fresh = dir.path().join("fresh.pos").display().to_string();
    sends(&server.url, &[&file, "--resume", &fresh]);
    counts(&server, "res", 19);

    // Another file with the same position file is a different input.
    let other = write(&dir.path().join("other.ndjson"), line.repeat(2));
    sends(&server.url, &[&other, "--resume", &fresh]);
    counts(&server, "res", 21);
}

#[test]
fn a_last_line_that_has_not_ended_is_left_for_the_next_run() {
    let (dir, server) = started();
    let path = dir.path().join("app.ndjson");
    let position = dir.path().join("app.pos").display().to_string();
    let file = write(&path, "{\"metric\":\"half\"}\n{\"metric\":");
    let said = sends(&server.url, &[&file, "--resume", &position]);
    assert!(said.contains("line 2 has not ended and was not sent"), "{said}");
    write(&path, "{\"metric\":\"half\"}\n{\"metric\":\"half\"}\n");
    sends(&server.url, &[&file, "--resume", &position]);
    counts(&server, "half", 2);
}

#[test]
fn a_position_of_an_earlier_release_goes_on() {
    let (dir, server) = started();
    let file = write(&dir.path().join("a.csv"), "v\n1\n2\n3\n");
    let position = write(&dir.path().join("a.pos"), "2");
    sends(&server.url, &[&file, "--metric", "old", "--value", "v", "--resume", &position]);
    assert_eq!(figure(&server, "old", "sum", 1), 3);
    sends(&server.url, &[&file, "--metric", "old", "--value", "v", "--resume", &position]);
    counts(&server, "old", 1);
    let beyond = write(&dir.path().join("b.pos"), "4");
    let (code, said) = send(&server.url, &[&file, "--metric", "old", "--resume", &beyond]);
    assert!(code == Some(1) && said.contains("belongs to another input"), "{code:?} {said}");
}

/// Starts a `send` that reads from a pipe which stays open.
fn streaming(url: &str, args: &[&str]) -> (Child, ChildStdin) {
    let mut child = command(url, args).stdin(Stdio::piped()).spawn().expect("it runs");
    let stdin = child.stdin.take().expect("a pipe");
    (child, stdin)
}

fn terminate(child: &Child) {
    let pid = rustix::process::Pid::from_raw(child.id().cast_signed()).expect("a pid");
    rustix::process::kill_process(pid, Signal::TERM).expect("a signal");
}

#[test]
fn a_stream_is_sent_after_a_second_and_at_its_end_by_a_signal() {
    let (_dir, server) = started();
    let (child, mut stdin) = streaming(&server.url, &["-"]);
    stdin
        .write_all(b"{\"metric\":\"tl\"}\n{\"metric\":\"tl\"}\nnonsense\n{\"metric\":\"tl\"}\n")
        .expect("written");
    // The pipe stays open, but everything already received is delivered.
    counts(&server, "tl", 3);
    stdin.write_all(b"{\"metric\":\"tl\"}\n{\"metric\":\"tl\"}\n{\"metric\":").expect("written");
    // `send` must have read the lines; it sends a batch only once it is a second old.
    wait_until("the pipe is empty", || {
        rustix::io::ioctl_fionread(&stdin).expect("its length") == 0
    });
    terminate(&child);
    let (code, said) = said(child.wait_with_output().expect("it ends"));
    assert!(code == Some(1) && said.contains("5 events are in, 1 was refused"), "{code:?} {said}");
    assert!(said.contains("standard input:3: event_unreadable: not a JSON object"), "{said}");
    counts(&server, "tl", 5);
    drop(stdin);
}

#[test]
fn a_named_pipe_is_a_stream_and_a_signal_ends_the_wait_for_its_writer() {
    let (dir, server) = started();
    let pipe = dir.path().join("events.ndjson");
    assert!(Command::new("mkfifo").arg(&pipe).status().expect("it runs").success());
    let name = pipe.display().to_string();
    let mut child = command(&server.url, &[&name]).stdin(Stdio::null()).spawn().expect("it runs");
    wait_until("it listens for signals", || handles(child.id(), Signal::TERM));
    terminate(&child);
    wait_until("it ends though nobody writes", || child.try_wait().expect("waited").is_some());
    let writing =
        std::thread::spawn(move || std::fs::write(pipe, "{\"metric\":\"piped\"}\n".repeat(10)));
    sends(&server.url, &[&name]);
    writing.join().expect("no panic").expect("written");
    counts(&server, "piped", 10);
}

#[test]
fn what_is_refused_is_not_sent_again_by_the_same_run() {
    let (dir, server) = started();
    let text = "{\"metric\":\"own\"}\nnonsense\n";
    let file = write(&dir.path().join("events.ndjson"), text);
    let (code, said) = send(&server.url, &[&file, "--rejects", &file]);
    assert!(code == Some(2) && said.contains("is what this command writes to"), "{code:?} {said}");
    assert_eq!(std::fs::read_to_string(&file).expect("read"), text, "it is as it was");
    // The second run finds the file that the first one kept, and does not touch it.
    let (within, position) = (dir.path().join("bad.ndjson"), dir.path().join("sent.json"));
    let [root, within, position] =
        [dir.path(), &within, &position].map(|path| path.display().to_string());
    for (run, accepted, refused) in [(1, 1, 1), (2, 0, 0)] {
        let (code, said) = send(&server.url, &[&root, "--rejects", &within, "--resume", &position]);
        let verb = if refused == 1 { "was" } else { "were" };
        let noun = if accepted == 1 { "event is" } else { "events are" };
        assert!(
            said.contains(&format!("{accepted} {noun} in, {refused} {verb} refused")),
            "{run}: {code:?} {said}"
        );
    }
    counts(&server, "own", 1);
}

#[test]
fn a_stream_whose_answer_is_lost_counts_once() {
    let (_dir, server) = started();
    let port = server.url.rsplit(':').next().and_then(|port| port.parse().ok()).expect("a port");
    let proxy = Proxy::start(port, 1);
    proxy.set(ProxyPlan { cut_after: Some(b"\"once\""), ..ProxyPlan::default() });
    let input = "{\"metric\":\"once\"}\n".repeat(3);
    let (code, said) =
        send_from(&format!("http://127.0.0.1:{}", proxy.port), input.as_bytes(), &["-"]);
    assert!(code == Some(0) && said.contains("3 events are in, 0 were refused"), "{code:?} {said}");
    assert_eq!(proxy.cuts().1, 1, "an answer was lost");
    counts(&server, "once", 3);
}

#[test]
fn a_bad_line_is_named_and_kept_and_takes_no_other_along() {
    let (dir, server) = started();
    let lines = [
        "{\"metric\":\"ok\"}",
        "",
        "{\"metric\":\"ok\",}",
        "{\"metric\":\"ok\",\"value\":\"oops\"}",
        "{\"metric\":\"ok\"}",
    ];
    let file = write(&dir.path().join("bad.ndjson"), lines.join("\n"));
    let kept = dir.path().join("kept.ndjson");
    let (code, said) = send(&server.url, &[&file, "--rejects", &kept.display().to_string()]);
    assert_eq!(code, Some(1), "{said}");
    for part in [
        "2 events are in, 2 were refused",
        "bad.ndjson:3: event_unreadable: not a readable event: trailing comma",
        "bad.ndjson:4: value_invalid:",
        "kept.ndjson.reasons",
    ] {
        assert!(said.contains(part), "{part} in {said}");
    }
    counts(&server, "ok", 2);
    assert_eq!(
        std::fs::read_to_string(&kept).expect("kept"),
        format!("{}\n{}\n", lines[2], lines[3])
    );
    // Repaired and sent, they are exactly the missing events.
    write(&kept, "{\"metric\":\"ok\"}\n{\"metric\":\"ok\",\"value\":1}\n");
    sends(&server.url, &[&kept.display().to_string()]);
    counts(&server, "ok", 4);
}

#[test]
fn an_event_with_a_field_that_the_server_does_not_know_takes_no_other_along() {
    let (dir, server) = started();
    let mut lines = vec!["{\"metric\":\"f\"}"; 50];
    lines[7] = "{\"metric\":\"f\",\"tags\":{}}";
    lines[31] = "{\"metric\":\"f\",\"metric\":\"f\"}";
    let file = write(&dir.path().join("f.ndjson"), lines.join("\n"));
    let (code, said) = send(&server.url, &[&file]);
    assert!(code == Some(1) && said.contains("48 events are in, 2 were refused"), "{said}");
    assert!(
        said.contains("f.ndjson:8: event_unreadable")
            && said.contains("f.ndjson:32: event_unreadable"),
        "{said}"
    );
    counts(&server, "f", 48);
}

#[test]
fn a_row_without_a_time_or_with_a_cell_too_few_is_refused_alone() {
    let (dir, server) = started();
    let file = write(
        &dir.path().join("t.csv"),
        "time,v\n,1\n2026-11-23T10:00:00Z,2\n5\n2026-11-23T10:00:00Z,\"3\n",
    );
    let kept = dir.path().join("kept.csv");
    let args = [
        file.as_str(),
        "--metric",
        "et",
        "--time",
        "time",
        "--value",
        "v",
        "--rejects",
        &kept.display().to_string(),
    ];
    let (code, said) = send(&server.url, &args);
    assert!(code == Some(1) && said.contains("1 event is in, 3 were refused"), "{said}");
    for part in [
        "t.csv:2: timestamp_invalid: the cell of the time is empty",
        "t.csv:4: row_invalid: the row has 1 cells",
        "t.csv:5:",
    ] {
        assert!(said.contains(part), "{part} in {said}");
    }
    assert_eq!(figure(&server, "et", "sum", 1), 2);
    assert_eq!(
        std::fs::read_to_string(kept).expect("kept"),
        "time,v\n,1\n5\n2026-11-23T10:00:00Z,\"3\n"
    );
}

fn gzip(text: &[u8]) -> Vec<u8> {
    let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    packed.write_all(text).expect("written");
    packed.finish().expect("packed")
}

#[test]
fn what_people_have_is_taken() {
    let (dir, server) = started();
    let path = |name: &str| dir.path().join(name);
    let bom = write(&path("bom.ndjson"), "\u{feff}{\"metric\":\"a\"}\n");
    let array = write(
        &path("array.json"),
        "[\n  {\"metric\": \"a\",\n   \"value\": 2},\n  {\"metric\": \"a\"}\n]\n",
    );
    let pretty =
        write(&path("pretty.json"), "{\n  \"metric\": \"a\"\n}\n{\n  \"metric\": \"a\"\n}\n");
    let packed = write(&path("odd-name"), gzip(b"{\"metric\":\"a\"}\n"));
    sends(&server.url, &[&bom, &array, &pretty, &packed]);
    counts(&server, "a", 6);
    for (stdin, more) in [
        (gzip(b"{\"metric\":\"a\"}\n"), 7),
        (zstd::encode_all(&b"{\"metric\":\"a\"}\n"[..], 1).expect("packed"), 8),
    ] {
        let (code, said) = send_from(&server.url, &stdin, &["-"]);
        assert_eq!(code, Some(0), "{said}");
        counts(&server, "a", more);
    }
    let table = write(
        &path("day/1.csv"),
        "\u{feff}when;what;how much\n1793786400;b;1.234,5\n1793786400,5;b;0,5\n",
    );
    let args =
        ["--metric-column", "what", "--time", "when", "--value", "how much", "--decimal-comma"];
    let (code, said) = send(&server.url, &[&[table.as_str()][..], &args].concat());
    assert!(code == Some(1) && said.contains("read as seconds since 1970"), "{said}");
    write(
        &path("day/1.csv"),
        "when\twhat\thow much\n1793786400\tb\t1.234,5\n1793786400.5\tb\t0,5\n",
    );
    write(&path("day/deep/2.tsv.gz"), gzip(b"when\twhat\thow much\n1793786400\tb\t1\n"));
    write(&path("day/notes.md"), "nothing");
    let said =
        sends(&server.url, &[&[path("day").display().to_string().as_str()][..], &args].concat());
    assert!(said.contains("notes.md is left alone"), "{said}");
    assert_eq!(figure(&server, "b", "sum", 4).to_string(), "2470.5");
}

#[test]
fn what_cannot_be_taken_is_refused_by_name() {
    let (dir, server) = started();
    let path = |name: &str| dir.path().join(name);
    for (name, content, word) in [
        ("a.csv", &b"time,value\n2026-01-01T00:00:00Z,1\n"[..], "--metric-column"),
        ("a.xlsx", b"PK\x03\x04rest", "spreadsheet"),
        ("a.utf16", b"\xff\xfe{\0", "UTF-16"),
        ("a.parquet", b"PAR1rest", "Parquet"),
        ("a.gz", &gzip(b"{\"metric\":\"cut\"}\n{\"metric\":\"cut\"}\n")[..20], "cannot read"),
    ] {
        let file = write(&path(name), content);
        let (code, said) = send(&server.url, &[&file]);
        assert!(
            code == Some(1) && said.contains(word) && said.contains(name),
            "{name}: {code:?} {said}"
        );
    }
    let json = write(&path("a.ndjson"), "{\"metric\":\"m\"}\n");
    for (args, code, word) in [
        (&[json.as_str(), "--metric", "m"][..], 1, "for CSV"),
        (&["none*"], 2, "no file matches"),
        (&["none"], 1, "cannot open none"),
        (&[&json, "--time", "t"], 2, "--metric"),
        (&[&json, "--metric", "m", "--delimiter", "ab"], 2, "one ASCII character"),
        (&[], 2, "FILE"),
    ] {
        let (got, said) = send(&server.url, args);
        assert!(got == Some(code) && said.contains(word), "{args:?}: {got:?} {said}");
    }
}

/// A server of canned answers: `answer` maps each request body to a status and a body, and the
/// requests are kept.
fn canned(
    answer: impl Fn(&str) -> (u16, String) + Send + 'static,
) -> (String, Arc<Mutex<Vec<String>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let url = format!("http://{}", listener.local_addr().expect("an address"));
    let bodies = Arc::new(Mutex::new(Vec::new()));
    let kept = bodies.clone();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { continue };
            let Some(body) = request(&mut stream) else { continue };
            let (status, text) = answer(&body);
            kept.lock().expect("no panic").push(body);
            let head = format!(
                "HTTP/1.1 {status} X\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
                text.len()
            );
            let _ = stream.write_all(format!("{head}{text}").as_bytes());
        }
    });
    (url, bodies)
}

/// The body of one request.
fn request(stream: &mut TcpStream) -> Option<String> {
    let mut received = Vec::new();
    let mut part = [0; 4096];
    loop {
        let n = stream.read(&mut part).ok().filter(|n| *n > 0)?;
        received.extend_from_slice(&part[..n]);
        let text = String::from_utf8_lossy(&received).into_owned();
        let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
        let length = head.lines().find_map(|line| {
            line.to_ascii_lowercase().strip_prefix("content-length: ")?.parse().ok()
        })?;
        if body.len() >= length {
            return Some(body.to_owned());
        }
    }
}

#[test]
fn the_servers_reason_is_told_and_a_position_is_kept_for_who_asked_for_none() {
    let (dir, server) = started();
    let full = "{\"error\":{\"code\":\"disk_full\",\"message\":\"the disk is full: make \
                room\",\"details\":{}}}";
    let sent = Arc::new(Mutex::new(0));
    let times = sent.clone();
    let (url, _) = canned(move |body| {
        let mut sent = times.lock().expect("no panic");
        *sent += 1;
        let events = body.lines().count();
        if *sent == 1 {
            (202, format!("{{\"accepted\":{events},\"rejected\":0,\"errors\":[]}}"))
        } else {
            (503, full.to_owned())
        }
    });
    let file = write(&dir.path().join("a.ndjson"), "{\"metric\":\"full\"}\n".repeat(3));
    let output = command(&url, &[&file, "--batch", "2", "--patience", "0"])
        .current_dir(dir.path())
        .output()
        .expect("it runs");
    let (code, said) = said(output);
    assert!(
        code == Some(1) && said.contains("the disk is full: make room (503 disk_full)"),
        "{said}"
    );
    assert!(
        said.contains("2 events are in") && said.contains("1 event was read and not sent"),
        "{said}"
    );
    let position = said
        .split("--resume ")
        .nth(1)
        .and_then(|rest| rest.split([':', '\n']).next())
        .expect("a way on");
    let position = dir.path().join(position).display().to_string();
    sends(&server.url, &[&file, "--resume", &position]);
    counts(&server, "full", 1);
}

#[test]
fn a_server_that_refuses_whole_requests_is_asked_in_halves_with_the_same_ids() {
    let unreadable = "{\"error\":{\"code\":\"body_unreadable\",\"message\":\"event 3: unknown \
                      field\",\"details\":{}}}";
    let (url, bodies) = canned(move |body| {
        let events = body.lines().count();
        let bad = body.contains("tags");
        if bad {
            (400, unreadable.to_owned())
        } else {
            (202, format!("{{\"accepted\":{events},\"rejected\":0,\"errors\":[]}}"))
        }
    });
    let dir = tempfile::tempdir().expect("a directory");
    let mut lines = vec!["{\"metric\":\"m\"}"; 16];
    lines[11] = "{\"metric\":\"m\",\"tags\":1}";
    let file = write(&dir.path().join("a.ndjson"), lines.join("\n"));
    let (code, said) = send(&url, &[&file]);
    assert!(code == Some(1) && said.contains("15 events are in, 1 was refused"), "{said}");
    assert!(said.contains("a.ndjson:12: event_unreadable: event 3: unknown field"), "{said}");
    let bodies = bodies.lock().expect("no panic");
    assert_eq!(bodies.len(), 9, "16, then 8 + 8, 4 + 4, 2 + 2, 1 + 1");
    let (whole, parts) = (&bodies[0], &bodies[1..]);
    assert!(
        parts.iter().flat_map(|body| body.lines()).all(|line| whole.contains(line)),
        "the same ids"
    );
}

#[test]
fn a_signal_ends_a_file_between_batches_and_the_position_goes_on() {
    let (dir, server) = started();
    let port = server.url.rsplit(':').next().and_then(|port| port.parse().ok()).expect("a port");
    let proxy = Proxy::start(port, 1);
    proxy.set(ProxyPlan { delay: std::time::Duration::from_millis(20), ..ProxyPlan::default() });
    // More than `send` reads ahead: read-ahead input is sent in any case.
    let line = format!("{{\"metric\":\"sig\",\"properties\":\"{}\"}}\n", "x".repeat(2_000));
    let file = write(&dir.path().join("a.ndjson"), line.repeat(3_000));
    let position = dir.path().join("a.pos");
    let args = [file.as_str(), "--batch", "10", "--resume", &position.display().to_string()];
    let child = command(&format!("http://127.0.0.1:{}", proxy.port), &args)
        .stdin(Stdio::null())
        .spawn()
        .expect("it runs");
    let offset = || {
        let text = std::fs::read_to_string(&position).unwrap_or_default();
        let position: serde_json::Value = serde_json::from_str(&text).unwrap_or_default();
        position["inputs"][0]["offset"].as_u64().unwrap_or(0)
    };
    wait_until("some of it is in", || offset() > 0);
    terminate(&child);
    let (code, said) = said(child.wait_with_output().expect("it ends"));
    assert!(code == Some(1) && said.contains("run it again to go on"), "{code:?} {said}");
    sends(&server.url, &[&file, "--resume", args[4]]);
    counts(&server, "sig", 3_000);
}
