/** What differs between a replay and what is served, part by part. */
import { useRef } from "preact/hooks";
import { api } from "../../api/client.ts";
import type { DiffRow, DiffTotals } from "../../api/types.ts";
import { figure, plural } from "../../lib/format.ts";
import { addTotals, mergeRows } from "../../lib/diff.ts";
import { minutes } from "../../lib/time.ts";
import { useLoaded } from "../../ui/hooks.ts";
import { Empty, FailureNotice } from "../../ui/parts.tsx";

const SHOWN = 20;

interface Found {
  totals: DiffTotals;
  rows: DiffRow[];
}

export function Diff({ id, state }: { id: number; state: string }) {
  const parts = useRef(0);
  const { value, failure, reload, isLoading } = useLoaded(
    async (signal) => {
      let found: Found | null = null;
      let after: string | undefined;
      do {
        const part = await api.diff(id, { rows: "largest", limit: SHOWN, after }, signal);
        parts.current++;
        found = found
          ? { totals: addTotals(found.totals, part.totals), rows: mergeRows(found.rows, part.rows, SHOWN) }
          : { totals: part.totals, rows: part.rows };
        after = part.next ?? undefined;
      } while (after !== undefined);
      return found;
    },
    [id, state],
  );
  if (failure) return <FailureNotice failure={failure} retry={reload} />;
  if (!value || isLoading) return <Empty title="Comparing" />;
  const { totals, rows } = value;
  const differing = totals.added + totals.removed + totals.changed;
  return (
    <>
      <Totals totals={totals} isApplied={state === "applied"} />
      {differing === 0 ? <p class="soft">No row differs.</p> : <Rows rows={rows} />}
      {differing > rows.length && <p class="soft">The largest {rows.length} of {plural(differing, "row")} that differ.</p>}
    </>
  );
}

function Totals({ totals, isApplied }: { totals: DiffTotals; isApplied: boolean }) {
  const rows = [
    { name: isApplied ? "Replaced" : "Served", sums: totals.before },
    { name: "Replay", sums: totals.after },
  ];
  return (
    <div class="table-wrap" tabIndex={0} role="region" aria-label="Totals">
      <table>
        <thead>
          <tr>
            <th scope="col">Totals</th>
            <th scope="col" class="right">Events</th>
            <th scope="col" class="right">With a value</th>
            <th scope="col" class="right">Sum</th>
          </tr>
        </thead>
        <tbody>
          {rows.map(({ name, sums }) => (
            <tr key={name}>
              <th scope="row">{name}</th>
              <td class="right">{figure(sums.count)}</td>
              <td class="right">{figure(sums.value_count)}</td>
              <td class="right">{figure(sums.sum)}</td>
            </tr>
          ))}
        </tbody>
        <tfoot>
          <tr>
            <td colSpan={4} class="soft">
              Rows: {figure(totals.changed)} changed, {figure(totals.added)} added, {figure(totals.removed)} removed, {figure(totals.equal)} equal
            </td>
          </tr>
        </tfoot>
      </table>
    </div>
  );
}

function Rows({ rows }: { rows: DiffRow[] }) {
  return (
    <div class="table-wrap tall" tabIndex={0} role="region" aria-label="Rows that differ">
      <table>
        <thead>
          <tr>
            <th scope="col">Hour (UTC)</th>
            <th scope="col">Series</th>
            <th scope="col">Change</th>
            <th scope="col" class="right">Events before</th>
            <th scope="col" class="right">after</th>
            <th scope="col" class="right">Sum before</th>
            <th scope="col" class="right">after</th>
          </tr>
        </thead>
        <tbody>
          {rows.map((row, i) => (
            <tr key={i}>
              <th scope="row" class="nowrap">{row.time ? minutes(Date.parse(row.time), "UTC") : "–"}</th>
              <td class="wrap">{seriesOf(row)}</td>
              <td>{row.change}</td>
              <td class="right">{figure(row.before?.count)}</td>
              <td class="right">{figure(row.after?.count)}</td>
              <td class="right">{figure(row.before?.sum)}</td>
              <td class="right">{figure(row.after?.sum)}</td>
            </tr>
          ))}
        </tbody>
      </table>
    </div>
  );
}

function seriesOf(row: DiffRow): string {
  const labels = Object.entries(row.labels as Record<string, string>);
  return `${row.metric} ${labels.map(([name, value]) => `${name}=${value}`).join(", ")}`;
}
