//! Operators' files: alert rules, the dashboard, units and manifests, checked against the existing
//! metrics and keys; `/metrics` as Prometheus reads it; signals.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use rollmill::config::Config;
use rollmill::telemetry::{METRICS, MetricDefinition, MetricKind};
use yaml_rust2::{Yaml, YamlLoader};

use crate::prometheus::program;
use crate::support::{Server, agent, wait_until};

fn read(path: &str) -> String {
    std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path))
        .unwrap_or_else(|why| panic!("{path}: {why}"))
}

/// The words in a text that have the prefix of our metrics.
fn metrics_named(text: &str) -> BTreeSet<&str> {
    let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    words.filter(|word| word.starts_with("rollmill_")).collect()
}

/// The names of a metric in `/metrics`.
fn spelled(metric: &MetricDefinition) -> Vec<String> {
    match metric.kind {
        MetricKind::Counter | MetricKind::Gauge => vec![metric.name.to_owned()],
        MetricKind::Histogram => ["_bucket", "_sum", "_count"]
            .iter()
            .map(|end| format!("{}{end}", metric.name))
            .collect(),
    }
}

#[test]
fn alerts_and_dashboard_name_metrics_that_exist() {
    let known: BTreeSet<String> = METRICS.iter().flat_map(spelled).collect();
    let mut named = 0;
    let pages = std::fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/how-to"));
    let pages = pages.expect("pages").map(|page| page.expect("a page").file_name());
    let pages = pages.map(|page| format!("docs/how-to/{}", page.to_string_lossy()));
    let tools = ["config/prometheus/alerts.yml", "config/grafana/rollmill.json"].map(str::to_owned);
    for file in tools.into_iter().chain(pages) {
        let text = read(&file);
        let prose = file.ends_with(".md");
        for name in metrics_named(&text) {
            named += 1;
            // Prose may name a histogram without its suffixes. What the stores call their roles, a
            // schema and views shares the metrics' prefix.
            let of_stores = [
                "rollmill_",
                "rollmill_owner",
                "rollmill_writer",
                "rollmill_reader",
                "rollmill_views",
                "rollmill_hourly",
                "rollmill_metrics",
                "rollmill_series",
                "rollmill_label_values",
                "rollmill_accounting",
            ];
            let of_store = prose && of_stores.contains(&name);
            let whole = prose && METRICS.iter().any(|metric| metric.name == name);
            assert!(known.contains(name) || of_store || whole, "{file}: there is no metric {name}");
        }
    }
    assert!(named > 40, "only {named} names found");
}

#[test]
fn every_alert_says_what_to_do_and_how_urgent_it_is() {
    let rules = YamlLoader::load_from_str(&read("config/prometheus/alerts.yml")).expect("YAML");
    let groups = rules[0]["groups"].as_vec().expect("groups").iter();
    let alerts: Vec<_> = groups.flat_map(|group| group["rules"].as_vec().expect("rules")).collect();
    assert!(alerts.len() > 30);
    let page = read("docs/how-to/alert-with-prometheus.md");
    for alert in alerts {
        let name = alert["alert"].as_str().expect("a name");
        assert!(alert["expr"].as_str().is_some_and(|expr| !expr.is_empty()), "{name}");
        assert!(matches!(alert["labels"]["severity"].as_str(), Some("page" | "ticket")), "{name}");
        assert!(
            alert["annotations"]["summary"].as_str().is_some_and(|summary| summary.len() > 20),
            "{name}"
        );
        assert!(page.contains(&format!("`{name}`")), "no page says what to do about {name}");
    }
}

#[test]
fn prometheus_takes_the_alert_rules_and_the_metrics_without_complaint() {
    let Some(promtool) = program("promtool") else { return };
    let rules = Path::new(env!("CARGO_MANIFEST_DIR")).join("config/prometheus/alerts.yml");
    let checked = Command::new(&promtool)
        .args(["check", "rules"])
        .arg(rules)
        .output()
        .expect("promtool runs");
    assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stderr));

    let dir = tempfile::tempdir().expect("a directory");
    let server = Server::start(&dir.path().join("data"), &[]);
    assert_eq!(server.post(r#"{"metric":"m"}"#).0, 202);
    server.await_query("/v1/query?metric=m&step=all", |answer| {
        answer["series"][0]["points"][0]["count"] == 1
    });
    let text = metrics(&server);
    let file = dir.path().join("metrics.txt");
    std::fs::write(&file, &text).expect("written");
    let input = std::fs::File::open(&file).expect("opened");
    let checked = Command::new(&promtool)
        .args(["check", "metrics"])
        .stdin(input)
        .output()
        .expect("promtool runs");
    let said = String::from_utf8_lossy(&checked.stderr);
    assert!(checked.status.success() && said.is_empty(), "{said}");
}

fn metrics(server: &Server) -> String {
    agent()
        .get(format!("{}/metrics", server.url))
        .call()
        .expect("an answer")
        .body_mut()
        .read_to_string()
        .expect("text")
}

/// The value of one line.
fn value(text: &str, series: &str) -> Option<f64> {
    text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' ')?.parse().ok())
}

#[test]
fn metrics_stand_at_zero_before_anything_happens_and_have_help() {
    let dir = tempfile::tempdir().expect("a directory");
    let server = Server::start(&dir.path().join("data"), &[]);
    // A node takes writes before it has claimed its shards, which is one transaction for each.
    wait_until("all shards are owned", || {
        value(&metrics(&server), "rollmill_shards_owned") == Some(64.0)
    });
    let text = metrics(&server);
    for metric in METRICS.iter().filter(|metric| metric.kind == MetricKind::Counter) {
        let zero = |series: String| {
            assert!(value(&text, &series).is_some(), "{series} is not there from the start")
        };
        match metric.label {
            None => zero(metric.name.to_owned()),
            Some((label, values)) => {
                values.iter().for_each(|v| zero(format!("{}{{{label}=\"{v}\"}}", metric.name)))
            }
        }
    }
    let samples = text.lines().filter(|line| !line.starts_with('#') && !line.is_empty());
    for name in samples.filter_map(|line| line.split(['{', ' ']).next()) {
        let family = ["_bucket", "_sum", "_count"]
            .iter()
            .find_map(|end| name.strip_suffix(end))
            .unwrap_or(name);
        let has_help = |name: &str| text.contains(&format!("# HELP {name} "));
        assert!(has_help(name) || has_help(family), "{name} has no help");
    }
    assert_eq!(value(&text, "rollmill_shards_owned"), Some(64.0));
    assert_eq!(value(&text, r#"rollmill_ready{role="gateway"}"#), Some(1.0));
    assert!(value(&text, "process_resident_memory_bytes").is_some_and(|bytes| bytes > 1e6));
    assert!(text.contains("rollmill_build_info{"), "{text}");

    assert_eq!(server.post(r#"{"metric":""}"#).0, 422);
    assert_eq!(
        value(&metrics(&server), r#"rollmill_events_rejected_total{code="metric_invalid"}"#),
        Some(1.0)
    );
}

#[test]
fn every_reason_to_refuse_an_event_is_a_counter_from_the_start() {
    let source = read("src/model/event.rs");
    let names = source
        .split("fn name(self)")
        .nth(1)
        .and_then(|rest| rest.split("\n    }\n").next())
        .expect("the names");
    let codes: Vec<&str> = names.split('"').skip(1).step_by(2).collect();
    let metric = METRICS
        .iter()
        .find(|metric| metric.name == rollmill::telemetry::EVENTS_REJECTED)
        .expect("it is there");
    let known = metric.label.expect("by code").1;
    assert!(
        codes.len() >= 10 && codes.iter().all(|code| known.contains(code)),
        "{codes:?} and {known:?}"
    );
}

#[test]
fn a_hangup_reads_the_keys_again_and_ends_nothing() {
    let dir = tempfile::tempdir().expect("a directory");
    let server = Server::start(&dir.path().join("data"), &[]);
    for _ in 0..3 {
        server.signal(rustix::process::Signal::HUP);
    }
    assert_eq!(server.post(r#"{"metric":"m","id":"a"}"#).0, 202);
    server.await_query("/v1/query?metric=m&step=all", |answer| {
        answer["series"][0]["points"][0]["count"] == 1
    });
    assert_eq!(server.stop(), Some(0));
}

fn manifests(file: &str) -> Vec<Yaml> {
    let documents =
        YamlLoader::load_from_str(&read(file)).unwrap_or_else(|why| panic!("{file}: {why}"));
    documents.into_iter().filter(|document| !document.is_badvalue()).collect()
}

/// The variables of the single container, plus those that Kubernetes adds for our own Services.
fn environment(set: &Yaml, services: &[String]) -> Vec<(String, String)> {
    let container = &set["spec"]["template"]["spec"]["containers"][0];
    let given = container["env"].as_vec().expect("variables").iter();
    let mut all: Vec<(String, String)> = given
        .map(|one| {
            let value = one["value"]
                .as_str()
                .unwrap_or("rollmill-0")
                .replace("$(ROLLMILL_NODE_NAME)", "rollmill-0");
            (one["name"].as_str().expect("a name").to_owned(), value)
        })
        .collect();
    for service in services {
        let name = service.to_uppercase().replace('-', "_");
        for (end, value) in [
            ("SERVICE_HOST", "10.96.0.7"),
            ("SERVICE_PORT", "8080"),
            ("PORT", "tcp://10.96.0.7:8080"),
        ] {
            all.push((format!("{name}_{end}"), value.to_owned()));
        }
    }
    all
}

#[test]
fn kubernetes_manifests_set_keys_that_exist_and_probe_what_is_there() {
    for (file, kinds) in
        [("config/kubernetes/embedded.yaml", 2), ("config/kubernetes/cluster.yaml", 4)]
    {
        let all = manifests(file);
        assert_eq!(all.len(), kinds, "{file}");
        let of_kind =
            |kind: &'static str| all.iter().filter(move |one| one["kind"].as_str() == Some(kind));
        let services: Vec<String> = of_kind("Service")
            .map(|one| one["metadata"]["name"].as_str().expect("a name").to_owned())
            .collect();
        let set = of_kind("StatefulSet").next().expect("a set");
        let pod = &set["spec"]["template"]["spec"];
        let container = &pod["containers"][0];
        let mut variables = environment(set, &services);
        // From the secret.
        variables.extend([
            ("ROLLMILL_STORE_URL".to_owned(), "postgres://me:secret@db/rollmill".to_owned()),
            ("ROLLMILL_CLUSTER_COOKIE".to_owned(), "0".repeat(64)),
        ]);
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("config/rollmill.toml");
        let variables = if kinds == 2 {
            variables.into_iter().filter(|(n, _)| n != "ROLLMILL_STORE_URL").collect()
        } else {
            variables
        };
        let config = Config::load(Some(&path), variables.into_iter(), &[])
            .unwrap_or_else(|why| panic!("{file}: {why}"));
        assert_eq!(config.server.listen, "0.0.0.0:8080");
        for (probe, route) in [
            ("startupProbe", "/healthz"),
            ("livenessProbe", "/healthz"),
            ("readinessProbe", "/readyz"),
        ] {
            assert_eq!(
                container[probe]["httpGet"]["path"].as_str(),
                Some(route),
                "{file}: {probe}"
            );
        }
        let image = container["image"].as_str().expect("an image");
        assert_eq!(image, concat!("rollmill:", env!("CARGO_PKG_VERSION")), "{file}");
        let mounted: BTreeSet<&str> = container["volumeMounts"]
            .as_vec()
            .expect("mounts")
            .iter()
            .filter_map(|m| m["name"].as_str())
            .collect();
        let mut there: BTreeSet<&str> = pod["volumes"]
            .as_vec()
            .expect("volumes")
            .iter()
            .filter_map(|v| v["name"].as_str())
            .collect();
        let claims = set["spec"]["volumeClaimTemplates"].as_vec();
        there.extend(
            claims.into_iter().flatten().filter_map(|claim| claim["metadata"]["name"].as_str()),
        );
        assert_eq!(mounted, there, "{file}");
        assert_eq!(
            set["spec"]["selector"]["matchLabels"], set["spec"]["template"]["metadata"]["labels"],
            "{file}"
        );
    }
}

#[test]
fn systemd_takes_the_unit() {
    let unit = read("config/systemd/rollmill.service");
    for line in [
        "StateDirectoryMode=0700",
        "NoNewPrivileges=yes",
        "ProtectSystem=strict",
        "ExecReload=/bin/kill -HUP $MAINPID",
    ] {
        assert!(unit.contains(line), "{line}");
    }
    let start = unit
        .lines()
        .find_map(|line| line.strip_prefix("ExecStart=/usr/local/bin/"))
        .expect("it starts something");
    let words: Vec<&str> = start.split(' ').collect();
    assert_eq!((words[0], words[1]), ("rollmill", "serve"));
    let help = Server::cli(&["serve", "--help"]);
    let help = String::from_utf8_lossy(&help.stdout).into_owned();
    words[2..]
        .iter()
        .filter(|word| word.starts_with("--"))
        .for_each(|flag| assert!(help.contains(flag), "{flag}"));

    // systemd requires the program to exist, so an existing one is substituted.
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("rollmill.service");
    std::fs::write(&file, unit.replace("/usr/local/bin/rollmill", "/bin/true")).expect("written");
    let Ok(verified) = Command::new("systemd-analyze").arg("verify").arg(&file).output() else {
        eprintln!("skipped: systemd-analyze is not installed");
        return;
    };
    let said = String::from_utf8_lossy(&verified.stderr).into_owned();
    let ours: Vec<&str> = said.lines().filter(|line| line.contains("rollmill.service")).collect();
    assert!(ours.is_empty(), "{ours:?}");
}

#[test]
fn a_node_starts_beside_a_kubernetes_service_of_its_own_name() {
    let dir = tempfile::tempdir().expect("a directory");
    let env = [
        ("service_host", "10.96.0.7"),
        ("port", "tcp://10.96.0.7:8080"),
        ("service_port_http", "8080"),
    ];
    let server = Server::start(&dir.path().join("data"), &env);
    wait_until("it is ready", || server.get("/readyz").0 == 200);
}

#[test]
fn debug_says_more_of_a_start_a_refused_event_and_a_wrong_key() {
    let dir = tempfile::tempdir().expect("a directory");
    let (data, keys) =
        (dir.path().join("data"), dir.path().join("keys.toml").display().to_string());
    let added =
        Server::cli(&["keys", "add", "--tenant", "shop", "--scopes", "write", "--file", &keys]);
    let key = String::from_utf8_lossy(&added.stdout).trim().to_owned();
    let server = Server::start(&data, &[("log", "debug"), ("auth.keys_file", &keys)]);
    let headers = |key: &str| format!("Bearer {key}");
    assert_eq!(
        server
            .post_as(br#"{"metric":""}"#, "application/json", &[("authorization", &headers(&key))])
            .0,
        422
    );
    assert_eq!(
        server.post_as(b"{}", "application/json", &[("authorization", &headers("rm_wrong"))]).0,
        401
    );
    let said = std::fs::read_to_string(data.with_extension("server.log")).expect("the log");
    for line in ["the log is open", "an event was refused", "nobody has its key"] {
        assert!(said.contains(line), "{line} is not in:\n{said}");
    }
    assert!(!said.contains(&key) && !said.contains("rm_wrong"), "a key is in the log:\n{said}");
}
