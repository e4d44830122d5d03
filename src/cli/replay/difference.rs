//! Joins the parts of a difference, and shows it.

use std::time::Duration;

use anyhow::{Context, anyhow};

use super::{Output, ServerClient, decode_answer};
use crate::api::replays::{DiffFigures, DiffRow, DiffSum, DiffTotals, ReplayDiff};
use crate::cli::number_format::{count_of, grouped};
use crate::gateway::diff_csv;
use crate::model::decimal::{parse_units, write_units};

/// How often a part is asked for.
const ATTEMPTS: u32 = 10;
/// Interval between two attempts.
const ASK_AGAIN: Duration = Duration::from_secs(1);
/// Interval at which the spinner turns.
const TICK: Duration = Duration::from_millis(200);

/// What differs, as far as it was read.
pub(super) struct Difference {
    max_rows: usize,
    totals: DiffTotals,
    /// The largest changes, the largest first, each with its size.
    rows: Vec<(ChangeSize, DiffRow)>,
}

/// By how much a row changed: events, sum, users. Greater is larger.
type ChangeSize = (u64, u128, u64);

/// Reads a part. A server that restarts or is busy is asked again.
fn read_part(
    server: &ServerClient,
    path: &str,
    parameters: &[(&str, String)],
) -> anyhow::Result<ReplayDiff> {
    let mut attempts = 1..=ATTEMPTS;
    loop {
        attempts.next();
        let answer = match server.get(path, parameters) {
            Ok(answer) if answer.status >= 429 && !attempts.is_empty() => None,
            Err(_) if !attempts.is_empty() => None,
            answer => Some(answer.map_err(anyhow::Error::msg)?),
        };
        if let Some(answer) = answer {
            return decode_answer(&server.json(answer)?);
        }
        // The server has no event to wait for.
        #[allow(clippy::disallowed_methods)]
        std::thread::sleep(ASK_AGAIN);
    }
}

/// Says that something happens while the server compares: a part takes seconds.
fn spinner() -> indicatif::ProgressBar {
    let style = indicatif::ProgressStyle::with_template("{spinner} {msg}, {elapsed}");
    let spinner = indicatif::ProgressBar::no_length()
        .with_style(style.unwrap_or_else(|_| indicatif::ProgressStyle::default_spinner()));
    spinner.enable_steady_tick(TICK);
    spinner
}

/// A sum in units of 10^-9, from exact decimal text.
fn units(text: &str) -> anyhow::Result<i128> {
    parse_units(text).ok_or_else(|| anyhow!("the server sent the sum {text:?}, which is no number"))
}

fn sum_text(sum: i128) -> String {
    let mut text = String::new();
    // Writing to a string cannot fail.
    let _infallible = write_units(sum, &mut text);
    text
}

fn add(sum: &mut DiffSum, more: &DiffSum) -> anyhow::Result<()> {
    // As the server adds them.
    sum.sum = sum_text(units(&sum.sum)?.saturating_add(units(&more.sum)?));
    sum.count += more.count;
    sum.value_count += more.value_count;
    Ok(())
}

/// By how much a row changed, as the server orders rows. Fails if a sum of it is no number.
fn size(row: &DiffRow) -> anyhow::Result<ChangeSize> {
    let count = |side: &Option<DiffFigures>| side.as_ref().map_or(0, |row| row.count);
    let sum = |side: &Option<DiffFigures>| side.as_ref().map_or(Ok(0), |row| units(&row.sum));
    let users = |side: &Option<DiffFigures>| side.as_ref().map_or(0, |row| row.distinct);
    let of_row = || {
        let time = row.time.map_or_else(|| "?".to_owned(), |at| at.to_string());
        format!("the row of {time}, {} {}", row.metric, labels(row))
    };
    let sums = (sum(&row.before), sum(&row.after));
    Ok((
        count(&row.before).abs_diff(count(&row.after)),
        sums.0.with_context(of_row)?.abs_diff(sums.1.with_context(of_row)?),
        users(&row.before).abs_diff(users(&row.after)),
    ))
}

fn labels(row: &DiffRow) -> String {
    let labels = row.labels.iter().map(|(name, value)| format!("{name}={value}"));
    labels.collect::<Vec<_>>().join(" ")
}

/// Totals of no row at all.
fn no_rows() -> DiffTotals {
    let nothing = DiffSum { sum: "0".to_owned(), ..DiffSum::default() };
    DiffTotals { before: nothing.clone(), after: nothing, ..DiffTotals::default() }
}

impl Difference {
    pub(super) fn new(max_rows: usize) -> Self {
        Self { max_rows, totals: no_rows(), rows: Vec::new() }
    }

    /// Reads all parts. As CSV and JSON, rows are printed as they come. Returns false if `stop` has
    /// ended it between two parts.
    #[allow(clippy::print_stdout)] // the output of the command
    pub(super) fn read(
        &mut self,
        server: &ServerClient,
        id: u64,
        output: Output,
        stop: &dyn Fn() -> bool,
    ) -> anyhow::Result<bool> {
        let mut after: Option<String> = None;
        // Beside rows on the same terminal it would be in the way.
        let spinner = match output {
            Output::Table => spinner(),
            Output::Csv | Output::Json => indicatif::ProgressBar::hidden(),
        };
        loop {
            spinner.set_message(self.compared());
            let rows = if output == Output::Table { "largest" } else { "all" };
            let mut parameters = vec![("format", "json".to_owned()), ("rows", rows.to_owned())];
            if output == Output::Table {
                parameters.push(("limit", self.max_rows.to_string()));
            }
            parameters.extend(after.iter().map(|after| ("after", after.clone())));
            let mut part = read_part(server, &format!("/v1/replays/{id}/diff"), &parameters)?;
            match output {
                Output::Table => self.keep_largest(std::mem::take(&mut part.rows))?,
                Output::Csv => print!("{}", diff_csv::table(&part.rows, after.is_none())?),
                Output::Json => {
                    for row in &part.rows {
                        println!("{}", serde_json::to_string(row)?);
                    }
                }
            }
            self.add(&part.totals)?;
            after = part.next;
            if after.is_none() || stop() {
                spinner.finish_and_clear();
                return Ok(after.is_none());
            }
        }
    }

    /// How many rows were compared so far.
    fn compared(&self) -> String {
        let totals = &self.totals;
        let rows = totals.added + totals.removed + totals.changed + totals.equal;
        format!("comparing: {}", count_of(rows, "row"))
    }

    fn add(&mut self, part: &DiffTotals) -> anyhow::Result<()> {
        self.totals.added += part.added;
        self.totals.removed += part.removed;
        self.totals.changed += part.changed;
        self.totals.equal += part.equal;
        add(&mut self.totals.before, &part.before)?;
        add(&mut self.totals.after, &part.after)
    }

    fn keep_largest(&mut self, rows: Vec<DiffRow>) -> anyhow::Result<()> {
        for row in rows {
            self.rows.push((size(&row)?, row));
        }
        // Stable, so that of equal sizes the earlier row comes first.
        self.rows.sort_by_key(|(size, _)| std::cmp::Reverse(*size));
        self.rows.truncate(self.max_rows);
        Ok(())
    }

    pub(super) fn totals(&self) -> &DiffTotals {
        &self.totals
    }

    pub(super) fn differs(&self) -> bool {
        self.totals.added + self.totals.removed + self.totals.changed > 0
    }

    /// Totals before and after, and the largest changes.
    pub(super) fn table(&self) -> String {
        let totals = &self.totals;
        let mut table = figures_table(["", "before", "after"], 1..3);
        let (before, after) = (&totals.before, &totals.after);
        let count = |n: u64| grouped(&n.to_string());
        table.add_row(["events".to_owned(), count(before.count), count(after.count)]);
        let values = [count(before.value_count), count(after.value_count)];
        table.add_row(["with a value".to_owned(), values[0].clone(), values[1].clone()]);
        table.add_row(["sum".to_owned(), grouped(&before.sum), grouped(&after.sum)]);
        let rows = format!(
            "rows: {} added, {} removed, {} changed, {} equal",
            count(totals.added),
            count(totals.removed),
            count(totals.changed),
            count(totals.equal)
        );
        match self.rows.is_empty() {
            true => format!("{table}\n\n{rows}"),
            false => format!("{table}\n\n{rows}; the largest changes:\n{}", self.largest()),
        }
    }

    fn largest(&self) -> String {
        let head = ["hour", "metric", "labels", "change", "events", "sum", "users", "sketches"];
        let mut table = figures_table(head, 4..7);
        for (_, row) in &self.rows {
            let pair = |of: fn(&DiffFigures) -> String| {
                let side = |side: &Option<DiffFigures>| side.as_ref().map(of);
                match (side(&row.before), side(&row.after)) {
                    (Some(before), Some(after)) if before == after => grouped(&before),
                    (before, after) => {
                        let text = |side: Option<String>| {
                            side.map_or_else(|| "-".to_owned(), |side| grouped(&side))
                        };
                        format!("{} → {}", text(before), text(after))
                    }
                }
            };
            table.add_row([
                row.time.map_or_else(String::new, |at| at.to_string()),
                row.metric.clone(),
                labels(row),
                row.change.clone(),
                pair(|row| row.count.to_string()),
                pair(|row| row.sum.clone()),
                pair(|row| row.distinct.to_string()),
                sketches(row).to_owned(),
            ]);
        }
        table.to_string()
    }
}

/// Whether both sketches are the same bytes; of a row that only one side has, nothing.
fn sketches(row: &DiffRow) -> &'static str {
    match (&row.before, &row.after) {
        (Some(_), Some(_)) if row.quantiles_equal && row.distinct_equal => "equal",
        (Some(_), Some(_)) => "differ",
        _ => "-",
    }
}

fn figures_table<const N: usize>(
    head: [&str; N],
    figures: std::ops::Range<usize>,
) -> comfy_table::Table {
    let mut table = comfy_table::Table::new();
    table.load_style(comfy_table::presets::NOTHING);
    table.set_header(head);
    for column in figures {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(comfy_table::CellAlignment::Right);
        }
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    fn figures(count: u64, sum: &str) -> DiffFigures {
        let (min, max) = (None, None);
        DiffFigures { count, value_count: count, sum: sum.to_owned(), min, max, distinct: 0 }
    }

    fn row(page: &str, before: Option<DiffFigures>, after: Option<DiffFigures>) -> DiffRow {
        DiffRow {
            time: crate::api::timestamp(0),
            metric: "m".to_owned(),
            labels: [("page".to_owned(), page.to_owned())].into(),
            change: "changed".to_owned(),
            before,
            after,
            distinct_equal: true,
            quantiles_equal: false,
        }
    }

    #[test]
    fn sums_of_parts_are_exact() {
        let (mut all, part) = (
            DiffSum { count: 1, value_count: 1, sum: "-0.1".to_owned() },
            DiffSum { count: 2, value_count: 1, sum: "123456789012345678901.000000001".to_owned() },
        );
        add(&mut all, &part).expect("sums");
        let expected = "123456789012345678900.900000001".to_owned();
        assert_eq!(all, DiffSum { count: 3, value_count: 2, sum: expected });
        let broken = add(&mut all, &DiffSum { sum: "1,5".to_owned(), ..part });
        assert!(broken.is_err_and(|why| why.to_string().contains("1,5")));
        for wrong in ["x", "", "1.5.6", "--5", "0.1234567891"] {
            assert!(units(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_row_whose_sum_is_no_number_is_named() {
        let mut difference = Difference::new(2);
        let rows = vec![
            row("right", Some(figures(5, "5")), None),
            row("wrong", Some(figures(5, "5")), Some(figures(5, "5,0"))),
        ];
        let why = format!("{:#}", difference.keep_largest(rows).expect_err("refused"));
        assert!(why.contains("m page=wrong") && why.contains("\"5,0\""), "{why}");
    }

    #[test]
    fn the_table_has_totals_and_the_largest_changes_of_all_parts() {
        let mut difference = Difference::new(2);
        let first = vec![
            row("small", Some(figures(5, "5")), Some(figures(4, "4"))),
            row("scaled", Some(figures(5, "300")), Some(figures(5, "5"))),
        ];
        difference.keep_largest(first).expect("sums");
        let kept = difference.keep_largest(vec![row("gone", Some(figures(1_000, "7")), None)]);
        kept.expect("sums");
        let totals = DiffTotals { removed: 1, changed: 2, equal: 9, ..no_rows() };
        difference.add(&totals).expect("added");
        let shown = difference.table();
        let gone = shown.find("page=gone").expect("the largest");
        assert!(gone < shown.find("page=small").expect("the second"), "{shown}");
        assert!(!shown.contains("page=scaled") && shown.contains("1,000 → -"), "{shown}");
        assert!(shown.contains("0 added, 1 removed, 2 changed, 9 equal"), "{shown}");
        assert!(difference.differs());
    }
}
