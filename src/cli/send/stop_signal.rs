//! SIGTERM, SIGINT and SIGHUP: the first one requests a clean stop, the second one exits at once.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Context;
use tokio::signal::unix::{SignalKind, signal};

/// Whether a signal has requested a stop.
#[derive(Debug, Clone, Default)]
pub(in crate::cli) struct StopSignal(Arc<AtomicBool>);

impl StopSignal {
    /// Installs the handlers, which run on a thread of their own.
    pub(in crate::cli) fn listen() -> anyhow::Result<Self> {
        let stop = Self::default();
        let requested = stop.0.clone();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .context("cannot listen for signals")?;
        let listen = move || {
            runtime.block_on(async {
                let kinds =
                    [SignalKind::terminate(), SignalKind::interrupt(), SignalKind::hangup()];
                let [term, int, hup] = kinds.map(signal);
                // Without handlers, a signal ends the process at once: the default action.
                let (Ok(mut term), Ok(mut int), Ok(mut hup)) = (term, int, hup) else { return };
                loop {
                    tokio::select! {
                        _ = term.recv() => {}
                        _ = int.recv() => {}
                        _ = hup.recv() => {}
                    }
                    if requested.swap(true, Ordering::SeqCst) {
                        // A second signal means that the user does not want to wait for the
                        // server's answer.
                        #[allow(clippy::disallowed_methods)]
                        std::process::exit(130);
                    }
                }
            });
        };
        std::thread::Builder::new()
            .name("signals".to_owned())
            .spawn(listen)
            .context("cannot start a thread")?;
        Ok(stop)
    }

    pub(in crate::cli) fn is_requested(&self) -> bool {
        self.0.load(Ordering::SeqCst)
    }
}
