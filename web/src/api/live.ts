/** A subscription over the WebSocket: one query, and every change of its answer. */
import type { Params } from "./client.ts";
import { Failure } from "./failure.ts";
import { currentKey } from "./key.ts";
import type { QueryAnswer } from "./types.ts";

export type Connection = "connecting" | "open" | "lost";

export interface LiveHandlers {
  onAnswer(answer: QueryAnswer): void;
  onFailure(failure: Failure): void;
  onConnection(connection: Connection): void;
}

const SLOWEST_RETRY_MS = 10_000;

/** How long to wait before the next attempt: twice as long each time. */
export function retryDelay(attempts: number): number {
  return Math.min(500 * 2 ** attempts, SLOWEST_RETRY_MS);
}

/** Subscribes until the returned function is called; reconnects when the connection is lost. */
export function subscribe(params: Params, handlers: LiveHandlers): () => void {
  let socket: WebSocket | null = null;
  let timer: ReturnType<typeof setTimeout> | undefined;
  let attempts = 0;
  let ended = false;

  const connect = () => {
    handlers.onConnection("connecting");
    const key = currentKey();
    const url = new URL("/v1/ws", location.href);
    url.protocol = url.protocol === "https:" ? "wss:" : "ws:";
    socket = key ? new WebSocket(url, ["bearer", key]) : new WebSocket(url);
    socket.onopen = () => {
      handlers.onConnection("open");
      socket?.send(JSON.stringify({ subscribe: "q", query: textOf(params) }));
    };
    socket.onmessage = ({ data }) => {
      attempts = 0;
      receive(String(data), handlers);
    };
    socket.onclose = () => {
      if (ended) return;
      handlers.onConnection("lost");
      timer = setTimeout(connect, retryDelay(attempts++));
    };
  };

  connect();
  return () => {
    ended = true;
    clearTimeout(timer);
    socket?.close(1000);
  };
}

function textOf(params: Params): Record<string, string> {
  const given = Object.entries(params).filter(([, value]) => value !== undefined && value !== "");
  return Object.fromEntries(given.map(([name, value]) => [name, String(value)]));
}

function receive(text: string, handlers: LiveHandlers): void {
  const message = JSON.parse(text) as Partial<QueryAnswer> & {
    error?: { code: string; message: string };
  };
  if (message.error) handlers.onFailure(new Failure(0, message.error.code, message.error.message));
  else if (message.series) handlers.onAnswer(message as QueryAnswer);
}
