//! `GET` and `POST /v1/replays`, and everything below it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// What somebody wants to be replayed.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct StartReplay {
    /// The metrics, at least one.
    pub metrics: Vec<String>,
    /// Start of the first day, as RFC 3339 or a date of UTC.
    pub from: String,
    /// Exclusive end, likewise. Without it the range is open: events to come are counted under the
    /// rules, too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<String>,
    /// Rules, as a file of them in JSON has them. Without any, the same events are counted as they
    /// were sent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(test, schemars(with = "Option<serde_json::Value>"))]
    pub rules: Option<Box<serde_json::value::RawValue>>,
}

/// What a replay is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum ReplayState {
    /// Archived events are being counted.
    Building,
    /// It is complete: it can be compared and applied.
    Ready,
    /// It is served.
    Applied,
    /// It was served, and is ready again.
    Undone,
    /// Another one is served in its place, and can be undone.
    Replaced,
    /// It was cancelled, or what replaced it cannot be undone any more: its rows are deleted.
    Leaving,
    /// The server gave it up; `given_up` says why. Its rows are deleted.
    GivenUp,
}

/// A replay.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Replay {
    /// Its number, the `generation` in the completeness of answers.
    pub id: u64,
    /// What it is doing.
    pub state: ReplayState,
    /// The metrics.
    pub metrics: Vec<String>,
    /// First day, UTC.
    pub from: String,
    /// Exclusive end of the days, UTC; null if the range is open.
    pub to: Option<String>,
    /// When it was started.
    #[cfg_attr(test, schemars(with = "Option<String>"))]
    pub started: Option<jiff::Timestamp>,
    /// Who started it: the prefix of a key, `without a key`, or a name of a local command.
    pub by: String,
    /// Identifies what the rules do; equal for all files that say the same.
    pub rules_hash: String,
    /// Its rules in the canonical form, in which `POST /v1/replays` takes them again. Left out in
    /// the list of all replays.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(test, schemars(with = "Option<serde_json::Value>"))]
    pub rules: Option<Box<serde_json::value::RawValue>>,
    /// Why the server gave it up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub given_up: Option<String>,
    /// How much longer its apply can be undone, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub undo_left_ms: Option<i64>,
    /// How far it is; null if it is neither being built nor ready.
    pub progress: Option<ReplayProgress>,
    /// Events that its rules dropped so far.
    pub dropped: u64,
    /// What each of its rules did so far, in their order. Left out in the list of all replays.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub rule_counts: Vec<ReplayRuleCounts>,
    /// What was done to it, newest first, at most 100 entries. Left out in the list of all replays,
    /// which has one audit list for all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub audit: Vec<ReplayAudit>,
}

/// What a rule of a replay did and could not do so far.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct ReplayRuleCounts {
    /// Name of the rule.
    pub name: String,
    /// Events that it dropped.
    pub dropped: u64,
    /// Events that it changed.
    pub changed: u64,
    /// Events that it had to leave as they were, by reason, in the words of `rollmill rules try`.
    pub not_applied: BTreeMap<String, u64>,
}

/// Archived events that the fills of a replay read: of the objects that have any on its days,
/// whatever their metric. Within an object they are estimated by its records.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct EventProgress {
    /// Events that were read.
    pub done: u64,
    /// Events that are left.
    pub left: u64,
    /// Records that are not in the archive yet; how many events they have is not known.
    pub unarchived_records: u64,
}

/// How far a replay is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct ReplayProgress {
    /// Records of the archive that are counted, of all shards with a cut.
    pub done: u64,
    /// Records that are left, of all shards with a cut.
    pub left: u64,
    /// The same in events; null if nothing is left to fill.
    #[serde(default)]
    pub events: Option<EventProgress>,
    /// Shards that it waits for; empty if it is ready.
    pub waits_for: Vec<WaitingShard>,
    /// How many further ones are left out.
    #[serde(default)]
    pub more: u64,
}

/// A shard that is not ready.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct WaitingShard {
    /// Number of the shard.
    pub shard: u32,
    /// Offset from which on its events are counted as they come; null until its next flush.
    pub cut: Option<u64>,
    /// Archived records below it are counted.
    pub cursor: Option<u64>,
    /// Records that are left.
    pub left: Option<u64>,
    /// Why it is waited for: `unclaimed` (no node ever ran it), `adopting` (until its next flush)
    /// or `filling`.
    pub reason: String,
    /// What its fill waits for, in words, such as an object that is missing. Known of the fills of
    /// the node that answers only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
}

/// The replays of a tenant.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct ReplaysAnswer {
    /// Those that have rows, ascending by number.
    pub replays: Vec<Replay>,
    /// What was done to replays, newest first, those that are gone included.
    pub audit: Vec<ReplayAudit>,
}

/// An entry of the audit list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct ReplayAudit {
    /// Number of the replay.
    pub id: u64,
    /// `start`, `apply`, `counted`, `undo`, `cancel` or `give_up`.
    pub action: String,
    /// When.
    #[cfg_attr(test, schemars(with = "Option<String>"))]
    pub at: Option<jiff::Timestamp>,
    /// Who: the prefix of a key, `without a key`, or a name of a local command.
    pub by: String,
    /// What, for people.
    pub note: String,
}

/// A part of the difference between a replay and what is served on its days.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct ReplayDiff {
    /// Number of the replay.
    pub id: u64,
    /// Counts and totals of this part.
    pub totals: DiffTotals,
    /// Rows that differ: the largest changes first, or all in order.
    pub rows: Vec<DiffRow>,
    /// Where the next part begins, to be sent as `after`; null if this is the last.
    pub next: Option<String>,
}

/// How many rows differ, and the totals of all rows.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct DiffTotals {
    /// Rows that only the replay has.
    pub added: u64,
    /// Rows that only what is served has.
    pub removed: u64,
    /// Rows whose figures or sketches differ.
    pub changed: u64,
    /// Equal rows.
    pub equal: u64,
    /// What is served; of a replay that is served, what it replaced.
    pub before: DiffSum,
    /// The replay.
    pub after: DiffSum,
}

/// Sums over rows.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct DiffSum {
    /// Events.
    pub count: u64,
    /// Events with a value.
    pub value_count: u64,
    /// Sum of the values, as exact decimal text.
    pub sum: String,
}

/// A row that differs: one series in one hour.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct DiffRow {
    /// Start of the hour.
    #[cfg_attr(test, schemars(with = "Option<String>"))]
    pub time: Option<jiff::Timestamp>,
    /// The metric.
    pub metric: String,
    /// Label values by name.
    pub labels: std::collections::BTreeMap<String, String>,
    /// `added`, `removed` or `changed`.
    pub change: String,
    /// What is served; null if it has no such row.
    pub before: Option<DiffFigures>,
    /// What the replay has; null if it has no such row.
    pub after: Option<DiffFigures>,
    /// Whether the sketches of distinct users are the same bytes.
    pub distinct_equal: bool,
    /// Whether the sketches of quantiles are the same bytes.
    pub quantiles_equal: bool,
}

/// Figures of a row.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct DiffFigures {
    /// Events.
    pub count: u64,
    /// Events with a value.
    pub value_count: u64,
    /// Sum of the values, as exact decimal text.
    pub sum: String,
    /// Smallest value.
    pub min: Option<String>,
    /// Largest value.
    pub max: Option<String>,
    /// Distinct users, an estimate above 1,024.
    pub distinct: u64,
}
