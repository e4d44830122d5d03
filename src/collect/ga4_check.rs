//! What Google's validation server says of a request of the Measurement Protocol.

use std::collections::BTreeSet;

use serde::Serialize;
use serde_json::{Map, Value};

use crate::model::suggest::excerpt;

/// Most events of a request, parameters of an event, user properties of a request.
const MAX_EVENTS: usize = 25;
const MAX_PARAMS: usize = 25;
const MAX_USER_PROPERTIES: usize = 25;
const MAX_NAME: usize = 40;
const MAX_PARAM_NAME: usize = 40;
const MAX_PARAM_VALUE: usize = 100;
const MAX_USER_PROPERTY_NAME: usize = 24;
const MAX_USER_PROPERTY_VALUE: usize = 36;
/// Bytes of a body. It is read as a tree, which takes many times its size.
const MAX_BODY: usize = 130_000;
/// A body of nothing but mistakes must not make a longer answer than this.
const MAX_MESSAGES: usize = 100;

const RESERVED: &[&str] = &[
    "ad_activeview",
    "ad_click",
    "ad_exposure",
    "ad_query",
    "ad_reward",
    "adunit_exposure",
    "app_clear_data",
    "app_exception",
    "app_install",
    "app_remove",
    "app_store_refund",
    "app_update",
    "app_upgrade",
    "dynamic_link_app_open",
    "dynamic_link_app_update",
    "dynamic_link_first_open",
    "error",
    "firebase_campaign",
    "firebase_in_app_message_action",
    "firebase_in_app_message_dismiss",
    "firebase_in_app_message_impression",
    "first_open",
    "first_visit",
    "in_app_purchase",
    "notification_dismiss",
    "notification_foreground",
    "notification_open",
    "notification_receive",
    "notification_send",
    "os_update",
    "session_start",
    "user_engagement",
];

/// One thing that is wrong, as Google's server says it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ValidationMessage {
    /// Where it is.
    pub field_path: String,
    /// What is wrong, for people.
    pub description: String,
    /// What is wrong, for programs.
    pub validation_code: &'static str,
}

/// Everything that is wrong with a request, at most a hundred messages; none for a good one.
pub fn check(body: &[u8]) -> Vec<ValidationMessage> {
    let mut check = Check(Vec::new());
    if body.len() > MAX_BODY {
        let why = format!("The body has {} bytes, at most {MAX_BODY}.", body.len());
        check.add("", "VALUE_OUT_OF_BOUNDS", why);
        return check.0;
    }
    match serde_json::from_slice::<Value>(body) {
        Ok(Value::Object(request)) => check.request(&request),
        Ok(_) => check.add("", "VALUE_INVALID", "The body is not an object.".to_owned()),
        Err(error) => {
            let error = excerpt(&error.to_string());
            check.add("", "VALUE_INVALID", format!("The body is not JSON: {error}."));
        }
    }
    check.0
}

struct Check(Vec<ValidationMessage>);

impl Check {
    fn add(&mut self, path: &str, code: &'static str, description: String) {
        if self.0.len() < MAX_MESSAGES {
            let field_path = path.to_owned();
            self.0.push(ValidationMessage { field_path, description, validation_code: code });
        }
    }

    fn request(&mut self, request: &Map<String, Value>) {
        let is_text = |name: &str| {
            request.get(name).and_then(Value::as_str).is_some_and(|text| !text.is_empty())
        };
        if !is_text("client_id") && !is_text("app_instance_id") {
            let why = "A request has a client_id, or an app_instance_id.".to_owned();
            self.add("client_id", "VALUE_REQUIRED", why);
        }
        if let Some(micros) = request.get("timestamp_micros")
            && micros.as_i64().is_none()
            && micros.as_str().is_none_or(|text| text.parse::<i64>().is_err())
        {
            let why = "timestamp_micros is not a number of microseconds.".to_owned();
            self.add("timestamp_micros", "VALUE_INVALID", why);
        }
        self.user_properties(request.get("user_properties"));
        let Some(events) = request.get("events").and_then(Value::as_array) else {
            let why = "A request has an array of events.".to_owned();
            return self.add("events", "VALUE_REQUIRED", why);
        };
        if events.is_empty() {
            self.add("events", "VALUE_REQUIRED", "The array of events is empty.".to_owned());
        }
        if events.len() > MAX_EVENTS {
            let why = format!("{} events, at most {MAX_EVENTS}.", events.len());
            self.add("events", "EXCEEDED_MAX_ENTITIES", why);
        }
        for (index, event) in events.iter().enumerate() {
            self.event(index, event);
        }
    }

    fn event(&mut self, index: usize, event: &Value) {
        let at = format!("Event at index: [{index}]");
        let name = event.get("name").and_then(Value::as_str).unwrap_or_default();
        if name.is_empty() {
            return self.add("events", "VALUE_REQUIRED", format!("{at} has no name."));
        }
        let shown = excerpt(name);
        if let Some(why) = wrong_name(name) {
            self.add("events", "NAME_INVALID", format!("{at} has invalid name [{shown}]. {why}"));
        }
        if RESERVED.contains(&name) {
            let why = format!("{at} has name [{shown}] which is reserved.");
            self.add("events", "NAME_RESERVED", why);
        }
        if name.len() > MAX_NAME {
            let why = format!("{at} has a name of more than {MAX_NAME} characters.");
            self.add("events", "NAME_INVALID", why);
        }
        let params = match event.get("params") {
            None => return,
            Some(Value::Object(params)) => params,
            Some(_) => {
                let why = format!("{at} has params that are no object.");
                return self.add("events.params", "VALUE_INVALID", why);
            }
        };
        if params.len() > MAX_PARAMS {
            let why = format!("{at} has {} params, at most {MAX_PARAMS}.", params.len());
            self.add("events.params", "EXCEEDED_MAX_ENTITIES", why);
        }
        for (name, value) in params {
            let shown = excerpt(name);
            if let Some(why) = wrong_name(name).filter(|_| !name.starts_with('_')) {
                let why = format!("{at} has param [{shown}] with an invalid name. {why}");
                self.add("events.params", "NAME_INVALID", why);
            }
            let is_long = value.as_str().is_some_and(|text| text.chars().count() > MAX_PARAM_VALUE);
            if name.len() > MAX_PARAM_NAME || is_long {
                let why = format!(
                    "{at} has param [{shown}] that is too long: {MAX_PARAM_NAME} characters for \
                     the name, {MAX_PARAM_VALUE} for the value."
                );
                self.add("events.params", "VALUE_OUT_OF_BOUNDS", why);
            }
        }
    }

    fn user_properties(&mut self, properties: Option<&Value>) {
        let properties = match properties {
            None => return,
            Some(Value::Object(properties)) => properties,
            Some(_) => {
                let why = "user_properties are no object.".to_owned();
                return self.add("user_properties", "VALUE_INVALID", why);
            }
        };
        if properties.len() > MAX_USER_PROPERTIES {
            let why = format!("{} properties, at most {MAX_USER_PROPERTIES}.", properties.len());
            self.add("user_properties", "EXCEEDED_MAX_ENTITIES", why);
        }
        let mut names = BTreeSet::new();
        for (name, value) in properties {
            let shown = excerpt(name);
            if !names.insert(name.to_ascii_lowercase()) {
                let why = format!("User property [{shown}] is there twice.");
                self.add("user_properties", "NAME_DUPLICATED", why);
            }
            let text = value.get("value").and_then(Value::as_str).unwrap_or_default();
            let is_long = text.chars().count() > MAX_USER_PROPERTY_VALUE;
            if name.len() > MAX_USER_PROPERTY_NAME || is_long {
                let why = format!(
                    "User property [{shown}] is too long: {MAX_USER_PROPERTY_NAME} characters for \
                     the name, {MAX_USER_PROPERTY_VALUE} for the value."
                );
                self.add("user_properties", "VALUE_OUT_OF_BOUNDS", why);
            }
        }
    }
}

/// What is wrong with the characters of a name.
fn wrong_name(name: &str) -> Option<&'static str> {
    if !name.starts_with(|c: char| c.is_ascii_alphabetic()) {
        return Some("Names must start with an alphabetic character.");
    }
    let is_word = name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
    (!is_word).then_some("Names may only contain letters, digits and underscores.")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn codes(body: &str) -> Vec<&'static str> {
        check(body.as_bytes()).iter().map(|message| message.validation_code).collect()
    }

    #[test]
    fn the_answers_are_those_of_the_documentation() {
        let request = r#"{"client_id":"1.2","events":[{"name":"_badEventName"}]}"#;
        let expected = ValidationMessage {
            field_path: "events".into(),
            description: "Event at index: [0] has invalid name [_badEventName]. Names must start \
                          with an alphabetic character."
                .into(),
            validation_code: "NAME_INVALID",
        };
        assert_eq!(check(request.as_bytes()), [expected]);
        let good = r#"{"client_id":"1.2","user_id":"u","timestamp_micros":1700000000000000,
            "user_properties":{"tier":{"value":"x"}},
            "events":[{"name":"login","params":{"method":"Google","engagement_time_msec":100}}]}"#;
        assert_eq!(codes(good), [""; 0]);
    }

    #[test]
    fn what_is_wrong_is_named() {
        let long = "x".repeat(101);
        let many = vec![r#"{"name":"a"}"#; 26].join(",");
        for (body, code) in [
            ("{", "VALUE_INVALID"),
            ("[]", "VALUE_INVALID"),
            (r#"{"events":[{"name":"a"}]}"#, "VALUE_REQUIRED"),
            (r#"{"client_id":"c"}"#, "VALUE_REQUIRED"),
            (r#"{"client_id":"c","events":[]}"#, "VALUE_REQUIRED"),
            (r#"{"client_id":"c","events":[{}]}"#, "VALUE_REQUIRED"),
            (r#"{"client_id":"c","events":[{"name":"a b"}]}"#, "NAME_INVALID"),
            (r#"{"client_id":"c","events":[{"name":"error"}]}"#, "NAME_RESERVED"),
            (r#"{"client_id":"c","events":[{"name":"a","params":7}]}"#, "VALUE_INVALID"),
            (&format!(r#"{{"client_id":"c","events":[{many}]}}"#), "EXCEEDED_MAX_ENTITIES"),
            (
                &format!(
                    r#"{{"client_id":"c","events":[{{"name":"a","params":{{"p":"{long}"}}}}]}}"#
                ),
                "VALUE_OUT_OF_BOUNDS",
            ),
            (
                r#"{"client_id":"c","events":[{"name":"a"}],"user_properties":{"a":{},"A":{}}}"#,
                "NAME_DUPLICATED",
            ),
            (
                r#"{"client_id":"c","events":[{"name":"a"}],"timestamp_micros":"now"}"#,
                "VALUE_INVALID",
            ),
        ] {
            assert_eq!(codes(body), [code], "{body}");
        }
        let mistakes = vec!["{}"; 10_000].join(",");
        assert_eq!(codes(&format!(r#"{{"client_id":"c","events":[{mistakes}]}}"#)).len(), 100);
    }
}
