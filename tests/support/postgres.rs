//! A PostgreSQL server for the tests alone: created on first use, stopped when the process ends,
//! however it ends.
//!
//! PostgreSQL refuses to run as root; under root the server runs as the user `postgres`.
// Each test binary uses a part of this file. Waiting for servers takes real time.
#![allow(dead_code, clippy::disallowed_methods)]

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

#[allow(clippy::duplicate_mod)] // each copy hands out ports of its own range
#[path = "ports.rs"]
mod ports;

/// A server in its own directory.
pub struct Postgres {
    guard: Option<Child>,
    dir: PathBuf,
    pub port: u16,
}

/// Runs the server until standard input is closed, which happens when the test process ends, then
/// stops it and removes the directory. When it is to be killed, the postmaster is stopped first, so
/// that it starts no further process; a next server refuses to start while one of them is alive.
const GUARD: &str = r#"
"$BIN/postgres" -D "$DIR/data" -p "$PORT" -k "$DIR" >> "$DIR/log" 2>&1 &
read -r word
if [ "$word" = kill ]; then
  kill -STOP $!
  children=$(cat /proc/$!/task/$!/children)
  kill -KILL $! $children; wait $!
  for child in $children; do while [ -e /proc/$child/exe ]; do sleep 0.01; done; done
  exit
fi
kill -QUIT $!; wait $!; rm -rf "$DIR""#;

/// Small, quick to start, and durable.
const SETTINGS: &str = "listen_addresses = '127.0.0.1'\nmax_connections = 200\nshared_buffers = \
                        128MB\nmax_wal_size = 512MB\nlog_min_messages = \
                        fatal\nlog_min_error_statement = panic\nunix_socket_directories = ''\n";

/// The server shared by all tests of this process.
pub fn shared() -> &'static Postgres {
    static SERVER: OnceLock<Postgres> = OnceLock::new();
    SERVER.get_or_init(|| Postgres::start("shared"))
}

/// Dumps a whole database, as docs/how-to/backup-and-restore.md says.
pub fn dump(url: &str, file: &str) {
    tool("pg_dump", &["--format=custom", "--file", file, url]);
}

/// Restores a dump of [`dump`] into an empty database, as docs/how-to/backup-and-restore.md says.
pub fn restore(url: &str, file: &str) {
    let extension = tool(
        "psql",
        &[
            "-X",
            "-A",
            "-t",
            "-c",
            "SELECT count(*) FROM pg_extension WHERE extname = 'timescaledb'",
            url,
        ],
    );
    let around = |function: &str| {
        if extension.trim() == "1" {
            tool("psql", &["-X", "-c", &format!("SELECT {function}()"), url]);
        }
    };
    around("timescaledb_pre_restore");
    tool("pg_restore", &["--exit-on-error", "--dbname", url, file]);
    around("timescaledb_post_restore");
}

/// Runs one of PostgreSQL's tools and returns its output.
fn tool(program: &str, args: &[&str]) -> String {
    let run = Command::new(bin().join(program)).args(args).output().expect("it runs");
    assert!(run.status.success(), "{program}: {}", String::from_utf8_lossy(&run.stderr));
    String::from_utf8_lossy(&run.stdout).into_owned()
}

fn bin() -> PathBuf {
    if let Some(dir) = std::env::var_os("ROLLMILL_TEST_POSTGRES_BIN") {
        return PathBuf::from(dir);
    }
    let versions = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let mut found: Vec<PathBuf> = versions
        .map(|entry| entry.path().join("bin"))
        .filter(|dir| dir.join("initdb").exists())
        .collect();
    found.sort();
    found.pop().expect("PostgreSQL is missing: run scripts/install-test-tools")
}

/// A command that runs as a user PostgreSQL accepts.
fn command(program: &Path) -> Command {
    if rustix::process::geteuid().is_root() {
        let mut command = Command::new("runuser");
        command.args(["-u", "postgres", "--"]).arg(program);
        return command;
    }
    Command::new(program)
}

impl Postgres {
    /// Creates and starts a server.
    pub fn start(name: &str) -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let dir = std::env::temp_dir()
            .join(format!("rollmill-postgres-{}-{number}-{name}", std::process::id()));
        let made = command(Path::new("mkdir")).arg(&dir).status().expect("mkdir runs");
        assert!(made.success(), "cannot make {}", dir.display());
        let initdb = command(&bin().join("initdb"))
            .args([
                "--no-sync",
                "--auth=trust",
                "--username=postgres",
                "--encoding=UTF8",
                "--locale=C.UTF-8",
                "--pgdata",
            ])
            .arg(dir.join("data"))
            .current_dir("/")
            .output()
            .expect("initdb runs");
        assert!(initdb.status.success(), "initdb: {}", String::from_utf8_lossy(&initdb.stderr));
        let mut settings = std::fs::File::options()
            .append(true)
            .open(dir.join("data/postgresql.conf"))
            .expect("the settings");
        settings.write_all(SETTINGS.as_bytes()).expect("written");
        if let Ok(more) = std::env::var("ROLLMILL_TEST_POSTGRES_SETTINGS") {
            writeln!(settings, "{more}").expect("written");
        }
        let mut server = Self { guard: None, dir, port: ports::free(ports::POSTGRES) };
        server.run();
        server.renew_extension();
        server
    }

    /// Recreates the extension in template1 as users do. Objects created in single-user mode count
    /// as built in, and no dump contains them.
    fn renew_extension(&self) {
        let built_in = "SELECT 1 FROM pg_extension WHERE extname = 'timescaledb' AND oid < 16384";
        if self.psql("template1", built_in) == Ok("1".into()) {
            self.psql("template1", "DROP EXTENSION timescaledb").expect("dropped");
            self.psql("template1", "CREATE EXTENSION timescaledb").expect("made");
        }
    }

    /// Starts the server again after [`Self::kill`] and waits until it answers.
    pub fn run(&mut self) {
        let mut shell = command(Path::new("sh"));
        shell.args(["-c", GUARD]).current_dir("/");
        shell.env("BIN", bin()).env("DIR", &self.dir).env("PORT", self.port.to_string());
        let guard = shell
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("the server starts");
        self.guard = Some(guard);
        let deadline = Instant::now() + Duration::from_secs(180);
        while self.psql("postgres", "SELECT 1").is_err() {
            let log = || std::fs::read_to_string(self.dir.join("log")).unwrap_or_default();
            assert!(Instant::now() < deadline, "the server did not come up:\n{}", log());
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Kills the server with SIGKILL, like a power cut for its processes, then starts it again in
    /// the same directory on the same port.
    pub fn kill_and_restart(&mut self, down: Duration) {
        self.kill();
        std::thread::sleep(down);
        self.run();
    }

    /// Stops every process of the server with SIGSTOP, until [`Self::thaw`].
    pub fn freeze(&self) {
        self.signal("-STOP");
    }

    pub fn thaw(&self) {
        self.signal("-CONT");
    }

    fn signal(&self, signal: &str) {
        let postmaster = self.pid();
        let children =
            std::fs::read_to_string(format!("/proc/{postmaster}/task/{postmaster}/children"))
                .expect("its children");
        let mut pids: Vec<&str> = children.split_whitespace().collect();
        let own = postmaster.to_string();
        pids.insert(0, &own);
        for pid in pids {
            // A session may have ended since the processes were listed.
            let _ = Command::new("kill")
                .args([signal, pid])
                .stderr(Stdio::null())
                .status()
                .expect("kill runs");
        }
    }

    /// Kills the server with SIGKILL, for good.
    pub fn kill(&mut self) {
        if let Some(mut guard) = self.guard.take() {
            guard.stdin.take().expect("a pipe").write_all(b"kill\n").expect("the guard listens");
            guard.wait().expect("the guard ends");
        }
    }

    /// A standby that streams from this server and listens on `port`.
    pub fn standby(&self, port: u16) -> Self {
        let dir = PathBuf::from(format!("{}-standby", self.dir.display()));
        let made = command(Path::new("mkdir")).arg(&dir).status().expect("mkdir runs");
        assert!(made.success(), "cannot make {}", dir.display());
        let copied = command(&bin().join("pg_basebackup"))
            .args([
                "-h",
                "127.0.0.1",
                "-U",
                "postgres",
                "-c",
                "fast",
                "-R",
                "-p",
                &self.port.to_string(),
                "-D",
            ])
            .arg(dir.join("data"))
            .current_dir("/")
            .output()
            .expect("pg_basebackup runs");
        assert!(
            copied.status.success(),
            "pg_basebackup: {}",
            String::from_utf8_lossy(&copied.stderr)
        );
        let mut server = Self { guard: None, dir, port };
        server.run();
        server
    }

    /// Promotes a standby to primary and returns whether that succeeded.
    pub fn promote(&self) -> bool {
        self.psql("postgres", "SELECT pg_promote(true, 150)").expect("promoted") == "t"
    }

    /// Gives the server a certificate for 127.0.0.1 and turns on TLS. Returns the CA file to trust.
    pub fn turn_on_tls(&self) -> PathBuf {
        let (key, certificate) =
            (self.dir.join("data/server.key"), self.dir.join("data/server.crt"));
        let made = command(Path::new("openssl"))
            .args([
                "req",
                "-x509",
                "-newkey",
                "ec",
                "-pkeyopt",
                "ec_paramgen_curve:prime256v1",
                "-nodes",
                "-days",
                "2",
            ])
            .args(["-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"])
            .args(["-addext", "basicConstraints=critical,CA:FALSE", "-keyout"])
            .arg(key)
            .arg("-out")
            .arg(&certificate)
            .current_dir("/")
            .output()
            .expect("openssl is there: run scripts/install-test-tools");
        assert!(made.status.success(), "openssl: {}", String::from_utf8_lossy(&made.stderr));
        self.psql("postgres", "ALTER SYSTEM SET ssl = on").expect("set");
        self.psql("postgres", "SELECT pg_reload_conf()").expect("reloaded");
        let deadline = Instant::now() + Duration::from_secs(60);
        while self.psql("postgres", "SHOW ssl") != Ok("on".into()) {
            assert!(Instant::now() < deadline, "the server does not turn TLS on");
            std::thread::sleep(Duration::from_millis(20));
        }
        certificate
    }

    /// Runs statements as the superuser. Returns their unaligned output, or the server's error.
    pub fn psql(&self, database: &str, sql: &str) -> Result<String, String> {
        self.psql_as("postgres", database, sql)
    }

    /// Like [`Self::psql`], as another role.
    pub fn psql_as(&self, role: &str, database: &str, sql: &str) -> Result<String, String> {
        let run = Command::new(bin().join("psql"))
            .args(["-h", "127.0.0.1", "-p", &self.port.to_string(), "-U", role, "-d", database])
            .args(["-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-c", sql])
            .output()
            .expect("psql runs");
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).trim().to_owned();
        if run.status.success() { Ok(text(run.stdout)) } else { Err(text(run.stderr)) }
    }

    /// Runs the script that creates the roles, one test at a time: roles are server-wide, and two
    /// concurrent scripts might both find that none exist.
    pub fn make_roles(&self, database: &str, script: &str) {
        static ONE: Mutex<()> = Mutex::new(());
        // A failed test poisons the mutex, which says nothing about the next test.
        let _one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
        self.psql(database, script).expect("roles");
    }

    /// Copies a database, by dump and restore, into an empty one.
    pub fn copy(&self, from: &str, to: &str) {
        let file = self.dir.join(format!("{to}.dump")).display().to_string();
        dump(&self.url(from), &file);
        restore(&self.url(to), &file);
    }

    /// Creates an empty database with a unique name.
    pub fn database(&self) -> String {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let name =
            format!("test_{}_{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
        self.psql("postgres", &format!("CREATE DATABASE {name}")).expect("a database");
        name
    }

    /// The URL of a database, as the superuser.
    pub fn url(&self, database: &str) -> String {
        self.url_as("postgres", database)
    }

    /// The URL of a database, as `role`.
    pub fn url_as(&self, role: &str, database: &str) -> String {
        format!("postgres://{role}@127.0.0.1:{}/{database}", self.port)
    }

    /// The pid of the postmaster.
    pub fn pid(&self) -> i32 {
        let file = std::fs::read_to_string(self.dir.join("data/postmaster.pid"))
            .expect("a running server");
        file.lines().next().and_then(|line| line.parse().ok()).expect("a pid")
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        if let Some(mut guard) = self.guard.take() {
            drop(guard.stdin.take());
            // The guard stops the server with or without a waiting parent.
            let _ = guard.wait();
        } else {
            // After a kill, the guard has left the directory behind.
            let _ = command(Path::new("rm")).arg("-rf").arg(&self.dir).current_dir("/").status();
        }
    }
}
