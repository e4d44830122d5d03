/** Times, time zones, and where the steps of a query begin. */

export type Step = "1h" | "6h" | "1d" | "1w" | "1mo" | "all";
export const STEPS: Step[] = ["1h", "6h", "1d", "1w", "1mo", "all"];
export const HOUR = 3_600_000;
export const DAY = 24 * HOUR;

interface Clock {
  year: number;
  month: number;
  day: number;
  hour: number;
  minute: number;
  second: number;
}

const formats = new Map<string, Intl.DateTimeFormat>();

function formatOf(tz: string): Intl.DateTimeFormat {
  let format = formats.get(tz);
  if (!format) {
    format = new Intl.DateTimeFormat("en-US", {
      timeZone: tz,
      hourCycle: "h23",
      year: "numeric",
      month: "numeric",
      day: "numeric",
      hour: "numeric",
      minute: "numeric",
      second: "numeric",
    });
    formats.set(tz, format);
  }
  return format;
}

/** What a clock in the zone shows at this moment. */
export function clockOf(ms: number, tz: string): Clock {
  const clock: Record<string, number> = {};
  for (const { type, value } of formatOf(tz).formatToParts(ms)) clock[type] = Number(value);
  return clock as unknown as Clock;
}

function asUtc(clock: Clock): number {
  const { year, month, day, hour, minute, second } = clock;
  return Date.UTC(year, month - 1, day, hour, minute, second);
}

/** The moment at which a clock in the zone shows this; of two, the first. */
export function momentOf(wall: number, tz: string): number {
  const offset = (ms: number) => asUtc(clockOf(ms, tz)) - Math.floor(ms / 1000) * 1000;
  const candidates = [wall - offset(wall - DAY), wall - offset(wall + DAY)];
  const exact = candidates.filter((ms) => ms + offset(ms) === wall);
  return exact.length > 0 ? Math.min(...exact) : Math.max(...candidates);
}

/** Whether the runtime knows this name of a time zone. */
export function isZone(tz: string): boolean {
  try {
    formatOf(tz);
    return true;
  } catch {
    return false;
  }
}

/** The beginning of the step that this moment is in. */
export function stepStart(ms: number, step: Step, tz: string): number {
  if (step === "1h" || step === "all") return Math.floor(ms / HOUR) * HOUR;
  const { year, month, day, hour } = clockOf(ms, tz);
  switch (step) {
    case "6h":
      return momentOf(Date.UTC(year, month - 1, day, Math.floor(hour / 6) * 6), tz);
    case "1d":
      return momentOf(Date.UTC(year, month - 1, day), tz);
    case "1w": {
      const weekday = (new Date(Date.UTC(year, month - 1, day)).getUTCDay() + 6) % 7;
      return momentOf(Date.UTC(year, month - 1, day - weekday), tz);
    }
    case "1mo":
      return momentOf(Date.UTC(year, month - 1), tz);
  }
}

/** The end of the step that begins at `start`. */
export function stepEnd(start: number, step: Step, tz: string): number {
  const longest = { "1h": 1, "6h": 7, "1d": 25, "1w": 7 * 24 + 1, "1mo": 31 * 24 + 1, all: 1 }[step];
  if (step === "1h" || step === "all") return start + HOUR;
  return stepStart(start + longest * HOUR, step, tz);
}

/** A step that gives a readable number of points for a range. */
export function suitableStep(ms: number): Step {
  if (ms <= 4 * DAY) return "1h";
  if (ms <= 21 * DAY) return "6h";
  if (ms <= 200 * DAY) return "1d";
  return ms <= 3 * 365 * DAY ? "1w" : "1mo";
}

const pad = (value: number, digits = 2) => String(value).padStart(digits, "0");

/** "2013-02-01 06:00" by the clocks of the zone. */
export function minutes(ms: number, tz: string): string {
  const { year, month, day, hour, minute } = clockOf(ms, tz);
  return `${pad(year, 4)}-${pad(month)}-${pad(day)} ${pad(hour)}:${pad(minute)}`;
}

/** "06:00:12" by the clocks of the zone. */
export function seconds(ms: number, tz: string): string {
  const { hour, minute, second } = clockOf(ms, tz);
  return `${pad(hour)}:${pad(minute)}:${pad(second)}`;
}

/** A step by its beginning, as precisely as the step needs. */
export function stepName(ms: number, step: Step, tz: string): string {
  const text = minutes(ms, tz);
  if (step === "1mo") return text.slice(0, 7);
  return step === "1d" || step === "1w" ? text.slice(0, 10) : text;
}

/** RFC 3339 in UTC without needless parts. */
export function iso(ms: number): string {
  return new Date(ms).toISOString().replace(".000Z", "Z");
}

/** Reads "2013-02-01", "2013-02-01 06:00" or "…T06:00" by the clocks of the zone, or RFC 3339. */
export function readTime(text: string, tz: string): number | null {
  const found = /^(\d{4})-(\d{2})-(\d{2})(?:[ T](\d{2}):(\d{2}))?$/.exec(text.trim());
  if (found) {
    const [year, month, day, hour, minute] = found.slice(1).map((part) => Number(part ?? 0));
    const wall = Date.UTC(year ?? 0, (month ?? 1) - 1, day, hour, minute);
    const same = new Date(wall).toISOString().startsWith(text.trim().slice(0, 10));
    return same ? momentOf(wall, tz) : null;
  }
  if (!/^\d{4}-\d{2}-\d{2}T.*(Z|[+-]\d{2}:\d{2})$/.test(text.trim())) return null;
  const ms = Date.parse(text.trim());
  return Number.isNaN(ms) ? null : ms;
}
