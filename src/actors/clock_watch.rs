//! Watches the machine's clocks and reports leaps of the wall clock. Nothing depends on it, because
//! everything that waits measures elapsed time.

use std::sync::Arc;
use std::time::Duration;

use crate::clock::Clock;
use crate::telemetry;

/// Interval between two readings.
const EVERY: Duration = Duration::from_secs(5);

/// Runs until the task is aborted.
pub async fn run(clock: Arc<dyn Clock>) {
    let mut before = clock.reading();
    loop {
        tokio::time::sleep(EVERY).await;
        let now = clock.reading();
        if let Some(by_ms) = now.leap_since(&before) {
            let direction = if by_ms > 0 { "forward" } else { "back" };
            metrics::counter!(telemetry::CLOCK_LEAPS, "direction" => direction).increment(1);
            tracing::warn!(
                seconds = by_ms / 1_000,
                "the wall clock leapt {direction}: events are received under the new time, and \
                 nothing is removed because of it"
            );
        }
        before = now;
    }
}
