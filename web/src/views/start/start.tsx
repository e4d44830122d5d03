/** Start: the first event, copyable, and its chart as soon as it arrives. */
import { useEffect, useRef, useState } from "preact/hooks";
import { api } from "../../api/client.ts";
import { asFailure, type Failure } from "../../api/failure.ts";
import { sendCommands } from "../../lib/commands.ts";
import { DEFAULT, printQuestion } from "../../lib/question.ts";
import { useKey, useLoaded, useNow } from "../../ui/hooks.ts";
import { Badge, Code, FailureNotice, Panel, Segments } from "../../ui/parts.tsx";
import { useSubscription } from "../live/subscription.ts";
import { bounds } from "../../lib/range.ts";
import { DAY, stepStart } from "../../lib/time.ts";
import { ChartGroup } from "../explore/chart-group.tsx";

const EVENT = { metric: "page_view", labels: { page: "/home", country: "DE" }, user: "u-1" };
const QUESTION = { ...DEFAULT, metric: EVENT.metric, by: ["page"], range: { kind: "last", ms: DAY } as const, step: "1h" as const, view: "bar" as const };

type Language = keyof ReturnType<typeof sendCommands>;

export function Start() {
  const key = useKey();
  const [language, setLanguage] = useState<Language>("curl");
  const commands = sendCommands(location.origin, EVENT, key !== null);
  const names = Object.keys(commands) as Language[];
  return (
    <div class="view">
      <div class="view-head">
        <h1>Send the first event</h1>
      </div>
      <div class="start-steps">
        <Panel title="Copy and run" actions={<Segments<Language> legend="Language" value={language} choices={names.map((value) => ({ value }))} onChange={setLanguage} />}>
          <div class="col">
            <Code text={commands[language]} />
            {key !== null && (
              <p class="soft">
                <code>ROLLMILL_KEY</code> is the key that you signed in with, or any other with the scope <code>write</code>. It is not copied along.
              </p>
            )}
            <SendButton />
            <p class="soft">
              Only <code>metric</code> is required. <code>labels</code> are few and small: what you want to group and filter by. <code>user</code> is whom
              to count as distinct, <code>value</code> what to sum. Give each event an <code>id</code>, and a retry never counts twice.{" "}
              <a href="/docs/reference/api.md">All fields</a>
            </p>
          </div>
        </Panel>
        <Arrival />
      </div>
    </div>
  );
}

function SendButton() {
  const [failure, setFailure] = useState<Failure | null>(null);
  const send = async () => {
    try {
      await api.sendEvent({ ...EVENT, id: crypto.randomUUID() });
      setFailure(null);
    } catch (thrown) {
      setFailure(asFailure(thrown));
    }
  };
  return (
    <>
      <div class="row">
        <button type="button" class="button primary" onClick={send}>
          Send one from here
        </button>
        <span class="soft">the same event, from this page</span>
      </div>
      {failure && <FailureNotice failure={failure} />}
    </>
  );
}

/** Waits for the event, then is its chart. */
function Arrival() {
  const now = useNow(1000);
  const live = useSubscription(QUESTION, now);
  const known = useLoaded((signal) => api.metrics({ limit: 5 }, signal), [], 5000);
  const hasArrived = (live.answer?.series.length ?? 0) > 0;
  const others = (known.value?.metrics ?? []).filter((one) => one.metric !== EVENT.metric);
  const heading = useRef<HTMLParagraphElement>(null);
  useEffect(() => {
    if (hasArrived) heading.current?.scrollIntoView({ block: "nearest" });
  }, [hasArrived]);
  return (
    <Panel title={EVENT.metric} actions={hasArrived ? <Badge tone="good" dot>it has arrived</Badge> : undefined}>
      <div class="col" aria-live="polite">
        {live.failure && <FailureNotice failure={live.failure} />}
        {!hasArrived && (
          <p class="waiting">
            <span class="pulse" aria-hidden="true" />
            Waiting for an event. Its chart shows here within a second.
          </p>
        )}
        {hasArrived && live.answer && (
          <>
            <ChartGroup aggregates={["count"]} question={QUESTION} step="1h" range={bounds(QUESTION.range, now)} open={stepStart(now, "1h", "UTC")} answer={live.answer} before={null} height={200} />
            <p ref={heading} class="row">
              <a class="button primary" href={`#/explore?${printQuestion({ ...QUESTION, view: "bar" })}`}>Explore it</a>
              <a class="button" href={`#/live?${printQuestion(QUESTION)}`}>Watch it live</a>
            </p>
          </>
        )}
        {others.length > 0 && (
          <p class="soft">
            This server already has{" "}
            {others.map((one, i) => (
              <>
                {i > 0 && ", "}
                <a href={`#/explore?metric=${encodeURIComponent(one.metric)}`}>{one.metric}</a>
              </>
            ))}
            {known.value?.next ? " and more" : ""}.
          </p>
        )}
      </div>
    </Panel>
  );
}
