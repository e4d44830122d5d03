//! Delivery of a batch: posts the same bytes until the server gives a final answer, so that event
//! ids make retries idempotent.

use std::ops::Range;
use std::time::Duration;

use anyhow::bail;

use super::stop_signal::StopSignal;
use crate::cli::client::{HttpAnswer, ServerClient};
use crate::clock::Stopwatch;

/// Delay before the first retry; it doubles with each further one, up to `MAX_DELAY`.
const FIRST_DELAY: Duration = Duration::from_millis(100);
const MAX_DELAY: Duration = Duration::from_secs(5);
/// How long a batch is still retried after a stop signal.
const STOP_GRACE: Duration = Duration::from_secs(5);
/// How often a waiting retry checks for a stop signal.
const POLL_INTERVAL: Duration = Duration::from_millis(50);

/// The result of a batch.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct BatchResult {
    /// Number of events that the server accepted.
    pub(super) accepted: u64,
    /// Index, code and message of each refused event.
    pub(super) refused: Vec<(usize, String, String)>,
}

/// Posts batches to a server.
pub(super) struct BatchPoster {
    server: ServerClient,
    patience: Duration,
    stop: StopSignal,
    pub(super) retries: u64,
}

/// What an answer means for a batch.
enum BatchVerdict {
    Done(HttpAnswer),
    /// The request was refused as a whole: an event in it is unreadable, or it is too large.
    Rejected {
        code: String,
        message: String,
    },
    Retry {
        why: String,
        after: Option<Duration>,
    },
    Fatal(String),
}

impl BatchPoster {
    pub(super) fn new(server: ServerClient, patience: Duration, stop: StopSignal) -> Self {
        Self { server, patience, stop, retries: 0 }
    }

    /// Delivers a body; `lines` are its lines, including their line feeds. Fails if the
    /// server refuses for good, or does not answer within the patience. Everything delivered
    /// before is in `done`.
    pub(super) fn deliver(
        &mut self,
        body: &[u8],
        lines: &[Range<usize>],
        done: &mut BatchResult,
    ) -> anyhow::Result<()> {
        self.deliver_part(body, lines, 0, done)
    }

    /// Delivers a part, halving it if the server refuses it as a whole: servers older than
    /// `event_unreadable` do so for a single bad event.
    fn deliver_part(
        &mut self,
        body: &[u8],
        lines: &[Range<usize>],
        first: usize,
        done: &mut BatchResult,
    ) -> anyhow::Result<()> {
        let (Some(from), Some(to)) = (lines.first(), lines.last()) else { return Ok(()) };
        match self.post_until_answered(&body[from.start..to.end])? {
            Ok(answer) => record_answer(&answer, first, lines.len(), done),
            Err((code, message)) if lines.len() == 1 => {
                done.refused.push((first, code, message));
                Ok(())
            }
            Err(_) => {
                let half = lines.len() / 2;
                self.deliver_part(body, &lines[..half], first, done)?;
                self.deliver_part(body, &lines[half..], first + half, done)
            }
        }
    }

    /// Retries until there is an answer; the inner error means that the whole request was refused.
    fn post_until_answered(
        &mut self,
        body: &[u8],
    ) -> anyhow::Result<Result<HttpAnswer, (String, String)>> {
        let mut failing: Option<Stopwatch> = None;
        let mut delay = FIRST_DELAY;
        let mut reported = String::new();
        loop {
            let (why, after) = match self.verdict(body) {
                BatchVerdict::Done(answer) => return Ok(Ok(answer)),
                BatchVerdict::Rejected { code, message } => return Ok(Err((code, message))),
                BatchVerdict::Fatal(why) => bail!("{why}"),
                BatchVerdict::Retry { why, after } => (why, after),
            };
            let failing = failing.get_or_insert_with(Stopwatch::start);
            let patience = if self.stop.is_requested() {
                self.patience.min(STOP_GRACE)
            } else {
                self.patience
            };
            if failing.elapsed() >= patience {
                bail!("gave up after {} s: {why}", failing.elapsed().as_secs());
            }
            // A failure of less than a second needs no message, and the same one none again.
            if reported != why && failing.elapsed() >= Duration::from_secs(1) {
                eprintln!("rollmill: {why}; trying again");
                reported = why;
            }
            self.retries += 1;
            self.wait(after.unwrap_or(delay));
            delay = (delay * 2).min(MAX_DELAY);
        }
    }

    fn verdict(&self, body: &[u8]) -> BatchVerdict {
        let answer = match self.server.post("/v1/events", "application/x-ndjson", body) {
            Ok(answer) => answer,
            Err(why) => return BatchVerdict::Retry { why, after: None },
        };
        match (answer.status, answer.error()) {
            (202, _) => BatchVerdict::Done(answer),
            // Not an error: every event was refused, each with its own reason.
            (422, None) => BatchVerdict::Done(answer),
            (400, Some((code, message))) if code == "body_unreadable" => {
                BatchVerdict::Rejected { code: "event_unreadable".to_owned(), message }
            }
            (413, Some((code, message))) => BatchVerdict::Rejected { code, message },
            (413, None) => BatchVerdict::Rejected {
                code: "body_too_large".to_owned(),
                message: answer.sentence(),
            },
            // A repeated batch counts once, so even an unknown outcome may be retried.
            (408 | 429 | 500 | 502 | 503 | 504, _) => BatchVerdict::Retry {
                why: answer.sentence(),
                after: answer.retry_after.map(|s| Duration::from_secs(s).min(MAX_DELAY * 12)),
            },
            _ => BatchVerdict::Fatal(answer.sentence()),
        }
    }

    /// Waits for a retry, but no longer than until a stop signal.
    fn wait(&self, time: Duration) {
        let watch = Stopwatch::start();
        let stopping = self.stop.is_requested();
        while watch.elapsed() < time && (stopping || !self.stop.is_requested()) {
            #[allow(clippy::disallowed_methods)]
            // a command that waits for a server has nothing else to do
            std::thread::sleep(POLL_INTERVAL.min(time.saturating_sub(watch.elapsed())));
        }
    }
}

/// Adds an answer to the result, after checking that it accounts for every event.
fn record_answer(
    answer: &HttpAnswer,
    first: usize,
    sent: usize,
    done: &mut BatchResult,
) -> anyhow::Result<()> {
    let parsed: serde_json::Value = serde_json::from_str(&answer.text).unwrap_or_default();
    let (Some(accepted), Some(rejected)) =
        (parsed["accepted"].as_u64(), parsed["rejected"].as_u64())
    else {
        bail!(
            "the server answered {} and not as Rollmill does: {}",
            answer.status,
            answer.text.chars().take(200).collect::<String>()
        );
    };
    // Counts that do not add up mean that events may be missing, so the batch is not done.
    if accepted + rejected != sent as u64 {
        bail!(
            "the server speaks of {accepted} events taken and {rejected} refused, {sent} were sent"
        );
    }
    done.accepted += accepted;
    let before = done.refused.len();
    for error in parsed["errors"].as_array().into_iter().flatten() {
        let text = |name: &str| error[name].as_str().unwrap_or_default().to_owned();
        let index =
            error["index"].as_u64().and_then(|at| usize::try_from(at).ok()).filter(|at| *at < sent);
        let Some(index) = index else {
            bail!("the server refused an event that it does not name: {error}")
        };
        done.refused.push((first + index, text("code"), text("message")));
    }
    if (done.refused.len() - before) as u64 != rejected {
        bail!("the server refused {rejected} events and names {}", done.refused.len() - before);
    }
    Ok(())
}
