//! A request of an SDK: where its events are, whose key it carries, and what it says of all of them.

use std::ops::Range;

use super::event::{self, RewrittenEvent, SentEvent};
use super::mapped::MappedEvent;
use super::mapping::Mapping;
use super::time::{self, ClientClock};
use super::{Source, cloudevents, fields, ga4, posthog, segment};
use crate::model::event::{EventError, EventErrorCode};
use crate::model::json_member::is_name;
use crate::model::json_scan::{self, ScanError};
use crate::model::stored_json::check_stored_json;
use crate::rules::{PropertyValue, json_value};

/// The shape of a request: what its path and content type say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// A batch of Segment's calls.
    SegmentBatch,
    /// One call of Segment; its kind is that of the path.
    SegmentCall(&'static str),
    /// PostHog: a batch, one event, or an array of events.
    PostHog,
    /// Google Analytics 4.
    Ga4,
    /// One CloudEvent in the JSON format.
    CloudEvent,
    /// An array of CloudEvents.
    CloudEvents,
}

/// Why a request has no events that can be told apart.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SplitError {
    /// It is not the JSON that it should be.
    #[error("{0}")]
    Unreadable(String),
    /// It has more events than one request may have.
    #[error("too many events")]
    TooMany,
}

/// A request whose events were told apart. Ranges are of its body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SentRequest {
    form: Form,
    /// The events, none of them read yet.
    pub events: Vec<Range<usize>>,
    /// The key in the body.
    pub key: Option<String>,
    /// When the client says that it sent the request.
    sent_at: Option<i64>,
    client: ga4::Client,
    /// Members that are kept with each event: a brace, and members with a comma behind each.
    shared: Vec<u8>,
}

impl Form {
    /// Whose interface this is.
    pub fn source(self) -> Source {
        match self {
            Self::SegmentBatch | Self::SegmentCall(_) => Source::Segment,
            Self::PostHog => Source::PostHog,
            Self::Ga4 => Source::Ga4,
            Self::CloudEvent | Self::CloudEvents => Source::CloudEvents,
        }
    }

    /// One call of Segment, by the last segment of its path, or by the first letter of that, as its
    /// browser client has it; `None` if there is no such call.
    pub fn of_segment(path: &str) -> Option<Self> {
        match path {
            "batch" | "import" | "b" => Some(Self::SegmentBatch),
            _ => {
                let is_named = |kind: &&&str| **kind == path || kind[..1] == *path;
                segment::KINDS.iter().find(is_named).map(|kind| Self::SegmentCall(kind))
            }
        }
    }

    /// The name of an event's own id.
    fn id_name(self) -> &'static str {
        match self.source() {
            Source::Segment => "messageId",
            Source::PostHog => "uuid",
            Source::Ga4 | Source::CloudEvents => "id",
        }
    }
}

impl SentRequest {
    /// Tells the events of a body apart, at most `max` of them. Each byte is looked at once.
    ///
    /// # Errors
    /// If the body is not of this form, or has too many events.
    pub fn split(form: Form, body: &[u8], max: usize) -> Result<Self, SplitError> {
        let bom = if body.starts_with(b"\xef\xbb\xbf") { 3 } else { 0 };
        let start = json_scan::skip_space(body, bom);
        let request = match form {
            Form::SegmentBatch => Self::list(form, body, start, ("batch", &SEGMENT), max)?,
            Form::SegmentCall(_) | Form::CloudEvent => Self::one(form, body, start)?,
            Form::PostHog if body.get(start) == Some(&b'[') => {
                Self::array(form, body, start, max)?.with_keys_of_events(body)?
            }
            Form::PostHog => Self::list(form, body, start, ("batch", &POSTHOG), max)?,
            Form::Ga4 => Self::list(form, body, start, (ga4::EVENTS, &ga4::MEMBERS), max)?,
            Form::CloudEvents => Self::array(form, body, start, max)?,
        };
        if request.events.len() > max { Err(SplitError::TooMany) } else { Ok(request) }
    }

    fn of(form: Form, events: Vec<Range<usize>>) -> Self {
        let client = ga4::Client::default();
        Self { form, events, key: None, sent_at: None, client, shared: Vec::new() }
    }

    fn one(form: Form, body: &[u8], start: usize) -> Result<Self, SplitError> {
        expect(body, start, b'{', "a body is an object")?;
        let event = json_scan::whole_value(body, start).map_err(|e| broken(body, e))?;
        let mut request = Self::of(form, vec![event.clone()]);
        if matches!(form, Form::SegmentCall(_)) {
            request.key = member_text(&body[event], "writeKey");
        }
        Ok(request)
    }

    fn array(form: Form, body: &[u8], start: usize, max: usize) -> Result<Self, SplitError> {
        expect(body, start, b'[', "a body is an array of events")?;
        let (events, end) = json_scan::elements(body, start, max).map_err(|e| broken(body, e))?;
        let at = json_scan::skip_space(body, end);
        if events.len() <= max && at < body.len() {
            let why = "something stands behind the end";
            return Err(broken(body, ScanError { at, part_start: at, why }));
        }
        Ok(Self::of(form, events))
    }

    /// An object with a list of events.
    fn list(
        form: Form,
        body: &[u8],
        start: usize,
        (list, names): (&str, &[&str]),
        max: usize,
    ) -> Result<Self, SplitError> {
        expect(body, start, b'{', &format!("a body is an object with {list}"))?;
        let found = json_scan::object_with_list(body, start, list, names, max)
            .map_err(|e| broken(body, e))?;
        let member = |name: &str| {
            let at = names.iter().position(|known| *known == name)?;
            found.members[at].clone().map(|range| &body[range])
        };
        let mut request = match found.elements {
            Some(events) => Self::of(form, events),
            // PostHog's older endpoints take an event without a list around it.
            None if form == Form::PostHog => {
                let event = json_scan::whole_value(body, start).map_err(|e| broken(body, e))?;
                Self::of(form, vec![event]).with_keys_of_events(body)?
            }
            None => match found.members.first().cloned().flatten() {
                Some(event) if form == Form::Ga4 && body[event.clone()].starts_with(b"{") => {
                    Self::of(form, vec![event])
                }
                _ => return Err(SplitError::Unreadable(format!("{list} is missing or no array"))),
            },
        };
        let key = ["writeKey", "api_key", "token"].into_iter().find_map(|name| text(member(name)?));
        request.key = key.or(request.key);
        let is_history = member("historical_migration") == Some(b"true");
        let sent_at = member("sentAt").or_else(|| member("sent_at")).filter(|_| !is_history);
        request.sent_at = sent_at.and_then(|json| {
            // A time that cannot be read says nothing of the clock.
            time::parse(Some(std::str::from_utf8(json).ok()?)).ok()?
        });
        if form == Form::Ga4 {
            let ids = ["user_id", "client_id", "app_instance_id"];
            request.client.user = ids.into_iter().find_map(|name| member(name).and_then(text));
            request.client.timestamp_micros = member("timestamp_micros")
                .filter(|micros| *micros != b"null")
                .and_then(|micros| String::from_utf8(micros.to_vec()).ok());
        }
        let is_kept = |name: &&&str| match form {
            Form::Ga4 => **name != ga4::EVENTS,
            _ => **name == "context",
        };
        let kept = names.iter().filter(is_kept);
        for name in kept {
            if let Some(value) = member(name) {
                push_shared(&mut request.shared, name, value)?;
            }
        }
        Ok(request)
    }

    /// The key that all events name. Fails if they name several.
    fn with_keys_of_events(mut self, body: &[u8]) -> Result<Self, SplitError> {
        for event in &self.events {
            let event = &body[event.clone()];
            let in_properties = || member_text(member(event, "properties")?, "token");
            let key = member_text(event, "api_key")
                .or_else(|| member_text(event, "token"))
                .or_else(in_properties);
            match (&self.key, key) {
                (_, None) => {}
                (None, key) => self.key = key,
                (Some(known), Some(key)) if *known == key => {}
                (Some(_), Some(_)) => {
                    let why = "the events of a request have one api_key";
                    return Err(SplitError::Unreadable(why.to_owned()));
                }
            }
        }
        Ok(self)
    }

    /// What becomes of an event that was read.
    pub fn map<'a>(
        &'a self,
        mapping: &'a Mapping,
        tenant: &str,
        sent: &'a SentEvent<'_>,
        (body, index): (&'a [u8], usize),
    ) -> MappedEvent<'a> {
        let event = &body[self.events[index].clone()];
        mapping.apply(tenant, self.source(), sent, [&self.shared, event])
    }

    /// Whose interface the request came in by.
    pub fn source(&self) -> Source {
        self.form.source()
    }

    /// Sets the time of sending that a header names.
    pub fn set_sent_at(&mut self, sent_at: Option<i64>) {
        self.sent_at = sent_at.or(self.sent_at);
    }

    /// Bytes that the events take together once they are rewritten, at most, if each is cut off at
    /// `max_event` bytes.
    pub fn rewritten_bytes(&self, max_event: usize) -> usize {
        const MAPPED: usize = 1024;
        let of = |event: &Range<usize>| (event.len() + self.shared.len() + MAPPED).min(max_event);
        self.events.iter().map(of).sum()
    }

    /// Reads the event with this number, which came in at `now`, and checks that it can be kept.
    /// What is beyond `max` bytes is not looked at.
    ///
    /// # Errors
    /// The refusal of this event.
    pub fn read<'a>(
        &'a self,
        body: &'a [u8],
        index: usize,
        (now, max): (i64, usize),
    ) -> Result<SentEvent<'a>, EventError> {
        let unreadable = |why| EventError::new(EventErrorCode::EventUnreadable, why);
        // The members of a request are kept with each of its events.
        let bytes = self.events[index].len() + self.shared.len();
        if bytes > max {
            return Err(too_large(bytes, max));
        }
        let event = std::str::from_utf8(&body[self.events[index].clone()]).map_err(|e| {
            unreadable(format!("not UTF-8 from byte {} of the event on", e.valid_up_to()))
        })?;
        let clock = ClientClock { sent_at: self.sent_at, now };
        let sent = match self.form {
            Form::SegmentBatch => segment::read(event, None, clock),
            Form::SegmentCall(kind) => segment::read(event, Some(kind), clock),
            Form::PostHog => posthog::read(event, clock),
            Form::Ga4 => ga4::read(event, index, &self.client),
            Form::CloudEvent | Form::CloudEvents => cloudevents::read(event),
        }?;
        check_stored_json("the event", event).map_err(unreadable)?;
        Ok(sent)
    }

    /// The id of an event that cannot be read otherwise, so that its refusal can name it.
    pub fn id_of_unreadable(&self, body: &[u8], index: usize) -> Option<String> {
        let id = member_text(&body[self.events[index].clone()], self.form.id_name())?;
        Some(fields::id(id.into()).into_owned())
    }

    /// Appends an event that was read and mapped to a buffer, as one of Rollmill that holds all of
    /// what was sent as its properties.
    ///
    /// # Errors
    /// `event_too_large` beyond `max` bytes; then the buffer is as it was.
    pub fn rewrite(
        &self,
        out: &mut Vec<u8>,
        body: &[u8],
        index: usize,
        (sent, mapped): (&SentEvent<'_>, &MappedEvent<'_>),
        max: usize,
    ) -> Result<RewrittenEvent, EventError> {
        let event = &body[self.events[index].clone()];
        let written = event::write(out, sent, mapped, &self.shared, event);
        if written.raw.len() > max {
            out.truncate(written.raw.start);
            return Err(too_large(written.raw.len(), max));
        }
        Ok(written)
    }
}

fn too_large(bytes: usize, max: usize) -> EventError {
    let message = format!(
        "the event has {bytes} bytes as it is kept, at most {max} (accept.max_event_bytes)"
    );
    EventError::new(EventErrorCode::EventTooLarge, message)
}

const SEGMENT: [&str; 3] = ["writeKey", "sentAt", "context"];
const POSTHOG: [&str; 4] = ["api_key", "token", "sent_at", "historical_migration"];

fn expect(body: &[u8], start: usize, first: u8, what: &str) -> Result<(), SplitError> {
    match body.get(start) {
        Some(found) if *found == first => Ok(()),
        Some(_) => Err(SplitError::Unreadable(what.to_owned())),
        None => Err(SplitError::Unreadable("the body is empty".to_owned())),
    }
}

fn broken(body: &[u8], error: ScanError) -> SplitError {
    SplitError::Unreadable(format!("broken JSON: {}", error.describe(body)))
}

/// A member of an object; `None` if it is missing, or behind what cannot be read.
fn member<'a>(object: &'a [u8], wanted: &str) -> Option<&'a [u8]> {
    let mut members = json_scan::JsonMembers::of(object, 0).map_while(Result::ok);
    let found = members.find(|member| is_name(&object[member.name.clone()], wanted))?;
    Some(&object[found.value])
}

fn member_text(object: &[u8], name: &str) -> Option<String> {
    member(object, name).and_then(text)
}

/// A value as text, if it is a string or a number.
fn text(json: &[u8]) -> Option<String> {
    match json_value(json)? {
        PropertyValue::Text(text) => Some(text.into_owned()),
        other => other.text().map(|text| text.into_owned()),
    }
    .filter(|text| !text.is_empty())
}

/// Adds a member that is kept with each event. Fails if it could not be read there.
fn push_shared(shared: &mut Vec<u8>, name: &str, value: &[u8]) -> Result<(), SplitError> {
    let unreadable = |why: String| SplitError::Unreadable(format!("{name}: {why}"));
    let text = std::str::from_utf8(value).map_err(|_| unreadable("not UTF-8".to_owned()))?;
    serde_json::from_str::<&serde_json::value::RawValue>(text)
        .map_err(|e| unreadable(e.to_string()))?;
    check_stored_json("the value", &format!("[{text}]")).map_err(unreadable)?;
    let begin = if shared.is_empty() { "{" } else { "" };
    shared.extend_from_slice(format!("{begin}\"{name}\":{text},").as_bytes());
    Ok(())
}
