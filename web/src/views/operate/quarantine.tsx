/** Events that were set aside: look at them, count them after all, or give them up. */
import { useState } from "preact/hooks";
import { api } from "../../api/client.ts";
import type { QuarantinedEvent } from "../../api/types.ts";
import { bytes, figure, plural } from "../../lib/format.ts";
import { minutes } from "../../lib/time.ts";
import { type Confirmation, ConfirmDialog } from "../../ui/confirm.tsx";
import { useLoaded } from "../../ui/hooks.ts";
import { Badge, Empty, FailureNotice, Panel } from "../../ui/parts.tsx";

const REFRESH_MS = 10_000;

export function Quarantine() {
  const [all, setAll] = useState(false);
  const [confirmation, setConfirmation] = useState<Confirmation | null>(null);
  const { value, failure, reload, isLoading } = useLoaded((signal) => api.quarantine(all, signal), [all], REFRESH_MS);
  const settle = (event: QuarantinedEvent, action: "release" | "discard") => {
    const { shard, offset, index } = event;
    setConfirmation({
      title: action === "release" ? "Count this event after all?" : "Give this event up?",
      text:
        action === "release"
          ? "It is counted as if it had just been received. Do this after the bug that it has met is fixed. It cannot be taken back."
          : "It is kept, but never counted. This cannot be taken back.",
      action: action === "release" ? "Release" : "Discard",
      isDangerous: action === "discard",
      run: async () => {
        await api[action]({ shard, offset, index });
        reload();
      },
    });
  };
  const events = value?.events ?? [];
  return (
    <>
      {failure && <FailureNotice failure={failure} retry={reload} />}
      <Panel
        title={value ? `Quarantine (${figure(events.length + (value.more ?? 0))})` : "Quarantine"}
        isLoading={isLoading}
        flush
        actions={
          <label class="check">
            <input type="checkbox" checked={all} onChange={(event) => setAll(event.currentTarget.checked)} />
            Also discarded ones
          </label>
        }
      >
        {value && events.length === 0 && <Empty title="The quarantine is empty">No event has crashed its shard, and no foreign record was met.</Empty>}
        {!value && !failure && <Empty title="Asking" />}
        {events.length > 0 && <EventTable events={events} settle={settle} />}
        {!!value?.more && <p class="empty">{plural(value.more, "further event")} not shown: settle some of these first.</p>}
      </Panel>
      <p class="soft">
        What is set aside is not counted, and stops nobody. <a href="/docs/how-to/quarantine.md">How to settle it</a>
      </p>
      {confirmation && <ConfirmDialog confirmation={confirmation} onClose={() => setConfirmation(null)} />}
    </>
  );
}

interface TableProps {
  events: QuarantinedEvent[];
  settle(event: QuarantinedEvent, action: "release" | "discard"): void;
}

function EventTable({ events, settle }: TableProps) {
  return (
    <div class="table-wrap" tabIndex={0} role="region" aria-label="Quarantined events">
      <table>
        <thead>
          <tr>
            <th scope="col">Received (UTC)</th>
            <th scope="col">Event</th>
            <th scope="col">Why</th>
            <th scope="col" class="right">Shard / offset / index</th>
            <th scope="col">Settle</th>
          </tr>
        </thead>
        <tbody>
          {events.map((event) => (
            <tr key={`${event.shard}/${event.offset}/${event.index}`}>
              <td class="nowrap">{event.received ? minutes(Date.parse(event.received), "UTC") : "–"}</td>
              <td class="wrap"><What event={event} /></td>
              <td class="wrap">{event.reason}</td>
              <td class="right mono">{event.shard} / {event.offset} / {event.index}</td>
              <td class="nowrap">
                {event.discarded ? (
                  <Badge>discarded</Badge>
                ) : (
                  <span class="row">
                    {event.tenant !== "" && <button type="button" class="button small" onClick={() => settle(event, "release")}>Release</button>}
                    <button type="button" class="button small danger" onClick={() => settle(event, "discard")}>Discard</button>
                  </span>
                )}
              </td>
            </tr>
          ))}
        </tbody>
      </table>
    </div>
  );
}

function What({ event }: { event: QuarantinedEvent }) {
  const known = event.event;
  if (!known) return <>A record of no known tenant, {event.bytes == null ? "of unknown size" : bytes(event.bytes)}</>;
  const labels = Object.entries((known.series?.labels ?? {}) as Record<string, string>);
  return (
    <>
      <strong>{known.series?.metric ?? "unknown metric"}</strong> {labels.map(([name, value]) => `${name}=${value}`).join(", ")}
      <div class="soft">
        {known.timestamp} value {figure(known.value)} {known.id && <>id {known.id}</>}
      </div>
      {known.raw && (
        <details>
          <summary>As it was sent</summary>
          <pre>{known.raw}</pre>
        </details>
      )}
    </>
  );
}
