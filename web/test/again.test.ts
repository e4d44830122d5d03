import assert from "node:assert/strict";
import { test } from "node:test";
import { Failure } from "../src/api/failure.ts";
import { UNREACHABLE_MS, waitAfter, waitAfterFailure } from "../src/lib/again.ts";

test("an answer stands, is renewed, or is asked for again because of what it lacks", () => {
  const ifPartial = (isPartial: boolean) => (isPartial ? 3000 : undefined);
  assert.equal(waitAfter(true, undefined), undefined);
  assert.equal(waitAfter(true, 2000), 2000);
  assert.equal(waitAfter(true, ifPartial), 3000);
  assert.equal(waitAfter(false, ifPartial), undefined);
});

test("a failure is retried when the server says so or is gone, and not when it would fail again", () => {
  const refused = new Failure(422, "too_many_points", "");
  const busy = new Failure(503, "query_timeout", "", 5);
  const gone = new Failure(0, "unreachable", "");
  assert.equal(waitAfterFailure(refused, undefined), undefined);
  assert.equal(waitAfterFailure(refused, () => 1), undefined);
  assert.equal(waitAfterFailure(busy, undefined), 5000);
  assert.equal(waitAfterFailure(busy, 2000), 5000);
  assert.equal(waitAfterFailure(busy, 30_000), 30_000);
  assert.equal(waitAfterFailure(gone, undefined), UNREACHABLE_MS);
  assert.equal(waitAfterFailure(gone, 2000), 2000);
});
