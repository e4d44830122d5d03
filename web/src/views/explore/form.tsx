/** The question: metric, aggregates, groups, filters, time. */
import { api } from "../../api/client.ts";
import { AGGREGATES, type Aggregate } from "../../api/types.ts";
import type { Question } from "../../lib/question.ts";
import { Field, type Choice } from "../../ui/parts.tsx";
import { useLoaded } from "../../ui/hooks.ts";
import { Filters } from "./filters.tsx";
import { Groups } from "./groups.tsx";
import { MetricField } from "./metric.tsx";
import { TimeRow } from "./time-row.tsx";

export interface FormProps {
  question: Question;
  now: number;
  onChange(part: Partial<Question>): void;
}

export function QueryForm({ question, now, onChange }: FormProps) {
  const labels = useLabels(question.metric);
  return (
    <section class="panel query" aria-label="Query">
      <Field label="Metric">
        {(id) => <MetricField id={id} value={question.metric} onPick={(metric) => onChange({ metric, by: [], matchers: [] })} />}
      </Field>
      <AggregateToggles chosen={question.aggregates} onChange={(aggregates) => onChange({ aggregates })} />
      <Groups labels={labels} chosen={question.by} onChange={(by) => onChange({ by })} />
      <Filters metric={question.metric} labels={labels} matchers={question.matchers} onChange={(matchers) => onChange({ matchers })} />
      <TimeRow question={question} now={now} onChange={onChange} />
    </section>
  );
}

/** The labels of a metric, for suggestions. */
export function useLabels(metric: string): string[] {
  const found = useLoaded(
    async (signal) => {
      if (!metric) return [];
      const { metrics } = await api.metrics({ prefix: metric, limit: 50 }, signal);
      return metrics.find((one) => one.metric === metric)?.labels ?? [];
    },
    [metric],
  );
  return found.value ?? [];
}

export function AggregateToggles({ chosen, onChange }: { chosen: Aggregate[]; onChange(chosen: Aggregate[]): void }) {
  const toggle = (aggregate: Aggregate) => {
    const others = chosen.filter((other) => other !== aggregate);
    if (!chosen.includes(aggregate)) onChange([...chosen, aggregate]);
    else if (others.length > 0) onChange(others);
  };
  return (
    <div class="field" role="group" aria-label="Aggregates">
      <span class="field-name">Aggregates</span>
      <div class="chips">
        {AGGREGATES.map((aggregate) => (
          <button key={aggregate} type="button" class="toggle" aria-pressed={chosen.includes(aggregate)} onClick={() => toggle(aggregate)}>
            {aggregate}
          </button>
        ))}
      </div>
    </div>
  );
}

/** For selects of fixed choices. */
export function Options<T extends string>({ choices }: { choices: Choice<T>[] }) {
  return (
    <>
      {choices.map(({ value, name }) => (
        <option key={value} value={value}>
          {name ?? value}
        </option>
      ))}
    </>
  );
}
