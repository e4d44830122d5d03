//! Comma-separated lists: origins of web pages, in the form that browsers send, and hosts.

use super::values::{ConfigValue, ValueKind};

/// Web origins, in the form of the `Origin` header.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct OriginList(pub Vec<String>);

impl OriginList {
    /// Stands for every origin.
    pub const ANY: &str = "*";

    /// Whether every origin is listed.
    pub fn is_any(&self) -> bool {
        self.0.iter().any(|origin| origin == Self::ANY)
    }
}

impl ConfigValue for OriginList {
    const KIND: ValueKind = ValueKind::Text;

    fn parse(text: &str) -> Result<Self, String> {
        let checked = |origin: &str| {
            if origin == Self::ANY || is_origin(origin) {
                return Ok(origin.to_owned());
            }
            Err(format!(
                "{origin:?} is no origin: write https://shop.example or http://localhost:3000, in \
                 small letters, without a path; or * alone, for all of them"
            ))
        };
        let origins = Self(list_items(text).map(checked).collect::<Result<_, _>>()?);
        if origins.is_any() && origins.0.len() > 1 {
            return Err("* stands for every origin: write it alone, or list origins".to_owned());
        }
        Ok(origins)
    }

    fn text(&self) -> String {
        self.0.join(",")
    }
}

/// Addresses of hosts. They are not checked here; a wrong one shows when it is dialled.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HostList(pub Vec<String>);

impl ConfigValue for HostList {
    const KIND: ValueKind = ValueKind::Text;

    fn parse(text: &str) -> Result<Self, String> {
        Ok(Self(list_items(text).map(str::to_owned).collect()))
    }

    fn text(&self) -> String {
        self.0.join(",")
    }
}

/// The trimmed items of a comma-separated list, without empty ones.
pub(super) fn list_items(text: &str) -> impl Iterator<Item = &str> {
    text.split(',').map(str::trim).filter(|part| !part.is_empty())
}

/// Whether the text is a scheme, a host and optionally a port, exactly as a browser sends it: lower
/// case, no path, and no port that is the scheme's default.
fn is_origin(text: &str) -> bool {
    let (host, default_port) = match text.split_once("://") {
        Some(("https", host)) => (host, ":443"),
        Some(("http", host)) => (host, ":80"),
        _ => return false,
    };
    let is_of_host = |b: u8| {
        b.is_ascii_lowercase()
            || b.is_ascii_digit()
            || matches!(b, b'.' | b'-' | b'_' | b':' | b'[' | b']')
    };
    !host.is_empty()
        && !host.starts_with(':')
        && host.bytes().all(is_of_host)
        && !host.ends_with(default_port)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn origins_are_as_browsers_name_them() {
        let good = "https://shop.example, http://localhost:3000,http://[::1]:8080,";
        assert_eq!(
            OriginList::parse(good).expect("origins").text(),
            "https://shop.example,http://localhost:3000,http://[::1]:8080"
        );
        assert_eq!(OriginList::parse(""), Ok(OriginList::default()));
        assert!(OriginList::parse(" * ").expect("all of them").is_any());
        for bad in [
            "*,https://shop.example",
            "https://*.example",
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
            assert!(OriginList::parse(bad).is_err(), "{bad}");
        }
    }
}
