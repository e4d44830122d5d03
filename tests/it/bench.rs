//! `rollmill bench --compare` as users run it.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::support::{Server, free_port, wait_until};

/// VictoriaMetrics, as installed by `make tools` or the system.
fn victoria() -> Option<PathBuf> {
    let tools = Path::new(env!("CARGO_MANIFEST_DIR")).join("data-sets/tools/bin/victoria-metrics");
    let path = std::env::var_os("PATH").unwrap_or_default();
    let installed = std::env::split_paths(&path).map(|dir| dir.join("victoria-metrics"));
    [tools].into_iter().chain(installed).find(|candidate| candidate.is_file())
}

fn refused(args: &[&str]) -> (Option<i32>, String) {
    let output = Server::cli(&[&["bench"], args].concat());
    (output.status.code(), String::from_utf8(output.stderr).expect("text"))
}

#[test]
fn a_comparison_that_cannot_be_made_says_why() {
    for (args, code, why) in [
        (&["--compare", "prometheus"][..], 2, "victoria-metrics"),
        (&["--compare", "victoria-metrics", "--queries"], 2, "cannot be used with"),
        (&["--compare", "victoria-metrics", "--url", "127.0.0.1:1"], 2, "cannot be used with"),
        (&["--compare", "victoria-metrics", "--data", "/nowhere"], 2, "cannot be used with"),
        (&["--victoria-binary", "/bin/true"], 2, "--compare"),
        (
            &["--compare", "victoria-metrics", "--victoria-binary", "/nowhere"],
            1,
            "package victoria-metrics",
        ),
    ] {
        let (status, said) = refused(args);
        assert!(status == Some(code) && said.contains(why), "{args:?}: {status:?} {said}");
    }
}

#[test]
fn both_servers_are_measured_in_one_run() {
    let Some(victoria) = victoria() else {
        eprintln!("skipped: victoria-metrics is missing, scripts/install-test-tools installs it");
        return;
    };
    let temporary = tempfile::tempdir().expect("a directory");
    let args = [
        "--compare",
        "victoria-metrics",
        "--seconds",
        "2",
        "--connections",
        "4",
        "--rate",
        "20000",
        "--json",
    ];
    let mut command = Command::new(env!("CARGO_BIN_EXE_rollmill"));
    command
        .arg("bench")
        .args(args)
        .arg("--victoria-binary")
        .arg(victoria)
        .env("TMPDIR", temporary.path());
    let output = command.output().expect("the command runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let answer: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!((&answer["rounds"], &answer["round_seconds"]), (&2.into(), &1.into()));
    let servers = answer["ingest"].as_object().expect("servers");
    assert_eq!(servers.len(), 3, "{answer}");
    for (name, figures) in servers {
        let number = |figure: &str| {
            figures[figure].as_f64().unwrap_or_else(|| panic!("{name} lacks {figure}: {answer}"))
        };
        assert!(
            number("events") > 0.0 && number("events") == number("events_counted"),
            "{name}: {answer}"
        );
        for figure in [
            "events_per_second",
            "server_cpu_per_million_events",
            "server_peak_memory",
            "disk_per_event",
            "ack_p99",
        ] {
            assert!(number(figure) > 0.0, "{name} {figure}: {answer}");
        }
        let ours = name == "rollmill";
        assert_eq!(figures["acknowledged_is_durable"], if ours { "yes" } else { "no" });
        assert_eq!(figures["rollmill_divided_by_this"].is_object(), !ours, "{name}: {answer}");
    }
    let queries = answer["queries"].as_object().expect("servers");
    assert!(
        queries.len() == 2
            && queries.values().all(|q| q["queries_per_second"].as_f64() > Some(0.0)),
        "{answer}"
    );
    let left: Vec<_> = std::fs::read_dir(temporary.path()).expect("readable").collect();
    assert!(left.is_empty(), "the servers' directories are removed: {left:?}");
}

#[test]
fn a_server_that_is_killed_under_load_has_counted_what_it_acknowledged() {
    let dir = tempfile::tempdir().expect("a directory");
    let (data, port) = (dir.path().join("data"), free_port());
    let server = Server::start_on(&data, port, &[]);
    let mut command = Command::new(env!("CARGO_BIN_EXE_rollmill"));
    let address = format!("127.0.0.1:{port}");
    command.args([
        "bench",
        "--url",
        &address,
        "--seconds",
        "6",
        "--rate",
        "2000",
        "--connections",
        "4",
        "--batch",
        "20",
        "--json",
    ]);
    let bench = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it runs");
    let loaded = || {
        server.get("/v1/metrics").1["metrics"].as_array().is_some_and(|metrics| !metrics.is_empty())
    };
    // Before its first event is counted, the command may not have connected yet, and a server that
    // is away then ends it.
    wait_until("load", loaded);
    server.kill();
    let server = Server::start_on(&data, port, &[]);
    let output = bench.wait_with_output().expect("it ends");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{said}");
    let answer: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert!(answer["connections_lost"].as_f64() > Some(0.0), "{answer}");
    assert!(
        answer["events"].as_f64() > Some(0.0) && answer["events"] == answer["events_counted"],
        "{answer}"
    );
    drop(server);
}
