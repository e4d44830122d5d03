/** Ingest, acknowledgements, flushes and refusals of the node that answers, from its metrics. */
import { useRef } from "preact/hooks";
import { api } from "../../api/client.ts";
import { byLabel, readSamples, type Sample, total } from "../../lib/exposition.ts";
import { figure } from "../../lib/format.ts";
import { REFUSALS } from "../../lib/refusals.ts";
import { useLoaded } from "../../ui/hooks.ts";
import { Empty, FailureNotice, Panel } from "../../ui/parts.tsx";

const REFRESH_MS = 5000;

const COUNTERS: [name: string, metric: string][] = [
  ["Events accepted (acknowledged)", "rollmill_events_accepted_total"],
  ["Events refused", "rollmill_events_rejected_total"],
  ["Events aggregated", "rollmill_events_aggregated_total"],
  ["Duplicates dropped", "rollmill_events_deduplicated_total"],
  ["Log commits", "rollmill_log_commits_total"],
  ["Flushes", "rollmill_flushes_total"],
  ["Rows flushed", "rollmill_flush_rows_total"],
  ["Archive objects", "rollmill_archive_objects_total"],
];

export function NodeWork() {
  const before = useRef<{ at: number; samples: Sample[] } | null>(null);
  const { value, failure, reload } = useLoaded(
    async (signal) => {
      const now = { at: Date.now(), samples: readSamples(await api.prometheus(signal)) };
      const old = before.current;
      before.current = now;
      return { now, old };
    },
    [],
    REFRESH_MS,
  );
  if (!value) return failure ? <FailureNotice failure={failure} retry={reload} /> : <Empty title="Asking for the metrics" />;
  const rate = (metric: string) => {
    if (!value.old) return "–";
    const grown = total(value.now.samples, metric) - total(value.old.samples, metric);
    // Less than before: the node has started anew.
    return grown < 0 ? "–" : figure(Number(((grown * 1000) / (value.now.at - value.old.at)).toFixed(1)));
  };
  return (
    <div class="two">
      <Panel title="This node at work" flush>
        <div class="table-wrap" tabIndex={0} role="region" aria-label="This node at work">
          <table>
            <thead>
              <tr>
                <th scope="col">What</th>
                <th scope="col" class="right">Per second</th>
                <th scope="col" class="right">Since it started</th>
              </tr>
            </thead>
            <tbody>
              {COUNTERS.map(([name, metric]) => (
                <tr key={metric}>
                  <th scope="row">{name}</th>
                  <td class="right">{rate(metric)}</td>
                  <td class="right">{figure(total(value.now.samples, metric))}</td>
                </tr>
              ))}
            </tbody>
          </table>
        </div>
      </Panel>
      <Refused samples={value.now.samples} />
    </div>
  );
}

function Refused({ samples }: { samples: Sample[] }) {
  const events = byLabel(samples, "rollmill_events_rejected_total", "code");
  const writes = byLabel(samples, "rollmill_writes_refused_total", "reason");
  const shares = byLabel(samples, "rollmill_shares_refused_total", "limit");
  const rows = [
    ...events.map(([code, count]) => ({ code, count, what: REFUSALS[code] ?? "An event was refused." })),
    ...writes.map(([code, count]) => ({ code, count, what: "The log did not take a request." })),
    ...shares.map(([code, count]) => ({ code, count, what: "A share was used up." })),
  ];
  return (
    <Panel title="Refused by this node, by reason" flush>
      {rows.length === 0 ? (
        <Empty title="Nothing was refused">since this node has started</Empty>
      ) : (
        <div class="table-wrap" tabIndex={0} role="region" aria-label="Refused events">
          <table>
            <thead>
              <tr>
                <th scope="col">Reason</th>
                <th scope="col">What it means</th>
                <th scope="col" class="right">Times</th>
              </tr>
            </thead>
            <tbody>
              {rows.map(({ code, count, what }) => (
                <tr key={code}>
                  <th scope="row" class="mono">{code}</th>
                  <td class="wrap">{what}</td>
                  <td class="right">{figure(count)}</td>
                </tr>
              ))}
            </tbody>
          </table>
        </div>
      )}
    </Panel>
  );
}
