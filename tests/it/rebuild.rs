//! A lost store is rebuilt from the archive and the log, byte for byte, and a server continues on
//! it. A store restored from an older backup catches up too.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use rollmill::config::Config;
use rollmill::model::offset::ShardId;
use rollmill::model::window::Hour;
use rollmill::node::{DataDir, offline};
use rollmill::persistence::store::sqlite::SqliteStore;
use rollmill::persistence::store::{NameRange, ShardStore, SnapshotSource};
use serde_json::Value;

use crate::postgres;
use crate::support::{PATIENCE, Server, free_port};

pub const SHARDS: u32 = 4;

/// Flights of 2013 as events with ids, all of them late, with more series than the limit admits.
pub fn flights(from: usize, to: usize) -> String {
    static EVENTS: OnceLock<Vec<String>> = OnceLock::new();
    let events = EVENTS.get_or_init(|| {
        let file = std::fs::File::open(crate::flights::flights()).expect("the flights are there");
        let mut rows = csv::Reader::from_reader(flate2::read::GzDecoder::new(file));
        let event = |(n, row): (usize, csv::StringRecord)| {
            let value = match &row[7] {
                "" => "null".to_owned(),
                delay => format!("\"{delay}.1\""),
            };
            // Incompressible, so that segments of the log are sealed and released.
            let noise = blake3::hash(n.to_string().as_bytes()).to_hex();
            let (time, origin, dest) = (&row[0], &row[2], &row[4]);
            let (flight, user) = (&row[5], &row[6]);
            let head = format!(r#""metric":"delay","timestamp":"{time}","value":{value}"#);
            let labels = format!(r#"{{"origin":"{origin}","dest":"{dest}"}}"#);
            let properties = format!(r#"{{"flight":"{flight}","noise":"{noise}{noise}"}}"#);
            let tail = format!(r#""labels":{labels},"properties":{properties}"#);
            format!(r#"{{{head},"user":"{user}","id":"{n}",{tail}}}"#)
        };
        rows.records().take(3_000).map(|row| row.expect("a row")).enumerate().map(event).collect()
    });
    format!("[{}]", events[from..to].join(","))
}

/// A node with its configuration in a file, for the server and for other commands.
pub struct ConfiguredNode {
    _dir: tempfile::TempDir,
    pub root: PathBuf,
    more: String,
}

impl ConfiguredNode {
    fn new(store_url: &str) -> Self {
        Self::with(store_url, String::new())
    }

    /// A node with additional configuration lines.
    pub fn with(store_url: &str, more: String) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let node = Self { root: dir.path().to_owned(), _dir: dir, more };
        node.configure(store_url);
        node
    }

    pub fn configure(&self, store_url: &str) {
        let text = format!(
            "data.dir = \"{}\"\nstore.url = \"{store_url}\"\nshards.count = \
             {SHARDS}\nflush.interval = \"100ms\"\narchive.max_delay = \"150ms\"\narchive.keep = \
             \"0\"\naccept.max_age = \"20000d\"\ntenants.max_series = 80\nlog.segment_bytes = \
             \"64KiB\"\n{}",
            self.data().display(),
            self.more
        );
        std::fs::write(self.config(), text).expect("configuration");
    }

    fn config(&self) -> PathBuf {
        self.root.join("rollmill.toml")
    }

    fn data(&self) -> PathBuf {
        self.root.join("data")
    }

    pub fn parsed(&self) -> (Config, DataDir) {
        (
            Config::load(Some(&self.config()), std::iter::empty(), &[]).expect("a configuration"),
            DataDir::new(self.data()),
        )
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_rollmill"));
        std::env::vars().filter(|(name, _)| name.starts_with("ROLLMILL_")).for_each(|(name, _)| {
            command.env_remove(name);
        });
        command.args(args).arg("--config").arg(self.config());
        command
    }

    pub fn start(&self, env: &[(&str, &str)]) -> Server {
        let port = free_port();
        let mut command = self.command(&["serve", "--listen", &format!("127.0.0.1:{port}")]);
        command.envs(env.iter().copied());
        let mut server = Server::run(command, &self.data(), port);
        server.wait_ready("gateway");
        server
    }

    fn cli(&self, args: &[&str]) -> (Option<i32>, String) {
        let output = self.command(args).output().expect("it runs");
        let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        assert!(!text.contains("panicked"), "{text}");
        (output.status.code(), text)
    }

    /// Starts a command and kills it after this time, unless it has ended.
    pub fn killed_after(&self, args: &[&str], time: Duration) {
        let mut child = self
            .command(args)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("it starts");
        std::thread::sleep(time);
        child.kill().expect("kill");
        child.wait().expect("wait");
    }

    pub fn succeeds(&self, args: &[&str]) -> String {
        let (code, text) = self.cli(args);
        assert_eq!(code, Some(0), "{args:?}: {text}");
        text
    }

    pub fn refused(&self, args: &[&str], why: &[&str]) {
        let (code, text) = self.cli(args);
        assert_eq!(code, Some(1), "{args:?}: {text}");
        why.iter().for_each(|part| assert!(text.contains(part), "{part:?} is not in: {text}"));
    }

    pub fn verify(&self) {
        let report: Value =
            serde_json::from_str(&self.succeeds(&["verify", "--json"])).expect("JSON");
        assert!(report["equal"] == true && report["rows"].as_u64() > Some(100), "{report}");
    }

    /// Waits until everything in the log is in the store.
    pub fn await_flushed(&self) {
        let (config, data) = self.parsed();
        let deadline = Instant::now() + PATIENCE;
        loop {
            let checkpoints = offline::store(&config, &data)
                .and_then(|store| Ok(store.snapshot()?.checkpoints()?));
            let log = offline::log(&config, &data).expect("the log");
            let checkpoints = checkpoints.unwrap_or_default();
            if checkpoints.len() == SHARDS as usize
                && checkpoints.iter().all(|(shard, at)| at.next == log.end(*shard))
            {
                return;
            }
            assert!(Instant::now() < deadline, "not flushed: {checkpoints:?}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Waits until everything in the store is in the archive.
    pub fn await_archived(&self) {
        let (config, data) = self.parsed();
        let deadline = Instant::now() + PATIENCE;
        loop {
            let store = offline::store(&config, &data).expect("a store");
            let checkpoints = store
                .snapshot()
                .and_then(|mut snapshot| snapshot.checkpoints())
                .expect("checkpoints");
            if checkpoints.iter().all(|(_, at)| at.archived == at.next) {
                return;
            }
            assert!(Instant::now() < deadline, "not archived: {checkpoints:?}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Produces a history with every case: several objects per shard, some of them no longer in the
    /// log, duplicates, overflow, and a tail that only the log has. The server is killed at the
    /// end.
    pub fn seed_history(&self) {
        let server = self.start(&[]);
        for n in 0..8 {
            assert_eq!(server.post(&flights(250 * n, 250 * (n + 1))).0, 202);
            assert_eq!(server.post(&flights(250 * n, 250 * n + 50)).0, 202, "a retry");
            self.await_flushed();
            self.await_archived();
        }
        self.refused(&["rebuild"], &["another process", "lock"]);
        assert_eq!(server.stop(), Some(0));
        let server = self.start(&[("ROLLMILL_ARCHIVE_MAX_DELAY", "1h")]);
        assert_eq!(server.post(&flights(1_900, 2_400)).0, 202);
        self.await_flushed();
        server.kill();
    }

    /// Checks that the server continues: repeated events are known, new ones count, and the store
    /// matches the records.
    pub fn check_resumes(&self) {
        self.check_resumes_with(2_400);
    }

    /// Like [`Self::check_resumes`], with this many events.
    fn check_resumes_with(&self, events: u64) {
        let server = self.start(&[]);
        // Records above the checkpoints come from the log.
        let [_, before, _] = await_accounted(&server, |[aggregated, ..]| aggregated == events);
        assert_eq!(server.post(&flights(0, events as usize)).0, 202);
        assert_eq!(server.post(&flights(events as usize, events as usize + 100)).0, 202);
        await_accounted(&server, |accounted| accounted == [events + 100, before + events, 0]);
        self.await_flushed();
        self.await_archived();
        assert_eq!(server.stop(), Some(0));
        self.verify();
    }
}

pub fn await_accounted(server: &Server, pass: impl Fn([u64; 3]) -> bool) -> [u64; 3] {
    let deadline = Instant::now() + PATIENCE;
    while !pass(server.accounted()) {
        assert!(Instant::now() < deadline, "accounted {:?}", server.accounted());
        std::thread::sleep(Duration::from_millis(50));
    }
    server.accounted()
}

/// The whole content of a store, except revisions and owners.
pub fn everything(store: &dyn ShardStore) -> Vec<String> {
    let always = (Hour(i32::MIN), Hour(i32::MAX));
    let mut snapshot = store.snapshot().expect("a snapshot");
    let mut all = Vec::new();
    let mut visit =
        |info: &std::sync::Arc<rollmill::model::flush::SeriesInfo>, hour: Hour, _, bytes: &[u8]| {
            all.push(format!("{:?} {hour:?} {bytes:02x?}", info.series));
        };
    snapshot.rollup_bytes(always.0, always.1, &mut visit).expect("rows");
    assert!(all.len() > 100);
    for (shard, at) in snapshot.checkpoints().expect("checkpoints") {
        all.push(format!("{shard} {} {} {}", at.log, at.next, at.archived));
        all.extend(
            snapshot.manifest(Some(shard)).expect("manifest").iter().map(|row| format!("{row:?}")),
        );
        let mut admissions = snapshot.admissions(shard).expect("admissions");
        admissions.sort_unstable();
        all.push(format!("{admissions:?}"));
        let ids = store
            .recent_ids(shard, i64::MIN)
            .expect("ids")
            .into_iter()
            .flat_map(|block| block.runs);
        all.push(format!("{:?}", ids.flat_map(|(_, ids)| ids).collect::<Vec<_>>()));
    }
    for what in [
        format!("{:?}", snapshot.accounting("default", always.0, always.1)),
        format!("{:?}", snapshot.metrics("default", &NameRange::ALL)),
        format!("{:?}", snapshot.label_values("default", "dest", None, &[], &NameRange::ALL)),
        format!("{:?}", snapshot.quarantine()),
    ] {
        assert!(what.starts_with("Ok"), "{what}");
        all.push(what);
    }
    all
}

pub fn equal(found: &[String], expected: &[String]) {
    for (found, expected) in found.iter().zip(expected) {
        assert_eq!(found, expected);
    }
    assert_eq!(found.len(), expected.len());
}

/// Kills several rebuilds before one may finish.
pub fn rebuilt_over_kills(node: &ConfiguredNode, args: &[&str]) {
    let args = [&["rebuild"], args].concat();
    for ms in [5, 20, 60, 120] {
        let mut rebuild = node
            .command(&args)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("it starts");
        std::thread::sleep(Duration::from_millis(ms));
        // It may have ended by itself.
        let _ = rebuild.kill();
        rebuild.wait().expect("it ends");
    }
    // A transaction of the last killed rebuild may still commit while the next one runs, which then
    // refuses to continue.
    let ended = |(code, text): (Option<i32>, String)| {
        code == Some(0) || text.contains("is a store") || text.contains("holds a store")
    };
    assert!((0..3).any(|_| ended(node.cli(&args))), "{:?}", node.cli(&args));
}

pub fn moved_away(data: &Path) -> PathBuf {
    let lost = data.join("lost");
    std::fs::create_dir(&lost).expect("a directory");
    for name in ["store.sqlite", "store.sqlite-wal", "store.sqlite-shm"] {
        if data.join(name).exists() {
            std::fs::rename(data.join(name), lost.join(name)).expect("moved");
        }
    }
    lost.join("store.sqlite")
}

#[test]
fn a_lost_store_is_rebuilt_to_the_byte() {
    let node = ConfiguredNode::new("");
    node.seed_history();
    let (config, data) = node.parsed();
    let log = offline::log(&config, &data).expect("the log");
    assert!(
        (0..SHARDS).any(|shard| log.start(ShardId(shard)) > 0),
        "the log has released nothing: the archive would not be needed"
    );
    drop(log);
    node.refused(&["rebuild"], &["there is a store", "store.sqlite", "move it away"]);
    let lost = moved_away(&node.data());
    let old = everything(SqliteStore::open_read_only(&lost).expect("the old store").as_ref());
    assert!(old.iter().any(|line| line.contains("__overflow__")), "series beyond the limit");

    let planned: Value =
        serde_json::from_str(&node.succeeds(&["rebuild", "--dry-run", "--json"])).expect("JSON");
    assert_eq!(planned["shards"].as_array().map(Vec::len), Some(SHARDS as usize));
    assert!(
        planned["shards"]
            .as_array()
            .into_iter()
            .flatten()
            .all(|shard| shard["objects"].as_array().map(Vec::len) > Some(2))
    );
    assert!(
        !node.data().join("store.sqlite").exists()
            && !node.data().join("store.sqlite.rebuilding").exists()
    );
    assert!(node.succeeds(&["rebuild", "--dry-run"]).contains("would rebuild"));

    // An unfinished rebuild is never served, wherever it is.
    let beside = node.data().join("store.sqlite.rebuilding");
    drop(SqliteStore::open_rebuilding(&beside).expect("begun"));
    node.refused(&["serve", "--listen", "127.0.0.1:0"], &["has not finished", "rollmill rebuild"]);
    std::fs::rename(&beside, node.data().join("store.sqlite")).expect("renamed");
    node.refused(&["serve", "--listen", "127.0.0.1:0"], &["has not finished", "rollmill rebuild"]);
    std::fs::rename(node.data().join("store.sqlite"), &beside).expect("renamed");

    rebuilt_over_kills(&node, &[]);
    assert!(
        !beside.exists() && !node.data().join("store.sqlite-wal").exists(),
        "all of it is in one file"
    );
    let new = SqliteStore::open_read_only(node.data().join("store.sqlite")).expect("the new store");
    equal(&everything(new.as_ref()), &old);
    drop(new);
    node.verify();
    node.check_resumes();
}

#[test]
fn a_store_lost_in_postgres_is_rebuilt_to_the_byte() {
    let server = postgres::shared();
    let (first, second) = (server.database(), server.database());
    let node = ConfiguredNode::new(&server.url(&first));
    node.seed_history();
    node.refused(&["rebuild"], &["holds a store", "name an empty database"]);
    let (config, data) = node.parsed();
    let old = everything(offline::store(&config, &data).expect("the old store").as_ref());

    node.configure(&server.url(&second));
    assert!(node.succeeds(&["rebuild", "--dry-run"]).contains("would rebuild"));
    assert_eq!(
        server.psql(&second, "SELECT count(*) FROM pg_namespace WHERE nspname = 'rollmill'"),
        Ok("0".into())
    );
    rebuilt_over_kills(&node, &[]);
    let (config, data) = node.parsed();
    equal(&everything(offline::store(&config, &data).expect("the new store").as_ref()), &old);
    node.verify();

    // An unfinished rebuild is neither served nor verified.
    server
        .psql(&second, "INSERT INTO rollmill.migrations (version, by) VALUES (0, 'a rebuild')")
        .expect("marked");
    node.refused(&["serve", "--listen", "127.0.0.1:0"], &["has not finished", "rollmill rebuild"]);
    node.refused(&["verify"], &["has not finished"]);
    let went_on: Value =
        serde_json::from_str(&node.succeeds(&["rebuild", "--json"])).expect("JSON");
    assert_eq!(
        (&went_on["went_on"], &went_on["records"]["log"]),
        (&true.into(), &0.into()),
        "{went_on}"
    );
    node.check_resumes();
}

/// A log that retains everything these tests write, as Kafka does with `log.safety`.
const KEEPS: &[(&str, &str)] = &[("ROLLMILL_LOG_SEGMENT_BYTES", "64MiB")];

#[test]
fn an_older_store_from_a_backup_goes_on_without_loss_or_doubles() {
    let node = ConfiguredNode::new("");
    let server = node.start(KEEPS);
    assert_eq!(server.post(&flights(0, 1_000)).0, 202);
    node.await_flushed();
    let backup = node.root.join("backup.sqlite");
    let text = backup.display().to_string();
    assert!(node.succeeds(&["store", "backup", &text]).contains(&text));
    node.refused(&["store", "backup", &text], &["it is there already"]);
    assert_eq!(server.post(&flights(800, 2_400)).0, 202);
    node.await_flushed();
    server.kill();

    moved_away(&node.data());
    std::fs::copy(&backup, node.data().join("store.sqlite")).expect("put back");
    node.check_resumes();
}

/// The log begins above the checkpoints of the restored store. The records in between are in the
/// archive, but not in the store's manifest.
#[test]
fn a_store_older_than_the_log_is_healed_from_the_archive_to_the_byte() {
    let node = ConfiguredNode::new("");
    let server = node.start(&[]);
    assert_eq!(server.post(&flights(0, 500)).0, 202);
    node.await_flushed();
    let backup = node.root.join("backup.sqlite");
    node.succeeds(&["store", "backup", &backup.display().to_string()]);
    for n in 2..8 {
        assert_eq!(server.post(&flights(300 * n - 300, 300 * n)).0, 202);
        node.await_flushed();
        node.await_archived();
    }
    server.kill();
    let lost = moved_away(&node.data());
    let old = everything(SqliteStore::open_read_only(&lost).expect("the old store").as_ref());
    std::fs::copy(&backup, node.data().join("store.sqlite")).expect("put back");
    let (config, data) = node.parsed();
    let log = offline::log(&config, &data).expect("the log");
    let store = SqliteStore::open_read_only(&backup).expect("the backup");
    let stands =
        store.snapshot().and_then(|mut snapshot| snapshot.checkpoints()).expect("checkpoints");
    assert!(
        stands.iter().any(|(shard, at)| log.start(*shard) > at.next),
        "nothing is lost: {stands:?}"
    );
    drop((log, store));

    let server = node.start(&[]);
    node.await_flushed();
    node.await_archived();
    let said = std::fs::read_to_string(node.data().with_extension("server.log"))
        .expect("the log of the process");
    assert!(
        said.contains("the log lost records of this shard")
            && said.contains("were in the archive already"),
        "{said}"
    );
    assert_eq!(server.stop(), Some(0));
    let new = everything(
        SqliteStore::open_read_only(node.data().join("store.sqlite"))
            .expect("the new store")
            .as_ref(),
    );
    // Objects whose records are still in the log are written again, by another owner.
    let but_objects = |all: Vec<String>| {
        all.into_iter().filter(|line| !line.contains("crc32c")).collect::<Vec<_>>()
    };
    equal(&but_objects(new), &but_objects(old));
    node.verify();
    node.check_resumes_with(2_100);
}

#[test]
fn an_older_dump_of_postgres_goes_on_without_loss_or_doubles() {
    let server = postgres::shared();
    let (first, second) = (server.database(), server.database());
    let node = ConfiguredNode::new(&server.url(&first));
    let running = node.start(KEEPS);
    assert_eq!(running.post(&flights(0, 1_000)).0, 202);
    node.await_flushed();
    let dump = node.root.join("rollmill.dump").display().to_string();
    postgres::dump(&server.url(&first), &dump);
    assert_eq!(running.post(&flights(800, 2_400)).0, 202);
    node.await_flushed();
    running.kill();

    postgres::restore(&server.url(&second), &dump);
    node.configure(&server.url(&second));
    node.check_resumes();
}
