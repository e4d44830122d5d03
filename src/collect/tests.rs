//! The shapes of requests, one by one, and the examples of the documentation.

use super::*;
use crate::model::event::EventErrorCode;

const NOW: i64 = 1_767_225_600_000;

fn split(form: Form, body: &str) -> SentRequest {
    SentRequest::split(form, body.as_bytes(), 100).unwrap_or_else(|error| panic!("{body}: {error}"))
}

/// Name, id, user and time of the first event of a request.
fn first(form: Form, body: &str) -> (String, String, String, Option<i64>) {
    let request = split(form, body);
    let sent = request
        .read(body.as_bytes(), 0, (NOW, 8_192))
        .unwrap_or_else(|error| panic!("{body}: {error}"));
    let text = |text: Option<std::borrow::Cow<'_, str>>| text.unwrap_or_default().into_owned();
    (sent.name.into_owned(), text(sent.id), text(sent.user), sent.timestamp)
}

#[test]
fn paths_of_segment_say_which_call_it_is() {
    assert_eq!(Form::of_segment("batch"), Some(Form::SegmentBatch));
    assert_eq!(Form::of_segment("import"), Some(Form::SegmentBatch));
    assert_eq!(Form::of_segment("alias"), Some(Form::SegmentCall("alias")));
    assert_eq!(Form::of_segment("events"), None);
}

#[test]
fn users_ids_and_times_are_found_where_clients_put_them() {
    let owned = |(name, id, user, at): (&str, &str, &str, Option<i64>)| {
        (name.to_owned(), id.to_owned(), user.to_owned(), at)
    };
    for (form, body, expected) in [
        (
            Form::SegmentCall("page"),
            r#" {"anonymousId":null,"userId":"","previousId":"p","messageId":7} "#,
            ("page", "7", "p", None),
        ),
        (
            Form::SegmentBatch,
            r#"{"batch":[{"type":"track","event":"e","anonymousId":"a","timestamp":null,
                "originalTimestamp":"2026-01-01T00:00:00Z","sentAt":"2025-12-31T23:00:00Z"}]}"#,
            ("e", "", "a", Some(NOW + 3_600_000)),
        ),
        (
            Form::PostHog,
            r#"{"event":"e","properties":{"distinct_id":9},"timestamp":"2026-01-01T00:00:00"}"#,
            ("e", "", "9", Some(NOW)),
        ),
        (
            Form::PostHog,
            r#"{"event":"e","distinct_id":"u","offset":3600000.5}"#,
            ("e", "", "u", Some(NOW - 3_600_000)),
        ),
        (
            Form::PostHog,
            r#"{"batch":[{"event":"e","timestamp":"2020-01-01T00:00:00Z"}],
                "sent_at":"2020-01-01T00:00:00Z","historical_migration":true}"#,
            ("e", "", "", Some(1_577_836_800_000)),
        ),
        (
            Form::CloudEvents,
            r#"[{"specversion":"1.0","id":"1","source":"/s","type":"t","time":null}]"#,
            ("t", "/s 1", "", None),
        ),
    ] {
        assert_eq!(first(form, body), owned(expected), "{body}");
    }
    let micros = |request: &str, event: &str| {
        let body =
            format!(r#"{{"app_instance_id":"i",{request}"events":[{{"name":"n"{event}}}]}}"#);
        first(Form::Ga4, &body)
    };
    for (request, event) in [
        (r#""timestamp_micros":1767225600000999,"#, ""),
        (r#""timestamp_micros":"1767225600000999","#, ""),
        (r#""timestamp_micros":1.7672256e15,"#, ""),
        (r#""timestamp_micros":1,"#, r#","timestamp_micros":1767225600000000"#),
    ] {
        let (name, id, user, at) = micros(request, event);
        assert_eq!((name.as_str(), user.as_str(), at), ("n", "i", Some(NOW)), "{request}");
        assert_eq!(id.len(), 32, "{request}");
    }
    let alone = r#"{"client_id":"c","timestamp_micros":1,"events":{"name":"n","params":{}}}"#;
    assert_eq!(first(Form::Ga4, alone).2, "c", "an event without a list around it");
    let (_, id, _, at) = micros("", "");
    assert_eq!((id.as_str(), at), ("", None), "without a time nothing tells a copy from another");
}

#[test]
fn ids_of_cloudevents_are_of_both_parts() {
    let id = |source: &str, id: &str| {
        let body = format!(r#"{{"specversion":"1.0","id":"{id}","source":"{source}","type":"t"}}"#);
        first(Form::CloudEvent, &body).1
    };
    assert_eq!(id("/a", "1"), "/a 1");
    assert_ne!(id("/a b", "c"), id("/a", "b c"));
    let long = "x".repeat(300);
    assert_eq!((id(&long, "1").len(), id(&long, "1") == id(&long, "2")), (32, false));
}

#[test]
fn what_is_no_request_says_so() {
    for (form, body, why) in [
        (Form::SegmentBatch, "", "the body is empty"),
        (Form::SegmentBatch, "[]", "an object with batch"),
        (Form::SegmentBatch, r#"{"batch":{}}"#, "batch is missing or no array"),
        (Form::SegmentBatch, r#"{"batch":[],"context":nul}"#, "context"),
        (Form::SegmentBatch, r#"{"batch":[]} x"#, "behind the end"),
        (Form::SegmentCall("page"), "[]", "an object"),
        (Form::CloudEvents, "{}", "an array of events"),
        (Form::CloudEvents, "[] x", "behind the end"),
        (Form::Ga4, r#"{"client_id":"c"}"#, "events is missing"),
        (Form::PostHog, r#"[{"api_key":"a"},{"token":"b"}]"#, "one api_key"),
    ] {
        let error = SentRequest::split(form, body.as_bytes(), 100).expect_err(body);
        assert!(error.to_string().contains(why), "{body}: {error}");
    }
    let many = format!("[{}1]", "1,".repeat(100));
    assert_eq!(SentRequest::split(Form::PostHog, many.as_bytes(), 100), Err(SplitError::TooMany));
}

#[test]
fn events_that_say_too_little_are_refused_each_for_its_reason() {
    for (form, body, code) in [
        (Form::SegmentCall("track"), r#"{"userId":"u"}"#, EventErrorCode::MetricInvalid),
        (Form::SegmentCall("page"), "{}", EventErrorCode::UserInvalid),
        (Form::PostHog, r#"{"event":""}"#, EventErrorCode::MetricInvalid),
        (Form::PostHog, r#"{"event":"e","offset":"an hour"}"#, EventErrorCode::TimestampInvalid),
        (Form::Ga4, r#"{"events":[{"params":{}}]}"#, EventErrorCode::MetricInvalid),
        (
            Form::Ga4,
            r#"{"events":[{"name":"n","timestamp_micros":"x"}]}"#,
            EventErrorCode::TimestampInvalid,
        ),
        (
            Form::CloudEvent,
            r#"{"id":"1","source":"s","type":"t"}"#,
            EventErrorCode::EventUnreadable,
        ),
        (
            Form::CloudEvent,
            r#"{"specversion":"1.0","source":"s","type":"t"}"#,
            EventErrorCode::IdInvalid,
        ),
    ] {
        let error = split(form, body).read(body.as_bytes(), 0, (NOW, 8_192)).expect_err(body);
        assert_eq!(error.code, code, "{body}: {error}");
    }
}

#[test]
fn what_is_kept_of_an_event_is_within_its_limit() {
    let body = r#"{"context":{"a":1},"batch":[{"type":"page","userId":"u"},{}]}"#;
    let request = split(Form::SegmentBatch, body);
    let (mapping, mut kept) = (Mapping::default(), b"before".to_vec());
    let sent = request.read(body.as_bytes(), 0, (NOW, 8_192)).expect("an event");
    let mapped = request.map(&mapping, "t", &sent, (body.as_bytes(), 0));
    let written =
        request.rewrite(&mut kept, body.as_bytes(), 0, (&sent, &mapped), 8_192).expect("it fits");
    let expected = r#"{"metric":"page","user":"u","properties":{"context":{"a":1},"type":"page","userId":"u"}}"#;
    assert_eq!(&kept[written.raw.clone()], expected.as_bytes());
    assert!(request.rewritten_bytes(8_192) >= written.raw.len());
    let before = kept.clone();
    let most = written.raw.len() - 1;
    let error = request.rewrite(&mut kept, body.as_bytes(), 0, (&sent, &mapped), most);
    assert_eq!(error.map_err(|error| error.code), Err(EventErrorCode::EventTooLarge));
    assert_eq!(kept, before);
    let empty = request.rewrite(&mut kept, body.as_bytes(), 1, (&sent, &mapped), 8_192);
    let raw = &kept[empty.expect("it fits").raw];
    assert!(serde_json::from_slice::<serde_json::Value>(raw).is_ok(), "no comma too many");
}

#[test]
fn the_mappings_of_the_documentation_are_valid() {
    let mut found = 0;
    for page in [
        include_str!("../../docs/reference/collect.md"),
        include_str!("../../docs/how-to/send-from-an-sdk.md"),
    ] {
        for block in page.split("```toml\n").skip(1).filter_map(|rest| rest.split("```").next()) {
            let mapping = Mapping::parse(block).unwrap_or_else(|error| panic!("{block}\n{error}"));
            found += mapping.len();
        }
    }
    assert_eq!(found, 3);
}
