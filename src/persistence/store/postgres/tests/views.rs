//! The views that people query with SQL.

use super::timescale::{TestDatabase, run};
use super::*;
use crate::persistence::store::postgres;

fn sold(page: &str, hour: i32, values: &[Option<i128>]) -> Delta {
    let mut sold = Delta { rollup: Rollup::default(), ..delta(page, hour, 1) };
    values.iter().for_each(|value| sold.rollup.add(value.map(Decimal::from_units), None));
    sold
}

#[test]
fn views_show_names_times_labels_and_exact_figures() {
    for own in TestDatabase::on_each() {
        let store = PostgresStore::open(&options(&own.url)).expect("a store");
        let epoch = store.claim(ShardId(0), LOG, 1).expect("a claim").checkpoint.epoch;
        let long = "ä".repeat(100);
        let deltas = vec![
            sold("home", 490_896, &[Some(100_000_000), Some(200_000_000), Some(1_000_000_001)]),
            sold("home", 490_897, &[None]),
            sold("", 490_898, &[Some(-5_000_000_000)]),
            sold(&long, 490_899, &[Some(1)]),
            sold("home", 480_000, &[Some(1)]),
        ];
        store.flush(guard(0, 0, epoch), &batch(deltas), 0).expect("a flush");
        let sql = "SELECT concat_ws(' ', to_char(\"time\" AT TIME ZONE 'UTC', \
                   'YYYY-MM-DD\"T\"HH24:MI'), tenant, metric, labels, count, value_count,
            coalesce(trim_scale(sum)::text, '-'), coalesce(trim_scale(avg)::text, '-'), \
                   coalesce(trim_scale(min)::text, '-'), coalesce(trim_scale(max)::text, '-'))
            FROM rollmill_views.rollups('2026-01-01T00:00Z', '2026-01-01T04:00Z') ORDER BY \
                   \"time\"";
        let expected = [
            "2026-01-01T00:00 acme views {\"page\": \"home\"} 3 3 1.300000001 0.433333334 0.1 \
             1.000000001"
                .to_owned(),
            "2026-01-01T01:00 acme views {\"page\": \"home\"} 1 0 - - - -".to_owned(),
            "2026-01-01T02:00 acme views {} 1 1 -5 -5 -5 -5".to_owned(),
            format!(
                "2026-01-01T03:00 acme views {{\"page\": \"{long}\"}} 1 1 0.000000001 0.000000001 \
                 0.000000001 0.000000001"
            ),
        ];
        assert_eq!(run(&own.url, sql), expected);
        let all = "SELECT count(*) FROM rollmill_views.hourly WHERE metric = 'views' AND \
                   labels->>'page' = 'home'";
        assert_eq!(run(&own.url, all), ["3"]);
        // A range of time reads only its own weeks, in whatever form it is given.
        for to in ["timestamptz '2026-01-02T00:00Z'", "now()"] {
            let plan = format!(
                "EXPLAIN (ANALYZE, COSTS OFF, TIMING OFF) SELECT * FROM \
                 rollmill_views.rollups(timestamptz '2026-01-01T00:00Z', {to})"
            );
            let read = run(&own.url, &plan).into_iter().filter(|line| {
                line.contains("Scan")
                    && (line.contains("on rollups_") || line.contains("on _hyper_"))
                    && !line.contains("never executed")
            });
            assert_eq!(
                read.filter(|line| !line.contains("Bitmap Index")).count(),
                1,
                "{plan}: {:?}",
                run(&own.url, &plan)
            );
        }
    }
}

/// The statements of docs/how-to/query-with-sql.md, for the metric of this test.
fn shown_statements() -> Vec<String> {
    let docs = include_str!("../../../../../docs/how-to/query-with-sql.md");
    let shown = docs.split("```sql\n").skip(1).filter_map(|rest| rest.split("```").next());
    let filled = shown.map(|sql| {
        sql.replace("$__timeFrom()", "'2026-01-01T00:00Z'")
            .replace("$__timeTo()", "'2026-01-03T00:00Z'")
            .replace("now()", "timestamptz '2026-01-02T12:00Z'")
            .replace("'default'", "'acme'")
            .replace("'page_view'", "'views'")
            .replace("'country'", "'page'")
    });
    filled.collect()
}

#[test]
fn the_statements_of_the_docs_run() {
    let [pages, received, panel, values] = <[String; 4]>::try_from(shown_statements()).expect("4");
    for own in TestDatabase::on_each() {
        let store = PostgresStore::open(&options(&own.url)).expect("a store");
        let epoch = store.claim(ShardId(0), LOG, 1).expect("a claim").checkpoint.epoch;
        let one =
            |page: &str, hour: i32, value: i128| sold(page, hour, &[Some(value * 1_000_000_000)]);
        let deltas = vec![
            one("a", 490_896, 1),
            one("a", 490_919, 4),
            one("a", 490_920, 8),
            one("b", 490_900, 7),
        ];
        store.flush(guard(0, 0, epoch), &batch(deltas), 0).expect("a flush");
        let rows = format!(
            "SELECT concat_ws(' ', to_char(\"time\" AT TIME ZONE 'UTC', 'DD'), metric, \
             trim_scale(value)) FROM ({panel}) AS s"
        );
        assert_eq!(run(&own.url, &rows), ["01 a 2.5", "01 b 7", "02 a 8"]);
        let most = format!("SELECT concat_ws(' ', page, views) FROM ({pages}) AS s");
        assert_eq!(run(&own.url, &most), ["a 2"]);
        assert_eq!(run(&own.url, &values), ["a", "b"]);
        // The accounting of the batch is of 1970.
        assert!(run(&own.url, &received).is_empty());
    }
}

#[test]
fn a_role_may_be_given_the_views_alone() {
    let server = server::shared();
    let database = server.database();
    server.make_roles(&database, postgres::ROLES);
    drop(
        PostgresStore::open(&options(&server.url_as("rollmill_owner", &database)))
            .expect("the owner lays the tables"),
    );
    server
        .psql(
            &database,
            "CREATE ROLE dashboards LOGIN; GRANT USAGE ON SCHEMA rollmill_views TO dashboards",
        )
        .expect("a role");
    for role in ["dashboards", "rollmill_reader"] {
        for sql in [
            "SELECT count(*) FROM rollmill_views.hourly",
            "SELECT count(*) FROM rollmill_views.rollups('2026-01-01', now())",
            "SELECT count(*) FROM rollmill_views.metrics",
            "SELECT count(*) FROM rollmill_views.series",
            "SELECT count(*) FROM rollmill_views.label_values",
            "SELECT count(*) FROM rollmill_views.accounting",
        ] {
            assert_eq!(server.psql_as(role, &database, sql), Ok("0".into()), "{role}: {sql}");
        }
    }
    let refused = server
        .psql_as("dashboards", &database, "SELECT count(*) FROM rollmill.rollups")
        .expect_err("its tables are not for it");
    assert!(refused.contains("permission denied"), "{refused}");
}

/// A database whose administrator created the roles of an older version, which had no schema for
/// views.
#[test]
fn views_come_when_their_schema_is_made_later() {
    let server = server::shared();
    let database = server.database();
    server.make_roles(&database, postgres::ROLES);
    server.psql(&database, "DROP SCHEMA rollmill_views").expect("as it was");
    let owner = options(&server.url_as("rollmill_owner", &database));
    drop(PostgresStore::open(&owner).expect("the tables are laid without"));
    server.make_roles(&database, postgres::ROLES);
    drop(PostgresStore::open(&owner).expect("and the views now"));
    assert_eq!(
        server.psql_as("rollmill_reader", &database, "SELECT count(*) FROM rollmill_views.hourly"),
        Ok("0".into())
    );
}
