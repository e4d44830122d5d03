/** Live: one subscription, drawn as its answer changes. */
import { useMemo } from "preact/hooks";
import { type Question, printQuestion, readQuestion } from "../../lib/question.ts";
import { bounds, QUICK } from "../../lib/range.ts";
import { HOUR, stepStart } from "../../lib/time.ts";
import { CompletenessNotices } from "../../ui/completeness.tsx";
import { go, useAddress, useNow } from "../../ui/hooks.ts";
import { Badge, Empty, FailureNotice, Field, Panel, Segments } from "../../ui/parts.tsx";
import { ChartGroup } from "../explore/chart-group.tsx";
import { Filters } from "../explore/filters.tsx";
import { AggregateToggles, useLabels } from "../explore/form.tsx";
import { Groups } from "../explore/groups.tsx";
import { MetricField } from "../explore/metric.tsx";
import { panelsOf } from "../../lib/shape.ts";
import { CorrectionList } from "./correction-list.tsx";
import { Rate } from "./rate.tsx";
import { type LiveState, useSubscription } from "./subscription.ts";

const RANGES = QUICK.filter(({ ms }) => ms <= 7 * 24 * HOUR);
const TONES = { connecting: "info", open: "good", lost: "bad" } as const;
const WORDS = { connecting: "connecting", open: "live", lost: "connection lost, trying again" };

export function Live() {
  const { params } = useAddress();
  const hash = params.toString();
  const question = useMemo(() => liveQuestion(params), [hash]);
  const now = useNow(1000);
  const live = useSubscription(question, now);
  const labels = useLabels(question.metric);
  const change = (part: Partial<Question>) => go("/live", printQuestion({ ...question, ...part }));
  const ms = question.range.kind === "last" ? question.range.ms : 24 * HOUR;
  return (
    <div class="view">
      <h1 class="hidden-text">Live</h1>
      <section class="panel query" aria-label="Query">
        <Field label="Metric">{(id) => <MetricField id={id} value={question.metric} onPick={(metric) => change({ metric, by: [], matchers: [] })} />}</Field>
        <AggregateToggles chosen={question.aggregates} onChange={(aggregates) => change({ aggregates })} />
        <Groups labels={labels} chosen={question.by} onChange={(by) => change({ by })} />
        <Filters metric={question.metric} labels={labels} matchers={question.matchers} onChange={(matchers) => change({ matchers })} />
      </section>
      {question.metric === "" ? (
        <section class="panel">
          <Empty title="Choose a metric to watch">
            <p>Its chart follows within a second of every event.</p>
          </Empty>
        </section>
      ) : (
        <Panel
          title={question.metric}
          isLoading={!live.answer && !live.failure}
          actions={
            <>
              <Badge tone={TONES[live.connection]} dot>
                {WORDS[live.connection]}
              </Badge>
              <Segments legend="Range" value={String(ms)} choices={RANGES.map((range) => ({ value: String(range.ms), name: range.name }))} onChange={(chosen) => change({ range: { kind: "last", ms: Number(chosen) } })} />
            </>
          }
        >
          <LiveBody question={question} live={live} now={now} />
        </Panel>
      )}
    </div>
  );
}

/** Only hours, in lines or bars, and always up to now. */
function liveQuestion(params: URLSearchParams): Question {
  const question = readQuestion(params);
  const isLive = question.range.kind === "last" && params.has("from");
  return {
    ...question,
    range: isLive ? question.range : { kind: "last", ms: 24 * HOUR },
    step: "1h",
    compare: false,
    view: question.by.length > 0 ? "line" : "bar",
  };
}

function LiveBody({ question, live, now }: { question: Question; live: LiveState; now: number }) {
  const { answer, failure } = live;
  if (failure && !answer) return <FailureNotice failure={failure} />;
  if (!answer) return <Empty title="Waiting for the first answer" />;
  const hour = stepStart(now, "1h", "UTC");
  const range = bounds(question.range, now);
  const hasPoints = answer.series.length > 0;
  return (
    <div class="col">
      {failure && <FailureNotice failure={failure} />}
      <CompletenessNotices completeness={answer.completeness} tz={question.tz} />
      <Rate live={live} now={now} tz={question.tz} hour={hour} />
      {!hasPoints && <Empty title="No events yet in this range">They show here as they come.</Empty>}
      {hasPoints &&
        panelsOf(question.aggregates, question.by).map((aggregates) => (
          <ChartGroup
            key={aggregates.join()}
            aggregates={aggregates}
            question={aggregates.length > 1 ? { ...question, view: "line" } : question}
            step="1h"
            range={range}
            open={hour}
            answer={answer}
            before={null}
            marks={live.corrections.map((one) => one.time)}
            height={question.aggregates.length > 1 ? 200 : 280}
          />
        ))}
      <p class="soft">The hatched hour is open: its values are not final.</p>
      {live.corrections.length > 0 && <CorrectionList corrections={live.corrections} aggregate={question.aggregates[0] ?? ""} tz={question.tz} />}
    </div>
  );
}
