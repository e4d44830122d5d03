/** Parts of a comparison, put together. */
import type { DiffRow, DiffTotals } from "../api/types.ts";
import { add, compare, subtract } from "./decimal.ts";

type Sums = DiffTotals["before"];

function addSums(a: Sums, b: Sums): Sums {
  return {
    count: a.count + b.count,
    value_count: a.value_count + b.value_count,
    sum: add([a.sum, b.sum]) ?? a.sum,
  };
}

export function addTotals(a: DiffTotals, b: DiffTotals): DiffTotals {
  return {
    added: a.added + b.added,
    removed: a.removed + b.removed,
    changed: a.changed + b.changed,
    equal: a.equal + b.equal,
    before: addSums(a.before, b.before),
    after: addSums(a.after, b.after),
  };
}

const size = (text: string) => (text.startsWith("-") ? text.slice(1) : text);
const events = (row: DiffRow) => Math.abs((row.after?.count ?? 0) - (row.before?.count ?? 0));
const sum = (row: DiffRow) => size(subtract(row.after?.sum ?? "0", row.before?.sum ?? "0") ?? "0");

/** The largest changes of both: by events, then by sum, as the server orders a part. */
export function mergeRows(a: DiffRow[], b: DiffRow[], limit: number): DiffRow[] {
  const order = (x: DiffRow, y: DiffRow) => events(y) - events(x) || compare(sum(y), sum(x));
  return [...a, ...b].sort(order).slice(0, limit);
}
