/**
 * Exact decimals as text. The server sends sums, averages and bounds as strings with all their
 * digits; a double would lose some. Only `toPixels` leaves exactness, for places on a screen.
 */

const SHAPE = /^(-?)(\d+)(?:\.(\d+))?$/;

interface Parts {
  digits: bigint;
  scale: number;
}

function parse(text: string): Parts | null {
  const found = SHAPE.exec(text);
  if (!found) return null;
  const [, sign, whole, fraction = ""] = found;
  return { digits: BigInt(`${sign}${whole}${fraction}`), scale: fraction.length };
}

function widen(parts: Parts, scale: number): bigint {
  return parts.digits * 10n ** BigInt(scale - parts.scale);
}

function print(digits: bigint, scale: number): string {
  const sign = digits < 0n ? "-" : "";
  const text = (digits < 0n ? -digits : digits).toString().padStart(scale + 1, "0");
  const whole = text.slice(0, text.length - scale);
  const fraction = text.slice(text.length - scale).replace(/0+$/, "");
  return fraction ? `${sign}${whole}.${fraction}` : `${sign}${whole}`;
}

/** The exact sum. What is no plain decimal makes the whole sum unknown. */
export function add(values: Iterable<string>): string | null {
  let sum: Parts = { digits: 0n, scale: 0 };
  for (const value of values) {
    const parts = parse(value);
    if (!parts) return null;
    const scale = Math.max(sum.scale, parts.scale);
    sum = { digits: widen(sum, scale) + widen(parts, scale), scale };
  }
  return print(sum.digits, sum.scale);
}

/** The exact difference `a - b`. */
export function subtract(a: string, b: string): string | null {
  return add([a, b.startsWith("-") ? b.slice(1) : `-${b}`]);
}

/** Below zero if `a` is the smaller; what is no decimal comes last. */
export function compare(a: string, b: string): number {
  const [left, right] = [parse(a), parse(b)];
  if (!left || !right) return Number(!left) - Number(!right);
  const scale = Math.max(left.scale, right.scale);
  const [l, r] = [widen(left, scale), widen(right, scale)];
  return l < r ? -1 : l > r ? 1 : 0;
}

/** Groups the digits before the point by thousands, and changes no digit. */
export function group(text: string): string {
  const found = SHAPE.exec(text);
  if (!found) return text;
  const [, sign, whole = "", fraction] = found;
  const grouped = whole.replace(/\B(?=(\d{3})+$)/g, ",");
  return `${sign === "-" ? "−" : ""}${grouped}${fraction === undefined ? "" : `.${fraction}`}`;
}

/** The change from `before` to `after` in percent with one decimal, as in "+12.3 %". */
export function change(before: string, after: string): string | null {
  const [from, to] = [parse(before), parse(after)];
  if (!from || !to || from.digits === 0n) return null;
  const scale = Math.max(from.scale, to.scale);
  const base = widen(from, scale);
  const size = base < 0n ? -base : base;
  const tenths = roundedRatio((widen(to, scale) - base) * 1000n, size);
  const text = group(print(tenths < 0n ? -tenths : tenths, 1));
  const sign = tenths > 0n ? "+" : tenths < 0n ? "−" : "±";
  return `${sign}${text.includes(".") ? text : `${text}.0`} %`;
}

function roundedRatio(numerator: bigint, denominator: bigint): bigint {
  const size = numerator < 0n ? -numerator : numerator;
  const rounded = (2n * size + denominator) / (2n * denominator);
  return numerator < 0n ? -rounded : rounded;
}

/** Where a value is on a screen. Never for display. */
export function toPixels(text: string): number {
  return Number(text);
}
