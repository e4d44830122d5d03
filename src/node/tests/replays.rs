//! A generation that is started while a node runs: its shards adopt it, the archiver cuts for it,
//! and the node fills it.

use super::*;
use crate::model::generation::{DayRange, GenerationId};
use crate::model::generation_book::{GenerationBook, NewGeneration};
use crate::model::window::Hour;
use crate::persistence::store::GenerationStore;

const ONE: GenerationId = GenerationId(1);
const EVENTS: u64 = 400;

fn start(store: &MemoryStore, before: &GenerationBook) -> GenerationBook {
    let mut book = before.clone();
    let new = NewGeneration {
        tenant: "t".to_owned(),
        metrics: vec!["m".to_owned()],
        days: DayRange::ALWAYS,
        rules: r#"{"rule":[]}"#.into(),
        started: (SystemClock.now(), "k".to_owned()),
    };
    assert_eq!(book.start(new, 3, 1), Ok(ONE));
    assert_eq!(store.swap_generations(before.version(), &book, None), Ok(true));
    book
}

fn counted(store: &MemoryStore) -> u64 {
    let mut count = 0;
    let hours = (Hour(i32::MIN), Hour(i32::MAX));
    let mut snapshot = store.snapshot().expect("a snapshot");
    let read = snapshot.generation_rows(ONE, ("t", "m"), hours, &mut |_, _, _, rollup, _| {
        count += rollup.figures.count;
        Ok(())
    });
    read.expect("rows");
    count
}

fn is_filled(store: &MemoryStore) -> bool {
    let progress = store.snapshot().expect("a snapshot").fill_progress(ONE).expect("progress");
    progress.len() == SHARDS as usize && progress.iter().all(|(_, at)| at.is_complete())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_running_node_adopts_archives_and_fills_what_is_started() {
    let cluster = Cluster::new();
    let config = quick().with(|c| {
        // Without being asked, the archiver would not cut while the test runs.
        c.archive.max_delay = Duration::from_secs(3_600);
    });
    let log = cluster.log.join();
    log.assign(all());
    let node = cluster.node(&log, &config).await;
    for id in 0..EVENTS {
        append(&log, &some_event(id)).await;
    }
    // Shards without records have a cut, too.
    let book = start(&cluster.store, &GenerationBook::default());
    until("the generation is filled", || is_filled(&cluster.store)).await;
    for id in EVENTS..EVENTS + 50 {
        append(&log, &some_event(id)).await;
    }
    until("later events are written, too", || counted(&cluster.store) == EVENTS + 50).await;
    let mut cancelled = book.clone();
    cancelled.cancel(ONE, None, 2).expect("cancelled");
    let swapped = cluster.store.swap_generations(book.version(), &cancelled, None);
    assert_eq!(swapped, Ok(true));
    let newest = cancelled.newest_set().version;
    let adopted = |store: &MemoryStore| {
        let versions = store.snapshot().expect("a snapshot").set_versions().expect("versions");
        versions.iter().all(|(_, version)| *version == newest)
    };
    until("all shards leave it", || adopted(&cluster.store)).await;
    node.stop().await.expect("stops");
}
