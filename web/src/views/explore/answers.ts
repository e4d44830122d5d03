/** The answer to a question, and of the period before if that is asked for. */
import { api } from "../../api/client.ts";
import type { QueryAnswer } from "../../api/types.ts";
import { type Question, queryParams, snapped } from "../../lib/question.ts";
import { periodBefore } from "../../lib/range.ts";
import { type Loaded, useLoaded } from "../../ui/hooks.ts";

/** How often a range that ends now is asked for again. */
export const REFRESH_MS = 30_000;
/** How soon an answer that lacks shards is asked for again: most are back within seconds. */
const PARTIAL_MS = 3000;

interface Answers {
  answer: Loaded<QueryAnswer | null>;
  before: Loaded<QueryAnswer | null>;
}

export function useAnswers(question: Question, now: number): Answers {
  const asked = { ...queryParams(question, now), numbers: "string" };
  const isAsked = question.metric !== "";
  const isRelative = question.range.kind === "last";
  const answer = useLoaded(
    (signal) => (isAsked ? api.query(asked, signal) : Promise.resolve(null)),
    // Without what only changes the drawing; a refresh of a relative range is no new question.
    [{ ...asked, ...(isRelative ? { from: 0, to: 0, range: question.range } : {}) }],
    (found) => (found?.completeness.partial ? PARTIAL_MS : isRelative ? REFRESH_MS : undefined),
  );
  const previous = periodBefore(snapped(question, now));
  const before = useLoaded(
    (signal) => {
      if (!isAsked || !question.compare) return Promise.resolve(null);
      // All series, because those of the top now need not be those of the top then.
      const { limit: _limit, order: _order, ...rest } = queryParams(question, now, previous);
      return api.query({ ...rest, numbers: "string" }, signal);
    },
    [question.compare, asked, previous],
    (found) => (found?.completeness.partial ? PARTIAL_MS : undefined),
  );
  return { answer, before };
}
