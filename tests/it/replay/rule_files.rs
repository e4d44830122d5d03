//! Ten files of rules over the flights of 2013: every row is what DuckDB makes of the CSV, with
//! late events and repeated batches at every stage; after an undo every byte is as if there had
//! never been a replay.

use super::*;

/// A file of rules, and the same in SQL.
struct Case {
    name: &'static str,
    rules: &'static str,
    /// Exclusive end of the days; none is open.
    to: Option<&'static str>,
    sql: RuledSql,
}

/// Expressions over a row of the CSV, for what is inside of the replay's days.
#[derive(Clone, Copy)]
struct RuledSql {
    keep: &'static str,
    carrier: &'static str,
    dest: &'static str,
    group: &'static str,
    /// In units of 10^-9.
    value: &'static str,
    user: &'static str,
}

const DELAY: &str = "dep_delay_min::HUGEINT * 1000000000";

/// A flight as it was ingested.
const PLAIN: RuledSql = RuledSql {
    keep: "true",
    carrier: "carrier",
    dest: "''",
    group: "''",
    value: DELAY,
    user: "tailnum",
};

const FIRST_DAY: &str = "2013-01-01";

fn cases() -> [Case; 10] {
    [
        Case {
            name: "drop a carrier",
            rules: r#"
                [[rule]]
                name = "united"
                where = { labels = '{carrier="UA"}' }
                drop = true
            "#,
            to: None,
            sql: RuledSql { keep: "carrier <> 'UA'", ..PLAIN },
        },
        Case {
            name: "minutes to hours",
            rules: r#"
                [[rule]]
                name = "hours"
                scale_value = { divide = 60 }
            "#,
            to: None,
            // n/60 in units of 10^-9 is n * 50000000/3, which is never half way; the offset keeps
            // the division above zero.
            sql: RuledSql {
                value: "(dep_delay_min::HUGEINT * 100000000 + 3 + 6000000000000) // 6 - \
                        1000000000000",
                ..PLAIN
            },
        },
        Case {
            name: "label from a property",
            rules: r#"
                [[rule]]
                name = "destination"
                set_label = { label = "dest", property = "/dest" }
            "#,
            to: Some("2013-01-05"),
            sql: RuledSql { dest: "dest", ..PLAIN },
        },
        Case {
            name: "merge two label values",
            rules: r#"
                [[rule]]
                name = "mergers"
                map_label = { label = "carrier", values = { US = "AA", FL = "WN" } }
            "#,
            to: None,
            sql: RuledSql {
                carrier: "CASE carrier WHEN 'US' THEN 'AA' WHEN 'FL' THEN 'WN' ELSE carrier END",
                ..PLAIN
            },
        },
        Case {
            name: "user from a property",
            rules: r#"
                [[rule]]
                name = "airports"
                set_user = { property = "/dest" }
            "#,
            to: Some("2013-01-04"),
            sql: RuledSql { user: "dest", ..PLAIN },
        },
        Case {
            name: "remove a label",
            rules: r#"
                [[rule]]
                name = "without carrier"
                remove_label = "carrier"
            "#,
            to: None,
            sql: RuledSql { carrier: "''", ..PLAIN },
        },
        Case {
            name: "value from a property",
            rules: r#"
                [[rule]]
                name = "in the air"
                set_value = { property = "/air_time" }
            "#,
            to: None,
            // A flight that never was in the air keeps its value, if it has one.
            sql: RuledSql {
                value: "coalesce(air_time_min, dep_delay_min)::HUGEINT * 1000000000",
                ..PLAIN
            },
        },
        Case {
            name: "for a time",
            rules: r#"
                [[rule]]
                name = "a clock that was fast"
                where.labels = '{origin="JFK"}'
                where.time = { from = 2013-01-02T05:30:00Z, to = 2013-01-03T00:00:00Z }
                scale_value = { multiply = 0.5 }
            "#,
            to: None,
            sql: RuledSql {
                value: "dep_delay_min::HUGEINT * CASE WHEN origin = 'JFK' AND event_time >= \
                        '2013-01-02 05:30:00' AND event_time < '2013-01-03' THEN 500000000 ELSE \
                        1000000000 END",
                ..PLAIN
            },
        },
        Case {
            name: "in, exists and a regular expression",
            rules: r#"
                [[rule]]
                name = "some"
                where.properties = [
                    { at = "/dest", in = ["IAH", "MIA", "ORD"] },
                    { at = "/air_time", exists = true },
                    { at = "/tail", regex = "N[0-9]+[A-Z]{2}" },
                    { at = "/distance", equal = 1089, not = true },
                ]
                set_label = { label = "group", value = "some" }
            "#,
            to: None,
            sql: RuledSql {
                group: "CASE WHEN dest IN ('IAH', 'MIA', 'ORD') AND air_time_min IS NOT NULL AND \
                        regexp_full_match(coalesce(tailnum, ''), 'N[0-9]+[A-Z]{2}') AND \
                        distance_mi <> 1089 THEN 'some' ELSE '' END",
                ..PLAIN
            },
        },
        Case {
            name: "two rules in order",
            rules: r#"
                [[rule]]
                name = "destination"
                set_label = { label = "dest", property = "/dest" }

                [[rule]]
                name = "Atlanta"
                where = { labels = '{dest="ATL"}' }
                drop = true
            "#,
            to: Some("2013-01-06"),
            sql: RuledSql { dest: "dest", keep: "dest <> 'ATL'", ..PLAIN },
        },
    ]
}

fn select(sql: &RuledSql, filter: &str) -> String {
    format!(
        "SELECT date_trunc('hour', event_time) AS hour, origin, {} AS carrier, {} AS dest, {} AS \
         part, {} AS value, {} AS who FROM flights WHERE {filter}",
        sql.carrier, sql.dest, sql.group, sql.value, sql.user
    )
}

/// The rollups of a case: hour, labels, count, sum, min, max, users, three quantiles.
fn query(case: &Case) -> String {
    let inside = case.to.map_or_else(|| "true".to_owned(), |to| format!("event_time < '{to}'"));
    let ruled = select(&case.sql, &format!("({inside}) AND ({})", case.sql.keep));
    let plain = select(&PLAIN, &format!("NOT ({inside})"));
    rollup(&format!("{ruled} UNION ALL {plain}"))
}

fn rollup(events: &str) -> String {
    format!(
        "SELECT strftime(hour, '%Y-%m-%dT%H:00:00Z'), origin, carrier, dest, part, count(*), \
         sum(value), min(value), max(value), count(DISTINCT who), quantile_disc(value, 0.5), \
         quantile_disc(value, 0.95), quantile_disc(value, 0.99) FROM ({events}) GROUP BY ALL"
    )
}

/// A row: the hour and the labels, and the figures, values in units of 10^-9.
type Rows = BTreeMap<[String; 5], Vec<Option<i128>>>;

/// Has DuckDB answer all queries in one process.
fn duckdb(dir: &Path, csv: &Path, queries: &[String]) -> Vec<Rows> {
    let script = "import duckdb, json, sys\nduckdb.sql(f\"CREATE TABLE flights AS SELECT * FROM \
                  read_csv('{sys.argv[1]}', header = true, nullstr = '', types = {{'event_time': \
                  'TIMESTAMP', 'dep_delay_min': 'BIGINT', 'air_time_min': 'BIGINT', \
                  'distance_mi': 'BIGINT', 'tailnum': 'VARCHAR'}})\")\nprint(json.dumps([[[None \
                  if cell is None else str(cell) for cell in row] for row in \
                  duckdb.sql(query).fetchall()] for query in json.load(open(sys.argv[2]))]))";
    let file = dir.join("queries.json");
    std::fs::write(&file, serde_json::to_vec(queries).expect("JSON")).expect("written");
    let mut python = std::process::Command::new(crate::archive::python());
    let output = python.args(["-c", script]).arg(csv).arg(&file).output().expect("python runs");
    assert!(output.status.success(), "{}", said(&output));
    let answers: Vec<Vec<Vec<Option<String>>>> =
        serde_json::from_slice(&output.stdout).expect("JSON");
    let row = |row: Vec<Option<String>>| {
        let label = |at: usize| row[at].clone().unwrap_or_default();
        let number = |cell: &Option<String>| cell.as_ref().map(|n| n.parse().expect("a number"));
        ([0, 1, 2, 3, 4].map(label), row[5..].iter().map(number).collect())
    };
    answers.into_iter().map(|rows| rows.into_iter().map(row).collect()).collect()
}

/// A decimal number in units of 10^-9.
fn units(text: &str) -> i128 {
    let (sign, digits) = text.strip_prefix('-').map_or((1, text), |digits| (-1, digits));
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    assert!(fraction.len() <= 9, "{text}");
    sign * format!("{whole}{fraction:0<9}").parse::<i128>().expect("a number")
}

/// The rows of a metric as queries answer them, with everything that was acknowledged.
fn queried(server: &Server, metric: &str) -> Rows {
    let path = format!(
        "/v1/query?metric={metric}&step=1h&by=origin,carrier,dest,group&{ALL_FLIGHTS}&\
         agg=count,sum,min,max,distinct,p50,p95,p99"
    );
    server.await_everything(&path);
    let (status, text) = server.get(&format!("{path}&format=csv"));
    let text = text.as_str().expect("CSV");
    assert_eq!(status, 200, "{text}");
    let mut reader = csv::Reader::from_reader(text.as_bytes());
    let row = |row: csv::StringRecord| {
        let figure = |at: usize| {
            let cell = &row[at];
            // Counts are whole; quantiles are approximate, and printed as floating-point numbers.
            match at {
                _ if cell.is_empty() => None,
                5 | 9 => Some(cell.parse().expect("a count")),
                6..=8 => Some(units(cell)),
                _ => Some((cell.parse::<f64>().expect("a number") * 1e9).round() as i128),
            }
        };
        ([0, 1, 2, 3, 4].map(|at| row[at].to_owned()), (5..13).map(figure).collect())
    };
    reader.records().map(|record| row(record.expect("a row"))).collect()
}

fn assert_equal(what: &str, ours: &Rows, theirs: &Rows) {
    let missing: Vec<_> = theirs.keys().filter(|key| !ours.contains_key(*key)).take(5).collect();
    assert!(missing.is_empty(), "{what}: missing {missing:?}");
    for (key, row) in ours {
        let expected = theirs.get(key).unwrap_or_else(|| panic!("{what}: {key:?} is too much"));
        assert_eq!(row[..5], expected[..5], "{what}: {key:?}");
        for (got, wanted) in row[5..].iter().zip(&expected[5..]) {
            let near = |got: i128, wanted: i128| (got - wanted).abs() <= wanted.abs() / 100 + 1;
            let is_near = match (got, wanted) {
                (Some(got), Some(wanted)) => near(*got, *wanted),
                (got, wanted) => got == wanted,
            };
            assert!(is_near, "{what}: a quantile of {key:?} is {got:?}, nearest rank {wanted:?}");
        }
    }
}

/// The events of one metric, in the parts in which they are sent.
struct Parts {
    /// Before the replay is started.
    base: Vec<String>,
    /// While it is filled, between ready and apply, and after the apply.
    late: [Vec<String>; 3],
}

impl Parts {
    fn new(metric: &str, rows: &[csv::StringRecord]) -> Self {
        let mut parts = Self { base: Vec::new(), late: [const { Vec::new() }; 3] };
        for (n, row) in rows.iter().enumerate() {
            // Spread over all days and series.
            let part = match n % 10 {
                late @ 7..=9 => &mut parts.late[late - 7],
                _ => &mut parts.base,
            };
            part.push(event(metric, n, row));
        }
        parts
    }
}

/// Starts, sends what comes while it is filled, and waits until it is ready. Returns whether
/// events were acknowledged while archived records were left.
fn fill(server: &Server, parts: &Parts, args: &[&str]) -> (u64, bool) {
    let id = start(server, args);
    let mut deadline = MovingDeadline::start();
    let (mut batches, mut during) = (parts.late[0].chunks(20).peekable(), false);
    loop {
        let shown = show(server, id);
        let waits = shown["progress"]["waits_for"].as_array().cloned().unwrap_or_default();
        let is_filling = waits.iter().any(|shard| shard["reason"] == "filling");
        if is_filling && let Some(batch) = batches.next() {
            send(server, batch);
            send(server, batch);
            let after = show(server, id);
            during |= after["state"] == "building";
        }
        if shown["state"] == "ready" {
            batches.for_each(|batch| send(server, batch));
            return (id, during);
        }
        deadline.check(shown["progress"]["left"].as_u64().unwrap_or(0), &shown);
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// What a case has seen.
struct Seen {
    during: bool,
    applied: Rows,
    undone: Rows,
    again: Rows,
}

/// Runs a case on a metric of its own.
fn run(server: &Server, dir: &Path, (n, case): (usize, &Case), parts: &Parts) -> Seen {
    let metric = format!("m{n}");
    let rules = file(dir, &format!("rules{n}.toml"), case.rules);
    let mut args = vec!["--metric", &metric, "--from", FIRST_DAY, "--rules", &rules];
    args.extend(case.to.iter().flat_map(|to| ["--to", to]));
    let (id, during) = fill(server, parts, &args);
    let id = id.to_string();
    // Between ready and apply: late ones, and what was sent before once more.
    send(server, &parts.late[1]);
    send(server, &parts.base[..parts.base.len().min(200)]);
    send(server, &parts.late[0]);
    let differs = replay(server, &["diff", &id, "--output", "csv"]);
    assert_eq!(differs.status.code(), Some(3), "{}: {}", case.name, said(&differs));
    replay_ok(server, &["apply", &id]);
    send(server, &parts.late[2]);
    send(server, &parts.late[1]);
    let applied = queried(server, &metric);
    replay_ok(server, &["undo", &id]);
    let undone = queried(server, &metric);
    replay_ok(server, &["apply", &id]);
    let again = queried(server, &metric);
    replay_ok(server, &["undo", &id]);
    Seen { during, applied, undone, again }
}

fn settings(events: usize) -> [(&'static str, String); 4] {
    // Each of ten replays reads the records of ten metrics, and takes some seconds at this rate.
    let rate = (events * 100 / 4).to_string();
    [
        ("shards.count", "4".to_owned()),
        ("flush.interval", "300ms".to_owned()),
        ("query.max_points", "1000000".to_owned()),
        ("replay.max_rate", rate),
    ]
}

fn serve(data: &Path, events: usize) -> Server {
    let settings = settings(events);
    let settings: Vec<_> = settings.iter().map(|(key, value)| (*key, value.as_str())).collect();
    Server::start(data, &settings)
}

#[test]
fn ten_rule_files_give_what_duckdb_makes_of_the_csv_and_an_undo_the_bytes_before() {
    let dir = tempfile::tempdir().expect("a directory");
    let (header, rows) = flights(flight_count(4_000));
    let csv = dir.path().join("flights.csv");
    let mut writer = csv::Writer::from_path(&csv).expect("a file");
    writer.write_record(&header).expect("written");
    rows.iter().for_each(|row| writer.write_record(row).expect("written"));
    writer.flush().expect("written");
    let cases = cases();
    let queries: Vec<String> =
        cases.iter().map(query).chain([rollup(&select(&PLAIN, "true"))]).collect();
    let mut expected = duckdb(dir.path(), &csv, &queries);
    let plain = expected.pop().expect("the plain one");

    let server = serve(&dir.path().join("data"), rows.len());
    let parts: Vec<Parts> = (0..cases.len()).map(|n| Parts::new(&format!("m{n}"), &rows)).collect();
    parts.iter().for_each(|parts| send(&server, &parts.base));
    // A replay is of metrics that are in the store.
    wait_flushed(&server, parts.iter().map(|parts| parts.base.len() as u64).sum());
    let seen: Vec<Seen> = std::thread::scope(|scope| {
        let started: Vec<_> = std::iter::zip(cases.iter().enumerate(), &parts)
            .map(|(case, parts)| {
                let (server, dir) = (&server, dir.path());
                scope.spawn(move || run(server, dir, case, parts))
            })
            .collect();
        started.into_iter().map(|case| case.join().expect("a case")).collect()
    });
    for ((case, seen), expected) in cases.iter().zip(&seen).zip(&expected) {
        assert_equal(&format!("{}, applied", case.name), &seen.applied, expected);
        assert_equal(&format!("{}, undone", case.name), &seen.undone, &plain);
        assert_eq!(seen.again, seen.applied, "{}, applied again", case.name);
        println!("{}: {} rows are DuckDB's", case.name, expected.len());
    }
    assert!(seen.iter().any(|seen| seen.during), "nothing was sent during filling");
    let data = server.data.clone();
    // On a busy machine, a stop may leave unflushed records to the log.
    wait_nothing_pending(&server);
    stop_and_verify(server);

    let never = serve(&dir.path().join("never"), rows.len());
    for parts in &parts {
        parts.late.iter().rev().for_each(|late| send(&never, late));
        send(&never, &parts.base);
    }
    let other = never.data.clone();
    wait_flushed(&never, (rows.len() * cases.len()) as u64);
    assert_eq!(never.stop(), Some(0));
    for n in 0..cases.len() {
        let metric = format!("m{n}");
        let (undone, never) = (stored_rows(&data, &metric, 0), stored_rows(&other, &metric, 0));
        assert!(undone.len() > 100 && undone == never, "{metric} differs in its bytes");
    }
}
