import { figure } from "../../lib/format.ts";
import { minutes, seconds } from "../../lib/time.ts";
import type { LiveState } from "./subscription.ts";

/** Hours that were over and have changed since: late events, or a replay. */
export function CorrectionList({ corrections, aggregate, tz }: { corrections: LiveState["corrections"]; aggregate: string; tz: string }) {
  return (
    <section aria-live="polite">
      <h3>Corrected while you watched</h3>
      <p class="soft">Late events belong to the hour of their own time. The chart has a mark above each.</p>
      <div class="table-wrap short" tabIndex={0} role="region" aria-label="Corrections">
        <table>
          <thead>
            <tr>
              <th scope="col">Hour</th>
              <th scope="col">Series</th>
              <th scope="col" class="right">{aggregate} before</th>
              <th scope="col" class="right">Now</th>
              <th scope="col" class="right">Seen at</th>
            </tr>
          </thead>
          <tbody>
            {corrections.map((one, i) => (
              <tr key={i}>
                <th scope="row" class="nowrap">{minutes(one.time, tz)}</th>
                <td>{one.line}</td>
                <td class="right">{figure(one.before)}</td>
                <td class="right">{figure(one.after)}</td>
                <td class="right">{seconds(one.at, tz)}</td>
              </tr>
            ))}
          </tbody>
        </table>
      </div>
    </section>
  );
}
