/** Text for people: counts, durations, bytes. Values of metrics are in decimal.ts. */
import { group } from "./decimal.ts";

/** A whole number or decimal text, with its digits in groups. */
export function figure(value: string | number | null | undefined): string {
  if (value === null || value === undefined) return "–";
  return group(typeof value === "number" ? plain(value) : value);
}

/** A number of JSON as decimal text without an exponent; rates are the only fractions. */
export function plain(value: number): string {
  const text = String(value);
  if (!text.includes("e")) return text;
  return value.toFixed(Math.abs(value) < 1 ? 12 : 0).replace(/\.?0+$/, "") || "0";
}

const UNITS: [number, string][] = [
  [86_400_000, "d"],
  [3_600_000, "h"],
  [60_000, "min"],
  [1000, "s"],
];

/** A duration in its two largest units: "2 d 3 h", "1 min 5 s", "12 ms". */
export function duration(ms: number | null | undefined): string {
  if (ms === null || ms === undefined) return "–";
  if (ms < 1000) return `${Math.round(ms)} ms`;
  const first = UNITS.findIndex(([size]) => ms >= size);
  const [size, name] = UNITS[first] ?? [1000, "s"];
  const whole = Math.floor(ms / size);
  const next = UNITS[first + 1];
  const rest = next ? Math.floor((ms - whole * size) / next[0]) : 0;
  return next && rest > 0 ? `${figure(whole)} ${name} ${rest} ${next[1]}` : `${figure(whole)} ${name}`;
}

/** Bytes in binary units, as the configuration has them. */
export function bytes(count: number): string {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let [value, unit] = [count, 0];
  while (value >= 1024 && unit < units.length - 1) [value, unit] = [value / 1024, unit + 1];
  return `${Number.isInteger(value) ? value : value.toFixed(1)} ${units[unit]}`;
}

/** "1 shard", "2 shards". */
export function plural(count: number, noun: string): string {
  return `${figure(count)} ${noun}${count === 1 ? "" : "s"}`;
}

/** Short numbers for the ticks of an axis: 1.5k, 2M. */
export function tick(value: number): string {
  const size = Math.abs(value);
  for (const [unit, name] of [[1e12, "T"], [1e9, "G"], [1e6, "M"], [1e4, "k"]] as const) {
    if (size >= unit) {
      const shown = name === "k" ? value / 1e3 : value / unit;
      return `${Number(shown.toPrecision(4))}${name}`;
    }
  }
  return String(Number(value.toPrecision(6)));
}
