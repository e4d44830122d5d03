/** Explore: ask about one metric. The address holds the whole question. */
import { useMemo } from "preact/hooks";
import { bounds, type Range } from "../../lib/range.ts";
import { printQuestion, type Question, readQuestion, stepOf } from "../../lib/question.ts";
import { stepEnd, stepStart } from "../../lib/time.ts";
import { go, useAddress, useNow } from "../../ui/hooks.ts";
import { Empty } from "../../ui/parts.tsx";
import { REFRESH_MS, useAnswers } from "./answers.ts";
import { QueryForm } from "./form.tsx";
import { Results } from "./results.tsx";

export function Explore() {
  const { params } = useAddress();
  const hash = params.toString();
  const question = useMemo(() => readQuestion(params), [hash]);
  const now = useNow(REFRESH_MS);
  const isAsked = question.metric !== "";
  const { answer, before } = useAnswers(question, now);
  const change = (part: Partial<Question>) => {
    go("/explore", printQuestion({ ...question, ...part }));
  };
  const zoom = (from: number, to: number) => {
    const range = zoomRange(from, to, question, now);
    if (range) change({ range, step: zoomStep(question, range) });
  };
  return (
    <div class="view">
      <h1 class="hidden-text">Explore</h1>
      <QueryForm question={question} now={now} onChange={change} />
      {isAsked ? (
        <Results question={question} now={now} answer={answer} before={before} onChange={change} onZoom={zoom} />
      ) : (
        <section class="panel">
          <Empty title="Choose a metric">
            <p>Type a part of its name above. Everything else can be changed afterwards.</p>
          </Empty>
        </section>
      )}
    </div>
  );
}

/** What was dragged over, outward to whole steps, and not beyond now. */
function zoomRange(from: number, to: number, question: Question, now: number): Range | null {
  const step = stepOf(question, now);
  const start = stepStart(from, step, question.tz);
  const end = stepEnd(stepStart(to, step, question.tz), step, question.tz);
  return end > start ? { kind: "fixed", from: start, to: end } : null;
}

/** A step that was chosen stays, unless it is no shorter than what is left. */
function zoomStep(question: Question, range: Range) {
  if (question.step === null) return null;
  const { from, to } = bounds(range, 0);
  return stepEnd(stepStart(from, question.step, question.tz), question.step, question.tz) >= to
    ? null
    : question.step;
}
