/** What Explore asks, and its form in the address of the page. */
import { AGGREGATES, type Aggregate } from "../api/types.ts";
import type { Params } from "../api/client.ts";
import { type Matcher, parseMatchers, printMatchers } from "./matchers.ts";
import { bounds, parseRange, printRange, type Range } from "./range.ts";
import { isZone, iso, STEPS, type Step, stepEnd, stepStart, suitableStep } from "./time.ts";

export type View = "line" | "stacked" | "bar" | "table";
export const VIEWS: View[] = ["line", "stacked", "bar", "table"];

export interface Question {
  metric: string;
  aggregates: Aggregate[];
  by: string[];
  matchers: Matcher[];
  range: Range;
  /** null: one that suits the range. */
  step: Step | null;
  tz: string;
  view: View;
  /** null: all series, in the order of their labels. */
  top: number | null;
  compare: boolean;
}

export const DEFAULT: Question = {
  metric: "",
  aggregates: ["count"],
  by: [],
  matchers: [],
  range: { kind: "last", ms: 7 * 86_400_000 },
  step: null,
  tz: "UTC",
  view: "line",
  top: 10,
  compare: false,
};

const list = (text: string | null) => (text ? text.split(",").filter(Boolean) : []);

/** Reads a question from the parameters of an address; what makes no sense is the default. */
export function readQuestion(params: URLSearchParams): Question {
  const aggregates = list(params.get("agg")).filter((name): name is Aggregate =>
    AGGREGATES.includes(name as Aggregate),
  );
  const top = params.get("top");
  const tz = params.get("tz") ?? "UTC";
  return {
    metric: params.get("metric") ?? "",
    aggregates: aggregates.length > 0 ? [...new Set(aggregates)] : DEFAULT.aggregates,
    by: [...new Set(list(params.get("by")))],
    matchers: parseMatchers(params.get("where") ?? "") ?? [],
    range: parseRange(params.get("from"), params.get("to")) ?? DEFAULT.range,
    step: STEPS.find((step) => step === params.get("step")) ?? null,
    tz: isZone(tz) ? tz : "UTC",
    view: VIEWS.find((view) => view === params.get("view")) ?? DEFAULT.view,
    top: top === "all" ? null : /^[1-9]\d{0,3}$/.test(top ?? "") ? Number(top) : DEFAULT.top,
    compare: params.get("compare") === "1",
  };
}

/** The parameters of an address; what is the default is left out. */
export function printQuestion(question: Question): URLSearchParams {
  const params = new URLSearchParams();
  const set = (name: string, value: string | null, usual = "") => {
    if (value !== null && value !== usual) params.set(name, value);
  };
  set("metric", question.metric);
  set("agg", question.aggregates.join(","), "count");
  set("by", question.by.join(","));
  set("where", printMatchers(question.matchers));
  const { from, to } = printRange(question.range);
  set("from", from, printRange(DEFAULT.range).from);
  set("to", to ?? null);
  set("step", question.step);
  set("tz", question.tz, "UTC");
  set("view", question.view, DEFAULT.view);
  set("top", question.top === null ? "all" : String(question.top), String(DEFAULT.top));
  set("compare", question.compare ? "1" : null);
  return params;
}

/** The step that is asked for. */
export function stepOf(question: Question, now: number): Step {
  const { from, to } = bounds(question.range, now);
  return question.step ?? suitableStep(to - from);
}

/** The range as the server snaps it: outward to whole steps. */
export function snapped(question: Question, now: number): { from: number; to: number } {
  const { from, to } = bounds(question.range, now);
  const step = stepOf(question, now);
  const last = stepStart(to, step, question.tz);
  return {
    from: stepStart(from, step, question.tz),
    to: last < to ? stepEnd(last, step, question.tz) : last,
  };
}

/** The parameters of `/v1/query`, for this range or for another one. */
export function queryParams(
  question: Question,
  now: number,
  { from, to } = bounds(question.range, now),
): Params {
  const isTop = question.top !== null && question.by.length > 0;
  return {
    metric: question.metric,
    from: iso(from),
    to: iso(to),
    step: stepOf(question, now),
    tz: question.tz === "UTC" ? undefined : question.tz,
    agg: question.aggregates.join(","),
    by: question.by.join(","),
    where: printMatchers(question.matchers),
    order: isTop ? "desc" : undefined,
    limit: isTop ? (question.top ?? undefined) : undefined,
  };
}
