/** The identity of accounting: every accepted event has one outcome. */
import type { AccountingHour } from "../api/types.ts";

export const OUTCOMES = ["aggregated", "deduplicated", "quarantined", "pending"] as const;
export type Outcome = (typeof OUTCOMES)[number];
export type Totals = Record<Outcome | "accepted", bigint>;

export function totals(hours: AccountingHour[]): Totals {
  const sum = (name: Outcome | "accepted") =>
    hours.reduce((total, hour) => total + BigInt(hour[name]), 0n);
  return {
    accepted: sum("accepted"),
    aggregated: sum("aggregated"),
    deduplicated: sum("deduplicated"),
    quarantined: sum("quarantined"),
    pending: sum("pending"),
  };
}

/** Accepted events without an outcome; zero when the books balance. */
export function imbalance(counts: Totals): bigint {
  return OUTCOMES.reduce((left, outcome) => left - counts[outcome], counts.accepted);
}
