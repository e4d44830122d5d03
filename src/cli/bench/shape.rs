//! What the events of a benchmark look like.

/// What the events look like.
#[derive(Debug, Clone, Copy)]
pub(super) struct EventShape {
    /// Bytes of one event.
    pub(super) bytes: usize,
    /// Events of one request.
    pub(super) batch: usize,
    /// Different series.
    pub(super) series: u64,
    /// Different users.
    pub(super) users: u64,
    /// Which run: part of metric name and ids.
    pub(super) run: u32,
}

impl EventShape {
    pub(super) fn metric(&self) -> String {
        format!("bench_{:08x}", self.run)
    }
}
