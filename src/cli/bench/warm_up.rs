//! Warm-up: creates all series before the measurement, so that it measures load and not the
//! admission of new series.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use anyhow::bail;

use super::load::{self, LoadConnection, LoadTarget};
use super::server::BenchServer;
use super::shape::EventShape;
use crate::clock::{Clock, Stopwatch, SystemClock};

/// Events per request of the warm-up.
const BATCH: u64 = 1_000;
/// A server that uses fewer cores than this has finished its background work.
const IDLE_CORES: f64 = 0.05;
/// Longer than the flush interval: an earlier pause may only lie between two flushes.
const MIN_IDLE_WAIT: Duration = Duration::from_secs(15);
/// Longest wait for the server to become idle, in seconds.
const MAX_IDLE_WAIT: u32 = 600;

/// Sends one event of each series, and waits until they are counted and a server of our own is
/// idle. Returns series per second.
pub(super) async fn each_series(
    target: &LoadTarget,
    shape: &EventShape,
    connections: u32,
    server: Option<&BenchServer>,
) -> anyhow::Result<f64> {
    let bar =
        indicatif::ProgressBar::new(shape.series).with_style(super::super::bar_style("series"));
    let (watch, next) = (Stopwatch::start(), Rc::new(Cell::new(0)));
    let tasks = tokio::task::LocalSet::new();
    let mut handles = Vec::new();
    for _ in 0..connections {
        handles.push(tasks.spawn_local(send(
            target.open().await?,
            *shape,
            next.clone(),
            bar.clone(),
        )));
    }
    for ended in tasks.run_until(futures::future::join_all(handles)).await {
        ended??;
    }
    bar.finish_and_clear();
    let seconds = watch.elapsed().as_secs_f64();
    let counted = load::count_of(target, shape, shape.series).await?;
    if counted != shape.series {
        bail!("{} series were sent one event each, {counted} are counted", shape.series);
    }
    if let Some(server) = server {
        await_idle(server).await?;
    }
    Ok(shape.series as f64 / seconds)
}

async fn send(
    mut line: LoadConnection,
    shape: EventShape,
    next: Rc<Cell<u64>>,
    bar: indicatif::ProgressBar,
) -> anyhow::Result<()> {
    while next.get() < shape.series {
        let first = next.get();
        let batch = BATCH.min(shape.series - first);
        // Reserved before the send: other connections must not send the same series.
        next.set(first + batch);
        let shape = EventShape { batch: batch as usize, ..shape };
        let mut body = line.body(&shape);
        body.patch(&shape, first, SystemClock.now());
        body.one_of_each_series(&shape, first);
        line.send(&body.bytes).await?;
        bar.inc(batch);
    }
    Ok(())
}

async fn await_idle(server: &BenchServer) -> anyhow::Result<()> {
    tokio::time::sleep(MIN_IDLE_WAIT).await;
    for _ in 0..MAX_IDLE_WAIT {
        let before = server.cpu_seconds()?;
        tokio::time::sleep(Duration::from_secs(1)).await;
        if server.cpu_seconds()? - before < IDLE_CORES {
            return Ok(());
        }
    }
    bail!(
        "the server has not come to rest within {MAX_IDLE_WAIT} s: measure fewer series, or \
         without --warm-up"
    )
}
