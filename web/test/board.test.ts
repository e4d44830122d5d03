import assert from "node:assert/strict";
import { test } from "node:test";
import { idFor, moved, readBoard, titleFor } from "../src/lib/board.ts";
import { DEFAULT } from "../src/lib/question.ts";

test("an id is made of the name and is free", () => {
  assert.equal(idFor("Shop in Zürich!", []), "shop-in-zu-rich");
  assert.equal(idFor("<script>", []), "script");
  assert.equal(idFor("店", []), "board");
  assert.equal(idFor("Shop", ["shop", "shop-2"]), "shop-3");
  const long = idFor("x".repeat(200), ["x".repeat(58)]);
  assert.match(long, /^[a-z0-9][a-z0-9-]{0,63}$/);
});

test("a title says what is asked", () => {
  const question = { ...DEFAULT, metric: "order", by: ["shop"], matchers: [{ label: "shop", operator: "!=" as const, value: "x" }] };
  assert.equal(titleFor(question), 'count of order{shop!="x"} by shop');
  assert.equal(titleFor({ ...question, metric: "m".repeat(300) }).length, 200);
});

test("panels move and stay at the ends", () => {
  const panels = ["a", "b", "c"].map((title) => ({ title, question: "" }));
  const titles = (index: number, by: -1 | 1) => moved(panels, index, by).map(({ title }) => title).join("");
  assert.equal(titles(0, 1), "bac");
  assert.equal(titles(2, -1), "acb");
  assert.equal(titles(0, -1), "abc");
  assert.equal(titles(2, 1), "abc");
});

test("an imported file is a board, or it is said what is wrong", () => {
  const board = { name: "Shop", panels: [{ title: "t", question: "metric=m", width: 6 }] };
  assert.deepEqual(readBoard(JSON.stringify(board)), board);
  assert.match(String(readBoard("{")), /no JSON/);
  for (const text of ["null", "[]", '{"name":1,"panels":[]}', '{"name":"x"}']) {
    assert.match(String(readBoard(text)), /no exported board/, text);
  }
  assert.match(String(readBoard('{"name":"x","panels":[{"title":"t","question":"q"},null]}')), /Panel 2/);
});
