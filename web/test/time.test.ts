import assert from "node:assert/strict";
import { test } from "node:test";
import { stepsOf } from "../src/lib/steps.ts";
import { HOUR, iso, minutes, momentOf, readTime, stepEnd, stepStart, suitableStep } from "../src/lib/time.ts";

const at = (text: string) => Date.parse(text);

test("days begin at midnight by the clocks of the zone, and may have 23 or 25 hours", () => {
  const spring = stepStart(at("2026-03-29T12:00:00Z"), "1d", "Europe/Berlin");
  assert.equal(iso(spring), "2026-03-28T23:00:00Z");
  assert.equal(stepEnd(spring, "1d", "Europe/Berlin") - spring, 23 * HOUR);
  const autumn = stepStart(at("2026-10-25T12:00:00Z"), "1d", "Europe/Berlin");
  assert.equal(stepEnd(autumn, "1d", "Europe/Berlin") - autumn, 25 * HOUR);
});

test("six-hour steps keep to the clock when it changes", () => {
  const steps = stepsOf(at("2026-03-28T23:00:00Z"), at("2026-03-29T22:00:00Z"), "6h", "Europe/Berlin");
  assert.deepEqual(steps.map((ms) => minutes(ms, "Europe/Berlin").slice(11)), ["00:00", "06:00", "12:00", "18:00"]);
  assert.equal((steps[1] ?? 0) - (steps[0] ?? 0), 5 * HOUR);
});

test("weeks begin on Monday, months on the first", () => {
  assert.equal(iso(stepStart(at("2026-11-29T10:00:00Z"), "1w", "UTC")), "2026-11-23T00:00:00Z");
  assert.equal(iso(stepStart(at("2026-11-29T10:00:00Z"), "1mo", "UTC")), "2026-11-01T00:00:00Z");
  assert.equal(iso(stepEnd(at("2026-02-01T00:00:00Z"), "1mo", "UTC")), "2026-03-01T00:00:00Z");
  assert.equal(stepsOf(at("2025-01-01"), at("2027-01-01"), "1mo", "America/New_York").length, 25);
});

test("times are read by the clocks of the zone, or as RFC 3339", () => {
  assert.equal(iso(readTime("2026-07-01 08:30", "Europe/Berlin") ?? 0), "2026-07-01T06:30:00Z");
  assert.equal(iso(readTime("2026-01-31", "UTC") ?? 0), "2026-01-31T00:00:00Z");
  assert.equal(iso(readTime("2026-01-31T00:00:00+02:00", "UTC") ?? 0), "2026-01-30T22:00:00Z");
  for (const wrong of ["2026-02-30", "yesterday", "", "2026-1-1", "12:00"]) {
    assert.equal(readTime(wrong, "UTC"), null, wrong);
  }
});

test("of two moments that a clock shows, the first is meant", () => {
  assert.equal(iso(momentOf(Date.UTC(2026, 9, 25, 2, 30), "Europe/Berlin")), "2026-10-25T00:30:00Z");
});

test("the step suits the range", () => {
  assert.deepEqual([1, 10, 90, 365, 5000].map((days) => suitableStep(days * 24 * HOUR)), ["1h", "6h", "1d", "1w", "1mo"]);
});
