/** Range, step, time zone, top N. */
import { useEffect, useState } from "preact/hooks";
import { bounds, QUICK } from "../../lib/range.ts";
import { stepOf } from "../../lib/question.ts";
import { minutes, readTime, STEPS, type Step } from "../../lib/time.ts";
import { Field, Segments } from "../../ui/parts.tsx";
import type { FormProps } from "./form.tsx";
import { Options } from "./form.tsx";
import { ZoneField } from "./zone.tsx";

const STEP_NAMES: Record<Step, string> = {
  "1h": "1 hour",
  "6h": "6 hours",
  "1d": "1 day",
  "1w": "1 week",
  "1mo": "1 month",
  all: "one point",
};

const TOPS = ["5", "10", "20", "50"];

export function TimeRow({ question, now, onChange }: FormProps) {
  const { range, tz } = question;
  const quick = range.kind === "last" ? String(range.ms) : null;
  return (
    <div class="wide">
      <div class="field">
        <span class="field-name">Time</span>
        <Segments legend="Quick ranges" value={quick} choices={QUICK.map(({ name, ms }) => ({ value: String(ms), name }))} onChange={(ms) => onChange({ range: { kind: "last", ms: Number(ms) } })} />
      </div>
      <FixedRange question={question} now={now} onChange={onChange} />
      <Field label="Step">
        {(id) => (
          <select id={id} class="select" value={question.step ?? ""} onChange={(event) => onChange({ step: (event.currentTarget.value || null) as Step | null })}>
            <option value="">auto: {STEP_NAMES[stepOf({ ...question, step: null }, now)]}</option>
            <Options choices={STEPS.map((value) => ({ value, name: STEP_NAMES[value] }))} />
          </select>
        )}
      </Field>
      <Field label="Time zone">{(id) => <ZoneField id={id} value={tz} onPick={(zone) => onChange({ tz: zone })} />}</Field>
      <Field label="Series">
        {(id) => (
          <select id={id} class="select" disabled={question.by.length === 0} value={question.top === null ? "" : String(question.top)} onChange={(event) => onChange({ top: Number(event.currentTarget.value) || null })}>
            <Options choices={topChoices(question.top)} />
            <option value="">all</option>
          </select>
        )}
      </Field>
    </div>
  );
}

function topChoices(top: number | null) {
  const values = top === null || TOPS.includes(String(top)) ? TOPS : [...TOPS, String(top)];
  return values.map((value) => ({ value, name: `top ${value}` }));
}

/** Two times by the clocks of the zone; taken when both make sense. */
function FixedRange({ question, now, onChange }: FormProps) {
  const { from, to } = bounds(question.range, now);
  const shown = [minutes(from, question.tz), minutes(to, question.tz)] as const;
  const [texts, setTexts] = useState<readonly [string, string]>(shown);
  useEffect(() => setTexts(shown), [shown.join()]);
  const read = texts.map((text) => readTime(text, question.tz));
  const [start, end] = [read[0] ?? null, read[1] ?? null];
  const fault = start === null ? "from" : end === null ? "to" : start >= end ? "order" : null;
  const take = () => {
    if (start === null || end === null || start >= end || texts.join() === shown.join()) return;
    onChange({ range: { kind: "fixed", from: start, to: end } });
  };
  const inputs = ["From", "To"].map((name, i) => (
    <Field key={name} label={name}>
      {(id) => (
        <input
          id={id}
          class="input num"
          placeholder="2026-01-31 00:00"
          value={texts[i]}
          aria-invalid={fault === name.toLowerCase() || fault === "order"}
          title={fault === "order" ? "The end has to come after the beginning" : "A date, or a date and a time"}
          onInput={(event) => setTexts(i === 0 ? [event.currentTarget.value, texts[1]] : [texts[0], event.currentTarget.value])}
          onBlur={take}
          onKeyDown={(event) => event.key === "Enter" && take()}
        />
      )}
    </Field>
  ));
  return <div class="range">{inputs}</div>;
}
