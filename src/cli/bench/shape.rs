//! The shape of the events in a benchmark.

/// The shape of the events in a benchmark.
#[derive(Debug, Clone, Copy)]
pub(super) struct EventShape {
    /// Size of one event.
    pub(super) bytes: usize,
    /// Events per request.
    pub(super) batch: usize,
    /// Number of distinct series.
    pub(super) series: u64,
    /// Number of distinct users.
    pub(super) users: u64,
    /// Random number of the run, part of metric name and event ids.
    pub(super) run: u32,
}

impl EventShape {
    pub(super) fn metric(&self) -> String {
        format!("bench_{:08x}", self.run)
    }
}
