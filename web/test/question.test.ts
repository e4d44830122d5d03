import assert from "node:assert/strict";
import { test } from "node:test";
import { cliCommand, curlCommand, sendCommands, shellWord } from "../src/lib/commands.ts";
import { parseMatchers, printMatchers } from "../src/lib/matchers.ts";
import { DEFAULT, printQuestion, type Question, queryParams, readQuestion, snapped } from "../src/lib/question.ts";
import { bounds, parseRange, periodBefore, printRange } from "../src/lib/range.ts";
import { iso } from "../src/lib/time.ts";

const NOW = Date.parse("2026-11-28T19:30:00Z");

const FULL: Question = {
  metric: "page_view",
  aggregates: ["count", "p99.9"],
  by: ["page", "country"],
  matchers: [{ label: "page", operator: "=~", value: '/a"b\\c\n,}' }, { label: "country", operator: "!=", value: "" }],
  range: { kind: "fixed", from: Date.parse("2026-01-01T00:00:00Z"), to: Date.parse("2026-02-01T00:00:00Z") },
  step: "1d",
  tz: "Europe/Berlin",
  view: "stacked",
  top: null,
  compare: true,
};

test("a question survives its address", () => {
  for (const question of [FULL, DEFAULT, { ...DEFAULT, metric: "m", range: { kind: "last", ms: 6 * 3_600_000 } } as Question]) {
    const address = printQuestion(question).toString();
    assert.deepEqual(readQuestion(new URLSearchParams(address)), question, address);
  }
  assert.equal(printQuestion(DEFAULT).toString(), "");
});

test("what makes no sense in an address is the default", () => {
  const params = new URLSearchParams("agg=nope&step=2h&tz=Mars/Base&view=pie&top=-1&from=x&where=%7Bbroken");
  assert.deepEqual(readQuestion(params), DEFAULT);
});

test("matchers are written as the server reads them", () => {
  assert.equal(printMatchers([{ label: "a", operator: "=", value: 'x"\\\n' }]), '{a="x\\"\\\\\\n"}');
  assert.deepEqual(parseMatchers('{ a = "1" , b!~"2"}'), [
    { label: "a", operator: "=", value: "1" },
    { label: "b", operator: "!~", value: "2" },
  ]);
  assert.deepEqual(parseMatchers("{}"), []);
  for (const wrong of ["a=1", '{a="1}', "{a}", '{1a="x"}', '{a="x"b="y"}']) assert.equal(parseMatchers(wrong), null, wrong);
});

test("ranges end with the open hour, and the period before ends where they begin", () => {
  const range = bounds({ kind: "last", ms: 86_400_000 }, NOW);
  assert.equal(iso(range.to), "2026-11-28T20:00:00Z");
  assert.equal(iso(range.from), "2026-11-27T20:00:00Z");
  assert.equal(iso(periodBefore(range).from), "2026-11-26T20:00:00Z");
  assert.deepEqual(printRange({ kind: "last", ms: 7 * 86_400_000 }), { from: "-7d" });
  assert.equal(parseRange("-0d", null), null);
  assert.equal(parseRange("2026-02-01T00:00:00Z", "2026-01-01T00:00:00Z"), null);
});

test("a range snaps outward to steps, as on the server", () => {
  const question: Question = { ...FULL, tz: "UTC", step: "1w" };
  const { from, to } = snapped(question, NOW);
  assert.deepEqual([iso(from), iso(to)], ["2025-12-29T00:00:00Z", "2026-02-02T00:00:00Z"]);
});

test("only groups can be cut to the top", () => {
  assert.deepEqual(queryParams({ ...DEFAULT, metric: "m" }, NOW).limit, undefined);
  const grouped = queryParams({ ...DEFAULT, metric: "m", by: ["a"], top: 5 }, NOW);
  assert.deepEqual([grouped.limit, grouped.order], [5, "desc"]);
});

test("commands quote what a shell would take apart, and never carry the key", () => {
  assert.equal(shellWord("it's"), "'it'\\''s'");
  const params = queryParams(FULL, NOW);
  const curl = curlCommand("http://localhost:9000", params, true);
  assert.match(curl, /^curl -H "authorization: Bearer \$ROLLMILL_KEY" 'http:\/\/localhost:9000\/v1\/query\?metric=page_view&/);
  assert.match(cliCommand("http://127.0.0.1:8080", params), /^rollmill query page_view --from 2026-01-01T00:00:00Z .*--where '\{page=~"/);
  assert.match(cliCommand("http://h:1", { metric: "m" }), /--url http:\/\/h:1$/);
  const event = { metric: "m", labels: { a: "it's" }, user: "u" };
  assert.match(sendCommands("http://h", event, false).curl, /it'\\''s/);
  assert.doesNotMatch(sendCommands("http://h", event, false).Python, /authorization/);
});
