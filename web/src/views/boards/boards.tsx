/** Boards: a list of them, or the one that the address names. */
import { useRef, useState } from "preact/hooks";
import { boards } from "../../api/boards.ts";
import { asFailure, type Failure } from "../../api/failure.ts";
import type { Board, BoardInfo } from "../../api/types.ts";
import { idFor, MAX_TEXT, readBoard } from "../../lib/board.ts";
import { minutes } from "../../lib/time.ts";
import { go, useAddress, useLoaded } from "../../ui/hooks.ts";
import { Empty, FailureNotice, Field, Notice, Panel } from "../../ui/parts.tsx";
import { BoardPage } from "./board.tsx";

export function Boards() {
  const { path } = useAddress();
  const id = path.replace(/^\/boards\/?/, "");
  return id ? <BoardPage key={id} id={id} /> : <BoardList />;
}

function BoardList() {
  const { value, failure, reload } = useLoaded((signal) => boards.list(signal), []);
  return (
    <div class="view">
      <div class="view-head">
        <h1>Boards</h1>
      </div>
      {failure && <FailureNotice failure={failure} retry={reload} />}
      {value && <NewBoard taken={value.map(({ id }) => id)} />}
      {value && value.length === 0 && (
        <section class="panel">
          <Empty title="No boards yet">
            <p>Name one above, or choose <em>Add to a board</em> in Explore.</p>
          </Empty>
        </section>
      )}
      {value && value.length > 0 && <BoardTable found={value} />}
      {!value && !failure && <Empty title="Asking" />}
    </div>
  );
}

function BoardTable({ found }: { found: BoardInfo[] }) {
  return (
    <Panel flush>
      <div class="table-wrap" tabIndex={0} role="region" aria-label="Boards">
        <table>
          <thead>
            <tr>
              <th scope="col">Board</th>
              <th scope="col">Changed (UTC)</th>
              <th scope="col">By</th>
            </tr>
          </thead>
          <tbody>
            {found.map((board) => (
              <tr key={board.id}>
                <th scope="row" class="wrap">
                  <a href={`#/boards/${encodeURIComponent(board.id)}`}>{board.name || board.id}</a>
                </th>
                <td class="nowrap">{board.changed ? minutes(Date.parse(board.changed), "UTC") : "–"}</td>
                <td>{board.by}</td>
              </tr>
            ))}
          </tbody>
        </table>
      </div>
    </Panel>
  );
}

/** By name, or from a file that was exported. */
function NewBoard({ taken }: { taken: string[] }) {
  const [name, setName] = useState("");
  const [failure, setFailure] = useState<Failure | null>(null);
  const [problem, setProblem] = useState("");
  const file = useRef<HTMLInputElement>(null);
  const create = async (board: Board) => {
    setProblem("");
    setFailure(null);
    try {
      const id = idFor(board.name, taken);
      await boards.save(id, board, null);
      go(`/boards/${id}`);
    } catch (thrown) {
      setFailure(asFailure(thrown));
    }
  };
  const take = async () => {
    const chosen = file.current?.files?.[0];
    if (!chosen || !file.current) return;
    const read = readBoard(await chosen.text());
    // The same file can be chosen again.
    file.current.value = "";
    if (typeof read === "string") setProblem(read);
    else await create(read);
  };
  const submit = (event: Event) => {
    event.preventDefault();
    void create({ name: name.trim(), panels: [] });
  };
  return (
    <Panel>
      <form class="row" onSubmit={submit}>
        <Field label="New board">
          {(id) => <input id={id} class="input" required maxLength={MAX_TEXT} placeholder="Its name" value={name} onInput={(event) => setName(event.currentTarget.value)} />}
        </Field>
        <Field label="Or from a file">
          {(id) => <input id={id} ref={file} class="input" type="file" accept="application/json,.json" onChange={take} />}
        </Field>
        <button class="button primary" disabled={name.trim() === ""}>Create</button>
      </form>
      {problem && <Notice tone="bad">{problem}</Notice>}
      {failure && <FailureNotice failure={failure} />}
    </Panel>
  );
}
