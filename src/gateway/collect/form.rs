//! Bodies that are HTML forms with the JSON in the field `data`, in base64 or as it is. PostHog's
//! browser client sends them when it may not pack a body, in beacons too, because a browser asks
//! for no preflight first.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;

use super::super::error::ApiError;
use super::super::extract::percent_decode;

const FIELD: &[u8] = b"data=";

/// Whether a body is such a form. No JSON begins like one.
pub(super) fn is_html_form(body: &[u8]) -> bool {
    body.starts_with(FIELD)
}

/// Bytes that reading a form takes beside it, at most: the text of the field, and what it encodes.
pub(super) fn memory_to_read(body: &[u8]) -> usize {
    2 * body.len()
}

/// The JSON of a form.
///
/// # Errors
/// 400 if the field holds something else.
pub(super) fn json_of_html_form(body: &[u8]) -> Result<Bytes, ApiError> {
    let unreadable = |why: &str| ApiError::unreadable(format!("the field data of the form {why}"));
    let field = body.get(FIELD.len()..).unwrap_or_default();
    let field = field.split(|byte| *byte == b'&').next().unwrap_or_default();
    let text = std::str::from_utf8(field).ok().and_then(percent_decode);
    let text = text.ok_or_else(|| unreadable("has a broken percent escape"))?;
    if text.starts_with(['{', '[']) {
        return Ok(Bytes::from(text));
    }
    // A plus that was not escaped came out as a space.
    let mut encoded = text.into_bytes();
    for byte in encoded.iter_mut().filter(|byte| **byte == b' ') {
        *byte = b'+';
    }
    let json = STANDARD
        .decode(&encoded)
        .map_err(|_| unreadable("is neither JSON nor base64: send the body as JSON"))?;
    Ok(Bytes::from(json))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(body: &str) -> Result<String, String> {
        assert!(is_html_form(body.as_bytes()), "{body}");
        json_of_html_form(body.as_bytes())
            .map(|json| String::from_utf8(json.to_vec()).expect("UTF-8"))
            .map_err(|error| error.message)
    }

    #[test]
    fn the_field_is_json_in_base64_or_as_it_is() {
        let json = r#"["~~~>>>???","ü",1]"#;
        let encoded = STANDARD.encode(json);
        assert!(['+', '/', '='].iter().all(|sign| encoded.contains(*sign)), "{encoded}");
        let escaped = encoded.replace('+', "%2B").replace('/', "%2F").replace('=', "%3D");
        for body in [
            format!("data={escaped}"),
            format!("data={encoded}"),
            format!("data={escaped}&compression=base64"),
            "data=%5B%22%7E%7E%7E%3E%3E%3E???%22,%22%C3%BC%22,1%5D".to_owned(),
        ] {
            assert_eq!(read(&body).as_deref(), Ok(json), "{body}");
        }
        assert_eq!(read("data=%7B%22a+b%22:1%7D").as_deref(), Ok(r#"{"a b":1}"#));
    }

    #[test]
    fn what_is_no_form_of_json_is_refused_by_name() {
        for (body, says) in [
            ("data=%", "percent escape"),
            ("data=%FF", "percent escape"),
            ("data=e30%3D%3D%3D%3D", "neither JSON nor base64"),
            ("data=N4Ig!", "neither JSON nor base64"),
        ] {
            let why = read(body).expect_err(body);
            assert!(why.contains("the field data") && why.contains(says), "{body}: {why}");
        }
        assert_eq!(read("data=").as_deref(), Ok(""), "the reader of JSON says that it is empty");
        for other in ["{}", "[]", "", "dat", "batch=1", "x=1&data=e30="] {
            assert!(!is_html_form(other.as_bytes()), "{other}");
        }
    }
}
