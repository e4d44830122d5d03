/** A range of time: relative to now, or fixed. */
import { DAY, HOUR, iso, minutes } from "./time.ts";

export type Range = { kind: "last"; ms: number } | { kind: "fixed"; from: number; to: number };

const UNITS: Record<string, number> = { h: HOUR, d: DAY };

export const QUICK: { name: string; ms: number }[] = [
  { name: "6 h", ms: 6 * HOUR },
  { name: "24 h", ms: DAY },
  { name: "7 d", ms: 7 * DAY },
  { name: "30 d", ms: 30 * DAY },
  { name: "90 d", ms: 90 * DAY },
  { name: "1 y", ms: 365 * DAY },
];

/** The range as `from` and `to` in milliseconds. */
export function bounds(range: Range, now: number): { from: number; to: number } {
  if (range.kind === "fixed") return { from: range.from, to: range.to };
  // The open hour is part of what is asked for.
  const to = (Math.floor(now / HOUR) + 1) * HOUR;
  return { from: to - range.ms, to };
}

/** The period of the same length before. */
export function periodBefore({ from, to }: { from: number; to: number }) {
  return { from: from - (to - from), to: from };
}

/** As it stands in a URL: `-7d`, or two times. */
export function printRange(range: Range): { from: string; to?: string } {
  if (range.kind === "fixed") return { from: iso(range.from), to: iso(range.to) };
  const unit = range.ms % DAY === 0 ? "d" : "h";
  return { from: `-${range.ms / (UNITS[unit] ?? HOUR)}${unit}` };
}

/** Reads what `printRange` wrote; null for anything else. */
export function parseRange(from: string | null, to: string | null): Range | null {
  const relative = /^-(\d{1,6})([hd])$/.exec(from ?? "");
  if (relative && to === null) {
    const ms = Number(relative[1]) * (UNITS[relative[2] ?? "h"] ?? HOUR);
    return ms > 0 ? { kind: "last", ms } : null;
  }
  const [start, end] = [Date.parse(from ?? ""), Date.parse(to ?? "")];
  if (Number.isNaN(start) || Number.isNaN(end) || start >= end) return null;
  return { kind: "fixed", from: start, to: end };
}

/** For people: "last 7 d", or two times. */
export function rangeName(range: Range, tz: string): string {
  if (range.kind === "fixed") return `${minutes(range.from, tz)} – ${minutes(range.to, tz)}`;
  return range.ms % DAY === 0 ? `last ${range.ms / DAY} d` : `last ${range.ms / HOUR} h`;
}
