//! The server under test: a child process with its own directory, and its usage by /proc.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, bail};

use super::client::HttpClient;

/// A child process that is killed at the end of the benchmark.
pub(super) struct BenchServer {
    child: Child,
    pub(super) address: SocketAddr,
    pub(super) data: PathBuf,
    temporary: bool,
}

impl BenchServer {
    /// Starts this binary on `data`, or on a temporary directory that is removed afterwards.
    /// `series` raises `query.max_series`, because the final count reads all of them.
    pub(super) async fn start(
        data: Option<&Path>,
        config: Option<&Path>,
        series: u64,
    ) -> anyhow::Result<Self> {
        let (data, temporary) = data
            .map_or_else(|| (temporary_directory("server"), true), |data| (data.to_owned(), false));
        let address = free_address()?;
        let mut command = Command::new(std::env::current_exe().context("cannot find this binary")?);
        command
            .args(["serve", "--listen", &address.to_string(), "--data"])
            .arg(&data)
            .stdout(Stdio::null());
        command.env("ROLLMILL_QUERY_MAX_SERIES", series.max(100_000).to_string());
        if let Some(config) = config {
            command.arg("--config").arg(config);
        }
        Self::launch(command, address, data, temporary, "/healthz").await
    }

    /// Starts a server; it is up once the path `alive` answers 200.
    pub(super) async fn launch(
        mut command: Command,
        address: SocketAddr,
        data: PathBuf,
        temporary: bool,
        alive: &str,
    ) -> anyhow::Result<Self> {
        let name = command.get_program().to_string_lossy().into_owned();
        let child =
            command.stdin(Stdio::null()).spawn().with_context(|| format!("cannot start {name}"))?;
        let mut server = Self { child, address, data, temporary };
        server.wait(alive).await?;
        Ok(server)
    }

    async fn wait(&mut self, alive: &str) -> anyhow::Result<()> {
        for _ in 0..1_000 {
            if let Ok(mut client) = HttpClient::connect(self.address, None).await
                && client.get(alive).await.is_ok_and(|(status, _)| status == 200)
            {
                return Ok(());
            }
            if let Some(status) = self.child.try_wait()? {
                bail!("the server ended with {status}");
            }
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
        bail!("the server did not come up within 10 s")
    }

    /// CPU seconds that the process has used so far.
    pub(super) fn cpu_seconds(&self) -> anyhow::Result<f64> {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id()))?;
        let fields: Vec<&str> =
            stat.rsplit_once(')').map_or("", |(_, rest)| rest).split_whitespace().collect();
        let ticks = |at: usize| {
            fields
                .get(at)
                .and_then(|text| text.parse::<f64>().ok())
                .context("cannot read /proc/PID/stat")
        };
        // Fields 14 and 15 of proc(5), user and system time, in hundredths of a second on Linux.
        Ok((ticks(11)? + ticks(12)?) / 100.0)
    }

    /// Peak resident memory, in bytes.
    pub(super) fn peak_memory(&self) -> anyhow::Result<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let line = status
            .lines()
            .find(|line| line.starts_with("VmHWM:"))
            .context("cannot read /proc/PID/status")?;
        let kilobytes: u64 = line
            .split_whitespace()
            .nth(1)
            .and_then(|text| text.parse().ok())
            .context("VmHWM is no number")?;
        Ok(kilobytes * 1024)
    }

    /// Disk usage of log, store and archive, in bytes.
    pub(super) fn disk(&self) -> anyhow::Result<[u64; 3]> {
        let store: u64 = ["store.sqlite", "store.sqlite-wal"]
            .iter()
            .map(|name| blocks(&self.data.join(name)))
            .sum::<Result<_, _>>()?;
        Ok([blocks(&self.data.join("log"))?, store, blocks(&self.data.join("archive"))?])
    }

    /// Disk usage of the whole data directory, in bytes.
    pub(super) fn disk_total(&self) -> anyhow::Result<u64> {
        blocks(&self.data)
    }
}

/// A loopback address that is free right now.
pub(super) fn free_address() -> anyhow::Result<SocketAddr> {
    Ok(std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?)
}

/// Path for a server's directory, unique to this process.
pub(super) fn temporary_directory(server: &str) -> PathBuf {
    std::env::temp_dir().join(format!("rollmill-bench-{}-{server}", std::process::id()))
}

fn blocks(path: &Path) -> anyhow::Result<u64> {
    use std::os::unix::fs::MetadataExt;
    let Ok(metadata) = std::fs::symlink_metadata(path) else { return Ok(0) };
    if !metadata.is_dir() {
        // Allocated blocks and not the length, which is larger for sparse files.
        return Ok(metadata.blocks() * 512);
    }
    let mut sum = 0;
    for entry in std::fs::read_dir(path)? {
        sum += blocks(&entry?.path())?;
    }
    Ok(sum)
}

impl Drop for BenchServer {
    fn drop(&mut self) {
        if let Err(error) = self.child.kill().and_then(|()| self.child.wait()) {
            eprintln!("rollmill: the benchmark's server could not be ended: {error}");
        }
        if self.temporary
            && let Err(error) = std::fs::remove_dir_all(&self.data)
        {
            eprintln!("rollmill: {} could not be removed: {error}", self.data.display());
        }
    }
}
