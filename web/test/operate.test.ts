import assert from "node:assert/strict";
import { test } from "node:test";
import { address } from "../src/api/client.ts";
import { retryDelay } from "../src/api/live.ts";
import type { AccountingHour, DiffRow, DiffTotals } from "../src/api/types.ts";
import { imbalance, totals } from "../src/lib/accounting.ts";
import { configValue } from "../src/lib/config.ts";
import { addTotals, mergeRows } from "../src/lib/diff.ts";
import { byLabel, readSamples, total } from "../src/lib/exposition.ts";
import { bytes, duration, figure, plain, tick } from "../src/lib/format.ts";
import { missingText } from "../src/ui/completeness.tsx";
import { amount } from "../src/views/operate/replay-card.tsx";

test("the books balance, or say by how much they do not", () => {
  const hour: AccountingHour = { hour: null, accepted: 10, aggregated: 5, deduplicated: 2, quarantined: 1, pending: 2 };
  assert.equal(imbalance(totals([hour, hour])), 0n);
  assert.equal(imbalance(totals([{ ...hour, pending: 0 }])), 2n);
});

test("samples of Prometheus are read with their labels", () => {
  const samples = readSamples('# HELP x\nx{code="a\\"b",y="1"} 3\nx{code="c"} 0\nx{code="d"} 5\ny 1e3\nbroken\n');
  assert.equal(total(samples, "x"), 8);
  assert.equal(total(samples, "y"), 1000);
  assert.deepEqual(byLabel(samples, "x", "code"), [["d", 5], ['a"b', 3]]);
});

test("parts of a comparison add up exactly, the largest changes first", () => {
  const sums = { count: 1, value_count: 1, sum: "0.1" };
  const part: DiffTotals = { added: 1, removed: 2, changed: 3, equal: 4, before: sums, after: { ...sums, sum: "0.2" } };
  const both = addTotals(part, part);
  assert.deepEqual([both.added, both.before.sum, both.after.sum], [2, "0.2", "0.4"]);
  const row = (before: number, sum: string) => ({ before: { count: before, sum: "0" }, after: { count: 5, sum } }) as unknown as DiffRow;
  const rows = mergeRows([row(5, "1"), row(4, "0")], [row(5, "-9"), row(0, "0")], 3);
  assert.deepEqual(rows.map((one) => [one.before?.count, one.after?.sum]), [[0, "0"], [4, "0"], [5, "-9"]]);
});

test("durations, bytes, figures and ticks read well", () => {
  assert.deepEqual([0, 999, 1000, 65_000, 90_000_000, 864_000_000].map(duration), ["0 ms", "999 ms", "1 s", "1 min 5 s", "1 d 1 h", "10 d"]);
  assert.deepEqual([0, 1024, 1536, 1_048_576].map(bytes), ["0 B", "1 KiB", "1.5 KiB", "1 MiB"]);
  assert.deepEqual([figure(1234567), figure(null), figure("0.000000001")], ["1,234,567", "–", "0.000000001"]);
  assert.equal(plain(2.5e-7), "0.00000025");
  assert.deepEqual([tick(0), tick(1500), tick(25_000), tick(2_500_000)], ["0", "1500", "25k", "2.5M"]);
});

test("numbers of the configuration have their units", () => {
  assert.equal(configValue("accept.max_age", 86_400_000), "1 d");
  assert.equal(configValue("accept.max_body", 20_971_520), "20 MiB");
  assert.equal(configValue("ws.window", 32), "32");
  assert.equal(configValue("supervision.restart_window", 60_000), "1 min");
  assert.equal(configValue("archive.keep", 0), "0");
});

test("missing shards are named with their reason and lag", () => {
  const missing = [{ shard: 3, reason: "behind", behind_ms: 12_000 }, { shard: 7, reason: "unreachable" }];
  const text = missingText({ partial: true, shards: 8, missing } as never);
  assert.equal(text, "shard 3 (it is further behind than query.stale_after, 12 s behind), shard 7 (its node cannot be reached)");
});

test("addresses leave out what is empty, and escape the rest", () => {
  assert.equal(address("/v1/query", { metric: "m", where: '{a="b&c"}', by: "", limit: undefined }), "/v1/query?metric=m&where=%7Ba%3D%22b%26c%22%7D");
  assert.deepEqual([0, 1, 10].map(retryDelay), [500, 1000, 10_000]);
});

test("the progress of a replay is in events, or in records while nobody knows the events", () => {
  const progress = { done: 3, left: 1, more: 0, events: null, waits_for: [] };
  assert.deepEqual(amount(progress), { done: 3, total: 4, unit: "records" });
  const events = { done: 700, left: 50, unarchived_records: 0 };
  assert.deepEqual(amount({ ...progress, events }), { done: 700, total: 750, unit: "events" });
  assert.deepEqual(amount({ ...progress, events: { done: 0, left: 0, unarchived_records: 4 } }).unit, "records");
});
