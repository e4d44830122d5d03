//! Replays and the audit list as tables.

use crate::api::replays::{
    Replay, ReplayAudit, ReplayProgress, ReplayRuleCounts, ReplayState, WaitingShard,
};
use crate::cli::number_format::{count_of, grouped};

/// Most shards that are shown: right after a start, it waits for all.
const MAX_SHARDS: usize = 10;

/// The word of a state.
fn state(state: ReplayState) -> &'static str {
    match state {
        ReplayState::Building => "building",
        ReplayState::Ready => "ready",
        ReplayState::Applied => "applied",
        ReplayState::Undone => "undone",
        ReplayState::Replaced => "replaced",
        ReplayState::Leaving => "leaving",
        ReplayState::GivenUp => "given up",
    }
}

/// How much is filled in, by events if they are known.
fn percent(progress: &ReplayProgress) -> String {
    let records = (progress.done, progress.left);
    let events = progress.events.map(|events| (events.done, events.left));
    let (done, left) = events.filter(|(done, left)| done + left > 0).unwrap_or(records);
    match done + left {
        0 => "-".to_owned(),
        all => format!("{:.1} %", done as f64 * 100.0 / all as f64),
    }
}

fn table<const N: usize>(head: [&str; N]) -> comfy_table::Table {
    let mut table = comfy_table::Table::new();
    table.load_style(comfy_table::presets::NOTHING);
    table.set_header(head);
    table
}

fn open_end(to: Option<&String>) -> String {
    to.cloned().unwrap_or_else(|| "open".to_owned())
}

/// All replays, one in a line.
pub(super) fn replays(replays: &[Replay]) -> String {
    if replays.is_empty() {
        return "there are no replays".to_owned();
    }
    let mut table = table(["replay", "state", "filled", "metrics", "from", "to", "started", "by"]);
    for replay in replays {
        table.add_row([
            replay.id.to_string(),
            state(replay.state).to_owned(),
            replay.progress.as_ref().map_or_else(|| "-".to_owned(), percent),
            replay.metrics.join(" "),
            replay.from.clone(),
            open_end(replay.to.as_ref()),
            replay.started.map_or_else(String::new, |at| at.to_string()),
            replay.by.clone(),
        ]);
    }
    table.to_string()
}

/// What was done to replays.
pub(super) fn audit(entries: &[ReplayAudit]) -> String {
    if entries.is_empty() {
        return "nothing was done to replays".to_owned();
    }
    let mut table = table(["at", "replay", "action", "by", "what"]);
    for entry in entries {
        table.add_row([
            entry.at.map_or_else(String::new, |at| at.to_string()),
            entry.id.to_string(),
            entry.action.clone(),
            entry.by.clone(),
            entry.note.clone(),
        ]);
    }
    table.to_string()
}

/// What each rule did and could not do, in the words of `rollmill rules try`.
fn rules(counts: &[ReplayRuleCounts]) -> String {
    let number = |events: u64| grouped(&events.to_string());
    let mut table = table(["rule", "dropped", "changed", "not applied"]);
    for of in counts {
        let refused =
            of.not_applied.iter().map(|(why, events)| format!("{why}: {}", number(*events)));
        table.add_row([
            of.name.clone(),
            number(of.dropped),
            number(of.changed),
            refused.collect::<Vec<_>>().join(", "),
        ]);
    }
    table.to_string()
}

/// One replay, and the shards that it waits for.
pub(super) fn details(replay: &Replay) -> String {
    let (id, state) = (replay.id, state(replay.state));
    let (from, to) = (&replay.from, open_end(replay.to.as_ref()));
    let mut lines =
        vec![format!("replay {id}: {state}, {} from {from} to {to}", replay.metrics.join(", "))];
    if let Some(why) = &replay.given_up {
        lines.push(format!("given up: {why}"));
    }
    if let Some(left) = replay.undo_left_ms {
        let left = duration(left);
        lines.push(format!("`rollmill replay undo {id}` puts back what it replaced, for {left}"));
    }
    if let Some(rules) = &replay.rules {
        lines.push(format!("rules: {}", rules.get()));
    }
    if replay.dropped > 0 {
        lines.push(format!("its rules dropped {} events", grouped(&replay.dropped.to_string())));
    }
    if !replay.rule_counts.is_empty() {
        lines.push(rules(&replay.rule_counts));
    }
    if let Some(progress) = &replay.progress {
        lines.extend(waits(progress));
    }
    if !replay.audit.is_empty() {
        lines.push(audit(&replay.audit));
    }
    lines.join("\n")
}

/// How much longer, in days or hours.
fn duration(left_ms: i64) -> String {
    match left_ms / 3_600_000 {
        0 => "less than an hour".to_owned(),
        hours @ 1..=72 => count_of(hours.unsigned_abs(), "hour"),
        hours => count_of((hours / 24).unsigned_abs(), "day"),
    }
}

/// How far it is, and the shards that it waits for.
fn waits(progress: &ReplayProgress) -> Vec<String> {
    let number = |n: u64| grouped(&n.to_string());
    let (done, left) = (number(progress.done), number(progress.left));
    let mut lines = vec![format!("{done} records counted, {left} left")];
    if let Some(events) = &progress.events {
        let (done, left) = (number(events.done), number(events.left));
        lines.insert(0, format!("{done} events read, {left} left"));
    }
    if !progress.waits_for.is_empty() {
        let mut shards = table(["waits for shard", "why", "cut", "cursor", "left"]);
        let dash = |value: Option<u64>| value.map_or_else(|| "-".to_owned(), |v| v.to_string());
        for shard in progress.waits_for.iter().take(MAX_SHARDS) {
            shards.add_row([
                shard.shard.to_string(),
                shard.reason.clone(),
                dash(shard.cut),
                dash(shard.cursor),
                dash(shard.left),
            ]);
        }
        lines.push(shards.to_string());
    }
    lines.extend(details_of_waits(&progress.waits_for));
    let more = progress.waits_for.len().saturating_sub(MAX_SHARDS) as u64 + progress.more;
    if more > 0 {
        lines.push(format!("and {more} more"));
    }
    lines
}

/// What shards wait for, with those that wait for the same in one line: a late flush holds up all.
fn details_of_waits(waits_for: &[WaitingShard]) -> Vec<String> {
    // Each reason with the first shard that has it, and with how many others do.
    let mut reasons: Vec<(&str, u32, u64)> = Vec::new();
    for waiting in waits_for {
        let Some(why) = waiting.detail.as_deref() else { continue };
        match reasons.iter_mut().find(|(known, ..)| *known == why) {
            Some((.., others)) => *others += 1,
            None => reasons.push((why, waiting.shard, 0)),
        }
    }
    let line = |(why, first, others): (&str, u32, u64)| match others {
        0 => format!("shard {first} waits: {why}"),
        more => format!("shard {first} and {} wait: {why}", count_of(more, "other shard")),
    };
    reasons.into_iter().map(line).collect()
}

#[cfg(test)]
pub(super) mod tests {
    use serde_json::value::RawValue;

    use super::*;
    use crate::api::replays::EventProgress;

    /// A replay that waits for two shards.
    pub(in crate::cli::replay) fn replay(state: ReplayState) -> Replay {
        let filling = WaitingShard {
            shard: 3,
            cut: Some(90),
            cursor: Some(20),
            left: Some(70),
            reason: "filling".to_owned(),
            detail: Some("hot/3/20.parquet is missing".to_owned()),
        };
        let adopting = WaitingShard {
            shard: 4,
            cut: None,
            cursor: None,
            left: None,
            reason: "adopting".to_owned(),
            detail: None,
        };
        let waits_for = vec![filling, adopting];
        let events = Some(EventProgress { done: 5_000, left: 700, unarchived_records: 0 });
        Replay {
            id: 7,
            state,
            metrics: vec!["m".to_owned()],
            from: "2026-01-30".to_owned(),
            to: None,
            started: crate::api::timestamp(0),
            by: "rm_12345678".to_owned(),
            rules_hash: "00".to_owned(),
            rules: RawValue::from_string(r#"{"rule":[]}"#.to_owned()).ok(),
            given_up: None,
            undo_left_ms: None,
            progress: Some(ReplayProgress { done: 30, left: 70, events, waits_for, more: 0 }),
            dropped: 1_200,
            rule_counts: vec![ReplayRuleCounts {
                name: "price".to_owned(),
                dropped: 0,
                changed: 1_500,
                not_applied: [("property_missing".to_owned(), 3_000)].into(),
            }],
            audit: vec![ReplayAudit {
                id: 7,
                action: "start".to_owned(),
                at: crate::api::timestamp(0),
                by: "rm_12345678".to_owned(),
                note: "m from 2026-01-30 to open".to_owned(),
            }],
        }
    }

    #[test]
    fn lists_say_how_far_a_replay_is_and_what_it_waits_for() {
        let one = replay(ReplayState::Building);
        let listed = replays(std::slice::from_ref(&one));
        assert!(listed.contains("87.7 %") && listed.contains("open"), "{listed}");
        let shown = details(&one);
        assert!(shown.contains("1,200 events") && shown.contains("filling"), "{shown}");
        assert!(shown.contains("5,000 events read, 700 left"), "{shown}");
        let of_rule = shown.lines().find(|line| line.contains("price")).unwrap_or_default();
        assert!(of_rule.contains("1,500"), "{shown}");
        assert!(of_rule.contains("property_missing: 3,000"), "{shown}");
        assert!(shown.starts_with("replay 7: building, m from 2026-01-30 to open"), "{shown}");
        assert!(shown.contains(r#"rules: {"rule":[]}"#), "{shown}");
        assert!(shown.contains("shard 3 waits: hot/3/20.parquet is missing"), "{shown}");
        let last = shown.lines().last().unwrap_or_default();
        assert!(last.contains("rm_12345678") && last.contains("start"), "{shown}");
    }

    #[test]
    fn shards_that_wait_for_the_same_are_told_in_one_line() {
        let waiting = |shard, why: &str| WaitingShard {
            shard,
            cut: None,
            cursor: None,
            left: None,
            reason: "filling".to_owned(),
            detail: Some(why.to_owned()),
        };
        let silent = WaitingShard { detail: None, ..waiting(2, "") };
        let all = [waiting(1, "late"), silent, waiting(3, "gone"), waiting(4, "late")];
        let lines = ["shard 1 and 1 other shard wait: late", "shard 3 waits: gone"];
        assert_eq!(details_of_waits(&all), lines);
        let three = [waiting(5, "late"), waiting(6, "late"), waiting(7, "late")];
        assert_eq!(details_of_waits(&three), ["shard 5 and 2 other shards wait: late"]);
    }

    #[test]
    fn what_is_left_for_an_undo_is_told_in_hours_or_days() {
        const HOUR: i64 = 3_600_000;
        let shown = [0, HOUR - 1, HOUR, 72 * HOUR, 73 * HOUR, 168 * HOUR].map(duration);
        let expected =
            ["less than an hour", "less than an hour", "1 hour", "72 hours", "3 days", "7 days"];
        assert_eq!(shown, expected);
    }
}
