//! The views that people read with SQL show what the API answers: in SQLite and in PostgreSQL,
//! before, under and after a replay.

use std::collections::BTreeMap;
use std::path::Path;

use jiff::{Timestamp, ToSpan};
use rollmill::model::decimal::parse_units;
use rusqlite::types::ValueRef;
use rusqlite::{Connection, OpenFlags};
use serde_json::Value;

use crate::postgres;
use crate::support::{Server, wait_until};

const FLAGS: OpenFlags = OpenFlags::SQLITE_OPEN_READ_ONLY;

/// Reads the rows of a statement as text.
type Reader<'a> = &'a dyn Fn(&str) -> Vec<Vec<String>>;

/// How the views of a store are called.
struct Names {
    hourly: &'static str,
    metrics: &'static str,
    series: &'static str,
    label_values: &'static str,
    accounting: &'static str,
    /// A time as RFC 3339, from a column.
    time: fn(&str) -> String,
    /// A figure in the form in which those of view and API compare.
    figure: fn(&str) -> String,
}

const SQLITE: Names = Names {
    hourly: "rollmill_hourly",
    metrics: "rollmill_metrics",
    series: "rollmill_series",
    label_values: "rollmill_label_values",
    accounting: "rollmill_accounting",
    time: str::to_owned,
    // Doubles, and sums of doubles.
    figure: |text| format!("{:.12e}", text.parse::<f64>().expect("a number")),
};

const POSTGRES: Names = Names {
    hourly: "rollmill_views.hourly",
    metrics: "rollmill_views.metrics",
    series: "rollmill_views.series",
    label_values: "rollmill_views.label_values",
    accounting: "rollmill_views.accounting",
    time: |column| {
        format!("to_char({column} AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS\"Z\"')")
    },
    // Exact, whatever number of zeros is at the end.
    figure: |text| parse_units(text).expect("a decimal").to_string(),
};

fn read_sqlite(data: &Path, sql: &str) -> Vec<Vec<String>> {
    let file = data.join("store.sqlite");
    let connection = Connection::open_with_flags(file, FLAGS).expect("the store");
    let mut statement = connection.prepare(sql).unwrap_or_else(|error| panic!("{sql}: {error}"));
    let columns = statement.column_count();
    let cell = |value: ValueRef<'_>| match value {
        ValueRef::Null => String::new(),
        ValueRef::Integer(number) => number.to_string(),
        ValueRef::Real(number) => number.to_string(),
        ValueRef::Text(text) => String::from_utf8_lossy(text).into_owned(),
        ValueRef::Blob(_) => panic!("{sql}: a blob is nothing for people"),
    };
    let rows = statement
        .query_map([], |row| (0..columns).map(|at| Ok(cell(row.get_ref(at)?))).collect())
        .expect("rows");
    rows.map(|row| row.unwrap_or_else(|error| panic!("{sql}: {error}"))).collect()
}

type Figures = (u64, Option<String>, Option<String>, Option<String>);
type Rows = BTreeMap<(String, BTreeMap<String, String>), Figures>;

/// The rows of a metric as the API answers them.
fn answered(server: &Server, names: &Names, day: Timestamp) -> Rows {
    let (from, to) = (day, day + 48.hours());
    let path = format!(
        "/v1/query?metric=sales&from={from}&to={to}&step=1h&agg=count,sum,min,max&\
         by=page,plan&numbers=string"
    );
    // The first answers may be partial: a shard without events can be claimed after the others.
    let answer = server.await_query(&path, |_| true);
    let mut rows = Rows::new();
    for series in answer["series"].as_array().expect("series") {
        let labels: BTreeMap<String, String> =
            serde_json::from_value(series["labels"].clone()).expect("labels");
        for point in series["points"].as_array().expect("points") {
            let text = |name: &str| point[name].as_str().map(names.figure);
            let count = point["count"].as_u64().expect("a count");
            let figures = (count, text("sum"), text("min"), text("max"));
            let at = point["t"].as_str().expect("a time").to_owned();
            assert!(rows.insert((at, labels.clone()), figures).is_none());
        }
    }
    rows
}

/// The rows of the metric in the view. Panics if a window is there twice.
fn viewed(names: &Names, read: Reader<'_>) -> Rows {
    let (hourly, time) = (names.hourly, (names.time)("time"));
    let sql = format!(
        "SELECT {time}, labels, count, sum, min, max, value_count, avg FROM {hourly} WHERE \
         tenant = 'default' AND metric = 'sales'"
    );
    let mut rows = Rows::new();
    for row in read(&sql) {
        let [time, labels, count, sum, min, max, values, avg] = row.try_into().expect("8 columns");
        let labels = serde_json::from_str(&labels).expect("an object");
        assert_eq!(values == "0", avg.is_empty(), "{time}");
        let figure = |text: &str| (!text.is_empty()).then(|| (names.figure)(text));
        let figures = (count.parse().expect("a count"), figure(&sum), figure(&min), figure(&max));
        assert!(rows.insert((time.clone(), labels), figures).is_none(), "{time} is there twice");
    }
    rows
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

/// Compares every view with the API.
fn compare(server: &Server, names: &Names, read: Reader<'_>, day: Timestamp) -> Rows {
    let rows = viewed(names, read);
    assert_eq!(rows, answered(server, names, day));
    let (first, last) = ((names.time)("first"), (names.time)("last"));
    let sql = format!("SELECT metric, series, {first}, {last} FROM {} ORDER BY 1", names.metrics);
    let metrics = server.get("/v1/metrics").1["metrics"].as_array().expect("metrics").clone();
    let expected = metrics.iter().map(|row| {
        vec![
            text(&row["metric"]),
            row["series"].to_string(),
            text(&row["first"]),
            text(&row["last"]),
        ]
    });
    assert_eq!(read(&sql), expected.collect::<Vec<_>>());
    let sql = format!("SELECT count(*) FROM {} WHERE metric = 'sales'", names.series);
    let all: std::collections::BTreeSet<_> = rows.keys().map(|(_, labels)| labels).collect();
    assert!(read(&sql)[0][0].parse::<usize>().expect("a number") >= all.len());
    for label in ["page", "plan"] {
        let sql = format!(
            "SELECT value FROM {} WHERE metric = 'sales' AND label = '{label}' ORDER BY 1",
            names.label_values
        );
        let answer = server.get(&format!("/v1/labels/{label}/values?metric=sales")).1;
        let values = answer["values"].as_array().expect("values").iter();
        assert_eq!(read(&sql), values.map(|value| vec![text(value)]).collect::<Vec<_>>());
    }
    let time = (names.time)("time");
    let sql = format!(
        "SELECT {time}, tenant, aggregated, deduplicated, quarantined FROM {} ORDER BY 1",
        names.accounting
    );
    let hours = server.get("/v1/accounting").1["hours"].as_array().expect("hours").clone();
    let expected = hours.iter().map(|hour| {
        let numbers = ["aggregated", "deduplicated", "quarantined"];
        let numbers = numbers.map(|name| hour[name].to_string());
        [vec![text(&hour["hour"]), "default".to_owned()], numbers.to_vec()].concat()
    });
    assert_eq!(read(&sql), expected.collect::<Vec<_>>());
    rows
}

/// Sends 60 events of two days, and waits until all that was sent is in the store.
fn send(server: &Server, day: Timestamp, from: u64) {
    let pages = ["/home", "=1+1", "ä\"b\\", ""];
    let values = ["\"0.1\"", "-7.25", "null", "\"999999999999.000000001\"", "5"];
    let events = (from..from + 60).map(|n| {
        let at = day + (n as i64 % 7 * 5).hours() + (n as i64).seconds();
        serde_json::json!({
            "metric": "sales", "timestamp": at.to_string(), "id": n.to_string(),
            "value": serde_json::from_str::<Value>(values[n as usize % 5]).expect("JSON"),
            "labels": {"page": pages[n as usize % 4]},
            "properties": {"plan": if n.is_multiple_of(3) { "pro" } else { "free" }},
        })
    });
    let body = serde_json::to_string(&events.collect::<Vec<_>>()).expect("JSON");
    let (status, answer) = server.post(&body);
    assert_eq!((status, &answer["rejected"]), (202, &0.into()), "{answer}");
    wait_until("all is in the store", || server.accounted()[0] == from + 60);
}

fn views_show_what_is_served(
    names: &Names,
    settings: &[(&str, &str)],
    read: &dyn Fn(&Path, &str) -> Vec<Vec<String>>,
) {
    let dir = tempfile::tempdir().expect("a directory");
    let data = dir.path().join("data");
    let quick =
        [("shards.count", "3"), ("flush.interval", "200ms"), ("archive.max_delay", "200ms")];
    let server = Server::start(&data, &[&quick[..], settings].concat());
    let read: Reader<'_> = &|sql| read(&data, sql);
    let today = Timestamp::now().as_second() / 86_400;
    let day = Timestamp::from_second((today - 9) * 86_400).expect("a day");
    send(&server, day, 0);
    let ingested = compare(&server, names, read, day);
    assert!(ingested.keys().all(|(_, labels)| !labels.contains_key("plan")));

    let replay = |args: &[&str]| {
        let output = Server::cli(&[&["replay"], args, &["--url", &server.url]].concat());
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    };
    let date = |day: Timestamp| day.strftime("%F").to_string();
    let (from, to) = (date(day), date(day + 24.hours()));
    let of = ["--metric", "sales", "--from", &from, "--to", &to];
    replay(&[&of[..], &["--set-label", "plan=/plan", "--apply"]].concat());
    let corrected = compare(&server, names, read, day);
    let plans = |rows: &Rows, of: &str| {
        rows.keys().filter(|(at, labels)| at.starts_with(of) && labels.contains_key("plan")).count()
    };
    assert!(plans(&corrected, &from) > 0 && plans(&corrected, &to) == 0, "{corrected:?}");
    let counted = |rows: &Rows| rows.values().map(|(count, ..)| count).sum::<u64>();
    assert_eq!(counted(&corrected), 60, "no event is there twice");

    // What comes now is written by other writers than what was filled in.
    send(&server, day, 60);
    let both = compare(&server, names, read, day);
    assert_eq!(counted(&both), 120);
    let generations = format!(
        "SELECT DISTINCT generation FROM {} WHERE metric = 'sales' ORDER BY 1",
        names.hourly
    );
    assert_eq!(read(&generations), [["0"], ["1"]]);

    replay(&["undo", "1"]);
    let undone = compare(&server, names, read, day);
    assert_eq!((counted(&undone), plans(&undone, &from)), (120, 0));
    assert_eq!(read(&generations), [["0"]]);
    assert_eq!(server.stop(), Some(0));
}

#[test]
fn views_of_sqlite_show_what_is_served() {
    views_show_what_is_served(&SQLITE, &[], &read_sqlite);
}

#[test]
fn views_of_postgresql_show_what_is_served() {
    let server = postgres::shared();
    let database = server.database();
    let url = server.url(&database);
    views_show_what_is_served(&POSTGRES, &[("store.url", &url)], &|_, sql| {
        let rows = server.psql(&database, &format!("SET TimeZone = 'UTC'; {sql}"));
        let rows = rows.unwrap_or_else(|error| panic!("{sql}: {error}"));
        // No label of this test has a bar.
        rows.lines().map(|row| row.split('|').map(str::to_owned).collect()).collect()
    });
}
