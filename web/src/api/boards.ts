/** Boards: saved panels of the tenant, which the server keeps. */
import { address, send } from "./client.ts";
import type { Board, BoardInfo, BoardsAnswer } from "./types.ts";

/** A board, and the entity tag that a change of it has to name. */
export interface SavedBoard {
  board: Board;
  tag: string;
}

const pathOf = (id: string) => `/v1/boards/${encodeURIComponent(id)}`;
const tagOf = (response: Response) => response.headers.get("etag") ?? "";

export const boards = {
  /** All of them; the server gives at most 200 at once. */
  async list(signal?: AbortSignal): Promise<BoardInfo[]> {
    const all: BoardInfo[] = [];
    let after: string | undefined;
    do {
      const answer = await send(address("/v1/boards", { after }), { signal });
      const page = (await answer.json()) as BoardsAnswer;
      all.push(...page.boards);
      after = page.next ?? undefined;
    } while (after !== undefined);
    return all;
  },
  async load(id: string, signal?: AbortSignal): Promise<SavedBoard> {
    const answer = await send(pathOf(id), { signal });
    return { board: (await answer.json()) as Board, tag: tagOf(answer) };
  },
  /** Replaces the board that has this tag, or makes a new one (`null`); gives the new tag. */
  async save(id: string, board: Board, tag: string | null): Promise<string> {
    const headers: Record<string, string> = { "content-type": "application/json" };
    headers[tag === null ? "if-none-match" : "if-match"] = tag ?? "*";
    return tagOf(await send(pathOf(id), { method: "PUT", headers, body: JSON.stringify(board) }));
  },
  async remove(id: string, tag: string): Promise<void> {
    await send(pathOf(id), { method: "DELETE", headers: { "if-match": tag } });
  },
};
