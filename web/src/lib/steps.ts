import { type Step, stepEnd, stepStart } from "./time.ts";

/** More steps than the server gives points. */
const MAX_STEPS = 100_000;

/** The beginnings of all steps of a range. */
export function stepsOf(from: number, to: number, step: Step, tz: string): number[] {
  if (step === "all") return [from];
  const starts: number[] = [];
  let start = stepStart(from, step, tz);
  while (start < to && starts.length < MAX_STEPS) {
    starts.push(start);
    start = stepEnd(start, step, tz);
  }
  return starts;
}
