//! Disks that accept no writes (full, out of inodes, read-only, or only the store's disk), and a
//! process without free file descriptors or with a file size limit. Each test includes a restart.
//! All of them check that nothing acknowledged is lost or counted twice, queries are answered
//! throughout, writes that cannot be kept are refused with a reason, and the node recovers by
//! itself.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::support::{Server, agent, free_port, wait_until};

/// A mounted file system, unmounted on drop.
struct Disk(PathBuf);

impl Disk {
    /// Mounts a tmpfs. `None` where the test may not mount; that is printed loudly, because nothing
    /// is tested then.
    fn mount(at: PathBuf, options: &str) -> Option<Self> {
        std::fs::create_dir_all(&at).expect("a mount point");
        let mounted =
            Command::new("mount").args(["-t", "tmpfs", "-o", options, "tmpfs"]).arg(&at).output();
        match mounted {
            Ok(output) if output.status.success() => Some(Self(at)),
            other => {
                eprintln!(
                    "SKIPPED: this machine lets no test mount a file system, so full disks are \
                     not tested: {other:?}"
                );
                None
            }
        }
    }

    fn remount(&self, options: &str) {
        wait_until("the file system is mounted anew", || {
            let mount = Command::new("mount")
                .args(["-o", &format!("remount,{options}")])
                .arg(&self.0)
                .output();
            mount.expect("mount runs").status.success()
        });
    }

    /// Uses up every free byte.
    fn fill(&self) {
        for size in [1 << 20, 4 << 10, 1] {
            for n in 0.. {
                if std::fs::write(self.0.join(format!("ballast-{size}-{n}")), vec![7; size])
                    .is_err()
                {
                    break;
                }
                assert!(n < 100_000, "the disk does not become full");
            }
        }
    }

    /// Uses up every free inode.
    fn use_up_inodes(&self) {
        for n in 0.. {
            if std::fs::write(self.0.join(format!("ballast-inode-{n}")), "").is_err() {
                return;
            }
            assert!(n < 100_000, "there are always more inodes");
        }
    }

    fn free(&self) {
        for entry in std::fs::read_dir(&self.0).expect("a directory") {
            let path = entry.expect("an entry").path();
            if path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("ballast-")) {
                std::fs::remove_file(path).expect("removed");
            }
        }
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // A lazy unmount: after a failed test, processes may still hold files.
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

/// What was acknowledged.
#[derive(Default)]
struct Ledger {
    sent: u64,
    acked: u64,
}

impl Ledger {
    /// Sends one event of about `size` incompressible bytes. Returns the status and error code.
    fn send(&mut self, server: &Server, size: usize) -> (u16, String) {
        self.sent += 1;
        let noise: String = (0..size as u64 / 64 + 1)
            .map(|n| {
                blake3::hash(&[self.sent.to_le_bytes(), n.to_le_bytes()].concat())
                    .to_hex()
                    .to_string()
            })
            .collect();
        let noise = &noise[..size.min(noise.len())];
        let (status, answer) = server
            .post(&format!(r#"{{"metric":"m","id":"{}","properties":"{noise}"}}"#, self.sent));
        self.acked += u64::from(status == 202);
        (status, answer["error"]["code"].as_str().unwrap_or_default().to_owned())
    }

    fn send_some(&mut self, server: &Server) {
        for _ in 0..20 {
            assert_eq!(self.send(server, 2_000).0, 202);
        }
    }

    /// Sends until a write is refused, which must be with this code.
    fn send_until_refused(&mut self, server: &Server, code: &str) {
        loop {
            let (status, found) = self.send(server, 6_000);
            if status != 202 {
                assert_eq!((status, &*found), (503, code));
                return;
            }
            assert!(self.sent < 20_000, "nothing is refused");
        }
    }

    /// Checks that every query is answered, and eventually completely, with exactly what was
    /// acknowledged.
    fn check_counted(&self, server: &Server) {
        wait_until("a complete answer has everything that was acknowledged", || {
            let (status, answer) = server.get("/v1/query?metric=m&step=all");
            assert_eq!(status, 200, "{answer}");
            let count = answer["series"][0]["points"][0]["count"].as_u64().unwrap_or(0);
            assert!(count <= self.acked, "{count} of {}: {answer}", self.acked);
            answer["completeness"]["partial"] == false && count == self.acked
        });
    }
}

fn log_of(data: &Path) -> String {
    std::fs::read_to_string(data.with_extension("server.log")).unwrap_or_default()
}

fn metric(server: &Server, name: &str) -> Option<f64> {
    let (_, text) = server.get("/metrics");
    let text = text.as_str()?.to_owned();
    text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok())
}

/// Checks that the node is not ready for writes and gives this reason.
fn refuses_writes(server: &Server, ledger: &mut Ledger, code: &str) {
    wait_until("it is not ready for writes and names the reason", || {
        let (status, why) = server.get("/readyz?role=gateway");
        status == 503 && why.to_string().contains(code)
    });
    let (status, found) = ledger.send(server, 6_000);
    assert_eq!((status, &*found), (503, code));
    assert_eq!(server.get("/healthz").0, 200);
}

const SMALL: &[(&str, &str)] = &[
    ("shards.count", "2"),
    ("log.segment_bytes", "2MiB"),
    ("flush.interval", "200ms"),
    ("archive.max_delay", "2s"),
    ("supervision.backoff_max", "1s"),
];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum NodeEnd {
    Term,
    Kill,
}

impl NodeEnd {
    fn end(self, server: Server) {
        match self {
            NodeEnd::Term => assert_eq!(server.stop(), Some(0)),
            NodeEnd::Kill => server.kill(),
        }
    }
}

/// A node whose files cannot grow beyond this many KiB.
fn start_limited(data: &Path, kib: u32) -> Server {
    let port = free_port();
    let mut command = Command::new("bash");
    command.args([
        "-c",
        &format!("ulimit -f {kib} && exec \"$0\" \"$@\""),
        env!("CARGO_BIN_EXE_rollmill"),
        "serve",
        "--data",
    ]);
    command.arg(data).args(["--listen", &format!("127.0.0.1:{port}")]);
    for (key, value) in SMALL {
        command.env(format!("ROLLMILL_{}", key.replace('.', "_").to_uppercase()), value);
    }
    Server::run(command, data, port)
}

#[test]
fn a_limit_on_the_size_of_files_is_a_full_disk_and_ends_no_node() {
    let dir = tempfile::tempdir().expect("a directory");
    let data = dir.path().join("data");
    let mut ledger = Ledger::default();
    let server = Server::start(&data, SMALL);
    ledger.send_some(&server);
    wait_until("a part is in the store", || server.accounted()[0] > 0);
    NodeEnd::Kill.end(server);

    let mut server = start_limited(&data, 1024);
    server.wait_alive();
    ledger.send_until_refused(&server, "disk_full");
    refuses_writes(&server, &mut ledger, "disk_full");
    ledger.check_counted(&server);
    NodeEnd::Term.end(server);

    let server = Server::start(&data, SMALL);
    ledger.send_some(&server);
    ledger.check_counted(&server);
}

/// A disk that stops accepting writes, and a node that runs, stops, starts and resumes on it.
struct DiskTrial<'a> {
    options: &'a str,
    breaks: &'a dyn Fn(&Disk),
    mends: &'a dyn Fn(&Disk),
    /// Whether only a start notices the fault, and a running node does not.
    at_rest: bool,
}

impl DiskTrial<'_> {
    fn run(&self, end: NodeEnd) {
        let dir = tempfile::tempdir().expect("a directory");
        let data = dir.path().join("data");
        let Some(disk) = Disk::mount(data.clone(), self.options) else { return };
        let mut ledger = Ledger::default();
        let server = Server::start(&data, SMALL);
        ledger.send_some(&server);
        wait_until("a part is in the store", || server.accounted()[0] > 0);
        ledger.send_some(&server);
        if !self.at_rest {
            (self.breaks)(&disk);
            ledger.send_until_refused(&server, "disk_full");
            // A write that fits into the space reserved by the log may still be accepted, and must
            // then be durable.
            for _ in 0..5 {
                ledger.send(&server, 10);
            }
            ledger.check_counted(&server);
            refuses_writes(&server, &mut ledger, "disk_full");
        }
        end.end(server);
        (self.breaks)(&disk);

        let mut server = Server::spawn(&data, free_port(), SMALL);
        server.wait_alive();
        refuses_writes(&server, &mut ledger, "disk_full");
        ledger.check_counted(&server);
        assert!(
            metric(&server, r#"rollmill_writes_refused_total{reason="disk_full"}"#)
                .is_some_and(|refused| refused >= 1.0)
        );
        // A second time: a start on such a disk changes nothing.
        end.end(server);
        (self.breaks)(&disk);
        let mut server = Server::spawn(&data, free_port(), SMALL);
        server.wait_alive();
        ledger.check_counted(&server);

        (self.mends)(&disk);
        server.wait_ready("gateway");
        ledger.send_some(&server);
        server.wait_ready("shards");
        ledger.check_counted(&server);
        wait_until("everything is in the store", || server.accounted()[0] == ledger.acked);
        for name in
            ["rollmill_disk_free_bytes", "rollmill_log_size_bytes", "rollmill_store_size_bytes"]
        {
            wait_until(name, || metric(&server, name).is_some_and(|bytes| bytes > 0.0));
        }
        assert_eq!(server.stop(), Some(0));
        let verified = Server::cli(&["verify", "--data", &data.display().to_string()]);
        let said = String::from_utf8_lossy(&verified.stdout).into_owned()
            + &String::from_utf8_lossy(&verified.stderr);
        assert_eq!(verified.status.code(), Some(0), "{said}");
        let log = log_of(&data);
        for line in ["WARN", "the log refuses writes", "the log takes writes again"] {
            assert!(log.contains(line), "{line:?} is not in:\n{log}");
        }
        assert!(!log.contains("panicked"), "{log}");
    }
}

#[test]
fn a_full_disk_costs_nothing_acknowledged_and_no_answer() {
    let trial = DiskTrial {
        options: "size=24m,nr_inodes=4k",
        breaks: &Disk::fill,
        mends: &Disk::free,
        at_rest: false,
    };
    trial.run(NodeEnd::Term);
    trial.run(NodeEnd::Kill);
}

#[test]
fn a_disk_without_inodes_costs_nothing_acknowledged_and_no_answer() {
    let trial = DiskTrial {
        options: "size=64m,nr_inodes=400",
        breaks: &Disk::use_up_inodes,
        mends: &Disk::free,
        at_rest: false,
    };
    trial.run(NodeEnd::Term);
    trial.run(NodeEnd::Kill);
}

#[test]
fn a_read_only_disk_costs_nothing_acknowledged_and_no_answer() {
    let trial = DiskTrial {
        options: "size=64m",
        breaks: &|disk| disk.remount("ro"),
        mends: &|disk| disk.remount("rw"),
        at_rest: true,
    };
    trial.run(NodeEnd::Term);
    trial.run(NodeEnd::Kill);
}

/// The disk of field report A: as large as a few segments, filled by the node itself, later
/// enlarged.
#[test]
fn a_disk_that_the_node_itself_has_filled_loses_nothing_over_a_restart() {
    for end in [NodeEnd::Term, NodeEnd::Kill] {
        for small in [0, 1, 5] {
            let dir = tempfile::tempdir().expect("a directory");
            let data = dir.path().join("data");
            let Some(disk) = Disk::mount(data.clone(), "size=12m") else { return };
            // Nothing is released, so that the log fills the disk.
            let keeps =
                &[&SMALL[..2], &[("archive.max_delay", "1h"), ("flush.interval", "1h")]].concat();
            let mut ledger = Ledger::default();
            let server = Server::start(&data, keeps);
            ledger.send_until_refused(&server, "disk_full");
            (0..small).for_each(|_| drop(ledger.send(&server, 10)));
            end.end(server);
            disk.remount("size=100m");
            let server = Server::start(&data, keeps);
            ledger.check_counted(&server);
            ledger.send_some(&server);
            ledger.check_counted(&server);
            NodeEnd::Term.end(server);
            let verified = Server::cli(&["verify", "--data", &data.display().to_string()]);
            assert_eq!(
                verified.status.code(),
                Some(0),
                "{}",
                String::from_utf8_lossy(&verified.stderr)
            );
        }
    }
}

/// The log has a separate disk with free space: writes are accepted, and the store has to wait.
#[test]
fn a_store_on_a_full_disk_refuses_no_write_and_no_query() {
    for end in [NodeEnd::Term, NodeEnd::Kill] {
        let dir = tempfile::tempdir().expect("a directory");
        let data = dir.path().join("data");
        let Some(disk) = Disk::mount(data.clone(), "size=16m,mode=0700") else { return };
        let Some(_log) = Disk::mount(data.join("log"), "size=64m,mode=0700") else { return };
        let mut ledger = Ledger::default();
        let server = Server::start(&data, SMALL);
        ledger.send_some(&server);
        wait_until("a part is in the store", || server.accounted()[0] > 0);
        disk.fill();
        ledger.send_some(&server);
        ledger.check_counted(&server);
        end.end(server);
        disk.fill();

        let server = Server::start(&data, SMALL);
        ledger.send_some(&server);
        ledger.check_counted(&server);
        disk.free();
        let mut server = server;
        server.wait_ready("shards");
        wait_until("everything is in the store", || server.accounted()[0] == ledger.acked);
        ledger.check_counted(&server);
        assert_eq!(server.stop(), Some(0));
        let verified = Server::cli(&["verify", "--data", &data.display().to_string()]);
        assert_eq!(
            verified.status.code(),
            Some(0),
            "{}",
            String::from_utf8_lossy(&verified.stderr)
        );
    }
}

/// The archive on a disk of its own, and the log on another.
struct ReplayDisks {
    server: Server,
    store: Disk,
    archive: Disk,
    _log: Disk,
}

fn replay(server: &Server, args: &[&str]) -> serde_json::Value {
    let output = Server::cli(&[&["replay"], args, &["--json", "--url", &server.url]].concat());
    let (out, err) = (&output.stdout, String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{args:?}: {err}");
    serde_json::from_slice(out).unwrap_or_else(|why| panic!("{why}: {err}"))
}

fn shown(server: &Server, id: u64) -> serde_json::Value {
    let (status, answer) = server.get(&format!("/v1/replays/{id}"));
    assert_eq!(status, 200, "{answer}");
    answer
}

/// Whether the fill of a shard says that it waits for this.
fn waits_for(replay: &serde_json::Value, words: &str) -> bool {
    assert_eq!(replay["state"], "building", "{replay}");
    let mut shards = replay["progress"]["waits_for"].as_array().expect("shards").iter();
    shards.any(|shard| shard["detail"].as_str().is_some_and(|why| why.contains(words)))
}

impl ReplayDisks {
    /// A node that has flushed and archived 2,000 events, each with a number of its own as a
    /// property; started again, so that the store's journal is empty.
    fn start(dir: &Path, ledger: &mut Ledger) -> Option<Self> {
        let data = dir.join("data");
        let store = Disk::mount(data.clone(), "size=48m,mode=0700")?;
        let archive = Disk::mount(data.join("archive"), "size=24m,mode=0700")?;
        let log = Disk::mount(data.join("log"), "size=64m,mode=0700")?;
        let server = Server::start(&data, SMALL);
        for _ in 0..4 {
            let events = (0..500).map(|_| {
                ledger.sent += 1;
                let n = ledger.sent;
                format!(r#"{{"metric":"m","id":"{n}","properties":{{"number":"{n}"}}}}"#)
            });
            let events: Vec<String> = events.collect();
            assert_eq!(server.post(&format!("[{}]", events.join(","))).0, 202);
            ledger.acked = ledger.sent;
        }
        wait_until("everything is in the store", || server.accounted()[0] == ledger.acked);
        let archived = Server::cli(&["archive", "flush", "--url", &server.url]);
        assert!(archived.status.success(), "{}", String::from_utf8_lossy(&archived.stderr));
        assert_eq!(server.stop(), Some(0));
        Some(Self { server: Server::start(&data, SMALL), store, archive, _log: log })
    }

    /// Starts a replay of today in which each event is a series of its own, and later ones are too.
    fn start_replay(&self, dir: &Path) -> u64 {
        let rules = dir.join("rules.toml");
        let text = "[[rule]]\nname = \"number\"\nset_label = { label = \"number\", property = \
                    \"/number\" }\n";
        std::fs::write(&rules, text).expect("written");
        let rules = rules.display().to_string();
        let args = ["start", "--metric", "m", "--from", "2026-01-01", "--rules", &rules];
        replay(&self.server, &args)["id"].as_u64().expect("a number")
    }

    /// Ends the node, and checks its store and the rows of the replay against the records.
    fn verified(self) {
        let data = self.server.data.display().to_string();
        assert_eq!(self.server.stop(), Some(0));
        let verified = Server::cli(&["verify", "--json", "--data", &data]);
        let said =
            String::from_utf8_lossy(&[verified.stdout, verified.stderr].concat()).into_owned();
        assert_eq!(verified.status.code(), Some(0), "{said}");
        let report: serde_json::Value = serde_json::from_str(&said).expect("JSON");
        assert!(report["replays"][0]["rows"].as_u64() >= Some(2_000), "{report}");
    }
}

/// What ingest needs goes on; the replay waits, says why, and ends by itself when there is room.
#[test]
fn a_replay_waits_for_a_store_on_a_full_disk_and_ends_by_itself() {
    let (dir, mut ledger) = (tempfile::tempdir().expect("a directory"), Ledger::default());
    let Some(disks) = ReplayDisks::start(dir.path(), &mut ledger) else { return };
    // Without the objects it begins, and gets no further: the store has its cuts before the disk
    // is full.
    let hidden = disks.archive.0.join("hidden");
    std::fs::create_dir(&hidden).expect("a directory");
    let objects = std::fs::read_dir(&disks.archive.0).expect("a directory");
    let objects: Vec<PathBuf> = objects.map(|entry| entry.expect("an entry").path()).collect();
    let is_of_objects =
        |path: &PathBuf| !["hidden", "replays", "settled"].iter().any(|name| path.ends_with(name));
    let objects: Vec<PathBuf> = objects.into_iter().filter(is_of_objects).collect();
    assert!(!objects.is_empty());
    for path in &objects {
        std::fs::rename(path, hidden.join(path.file_name().expect("a name"))).expect("hidden");
    }
    let id = disks.start_replay(dir.path());
    wait_until("it waits for an object", || waits_for(&shown(&disks.server, id), ".parquet"));
    disks.store.fill();
    for path in &objects {
        std::fs::rename(hidden.join(path.file_name().expect("a name")), path).expect("back");
    }
    wait_until("it says that the disk is full", || waits_for(&shown(&disks.server, id), "full"));
    assert_eq!(shown(&disks.server, id)["progress"]["events"]["left"], 2_000);
    ledger.send_some(&disks.server);
    ledger.check_counted(&disks.server);
    disks.store.free();
    wait_until("it is ready", || shown(&disks.server, id)["state"] == "ready");
    replay(&disks.server, &["apply", &id.to_string()]);
    ledger.send_some(&disks.server);
    ledger.check_counted(&disks.server);
    disks.verified();
}

#[test]
fn a_replay_waits_for_an_archive_on_a_full_disk_and_ends_by_itself() {
    let (dir, mut ledger) = (tempfile::tempdir().expect("a directory"), Ledger::default());
    let Some(disks) = ReplayDisks::start(dir.path(), &mut ledger) else { return };
    disks.archive.fill();
    ledger.send_some(&disks.server);
    wait_until("they are in the store", || disks.server.accounted()[0] == ledger.acked);
    let id = disks.start_replay(dir.path());
    wait_until("all that is archived is counted", || {
        let replay = shown(&disks.server, id);
        let events = &replay["progress"]["events"];
        let counted = events["done"] == 2_000 && events["left"] == 0;
        counted && events["unarchived_records"].as_u64() > Some(0)
    });
    // What was read is committed before the fill tells that it waits, and the archiver looks for
    // what is due twice a second.
    wait_until("it says what it waits for", || {
        waits_for(&shown(&disks.server, id), "the archive has not reached offset")
    });
    wait_until("the log says why", || {
        log_of(&disks.server.data).contains("No space left on device")
    });
    disks.archive.free();
    wait_until("it is ready", || shown(&disks.server, id)["state"] == "ready");
    replay(&disks.server, &["apply", &id.to_string()]);
    ledger.check_counted(&disks.server);
    disks.verified();
}

/// Starts a node with few file descriptors. Both the soft and the hard limit are set, so that it
/// cannot raise its own.
fn with_descriptors(data: &Path, port: u16, limits: &str, env: &[(&str, &str)]) -> Server {
    let mut command = Command::new("sh");
    let serve = format!("ulimit {limits}; exec \"$@\"");
    command.args([
        "-c",
        &serve,
        "sh",
        env!("CARGO_BIN_EXE_rollmill"),
        "serve",
        "--listen",
        &format!("127.0.0.1:{port}"),
        "--data",
    ]);
    command.arg(data);
    std::env::vars().filter(|(name, _)| name.starts_with("ROLLMILL_")).for_each(|(name, _)| {
        command.env_remove(name);
    });
    command.envs(
        env.iter().map(|(k, v)| (format!("ROLLMILL_{}", k.replace('.', "_").to_uppercase()), v)),
    );
    Server::run(command, data, port)
}

#[test]
fn a_node_takes_the_descriptors_that_it_may_have_and_no_more_connections_than_they_are_enough_for()
{
    let dir = tempfile::tempdir().expect("a directory");
    let limit = |server: &Server| {
        let limits =
            std::fs::read_to_string(format!("/proc/{}/limits", server.pid())).expect("proc");
        limits.lines().find(|line| line.starts_with("Max open files")).expect("a limit").to_owned()
    };
    let mut server =
        with_descriptors(&dir.path().join("soft"), free_port(), "-Sn 256; ulimit -Hn 2048", SMALL);
    server.wait_ready("gateway");
    assert!(limit(&server).matches("2048").count() == 2, "{}", limit(&server));
    assert_eq!(server.stop(), Some(0));
    assert!(log_of(&dir.path().join("soft")).contains("server.max_connections is lowered"));

    // At least as many idle connections as there are descriptors: writes continue, and the log
    // grows across several segments.
    let data = dir.path().join("hard");
    let mut server = with_descriptors(&data, free_port(), "-n 256", SMALL);
    server.wait_ready("gateway");
    let log = log_of(&data);
    assert!(
        log.contains("server.max_connections is lowered") && log.contains("connections=156"),
        "{log}"
    );
    let mut ledger = Ledger::default();
    let address = server.url.trim_start_matches("http://").to_owned();
    // Opens its own connection before the idle ones, like a client that writes continuously.
    let (agent, url) = (agent(), format!("{}/v1/events", server.url));
    let write = |n: u64| {
        let noise: String = (0..90u64)
            .map(|i| {
                blake3::hash(&[n.to_le_bytes(), i.to_le_bytes()].concat()).to_hex().to_string()
            })
            .collect();
        let body = format!(r#"{{"metric":"m","id":"{n}","properties":"{noise}"}}"#);
        agent
            .post(&url)
            .header("content-type", "application/json")
            .send(body)
            .expect("an answer")
            .status()
            .as_u16()
    };
    ledger.acked += u64::from(write(0) == 202);
    let idle: Vec<_> =
        (0..400).filter_map(|_| std::net::TcpStream::connect(&address).ok()).collect();
    for n in 1..1_500 {
        let status = write(n);
        assert_eq!(status, 202, "write {n}");
        ledger.acked += 1;
    }
    drop(idle);
    ledger.check_counted(&server);
    server.kill();
    let mut server = with_descriptors(&data, free_port(), "-n 256", SMALL);
    server.wait_ready("shards");
    ledger.check_counted(&server);
    assert!(!log_of(&data).contains("the log stops"), "{}", log_of(&data));
}
