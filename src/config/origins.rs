//! Origins of pages, in the form in which browsers name them.

/// Origins with commas between.
///
/// # Errors
/// If one is none, with what it should look like.
pub(super) fn parse(text: &str) -> Result<Vec<String>, String> {
    let origins = text.split(',').map(str::trim).filter(|origin| !origin.is_empty());
    origins
        .map(|origin| {
            if is_origin(origin) {
                return Ok(origin.to_owned());
            }
            Err(format!(
                "{origin:?} is no origin: write https://shop.example or http://localhost:3000, in small letters, without a path"
            ))
        })
        .collect()
}

/// A scheme, a host and a port, if it is not that of the scheme.
fn is_origin(text: &str) -> bool {
    let (host, default_port) = match text.split_once("://") {
        Some(("https", host)) => (host, ":443"),
        Some(("http", host)) => (host, ":80"),
        _ => return false,
    };
    let is_of_host = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'.' | b'-' | b'_' | b':' | b'[' | b']');
    !host.is_empty() && !host.starts_with(':') && host.bytes().all(is_of_host) && !host.ends_with(default_port)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn origins_are_as_browsers_name_them() {
        let good = "https://shop.example, http://localhost:3000,http://[::1]:8080,";
        assert_eq!(
            parse(good).as_deref(),
            Ok(&["https://shop.example", "http://localhost:3000", "http://[::1]:8080"].map(str::to_owned)[..])
        );
        assert_eq!(parse(""), Ok(vec![]));
        for bad in [
            "*",
            "null",
            "shop.example",
            "https://",
            "https://a/",
            "https://a/b",
            "https://A",
            "https://a:443",
            "http://:80",
            "ftp://a",
        ] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
