//! The load balancer that ships (`config/nginx.conf`), and what its clients see when an upstream is
//! frozen or unavailable.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rustix::process::Signal;

use super::{Cluster, FULL, PATIENCE};
use crate::load::{StopOnDrop, get};
use crate::support::{agent, free_port, wait_until};

/// Upper bound on the latency of a write: nginx gives up after 4 s, and the machine may be busy.
/// Without nginx's own limits it would be 20 to 60 s.
const STALL: Duration = Duration::from_secs(15);

/// nginx's limits for a write, and what they are for tests that freeze nothing.
const WRITE_LIMITS: [(&str, &str); 3] = [
    ("proxy_send_timeout 2s;", "proxy_send_timeout 40s;"),
    ("proxy_read_timeout 2s;", "proxy_read_timeout 40s;"),
    ("proxy_next_upstream_timeout 3s;", "proxy_next_upstream_timeout 45s;"),
];

/// The configuration of `make cluster`.
fn configuration() -> String {
    let file = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("config/nginx.conf");
    std::fs::read_to_string(file).expect("the configuration")
}

/// nginx with the configuration of `make cluster`.
pub struct Balancer {
    child: Child,
    pub url: String,
}

impl Balancer {
    pub fn start(cluster: &Cluster, dir: &Path) -> Self {
        Self::start_on(cluster, dir, configuration())
    }

    /// Like [`Self::start`], for tests that freeze nothing: a write that takes its time is then due
    /// to a slow machine, and no reason to leave a node out and to refuse the write.
    pub fn start_patient(cluster: &Cluster, dir: &Path) -> Self {
        let mut text = configuration();
        for (limit, patient) in WRITE_LIMITS {
            assert!(text.contains(limit), "nginx has no {limit:?} any more");
            text = text.replace(limit, patient);
        }
        Self::start_on(cluster, dir, text)
    }

    fn start_on(cluster: &Cluster, dir: &Path, mut text: String) -> Self {
        let port = free_port();
        std::fs::create_dir_all(dir).expect("a directory");
        let root = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
        text =
            text.replace("@DIR@", &dir.display().to_string()).replace("@FRONT@", &port.to_string());
        for at in 0..FULL {
            text = text.replace(&format!("@HTTP{}@", at + 1), &cluster.port(at).to_string());
        }
        if rustix::process::geteuid().is_root() {
            text.insert_str(0, "user root;\n");
        }
        let file = dir.join("nginx.conf");
        std::fs::write(&file, text).expect("written");
        let path = format!(
            "{}:/usr/sbin:{}",
            root.join("data-sets/tools/bin").display(),
            std::env::var("PATH").unwrap_or_default()
        );
        let mut command = Command::new("nginx");
        command
            .env("PATH", path)
            .arg("-p")
            .arg(dir)
            .arg("-c")
            .arg(&file)
            .arg("-e")
            .arg(dir.join("error.log"));
        command
            .args(["-g", "daemon off;"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let child = command.spawn().expect("nginx is there: `make tools` gets it");
        let balancer = Self { child, url: format!("http://127.0.0.1:{port}") };
        let deadline = Instant::now() + PATIENCE;
        while agent()
            .get(format!("{}/readyz", balancer.url))
            .call()
            .map_or(true, |answer| answer.status() != 200)
        {
            assert!(Instant::now() < deadline, "nginx did not come up");
            std::thread::sleep(Duration::from_millis(20));
        }
        balancer
    }
}

impl Drop for Balancer {
    fn drop(&mut self) {
        let pid = rustix::process::Pid::from_raw(self.child.id().cast_signed()).expect("a pid");
        // SIGTERM, not SIGKILL: only then does the master stop its workers too.
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        let _ = self.child.wait();
    }
}

/// Results of the writes in one phase.
#[derive(Default)]
struct WriteStats {
    acked: u64,
    /// Answers of 503 with `Retry-After`.
    refused: u64,
    slowest: Duration,
}

/// Sends one event after another, each until it is acknowledged. Every answer must be one that the
/// docs name.
fn write(front: &str, stats: &Mutex<WriteStats>, stop: &AtomicBool) -> u64 {
    let client: ureq::Agent = ureq::Agent::config_builder()
        .http_status_as_error(false)
        .timeout_global(Some(Duration::from_secs(90)))
        .build()
        .into();
    let mut sent = 0;
    while !stop.load(Ordering::SeqCst) {
        let body = format!(r#"{{"metric":"front","id":"{sent}"}}"#);
        let begun = Instant::now();
        let answer = client
            .post(format!("{front}/v1/events"))
            .header("content-type", "application/json")
            .send(&body);
        let mut answer = answer.expect("nginx itself is there");
        let (status, took) = (answer.status().as_u16(), begun.elapsed());
        let text = answer.body_mut().read_to_string().expect("a body");
        let mut stats = stats.lock().expect("no panic");
        stats.slowest = stats.slowest.max(took);
        match status {
            202 => {
                stats.acked += 1;
                sent += 1;
            }
            503 => {
                assert!(answer.headers().contains_key("retry-after"), "{text}");
                let code = serde_json::from_str::<serde_json::Value>(&text).expect("JSON")["error"]
                    ["code"]
                    .clone();
                assert!(
                    ["outcome_unknown", "overloaded", "log_closed", "starting"]
                        .iter()
                        .any(|known| code == *known),
                    "{text}"
                );
                stats.refused += 1;
            }
            other => panic!("{other}: {text}"),
        }
        drop(stats);
        std::thread::sleep(Duration::from_millis(20));
    }
    sent
}

#[test]
fn behind_the_balancer_no_write_stalls_whatever_is_frozen_or_away() {
    let mut cluster = Cluster::start(&[]);
    let balancer = Balancer::start(&cluster, &cluster.dir().join("nginx"));
    let (front, stats, stop, answered) = (
        balancer.url.clone(),
        Mutex::new(WriteStats::default()),
        AtomicBool::new(false),
        AtomicU64::new(0),
    );
    let mut sent = 0;
    std::thread::scope(|scope| {
        let (front, stats, stop, answered) = (&front, &stats, &stop, &answered);
        let stops = StopOnDrop(stop);
        let writer = scope.spawn(move || write(front, stats, stop));
        scope.spawn(move || {
            // Failing queries must not take a node out of the upstream for writes.
            while !stop.load(Ordering::SeqCst) {
                let answer = get(&agent(), &format!("{front}/v1/query?metric=front&step=all"));
                answered.fetch_add(
                    u64::from(answer.is_some_and(|(status, _)| status == 200)),
                    Ordering::SeqCst,
                );
                std::thread::sleep(Duration::from_millis(100));
            }
        });
        // Not for a fixed time: a slow machine writes few events in it.
        let await_acked = |more: u64| {
            wait_until("writes go on", || stats.lock().expect("no panic").acked > more);
        };
        // The first write has to wait until its node knows the brokers.
        await_acked(0);
        let mut phase = |what: &str, trouble: &mut dyn FnMut(&mut Cluster)| {
            *stats.lock().expect("no panic") = WriteStats::default();
            trouble(&mut cluster);
            let stats = std::mem::take(&mut *stats.lock().expect("no panic"));
            println!(
                "{what}: {} writes acknowledged, {} answered 503, the slowest after {:.1?}",
                stats.acked, stats.refused, stats.slowest
            );
            assert!(stats.slowest < STALL, "{what}: a write took {:.1?}", stats.slowest);
            stats
        };
        let pause = |seconds| std::thread::sleep(Duration::from_secs(seconds));
        let calm = phase("nothing", &mut |_| {
            pause(2);
            await_acked(0);
        });
        assert!(calm.refused == 0 && calm.acked > 0);
        let without_store = phase("PostgreSQL away", &mut |cluster| {
            cluster.postgres.kill();
            pause(4);
            await_acked(10);
            cluster.postgres.run();
        });
        assert!(without_store.refused == 0 && without_store.acked > 10, "writes need no store");
        let frozen = phase("a node frozen", &mut |cluster| {
            cluster.signal(0, Signal::STOP);
            pause(12);
            await_acked(20);
            cluster.signal(0, Signal::CONT);
        });
        assert!(frozen.refused == 0 && frozen.acked > 20, "the others take them");
        let broker = phase("the broker frozen", &mut |cluster| {
            cluster.kafka.signal(1, Signal::STOP);
            pause(8);
            cluster.kafka.signal(1, Signal::CONT);
            pause(4);
        });
        assert!(broker.refused > 0, "nothing can be acknowledged without a broker");
        phase("afterwards", &mut |cluster| (0..FULL).for_each(|at| cluster.await_ready(at)));
        drop(stops);
        sent = writer.join().expect("a write met what no document names, see above");
    });
    assert!(answered.load(Ordering::SeqCst) > 0);
    // Every event was acknowledged in the end, some after several attempts, and counts once.
    let deadline = Instant::now() + PATIENCE;
    let counted = || {
        get(&agent(), &format!("{front}/v1/query?metric=front&step=all")).map(|(_, answer)| answer)
    };
    loop {
        let answer = counted().unwrap_or_default();
        let count = answer["series"][0]["points"]
            .as_array()
            .map_or(0, |points| points.iter().filter_map(|p| p["count"].as_u64()).sum());
        if answer["completeness"]["partial"] == false && count == sent {
            break;
        }
        assert!(
            count <= sent && Instant::now() < deadline,
            "{count} counted, {sent} acknowledged: {answer}"
        );
        std::thread::sleep(Duration::from_millis(200));
    }
}
