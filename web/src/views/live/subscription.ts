/** The state of Live: the newest answer, what it corrected, and how fast events come. */
import { useEffect, useRef, useState } from "preact/hooks";
import type { Failure } from "../../api/failure.ts";
import { type Connection, subscribe } from "../../api/live.ts";
import type { QueryAnswer } from "../../api/types.ts";
import { type Correction, corrections } from "../../lib/corrections.ts";
import { type Question, queryParams } from "../../lib/question.ts";
import { linesOf } from "../../lib/shape.ts";
import { HOUR } from "../../lib/time.ts";

/** How many events had come at a moment. */
export interface CountSample {
  at: number;
  count: number;
}

export interface LiveState {
  answer: QueryAnswer | null;
  failure: Failure | null;
  connection: Connection;
  /** When the answer last changed. */
  changedAt: number | null;
  corrections: (Correction & { at: number })[];
  counts: CountSample[];
}

const EMPTY: LiveState = {
  answer: null,
  failure: null,
  connection: "connecting",
  changedAt: null,
  corrections: [],
  counts: [],
};

const KEPT_CORRECTIONS = 20;
/** For how long the rate is drawn. */
export const RATE_MS = 120_000;

export function useSubscription(question: Question, now: number): LiveState {
  const [state, setState] = useState<LiveState>(EMPTY);
  const newest = useRef(state);
  newest.current = state;
  // The range moves on by the hour, and then has to be asked for anew.
  const hour = Math.floor(now / HOUR) * HOUR;
  const { to: _to, ...params } = queryParams(question, now);
  const asked = { ...params, agg: withCount(String(params.agg)), numbers: "string", step: "1h" };
  const key = JSON.stringify({ ...asked, from: undefined });

  useEffect(() => setState(EMPTY), [key]);
  useEffect(() => {
    if (!question.metric) return;
    return subscribe(asked, {
      onConnection: (connection) => setState((old) => ({ ...old, connection })),
      onFailure: (failure) => setState((old) => ({ ...old, failure })),
      onAnswer: (answer) => setState((old) => next(old, answer, question, Date.now())),
    });
  }, [key, hour]);
  return state;
}

/** The count is always asked for: the rate of events comes from it. */
function withCount(aggregates: string): string {
  return aggregates.split(",").includes("count") ? aggregates : `${aggregates},count`;
}

/** The state after an answer. */
export function next(old: LiveState, answer: QueryAnswer, question: Question, now: number): LiveState {
  const hour = Math.floor(now / HOUR) * HOUR;
  const [aggregate] = question.aggregates;
  const found =
    old.answer && aggregate
      ? corrections(linesOf(old.answer, aggregate, question.by), linesOf(answer, aggregate, question.by), hour)
      : [];
  // An hour that has just left the range is no correction, nor is the one that was open.
  const from = Date.parse(answer.from);
  const openBefore = Math.floor((old.changedAt ?? now) / HOUR) * HOUR;
  const real = found.filter(({ time }) => time >= from && time < openBefore);
  const fresh = real.map((one) => ({ ...one, at: now }));
  const sample = { at: now, count: countOf(answer) };
  const isSameRange = old.answer?.from === answer.from;
  return {
    answer,
    failure: null,
    connection: "open",
    changedAt: now,
    corrections: [...fresh, ...old.corrections].slice(0, KEPT_CORRECTIONS),
    counts: isSameRange ? [...old.counts.filter((one) => one.at > now - RATE_MS), sample] : [sample],
  };
}

function countOf(answer: QueryAnswer): number {
  let count = 0;
  for (const series of answer.series) {
    for (const point of series.points) count += Number((point as { count?: number }).count ?? 0);
  }
  return count;
}
