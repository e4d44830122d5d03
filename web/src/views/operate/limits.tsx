/** Every limit that a client can meet, and how much of it is in use. */
import { useState } from "preact/hooks";
import { api } from "../../api/client.ts";
import type { LimitsAnswer } from "../../api/types.ts";
import { bytes, duration, figure } from "../../lib/format.ts";
import { configValue, isBytes } from "../../lib/config.ts";
import { useLoaded } from "../../ui/hooks.ts";
import { Empty, FailureNotice, Field, Meter, Panel, Tile } from "../../ui/parts.tsx";

const REFRESH_MS = 3000;

export function Limits() {
  const { value, failure, reload } = useLoaded((signal) => api.limits(signal), [], REFRESH_MS);
  if (!value) return failure ? <FailureNotice failure={failure} retry={reload} /> : <Empty title="Asking" />;
  return (
    <>
      {failure && <FailureNotice failure={failure} retry={reload} />}
      <Events limits={value} />
      <Panel title="In use" flush>
        <Shares limits={value} />
      </Panel>
      <Config config={value.config as Record<string, number>} />
    </>
  );
}

function Events({ limits }: { limits: LimitsAnswer }) {
  const { accept, tenant, dedup } = limits;
  const isShort = dedup.effective_horizon_ms != null && dedup.effective_horizon_ms < dedup.horizon_ms;
  return (
    <dl class="tiles">
      <Tile name="Events per second" under={`${figure(tenant.burst)} at once after a pause`}>
        {tenant.events_per_second === 0 ? "No limit" : figure(tenant.events_per_second)}
      </Tile>
      <Tile name="Retries counted once within" tone={isShort ? "warn" : undefined} under={isShort ? `configured: ${duration(dedup.horizon_ms)}` : "of the first attempt"}>
        {duration(dedup.effective_horizon_ms ?? dedup.horizon_ms)}
      </Tile>
      <Tile name="Oldest event" under={`at most ${duration(accept.max_ahead_ms)} ahead`}>{duration(accept.max_age_ms)}</Tile>
      <Tile name="Size of an event" under={`${figure(limits.event.labels)} labels`}>{bytes(accept.max_event_bytes)}</Tile>
      {limits.metrics && (
        <Tile name="Metric names" under={<Meter used={limits.metrics.used} total={limits.metrics.max} label="Metric names in use" />}>
          {figure(limits.metrics.used)} of {figure(limits.metrics.max)}
        </Tile>
      )}
    </dl>
  );
}

function Shares({ limits }: { limits: LimitsAnswer }) {
  const shares = Object.entries(limits.shares);
  const show = (name: string, value: number) => (isBytes(name) ? bytes(value) : figure(value));
  return (
    <div class="table-wrap" tabIndex={0} role="region" aria-label="Limits in use">
      <table>
        <thead>
          <tr>
            <th scope="col">Shared by all tenants</th>
            <th scope="col">In use</th>
            <th scope="col" class="right">By you</th>
            <th scope="col" class="right">By all</th>
            <th scope="col" class="right">For you</th>
            <th scope="col" class="right">For all</th>
          </tr>
        </thead>
        <tbody>
          {shares.map(([name, share]) => (
            <tr key={name}>
              <th scope="row" class="mono">{name}</th>
              <td><Meter used={share.used} total={share.total} label={`${name} in use`} /></td>
              <td class="right">{show(name, share.used_by_tenant)}</td>
              <td class="right">{show(name, share.used)}</td>
              <td class="right">{show(name, share.tenant)}</td>
              <td class="right">{show(name, share.total)}</td>
            </tr>
          ))}
        </tbody>
      </table>
    </div>
  );
}

function Config({ config }: { config: Record<string, number> }) {
  const [text, setText] = useState("");
  const keys = Object.entries(config).filter(([name]) => name.includes(text.trim()));
  return (
    <Panel title="Configuration of this node" flush>
      <div class="col">
        <div class="body">
          <Field label="Find a key">{(id) => <input id={id} class="input" value={text} placeholder="query." onInput={(event) => setText(event.currentTarget.value)} />}</Field>
        </div>
        <div class="table-wrap tall" tabIndex={0} role="region" aria-label="Configuration">
          <table>
            <thead>
              <tr>
                <th scope="col">Key</th>
                <th scope="col" class="right">Value</th>
                <th scope="col" class="right">As a number</th>
              </tr>
            </thead>
            <tbody>
              {keys.map(([name, value]) => (
                <tr key={name}>
                  <th scope="row" class="mono">{name}</th>
                  <td class="right">{configValue(name, value)}</td>
                  <td class="right soft">{figure(value)}</td>
                </tr>
              ))}
            </tbody>
          </table>
        </div>
      </div>
    </Panel>
  );
}
