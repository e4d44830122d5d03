//! The command line as users run it: exit codes, addresses, proxies, output.

use std::process::{Command, Output, Stdio};

use parquet::file::reader::{FileReader, SerializedFileReader};

use crate::support::{Server, free_port};

fn command(args: &[&str], env: &[(&str, &str)]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_rollmill"));
    let proxies = ["HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"];
    let set = std::env::vars().map(|(name, _)| name);
    set.filter(|name| {
        name.starts_with("ROLLMILL_") || proxies.contains(&name.to_uppercase().as_str())
    })
    .for_each(|name| {
        command.env_remove(name);
    });
    command.args(args).envs(env.iter().copied()).stdin(Stdio::null()).output().expect("it runs")
}

/// Exit code, standard output, standard error.
fn run(args: &[&str], env: &[(&str, &str)]) -> (Option<i32>, String, String) {
    let output = command(args, env);
    let text = |bytes| String::from_utf8(bytes).expect("text");
    (output.status.code(), text(output.stdout), text(output.stderr))
}

/// What a command prints, which must succeed.
fn run_bytes(args: &[&str]) -> Vec<u8> {
    let output = command(args, &[]);
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

fn started() -> (tempfile::TempDir, Server) {
    let dir = tempfile::tempdir().expect("a directory");
    let server = Server::start(
        &dir.path().join("data"),
        &[("shards.count", "2"), ("flush.interval", "100ms")],
    );
    (dir, server)
}

#[test]
fn wrong_usage_ends_with_2_and_what_fails_with_1() {
    let (_dir, server) = started();
    let url = server.url.as_str();
    for args in [
        &["query", "m", "--agg", "foo"][..],
        &["query", "m", "--agg", "count,foo"],
        &["query", "m", "--step", "5m"],
        &["query", "m", "--from", "yesterday"],
        &["query", "m", "--tz", "Mars/Olympus"],
        &["query", "m", "--tz", "Asia/Kolkata", "--step", "1d"],
        &["query", "m", "--order", "up"],
        &["query", "m", "--limit", "0"],
        &["query", "m", "--where", "{a"],
        &["query", "m", "--from", "2026-01-02", "--to", "2026-01-01"],
        &["query", "m", "--plot", "--json"],
        &["query", "m", "--plot", "--output", "csv"],
        &["accounting", "--from", "soon"],
        &["health", "--role", "cook"],
        &["send"],
        &["nonsense"],
    ] {
        let has_server = !matches!(args[0], "nonsense");
        let all = if has_server { [args, &["--url", url]].concat() } else { args.to_vec() };
        let (code, _, said) = run(&all, &[]);
        assert_eq!(code, Some(2), "{args:?}: {said}");
        assert!(!said.contains("{\"error\""), "{args:?}: {said}");
    }
    let nowhere = format!("http://127.0.0.1:{}", free_port());
    for args in [
        &["query", "m"][..],
        &["status"],
        &["health"],
        &["metrics"],
        &["limits"],
        &["accounting"],
        &["labels", "m"],
    ] {
        let (code, _, said) = run(&[args, &["--url", &nowhere]].concat(), &[]);
        assert!(
            code == Some(1) && said.contains("cannot reach http://127.0.0.1:"),
            "{args:?}: {code:?} {said}"
        );
    }
    for url in ["ftp://x", "http://", "http://a b"] {
        assert_eq!(run(&["query", "m", "--url", url], &[]).0, Some(2), "{url}");
        assert_eq!(run(&["query", "m"], &[("ROLLMILL_URL", url)]).0, Some(2), "{url}");
    }
}

#[test]
fn an_address_is_taken_as_people_write_it() {
    let (_dir, server) = started();
    for url in
        [format!("{}/", server.url), format!("{}//", server.url), server.url.replace("http://", "")]
    {
        assert_eq!(run(&["health", "--role", "gateway", "--url", &url], &[]).0, Some(0), "{url}");
        let (code, _, said) = run(&["limits"], &[("ROLLMILL_URL", &url)]);
        assert_eq!(code, Some(0), "{url}: {said}");
    }
}

#[test]
fn a_proxy_does_not_stand_before_loopback_and_is_named_elsewhere() {
    let (_dir, server) = started();
    let dead = format!("http://127.0.0.1:{}", free_port());
    for name in ["HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"]
    {
        let (code, _, said) = run(&["limits", "--url", &server.url], &[(name, &dead)]);
        assert_eq!(code, Some(0), "{name}: {said}");
    }
    let (code, _, said) =
        run(&["health", "--url", "http://mill.invalid:8080"], &[("HTTP_PROXY", &dead)]);
    let proxy = dead.replace("http://", "");
    assert!(
        code == Some(1) && said.contains(&format!("through the proxy {proxy}")),
        "{code:?} {said}"
    );
}

#[test]
fn usage_is_the_same_whatever_the_environment_says() {
    for args in [&["query"][..], &["send"], &["labels"], &["bench", "--nonsense"]] {
        let (_, _, plain) = run(args, &[]);
        let (_, _, with) =
            run(args, &[("ROLLMILL_URL", "http://127.0.0.1:1"), ("ROLLMILL_KEY", "rm_secret")]);
        assert!(
            plain.contains(&format!("Usage: rollmill {}", args[0])) && !plain.contains("--url <"),
            "{plain}"
        );
        assert_eq!(plain, with, "{args:?}");
    }
}

#[test]
fn what_is_in_a_server_needs_no_http_client() {
    let (_dir, server) = started();
    let event = r#"[{"metric":"page_view","labels":{"country":"DE"},"value":0.0004},
                    {"metric":"page_view","labels":{"country":"FR"},"value":1234567}]"#;
    assert_eq!(server.post(event).0, 202);
    server.await_query("/v1/query?metric=page_view&step=all", |a| {
        a["series"][0]["points"][0]["count"] == 2
    });
    crate::support::wait_until("the first flush", || {
        server.get("/v1/metrics").1["metrics"]
            .as_array()
            .is_some_and(|m| !m.is_empty() && m[0]["series"] == 2)
    });
    let url = ["--url", server.url.as_str()];
    let prints = |args: &[&str]| {
        let (code, out, said) = run(&[args, &url].concat(), &[]);
        assert_eq!(code, Some(0), "{args:?}: {said}");
        out
    };
    assert!(prints(&["metrics"]).contains("page_view"));
    assert_eq!(prints(&["labels", "page_view"]), "country\n");
    assert_eq!(prints(&["labels", "page_view", "country"]), "DE\nFR\n");
    assert!(prints(&["limits"]).contains("8 KiB"));
    assert!(prints(&["accounting", "--from", "-1d"]).contains("aggregated"));
    for args in [
        &["metrics", "--json"][..],
        &["labels", "page_view", "--json"],
        &["limits", "--json"],
        &["accounting", "--json"],
    ] {
        assert!(serde_json::from_str::<serde_json::Value>(&prints(args)).is_ok(), "{args:?}");
    }
    let (code, _, said) = run(&[&["labels", "page_vew"][..], &url].concat(), &[]);
    assert!(code == Some(1) && said.contains("did you mean page_view?"), "{said}");
    let (code, _, said) = run(&[&["labels", "page_view", "city"][..], &url].concat(), &[]);
    assert!(code == Some(1) && said.contains("it has country"), "{said}");

    // Tables round figures and keep an order, CSV has all digits, and an unknown metric differs
    // from one without data.
    let table = prints(&[
        "query",
        "page_view",
        "--step",
        "all",
        "--agg",
        "avg,sum",
        "--by",
        "country",
        "--order",
        "desc",
        "--limit",
        "1",
    ]);
    assert!(
        table.contains("1,234,567") && table.contains("FR") && !table.contains("DE"),
        "{table}"
    );
    let small = prints(&[
        "query",
        "page_view",
        "--step",
        "all",
        "--agg",
        "avg,p50,rate",
        "--where",
        "{country=\"DE\"}",
    ]);
    assert!(small.matches("0.0004").count() >= 1 && !small.contains("0.000 "), "{small}");
    let csv = prints(&[
        "query",
        "page_view",
        "--step",
        "all",
        "--agg",
        "sum",
        "--by",
        "country",
        "--output",
        "csv",
    ]);
    assert!(
        csv.starts_with("time,country,sum\n")
            && csv.contains(",FR,1234567\n")
            && csv.contains(",DE,0.0004\n"),
        "{csv}"
    );
    let parquet = run_bytes(
        &[
            &["query", "page_view", "--by", "country", "--agg", "count,sum", "--output", "parquet"]
                [..],
            &url,
        ]
        .concat(),
    );
    let reader = SerializedFileReader::new(bytes::Bytes::from(parquet)).expect("Parquet");
    let rows = reader.get_row_iter(None).expect("rows").map(|row| row.expect("a row").to_string());
    let rows: Vec<String> = rows.collect();
    assert!(
        rows.len() == 2
            && rows[0].ends_with("country: \"DE\", count: 1, sum: 0.000400000}")
            && rows[1].ends_with("country: \"FR\", count: 1, sum: 1234567.000000000}"),
        "{rows:?}"
    );
    let hours = prints(&["accounting", "--from", "-1d", "--tz", "Asia/Kolkata"]);
    assert!(hours.contains("+05:30"), "{hours}");
    let berlin =
        prints(&["query", "page_view", "--step", "1d", "--tz", "Europe/Berlin", "--from", "-1d"]);
    assert!(berlin.contains("T00:00:00+0"), "{berlin}");
    let drawn = prints(&["query", "page_view", "--from", "-2h", "--plot"]);
    assert!(drawn.contains('█') && drawn.contains("0│"), "one point is drawn: {drawn}");
    assert!(
        prints(&["query", "page_view", "--from", "2020-01-01", "--to", "2020-01-02"])
            .contains("no data for page_view in this range: it has data from")
    );
    assert!(
        prints(&["query", "page_vew"])
            .contains("there is no metric page_vew; did you mean page_view?")
    );
}

#[test]
fn a_directory_without_a_name_is_no_directory() {
    let dir = tempfile::tempdir().expect("a directory");
    for (args, env) in
        [(&["serve", "--data", ""][..], &[][..]), (&["serve"], &[("ROLLMILL_DATA_DIR", "")])]
    {
        let mut command = Command::new(env!("CARGO_BIN_EXE_rollmill"));
        let listen = format!("127.0.0.1:{}", free_port());
        let output = command
            .args(args)
            .args(["--listen", &listen])
            .envs(env.iter().copied())
            .current_dir(dir.path())
            .output()
            .expect("it runs");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(
            output.status.code() == Some(2)
                && said.contains("data.dir")
                && said.contains("must not be empty"),
            "{said}"
        );
    }
    assert_eq!(std::fs::read_dir(dir.path()).expect("readable").count(), 0, "nothing was made");
}

#[test]
fn a_configuration_that_was_printed_can_be_used() {
    let dir = tempfile::tempdir().expect("a directory");
    let (code, printed, said) = run(&["check-config"], &[("ROLLMILL_ACCEPT_MAX_AGE", "30d")]);
    assert_eq!(code, Some(0), "{said}");
    assert!(printed.contains("accept.max_age = \"30d\"\n"), "{printed}");
    let file = dir.path().join("rollmill.toml");
    std::fs::write(&file, &printed).expect("written");
    let (code, again, said) = run(&["check-config", &file.display().to_string()], &[]);
    assert_eq!((code, again.as_str()), (Some(0), printed.as_str()), "{said}");
}

#[test]
fn a_version_names_its_commit() {
    let (_, printed, _) = run(&["version"], &[]);
    let commit = printed.lines().find_map(|line| line.strip_prefix("commit: ")).expect("a line");
    // Only a release build is given its commit; any other build would be rebuilt at every commit.
    assert!(
        commit == "unknown" || commit.trim_end_matches('+').bytes().all(|b| b.is_ascii_hexdigit()),
        "{printed}"
    );
    let manifest = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml"))
        .expect("the manifest");
    let release = manifest.split("[profile.release]").nth(1).expect("a profile");
    assert!(
        release.contains("strip = \"debuginfo\""),
        "the binary that is installed carries no debug information"
    );
}
