/** When something is asked for again. */
import type { Failure } from "../api/failure.ts";

/** Always after so many milliseconds, or as long after as what was answered says. */
export type Again<T> = number | ((value: T) => number | undefined);

/** How soon a server is asked again that could not be reached. */
export const UNREACHABLE_MS = 5000;

/** How long to wait after an answer; undefined: it stands. */
export function waitAfter<T>(value: T, again: Again<T> | undefined): number | undefined {
  return typeof again === "function" ? again(value) : again;
}

/** Never sooner than the server wants it; not at all where asking again cannot help. */
export function waitAfterFailure<T>(failure: Failure, again: Again<T> | undefined): number | undefined {
  const usual = typeof again === "number" ? again : failure.status === 0 ? UNREACHABLE_MS : 0;
  return Math.max((failure.retryAfter ?? 0) * 1000, usual) || undefined;
}
