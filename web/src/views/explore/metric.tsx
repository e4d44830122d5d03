import { api } from "../../api/client.ts";
import { plural } from "../../lib/format.ts";
import { Combobox } from "../../ui/combobox.tsx";

const SUGGESTED = 50;

/** Suggests metrics that begin with what is typed, then those that have it anywhere. */
export function MetricField({ id, value, onPick }: { id: string; value: string; onPick(metric: string): void }) {
  const load = async (text: string, signal: AbortSignal) => {
    const begins = await api.metrics({ prefix: text, limit: SUGGESTED }, signal);
    let metrics = begins.metrics;
    if (text && metrics.length < SUGGESTED) {
      const all = await api.metrics({ limit: 1000 }, signal);
      const known = new Set(metrics.map((one) => one.metric));
      const wanted = text.toLowerCase();
      const inside = all.metrics.filter((one) => one.metric.toLowerCase().includes(wanted) && !known.has(one.metric));
      metrics = [...metrics, ...inside].slice(0, SUGGESTED);
    }
    return metrics.map((one) => ({ value: one.metric, hint: plural(one.series, "series").replace(/seriess$/, "series") }));
  };
  return <Combobox inputId={id} label="Metric" value={value} placeholder="Type a name" load={load} onPick={onPick} />;
}
