/** One board: its panels, and their changes until they are saved. */
import { useEffect, useRef, useState } from "preact/hooks";
import { boards, type SavedBoard } from "../../api/boards.ts";
import { asFailure, type Failure } from "../../api/failure.ts";
import type { Board, BoardPanel } from "../../api/types.ts";
import { download } from "../../chart/picture.ts";
import { MAX_TEXT, moved } from "../../lib/board.ts";
import { ConfirmDialog } from "../../ui/confirm.tsx";
import { go, useLoaded } from "../../ui/hooks.ts";
import { Empty, FailureNotice, Field, Notice } from "../../ui/parts.tsx";
import { PanelView } from "./panel.tsx";

export function BoardPage({ id }: { id: string }) {
  const loaded = useLoaded((signal) => boards.load(id, signal), [id]);
  return (
    <div class="view">
      {loaded.failure && <FailureNotice failure={loaded.failure} retry={loaded.reload} />}
      {loaded.value && <Editor id={id} saved={loaded.value} reload={loaded.reload} />}
      {!loaded.value && !loaded.failure && <Empty title="Asking" />}
    </div>
  );
}

function Editor({ id, saved, reload }: { id: string; saved: SavedBoard; reload(): void }) {
  const [draft, setDraft] = useState<Board | null>(null);
  const [failure, setFailure] = useState<Failure | null>(null);
  const [isDeleting, setDeleting] = useState(false);
  const board = draft ?? saved.board;
  // What is read anew takes the place of the draft: it was saved, or given up for it.
  const known = useRef(saved);
  useEffect(() => {
    // Not at the first time: what was changed until then would be taken back.
    if (known.current === saved) return;
    known.current = saved;
    setDraft(null);
    setFailure(null);
  }, [saved]);
  const save = async () => {
    try {
      await boards.save(id, board, saved.tag);
      reload();
    } catch (thrown) {
      setFailure(asFailure(thrown));
    }
  };
  return (
    <>
      <div class="view-head">
        <h1 class="grow">{board.name || id}</h1>
        {draft ? (
          <>
            <button type="button" class="button primary" onClick={save}>Save</button>
            <button type="button" class="button" onClick={() => setDraft(null)}>Keep as it was</button>
          </>
        ) : (
          <button type="button" class="button" onClick={() => setDraft(saved.board)}>Edit</button>
        )}
        <button type="button" class="button" onClick={() => download(new Blob([JSON.stringify(saved.board, null, 2)], { type: "application/json" }), `${id}.json`)}>
          Export
        </button>
        <button type="button" class="button danger" onClick={() => setDeleting(true)}>Delete</button>
      </div>
      {failure?.code === "board_changed" ? (
        <Notice tone="warn" title="Somebody else has changed this board.">
          Nothing is overwritten.{" "}
          <button type="button" class="button small" onClick={reload}>Show theirs, and drop my changes</button>
        </Notice>
      ) : (
        failure && <FailureNotice failure={failure} />
      )}
      {draft && (
        <Field label="Name">
          {(field) => <input id={field} class="input" maxLength={MAX_TEXT} value={draft.name} onInput={(event) => setDraft({ ...draft, name: event.currentTarget.value })} />}
        </Field>
      )}
      <Panels board={board} change={draft ? (panels) => setDraft({ ...draft, panels }) : null} />
      {isDeleting && (
        <ConfirmDialog
          confirmation={{
            title: `Delete the board ${board.name || id}?`,
            text: "Its panels are gone for everybody. The events are not touched.",
            action: "Delete",
            isDangerous: true,
            run: async () => {
              await boards.remove(id, saved.tag);
              go("/boards");
            },
          }}
          onClose={() => setDeleting(false)}
        />
      )}
    </>
  );
}

function Panels({ board, change }: { board: Board; change: ((panels: BoardPanel[]) => void) | null }) {
  const { panels } = board;
  if (panels.length === 0) {
    return (
      <section class="panel">
        <Empty title="This board is empty">
          <p>Ask something in <a href="#/explore">Explore</a>, and choose <em>Add to a board</em>.</p>
        </Empty>
      </section>
    );
  }
  return (
    <div class="board">
      {panels.map((panel, i) => (
        <PanelView
          key={i}
          panel={panel}
          edit={
            change && {
              change: (part) => change(panels.map((other, at) => (at === i ? { ...other, ...part } : other))),
              move: (by) => change(moved(panels, i, by)),
              remove: () => change(panels.filter((_, at) => at !== i)),
            }
          }
        />
      ))}
    </div>
  );
}
