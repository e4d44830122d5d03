//! `sslmode=require` encrypts and verifies, or does not connect.

use super::*;
use crate::persistence::store::StoreError;

#[test]
fn tls_verifies_the_server() {
    let server = server::Postgres::start("tls");
    let authority = server.turn_on_tls();
    let database = server.database();
    let required = format!("{}?sslmode=require", server.url(&database));
    let trusted = PostgresOptions { tls_ca: Some(authority), ..options(&required) };
    let store = PostgresStore::open(&trusted).expect("a store");
    let pid = store.writers.take().expect("a session").session().expect("it").backend.pid;
    assert_eq!(
        server.psql(&database, &format!("SELECT ssl FROM pg_stat_ssl WHERE pid = {pid}")),
        Ok("t".into())
    );
    let unknown = PostgresStore::open(&options(&required)).expect_err("nobody we know signed it");
    assert!(matches!(unknown, StoreError::Failed(_)), "no waiting mends it: {unknown:?}");
    let unknown = unknown.to_string();
    assert!(unknown.contains("certificate") || unknown.contains("UnknownIssuer"), "{unknown}");
    let missing = PostgresOptions { tls_ca: Some("/nowhere.pem".into()), ..options(&required) };
    let missing = PostgresStore::open(&missing).expect_err("no such file").to_string();
    assert!(missing.contains("store.tls_ca") && missing.contains("/nowhere.pem"), "{missing}");

    server.psql("postgres", "ALTER SYSTEM SET ssl = off").expect("set");
    server.psql("postgres", "SELECT pg_reload_conf()").expect("reloaded");
    let deadline = std::time::Instant::now() + Duration::from_secs(60);
    while server.psql("postgres", "SHOW ssl") != Ok("off".into()) {
        assert!(std::time::Instant::now() < deadline, "the server keeps TLS on");
        std::thread::sleep(Duration::from_millis(20));
    }
    let plain = PostgresStore::open(&trusted).expect_err("no TLS, no connection");
    assert!(matches!(plain, StoreError::Failed(_)), "{plain:?}");
    let plain = plain.to_string();
    assert!(plain.contains("does not support TLS"), "{plain}");
}
