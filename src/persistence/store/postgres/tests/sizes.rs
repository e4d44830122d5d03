//! The reported size includes partitions and chunks, and a role without rights causes no failure.

use super::timescale::{TestDatabase, run};
use super::*;
use crate::persistence::store::StoreSizes;

#[test]
fn sizes_count_partitions_chunks_and_what_is_compressed() {
    for own in TestDatabase::on_each() {
        let store = PostgresStore::open(&options(&own.url)).expect("a store");
        let fresh = || {
            PostgresStore::open(&options(&own.url)).expect("a store").sizes().expect("sizes").store
        };
        let empty = fresh();
        assert!(empty > 0, "tables have indexes from the beginning");
        let epoch = store.claim(ShardId(0), LOG, 1).expect("a claim").checkpoint.epoch;
        let deltas = (0..500)
            .flat_map(|page| [5, 200].map(|hour| delta(&page.to_string(), hour, 7)))
            .collect();
        store.flush(guard(0, 0, epoch), &batch(deltas), 0).expect("a flush");
        let filled = fresh();
        // A thousand rows with their sketches, each of which takes more than a hundred bytes.
        assert!(filled > empty + 100_000, "{empty} to {filled}");
        let compressed = store.compress_before(Hour(504)).expect("a round");
        let after = fresh();
        assert!(
            if compressed > 0 { after < filled && after > empty } else { after >= filled },
            "{filled} to {after}"
        );
        run(
            &own.url,
            "CREATE TABLE public.other AS SELECT repeat('x', 1000) FROM generate_series(1, 1000)",
        );
        assert_eq!(fresh(), after, "what else the database holds is not of the store");
    }
}

#[test]
fn a_role_that_may_read_nothing_of_the_archive_still_tells_the_size_of_the_store() {
    let server = server::shared();
    let (owner, url) = store();
    let database = url.rsplit('/').next().expect("a name");
    let role = format!("stranger_{database}");
    server
        .psql(
            database,
            &format!("CREATE ROLE {role} LOGIN; GRANT USAGE ON SCHEMA rollmill TO {role}"),
        )
        .expect("a role");
    let stranger =
        PostgresOptions { read_url: Some(server.url_as(&role, database)), ..options(&url) };
    let found = PostgresStore::open(&stranger).expect("a store").sizes().expect("no failure");
    assert_eq!((found.store > 0, found.archive), (true, 0));
    drop(owner);
}

#[test]
fn sizes_wait_for_nobody_and_stay_as_they_were() {
    let (_, url) = store();
    let few = PostgresOptions { read_connections: 1, ..options(&url) };
    let store = PostgresStore::open(&few).expect("a store");
    let snapshot = store.snapshot().expect("all connections are in use");
    assert_eq!(store.sizes(), Ok(StoreSizes::default()));
    drop(snapshot);
    assert_eq!(store.sizes(), Ok(StoreSizes::default()), "the next minute asks again");
}
