/** Replays: count archived events again under rules, compare, apply, undo. */
import { useState } from "preact/hooks";
import { api } from "../../api/client.ts";
import type { ReplaysAnswer } from "../../api/types.ts";
import { minutes } from "../../lib/time.ts";
import { useLoaded } from "../../ui/hooks.ts";
import { Empty, FailureNotice, Panel } from "../../ui/parts.tsx";
import { ReplayCard } from "./replay-card.tsx";
import { StartForm } from "./replay-form.tsx";

const REFRESH_MS = 2000;

export function Replays() {
  const { value, failure, reload } = useLoaded((signal) => api.replays(signal), [], REFRESH_MS);
  const [isStarting, setStarting] = useState(false);
  const replays = [...(value?.replays ?? [])].reverse();
  return (
    <>
      {failure && <FailureNotice failure={failure} retry={reload} />}
      <div class="view-head">
        <p class="soft grow">
          A replay counts archived events of whole days again, beside what is served. <a href="/docs/how-to/reprocess.md">How to reprocess</a>
        </p>
        <button type="button" class="button primary" aria-expanded={isStarting} onClick={() => setStarting(!isStarting)}>
          Start a replay
        </button>
      </div>
      {isStarting && (
        <StartForm
          onStarted={() => {
            setStarting(false);
            reload();
          }}
        />
      )}
      {replays.map((replay) => (
        <ReplayCard key={replay.id} replay={replay} reload={reload} />
      ))}
      {value && replays.length === 0 && (
        <section class="panel">
          <Empty title="There are no replays" />
        </section>
      )}
      {!value && !failure && <Empty title="Asking" />}
      {value && value.audit.length > 0 && <Audit audit={value.audit} />}
    </>
  );
}

function Audit({ audit }: { audit: ReplaysAnswer["audit"] }) {
  return (
    <Panel title="Who did what" flush>
      <div class="table-wrap tall" tabIndex={0} role="region" aria-label="Who did what">
        <table>
          <thead>
            <tr>
              <th scope="col">When (UTC)</th>
              <th scope="col" class="right">Replay</th>
              <th scope="col">What</th>
              <th scope="col">Who</th>
              <th scope="col">Note</th>
            </tr>
          </thead>
          <tbody>
            {audit.map((entry, i) => (
              <tr key={i}>
                <td class="nowrap">{entry.at ? minutes(Date.parse(entry.at), "UTC") : "–"}</td>
                <td class="right">{entry.id}</td>
                <td>{entry.action}</td>
                <td>{entry.by}</td>
                <td class="wrap">{entry.note}</td>
              </tr>
            ))}
          </tbody>
        </table>
      </div>
    </Panel>
  );
}
