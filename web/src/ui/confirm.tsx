import type { ComponentChildren } from "preact";
import { useEffect, useRef, useState } from "preact/hooks";
import { asFailure, type Failure } from "../api/failure.ts";
import { FailureNotice } from "./parts.tsx";
import { useId } from "./hooks.ts";

export interface Confirmation {
  title: string;
  text: ComponentChildren;
  action: string;
  isDangerous?: boolean;
  run(): Promise<unknown>;
}

/** Asks before something that is hard to take back; stays open when that fails. */
export function ConfirmDialog({ confirmation, onClose }: { confirmation: Confirmation; onClose(): void }) {
  const dialog = useRef<HTMLDialogElement>(null);
  const [failure, setFailure] = useState<Failure | null>(null);
  const [isRunning, setRunning] = useState(false);
  const title = useId("dialog");
  useEffect(() => dialog.current?.showModal(), []);
  const run = async () => {
    setRunning(true);
    try {
      await confirmation.run();
      dialog.current?.close();
    } catch (thrown) {
      setFailure(asFailure(thrown));
      setRunning(false);
    }
  };
  return (
    <dialog ref={dialog} aria-labelledby={title} onClose={onClose}>
      <div class="col">
        <h2 id={title}>{confirmation.title}</h2>
        <div>{confirmation.text}</div>
        {failure && <FailureNotice failure={failure} />}
      </div>
      <div class="row">
        <button type="button" class="button" onClick={() => dialog.current?.close()}>
          Keep as it is
        </button>
        <button type="button" class={`button ${confirmation.isDangerous ? "danger" : "primary"}`} disabled={isRunning} onClick={run}>
          {confirmation.action}
        </button>
      </div>
    </dialog>
  );
}
