/** The answer: charts or a table, what it lacks, and what can be done with it. */
import { useRef } from "preact/hooks";
import type uPlot from "uplot";
import { api } from "../../api/client.ts";
import type { QueryAnswer } from "../../api/types.ts";
import { plural } from "../../lib/format.ts";
import { type Question, snapped, stepOf, type View, VIEWS } from "../../lib/question.ts";
import { isAdditive, panelsOf } from "../../lib/shape.ts";
import { minutes, seconds, stepStart } from "../../lib/time.ts";
import { CompletenessNotices } from "../../ui/completeness.tsx";
import { type Loaded, useLoaded } from "../../ui/hooks.ts";
import { Empty, FailureNotice, Notice, Panel, Segments } from "../../ui/parts.tsx";
import { ChartGroup } from "./chart-group.tsx";
import { PointTable } from "./table.tsx";
import { Tools } from "./tools.tsx";

interface Props {
  question: Question;
  now: number;
  answer: Loaded<QueryAnswer | null>;
  before: Loaded<QueryAnswer | null>;
  onChange(part: Partial<Question>): void;
  onZoom(from: number, to: number): void;
}

export function Results({ question, now, answer, before, onChange, onZoom }: Props) {
  const plots = useRef<Map<string, uPlot>>(new Map());
  const { value, failure, isLoading } = answer;
  // Until the next answer is there, the last one is shown as what it was asked for.
  const answered = useRef(question);
  answered.current = answer.isCurrent ? question : { ...answered.current, view: question.view };
  const shown = answered.current;
  const hasPoints = value?.series.some((series) => series.points.length > 0) ?? false;
  return (
    <Panel title={question.metric} isLoading={isLoading || before.isLoading} flush={question.view === "table" && hasPoints && !failure} actions={<Actions question={question} now={now} plots={plots.current} onChange={onChange} />}>
      <div class="col">
        {failure && <FailureNotice failure={failure} retry={answer.reload} />}
        {before.failure && <Notice tone="warn" title="The period before is missing.">{before.failure.message}</Notice>}
        {value && <CompletenessNotices completeness={value.completeness} tz={shown.tz} />}
        {value && !hasPoints && !failure && <NoEvents question={question} onChange={onChange} />}
        {value && hasPoints && (
          <Body question={shown} now={now} answer={value} before={question.compare && before.isCurrent ? before.value : null} plots={plots.current} onZoom={onZoom} />
        )}
        {!value && !failure && <Empty title="Asking" />}
        {value && hasPoints && question.view !== "table" && <Stats answer={value} question={shown} />}
      </div>
    </Panel>
  );
}

interface BodyProps {
  question: Question;
  now: number;
  answer: QueryAnswer;
  before: QueryAnswer | null;
  plots: Map<string, uPlot>;
  onZoom(from: number, to: number): void;
}

function Body({ question, now, answer, before, plots, onZoom }: BodyProps) {
  const { by, tz } = question;
  if (question.view === "table") return <PointTable answer={answer} question={question} step={stepOf(question, now)} />;
  const range = snapped(question, now);
  const open = stepStart(now, stepOf(question, now), tz);
  return (
    <>
      {panelsOf(question.aggregates, by).map((aggregates) => (
        <ChartGroup
          key={aggregates.join()}
          aggregates={aggregates}
          question={question}
          step={stepOf(question, now)}
          range={range}
          open={open < range.to ? open : null}
          answer={answer}
          before={before}
          onZoom={onZoom}
          onPlot={(plot) => (plot ? plots.set(aggregates.join(), plot) : plots.delete(aggregates.join()))}
        />
      ))}
    </>
  );
}

function Actions({ question, now, plots, onChange }: Pick<Props, "question" | "now" | "onChange"> & { plots: Map<string, uPlot> }) {
  const canStack = question.aggregates.every(isAdditive);
  const choices = VIEWS.map((value: View) => ({
    value,
    name: value[0]?.toUpperCase() + value.slice(1),
    isDisabled: value === "stacked" && !canStack,
    title: value === "stacked" && !canStack ? "Only count, sum and rate add up" : undefined,
  }));
  return (
    <>
      <label class="check">
        <input type="checkbox" checked={question.compare} onChange={(event) => onChange({ compare: event.currentTarget.checked })} />
        Compare with the period before
      </label>
      <Segments legend="Show as" value={question.view === "stacked" && !canStack ? "line" : question.view} choices={choices} onChange={(view) => onChange({ view })} />
      <Tools question={question} now={now} plots={plots} />
    </>
  );
}

function Stats({ answer, question }: { answer: QueryAnswer; question: Question }) {
  const { completeness } = answer;
  return (
    <p class="stats">
      <span>{plural(answer.series.length, "series").replace("seriess", "series")}</span>
      <span>
        {minutes(Date.parse(answer.from), question.tz)} – {minutes(Date.parse(answer.to), question.tz)} {question.tz}
      </span>
      {completeness.as_of && <span>as of {seconds(Date.parse(completeness.as_of), question.tz)}</span>}
      <span>{plural(completeness.shards, "shard")}</span>
    </p>
  );
}

/** Says why there may be nothing, and offers the range in which there is something. */
function NoEvents({ question, onChange }: { question: Question; onChange(part: Partial<Question>): void }) {
  const found = useLoaded((signal) => api.metrics({ prefix: question.metric, limit: 50 }, signal), [question.metric]);
  const metric = found.value?.metrics.find((one) => one.metric === question.metric);
  const [first, last] = [metric?.first, metric?.last].map((time) => (time ? Date.parse(time) : null));
  if (found.value && !metric) {
    return <Empty title={`There is no metric ${question.metric}`}>Check its name, or choose another one.</Empty>;
  }
  return (
    <Empty title="No events in this range">
      {question.matchers.length > 0 && <p>The filters may match nothing.</p>}
      {first != null && last != null && (
        <>
          <p>
            {question.metric} has events from {minutes(first, question.tz)} to {minutes(last, question.tz)}.
          </p>
          <button type="button" class="button" onClick={() => onChange({ range: { kind: "fixed", from: first, to: last + 3_600_000 }, step: null })}>
            Show all of it
          </button>
        </>
      )}
    </Empty>
  );
}

