import { useState } from "preact/hooks";
import { api } from "../../api/client.ts";
import type { Replay } from "../../api/types.ts";
import { duration, figure, plural } from "../../lib/format.ts";
import { type Confirmation, ConfirmDialog } from "../../ui/confirm.tsx";
import { Badge, Meter, Panel, type Tone } from "../../ui/parts.tsx";
import { Diff } from "./replay-diff.tsx";

type State = NonNullable<Replay["state"]>;

const STATES: Record<string, { tone?: Tone; text: string }> = {
  building: { tone: "info", text: "counting" },
  ready: { tone: "good", text: "ready" },
  applied: { tone: "good", text: "served" },
  undone: { text: "undone, ready again" },
  replaced: { text: "replaced by another" },
  leaving: { tone: "warn", text: "being deleted" },
  given_up: { tone: "bad", text: "given up" },
};

const day = (time: string | null | undefined) => (time ? time.slice(0, 10) : "open end");

export function ReplayCard({ replay, reload }: { replay: Replay; reload(): void }) {
  const [confirmation, setConfirmation] = useState<Confirmation | null>(null);
  const [isCompared, setCompared] = useState(false);
  const { tone, text } = STATES[replay.state] ?? { text: replay.state };
  const ask = (action: "apply" | "undo" | "cancel") => setConfirmation(confirm(replay, action, reload));
  const canCompare = ["ready", "applied", "undone"].includes(replay.state);
  return (
    <Panel
      title={
        <>
          Replay {replay.id} <Badge tone={tone} dot>{text}</Badge>
        </>
      }
      actions={<Actions state={replay.state} isCompared={isCompared} canCompare={canCompare} onCompare={() => setCompared(!isCompared)} ask={ask} />}
    >
      <div class="col">
        <p>
          <strong>{replay.metrics.join(", ")}</strong>, {day(replay.from)} to {day(replay.to)} (UTC).{" "}
          <span class="soft">
            Started {replay.by === "without a key" ? replay.by : `by ${replay.by}`}. Rules {replay.rules_hash.slice(0, 12)}. {plural(replay.dropped, "event")} dropped.
            {replay.undo_left_ms != null && ` Can be undone for ${duration(replay.undo_left_ms)}.`}
          </span>
        </p>
        {replay.given_up && <p class="notice bad">{replay.given_up}</p>}
        {replay.progress && <Progress progress={replay.progress} />}
        {isCompared && canCompare && <Diff id={replay.id} state={replay.state} />}
      </div>
      {confirmation && <ConfirmDialog confirmation={confirmation} onClose={() => setConfirmation(null)} />}
    </Panel>
  );
}

interface ActionProps {
  state: State;
  isCompared: boolean;
  canCompare: boolean;
  onCompare(): void;
  ask(action: "apply" | "undo" | "cancel"): void;
}

function Actions({ state, isCompared, canCompare, onCompare, ask }: ActionProps) {
  const canApply = state === "ready" || state === "undone";
  const canCancel = canApply || state === "building";
  return (
    <span class="row">
      {canCompare && <button type="button" class="button small" aria-expanded={isCompared} onClick={onCompare}>Compare</button>}
      {canApply && <button type="button" class="button small primary" onClick={() => ask("apply")}>Apply</button>}
      {state === "applied" && <button type="button" class="button small" onClick={() => ask("undo")}>Undo</button>}
      {canCancel && <button type="button" class="button small danger" onClick={() => ask("cancel")}>Cancel it</button>}
    </span>
  );
}

function confirm(replay: Replay, action: "apply" | "undo" | "cancel", reload: () => void): Confirmation {
  const texts = {
    apply: {
      title: `Serve replay ${replay.id}?`,
      text: "Queries give its numbers from that moment on, and say so. It can be undone for some days.",
      action: "Apply",
    },
    undo: {
      title: `Undo replay ${replay.id}?`,
      text: "Queries give the numbers from before it again. No event that came meanwhile is lost.",
      action: "Undo",
    },
    cancel: {
      title: `Cancel replay ${replay.id}?`,
      text: "What it has counted is deleted. What is served does not change.",
      action: "Cancel the replay",
    },
  }[action];
  const run = async () => {
    await api.settleReplay(replay.id, action);
    reload();
  };
  return { ...texts, isDangerous: action === "cancel", run };
}

/** In events, or in records as long as the archive does not know how many events these have. */
export function amount(progress: NonNullable<Replay["progress"]>): { done: number; total: number; unit: "events" | "records" } {
  const { events } = progress;
  if (events && events.done + events.left > 0) return { done: events.done, total: events.done + events.left, unit: "events" };
  return { done: progress.done, total: progress.done + progress.left, unit: "records" };
}

function Progress({ progress }: { progress: NonNullable<Replay["progress"]> }) {
  const waits = progress.waits_for;
  if (waits.length === 0 && progress.left === 0) return null;
  const { done, total, unit } = amount(progress);
  return (
    <div>
      <div class="progress-row">
        <Meter used={done} total={total} label={unit === "events" ? "Events read" : "Records counted"} />
        <span class="num soft">{figure(done)} of {figure(total)} {unit}</span>
      </div>
      {waits.length > 0 && (
        <p class="soft">
          Waits for {waits.slice(0, 8).map((one) => `shard ${one.shard} (${one.reason})`).join(", ")}
          {waits.length + (progress.more ?? 0) > 8 && ` and ${waits.length + (progress.more ?? 0) - 8} more`}
        </p>
      )}
    </div>
  );
}
