/** All points as a table, exactly as they came. */
import { useState } from "preact/hooks";
import type { QueryAnswer } from "../../api/types.ts";
import { group } from "../../lib/decimal.ts";
import { figure } from "../../lib/format.ts";
import type { Question } from "../../lib/question.ts";
import { textOf } from "../../lib/shape.ts";
import { type Step, stepName } from "../../lib/time.ts";

const PAGE = 500;

export function PointTable({ answer, question, step }: { answer: QueryAnswer; question: Question; step: Step }) {
  const [shown, setShown] = useState(PAGE);
  const { by, aggregates, tz } = question;
  const rows = answer.series.flatMap((series) => series.points.map((point) => ({ labels: series.labels as Record<string, string>, point })));
  return (
    <>
      <div class="table-wrap tall" tabIndex={0} role="region" aria-label="Points">
        <table>
          <thead>
            <tr>
              <th scope="col">Time ({tz})</th>
              {by.map((label) => (
                <th key={label} scope="col">{label}</th>
              ))}
              {aggregates.map((aggregate) => (
                <th key={aggregate} scope="col" class="right">{aggregate}</th>
              ))}
            </tr>
          </thead>
          <tbody>
            {rows.slice(0, shown).map(({ labels, point }, i) => (
              <tr key={i}>
                <th scope="row" class="nowrap">{stepName(Date.parse(point.t), step, tz)}</th>
                {by.map((label) => (
                  <td key={label}>{labels[label] || <span class="soft">(none)</span>}</td>
                ))}
                {aggregates.map((aggregate) => {
                  const text = textOf(point, aggregate);
                  return <td key={aggregate} class="right">{text === null ? "–" : group(text)}</td>;
                })}
              </tr>
            ))}
          </tbody>
        </table>
      </div>
      {rows.length > shown && (
        <p class="empty">
          <button type="button" class="button" onClick={() => setShown(shown + 10 * PAGE)}>
            Show more of {figure(rows.length)} points
          </button>
        </p>
      )}
    </>
  );
}
