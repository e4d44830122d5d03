import assert from "node:assert/strict";
import { test } from "node:test";
import type { QueryAnswer } from "../src/api/types.ts";
import { columnsOf, dataOf, type Drawing, hasNegative, isolated } from "../src/chart/model.ts";
import { timeTicks } from "../src/chart/ticks.ts";
import { corrections } from "../src/lib/corrections.ts";
import { type Line, linesOf, panelsOf, shift, stack, totalOf } from "../src/lib/shape.ts";
import { arrivals } from "../src/views/live/rate.tsx";
import { next } from "../src/views/live/subscription.ts";
import { DEFAULT } from "../src/lib/question.ts";

const HOUR = 3_600_000;
const T0 = Date.parse("2026-01-01T00:00:00Z");

function answer(points: Record<number, object>, labels = {}): QueryAnswer {
  const list = Object.entries(points).map(([hour, values]) => ({ t: new Date(T0 + Number(hour) * HOUR).toISOString(), ...values }));
  return {
    metric: "m", step: "1h", from: "2026-01-01T00:00:00Z", to: "2026-01-02T00:00:00Z",
    series: [{ labels, points: list }],
    completeness: { partial: false, shards: 1, missing: [], generations: [] },
  } as unknown as QueryAnswer;
}

const line = (texts: Record<number, string>, name = "a"): Line => ({
  name, aggregate: "count", labels: {}, texts: new Map(Object.entries(texts).map(([hour, text]) => [T0 + Number(hour) * HOUR, text])),
});

test("lines keep exact texts, and name their groups", () => {
  const [found] = linesOf(answer({ 0: { sum: "0.300000001" }, 1: { sum: null } }, { page: "/a" }), "sum", ["page"]);
  assert.deepEqual([found?.name, [...(found?.texts.values() ?? [])]], ["/a", ["0.300000001"]]);
  const [none] = linesOf(answer({ 0: { count: 1 } }), "count", ["page", "os"]);
  assert.equal(none?.name, "page=(none), os=(none)");
  assert.equal(totalOf({ ...line({ 0: "1", 1: "2.5" }), aggregate: "sum" }), "3.5");
  assert.equal(totalOf({ ...line({ 0: "1" }), aggregate: "p95" }), null);
});

test("aggregates of one unit share a chart unless there are groups", () => {
  assert.deepEqual(panelsOf(["count", "p50", "sum", "p99"], []), [["count"], ["p50", "p99"], ["sum"]]);
  assert.deepEqual(panelsOf(["p50", "p99"], ["a"]), [["p50"], ["p99"]]);
});

test("stacks count what is absent as nothing", () => {
  assert.deepEqual(stack([[1, null, 3], [2, 5, null]]), [[1, 0, 3], [3, 5, 3]]);
  assert.ok(hasNegative([line({ 0: "-0.5" })]));
});

test("the open step is a column of its own, led to from the last closed one", () => {
  const steps = [0, 1, 2, 3].map((hour) => T0 + hour * HOUR);
  const drawing: Drawing = {
    kind: "line", isStacked: false, lines: [line({ 0: "1", 2: "3", 3: "4" })], before: [line({ 0: "9" })],
    steps, end: T0 + 4 * HOUR, open: T0 + 3 * HOUR, marks: [],
  };
  assert.deepEqual(columnsOf(drawing).map((column) => column.part), ["before", "main", "open"]);
  assert.deepEqual(dataOf(drawing).slice(1), [[9, null, null, null], [1, null, 3, null], [null, null, 3, 4]]);
  assert.deepEqual(isolated([1, null, 3, 4, null]), [0]);
});

test("the period before is laid on step by step", () => {
  const onto = [100, 200].map((n) => T0 + n * HOUR);
  const moved = shift(line({ 0: "1", 1: "2", 2: "3" }), [0, 1, 2].map((hour) => T0 + hour * HOUR), onto);
  assert.deepEqual([...moved.texts], [[onto[0], "1"], [onto[1], "2"]]);
});

test("only hours that were over are corrected", () => {
  const found = corrections([line({ 0: "1", 2: "5" })], [line({ 0: "2", 1: "1", 2: "6" })], T0 + 2 * HOUR);
  assert.deepEqual(found.map(({ before, after }) => [before, after]), [["1", "2"], [null, "1"]]);
});

test("live: late events are corrections, the open hour and a moved range are not", () => {
  const question = { ...DEFAULT, metric: "m" };
  const empty = { answer: null, failure: null, connection: "open" as const, changedAt: null, corrections: [], counts: [] };
  const now = T0 + 2.5 * HOUR;
  const first = next(empty, answer({ 0: { count: 1 }, 2: { count: 5 } }), question, now);
  const second = next(first, answer({ 0: { count: 2 }, 2: { count: 9 } }), question, now + 1000);
  assert.deepEqual(second.corrections.map(({ before, after }) => [before, after]), [["1", "2"]]);
  assert.equal(arrivals(second.counts, now + 1000).at(-1), 5);
  const later = { ...answer({ 2: { count: 9 }, 3: { count: 1 } }), from: "2026-01-01T01:00:00Z" } as QueryAnswer;
  assert.equal(next(second, later, question, T0 + 3 * HOUR + 10).corrections.length, 1);
});

test("ticks name the day and the year once", () => {
  const hours = [0, 12, 24].map((hour) => (T0 + hour * HOUR) / 1000);
  assert.deepEqual(timeTicks(hours, 43_200, "UTC"), ["00:00\n1 Jan 2026", "12:00", "00:00\n2 Jan"]);
  assert.deepEqual(timeTicks([T0 / 1000], 31 * 86_400, "UTC"), ["Jan\n2026"]);
});
