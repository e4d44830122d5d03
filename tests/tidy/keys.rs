//! Every configuration key that is named exists, and no default is defined outside the table of
//! keys.

use crate::source::product;

/// The text between quotes in code, and between backticks in comments.
fn quoted(text: &str) -> Vec<&str> {
    let (mut found, mut rest) = (Vec::new(), text);
    while let Some(at) = rest.find(['"', '/', '\'']) {
        let tail = &rest[at..];
        let raw = rest[..at].trim_end_matches('#').ends_with('r') && tail.starts_with('"');
        let skip = if let Some(comment) = tail.strip_prefix("//") {
            let line = comment.lines().next().unwrap_or_default();
            found.extend(line.split('`').skip(1).step_by(2));
            2 + line.len()
        } else if let Some(literal) = tail.strip_prefix('"') {
            let hashes =
                if raw { rest[..at].len() - rest[..at].trim_end_matches('#').len() } else { 0 };
            let end = if raw {
                literal.find(&format!("\"{}", "#".repeat(hashes)))
            } else {
                end_of_literal(literal)
            };
            let end = end.expect("a literal ends");
            found.push(&literal[..end]);
            end + 2
        } else if let Some(name) = ["'\"'", "'\\\"'", "'/'"].iter().find(|c| tail.starts_with(**c))
        {
            name.len()
        } else {
            1
        };
        rest = &tail[skip..];
    }
    found
}

fn end_of_literal(literal: &str) -> Option<usize> {
    let mut escaped = false;
    literal.bytes().position(|byte| {
        let ends = byte == b'"' && !escaped;
        escaped = byte == b'\\' && !escaped;
        ends
    })
}

/// The names of the form `section.name` in a text whose section is one of the configuration.
fn keys_named(text: &str) -> Vec<&str> {
    let is_name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '/' | '-');
    let words = text.split(|c: char| !is_name(c)).map(|word| word.trim_end_matches('.'));
    let section = |word: &&str| {
        let Some((section, name)) = word.split_once('.') else { return false };
        let known =
            rollmill::config::KEYS.iter().any(|key| key.name.starts_with(&format!("{section}.")));
        // A file of the data directory, not a key.
        known
            && *word != "store.sqlite"
            && !name.is_empty()
            && name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_')
    };
    words.filter(section).collect()
}

#[test]
fn every_config_key_that_is_named_exists() {
    assert_eq!(quoted(r##"a("x \" y", '"', "b"); // see `c.d`"##), [r#"x \" y"#, "b", "c.d"]);
    assert_eq!(
        keys_named("too large (gateway.max_inflight): retry; log/a.b; accept.max_body."),
        ["gateway.max_inflight", "accept.max_body"]
    );
    let (mut named, mut wrong) = (0, Vec::new());
    for source in product() {
        // Metric names of the flights and file names in tests are not keys.
        let text = source.text.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default();
        for key in quoted(text).into_iter().flat_map(keys_named) {
            named += 1;
            if !rollmill::config::KEYS.iter().any(|known| known.name == key) {
                wrong.push(format!("{}: {key}", source.shown()));
            }
        }
    }
    assert!(named > 100, "only {named} found");
    assert!(wrong.is_empty(), "no such keys of the configuration:\n{}", wrong.join("\n"));
}

/// Tests must run with the limits that the server has, so only the table of keys defines defaults.
#[test]
fn limits_have_no_defaults_beside_the_table_of_keys() {
    let is_limit = |name: &str| {
        ["Limits", "Options", "Config", "Policy"].iter().any(|end| name.ends_with(end))
    };
    for source in product() {
        let mut derived = false;
        for line in source.text.lines().map(str::trim) {
            let of = line.strip_prefix("impl Default for ").map(|rest| rest.trim_end_matches(" {"));
            assert!(!of.is_some_and(is_limit), "{}: {line}", source.shown());
            let name = line
                .split("struct ")
                .nth(1)
                .and_then(|rest| rest.split([' ', '(', '<', ';']).next());
            assert!(!(derived && name.is_some_and(is_limit)), "{}: {line}", source.shown());
            derived = line.starts_with("#[derive(") && line.contains("Default")
                || derived && line.starts_with("#[");
        }
    }
}
