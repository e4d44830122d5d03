//! `rollmill send`: events from a file or standard input, in batches, with retries that never count twice.
//!
//! An event without an id is given one made of the input's fingerprint and its line, so a retry, or a second run, is absorbed by
//! the server within its horizon. `--resume` keeps the position beside the data: told twice, also days later, it sends nothing twice.

mod input;

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use clap::Args;

use self::input::Lines;

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  rollmill send events.ndjson
  rollmill send flights.csv.gz --metric delay --time event_time --value dep_delay --label origin=origin --resume flights.sent
  tail -F events.ndjson | rollmill send -")]
pub(super) struct SendArgs {
    /// NDJSON, or CSV if --metric is given; .gz is decompressed; - is standard input
    file: PathBuf,
    /// CSV: the metric of every row
    #[arg(long)]
    metric: Option<String>,
    /// CSV: column of the time
    #[arg(long, requires = "metric")]
    time: Option<String>,
    /// CSV: column of the value; an empty cell is an event without a value
    #[arg(long, requires = "metric")]
    value: Option<String>,
    /// CSV: column of the user
    #[arg(long, requires = "metric")]
    user: Option<String>,
    /// CSV: column of the id
    #[arg(long, requires = "metric")]
    id: Option<String>,
    /// CSV: a label and its column
    #[arg(long, value_name = "LABEL=COLUMN", requires = "metric")]
    label: Vec<String>,
    /// Events of one request
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    batch: u32,
    /// Keep the position in this file
    #[arg(long)]
    resume: Option<PathBuf>,
    /// The server
    #[arg(long, env = "ROLLMILL_URL", default_value = "http://127.0.0.1:8080")]
    url: String,
    /// API key
    #[arg(long, env = "ROLLMILL_KEY", hide_env_values = true)]
    key: Option<String>,
    /// Give up after failing for this many seconds
    #[arg(long, default_value_t = 120)]
    patience: u64,
}

#[derive(Debug, Default)]
struct Summary {
    sent: u64,
    rejected: u64,
    skipped: u64,
    retries: u64,
    first_errors: Vec<String>,
}

pub(super) fn run(args: &SendArgs) -> anyhow::Result<()> {
    let mut lines = Lines::open(args)?;
    let mut summary = Summary { skipped: position(args.resume.as_deref())?, ..Summary::default() };
    let progress = progress(lines.total_bytes());
    for _ in 0..summary.skipped {
        if lines.next_event()?.is_none() {
            break;
        }
    }
    let agent: ureq::Agent =
        ureq::Agent::config_builder().http_status_as_error(false).timeout_global(Some(Duration::from_secs(60))).build().into();
    let mut done = summary.skipped;
    loop {
        let mut body = String::new();
        let mut events = 0u64;
        while events < u64::from(args.batch) && body.len() < 4 << 20 {
            let Some(event) = lines.next_event()? else { break };
            body.push_str(&event);
            body.push('\n');
            events += 1;
        }
        if events == 0 {
            break;
        }
        post(args, &agent, &body, done, &mut summary)?;
        done += events;
        summary.sent += events;
        keep_position(args.resume.as_deref(), done)?;
        progress.set_position(lines.read_bytes());
    }
    progress.finish_and_clear();
    report(&summary)
}

/// Sends one batch until the server answers for good.
fn post(args: &SendArgs, agent: &ureq::Agent, body: &str, first: u64, summary: &mut Summary) -> anyhow::Result<()> {
    let mut waited = Duration::ZERO;
    let mut delay = Duration::from_millis(100);
    loop {
        let mut request = agent.post(format!("{}/v1/events", args.url)).header("content-type", "application/x-ndjson");
        if let Some(key) = &args.key {
            request = request.header("authorization", format!("Bearer {key}"));
        }
        let why = match request.send(body.as_bytes()) {
            Ok(mut response) => {
                let status = response.status().as_u16();
                let after = response.headers().get("retry-after").and_then(|v| v.to_str().ok()).and_then(|v| v.parse().ok());
                let text = response.body_mut().read_to_string().unwrap_or_default();
                match status {
                    202 | 422 => return note_answer(&text, first, summary),
                    429 | 503 => {
                        delay = after.map_or(delay, Duration::from_secs);
                        format!("the server answered {status}")
                    }
                    _ => bail!("{} answered {status} to events {} and following: {text}", args.url, first + 1),
                }
            }
            Err(error) => error.to_string(),
        };
        if waited >= Duration::from_secs(args.patience) {
            bail!("gave up after {} s at event {}: {why}; run it again with --resume to go on", waited.as_secs(), first + 1);
        }
        summary.retries += 1;
        #[allow(clippy::disallowed_methods)] // a command that waits for a server has nothing else to do
        std::thread::sleep(delay);
        waited += delay;
        delay = (delay * 2).min(Duration::from_secs(5));
    }
}

fn note_answer(text: &str, first: u64, summary: &mut Summary) -> anyhow::Result<()> {
    let answer: serde_json::Value = serde_json::from_str(text).context("the server's answer is not JSON")?;
    summary.rejected += answer["rejected"].as_u64().unwrap_or(0);
    for error in answer["errors"].as_array().into_iter().flatten() {
        if summary.first_errors.len() < 10 {
            let at = first + 1 + error["index"].as_u64().unwrap_or(0);
            let part = |name: &str| error[name].as_str().unwrap_or("").to_owned();
            summary.first_errors.push(format!("event {at}: {}: {}", part("code"), part("message")));
        }
    }
    Ok(())
}

fn report(summary: &Summary) -> anyhow::Result<()> {
    eprintln!(
        "sent {} events, {} refused, {} retries, {} already sent before",
        summary.sent, summary.rejected, summary.retries, summary.skipped
    );
    summary.first_errors.iter().for_each(|error| eprintln!("  {error}"));
    if summary.rejected > 0 {
        bail!("{} events were refused", summary.rejected);
    }
    Ok(())
}

fn position(path: Option<&Path>) -> anyhow::Result<u64> {
    let Some(path) = path else { return Ok(0) };
    match std::fs::read_to_string(path) {
        Ok(text) => text.trim().parse().with_context(|| format!("{} does not hold a position", path.display())),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(0),
        Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
    }
}

/// Replaces the position as a whole: a crash leaves the old or the new one, and what was sent between is absorbed by id.
fn keep_position(path: Option<&Path>, done: u64) -> anyhow::Result<()> {
    let Some(path) = path else { return Ok(()) };
    let next = path.with_extension("next");
    let write = || {
        std::fs::write(&next, done.to_string())?;
        std::fs::File::open(&next)?.sync_all()?;
        std::fs::rename(&next, path)
    };
    write().with_context(|| format!("cannot keep the position in {}", path.display()))
}

fn progress(total: Option<u64>) -> indicatif::ProgressBar {
    let bar = total.map_or_else(indicatif::ProgressBar::new_spinner, indicatif::ProgressBar::new);
    let style = "{bar:40} {binary_bytes}/{binary_total_bytes} {binary_bytes_per_sec} {eta}";
    bar.with_style(indicatif::ProgressStyle::with_template(style).unwrap_or_else(|_| indicatif::ProgressStyle::default_bar()))
}
