/** Puts the question of Explore on a board, a new one or one that is there. */
import { useEffect, useRef, useState } from "preact/hooks";
import { boards } from "../../api/boards.ts";
import { asFailure, type Failure } from "../../api/failure.ts";
import type { BoardPanel } from "../../api/types.ts";
import { idFor, MAX_TEXT, titleFor } from "../../lib/board.ts";
import { printQuestion, type Question } from "../../lib/question.ts";
import { useId, useLoaded } from "../../ui/hooks.ts";
import { FailureNotice, Field, Notice } from "../../ui/parts.tsx";
import { Options } from "../explore/form.tsx";

const NEW = "";
/** How often a board is read again that somebody else changes at the same time. */
const TRIES = 3;

export function AddToBoard({ question, onClose }: { question: Question; onClose(): void }) {
  const dialog = useRef<HTMLDialogElement>(null);
  const heading = useId("dialog");
  const known = useLoaded((signal) => boards.list(signal), []);
  const [target, setTarget] = useState(NEW);
  const [name, setName] = useState("");
  const [title, setTitle] = useState(titleFor(question));
  const [failure, setFailure] = useState<Failure | null>(null);
  const [added, setAdded] = useState<string | null>(null);
  useEffect(() => dialog.current?.showModal(), []);
  const submit = async (event: Event) => {
    event.preventDefault();
    setFailure(null);
    const panel = { title, question: printQuestion(question).toString() };
    try {
      if (target === NEW) {
        const id = idFor(name, (known.value ?? []).map((board) => board.id));
        await boards.save(id, { name: name.trim(), panels: [panel] }, null);
        setAdded(id);
      } else {
        await append(target, panel);
        setAdded(target);
      }
    } catch (thrown) {
      setFailure(asFailure(thrown));
    }
  };
  const choices = [{ value: NEW, name: "a new board" }, ...(known.value ?? []).map((board) => ({ value: board.id, name: board.name || board.id }))];
  return (
    <dialog ref={dialog} aria-labelledby={heading} onClose={onClose}>
      <form class="col" onSubmit={submit}>
        <h2 id={heading}>Add to a board</h2>
        {known.failure && <FailureNotice failure={known.failure} retry={known.reload} />}
        {failure && <FailureNotice failure={failure} />}
        {added !== null ? (
          <Notice tone="good" title="Added.">
            <a href={`#/boards/${encodeURIComponent(added)}`}>Open the board</a>
          </Notice>
        ) : (
          <>
            <Field label="Board">
              {(id) => (
                <select id={id} class="select" value={target} onChange={(event) => setTarget(event.currentTarget.value)}>
                  <Options choices={choices} />
                </select>
              )}
            </Field>
            {target === NEW && (
              <Field label="Name of the board">
                {(id) => <input id={id} class="input" required maxLength={MAX_TEXT} value={name} onInput={(event) => setName(event.currentTarget.value)} />}
              </Field>
            )}
            <Field label="Title of the panel">
              {(id) => <input id={id} class="input" required maxLength={MAX_TEXT} value={title} onInput={(event) => setTitle(event.currentTarget.value)} />}
            </Field>
          </>
        )}
        <div class="row">
          <button type="button" class="button" onClick={() => dialog.current?.close()}>{added === null ? "Cancel" : "Close"}</button>
          {added === null && <button class="button primary" disabled={!known.value}>Add</button>}
        </div>
      </form>
    </dialog>
  );
}

/** Appends to what is there, also to what somebody else has just changed. */
async function append(id: string, panel: BoardPanel): Promise<void> {
  for (let attempt = 1; ; attempt++) {
    const { board, tag } = await boards.load(id);
    try {
      await boards.save(id, { ...board, panels: [...board.panels, panel] }, tag);
      return;
    } catch (thrown) {
      if (asFailure(thrown).code !== "board_changed" || attempt === TRIES) throw thrown;
    }
  }
}
