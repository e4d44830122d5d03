//! `rollmill query`: a metric as a table, a plot, or JSON.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::Args;
use serde_json::value::RawValue;

/// Shards named in the warning about a partial answer.
const NAMED: usize = 5;
/// Series drawn by `--plot`.
const PLOTS: usize = 8;

/// The answer of the server; figures stay text, so that sums keep all their digits.
#[derive(Debug, serde::Deserialize)]
struct Answer {
    series: Vec<SeriesPoints>,
    completeness: Completeness,
}

#[derive(Debug, serde::Deserialize)]
struct SeriesPoints {
    labels: BTreeMap<String, String>,
    points: Vec<Point>,
}

#[derive(Debug, serde::Deserialize)]
struct Point(BTreeMap<String, Box<RawValue>>);

impl Point {
    /// A value as it came, without the quotes of a string; empty if it is not there.
    fn text(&self, key: &str) -> &str {
        self.0.get(key).map_or("", |v| v.get().trim_matches('"'))
    }
    fn figure(&self, agg: &str) -> Option<&str> {
        Some(self.text(agg)).filter(|text| !text.is_empty() && *text != "null")
    }
}

#[derive(Debug, serde::Deserialize)]
struct Completeness {
    partial: bool,
    missing: Vec<Missing>,
}

#[derive(Debug, serde::Deserialize)]
struct Missing {
    shard: u32,
    reason: String,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  rollmill query page_view
  rollmill query page_view --agg count,p95 --by country --step 1d --from 2026-01-01T00:00:00Z --plot
  rollmill query page_view --where '{page=~\"/blog/.*\"}' --json")]
pub(super) struct QueryArgs {
    /// The metric
    metric: String,
    /// First time, inclusive: RFC 3339 or milliseconds [default: a day ago]
    #[arg(long)]
    from: Option<String>,
    /// Last time, exclusive [default: now]
    #[arg(long)]
    to: Option<String>,
    /// 1h, 6h, 1d, 1w, 1mo or all
    #[arg(long)]
    step: Option<String>,
    /// Time zone of the steps
    #[arg(long)]
    tz: Option<String>,
    /// count, sum, avg, min, max, distinct, rate, p50, p90, p95, p99, p99.9
    #[arg(long)]
    agg: Option<String>,
    /// Labels to group by
    #[arg(long)]
    by: Option<String>,
    /// Matchers
    #[arg(long = "where")]
    matchers: Option<String>,
    /// At most this many series
    #[arg(long)]
    limit: Option<String>,
    /// Print the answer as it came
    #[arg(long)]
    json: bool,
    /// Draw the first aggregate over time
    #[arg(long)]
    plot: bool,
    /// The server
    #[arg(long, env = "ROLLMILL_URL", default_value = "http://127.0.0.1:8080")]
    url: String,
    /// API key
    #[arg(long, env = "ROLLMILL_KEY", hide_env_values = true)]
    key: Option<String>,
}

pub(super) fn run(args: &QueryArgs) -> anyhow::Result<()> {
    let text = fetch(args)?;
    if args.json {
        return print(&text);
    }
    let answer: Answer = serde_json::from_str(&text).context("the answer is not what this version understands")?;
    print(&table(args, &answer))?;
    if args.plot {
        print(&plot(args, &answer))?;
    }
    if answer.completeness.partial {
        eprintln!("{}", warning(&answer.completeness.missing));
    }
    Ok(())
}

#[allow(clippy::print_stdout)] // the output of the command
fn print(text: &str) -> anyhow::Result<()> {
    println!("{text}");
    Ok(())
}

fn fetch(args: &QueryArgs) -> anyhow::Result<String> {
    let config = ureq::Agent::config_builder().http_status_as_error(false).timeout_global(Some(Duration::from_secs(60))).build();
    let mut request = ureq::Agent::from(config).get(format!("{}/v1/query", args.url)).query("metric", &args.metric);
    let optional = [
        ("from", &args.from),
        ("to", &args.to),
        ("step", &args.step),
        ("tz", &args.tz),
        ("agg", &args.agg),
        ("by", &args.by),
        ("where", &args.matchers),
        ("limit", &args.limit),
    ];
    for (name, value) in optional {
        if let Some(value) = value {
            request = request.query(name, value);
        }
    }
    if let Some(key) = &args.key {
        request = request.header("authorization", format!("Bearer {key}"));
    }
    let mut response = request.call().with_context(|| format!("cannot reach {}: is `rollmill serve` running?", args.url))?;
    let text = response.body_mut().with_config().limit(1 << 30).read_to_string().context("the answer ended early")?;
    if response.status() != 200 {
        bail!("{} answered {}: {text}", args.url, response.status());
    }
    Ok(text)
}

fn aggs(args: &QueryArgs) -> Vec<&str> {
    args.agg.as_deref().unwrap_or("count").split(',').map(str::trim).filter(|a| !a.is_empty()).collect()
}

fn table(args: &QueryArgs, answer: &Answer) -> String {
    let by: Vec<&str> = args.by.as_deref().map(|by| by.split(',').map(str::trim).collect()).unwrap_or_default();
    let mut table = comfy_table::Table::new();
    table.load_style(comfy_table::presets::NOTHING);
    table.set_header(std::iter::once("time").chain(by.iter().copied()).chain(aggs(args)));
    for series in &answer.series {
        for point in &series.points {
            let labels = by.iter().map(|name| series.labels.get(*name).cloned().unwrap_or_default());
            let values = aggs(args).into_iter().map(|agg| point.figure(agg).map_or_else(|| "-".to_owned(), |v| shown(agg, v)));
            table.add_row(std::iter::once(point.text("t").to_owned()).chain(labels).chain(values));
        }
    }
    for column in table.column_iter_mut().skip(1 + by.len()) {
        column.set_cell_alignment(comfy_table::CellAlignment::Right);
    }
    if table.is_empty() { format!("no data for {} in this range", args.metric) } else { table.to_string() }
}

/// Exact figures as they came; averages and quantiles, which are not, with three digits for the eye.
fn shown(agg: &str, value: &str) -> String {
    match (agg, value.parse::<f64>()) {
        ("count" | "sum" | "min" | "max" | "distinct", _) | (_, Err(_)) => value.to_owned(),
        (_, Ok(number)) => format!("{number:.3}"),
    }
}

/// Which shards an answer lacks, in one line.
fn warning(missing: &[Missing]) -> String {
    let named: Vec<String> = missing.iter().take(NAMED).map(|m| format!("{} ({})", m.shard, m.reason)).collect();
    let more = missing.len().saturating_sub(NAMED);
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    format!("partial: shards {}{more} are missing or behind; ask again, or see --json", named.join(", "))
}

fn plot(args: &QueryArgs, answer: &Answer) -> String {
    use textplots::{Chart, Plot, Shape};
    let agg = aggs(args).first().copied().unwrap_or("count");
    let mut out = String::new();
    for series in answer.series.iter().take(PLOTS) {
        let at = |point: &Point| point.figure(agg).and_then(|v| v.parse::<f32>().ok());
        let points: Vec<(f32, f32)> =
            (0u16..).zip(&series.points).filter_map(|(x, p)| at(p).map(|y| (f32::from(x), y))).collect();
        let (Some(first), Some(last)) = (series.points.first(), series.points.last()) else { continue };
        if points.len() < 2 {
            continue;
        }
        let (low, high) = points.iter().fold((f32::MAX, f32::MIN), |(low, high), (_, y)| (low.min(*y), high.max(*y)));
        let labels: Vec<String> = series.labels.iter().map(|(name, value)| format!(" {name}={value}")).collect();
        let mut chart = Chart::new(140, 40, 0.0, (points.len() - 1) as f32);
        let shape = Shape::Lines(&points);
        let drawn = chart.lineplot(&shape);
        drawn.axis();
        drawn.figures();
        let drawn = drawn.to_string();
        // The last line numbers the points; people read times.
        let (lines, _) = drawn.trim_end().rsplit_once('\n').unwrap_or((&drawn, ""));
        let (from, to) = (first.text("t"), last.text("t"));
        out += &format!("\n{}: {agg}{}, {low} to {high}\n{lines}\n{from}{to:>50}\n", args.metric, labels.concat());
    }
    if answer.series.len() > PLOTS {
        out += &format!("\n{} more series are not drawn: narrow down with --where or --limit\n", answer.series.len() - PLOTS);
    }
    out
}
