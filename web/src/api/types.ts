/** The server's own names for what it sends; schema.d.ts is generated from openapi.json. */
import type { components } from "./schema.d.ts";

type Schemas = components["schemas"];

export type Completeness = Schemas["Completeness"];
export type QueryAnswer = Schemas["QueryAnswer"];
export type SeriesPoints = Schemas["SeriesPoints"];
export type Point = Schemas["Point"];
export type Metric = Schemas["Metric"];
export type MetricsAnswer = Schemas["MetricsAnswer"];
export type LabelValuesAnswer = Schemas["LabelValuesAnswer"];
export type LimitsAnswer = Schemas["LimitsAnswer"];
export type AccountingAnswer = Schemas["AccountingAnswer"];
export type AccountingHour = Schemas["AccountingHour"];
export type StatusAnswer = Schemas["StatusAnswer"];
export type ShardStatus = Schemas["ShardStatus"];
export type NodeSummary = Schemas["NodeSummary"];
export type QuarantineAnswer = Schemas["QuarantineAnswer"];
export type QuarantinedEvent = Schemas["QuarantinedEvent"];
export type EventPlace = Schemas["EventPlace"];
export type ReplaysAnswer = Schemas["ReplaysAnswer"];
export type Replay = Schemas["Replay"];
export type ReplayDiff = Schemas["ReplayDiff"];
export type DiffTotals = Schemas["DiffTotals"];
export type DiffRow = Schemas["DiffRow"];
export type StartReplay = Schemas["StartReplay"];
export type Board = Schemas["Board"];
export type BoardPanel = Schemas["Panel"];
export type BoardInfo = Schemas["BoardInfo"];
export type BoardsAnswer = Schemas["BoardsAnswer"];
export type IngestAnswer = Schemas["IngestAnswer"];
export type ErrorAnswer = Schemas["ErrorAnswer"];

export type Aggregate =
  | "count" | "sum" | "avg" | "min" | "max" | "distinct" | "rate"
  | "p50" | "p90" | "p95" | "p99" | "p99.9";

export const AGGREGATES: Aggregate[] = [
  "count", "sum", "avg", "min", "max", "distinct", "rate", "p50", "p90", "p95", "p99", "p99.9",
];
