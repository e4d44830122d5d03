//! Waits for a replay, with a progress bar.

use std::time::Duration;

use anyhow::bail;

use super::{ServerClient, decode_answer};
use crate::api::replays::{EventProgress, Replay, ReplayProgress, ReplayState};
use crate::cli::number_format::{count_of, grouped};
use crate::cli::send::stop_signal::StopSignal;
use crate::clock::Stopwatch;

/// Interval between two looks.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// Looks in a row that the server may not answer.
const MAX_UNANSWERED: u32 = 120;

/// How the waiting ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    Ready,
    /// A person does not want to wait.
    Stopped,
}

/// Waits until the replay is ready. Fails if it was cancelled or given up, or if the server does
/// not answer for a minute; the replay itself goes on then.
pub(super) fn until_ready(
    server: &ServerClient,
    id: u64,
    stop: &StopSignal,
) -> anyhow::Result<Outcome> {
    let style = indicatif::ProgressStyle::with_template("{bar:40} {msg}");
    let bar = indicatif::ProgressBar::new(0)
        .with_style(style.unwrap_or_else(|_| indicatif::ProgressStyle::default_bar()));
    let (mut unanswered, mut pace) = (0, FillPace::default());
    while !stop.is_requested() {
        let step = match look(server, id)? {
            Ok(replay) => {
                unanswered = 0;
                step(&replay)
            }
            Err(why) if unanswered >= MAX_UNANSWERED => {
                bail!("{why}; replay {id} goes on: `rollmill replay show {id}`")
            }
            Err(why) => {
                unanswered += 1;
                bar.set_message(format!("{why}; it is asked again"));
                Step::Retry
            }
        };
        match step {
            Step::Ready => {
                bar.finish_and_clear();
                return Ok(Outcome::Ready);
            }
            Step::Over(why) => {
                bar.finish_and_clear();
                bail!("replay {id} {why}");
            }
            Step::Retry => {}
            Step::Adopting(shards) => {
                let shards = count_of(shards, "shard");
                bar.set_message(format!("begins with the next flush of {shards}"));
            }
            Step::Archiving(records) => {
                let records = count_of(records, "record");
                bar.set_message(format!("waits until the archive has {records}"));
            }
            Step::Filling(filling) => {
                bar.set_length(filling.all);
                bar.set_position(filling.done);
                bar.set_message(progress_text(filling, pace.rate(filling.done)));
            }
        }
        // The server has no event to wait for.
        #[allow(clippy::disallowed_methods)]
        std::thread::sleep(LOOK_EVERY);
    }
    bar.finish_and_clear();
    Ok(Outcome::Stopped)
}

/// Asks once. The inner error is one of a node that restarts, is busy, or cannot be reached: it is
/// asked again.
fn look(server: &ServerClient, id: u64) -> anyhow::Result<Result<Replay, String>> {
    let answer = match server.get(&format!("/v1/replays/{id}"), &[]) {
        Err(why) => return Ok(Err(why)),
        Ok(answer) if answer.status >= 429 => return Ok(Err(answer.sentence())),
        Ok(answer) => answer,
    };
    Ok(Ok(decode_answer(&server.json(answer)?)?))
}

/// What a look says.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Step {
    Ready,
    /// The server did not answer.
    Retry,
    Over(String),
    /// So many shards have no cut yet, and what is to be counted is not known.
    Adopting(u64),
    /// So many records are not in the archive yet, and there is nothing else to read.
    Archiving(u64),
    Filling(Filling),
}

/// So many of so many.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Filling {
    done: u64,
    all: u64,
    /// `events`; `records` of a server of an older release, which does not know the events.
    unit: &'static str,
}

/// How fast they are read, since some were for the first time.
#[derive(Default)]
struct FillPace(Option<(Stopwatch, u64)>);

impl FillPace {
    /// Per second; `None` until it can be told.
    fn rate(&mut self, done: u64) -> Option<f64> {
        let (since, first) = self.0.get_or_insert_with(|| (Stopwatch::start(), done));
        let (counted, seconds) = (done.saturating_sub(*first), since.elapsed().as_secs_f64());
        (counted > 0 && seconds > 0.0).then(|| counted as f64 / seconds)
    }
}

/// How far it is, how fast, and how long it will take.
fn progress_text(Filling { done, all, unit }: Filling, rate: Option<f64>) -> String {
    let number = |n: u64| grouped(&n.to_string());
    let counted = format!("{} of {} {unit}", number(done), number(all));
    let Some(rate) = rate else { return counted };
    let left = Duration::from_secs_f64((all.saturating_sub(done) as f64 / rate).min(1e9));
    let left = indicatif::HumanDuration(left);
    format!("{counted}, {}/s, {left} left", number(rate.round() as u64))
}

fn filling(progress: &ReplayProgress) -> Step {
    match progress.events {
        Some(events) if events.left == 0 && events.unarchived_records > 0 => {
            Step::Archiving(events.unarchived_records)
        }
        Some(EventProgress { done, left, .. }) => {
            Step::Filling(Filling { done, all: done + left, unit: "events" })
        }
        None => {
            let ReplayProgress { done, left, .. } = progress;
            Step::Filling(Filling { done: *done, all: done + left, unit: "records" })
        }
    }
}

fn step(replay: &Replay) -> Step {
    match replay.state {
        ReplayState::Ready | ReplayState::Undone => Step::Ready,
        ReplayState::Building => {
            let Some(progress) = &replay.progress else { return Step::Retry };
            let adopting = progress.waits_for.iter().filter(|shard| shard.cut.is_none()).count();
            match adopting as u64 {
                0 => filling(progress),
                shards => Step::Adopting(shards),
            }
        }
        ReplayState::GivenUp => {
            let why = replay.given_up.clone().unwrap_or_default();
            Step::Over(format!("was given up: {why}"))
        }
        ReplayState::Leaving => Step::Over("was cancelled".to_owned()),
        ReplayState::Applied | ReplayState::Replaced => {
            Step::Over("was applied by somebody else".to_owned())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::replay::lists::tests::replay;

    #[test]
    fn the_bar_says_how_far_how_fast_and_how_long() {
        let of = |done, all| Filling { done, all, unit: "events" };
        assert_eq!(progress_text(of(0, 7_984), None), "0 of 7,984 events");
        let shown = progress_text(of(2_000, 8_000), Some(100.4));
        assert_eq!(shown, "2,000 of 8,000 events, 100/s, 60 seconds left");
        let mut pace = FillPace::default();
        assert_eq!(pace.rate(70), None, "they were counted before it looked");
        assert!(pace.rate(80).is_some_and(|rate| rate > 0.0));
    }

    #[test]
    fn waiting_ends_when_it_is_ready_or_never_will_be() {
        let mut building = replay(ReplayState::Building);
        assert_eq!(step(&building), Step::Adopting(1));
        building.progress.as_mut().expect("progress").waits_for.retain(|one| one.cut.is_some());
        let filling = |done, all, unit| Step::Filling(Filling { done, all, unit });
        assert_eq!(step(&building), filling(5_000, 5_700, "events"));
        let progress = building.progress.as_mut().expect("progress");
        let events = EventProgress { done: 0, left: 0, unarchived_records: 3 };
        progress.events = Some(events);
        assert_eq!(step(&building), Step::Archiving(3));
        building.progress.as_mut().expect("progress").events = None;
        assert_eq!(step(&building), filling(30, 100, "records"), "an older server");
        assert_eq!(step(&replay(ReplayState::Ready)), Step::Ready);
        for over in [ReplayState::GivenUp, ReplayState::Leaving, ReplayState::Applied] {
            assert!(matches!(step(&replay(over)), Step::Over(_)), "{over:?}");
        }
    }
}
