/** What became of every accepted event, by hour of receipt. */
import { useMemo, useState } from "preact/hooks";
import { api } from "../../api/client.ts";
import type { AccountingHour } from "../../api/types.ts";
import { Chart } from "../../chart/chart.tsx";
import type { Drawing } from "../../chart/model.ts";
import { Swatch } from "../../chart/legend.tsx";
import { imbalance, OUTCOMES, totals, type Totals } from "../../lib/accounting.ts";
import { figure, plural } from "../../lib/format.ts";
import { bounds } from "../../lib/range.ts";
import type { Line } from "../../lib/shape.ts";
import { stepsOf } from "../../lib/steps.ts";
import { DAY, HOUR, iso, minutes } from "../../lib/time.ts";
import { CompletenessNotices } from "../../ui/completeness.tsx";
import { useLoaded } from "../../ui/hooks.ts";
import { Badge, Empty, FailureNotice, Notice, Panel, Segments } from "../../ui/parts.tsx";

const REFRESH_MS = 5000;
const RANGES = [
  { value: String(DAY), name: "24 h" },
  { value: String(7 * DAY), name: "7 d" },
  { value: String(30 * DAY), name: "30 d" },
];

export function Accounting() {
  const [ms, setMs] = useState(String(DAY));
  const { value, failure, reload, isLoading } = useLoaded(
    async (signal) => {
      const range = bounds({ kind: "last", ms: Number(ms) }, Date.now());
      const answer = await api.accounting({ from: iso(range.from), to: iso(range.to) }, signal);
      return { answer, range };
    },
    [ms],
    REFRESH_MS,
  );
  return (
    <>
      {failure && <FailureNotice failure={failure} retry={reload} />}
      <Panel title="Accounting, by hour of receipt (UTC)" isLoading={isLoading} actions={<Segments legend="Range" value={ms} choices={RANGES} onChange={setMs} />}>
        <div class="col">
          {value && <CompletenessNotices completeness={value.answer.completeness} tz="UTC" />}
          {value && <Identity counts={totals(value.answer.hours)} />}
          {value && value.answer.nobodys_records_set_aside > 0 && (
            <Notice tone="warn" title={`${plural(value.answer.nobodys_records_set_aside, "record")} of no tenant set aside.`}>
              No gateway wrote them. They are in the quarantine.
            </Notice>
          )}
          {value && value.answer.hours.length > 0 && <OutcomeChart hours={value.answer.hours} range={value.range} />}
          {!value && !failure && <Empty title="Asking" />}
        </div>
      </Panel>
      {value && (
        <Panel title="Hours" flush>
          <HourTable hours={value.answer.hours} />
        </Panel>
      )}
    </>
  );
}

/** accepted = aggregated + deduplicated + quarantined + pending, in figures. */
function Identity({ counts }: { counts: Totals }) {
  const left = imbalance(counts);
  return (
    <div class="identity">
      <span class="part">
        <small>accepted</small>
        {figure(String(counts.accepted))}
      </span>
      {OUTCOMES.map((outcome, i) => (
        <>
          <span class="sign">{i === 0 ? "=" : "+"}</span>
          <span class="part">
            <small>
              <Swatch colour={i} />
              {outcome}
            </small>
            {figure(String(counts[outcome]))}
          </span>
        </>
      ))}
      {left === 0n ? <Badge tone="good" dot>the books balance</Badge> : <Badge tone="bad" dot>{figure(String(left))} unaccounted for</Badge>}
    </div>
  );
}

const hourOf = (hour: AccountingHour) => Date.parse(hour.hour ?? "");

function OutcomeChart({ hours, range }: { hours: AccountingHour[]; range: { from: number; to: number } }) {
  const drawing: Drawing = useMemo(() => {
    const lines: Line[] = OUTCOMES.map((outcome) => ({
      name: outcome,
      aggregate: "count",
      labels: {},
      texts: new Map(hours.map((hour) => [hourOf(hour), String(hour[outcome])])),
    }));
    const open = Math.floor(Date.now() / HOUR) * HOUR;
    return { kind: "bar", isStacked: true, lines, before: [], steps: stepsOf(range.from, range.to, "1h", "UTC"), end: range.to, open, marks: [] };
  }, [hours, range.from, range.to]);
  return <Chart label="Accepted events by outcome" drawing={drawing} colours={[0, 1, 2, 3]} tz="UTC" step="1h" height={180} />;
}

function HourTable({ hours }: { hours: AccountingHour[] }) {
  if (hours.length === 0) return <Empty title="Nothing was received in this range" />;
  return (
    <div class="table-wrap tall" tabIndex={0} role="region" aria-label="Hours">
      <table>
        <thead>
          <tr>
            <th scope="col">Hour</th>
            <th scope="col" class="right">Accepted</th>
            {OUTCOMES.map((outcome) => (
              <th key={outcome} scope="col" class="right">{outcome[0]?.toUpperCase() + outcome.slice(1)}</th>
            ))}
            <th scope="col" class="right">Left over</th>
          </tr>
        </thead>
        <tbody>
          {[...hours].reverse().map((hour) => {
            const left = imbalance(totals([hour]));
            return (
              <tr key={hour.hour}>
                <th scope="row" class="nowrap">{minutes(hourOf(hour), "UTC")}</th>
                <td class="right">{figure(hour.accepted)}</td>
                {OUTCOMES.map((outcome) => (
                  <td key={outcome} class="right">{figure(hour[outcome])}</td>
                ))}
                <td class="right">{left === 0n ? "0" : <Badge tone="bad">{figure(String(left))}</Badge>}</td>
              </tr>
            );
          })}
        </tbody>
      </table>
    </div>
  );
}
