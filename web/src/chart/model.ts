/** What a chart draws, as columns for uPlot. Pure. */
import type uPlot from "uplot";
import { type Line, placesOf, stack } from "../lib/shape.ts";

export type Kind = "line" | "stacked" | "bar";

export interface Drawing {
  kind: Kind;
  /** Whether bars of one step stand on each other. */
  isStacked: boolean;
  lines: Line[];
  /** The period before, already on these steps; same names. */
  before: Line[];
  /** Beginnings of the steps, and the end of the range, in milliseconds. */
  steps: number[];
  end: number;
  /** Beginning of the step that is not over; null if all are. */
  open: number | null;
  /** Steps that were corrected after they were over. */
  marks: number[];
}

export interface Column {
  name: string;
  /** Index of its line, for the colour. */
  line: number;
  part: "main" | "open" | "before";
}

/** The columns in the order in which they are drawn: the period before lies below. */
export function columnsOf(drawing: Drawing): Column[] {
  const columns: Column[] = [];
  const add = (part: Column["part"], lines: Line[]) => {
    for (const line of lines) {
      const index = drawing.lines.findIndex((other) => other.name === line.name);
      if (index >= 0) columns.push({ name: line.name, line: index, part });
    }
  };
  if (drawing.kind === "line") add("before", drawing.before);
  add("main", drawing.lines);
  if (drawing.kind === "line") add("open", drawing.lines);
  return columns;
}

export function dataOf(drawing: Drawing): uPlot.AlignedData {
  const { lines, before, steps, open, kind } = drawing;
  const main = lines.map((line) => placesOf(line, steps));
  const x = steps.map((ms) => ms / 1000);
  if (kind !== "line") {
    const rows = drawing.isStacked ? stack(main) : main;
    return [x, ...rows] as uPlot.AlignedData;
  }
  const columns = columnsOf(drawing).map(({ part, line, name }) => {
    if (part === "before") {
      const old = before.find((other) => other.name === name);
      return old ? placesOf(old, steps) : [];
    }
    return part === "main" ? closed(main[line] ?? [], steps, open) : opened(main[line] ?? [], steps, open);
  });
  return [x, ...columns] as uPlot.AlignedData;
}

function closed(row: (number | null)[], steps: number[], open: number | null) {
  return open === null ? row : row.map((value, i) => ((steps[i] ?? 0) < open ? value : null));
}

/** The open step, and the last one before it, so that a line leads there. */
function opened(row: (number | null)[], steps: number[], open: number | null) {
  if (open === null) return row.map(() => null);
  const first = steps.findIndex((step) => step >= open);
  return row.map((value, i) => (first >= 0 && i >= first - 1 ? value : null));
}

/** Whether any value is below zero; such values do not stack. */
export function hasNegative(lines: Line[]): boolean {
  return lines.some((line) => [...line.texts.values()].some((text) => text.startsWith("-")));
}

/** Values without neighbours, which a line alone would not show. */
export function isolated(row: ArrayLike<number | null | undefined>): number[] {
  const found: number[] = [];
  for (let i = 0; i < row.length; i++) {
    if (row[i] != null && row[i - 1] == null && row[i + 1] == null) found.push(i);
  }
  return found;
}
