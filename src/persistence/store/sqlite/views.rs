//! The views that people read with SQL: names instead of numbers, times instead of hours, labels as
//! JSON, figures as numbers. They show what is served, as the API does.
//!
//! Their names, columns and meaning are stable (docs/how-to/query-with-sql.md); columns may be
//! added behind the last one. Those of PostgreSQL are in `postgres/sql/views.sql`. They are written
//! for SQLite 3.40, because people read the file with the `sqlite3` that they have.

use rusqlite::Connection;

use super::{StoreError, query_optional};

/// By name, in an order in which each refers to earlier ones alone.
const VIEWS: [(&str, &str); 6] = [
    ("rollmill_served", include_str!("sql/served.sql")),
    ("rollmill_hourly", include_str!("sql/hourly.sql")),
    ("rollmill_metrics", include_str!("sql/metrics.sql")),
    ("rollmill_series", include_str!("sql/series.sql")),
    ("rollmill_label_values", include_str!("sql/label_values.sql")),
    ("rollmill_accounting", include_str!("sql/accounting.sql")),
];

/// Lays the views, unless they are there as this build has them: opening a store then writes
/// nothing, which a full disk would refuse.
pub(super) fn lay(tx: &Connection) -> Result<(), StoreError> {
    let wanted = VIEWS.map(|(name, select)| (name, definition(name, select)));
    let mut is_laid = true;
    for (name, sql) in &wanted {
        let known = "SELECT sql FROM sqlite_schema WHERE type = 'view' AND name = ?";
        let found = query_optional(tx, known, [name], |row| row.get::<_, String>(0))?;
        is_laid &= found.as_deref() == Some(sql);
    }
    if is_laid {
        return Ok(());
    }
    remove(tx)?;
    wanted.iter().try_for_each(|(_, sql)| Ok(tx.execute_batch(sql)?))
}

/// Removes the views. A migration does so first: SQLite renames no table under them.
pub(super) fn remove(tx: &Connection) -> Result<(), StoreError> {
    let drop = |(name, _): &(&str, &str)| format!("DROP VIEW IF EXISTS {name};");
    Ok(tx.execute_batch(&VIEWS.iter().rev().map(drop).collect::<String>())?)
}

fn definition(name: &str, select: &str) -> String {
    // Comments and line ends are for readers of the source.
    let lines = select.lines().map(str::trim).filter(|line| !line.starts_with("--"));
    let mut sql = lines.collect::<Vec<_>>().join(" ");
    for column in ["sum", "min", "max"] {
        sql = sql.replace(&format!("NUMBER(r.{column})"), &number(&format!("r.{column}")));
    }
    sql = sql.replace("LABELS(s.key)", &labels("s.key")).replace("LABELS(k.key)", &labels("k.key"));
    let time =
        |column: &str| format!("strftime('%Y-%m-%dT%H:%M:%SZ', {column} * 3600, 'unixepoch')");
    for column in ["r.hour", "p.hour", "a.hour", "min(m.first_hour)", "max(m.last_hour)"] {
        sql = sql.replace(&format!("TIME({column})"), &time(column));
    }
    format!("CREATE VIEW {name} AS {}", sql.trim().trim_end_matches(';'))
}

/// Units of 10^-9 as a double: whole and broken part by themselves, so that no digit is lost before
/// the last step. Those beyond 64 bits are 16 big-endian bytes, which SQL can only divide digit by
/// digit; of negative ones the complement.
fn number(column: &str) -> String {
    let is_negative = format!("hex({column}) >= '8'");
    let digit = format!(
        "CASE WHEN {is_negative} THEN 15 - instr('123456789ABCDEF', substr(hex({column}), i, 1)) \
         ELSE instr('123456789ABCDEF', substr(hex({column}), i, 1)) END"
    );
    format!(
        "CASE typeof({column}) WHEN 'integer' THEN CASE WHEN {column} BETWEEN -9007199254740992 AND \
         9007199254740992 THEN {column} / 1e9 ELSE {column} / 1000000000 + {column} % 1000000000 / \
         1e9 END WHEN 'blob' THEN (WITH RECURSIVE digits (i, whole, rest) AS (SELECT 1, 0, 0 UNION \
         ALL SELECT i + 1, whole * 16 + (rest * 16 + {digit}) / 1000000000, (rest * 16 + {digit}) % \
         1000000000 FROM digits WHERE i <= 32) SELECT CASE WHEN {is_negative} THEN -(whole + (rest + \
         1) / 1e9) ELSE whole + rest / 1e9 END FROM digits WHERE i = 33) END"
    )
}

/// The labels of a series, from its key: strings, each behind its length (7 bits a byte, least
/// first; no string takes more than two): tenant, metric, then names and values.
fn labels(key: &str) -> String {
    let byte = |at: &str| {
        let digit =
            |n| format!("instr('123456789ABCDEF', substr(hex(substr({key}, {at}, 1)), {n}, 1))");
        format!("({} * 16 + {})", digit(1), digit(2))
    };
    let head = "CASE WHEN b0 < 128 THEN 1 ELSE 2 END";
    let size = "CASE WHEN b0 < 128 THEN b0 ELSE b0 - 128 + b1 * 128 END";
    let next = format!("(p + {head} + {size})");
    let (first, second) = (byte("1"), byte("2"));
    let (next_first, next_second) = (byte(&next), byte(&format!("({next} + 1)")));
    format!(
        "(WITH RECURSIVE strings (n, p, b0, b1) AS (SELECT 0, 1, {first}, {second} UNION ALL SELECT \
         n + 1, {next}, {next_first}, {next_second} FROM strings WHERE {next} <= length({key})) \
         SELECT json_group_object(name, value) FROM (SELECT max(CASE WHEN n % 2 = 0 THEN t END) AS \
         name, max(CASE WHEN n % 2 = 1 THEN t END) AS value FROM (SELECT n, CAST(substr({key}, p + \
         {head}, {size}) AS TEXT) AS t FROM strings WHERE n >= 2) GROUP BY n / 2))"
    )
}

#[cfg(test)]
mod tests {
    use rusqlite::params;

    use super::super::codec::SqliteUnits;
    use super::*;
    use crate::model::series::Series;

    #[test]
    fn labels_and_figures_of_any_size_are_read() {
        let db = Connection::open_in_memory().expect("memory");
        db.execute_batch("CREATE TABLE t (n INTEGER, key BLOB, sum)").expect("a table");
        let long = "ä".repeat(128);
        let cases = [
            (vec![], 0),
            (vec![("a", "1")], -1_500_000_000),
            (vec![("a", &*long), ("b", "say \"so\"\\\n"), ("c", "😀")], i128::from(i64::MAX) + 1),
            (vec![("page", "/"), ("zz", "=1+1")], -12_345_678_901_234_567_890_123_456_789),
            (vec![("page", "/a")], 999_999_999_999_000_000_001),
            (vec![("page", "/b")], -999_999_999_999_000_000_001),
            (vec![("page", "/c")], -9_223_372_036_854_775_807),
        ];
        for (n, (labels, units)) in cases.iter().enumerate() {
            let labels = labels.iter().map(|(name, value)| (name.to_string(), value.to_string()));
            let key = Series::new("tenant", "metric", labels).key();
            let row = params![n as i64, key, SqliteUnits(*units)];
            db.execute("INSERT INTO t VALUES (?, ?, ?)", row).expect("a row");
        }
        let sql = format!("SELECT {}, {} FROM t s ORDER BY n", labels("s.key"), number("s.sum"));
        let mut statement = db.prepare(&sql).expect("it parses");
        let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?))).expect("rows");
        let rows: Vec<(String, f64)> = rows.map(|row| row.expect("a row")).collect();
        assert_eq!(rows.len(), cases.len());
        for ((text, sum), (labels, units)) in rows.into_iter().zip(cases) {
            let read: std::collections::BTreeMap<String, String> =
                serde_json::from_str(&text).expect("an object");
            let labels =
                labels.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned()));
            assert_eq!(read, labels.collect());
            let exact = units as f64 / 1e9;
            assert!((sum - exact).abs() <= exact.abs() * 1e-15, "{sum} is not {exact}");
        }
    }

    #[test]
    fn views_are_laid_once_and_again_if_they_are_others() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("store.db");
        let changes = || {
            drop(super::super::SqliteStore::open(&path).expect("a store"));
            let db = Connection::open(&path).expect("the file");
            let version: i64 =
                db.query_row("PRAGMA schema_version", [], |row| row.get(0)).expect("a number");
            let rows: i64 = VIEWS
                .iter()
                .map(|(name, _)| {
                    let sql = format!("SELECT count(*) FROM {name}");
                    db.query_row(&sql, [], |row| row.get::<_, i64>(0)).expect("it can be read")
                })
                .sum();
            assert_eq!(rows, 0);
            version
        };
        let laid = changes();
        assert_eq!(changes(), laid, "nothing is written at the second start");
        let db = Connection::open(&path).expect("the file");
        db.execute_batch("DROP VIEW rollmill_metrics").expect("dropped");
        assert!(changes() > laid, "they are laid again");
    }
}
