/** How fast events come, over the last two minutes. */
import { figure } from "../../lib/format.ts";
import { minutes, seconds } from "../../lib/time.ts";
import { type CountSample, type LiveState, RATE_MS } from "./subscription.ts";

const BUCKET_MS = 2000;

/** New events per bucket, the oldest first; a bucket without an answer has none. */
export function arrivals(counts: CountSample[], now: number): number[] {
  const buckets = new Array<number>(RATE_MS / BUCKET_MS).fill(0);
  counts.forEach((sample, i) => {
    const before = counts[i - 1];
    if (!before) return;
    const place = buckets.length - 1 - Math.floor((now - sample.at) / BUCKET_MS);
    if (place >= 0 && place < buckets.length) {
      buckets[place] = (buckets[place] ?? 0) + Math.max(sample.count - before.count, 0);
    }
  });
  return buckets;
}

export function Rate({ live, now, tz, hour }: { live: LiveState; now: number; tz: string; hour: number }) {
  const buckets = arrivals(live.counts, now);
  const recent = buckets.slice(-5).reduce((sum, n) => sum + n, 0) / ((5 * BUCKET_MS) / 1000);
  const inHour = openCount(live, hour);
  return (
    <div class="live-now">
      <div>
        <div class="big">{figure(Number(recent.toFixed(1)))}</div>
        <div class="soft">events per second, last 10 s</div>
      </div>
      <div>
        <div class="big">{figure(inHour)}</div>
        <div class="soft">events since {minutes(hour, tz).slice(11)}</div>
      </div>
      <Spark values={buckets} />
      <div class="soft" aria-live="off">
        {live.changedAt === null ? "" : `last change ${seconds(live.changedAt, tz)} ${tz}`}
      </div>
    </div>
  );
}

function openCount(live: LiveState, hour: number): number {
  let count = 0;
  for (const series of live.answer?.series ?? []) {
    for (const point of series.points) {
      if (Date.parse(point.t) === hour) count += Number((point as { count?: number }).count ?? 0);
    }
  }
  return count;
}

function Spark({ values }: { values: number[] }) {
  const highest = Math.max(...values, 1);
  const place = (value: number, i: number) => `${(i / (values.length - 1)) * 220},${38 - (value / highest) * 34}`;
  const line = `M${values.map(place).join("L")}`;
  return (
    <svg class="spark" viewBox="0 0 220 40" preserveAspectRatio="none" role="img" aria-label="Events of the last two minutes">
      <path class="area" d={`${line}L220,40L0,40Z`} />
      <path d={line} />
    </svg>
  );
}
