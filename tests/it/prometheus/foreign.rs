//! Servers of others that tests start.

use std::path::Path;
use std::process::{Child, Command, Stdio};

use crate::support::{agent, free_port, wait_until};

/// A server that ends with its test.
pub struct ForeignServer {
    pub child: Child,
    pub url: String,
}

impl Drop for ForeignServer {
    fn drop(&mut self) {
        // It may already have ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Starts Prometheus with this configuration; its data is in `tsdb` of the folder.
pub fn run_prometheus(prometheus: &str, dir: &Path, config: &str) -> ForeignServer {
    let file = dir.join("prometheus.yml");
    std::fs::write(&file, config).expect("written");
    let port = free_port();
    let child = Command::new(prometheus)
        .arg(format!("--config.file={}", file.display()))
        .arg(format!("--storage.tsdb.path={}", dir.join("tsdb").display()))
        .arg("--storage.tsdb.retention.time=100y")
        .arg(format!("--web.listen-address=127.0.0.1:{port}"))
        .arg("--log.level=error")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .expect("Prometheus runs");
    let found = ForeignServer { child, url: format!("http://127.0.0.1:{port}") };
    wait_until("Prometheus is ready", || {
        let ready = agent().get(format!("{}/-/ready", found.url)).call();
        ready.is_ok_and(|answer| answer.status() == 200)
    });
    found
}
