//! Replays as they are shown: what the book and the store know of them. Pure.

use std::collections::BTreeMap;

use serde_json::value::RawValue;

use super::diff::{ChangedRow, RowFigures, SideTotals, Totals};
use super::request::day_text;
use crate::api::replays::{
    DiffFigures, DiffRow, DiffSum, DiffTotals, EventProgress, Replay, ReplayAudit, ReplayProgress,
    ReplayRuleCounts, ReplayState, WaitingShard,
};
use crate::api::timestamp;
use crate::model::decimal::{Decimal, write_units};
use crate::model::flush::RuleEvents;
use crate::model::generation::GenerationId;
use crate::model::generation_book::{Generation, GenerationBook};
use crate::model::generation_status::{FillStatus, GenerationFate, ShardWait};
use crate::model::offset::ShardId;
use crate::persistence::store::AuditEntry;
use crate::rules::{RuleSet, RulesHash};

/// Most shards that an answer names.
const MAX_WAITING: usize = 64;

/// What an answer is made of besides the book.
pub(super) struct ReplayFacts<'a> {
    /// How far it is; `None` if that does not matter any more.
    pub fill: Option<FillStatus>,
    /// The same in events; `None` if nothing is left to fill.
    pub events: Option<EventProgress>,
    /// What fills of this node wait for.
    pub waits: BTreeMap<ShardId, String>,
    pub dropped: u64,
    /// Entries of the tenant, newest first.
    pub audit: &'a [AuditEntry],
    pub keep_ms: i64,
}

/// A replay as it is shown.
pub(super) fn replay(
    book: &GenerationBook,
    (id, generation): (GenerationId, &Generation),
    facts: &ReplayFacts<'_>,
) -> Replay {
    let fate = GenerationFate::of(book, id);
    let apply = book.applies().iter().rev().find(|apply| apply.generation == id);
    let undo_left = apply.map(|apply| facts.keep_ms.saturating_sub(apply.gathered_ms).max(0));
    Replay {
        id: id.0,
        state: state(fate, id, generation, facts),
        metrics: generation.metrics.clone(),
        from: day_text(generation.days.from()),
        to: generation.days.to().map(day_text),
        started: timestamp(generation.started),
        by: generation.by.clone(),
        rules_hash: RulesHash::of_canonical(&generation.rules).to_string(),
        rules: None,
        given_up: generation.given_up.clone(),
        undo_left_ms: undo_left,
        progress: facts.fill.as_ref().map(|fill| progress(fill, facts)),
        dropped: facts.dropped,
        rule_counts: Vec::new(),
        audit: Vec::new(),
    }
}

/// The rules as they are shown. What is canonical stays so.
pub(super) fn rules(generation: &Generation) -> serde_json::Result<Box<RawValue>> {
    RawValue::from_string(generation.rules.to_string())
}

fn state(
    fate: GenerationFate,
    id: GenerationId,
    generation: &Generation,
    facts: &ReplayFacts<'_>,
) -> ReplayState {
    let is_ready = facts.fill.as_ref().is_some_and(FillStatus::is_ready);
    let mut last = facts.audit.iter().filter(|entry| entry.generation == id);
    let was_undone = last
        .find(|entry| matches!(entry.action.as_str(), "apply" | "undo"))
        .is_some_and(|entry| entry.action == "undo");
    match fate {
        GenerationFate::Served => ReplayState::Applied,
        GenerationFate::Kept => ReplayState::Replaced,
        GenerationFate::Leaving if generation.given_up.is_some() => ReplayState::GivenUp,
        GenerationFate::Leaving => ReplayState::Leaving,
        GenerationFate::Built if !is_ready => ReplayState::Building,
        GenerationFate::Built if was_undone => ReplayState::Undone,
        GenerationFate::Built => ReplayState::Ready,
    }
}

fn progress(fill: &FillStatus, facts: &ReplayFacts<'_>) -> ReplayProgress {
    let waiting = |(shard, wait): &(ShardId, ShardWait)| {
        let (at, reason) = match wait {
            ShardWait::Unclaimed => (None, "unclaimed"),
            ShardWait::Adopting => (None, "adopting"),
            ShardWait::Filling(at) => (Some(at), "filling"),
        };
        WaitingShard {
            shard: shard.0,
            cut: at.map(|at| at.cut),
            cursor: at.map(|at| at.cursor),
            left: at.map(|at| at.cut.saturating_sub(at.cursor)),
            reason: reason.to_owned(),
            detail: facts.waits.get(shard).cloned(),
        }
    };
    let waits_for: Vec<WaitingShard> =
        fill.waits_for.iter().take(MAX_WAITING).map(waiting).collect();
    let more = (fill.waits_for.len() - waits_for.len()) as u64;
    let (done, left, events) = (fill.done, fill.left, facts.events);
    ReplayProgress { done, left, events, waits_for, more }
}

/// What each rule did, as it is shown, in the order of the rules.
pub(super) fn rule_counts(rules: &str, counted: &[RuleEvents]) -> Vec<ReplayRuleCounts> {
    // A newer release may have written rules that this one cannot read: they are numbered then.
    let names: Vec<String> = RuleSet::shared(rules)
        .map_or_else(|_| Vec::new(), |rules| rules.names().map(str::to_owned).collect());
    let counted_rules = counted.iter().map(|of| of.rule as usize + 1).max().unwrap_or(0);
    let named = |rule: usize| {
        let name = names.get(rule).cloned().unwrap_or_else(|| format!("rule {}", rule + 1));
        ReplayRuleCounts { name, dropped: 0, changed: 0, not_applied: BTreeMap::new() }
    };
    let mut shown: Vec<_> = (0..names.len().max(counted_rules)).map(named).collect();
    for RuleEvents { rule, outcome, events } in counted {
        let of_rule = &mut shown[*rule as usize];
        match outcome.as_str() {
            RuleEvents::DROPPED => of_rule.dropped += events,
            RuleEvents::CHANGED => of_rule.changed += events,
            reason => *of_rule.not_applied.entry(reason.to_owned()).or_default() += events,
        }
    }
    shown
}

/// An entry of the audit list as it is shown.
pub(super) fn audit(entry: &AuditEntry) -> ReplayAudit {
    ReplayAudit {
        id: entry.generation.0,
        action: entry.action.clone(),
        at: timestamp(entry.at),
        by: entry.by.clone(),
        note: entry.note.clone(),
    }
}

fn units(units: i128) -> String {
    let mut text = String::new();
    // Writing to a string cannot fail.
    let _infallible = write_units(units, &mut text);
    text
}

/// Totals as they are shown.
pub(super) fn totals(totals: &Totals) -> DiffTotals {
    let sum = |side: &SideTotals| DiffSum {
        count: side.count,
        value_count: side.value_count,
        sum: units(side.sum),
    };
    DiffTotals {
        added: totals.added,
        removed: totals.removed,
        changed: totals.changed,
        equal: totals.equal,
        before: sum(&totals.before),
        after: sum(&totals.after),
    }
}

/// A row that differs, as it is shown.
pub(super) fn row(row: &ChangedRow) -> DiffRow {
    let figures = |row: RowFigures| DiffFigures {
        count: row.figures.count,
        value_count: row.figures.value_count,
        sum: units(row.figures.sum),
        min: row.figures.min.as_ref().map(Decimal::to_string),
        max: row.figures.max.as_ref().map(Decimal::to_string),
        distinct: row.distinct,
    };
    let change = match (&row.before, &row.after) {
        (None, _) => "added",
        (_, None) => "removed",
        _ => "changed",
    };
    DiffRow {
        time: timestamp(row.key.hour.start()),
        metric: row.series.series.metric.clone(),
        labels: row.series.series.labels.iter().cloned().collect(),
        change: change.to_owned(),
        before: row.before.map(figures),
        after: row.after.map(figures),
        distinct_equal: row.distinct_equal(),
        quantiles_equal: row.quantiles_equal(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counted(rule: u32, outcome: &str, events: u64) -> RuleEvents {
        RuleEvents { rule, outcome: outcome.to_owned(), events }
    }

    #[test]
    fn each_rule_is_shown_with_what_it_did_and_could_not_do() {
        let rules = r#"{"rule":[{"name":"bots","drop":true},
            {"name":"price","set_value":{"property":"/price"}}]}"#;
        let all = [counted(0, "dropped", 3), counted(1, "changed", 2), counted(1, "no_value", 1)];
        let shown = rule_counts(rules, &all);
        let of = |name: &str, dropped, changed, not_applied| ReplayRuleCounts {
            name: name.to_owned(),
            dropped,
            changed,
            not_applied,
        };
        let left = BTreeMap::from([("no_value".to_owned(), 1)]);
        assert_eq!(shown, [of("bots", 3, 0, BTreeMap::new()), of("price", 0, 2, left)]);
        assert_eq!(rule_counts(rules, &[]).len(), 2, "those that did nothing, too");
        assert_eq!(rule_counts(r#"{"rule":[]}"#, &[]), []);
        let newer = rule_counts("{", &all[2..]);
        assert_eq!(newer.iter().map(|of| &*of.name).collect::<Vec<_>>(), ["rule 1", "rule 2"]);
    }
}
