/** What an answer lacks, named. */
import type { Completeness } from "../api/types.ts";
import { duration, figure, plural } from "../lib/format.ts";
import { MISSING } from "../lib/refusals.ts";
import { minutes } from "../lib/time.ts";
import { Notice } from "./parts.tsx";

const SHOWN = 8;

/** "shard 3 (it is starting), shard 7 (…, 12 s behind)". */
export function missingText(completeness: Completeness): string {
  const named = completeness.missing.slice(0, SHOWN).map((missing) => {
    const why = MISSING[missing.reason] ?? missing.reason;
    const lag = missing.behind_ms == null ? "" : `, ${duration(missing.behind_ms)} behind`;
    return `shard ${missing.shard} (${why}${lag})`;
  });
  const others = completeness.missing.length - named.length;
  return named.join(", ") + (others > 0 ? ` and ${plural(others, "other")}` : "");
}

export function CompletenessNotices({ completeness, tz }: { completeness: Completeness; tz: string }) {
  const { partial, missing, shards, overflow, generations } = completeness;
  return (
    <>
      {partial && (
        <Notice tone="warn" title={`Partial: ${missing.length} of ${plural(shards, "shard")} not fully in this answer.`}>
          The true counts can only be larger. Missing: {missingText(completeness)}.
        </Notice>
      )}
      {!!overflow && (
        <Notice tone="warn" title={`${plural(overflow, "event")} in no series.`}>
          The tenant has more than tenants.max_series, so these events have lost their labels: no
          group and no filter shows them.
        </Notice>
      )}
      {generations && generations.length > 0 && (
        <Notice tone="info" title="Recomputed.">
          {generations.map((part) => {
            const [from, to] = [part.from, part.to].map((t) => (t ? minutes(Date.parse(t), tz) : "now"));
            return `Replay ${figure(part.generation)} is served from ${from} to ${to}. `;
          })}
        </Notice>
      )}
    </>
  );
}
