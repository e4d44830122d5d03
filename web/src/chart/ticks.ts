/** Names of the ticks of a time axis: 06:00, "1 Feb", and the year where it begins. */
import { clockOf, DAY } from "../lib/time.ts";

const MONTHS = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];

/** `seconds` are the places of the ticks, `increment` what lies between them, in seconds. */
export function timeTicks(seconds: number[], increment: number, tz: string): string[] {
  let shownYear: number | null = null;
  let shownDay: string | null = null;
  const isClock = increment * 1000 < DAY;
  return seconds.map((tick) => {
    const { year, month, day, hour, minute } = clockOf(tick * 1000, tz);
    const name = MONTHS[month - 1] ?? "";
    const date = increment * 1000 >= 28 * DAY ? name : `${day} ${name}`;
    const isNewDay = shownDay !== `${year} ${date}`;
    const isNewYear = shownYear !== year;
    shownYear = year;
    shownDay = `${year} ${date}`;
    const under = isNewYear ? `${date} ${year}` : date;
    const time = `${String(hour).padStart(2, "0")}:${String(minute).padStart(2, "0")}`;
    if (isClock) return isNewDay ? `${time}\n${under}` : time;
    return isNewYear ? `${date}\n${year}` : date;
  });
}
