//! Why something cannot be done to replays, and until when. Pure.

use crate::model::generation::{DayRange, GenerationId, SetError};
use crate::model::generation_book::{Apply, BookError, Generation, GenerationBook};
use crate::model::generation_status::{FillStatus, GenerationFate};
use crate::operate::service::OperateError;

/// Milliseconds of an hour.
const HOUR_MS: i64 = 3_600_000;

impl From<BookError> for OperateError {
    fn from(error: BookError) -> Self {
        match error {
            BookError::Unknown(_) => Self::NoReplay(error.to_string()),
            BookError::NoMetric => Self::ReplayInvalid(error.to_string()),
            _ => Self::ReplayRefused(error.to_string()),
        }
    }
}

/// How long an apply can still be undone.
fn left_ms(apply: &Apply, keep_ms: i64) -> i64 {
    keep_ms.saturating_sub(apply.gathered_ms).max(0)
}

/// A span of time for people, rounded up: what is waited for has happened then.
fn about(ms: i64) -> String {
    match ms.saturating_add(HOUR_MS - 1) / HOUR_MS {
        0 | 1 => "an hour".to_owned(),
        hours @ 2..=72 => format!("{hours} hours"),
        hours => format!("{} days", (hours + 23) / 24),
    }
}

/// Refuses what needs all rows of a replay, as long as some are still to be counted.
pub(super) fn check_filled(id: GenerationId, fill: &FillStatus) -> Result<(), OperateError> {
    if fill.is_ready() {
        return Ok(());
    }
    Err(OperateError::NotReady(format!(
        "replay {id} is not ready: it has counted {} and waits for {}; `rollmill replay show {id}` \
         says when it is",
        fill.counted_text(),
        fill.waits_for_text()
    )))
}

/// Refuses to compare a replay whose rows are being deleted.
pub(super) fn check_stays(
    book: &GenerationBook,
    (id, generation): (GenerationId, &Generation),
) -> Result<(), OperateError> {
    if GenerationFate::of(book, id) != GenerationFate::Leaving {
        return Ok(());
    }
    let why = match &generation.given_up {
        Some(why) => format!("was given up ({why})"),
        None => "was cancelled, or cannot be undone any more,".to_owned(),
    };
    Err(OperateError::ReplayRefused(format!(
        "replay {id} {why} and its rows are being deleted: start another one to compare them"
    )))
}

/// Refuses what is done to a replay in whose place another one is served.
pub(super) fn check_not_replaced(
    book: &GenerationBook,
    id: GenerationId,
    keep_ms: i64,
) -> Result<(), OperateError> {
    if GenerationFate::of(book, id) != GenerationFate::Kept {
        return Ok(());
    }
    let mut applies = book.applies().iter().rev();
    let later =
        applies.find(|apply| apply.replaced.values().flatten().any(|piece| piece.generation == id));
    let why = later.map_or_else(
        || format!("another one is served in the place of replay {id}"),
        |apply| {
            let (later, time) = (apply.generation, about(left_ms(apply, keep_ms)));
            format!(
                "replay {later} is served in the place of replay {id}: undo {later} first, or wait \
                 until it cannot be undone any more, about {time}"
            )
        },
    );
    Err(OperateError::ReplayRefused(why))
}

/// When the next replay leaves that is written for some of these days of a metric, because what
/// replaced it cannot be undone any more; `None` if none does by itself.
fn next_leaves(
    book: &GenerationBook,
    (tenant, metric, days): (&str, &str, DayRange),
    keep_ms: i64,
) -> Option<(GenerationId, i64)> {
    let of_tenant = |apply: &&Apply| {
        book.generations().get(&apply.generation).is_some_and(|of| of.tenant == tenant)
    };
    let leaving = book.applies().iter().filter(of_tenant).flat_map(|apply| {
        let pieces = apply.replaced.get(metric).into_iter().flatten();
        let pieces = pieces.filter(|piece| !piece.generation.is_ingest());
        let pieces = pieces.filter(move |piece| piece.days.intersect(days).is_some());
        pieces.map(move |piece| (piece.generation, left_ms(apply, keep_ms)))
    });
    leaving.min_by_key(|(id, left)| (*left, *id))
}

/// Why a start is refused, with the time after which one leaves if there are too many.
pub(super) fn with_time(
    book: &GenerationBook,
    (tenant, days): (&str, DayRange),
    error: BookError,
    keep_ms: i64,
) -> OperateError {
    let BookError::Set(SetError::TooMany { metric, .. }) = &error else { return error.into() };
    let next = match next_leaves(book, (tenant, metric, days), keep_ms) {
        Some((id, left)) => format!("replay {id} leaves in about {}", about(left)),
        None => "none of them leaves by itself".to_owned(),
    };
    OperateError::ReplayRefused(format!("{error}; {next}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::generation_book::NewGeneration;

    const DAYS: i64 = 24 * HOUR_MS;

    fn start(book: &mut GenerationBook) -> Result<GenerationId, BookError> {
        let new = NewGeneration {
            tenant: "acme".to_owned(),
            metrics: vec!["views".to_owned()],
            days: DayRange::ALWAYS,
            rules: "".into(),
            started: (1, "k".to_owned()),
        };
        book.start(new, 2, 1)
    }

    fn refused(book: &GenerationBook) -> String {
        let error = start(&mut book.clone()).expect_err("too many");
        with_time(book, ("acme", DayRange::ALWAYS), error, 7 * DAYS).to_string()
    }

    #[test]
    fn who_is_refused_is_told_when_the_next_one_leaves() {
        let mut book = GenerationBook::default();
        let one = start(&mut book).expect("started");
        book.apply(one, 1).expect("applied");
        let two = start(&mut book).expect("started");
        let built = start(&mut book.clone()).expect_err("another is built");
        let told = with_time(&book, ("acme", DayRange::ALWAYS), built, 7 * DAYS).to_string();
        assert!(told.contains("replay 2 is being built"), "{told}");
        book.apply(two, 2).expect("applied");
        assert!(
            refused(&book).ends_with("; replay 1 leaves in about 7 days"),
            "{}",
            refused(&book)
        );
        book.gather_each(&[0, 5 * DAYS], 7 * DAYS, 9);
        assert!(refused(&book).ends_with("about 48 hours"), "{}", refused(&book));
        let kept = check_not_replaced(&book, one, 7 * DAYS).expect_err("replaced").to_string();
        assert!(kept.contains("undo 2 first") && kept.contains("about 48 hours"), "{kept}");
        let none = next_leaves(&book, ("shop", "views", DayRange::ALWAYS), 7 * DAYS);
        assert_eq!(none, None, "of another tenant");
    }

    #[test]
    fn times_are_rounded_up() {
        let shown = [0, HOUR_MS + 1, 72 * HOUR_MS, 73 * HOUR_MS].map(about);
        assert_eq!(shown, ["an hour", "2 hours", "72 hours", "4 days"]);
    }
}
