//! The server's own log, on standard error.
//!
//! Invariants: a log record is one line, whatever a client put into its fields, so that no client
//! can forge records or move a terminal's cursor. A panic is a log record, too. Logging never ends
//! a node or blocks it: a record that cannot be written, because the disk is full or the reader is
//! gone or stalled, is dropped and counted.

use std::io::{IsTerminal, Write};
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::telemetry;

/// Largest write that a pipe takes without blocking once it is writable (PIPE_BUF).
const AT_ONCE: usize = 4096;
/// How long to wait for a stalled reader. After one timeout there is no more waiting
/// until it reads again.
const PATIENCE: Timespec = Timespec { tv_sec: 0, tv_nsec: 100_000_000 };
const NO_PATIENCE: Timespec = Timespec { tv_sec: 0, tv_nsec: 0 };

/// Starts logging at a quiet default: warnings of dependencies, and the node's own messages.
/// `ractor_cluster` logs errors only, because the mesh reports its sessions itself, once.
/// `ROLLMILL_LOG` overrides the filter with tracing directives.
pub(super) fn start(json: bool) {
    start_with("warn,rollmill=info,ractor_cluster=error", json);
}

/// Starts logging warnings only, for commands that run parts of a node but print their own result.
pub(super) fn start_quietly() {
    start_with("warn,ractor_cluster=error", false);
}

fn start_with(default: &str, json: bool) {
    let filter = std::env::var("ROLLMILL_LOG").unwrap_or_else(|_| default.to_owned());
    let filter = tracing_subscriber::EnvFilter::new(filter);
    let records = tracing_subscriber::fmt().with_env_filter(filter);
    if json {
        records.json().with_writer(|| OneLine(LogWriter)).init();
    } else if std::io::stderr().is_terminal() {
        // Colour codes are control characters, which `OneLine` would escape. The fields are safe:
        // tracing escapes them itself.
        records.with_writer(|| LogWriter).init();
    } else {
        records.with_ansi(false).with_writer(|| OneLine(LogWriter)).init();
    }
    log_panics();
}

/// Writes to standard error, and never fails: records that cannot be written are counted as lost.
struct LogWriter;

impl Write for LogWriter {
    fn write(&mut self, record: &[u8]) -> std::io::Result<usize> {
        if !write_record(record) {
            metrics::counter!(telemetry::LOG_RECORDS_LOST).increment(1);
        }
        Ok(record.len())
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

fn write_record(record: &[u8]) -> bool {
    static STALLED: AtomicBool = AtomicBool::new(false);
    // Held for all chunks, so that records of other threads do not come in between.
    let mut stderr = std::io::stderr().lock();
    record.chunks(AT_ONCE).all(|part| {
        let patience = if STALLED.load(Ordering::Relaxed) { NO_PATIENCE } else { PATIENCE };
        // Only pipes, terminals and sockets can be unready; a file always is ready.
        let is_ready = poll(&mut [PollFd::new(&stderr, PollFlags::OUT)], Some(&patience))
            .is_ok_and(|ready| ready > 0);
        STALLED.store(!is_ready, Ordering::Relaxed);
        is_ready && stderr.write_all(part).is_ok()
    })
}

fn log_panics() {
    // The default hook writes several lines, which are not log records.
    std::panic::set_hook(Box::new(|panic| {
        let at = panic.location().map(ToString::to_string).unwrap_or_default();
        tracing::error!(at, why = panic.payload_as_str().unwrap_or("no text"), "a thread panicked");
    }));
}

/// Escapes control characters in each record. JSON leaves those above U+007F as they are, so they
/// are escaped here as well. Tracing writes each record in one call.
struct OneLine<W>(W);

impl<W: Write> Write for OneLine<W> {
    fn write(&mut self, record: &[u8]) -> std::io::Result<usize> {
        let text = String::from_utf8_lossy(record);
        let mut line = String::with_capacity(text.len());
        for c in text.trim_end_matches('\n').chars() {
            match c {
                '\n' => line.push_str("\\n"),
                '\r' => line.push_str("\\r"),
                '\t' => line.push_str("\\t"),
                c if c.is_control() => line.push_str(&format!("\\u{:04x}", u32::from(c))),
                c => line.push(c),
            }
        }
        line.push('\n');
        self.0.write_all(line.as_bytes()).map(|()| record.len())
    }
    fn flush(&mut self) -> std::io::Result<()> {
        self.0.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_stays_one_line() {
        let mut out = OneLine(Vec::new());
        out.write_all("INFO said: a\r\n2026 INFO forged \u{1b}[2J\u{9b}x\tä\n".as_bytes())
            .expect("written");
        assert_eq!(
            String::from_utf8(out.0).expect("text"),
            "INFO said: a\\r\\n2026 INFO forged \\u001b[2J\\u009bx\\tä\n"
        );
    }
}
