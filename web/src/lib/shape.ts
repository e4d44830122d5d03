/** Shapes answers for charts and tables: columns on one axis, exact texts beside places. */
import type { Aggregate, Point, QueryAnswer, SeriesPoints } from "../api/types.ts";
import { add, toPixels } from "./decimal.ts";
import { plain } from "./format.ts";

/** Aggregates whose parts add up to the whole. */
const ADDITIVE: Aggregate[] = ["count", "sum", "rate"];

export function isAdditive(aggregate: Aggregate): boolean {
  return ADDITIVE.includes(aggregate);
}

/** Whether an aggregate has the unit of the values. */
export function isOfValues(aggregate: Aggregate): boolean {
  return !["count", "distinct", "rate"].includes(aggregate);
}

/** One line of a chart. */
export interface Line {
  name: string;
  aggregate: Aggregate;
  labels: Record<string, string>;
  /** Exact values by the beginning of their step. */
  texts: Map<number, string>;
}

/** The exact text of a point's value, null if it has none. */
export function textOf(point: Point, aggregate: Aggregate): string | null {
  const value = (point as unknown as Record<string, unknown>)[aggregate];
  if (typeof value === "number") return plain(value);
  return typeof value === "string" ? value : null;
}

/** `origin=EWR, carrier=UA`; the metric where there is no label. */
export function seriesName(labels: Record<string, string>, by: string[], metric: string): string {
  if (by.length === 0) return metric;
  if (by.length === 1) return labels[by[0] ?? ""] || "(none)";
  return by.map((name) => `${name}=${labels[name] || "(none)"}`).join(", ");
}

export function linesOf(answer: QueryAnswer, aggregate: Aggregate, by: string[]): Line[] {
  return answer.series.map((series: SeriesPoints) => {
    const texts = new Map<number, string>();
    for (const point of series.points) {
      const text = textOf(point, aggregate);
      if (text !== null) texts.set(Date.parse(point.t), text);
    }
    const labels = series.labels as Record<string, string>;
    return { name: seriesName(labels, by, answer.metric ?? ""), aggregate, labels, texts };
  });
}

/** The charts of a question: what has one unit stands in one. */
export function panelsOf(aggregates: Aggregate[], by: string[]): Aggregate[][] {
  if (by.length > 0) return aggregates.map((aggregate) => [aggregate]);
  const isTogether = (aggregate: Aggregate) => isOfValues(aggregate) && aggregate !== "sum";
  const panels: Aggregate[][] = [];
  for (const aggregate of aggregates) {
    const home = isTogether(aggregate) && panels.find((panel) => isTogether(panel[0] ?? "count"));
    if (home) home.push(aggregate);
    else panels.push([aggregate]);
  }
  return panels;
}

/** All times at which any line has a value, ascending. */
export function timesOf(lines: Line[]): number[] {
  const times = new Set<number>();
  for (const line of lines) for (const time of line.texts.keys()) times.add(time);
  return [...times].sort((a, b) => a - b);
}

/** Places of a line's values at these times, null where it has none. */
export function placesOf(line: Line, times: number[]): (number | null)[] {
  return times.map((time) => {
    const text = line.texts.get(time);
    return text === undefined ? null : toPixels(text);
  });
}

/** Each row on top of those before it; what is absent adds nothing. */
export function stack(rows: (number | null)[][]): number[][] {
  const heights: number[] = [];
  return rows.map((row) =>
    row.map((value, i) => {
      heights[i] = (heights[i] ?? 0) + (value ?? 0);
      return heights[i];
    }),
  );
}

/** The exact total of a line over its range; null if its aggregate does not add up. */
export function totalOf(line: Line): string | null {
  if (line.aggregate !== "count" && line.aggregate !== "sum") return null;
  return add(line.texts.values());
}

/**
 * Puts the values of the period before on the steps of this one, in order: step by step, because
 * days and months differ in length.
 */
export function shift(line: Line, from: number[], onto: number[]): Line {
  const texts = new Map<number, string>();
  from.forEach((time, i) => {
    const [text, target] = [line.texts.get(time), onto[i]];
    if (text !== undefined && target !== undefined) texts.set(target, text);
  });
  return { ...line, texts };
}
