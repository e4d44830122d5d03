/** The lines of a chart as a table: colour, value under the cursor, total. */
import { useMemo } from "preact/hooks";
import { change, group } from "../lib/decimal.ts";
import { figure } from "../lib/format.ts";
import { type Line, totalOf } from "../lib/shape.ts";
import { type Step, stepName } from "../lib/time.ts";

interface Props {
  lines: Line[];
  before: Line[];
  colours: number[];
  hidden: Set<string>;
  onToggle(name: string): void;
  /** Time under the cursor; else the last one is shown. */
  time: number | null;
  steps: number[];
  step: Step;
  tz: string;
}

export function Legend(props: Props) {
  const { lines, before, steps, step, tz } = props;
  // What does not depend on the cursor: exact sums over all points are too slow to follow it.
  const last = useMemo(() => lastTime(lines, steps), [lines, steps]);
  const totals = useMemo(() => lines.map(totalOf), [lines]);
  const old = useMemo(() => new Map(before.map((line) => [line.name, { line, total: totalOf(line) }])), [before]);
  const time = props.time ?? last;
  const hasTotals = totals.some((total) => total !== null);
  const hasBefore = before.length > 0;
  return (
    <div class="table-wrap" tabIndex={0} role="region" aria-label="Legend">
      <table class="legend">
        <thead>
          <tr>
            <th scope="col">Series</th>
            <th scope="col" class="right">{time === null ? "Value" : stepName(time, step, tz)}</th>
            {hasBefore && <th scope="col" class="right">Period before</th>}
            {hasBefore && <th scope="col" class="right">Change</th>}
            {hasTotals && <th scope="col" class="right">Total</th>}
            {hasTotals && hasBefore && <th scope="col" class="right">Change of the total</th>}
          </tr>
        </thead>
        <tbody>
          {lines.map((line, i) => {
            const earlier = old.get(line.name);
            const now = time === null ? undefined : line.texts.get(time);
            const was = time === null ? undefined : earlier?.line.texts.get(time);
            const total = totals[i];
            return (
              <tr key={line.name}>
                <th scope="row">
                  <button type="button" class="name" aria-pressed={!props.hidden.has(line.name)} title="Show or hide" onClick={() => props.onToggle(line.name)}>
                    <Swatch colour={props.colours[i] ?? i} />
                    {line.name}
                  </button>
                </th>
                <td class="right">{now === undefined ? "–" : group(now)}</td>
                {hasBefore && <td class="right">{was === undefined ? "–" : group(was)}</td>}
                {hasBefore && <td class="right">{changeText(was, now)}</td>}
                {hasTotals && <td class="right">{figure(total)}</td>}
                {hasTotals && hasBefore && <td class="right">{changeText(earlier?.total, total)}</td>}
              </tr>
            );
          })}
        </tbody>
      </table>
    </div>
  );
}

export function Swatch({ colour }: { colour: number }) {
  return (
    <svg class="swatch" viewBox="0 0 11 11" aria-hidden="true">
      <rect width="11" height="11" rx="3" style={{ fill: `var(--s${(colour % 10) + 1})` }} />
    </svg>
  );
}

function changeText(before: string | null | undefined, after: string | null | undefined): string {
  if (before == null || after == null) return "–";
  return change(before, after) ?? "–";
}

function lastTime(lines: Line[], steps: number[]): number | null {
  for (let i = steps.length - 1; i >= 0; i--) {
    const step = steps[i];
    if (step !== undefined && lines.some((line) => line.texts.has(step))) return step;
  }
  return null;
}
