/** What each reason for refusing an event means, for people; docs/reference/errors.md has more. */
export const REFUSALS: Record<string, string> = {
  event_too_large: "The event has more bytes than accept.max_event_bytes.",
  event_unreadable: "It is no event: an unknown field, a field twice, or no JSON.",
  id_invalid: "The id is empty or longer than 128 bytes.",
  labels_invalid: "A label has a wrong name or value, or there are more than 16.",
  metric_invalid: "The metric has no valid name.",
  record_invalid: "The event does not fit into a record.",
  timestamp_in_future: "The time is further ahead than accept.max_ahead.",
  timestamp_invalid: "The time is neither RFC 3339 nor milliseconds.",
  timestamp_too_old: "The time is older than accept.max_age.",
  user_invalid: "The user is longer than 256 bytes.",
  value_invalid: "The value is no number.",
  value_out_of_range: "The value is beyond ±10^18.",
};

/** What it means that a shard is missing from an answer. */
export const MISSING: Record<string, string> = {
  behind: "it is further behind than query.stale_after",
  stopped: "it has stopped and needs an operator",
  recovering: "it is starting",
  moved: "it has just moved to another node",
  unavailable: "it has no owner",
  unreachable: "its node cannot be reached",
  overloaded: "its node has too much to do",
  too_large: "its part of the answer is too large",
};
