//! Starts VictoriaMetrics, as packaged by Debian, for one comparison on a temporary directory.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, bail};

use super::client::HttpClient;
use super::server::{BenchServer, free_address, temporary_directory};

const BINARY: &str = "victoria-metrics";

/// The binary given by `--victoria-binary`, or the one in `PATH`. Fails if there is none; the
/// message names Debian's package.
pub(super) fn binary(named: Option<&Path>) -> anyhow::Result<PathBuf> {
    find(named, &std::env::var_os("PATH").unwrap_or_default())
}

fn find(named: Option<&Path>, path: &std::ffi::OsStr) -> anyhow::Result<PathBuf> {
    let way_out =
        "install Debian's package victoria-metrics, or name its binary with --victoria-binary";
    if let Some(named) = named {
        return if named.is_file() {
            Ok(named.to_owned())
        } else {
            bail!("there is no {}: {way_out}", named.display())
        };
    }
    let found = std::env::split_paths(path)
        .map(|dir| dir.join(BINARY))
        .find(|candidate| candidate.is_file());
    found.with_context(|| format!("{BINARY} is not in PATH: {way_out}"))
}

/// Starts the server with default settings, on loopback and a temporary directory. Fails if it does
/// not start and answer within ten seconds.
pub(super) async fn start(binary: &Path, name: &str) -> anyhow::Result<BenchServer> {
    let (address, data) = (free_address()?, temporary_directory(name));
    let mut command = Command::new(binary);
    command
        .arg(format!("-storageDataPath={}", data.display()))
        .arg(format!("-httpListenAddr={address}"));
    // Otherwise metrics of the Influx protocol would get a suffix, and differ from those of the
    // import.
    command.args(["-influxSkipSingleField", "-loggerLevel=ERROR"]).stdout(Stdio::null());
    BenchServer::launch(command, address, data, true, "/health").await
}

/// Makes all ingested data visible to queries, and writes it to disk. Fails if the server
/// answers with an error.
pub(super) async fn flush(server: &BenchServer) -> anyhow::Result<()> {
    let (status, answer) =
        HttpClient::connect(server.address, None).await?.get("/internal/force_flush").await?;
    if status != 200 {
        bail!("{BINARY} refused to flush: {status}: {}", String::from_utf8_lossy(&answer));
    }
    Ok(())
}

/// The version that the binary prints. Debian's build prints none; then its path is used. Fails if
/// the binary cannot be run.
pub(super) fn version(binary: &Path) -> anyhow::Result<String> {
    let output = Command::new(binary)
        .arg("-version")
        .output()
        .with_context(|| format!("cannot run {}", binary.display()))?;
    let version = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    Ok(if version.is_empty() { binary.display().to_string() } else { version })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_binary_names_the_package() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().as_os_str();
        let missing = find(None, path).unwrap_err().to_string();
        assert!(
            missing.contains("package victoria-metrics") && missing.contains("--victoria-binary"),
            "{missing}"
        );
        let named = dir.path().join(BINARY);
        let missing = find(Some(&named), path).unwrap_err().to_string();
        assert!(
            missing.contains(&named.display().to_string())
                && missing.contains("package victoria-metrics"),
            "{missing}"
        );
        std::fs::write(&named, "").unwrap();
        assert_eq!(find(None, path).unwrap(), named);
        assert_eq!(find(Some(&named), std::ffi::OsStr::new("")).unwrap(), named);
    }
}
