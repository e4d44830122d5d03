//! The real binary with its archive on S3, hot and cold, through an outage.

use std::path::Path;
use std::time::{Duration, Instant};

use crate::s3::{ACCESS_KEY, BUCKET, S3Server, SECRET_KEY};
use crate::support::{PATIENCE, Server};

struct Case {
    dir: tempfile::TempDir,
    storage: S3Server,
}

impl Case {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let storage = S3Server::start(&dir.path().join("s3"));
        let keys = format!(
            "[default]\naws_access_key_id = {ACCESS_KEY}\naws_secret_access_key = {SECRET_KEY}\n"
        );
        std::fs::write(dir.path().join("credentials"), keys).expect("credentials");
        std::fs::write(dir.path().join("rollmill.toml"), Self::config(dir.path(), &storage))
            .expect("configuration");
        Self { dir, storage }
    }

    /// The configuration of the server and of the other commands.
    fn config(dir: &Path, storage: &S3Server) -> String {
        format!(
            "archive.url = \"s3://{BUCKET}/hot\"\narchive.cold_url = \
             \"s3://{BUCKET}/cold\"\narchive.endpoint = \"{}\"\narchive.credentials_file = \
             \"{}\"\narchive.timeout = \"2s\"\narchive.max_delay = \"100ms\"\narchive.cold_after \
             = \"1s\"\narchive.keep = \"0\"\nflush.interval = \"100ms\"\nshards.count = 4\n",
            storage.endpoint,
            dir.join("credentials").display()
        )
    }

    fn start(&self) -> Server {
        let (data, port) = (self.dir.path().join("data"), crate::support::free_port());
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_rollmill"));
        std::env::vars().filter(|(name, _)| name.starts_with("ROLLMILL_")).for_each(|(name, _)| {
            command.env_remove(name);
        });
        command.arg("serve").arg("--config").arg(self.dir.path().join("rollmill.toml"));
        command.args(["--listen", &format!("127.0.0.1:{port}"), "--data"]).arg(&data);
        let mut server = Server::run(command, &data, port);
        server.wait_ready("gateway");
        server
    }

    fn cli(&self, command: &[&str]) -> (bool, String) {
        let (data, config) = (self.dir.path().join("data"), self.dir.path().join("rollmill.toml"));
        let (data, config) = (data.display().to_string(), config.display().to_string());
        let output =
            Server::cli(&[command, &["--json", "--data", &data, "--config", &config]].concat());
        let text = format!(
            "{}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
        (output.status.success(), text)
    }

    fn objects(&self) -> Vec<serde_json::Value> {
        let (ok, text) = self.cli(&["archive", "ls"]);
        assert!(ok, "{text}");
        serde_json::from_str(&text).expect("JSON")
    }

    fn wait(&self, what: &str, done: impl Fn(&[serde_json::Value]) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !done(&self.objects()) {
            assert!(Instant::now() < deadline, "{what}: {:?}", self.objects());
            std::thread::sleep(Duration::from_millis(100));
        }
    }
}

fn send(server: &Server, from: u64, to: u64) {
    let event = |n: u64| {
        format!(
            r#"{{"metric":"sales","value":"{n}.5","labels":{{"country":"c{}"}},"id":"{n}"}}"#,
            n % 9
        )
    };
    let body: Vec<String> = (from..to).map(event).collect();
    assert_eq!(server.post(&format!("[{}]", body.join(","))).0, 202);
}

fn events(objects: &[serde_json::Value]) -> u64 {
    objects.iter().map(|object| object["events"].as_u64().expect("events")).sum()
}

#[test]
fn the_archive_on_s3_moves_to_the_cold_store_and_verifies_through_an_outage_and_a_kill() {
    let case = Case::new();
    let server = case.start();
    send(&server, 0, 500);
    case.wait("archived", |objects| events(objects) == 500);
    // While the storage is down, writes and queries continue, and the log retains what cannot be
    // archived.
    case.storage.set_down(true);
    send(&server, 500, 1_000);
    let count =
        |n: u64| move |answer: &serde_json::Value| answer["series"][0]["points"][0]["count"] == n;
    server.await_query("/v1/query?metric=sales&step=all", count(1_000));
    assert!(events(&case.objects()) < 1_000);
    let log = || {
        std::fs::read_to_string(case.dir.path().join("data.server.log")).expect("the server's log")
    };
    let deadline = Instant::now() + PATIENCE;
    while !log().contains("archiving failed") {
        assert!(Instant::now() < deadline, "nothing failed: {}", log());
        std::thread::sleep(Duration::from_millis(50));
    }
    server.kill();
    let server = case.start();
    send(&server, 1_000, 1_100);
    server.await_query("/v1/query?metric=sales&step=all", count(1_100));
    case.storage.set_down(false);
    case.storage.set_faults(469, 100);
    case.wait("archived after the outage", |objects| events(objects) == 1_100);
    case.wait("moved", |objects| objects.iter().all(|object| object["tier"] == "cold"));
    case.storage.set_faults(469, 0);
    assert!(!case.storage.injected_faults().is_empty());
    for object in case.objects() {
        let path = object["path"].as_str().expect("path");
        let size = std::fs::metadata(case.storage.file(&format!("cold/{path}")))
            .expect("it is in the cold store")
            .len();
        assert_eq!(size, object["bytes"].as_u64().expect("bytes"));
    }
    let (ok, verified) = case.cli(&["verify"]);
    assert!(
        ok && verified.contains("\"equal\":true") && verified.contains("\"not_verifiable\":null"),
        "{verified}"
    );
    assert_eq!(server.stop(), Some(0));
    assert!(!log().contains(SECRET_KEY), "{}", log());
}
