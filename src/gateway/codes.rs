//! The codes of errors, each with what it means: `docs/reference/errors.md` is made from these
//! tables. Codes stay, because programs look at them; messages may change.

/// A code in the body of an error.
#[derive(Debug, Clone, Copy)]
pub struct ErrorCode {
    /// The status that it comes with.
    pub status: u16,
    /// The code.
    pub code: &'static str,
    /// What it means, and what to do.
    pub means: &'static str,
}

/// A close code of a WebSocket, or an error number of Kafka REST Proxy.
#[derive(Debug, Clone, Copy)]
pub struct NumberedCode {
    /// The number.
    pub number: u32,
    /// When it is sent.
    pub means: &'static str,
}

macro_rules! error_codes {
    ($($status:literal $code:literal: $means:literal;)*) => {
        /// Every code of `{"error": {"code", …}}`, by status.
        pub const ERROR_CODES: &[ErrorCode] =
            &[$(ErrorCode { status: $status, code: $code, means: $means }),*];
    };
}

error_codes! {
    400 "agg_invalid": "`agg` names an unknown aggregate, or one twice.";
    400 "all_invalid": "`all` is `true` or `false`.";
    400 "board_id_invalid": "The id of a board in the address is none.";
    400 "board_invalid": "The body is no board; the message names what is wrong.";
    400 "body_invalid": "The body is not the JSON that this route takes; the message shows the \
        form.";
    400 "body_unreadable": "The body is no event, array or lines, or it is unclear where its \
        events end. Nothing was taken.";
    400 "by_invalid": "`by` names too many labels, one twice, or an impossible name.";
    400 "format_invalid": "`format` is `json` or `csv`; `csv` is for `GET /v1/query` alone.";
    400 "header_repeated": "A header that may stand once is there more than once.";
    400 "host_missing": "A request of HTTP/1.1 has a header `Host`.";
    400 "idempotency_key_invalid": "`Idempotency-Key` is 1 to 100 visible ASCII characters.";
    400 "label_invalid": "No event can have a label of this name.";
    400 "limit_invalid": "`limit` is not a whole number in the range that the message names.";
    400 "message_too_large": "A WebSocket message beyond `ws.max_message`.";
    400 "message_unreadable": "A WebSocket frame that breaks the protocol, or text that is not \
        UTF-8.";
    400 "metric_invalid": "No event can have a metric of this name.";
    400 "metric_missing": "The parameter `metric` is required.";
    400 "numbers_invalid": "`numbers` is `json` or `string`.";
    400 "order_invalid": "`order` is `labels`, `desc` or `asc`.";
    400 "parameter_empty": "A parameter has no value: leave it out, or give it one.";
    400 "parameter_repeated": "A parameter is given twice.";
    400 "parameter_unknown": "There is no such parameter; the message names the nearest one.";
    400 "path_invalid": "The path holds what is not UTF-8.";
    400 "precondition_invalid": "`If-Match` or `If-None-Match` is not as this route takes it.";
    400 "query_invalid": "A percent escape is broken or gives no UTF-8. In a subscription: \
        `query` is not an object of strings.";
    400 "range_empty": "`from` is not before `to`.";
    400 "replay_invalid": "The metrics, the days or `after` are not valid; the message says \
        what to send.";
    400 "rows_invalid": "`rows` is `largest` or `all`.";
    400 "rules_invalid": "The rules have mistakes; the message lists them.";
    400 "step_invalid": "`step` is unknown; the message lists the steps.";
    400 "time_invalid": "A time is neither RFC 3339 nor milliseconds since 1970.";
    400 "tz_invalid": "There is no such time zone.";
    400 "tz_not_hour_aligned": "The time zone is not always on whole hours of UTC in the range, \
        or a step does not begin after the one before it.";
    400 "websocket_expected": "The request does not open a WebSocket. Also with 405 and 426.";
    400 "where_invalid": "`where` is not a list of matchers; the message says where it breaks.";
    400 "yes_missing": "Send `{\"yes\":true}`, or nothing.";
    401 "unauthorized": "No key, an unknown one, or one that has expired.";
    403 "forbidden": "The key lacks the scope.";
    403 "origin_forbidden": "A page of another origin may not do this: see `server.cors_origins`.";
    404 "board_not_found": "The tenant has no board of this id.";
    404 "no_such_subscription": "`unsubscribe` names an unknown subscription.";
    404 "not_found": "There is no such route or page.";
    404 "not_quarantined": "There is no such event in the quarantine.";
    404 "partition_not_found": "The series of an event decides on its partition: `POST \
        /topics/{topic}`.";
    404 "replay_not_found": "The tenant has no replay of this number (any more).";
    404 "topic_not_found": "The topic cannot be a metric.";
    405 "method_not_allowed": "The route has no such method.";
    408 "body_timeout": "The body did not arrive within `server.body_timeout`.";
    409 "replay_not_ready": "The replay cannot be compared or applied yet; the message says how \
        far it is, and names the shards that it waits for.";
    409 "replay_refused": "Another replay is in the way, or this one is in no state for it; \
        the message says what has to happen first.";
    412 "board_changed": "Somebody has changed the board, or it is not there: read it again.";
    413 "body_too_large": "Send less at once.";
    415 "content_type_unsupported": "Send `Content-Type: application/json`.";
    415 "unsupported_media_type": "Unknown content type or encoding; the message lists the known \
        ones.";
    421 "host_unknown": "A node without keys answers only under its own names: pass the header \
        `Host` on.";
    422 "answer_too_large": "One figure of the answer is larger than a figure can be.";
    422 "board_too_large": "The board has more panels or bytes than `boards.max_panels` or \
        `boards.max_bytes`.";
    422 "not_releasable": "The event stays in the quarantine; the message says why.";
    422 "query_too_large": "The query alone needs more memory than a tenant may use \
        (`query.max_memory`): ask for less.";
    422 "records_invalid": "The records of a Kafka REST Proxy request cannot be taken; the \
        message says why.";
    422 "too_many_boards": "The tenant has as many boards as `boards.max`: delete one.";
    422 "too_many_points": "The answer has more than `query.max_points` points: ask for a shorter \
        range or a longer step.";
    422 "too_many_series": "The query matches more than `query.max_series` series: ask for fewer.";
    428 "precondition_required": "A change of a board says which version it is for: `If-Match`, \
        or `If-None-Match: *`.";
    429 "rate_limited": "The tenant sends more than `tenants.max_events_per_second`: send the \
        same later.";
    429 "tenant_overloaded": "The tenant holds its part of a limit already: send the same later.";
    500 "internal": "A bug. The request changed nothing; the log of the server says more.";
    500 "store_invalid": "The store holds invalid data: run `rollmill verify`.";
    501 "transfer_encoding_unsupported": "`Transfer-Encoding` is `chunked` and nothing else.";
    503 "body_timeout": "As 408, at PostHog's endpoints, whose browser client drops a batch after \
        4xx.";
    503 "disk_failed": "The disk refused a write of the log for another reason. Nothing was \
        taken; the log of the node says why.";
    503 "disk_full": "The disk of the log is full, or read-only. It goes on by itself when there \
        is room.";
    503 "log_closed": "The log takes no writes any more: the node stops, or the log failed.";
    503 "no_descriptors": "The node has no file descriptors left. It goes on by itself.";
    503 "no_gateway_role": "This node takes no writes: send them to one that does.";
    503 "no_query_role": "This node answers no queries: ask one that does.";
    503 "not_ready": "`/readyz`: a role of the node does not work; the message says which, and \
        why.";
    503 "outcome_unknown": "Nobody knows whether the events are in the log: send the same again, \
        ids make it count once.";
    503 "overloaded": "All of a limit is in use on this node: send the same later.";
    503 "query_abandoned": "The client closed its side of the connection, and the answer took longer \
        than `query.client_gone_after` from there on.";
    503 "query_timeout": "The query took longer than `query.timeout`: ask for less, or again.";
    503 "query_too_slow": "The store did not finish the question within `store.timeout`: ask for \
        less at once.";
    503 "rate_limited": "As 429, at PostHog's endpoints, whose browser client drops a batch after \
        4xx.";
    503 "release_overtaken": "Replays are being filled from the shard of the event, and moved each \
        time that it was about to be counted: release it again.";
    503 "starting": "The node waits for Kafka or PostgreSQL; the message names it.";
    503 "store_unavailable": "The store is away, or does not answer: ask again.";
    503 "tenant_overloaded": "As 429, at PostHog's endpoints, whose browser client drops a batch \
        after 4xx.";
    503 "too_many_connections": "The address has more than `server.max_connections_per_address` \
        connections.";
}

/// Whether the table has this code with this status. What opens no WebSocket has the status that
/// the library gives it.
pub(super) fn is_known(status: u16, code: &str) -> bool {
    code == "websocket_expected"
        || ERROR_CODES.iter().any(|known| (known.status, known.code) == (status, code))
}

macro_rules! close_codes {
    ($($id:ident = $number:literal: $means:literal;)*) => {
        $(#[doc = $means] pub(super) const $id: u16 = $number;)*

        /// Close codes that a server sends on a WebSocket.
        pub const CLOSE_CODES: &[NumberedCode] =
            &[$(NumberedCode { number: $number, means: $means }),*];
    };
}

close_codes! {
    GOING_AWAY = 1001: "The server stops, or nothing was heard for `ws.idle_timeout`.";
    PROTOCOL = 1002: "An unknown message, or no WebSocket frame; an `error` before it says more.";
    UNSUPPORTED = 1003: "A binary message.";
    NOT_UTF8 = 1007: "Text that is not UTF-8.";
    POLICY = 1008: "The key is not valid any more, too many subscriptions \
        (`ws.max_subscriptions`), a message that is not whole within `server.body_timeout`, or one \
        without `events` of more than 16 KiB.";
    TOO_LARGE = 1009: "A message larger than `ws.max_message`, or than 16 KiB with a key without \
        the scope `write`.";
    INTERNAL = 1011: "Reading a message crashed, which is a bug; nothing of it was taken.";
    TRY_LATER = 1013: "The reader is too slow, and acknowledgements may be missing. Or there is no \
        room for the message or the subscription: try later.";
}

macro_rules! proxy_codes {
    ($($number:literal: $means:literal;)*) => {
        /// `error_code` of Kafka REST Proxy: of a whole request, and of a record (50002).
        pub const PROXY_CODES: &[NumberedCode] =
            &[$(NumberedCode { number: $number, means: $means }),*];
    };
}

proxy_codes! {
    400: "The request cannot be read.";
    405: "The route has no such method.";
    408: "The body did not arrive within `server.body_timeout`.";
    413: "The body is too large.";
    415: "Unknown content type or encoding. There is no schema registry.";
    421: "A node without keys answers only under its own names.";
    422: "There are no records, or they cannot be taken.";
    500: "A bug; the request changed nothing.";
    501: "`Transfer-Encoding` is `chunked` and nothing else.";
    40101: "No key, an unknown one, or one that has expired.";
    40301: "The key lacks the scope `write`, or a page of another origin asks.";
    40401: "The topic cannot be a metric.";
    40402: "Clients do not choose the partition.";
    42901: "The tenant is at its limit: wait for `Retry-After`, send the same again.";
    50002: "Of one record: it was refused, and the same would be refused again.";
    50302: "The node takes no writes now: wait for `Retry-After`, send the same again.";
}
