/** One chart with its legend: aggregates of one unit, or the groups of one aggregate. */
import { useMemo, useRef, useState } from "preact/hooks";
import type uPlot from "uplot";
import type { Aggregate, QueryAnswer } from "../../api/types.ts";
import { Chart } from "../../chart/chart.tsx";
import { Legend } from "../../chart/legend.tsx";
import { type Drawing, hasNegative, type Kind } from "../../chart/model.ts";
import type { Question } from "../../lib/question.ts";
import { isAdditive, type Line, linesOf, shift } from "../../lib/shape.ts";
import { stepsOf } from "../../lib/steps.ts";
import type { Step } from "../../lib/time.ts";

interface Props {
  aggregates: Aggregate[];
  question: Question;
  step: Step;
  range: { from: number; to: number };
  open: number | null;
  answer: QueryAnswer;
  before: QueryAnswer | null;
  marks?: number[];
  height?: number;
  onZoom?(from: number, to: number): void;
  onPlot?(plot: uPlot | null): void;
}

/** Above this many lines a chart is unreadable, and a legend endless. */
const MAX_LINES = 100;

export function ChartGroup(props: Props) {
  const { aggregates, question, step, range, answer, before } = props;
  const { by, tz } = question;
  const [hidden, setHidden] = useState<Set<string>>(new Set());
  const [time, setTime] = useState<number | null>(null);
  const hash = [question.metric, ...aggregates, ...by].join();
  const all = useMemo(() => linesFor(aggregates, answer, by), [answer, aggregates.join(), by.join()]);
  const lines = useMemo(() => all.slice(0, MAX_LINES), [all]);
  const steps = useMemo(() => stepsOf(range.from, range.to, step, tz), [range.from, range.to, step, tz]);
  const old = useMemo(() => {
    if (!before) return [];
    const earlier = stepsOf(Date.parse(before.from), Date.parse(before.to), step, tz);
    return linesFor(aggregates, before, by).map((line) => shift(line, earlier, steps));
  }, [before, aggregates.join(), by.join(), steps]);
  const kind = kindOf(question, aggregates, lines);
  const shown = lines.filter((line) => !hidden.has(line.name));
  const colours = useColours(lines, hash);
  const { open } = props;
  const marks = props.marks ?? [];
  const drawing: Drawing = useMemo(
    () => ({ kind, isStacked: kind !== "line" && isStackable(aggregates, lines), lines: shown, before: old, steps, end: range.to, open, marks }),
    [kind, all, hidden, old, steps, range.to, open, marks.join()],
  );
  const toggle = (name: string) => {
    const next = new Set(hidden);
    if (!next.delete(name)) next.add(name);
    setHidden(next);
  };
  const title = aggregates.join(", ");
  return (
    <div class="chart-group">
      <h3 class="chart-title">
        {title}
        {question.view === "stacked" && kind === "line" && <span class="soft">lines, because values below zero do not stack</span>}
        {all.length > MAX_LINES && <span class="soft">the first {MAX_LINES} of {all.length} series</span>}
      </h3>
      <Chart
        label={`${title} of ${question.metric}`}
        drawing={drawing}
        colours={colours.filter((_, i) => !hidden.has(lines[i]?.name ?? ""))}
        tz={tz}
        step={step}
        height={props.height ?? (question.aggregates.length > 1 ? 220 : 320)}
        sync="explore"
        onZoom={props.onZoom}
        onCursor={setTime}
        onPlot={props.onPlot}
      />
      <Legend lines={lines} before={old} colours={colours} hidden={hidden} onToggle={toggle} time={time} steps={steps} step={step} tz={tz} />
    </div>
  );
}

/** A line keeps its colour while the question stays, wherever its rank moves. */
function useColours(lines: Line[], question: string): number[] {
  const known = useRef<{ question: string; colours: Map<string, number> }>({ question: "", colours: new Map() });
  if (known.current.question !== question) known.current = { question, colours: new Map() };
  const { colours } = known.current;
  return lines.map(({ name }) => {
    const colour = colours.get(name) ?? colours.size;
    colours.set(name, colour);
    return colour;
  });
}

/** Lines of several aggregates carry their names. */
function linesFor(aggregates: Aggregate[], answer: QueryAnswer, by: string[]): Line[] {
  return aggregates.flatMap((aggregate) =>
    linesOf(answer, aggregate, by).map((line) => (by.length === 0 ? { ...line, name: aggregate } : line)),
  );
}

function isStackable(aggregates: Aggregate[], lines: Line[]): boolean {
  return aggregates.every(isAdditive) && !hasNegative(lines);
}

function kindOf(question: Question, aggregates: Aggregate[], lines: Line[]): Kind {
  if (question.view === "bar") return "bar";
  return question.view === "stacked" && isStackable(aggregates, lines) ? "stacked" : "line";
}
