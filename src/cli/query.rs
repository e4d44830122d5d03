//! `rollmill query`: a metric as a table, a plot, or JSON.

use std::time::Duration;

use anyhow::{Context, bail};
use clap::Args;

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
    let answer: serde_json::Value = serde_json::from_str(&text).context("the answer is not JSON")?;
    print(&table(args, &answer))?;
    if args.plot {
        print(&plot(args, &answer))?;
    }
    let completeness = &answer["completeness"];
    if completeness["partial"] == true {
        eprintln!("partial: {}", completeness["missing"]);
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

fn table(args: &QueryArgs, answer: &serde_json::Value) -> String {
    let by: Vec<&str> = args.by.as_deref().map(|by| by.split(',').map(str::trim).collect()).unwrap_or_default();
    let mut table = comfy_table::Table::new();
    table.load_style(comfy_table::presets::UTF8_HORIZONTAL_ONLY);
    table.set_header(std::iter::once("time").chain(by.iter().copied()).chain(aggs(args)));
    for series in answer["series"].as_array().into_iter().flatten() {
        for point in series["points"].as_array().into_iter().flatten() {
            let labels = by.iter().map(|name| series["labels"][name].as_str().unwrap_or("").to_owned());
            let values = aggs(args).into_iter().map(|agg| match &point[agg] {
                serde_json::Value::Null => "-".to_owned(),
                value => value.to_string(),
            });
            table.add_row(std::iter::once(point["t"].as_str().unwrap_or("").to_owned()).chain(labels).chain(values));
        }
    }
    if table.is_empty() { format!("no data for {} in this range", args.metric) } else { table.to_string() }
}

fn plot(args: &QueryArgs, answer: &serde_json::Value) -> String {
    use textplots::{Chart, Plot, Shape};
    let agg = aggs(args).first().copied().unwrap_or("count").to_owned();
    let mut out = String::new();
    for series in answer["series"].as_array().into_iter().flatten().take(8) {
        let points: Vec<(f32, f32)> = series["points"]
            .as_array()
            .into_iter()
            .flatten()
            .enumerate()
            .filter_map(|(at, point)| point[&agg].as_f64().map(|value| (at as f32, value as f32)))
            .collect();
        if points.len() > 1 {
            let mut chart = Chart::new(140, 40, 0.0, (points.len() - 1) as f32);
            let shape = Shape::Lines(&points);
            let drawn = chart.lineplot(&shape);
            drawn.axis();
            drawn.figures();
            out += &format!("{agg} {}\n{drawn}\n", series["labels"]);
        }
    }
    out
}
