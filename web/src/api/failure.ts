import type { ErrorAnswer } from "./types.ts";

/** An answer that is an error, or none at all (`status` 0). */
export class Failure extends Error {
  readonly status: number;
  readonly code: string;
  /** Seconds to wait, where the server says so. */
  readonly retryAfter: number | null;

  constructor(status: number, code: string, message: string, retryAfter: number | null = null) {
    super(message);
    this.status = status;
    this.code = code;
    this.retryAfter = retryAfter;
  }

  /** Whether another key may help. */
  get isAboutKey(): boolean {
    return this.status === 401;
  }
}

/** The failure that a response tells of. */
export async function failureOf(response: Response): Promise<Failure> {
  const wait = Number(response.headers.get("retry-after") ?? Number.NaN);
  const retryAfter = Number.isNaN(wait) ? null : wait;
  try {
    const { error } = (await response.json()) as ErrorAnswer;
    return new Failure(response.status, error.code, error.message, retryAfter);
  } catch {
    const message = `the server answered ${response.status} ${response.statusText}`.trim();
    return new Failure(response.status, "unreadable", message, retryAfter);
  }
}

/** What was thrown, as a failure. */
export function asFailure(thrown: unknown): Failure {
  if (thrown instanceof Failure) return thrown;
  return new Failure(0, "unreachable", "the server cannot be reached: is it running?");
}
