//! Migration from one node to a cluster: real Kafka, PostgreSQL and S3, and the real binary, killed
//! between and inside the steps.

use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rollmill::model::generation::GenerationId;
use rollmill::model::offset::ShardId;
use rollmill::model::window::Hour;
use rollmill::persistence::store::postgres::{PostgresOptions, PostgresStore};
use rollmill::persistence::store::sqlite::SqliteStore;
use rollmill::persistence::store::{NameRange, ShardStore, SnapshotSource, StoreSnapshot};
use serde_json::Value;

use crate::kafka::broker::Kafka;
use crate::postgres;
use crate::quarantine::{CrashScope, POISON, faulty};
use crate::s3::{ACCESS_KEY, BUCKET, S3Server, SECRET_KEY};
use crate::support::{Server, free_port};

const SHARDS: u32 = 4;
/// Few series, so that there is an overflow series.
const NODE: [(&str, &str); 4] = [
    ("shards.count", "4"),
    ("tenants.max_series", "20"),
    ("flush.interval", "100ms"),
    ("archive.max_delay", "100ms"),
];

/// An embedded node's directory, and the empty components of a cluster.
pub struct MigrationCase {
    dir: tempfile::TempDir,
    storage: S3Server,
    pub url: String,
    topic: String,
    config: PathBuf,
}

impl MigrationCase {
    pub fn new(topic: &str) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let storage = S3Server::start(&dir.path().join("s3"));
        let server = postgres::shared();
        let (url, config) = (server.url(&server.database()), dir.path().join("cluster.toml"));
        let case = Self { dir, storage, url, topic: topic.to_owned(), config };
        let keys = format!(
            "[default]\naws_access_key_id = {ACCESS_KEY}\naws_secret_access_key = {SECRET_KEY}\n"
        );
        std::fs::write(case.dir.path().join("credentials"), keys).expect("credentials");
        case.configure("");
        case
    }

    /// Writes the cluster's configuration, with some keys replaced or added.
    fn configure(&self, more: &str) {
        let text = format!(
            "store.url = \"{}\"\narchive.max_delay = \"100ms\"\narchive.keep = \
             \"0\"\naccept.max_age = \"20000d\"\nflush.interval = \"200ms\"\n{}",
            self.url,
            self.servers()
        );
        let shards = if more.contains("shards.count") { "" } else { "shards.count = 4\n" };
        std::fs::write(&self.config, format!("{text}{shards}{more}")).expect("configuration");
    }

    /// The lines of a configuration that name Kafka and the object storage.
    pub fn servers(&self) -> String {
        let (topic, credentials) = (&self.topic, self.dir.path().join("credentials"));
        format!(
            "kafka.brokers = \"{}\"\nkafka.topic = \"{topic}\"\nkafka.group = \
             \"{topic}\"\nkafka.timeout = \"1m\"\narchive.url = \
             \"s3://{BUCKET}/raw\"\narchive.endpoint = \"{}\"\narchive.credentials_file = \
             \"{}\"\nrollups.keep = \"0\"\n",
            Kafka::shared().brokers(),
            self.storage.endpoint,
            credentials.display()
        )
    }

    pub fn data(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    pub fn embedded(&self, more: &[(&str, &str)]) -> Server {
        Server::start(&self.data(), &[&NODE[..], more].concat())
    }

    /// The `rollmill migrate` command.
    fn command(&self, extra: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_rollmill"));
        clear(&mut command);
        command
            .args(["migrate", "--data"])
            .arg(self.data())
            .arg("--config")
            .arg(&self.config)
            .args(extra);
        command
    }

    /// Exit code, standard output, standard error.
    fn migrate(&self, extra: &[&str]) -> (Option<i32>, String, String) {
        let output = self.command(extra).output().expect("it runs");
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("UTF-8");
        (output.status.code(), text(output.stdout), text(output.stderr))
    }

    pub fn migrate_to_end(&self) -> Value {
        let (code, out, err) = self.migrate(&["--json"]);
        assert_eq!(code, Some(0), "{out}{err}");
        serde_json::from_str(&out).unwrap_or_else(|e| panic!("{e}: {out}"))
    }

    /// Starts the migration and kills it `delay` after it announces this step. Returns whether it
    /// lived that long.
    pub fn kill_at(&self, step: usize, delay: Duration) -> bool {
        let mut child = self
            .command(&[])
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("it starts");
        let mut lines = BufReader::new(child.stderr.take().expect("piped")).lines();
        let begins = format!("{step}/6 ");
        let seen = lines.by_ref().any(|line| line.expect("text").starts_with(&begins));
        std::thread::sleep(delay);
        child.kill().expect("kill");
        let by_itself = child.wait().expect("wait").success();
        seen && !by_itself
    }

    /// Starts a node of the cluster, which may come up or refuse.
    fn spawn(&self, more: &[&str]) -> Server {
        let (data, port) = (self.dir.path().join("node"), free_port());
        let mut command = Command::new(env!("CARGO_BIN_EXE_rollmill"));
        clear(&mut command);
        command.arg("serve").arg("--config").arg(&self.config);
        command.args(["--listen", &format!("127.0.0.1:{port}"), "--data"]).arg(&data).args(more);
        Server::run(command, &data, port)
    }

    pub fn node(&self) -> Server {
        let mut node = self.spawn(&[]);
        node.wait_ready("gateway");
        node
    }

    /// Checks that a node of the cluster refuses to start because the topic has no identity or does
    /// not exist.
    fn check_refused(&self, more: &[&str]) {
        let log = self.dir.path().join("node.server.log");
        let _ = std::fs::remove_file(&log);
        let mut node = self.spawn(more);
        let deadline = Instant::now() + Duration::from_secs(180);
        while !node.has_ended() {
            assert!(Instant::now() < deadline, "a node of a cluster that is half there runs");
            std::thread::sleep(Duration::from_millis(20));
        }
        let said = std::fs::read_to_string(&log).expect("its log");
        let known = [
            "`rollmill migrate` fills the topic and has not ended",
            "it is not there; make it with `rollmill topic create`",
        ];
        assert!(known.iter().any(|part| said.contains(part)), "{said}");
    }

    pub fn verify(&self) -> Value {
        let output =
            Server::cli(&["verify", "--json", "--config", &self.config.display().to_string()]);
        let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e}: {text}"))
    }

    pub fn postgres(&self) -> std::sync::Arc<PostgresStore> {
        let seconds = Duration::from_secs;
        let options = PostgresOptions {
            url: self.url.clone(),
            read_url: None,
            node: "test".to_owned(),
            flush_connections: 1,
            read_connections: 2,
            connect_timeout: seconds(10),
            timeout: seconds(30),
            compress_timeout: seconds(60),
            lock_timeout: seconds(10),
            idle_timeout: seconds(20),
            tls_ca: None,
            match_cache: 1 << 20,
        };
        PostgresStore::open_read_only(&options).expect("the store")
    }

    /// Fills an embedded node with repeated events, an overflow series, a quarantined event, and
    /// records that only its log holds. Returns the number of acknowledged events, and how many of
    /// them were duplicates.
    pub fn seed_history(&self) -> (u64, u64) {
        let node = self.embedded(&[]);
        (0..5).for_each(|n| send(&node, n * 100, n * 100 + 150));
        wait("flushed and archived", || {
            node.accounted().iter().sum::<u64>() == 750 && self.archived() > 0
        });
        assert_eq!(node.stop(), Some(0));
        let mut node = faulty(&self.data(), CrashScope::Actor);
        node.wait_ready("gateway");
        let bad = format!(
            r#"[{{"metric":"sales","user":"{POISON}","id":"bad"}},
                {{"metric":"sales","user":"a","id":"good"}}]"#
        );
        assert_eq!(node.post(&bad).0, 202);
        wait("set aside", || node.accounted()[2] == 1);
        assert_eq!(node.stop(), Some(0));
        let node = self.embedded(&[("flush.interval", "1h"), ("archive.max_delay", "24h")]);
        (0..40).for_each(|n| send(&node, 400 + n * 10, 430 + n * 10));
        node.kill();
        // Ids 0 to 820, and two events of the other node.
        (750 + 2 + 1_200, 750 + 1_200 - 820)
    }

    fn archived(&self) -> u64 {
        let store =
            SqliteStore::open_read_only(self.data().join("store.sqlite")).expect("the store");
        let manifest = store
            .snapshot()
            .and_then(|mut snapshot| snapshot.manifest(None))
            .expect("the manifest");
        manifest.iter().map(|row| row.rows).sum()
    }
}

fn clear(command: &mut Command) {
    std::env::vars()
        .filter(|(name, _)| name.starts_with("ROLLMILL_"))
        .for_each(|(name, _)| _ = command.env_remove(name));
}

pub fn wait(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(180);
    while !done() {
        assert!(Instant::now() < deadline, "not within three minutes: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Events over three years, of 40 series, with users, values and ids.
fn events(from: u64, to: u64) -> String {
    let event = |n: u64| {
        let time = ["2013-03-01T10:15:00Z", "2025-12-31T23:59:59.999Z", "2026-01-01T00:00:00Z"]
            [(n % 3) as usize];
        let value = format!("{}.{:03}", n * 7919 % 100_003, n % 1000);
        let rest = format!(r#""labels":{{"page":"p{}"}},"user":"u{}","id":"{n}""#, n % 40, n % 77);
        format!(r#"{{"metric":"sales","timestamp":"{time}","value":"{value}",{rest}}}"#)
    };
    format!("[{}]", (from..to).map(event).collect::<Vec<_>>().join(","))
}

pub fn send(node: &Server, from: u64, to: u64) {
    assert_eq!(node.post(&events(from, to)).0, 202);
}

/// Everything in a store except its ownership.
fn shown(store: &dyn ShardStore) -> Vec<String> {
    let mut snapshot = store.snapshot().expect("a snapshot");
    let mut all = Vec::new();
    let rows =
        |series: &std::sync::Arc<rollmill::model::flush::SeriesInfo>, hour: Hour, bytes: &[u8]| {
            format!("{} {:?} {hour:?} {bytes:02x?}", series.id, series.series)
        };
    snapshot
        .rollup_bytes(Hour(i32::MIN), Hour(i32::MAX), &mut |s, hour, _, bytes| {
            all.push(rows(s, hour, bytes))
        })
        .expect("rows");
    assert!(all.len() > 40, "only {} rollups", all.len());
    assert!(all.iter().any(|row| row.contains("__overflow__")), "no overflow series");
    all.extend(rest(&mut *snapshot));
    for shard in (0..SHARDS).map(ShardId) {
        all.push(format!("{:?}", store.recent_ids(shard, i64::MIN).expect("ids")));
        all.push(format!("{:?}", store.admitted_series(shard).expect("series")));
    }
    all
}

fn rest(snapshot: &mut dyn StoreSnapshot) -> Vec<String> {
    let mut all = vec![
        format!("{:?}", snapshot.metrics("default", &NameRange::ALL).expect("metrics")),
        format!(
            "{:?}",
            snapshot
                .label_values("default", "page", Some("sales"), &[], &NameRange::ALL)
                .expect("values")
        ),
        format!(
            "{:?}",
            snapshot
                .revisions("default", "sales", GenerationId::INGEST, 15_000..21_000)
                .expect("revisions")
        ),
        format!(
            "{:?}",
            snapshot.accounting("default", Hour(i32::MIN), Hour(i32::MAX)).expect("accounting")
        ),
        format!("{:?}", snapshot.manifest(None).expect("manifest")),
        format!("{:?}", snapshot.quarantine().expect("quarantine")),
        format!("{:?}", snapshot.archive_floors().expect("floors")),
    ];
    for (shard, at) in snapshot.checkpoints().expect("checkpoints") {
        all.push(format!("{shard} {} {} {:?}", at.next, at.archived, at.epoch));
        let mut admitted = snapshot.admissions(shard).expect("admissions");
        admitted.sort();
        all.push(format!("{admitted:?}"));
    }
    all
}

/// What a finished migration must preserve: rows, ids and sums; and both the old and the new store
/// must verify.
fn holds(case: &MigrationCase, (events, repeated): (u64, u64)) {
    let before = shown(
        SqliteStore::open_read_only(case.data().join("store.sqlite")).expect("the source").as_ref(),
    );
    let after = shown(case.postgres().as_ref());
    for (before, after) in before.iter().zip(&after) {
        assert_eq!(before, after);
    }
    assert_eq!(before.len(), after.len());

    let node = case.node();
    wait("the node is ready", || node.get("/readyz").0 == 200);
    assert_eq!(node.accounted(), [events - repeated - 1, repeated, 1]);
    // Sends again everything that the embedded node has acknowledged.
    (0..8).for_each(|n| send(&node, n * 100, n * 100 + 100));
    let bad = format!(r#"{{"metric":"sales","user":"{POISON}","id":"bad"}}"#);
    assert_eq!(node.post(&bad).0, 202);
    wait("the retry is recognised", || {
        node.accounted() == [events - repeated - 1, repeated + 801, 1]
    });
    send(&node, 10_000, 10_100);
    wait("new events count", || node.accounted() == [events - repeated + 99, repeated + 801, 1]);
    let release = Server::cli(&["quarantine", "release", "--all", "--url", &node.url]);
    assert!(release.status.success(), "{}", String::from_utf8_lossy(&release.stderr));
    assert_eq!(node.accounted(), [events - repeated + 100, repeated + 801, 0]);
    assert_eq!(node.stop(), Some(0));

    let report = case.verify();
    assert!(report["equal"] == true && report["not_verifiable"].is_null(), "{report}");
}

#[test]
fn a_node_goes_into_a_cluster_and_every_event_stays_counted_once() {
    let case = MigrationCase::new("migrate_once");
    let lived = case.seed_history();

    let (code, out, err) = case.migrate(&["--dry-run", "--json"]);
    let plan: Value = serde_json::from_str(&out).unwrap_or_else(|e| panic!("{e}: {out}{err}"));
    assert_eq!((code, &plan["outcome"]), (Some(0), &"planned".into()), "{out}{err}");
    assert!(
        plan["from"]["unflushed"].as_u64() > Some(0)
            && plan["from"]["unarchived"].as_u64() > Some(0),
        "{plan}"
    );
    assert!(
        !case.data().join("MIGRATED").exists() && Topic::of(&case).is_none(),
        "a dry run changes nothing"
    );

    let done = case.migrate_to_end();
    assert_eq!(
        (&done["outcome"], &done["from"]["unflushed"], &done["shards"]),
        (&"done".into(), &0.into(), &4.into()),
        "{done}"
    );
    println!("{done}");
    assert_eq!(case.migrate_to_end()["outcome"], "was done before");
    let mut refused = Server::spawn(&case.data(), free_port(), &NODE);
    wait("the embedded node refuses", || refused.has_ended());
    let said = std::fs::read_to_string(case.data().with_extension("server.log")).expect("its log");
    assert!(said.contains("was migrated to a cluster") && said.contains("remove"), "{said}");
    holds(&case, lived);
}

/// The topic as the command shows it.
struct Topic(Value);

impl Topic {
    fn of(case: &MigrationCase) -> Option<Self> {
        let output = Server::cli(&[
            "topic",
            "describe",
            "--json",
            "--config",
            &case.config.display().to_string(),
        ]);
        serde_json::from_slice(&output.stdout).ok().map(Self)
    }
}

#[test]
fn killed_between_and_inside_all_steps_it_goes_on_and_nothing_serves_what_is_half_there() {
    let case = MigrationCase::new("migrate_killed");
    let lived = case.seed_history();
    let mut killed = Vec::new();
    for (step, delay) in
        (1..=6).flat_map(|step| [0, 7, 60].map(|ms| (step, Duration::from_millis(ms))))
    {
        if case.kill_at(step, delay) {
            killed.push((step, delay.as_millis()));
        }
        let open = Topic::of(&case).is_some_and(|topic| !topic.0["log"].is_null());
        if open {
            // The request that opens the cluster is the last one, so everything is in place.
            break;
        }
        match (step, delay.as_millis()) {
            (_, 0) => case.check_refused(&[]),
            (_, 7) => case.check_refused(&["--roles", "gateway"]),
            _ => {}
        }
        if step > 1 && delay.is_zero() {
            let mut embedded = Server::spawn(&case.data(), free_port(), &NODE);
            wait("the embedded node refuses", || embedded.has_ended());
        }
        if (step, delay.as_millis()) == (4, 0) {
            // A late record of the killed run: the topic is too long and has to be created again.
            append_late(&case);
        }
    }
    println!("killed in step and after milliseconds: {killed:?}");
    assert!(killed.len() >= 10, "only these runs were killed: {killed:?}");
    let done = case.migrate_to_end();
    assert!(done["outcome"] == "done" || done["outcome"] == "was done before", "{done}");
    holds(&case, lived);
}

fn append_late(case: &MigrationCase) {
    use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
    let mut config = rdkafka::ClientConfig::new();
    config.set("bootstrap.servers", Kafka::shared().brokers());
    let producer: BaseProducer = config.create().expect("a producer");
    let record = BaseRecord::<(), [u8]>::to(&case.topic).partition(1).payload(b"late");
    producer.send(record).map_err(|(error, _)| error).expect("sent");
    producer.flush(Duration::from_secs(30)).expect("appended");
}

#[test]
fn what_is_in_the_way_is_said_with_the_way_out() {
    let case = MigrationCase::new("migrate_refused");
    let node = case.embedded(&[]);
    send(&node, 0, 100);
    let refused = |extra: &[&str], says: &[&str]| {
        let (code, out, err) = case.migrate(extra);
        assert!(
            code == Some(1) && says.iter().all(|part| err.contains(part)),
            "{says:?} in {code:?} {out}{err}"
        );
    };
    refused(&[], &["another process holds the lock"]);
    assert_eq!(case.migrate(&["--dry-run"]).0, Some(0), "looking is allowed");
    assert_eq!(node.stop(), Some(0));

    case.configure("shards.count = 8\n");
    refused(&[], &["4 shards", "set shards.count = 4"]);
    case.configure("dedup.horizon = \"2h\"\n");
    refused(&[], &["dedup.horizon is 3600000ms", "--from-config"]);
    let own = case.dir.path().join("node.toml");
    std::fs::write(&own, "dedup.horizon = \"2h\"\n").expect("written");
    assert_eq!(
        case.migrate(&["--dry-run", "--from-config", &own.display().to_string()]).0,
        Some(0)
    );
    case.configure("");

    let topic = |command: &str| {
        Server::cli(&["topic", command, "--config", &case.config.display().to_string()])
    };
    assert!(topic("create").status.success());
    refused(&[], &["migrate_refused", "is there already", "--delete --topic"]);
    assert!(!case.data().join("MIGRATED").exists(), "nothing was begun");

    // The store of a node that runs on that topic.
    let node = case.node();
    send(&node, 0, 10);
    wait("counted", || node.accounted()[0] == 10);
    assert_eq!(node.stop(), Some(0));
    let text = std::fs::read_to_string(&case.config)
        .expect("text")
        .replace("migrate_refused", "migrate_refused_2");
    std::fs::write(&case.config, text).expect("written");
    refused(&[], &["holds the rollups of log", "name an empty database"]);
    assert!(!case.data().join("MIGRATED").exists(), "nothing was begun");
}
