/** Requests to the server that this page came from. */
import { asFailure, failureOf } from "./failure.ts";
import { currentKey } from "./key.ts";
import type {
  AccountingAnswer, EventPlace, IngestAnswer, LabelValuesAnswer, LimitsAnswer, MetricsAnswer,
  QuarantineAnswer, QueryAnswer, Replay, ReplayDiff, ReplaysAnswer, StartReplay, StatusAnswer,
} from "./types.ts";

export type Params = Record<string, string | number | undefined>;

/** A path with its parameters; empty ones are left out, because the server refuses them. */
export function address(path: string, params: Params = {}): string {
  const given = Object.entries(params).filter(([, value]) => value !== undefined && value !== "");
  if (given.length === 0) return path;
  const pairs = given.map(([name, value]) => `${name}=${encodeURIComponent(String(value))}`);
  return `${path}?${pairs.join("&")}`;
}

/** Sends a request with the key of the tab; throws a Failure for every answer that is an error. */
export async function send(path: string, init: RequestInit): Promise<Response> {
  const key = currentKey();
  const headers = new Headers(init.headers);
  if (key) headers.set("authorization", `Bearer ${key}`);
  let response: Response;
  try {
    response = await fetch(path, { ...init, headers, cache: "no-store", credentials: "omit" });
  } catch (thrown) {
    if (init.signal?.aborted) throw thrown;
    throw asFailure(thrown);
  }
  if (!response.ok) throw await failureOf(response);
  return response;
}

async function get<T>(path: string, params?: Params, signal?: AbortSignal): Promise<T> {
  return (await (await send(address(path, params), { signal })).json()) as T;
}

async function post<T>(path: string, body?: unknown): Promise<T> {
  const init: RequestInit = { method: "POST" };
  if (body !== undefined) {
    init.headers = { "content-type": "application/json" };
    init.body = JSON.stringify(body);
  }
  return (await (await send(path, init)).json()) as T;
}

export const api = {
  query: (params: Params, signal?: AbortSignal) => get<QueryAnswer>("/v1/query", params, signal),
  csv: async (params: Params) =>
    (await send(address("/v1/query", params), { headers: { accept: "text/csv" } })).blob(),
  metrics: (params: Params, signal?: AbortSignal) =>
    get<MetricsAnswer>("/v1/metrics", params, signal),
  labelValues: (label: string, params: Params, signal?: AbortSignal) =>
    get<LabelValuesAnswer>(`/v1/labels/${encodeURIComponent(label)}/values`, params, signal),
  limits: (signal?: AbortSignal) => get<LimitsAnswer>("/v1/limits", {}, signal),
  accounting: (params: Params, signal?: AbortSignal) =>
    get<AccountingAnswer>("/v1/accounting", params, signal),
  status: (signal?: AbortSignal) => get<StatusAnswer>("/v1/status", {}, signal),
  prometheus: async (signal?: AbortSignal) => (await send("/metrics", { signal })).text(),
  sendEvent: (event: unknown) => post<IngestAnswer>("/v1/events", event),
  quarantine: (all: boolean, signal?: AbortSignal) =>
    get<QuarantineAnswer>("/v1/quarantine", { all: all ? "true" : undefined }, signal),
  release: (place: EventPlace) => post<unknown>("/v1/quarantine/release", place),
  discard: (place: EventPlace) => post<unknown>("/v1/quarantine/discard", place),
  replays: (signal?: AbortSignal) => get<ReplaysAnswer>("/v1/replays", {}, signal),
  startReplay: (replay: StartReplay) => post<Replay>("/v1/replays", replay),
  diff: (id: number, params: Params, signal?: AbortSignal) =>
    get<ReplayDiff>(`/v1/replays/${id}/diff`, params, signal),
  settleReplay: (id: number, action: "apply" | "undo" | "cancel") =>
    post<Replay>(`/v1/replays/${id}/${action}`),
};
