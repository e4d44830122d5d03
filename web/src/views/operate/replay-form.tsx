import { useState } from "preact/hooks";
import { api } from "../../api/client.ts";
import { asFailure, type Failure } from "../../api/failure.ts";
import { iso } from "../../lib/time.ts";
import { FailureNotice, Field, Notice, Panel } from "../../ui/parts.tsx";
import { MetricField } from "../explore/metric.tsx";

const EXAMPLE = `{
  "rule": [
    {
      "name": "bots",
      "where": { "properties": [{ "at": "/agent", "regex": ".*[Bb]ot.*" }] },
      "drop": true
    }
  ]
}`;

const today = () => iso(Date.now()).slice(0, 10);

/** Days of UTC, and rules as JSON; the server checks both, and names every mistake. */
export function StartForm({ onStarted }: { onStarted(): void }) {
  const [metric, setMetric] = useState("");
  const [from, setFrom] = useState(today());
  const [to, setTo] = useState("");
  const [rules, setRules] = useState("");
  const [failure, setFailure] = useState<Failure | null>(null);
  const [isSending, setSending] = useState(false);
  const read = readJson(rules);
  const submit = async (event: Event) => {
    event.preventDefault();
    if (!metric || read === undefined) return;
    setSending(true);
    try {
      const rest = { ...(to ? { to } : {}), ...(read === null ? {} : { rules: read }) };
      await api.startReplay({ metrics: [metric], from, ...rest } as Parameters<typeof api.startReplay>[0]);
      onStarted();
    } catch (thrown) {
      setFailure(asFailure(thrown));
    }
    setSending(false);
  };
  return (
    <Panel title="Start a replay">
      <form class="col" onSubmit={submit}>
        <div class="form-grid">
          <Field label="Metric">{(id) => <MetricField id={id} value={metric} onPick={setMetric} />}</Field>
          <Field label="First day (UTC)">
            {(id) => <input id={id} class="input" type="date" required value={from} onInput={(event) => setFrom(event.currentTarget.value)} />}
          </Field>
          <Field label="Before this day (empty: open end)">
            {(id) => <input id={id} class="input" type="date" value={to} onInput={(event) => setTo(event.currentTarget.value)} />}
          </Field>
        </div>
        <Field label="Rules as JSON (empty: count as it was sent)">
          {(id) => <textarea id={id} class="textarea" rows={9} spellcheck={false} placeholder={EXAMPLE} aria-invalid={read === undefined} value={rules} onInput={(event) => setRules(event.currentTarget.value)} />}
        </Field>
        {read === undefined && <Notice tone="warn" title="This is no JSON.">Rules in TOML are taken by the command rollmill replay.</Notice>}
        {failure && <FailureNotice failure={failure} />}
        <div class="row">
          <button class="button primary" disabled={isSending || !metric || read === undefined}>Start</button>
          <a href="/docs/reference/rules.md">What rules can do</a>
        </div>
      </form>
    </Panel>
  );
}

/** null: nothing; undefined: no JSON. */
function readJson(text: string): unknown {
  if (text.trim() === "") return null;
  try {
    return JSON.parse(text);
  } catch {
    return undefined;
  }
}
