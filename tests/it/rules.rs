//! `rollmill rules check` and `try`: exit codes, places of mistakes, what becomes of events.

use std::io::Write;
use std::process::{Command, Stdio};

use serde_json::{Value, json};

const RULES: &str = r#"
[[rule]]
name = "bots"
where = { properties = [{ at = "/agent", regex = ".*[Bb]ot.*" }] }
drop = true

[[rule]]
name = "plan"
set_label = { label = "plan", property = "/plan" }

[[rule]]
name = "minutes to hours"
where = { labels = '{unit="min"}', time = { from = 2026-01-01T00:00:00Z } }
scale_value = { divide = 60 }
"#;

/// Exit code, standard output, standard error.
fn run(args: &[&str], input: &[u8]) -> (Option<i32>, String, String) {
    let mut child = Command::new(env!("CARGO_BIN_EXE_rollmill"))
        .arg("rules")
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("it runs");
    // A command that reads no input may have ended before it is all written.
    let _ = child.stdin.take().expect("piped").write_all(input);
    let output = child.wait_with_output().expect("it ends");
    let text = |bytes| String::from_utf8(bytes).expect("text");
    (output.status.code(), text(output.stdout), text(output.stderr))
}

/// A file of rules in a directory of its own.
fn file(name: &str, text: &[u8]) -> (tempfile::TempDir, String) {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join(name);
    std::fs::write(&path, text).expect("written");
    (dir, path.display().to_string())
}

fn json_of(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|why| panic!("{why}: {text}"))
}

#[test]
fn a_valid_file_has_one_hash_in_both_languages() {
    let (_toml, toml) = file("rules.toml", RULES.as_bytes());
    let (code, out, said) = run(&["check", &toml], b"");
    assert_eq!(code, Some(0), "{said}");
    assert!(out.contains("3 rules, they read properties, hash "), "{out}");

    let (code, out, _) = run(&["check", &toml, "--output", "json"], b"");
    let checked = json_of(&out);
    assert_eq!((code, &checked["needs_properties"]), (Some(0), &json!(true)));
    let (_json, same) = file("rules", json!({"rule": checked["rule"]}).to_string().as_bytes());
    let (code, out, said) = run(&["check", &same, "--output", "json"], b"");
    assert_eq!((code, &json_of(&out)["hash"]), (Some(0), &checked["hash"]), "{said}");
}

#[test]
fn every_mistake_is_named_with_file_and_line() {
    let text =
        "[[rule]]\nname = 'a'\nwhere = { label = 'x' }\ndrop = true\n\n[[rule]]\nname = 'b'\n";
    let (_dir, path) = file("rules.toml", text.as_bytes());
    for command in ["check", "try"] {
        let (code, out, said) = run(&[command, &path], b"{\"metric\":\"m\"}");
        assert_eq!((code, out.as_str()), (Some(2), ""), "{said}");
        let lines: Vec<&str> = said.lines().collect();
        assert_eq!(lines[0], "rollmill: the rules have 2 mistake(s):");
        let expected = "3: rule 1: where.label: no such key; did you mean labels? allowed: labels";
        assert!(lines[1].starts_with(&format!("{path}:{expected}")), "{said}");
        assert!(
            lines[2].starts_with(&format!("{path}:6: rule 2: the action is missing")),
            "{said}"
        );
    }
    let (_dir, binary) = file("rules.toml", b"# a\n# \xff");
    let (code, _, said) = run(&["check", &binary], b"");
    assert!(code == Some(2) && said.contains(":2: not UTF-8"), "{said}");
    let (_dir, large) = file("rules.toml", &vec![b'#'; 300_000]);
    let (code, _, said) = run(&["check", &large], b"");
    assert!(code == Some(2) && said.contains("more than 262144 bytes"), "{said}");
    let (code, _, said) = run(&["check", "/nowhere/rules.toml"], b"");
    assert!(code == Some(1) && said.contains("cannot read /nowhere/rules.toml"), "{said}");
}

#[test]
fn what_becomes_of_each_event_is_shown() {
    let (_dir, path) = file("rules.toml", RULES.as_bytes());
    let events = [
        json!({"metric": "visit", "properties": {"agent": "Googlebot/2.1", "plan": "free"}}),
        json!({"metric": "visit", "user": "a", "properties": {"plan": "free"}}),
        json!({"metric": "delay", "value": 90, "labels": {"unit": "min", "empty": ""}}),
        json!({"metric": "delay", "value": 90, "labels": {"unit": "min"}, "timestamp": 0}),
    ];
    let lines: String = events.iter().map(|event| format!("{event}\n")).collect();
    let array = Value::from(events.to_vec());
    for body in [lines.as_bytes(), format!("\u{feff} {array:#}\n").as_bytes()] {
        let (code, out, said) = run(&["try", &path, "--output", "json"], body);
        assert_eq!(code, Some(0), "{said}");
        let tried = json_of(&out);
        let outcomes: Vec<_> =
            tried["events"].as_array().expect("events").iter().map(|e| &e["outcome"]).collect();
        assert_eq!(outcomes, ["dropped", "changed", "changed", "unchanged"]);
        assert_eq!(tried["events"][0]["after"], Value::Null);
        assert_eq!(tried["events"][1]["after"]["labels"], json!({"plan": "free"}));
        assert_eq!(tried["events"][2]["before"]["labels"], json!({"unit": "min"}));
        assert_eq!(tried["events"][2]["after"]["value"], "1.5");
        let missing = json!({"name": "plan", "changed": false, "not_applied": "property_missing"});
        assert_eq!(tried["events"][3]["rules"], json!([missing]));
        assert_eq!(
            tried["rules"][1],
            json!({"name": "plan", "matched": 3, "changed": 1, "not_applied": {"property_missing": 2}})
        );
    }
    let (code, out, _) = run(&["try", &path], lines.as_bytes());
    assert_eq!(code, Some(0));
    let rows: Vec<String> =
        out.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
    for row in [
        "1 visit dropped bots",
        "2 visit changed plan=free plan",
        "3 delay changed value 1.5 plan (property_missing), minutes to hours",
        "bots 1 1",
        "plan 3 1 property_missing: 2",
    ] {
        assert!(rows.iter().any(|found| found == row), "{row}:\n{out}");
    }
}

#[test]
fn an_event_that_no_server_takes_ends_with_1() {
    let (_dir, path) = file("rules.toml", RULES.as_bytes());
    let body = b"{\"metric\":\"m\"}\n{\"metric\":\"m\",\"labels\":{\"a-b\":\"x\"}}\nnonsense\n";
    let (code, out, _) = run(&["try", &path, "--output", "json"], body);
    assert_eq!(code, Some(1));
    let tried = json_of(&out);
    let code_of = |at: usize| tried["events"][at]["error"]["code"].clone();
    assert_eq!((code_of(1), code_of(2)), (json!("labels_invalid"), json!("event_unreadable")));
    assert_eq!(tried["events"][0]["outcome"], "unchanged");
    for (body, says) in [
        (&b""[..], "no events"),
        (b" \n", "no events"),
        (b"[{\"metric\":\"m\"}", "broken JSON"),
        (&b"{}\n".repeat(10_001), "at most 10000"),
    ] {
        let (code, out, said) = run(&["try", &path], body);
        assert!(code == Some(1) && out.is_empty() && said.contains(says), "{said}");
    }
}
