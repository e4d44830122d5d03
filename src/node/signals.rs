//! The signals that a node handles.

use anyhow::Context;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinHandle;

use super::files::NodeFiles;

/// Completes at SIGTERM or SIGINT.
pub(super) async fn stop_signal() -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    tokio::select! {
        _ = terminate.recv() => Ok(()),
        interrupt = tokio::signal::ctrl_c() => interrupt.context("cannot listen for Ctrl-C"),
    }
}

/// Makes a file size limit (`ulimit -f`, `LimitFSIZE`) look like a full disk: without a handler,
/// SIGXFSZ would kill the process.
pub(super) fn outlive_file_limits() -> anyhow::Result<()> {
    // Tokio never uninstalls a handler, so the stream itself need not be kept.
    signal(SignalKind::from_raw(rustix::process::Signal::XFSZ.as_raw()))
        .map(drop)
        .context("cannot listen for SIGXFSZ")
}

/// Reloads the files of the configuration at each SIGHUP, the signal that operators and their tools
/// send for that.
/// Handling it also keeps the node running when its terminal is closed.
pub(super) fn reload_at_hangup(files: &NodeFiles) -> anyhow::Result<JoinHandle<()>> {
    let mut hangup = signal(SignalKind::hangup()).context("cannot listen for SIGHUP")?;
    let reloads = files.reloads();
    Ok(tokio::spawn(async move {
        while hangup.recv().await.is_some() {
            tracing::info!(
                "SIGHUP: the files of keys and of the mapping are read again; everything else in \
                 the configuration takes a restart"
            );
            reloads.iter().for_each(|reload| reload.notify_one());
        }
    }))
}
