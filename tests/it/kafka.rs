//! The log's topic on the command line.

#[path = "../support/kafka.rs"]
pub mod broker;

fn topic(command: &str, env: &[(&str, &str)], extra: &[&str]) -> (Option<i32>, String) {
    let mut run = std::process::Command::new(env!("CARGO_BIN_EXE_rollmill"));
    run.args(["topic", command]).args(extra);
    std::env::vars()
        .filter(|(name, _)| name.starts_with("ROLLMILL_"))
        .for_each(|(name, _)| _ = run.env_remove(name));
    let brokers = broker::Kafka::shared().brokers();
    // The whole configuration is validated, although the command uses neither of these two
    // settings.
    let elsewhere =
        [("STORE_URL", "postgres://rollmill@127.0.0.1:1/none"), ("ARCHIVE_URL", "s3://none")];
    let fixed = [
        ("KAFKA_BROKERS", brokers.as_str()),
        ("SHARDS_COUNT", "4"),
        ("KAFKA_TOPIC", "cli"),
        ("KAFKA_TIMEOUT", "1m"),
    ];
    run.envs(
        fixed
            .iter()
            .chain(&elsewhere)
            .chain(env)
            .map(|(name, value)| (format!("ROLLMILL_{name}"), value)),
    );
    let output = run.output().expect("the command runs");
    (
        output.status.code(),
        String::from_utf8([output.stdout, output.stderr].concat()).expect("UTF-8"),
    )
}

#[test]
fn the_topic_is_made_described_and_found_wrong() {
    let (code, text) = topic("describe", &[], &[]);
    assert!(code == Some(1) && text.contains("rollmill topic create"), "{code:?} {text}");
    let (code, text) = topic("create", &[], &["--if-missing"]);
    assert_eq!(code, Some(0), "{text}");
    let (code, text) = topic("create", &[], &["--if-missing"]);
    assert!(code == Some(0) && text.contains("log id"), "{code:?} {text}");
    let (code, text) = topic("create", &[], &[]);
    assert!(code == Some(1) && text.contains("exists"), "{code:?} {text}");
    let (code, text) = topic("describe", &[], &["--json"]);
    let found: serde_json::Value =
        serde_json::from_str(&text).unwrap_or_else(|_| panic!("no JSON: {text}"));
    assert_eq!(
        (code, &found["partitions"], &found["differences"]),
        (Some(0), &4.into(), &serde_json::json!([]))
    );
    let more = [("KAFKA_REPLICATION", "2"), ("KAFKA_MIN_ISR", "2")];
    let (code, text) = topic("describe", &more, &[]);
    assert!(
        code == Some(1) && text.contains("--add-config min.insync.replicas=2"),
        "{code:?} {text}"
    );
    let (code, text) = topic("describe", &[("KAFKA_REPLICATION", "many")], &[]);
    assert!(code == Some(2) && text.contains("whole number"), "{code:?} {text}");
}
