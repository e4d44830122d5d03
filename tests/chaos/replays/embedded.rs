//! Replays of one node that is killed all the time. `ROLLMILL_CHAOS_REPLAY_KILLS` sets how often
//! (default 100).

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rollmill::node::DataDir;
use rollmill::persistence::store::sqlite::SqliteStore;

use super::{Drill, Faults, Phase, World, reader, rows, rows_of};
use crate::ledger::{Ledger, METRICS};
use crate::load::{ReadStats, StopOnDrop, accounting, slow_client};
use crate::rng::Rng;
use crate::support::{Server, agent, free_port, wait_until};
use crate::{alone, now, number};

/// Few, so that most of the two processors is left for replays.
const CLIENTS: u64 = 2;
const SETTINGS: [(&str, &str); 6] = [
    ("flush.interval", "200ms"),
    ("archive.max_delay", "1s"),
    ("log.segment_bytes", "1MiB"),
    ("shards.count", "4"),
    // Rows that leave stay for so long.
    ("query.timeout", "3s"),
    ("query.deadline", "3s"),
];

struct OneNode {
    data: PathBuf,
    port: u16,
    server: Option<Server>,
    /// What was moved away, and where it belongs.
    hidden: Vec<PathBuf>,
}

impl OneNode {
    fn start(data: &Path, port: u16) -> Self {
        let server = Server::start_on(data, port, &SETTINGS);
        Self { data: data.to_owned(), port, server: Some(server), hidden: Vec::new() }
    }

    fn spawn(&self) -> Server {
        Server::spawn(&self.data, self.port, &SETTINGS)
    }

    fn archive(&self) -> PathBuf {
        DataDir::new(&self.data).archive()
    }

    fn hide(&mut self, path: PathBuf) {
        std::fs::rename(&path, away(&path)).expect("moved away");
        self.hidden.push(path);
    }
}

fn away(path: &Path) -> PathBuf {
    let mut name = path.file_name().expect("a name").to_owned();
    name.push(".away");
    path.with_file_name(name)
}

/// The first object of each folder that has any.
fn first_objects(dir: &Path, found: &mut Vec<PathBuf>) {
    let entries =
        std::fs::read_dir(dir).expect("a folder").map(|entry| entry.expect("entry").path());
    let (folders, mut files): (Vec<_>, Vec<_>) = entries.partition(|path| path.is_dir());
    files.retain(|path| path.extension().is_some_and(|extension| extension == "parquet"));
    found.extend(files.into_iter().min());
    folders.iter().for_each(|folder| first_objects(folder, found));
}

impl Faults for OneNode {
    fn strike(&mut self, rng: &mut Rng) {
        self.server.take().expect("it runs").kill();
        if rng.chance(15) {
            let starting = self.spawn();
            std::thread::sleep(Duration::from_millis(rng.below(80)));
            starting.kill();
        }
        let mut server = self.spawn();
        server.wait_alive();
        self.server = Some(server);
    }

    fn storage_away(&mut self, rng: &mut Rng) -> bool {
        let archive = self.archive();
        if rng.chance(50) {
            self.hide(archive.clone());
            // In its place, so that nobody makes a new one.
            std::fs::write(archive, "no folder").expect("written");
            return false;
        }
        let mut objects = Vec::new();
        first_objects(&archive, &mut objects);
        assert!(!objects.is_empty(), "nothing is archived");
        objects.into_iter().for_each(|object| self.hide(object));
        true
    }

    fn storage_back(&mut self) {
        for path in std::mem::take(&mut self.hidden) {
            if path.is_file() {
                std::fs::remove_file(&path).expect("removed");
            }
            std::fs::rename(away(&path), path).expect("moved back");
        }
    }

    fn is_deleting(&self) -> Option<bool> {
        let url = &self.server.as_ref().expect("it runs").url;
        let text = agent().get(format!("{url}/metrics")).call().ok()?.body_mut().read_to_string();
        let line = "rollmill_replay_rows_deleted_total ";
        let deleted = text.ok()?.lines().find_map(|found| found.strip_prefix(line)?.parse().ok());
        Some(deleted.is_some_and(|rows: f64| rows > 0.0))
    }

    fn log_lines(&self, words: &str) -> Vec<String> {
        let log = std::fs::read_to_string(self.data.with_extension("server.log"));
        let log = log.expect("the server's log");
        log.lines().filter(|line| line.contains(words)).map(str::to_owned).collect()
    }
}

fn store(data: &Path) -> Arc<SqliteStore> {
    SqliteStore::open_read_only(DataDir::new(data).store()).expect("the store")
}

fn verify(data: &Path) -> String {
    let verified = Server::cli(&["verify", "--data", &data.display().to_string()]);
    let verdict = String::from_utf8_lossy(&verified.stdout).into_owned();
    assert!(verified.status.success(), "{verdict} {}", String::from_utf8_lossy(&verified.stderr));
    verdict
}

#[test]
fn replays_of_a_node_that_is_killed_all_the_time_are_whole_or_not_there() {
    let (seed, kills) =
        (number("ROLLMILL_CHAOS_SEED", now() as u64), number("ROLLMILL_CHAOS_REPLAY_KILLS", 100));
    println!("ROLLMILL_CHAOS_SEED={seed} ROLLMILL_CHAOS_REPLAY_KILLS={kills}");
    let _alone = alone();
    let dir = tempfile::tempdir().expect("a directory");
    let (data, port) = (dir.path().join("data"), free_port());
    let urls = [format!("http://127.0.0.1:{port}")];
    let (ledger, stats, stop) = (Ledger::default(), ReadStats::default(), AtomicBool::new(false));
    let (world, begun) = (World::new(&urls, &ledger), Instant::now());
    let mut drill = Drill::new(&world, OneNode::start(&data, port), seed);
    let mut last = 0;
    std::thread::scope(|scope| {
        let (ledger, stats, stop, urls, world) = (&ledger, &stats, &stop, &urls, &world);
        let stops = StopOnDrop(stop);
        let mut threads: Vec<_> = (0..CLIENTS)
            .map(|n| scope.spawn(move || slow_client(n, seed, urls, ledger, stop)))
            .collect();
        threads.push(scope.spawn(move || reader(world, seed, stop, stats)));
        wait_until("all metrics are stored and archived", || {
            let mut objects = Vec::new();
            first_objects(&DataDir::new(&data).archive(), &mut objects);
            !objects.is_empty() && (0..METRICS).all(|metric| rows_of(&*store(&data), 0, metric) > 0)
        });
        for number in 0.. {
            drill.lifecycle(number);
            println!(
                "replay {number} after {:.0?}: {} acknowledged, kills {:?}",
                begun.elapsed(),
                ledger.acked_total(),
                drill.kills
            );
            let failed = threads.iter().any(|thread| thread.is_finished());
            assert!(!failed, "a client or the reader failed, see above");
            if drill.killed() >= kills {
                break;
            }
        }
        last = drill.leave_applied();
        drop(stops);
        let failed = threads.into_iter().map(|thread| thread.join()).filter(Result::is_err).count();
        assert_eq!(failed, 0, "a client or the reader failed, see above");
    });
    world.check();
    let accounted = accounting(&urls);
    assert_eq!((accounted[0], accounted[2]), (ledger.acked_total(), 0), "aggregated, quarantined");
    assert_eq!(drill.faults.server.take().expect("it runs").stop(), Some(0));
    assert!(rows(&*store(&data), 1..=last) > 0, "the last one has rows");
    assert_eq!(rows(&*store(&data), 1..last), 0, "rows of what was cancelled");
    let applied = verify(&data);
    drill.faults.server = Some(Server::start_on(&data, port, &SETTINGS));
    drill.take_back(last);
    world.check();
    assert_eq!(drill.faults.server.take().expect("it runs").stop(), Some(0));
    assert_eq!(rows(&*store(&data), 1..=last), 0, "rows of what was cancelled");
    let undone = verify(&data);
    println!(
        "{} kills {:?} ({} while rows were deleted) in {:.0?}: {} replays started, {} of them \
         without storage, {} applies; {} events acknowledged, 0 lost, \
         0 double, {} duplicates dropped; queries {} complete, {} partial, {} unanswered, 0 mixed\n\
         {applied}{undone}",
        drill.killed(),
        drill.kills,
        drill.killed_deleting,
        begun.elapsed(),
        drill.started,
        drill.storage_was_away,
        drill.applied,
        ledger.acked_total(),
        accounted[1],
        stats.complete.load(Ordering::SeqCst),
        stats.partial.load(Ordering::SeqCst),
        stats.unanswered.load(Ordering::SeqCst),
    );
    assert_eq!(drill.faults.log_lines("invariant violated"), Vec::<String>::new());
    assert_eq!(drill.faults.log_lines("panicked"), Vec::<String>::new(), "in the server");
    assert!(stats.complete.load(Ordering::SeqCst) > 0, "no query was complete");
    let phases = [Phase::Adopt, Phase::Fill, Phase::Ready, Phase::Apply, Phase::Undo, Phase::Drop];
    assert!(kills < 50 || phases.iter().all(|phase| drill.kills.contains_key(phase)));
}
