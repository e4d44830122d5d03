/** What the numbers of the configuration mean; durations are in milliseconds. */
import { bytes, duration, figure } from "./format.ts";

const BYTES = /(bytes|max_body|max_inflight|max_memory|max_answers?|max_message|max_waiting|tail_cache|prefetch|query\.cache)$/;
const COUNTS =
  /(max_events|max_ids|max_interned|max_connections\w*|max_concurrent|max_points|max_series|max_metrics|max_subscriptions|max_all_subscriptions|max_restarts|max_maintained|max_rate|max_events_per_second|max_calls|max_reads|max_at_once|burst|threads|actors|count|window|\w+_connections|min_isr|replication)$/;

export function isBytes(name: string): boolean {
  return BYTES.test(name);
}

export function configValue(name: string, value: number): string {
  if (isBytes(name)) return bytes(value);
  // Off, or without an end: docs/reference/configuration.md says which.
  if (value === 0) return "0";
  if (COUNTS.test(name) && !name.endsWith("restart_window")) return figure(value);
  return duration(value);
}
