//! Series that live before anything is measured: what is measured then is their load, not their
//! admission.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use anyhow::bail;

use super::load::{self, Line, Target};
use super::server::Server;
use super::shape::Shape;
use crate::clock::{Clock, Stopwatch, SystemClock};

/// Events of a request.
const BATCH: u64 = 1_000;
/// A server that takes fewer cores than this has written what it was sent.
const AT_REST: f64 = 0.05;
/// Longer than the interval of flushes: before it, rest may be a pause between two of them.
const REST_AFTER: Duration = Duration::from_secs(15);
/// Who does not rest by then has other work to do.
const REST_WITHIN: u32 = 600;

/// Sends an event of each series, and waits until they are counted and the server has come to rest,
/// if it is ours. Series per second.
pub(super) async fn each_series(
    target: &Target,
    shape: &Shape,
    connections: u32,
    server: Option<&Server>,
) -> anyhow::Result<f64> {
    let bar =
        indicatif::ProgressBar::new(shape.series).with_style(super::super::bar_style("series"));
    let (watch, next) = (Stopwatch::start(), Rc::new(Cell::new(0)));
    let tasks = tokio::task::LocalSet::new();
    let mut handles = Vec::new();
    for _ in 0..connections {
        handles.push(tasks.spawn_local(send(
            target.line().await?,
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
        rest(server).await?;
    }
    Ok(shape.series as f64 / seconds)
}

async fn send(
    mut line: Line,
    shape: Shape,
    next: Rc<Cell<u64>>,
    bar: indicatif::ProgressBar,
) -> anyhow::Result<()> {
    while next.get() < shape.series {
        let first = next.get();
        let batch = BATCH.min(shape.series - first);
        next.set(first + batch);
        let shape = Shape { batch: batch as usize, ..shape };
        let mut body = line.body(&shape);
        body.patch(&shape, first, SystemClock.now());
        body.one_of_each_series(&shape, first);
        line.send(&body.bytes).await?;
        bar.inc(batch);
    }
    Ok(())
}

async fn rest(server: &Server) -> anyhow::Result<()> {
    tokio::time::sleep(REST_AFTER).await;
    for _ in 0..REST_WITHIN {
        let before = server.cpu_seconds()?;
        tokio::time::sleep(Duration::from_secs(1)).await;
        if server.cpu_seconds()? - before < AT_REST {
            return Ok(());
        }
    }
    bail!(
        "the server has not come to rest within {REST_WITHIN} s: measure fewer series, or without \
         --warm-up"
    )
}
