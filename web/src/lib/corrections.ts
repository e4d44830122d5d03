/** What changed in hours that were over: late events, or a replay that was applied. */
import type { Line } from "./shape.ts";

export interface Correction {
  line: string;
  time: number;
  before: string | null;
  after: string | null;
}

/** Compares two answers; only steps that ended before `open` are corrections. */
export function corrections(before: Line[], after: Line[], open: number): Correction[] {
  const old = new Map(before.map((line) => [line.name, line]));
  const found: Correction[] = [];
  for (const line of after) {
    const earlier = old.get(line.name);
    const times = new Set([...line.texts.keys(), ...(earlier?.texts.keys() ?? [])]);
    for (const time of times) {
      const [was, is] = [earlier?.texts.get(time) ?? null, line.texts.get(time) ?? null];
      if (time < open && was !== is) found.push({ line: line.name, time, before: was, after: is });
    }
  }
  return found.sort((a, b) => a.time - b.time);
}
