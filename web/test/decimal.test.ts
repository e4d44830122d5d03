import assert from "node:assert/strict";
import { test } from "node:test";
import { add, change, compare, group, subtract } from "../src/lib/decimal.ts";

test("sums keep digits that a double would lose", () => {
  assert.equal(add(["0.1", "0.2"]), "0.3");
  assert.equal(add(["999999999999999999.999999999", "0.000000001"]), "1000000000000000000");
  assert.equal(add(["9007199254740993", "1"]), "9007199254740994");
  assert.equal(add(["-1.5", "1.25"]), "-0.25");
  assert.equal(add([]), "0");
  assert.equal(add(["1", "NaN"]), null);
  assert.equal(subtract("1", "-0.000000001"), "1.000000001");
});

test("grouping changes no digit", () => {
  assert.equal(group("1234567.123456789"), "1,234,567.123456789");
  assert.equal(group("-1234"), "−1,234");
  assert.equal(group("123"), "123");
  assert.equal(group("1000"), "1,000");
  assert.equal(group("no number"), "no number");
});

test("comparison is exact", () => {
  assert.ok(compare("9007199254740993", "9007199254740992") > 0);
  assert.ok(compare("-2", "1.5") < 0);
  assert.equal(compare("1.50", "1.5"), 0);
  assert.ok(compare("x", "1") > 0);
});

test("a change is a percentage with one decimal, rounded half away from zero", () => {
  assert.equal(change("100", "112.3"), "+12.3 %");
  assert.equal(change("100", "100"), "±0.0 %");
  assert.equal(change("200", "100"), "−50.0 %");
  assert.equal(change("-100", "-50"), "+50.0 %");
  assert.equal(change("3", "4"), "+33.3 %");
  assert.equal(change("0", "4"), null);
  assert.equal(change("1", "10001"), "+1,000,000.0 %");
});
