import type { ShardStatus } from "../../api/types.ts";
import { duration, figure } from "../../lib/format.ts";
import { Badge, type Tone } from "../../ui/parts.tsx";

const PROBLEMS: Record<string, { tone: Tone; text: string }> = {
  no_owner: { tone: "bad", text: "no owner" },
  stopped: { tone: "bad", text: "stopped" },
  stale: { tone: "warn", text: "stale" },
  flush_failing: { tone: "warn", text: "flushes fail" },
};

/** Those with a problem first, then by number. */
export function ShardTable({ shards }: { shards: ShardStatus[] }) {
  const sorted = [...shards].sort((a, b) => Number(!a.problem) - Number(!b.problem) || (a.shard ?? 0) - (b.shard ?? 0));
  return (
    <div class="table-wrap tall" tabIndex={0} role="region" aria-label="Shards">
      <table>
        <thead>
          <tr>
            <th scope="col" class="right">Shard</th>
            <th scope="col">State</th>
            <th scope="col">Owner</th>
            <th scope="col" class="right">Lag</th>
            <th scope="col" class="right">Age</th>
            <th scope="col" class="right">Applied</th>
            <th scope="col" class="right">Committed</th>
            <th scope="col" class="right">Archived</th>
            <th scope="col" class="right">Not archived</th>
            <th scope="col" class="right">Epoch</th>
          </tr>
        </thead>
        <tbody>
          {sorted.map((shard) => (
            <tr key={shard.shard}>
              <th scope="row" class="right">{shard.shard}</th>
              <td class={shard.problem ? "wrap" : ""}>
                <State shard={shard} />
              </td>
              <td class="nowrap">{shard.node ?? (shard.owner === "none" ? "none" : "–")}</td>
              <td class="right">{figure(shard.lag)}</td>
              <td class="right">{duration(shard.age_ms)}</td>
              <td class="right">{figure(shard.next)}</td>
              <td class="right">{figure(shard.committed)}</td>
              <td class="right">{figure(shard.archived)}</td>
              <td class="right">{figure(shard.archive_lag)}</td>
              <td class="right">{figure(shard.epoch)}</td>
            </tr>
          ))}
        </tbody>
      </table>
    </div>
  );
}

function State({ shard }: { shard: ShardStatus }) {
  if (!shard.problem) return <Badge tone="good" dot>ok</Badge>;
  const { tone, text } = PROBLEMS[shard.problem] ?? { tone: "warn" as const, text: shard.problem };
  const why = shard.why ?? shard.flush_failure;
  return (
    <>
      <Badge tone={tone} dot>{text}</Badge> {why}
      {(shard.attempts ?? 0) > 0 && <span class="soft"> {shard.attempts} starts without progress</span>}
    </>
  );
}
