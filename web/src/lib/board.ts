/** A board and its changes. Pure. */
import type { Board, BoardPanel } from "../api/types.ts";
import { printMatchers } from "./matchers.ts";
import type { Question } from "./question.ts";

/** The longest name or title that the server takes. */
export const MAX_TEXT = 200;
const MAX_ID = 64;

export const WIDTHS = [3, 4, 6, 8, 12];
export const HEIGHTS = [160, 220, 280, 400];
export const DEFAULT_WIDTH = 6;
export const DEFAULT_HEIGHT = 220;

/** An id made of the name, which no other board has. */
export function idFor(name: string, taken: string[]): string {
  const plain = name.normalize("NFKD").toLowerCase().replace(/[^a-z0-9]+/g, "-");
  const base = plain.replace(/^-+/, "").slice(0, MAX_ID - 6).replace(/-+$/, "") || "board";
  for (let n = 1; ; n++) {
    const id = n === 1 ? base : `${base}-${n}`;
    if (!taken.includes(id)) return id;
  }
}

/** "count, sum of order by shop". */
export function titleFor({ metric, aggregates, by, matchers }: Question): string {
  const groups = by.length > 0 ? ` by ${by.join(", ")}` : "";
  return `${aggregates.join(", ")} of ${metric}${printMatchers(matchers)}${groups}`.slice(0, MAX_TEXT);
}

/** The panels with one of them moved forward or back; the same if it is at the end. */
export function moved(panels: BoardPanel[], index: number, by: -1 | 1): BoardPanel[] {
  const [one, other] = [panels[index], panels[index + by]];
  if (!one || !other) return panels;
  const next = [...panels];
  next[index] = other;
  next[index + by] = one;
  return next;
}

/** Reads an exported board. What is wrong with it, as text, if it is none. */
export function readBoard(text: string): Board | string {
  let read: unknown;
  try {
    read = JSON.parse(text);
  } catch {
    return "The file is no JSON.";
  }
  const { name, panels } = (read ?? {}) as { name?: unknown; panels?: unknown };
  if (typeof name !== "string" || !Array.isArray(panels)) return "The file is no exported board: it has no name or no panels.";
  const isPanel = (panel: unknown) => {
    const { title, question } = (panel ?? {}) as { title?: unknown; question?: unknown };
    return typeof title === "string" && typeof question === "string";
  };
  const wrong = panels.findIndex((panel) => !isPanel(panel));
  if (wrong >= 0) return `Panel ${wrong + 1} of the file has no title or no question.`;
  return { name, panels: panels as BoardPanel[] };
}
