//! Label matchers in the manner of Prometheus: `{page=~"/blog/.*",country!="DE"}`. Regular expressions are anchored.

use regex::RegexBuilder;

use crate::persistence::store::Matcher;

/// Memory of one compiled expression; the `regex` crate runs in linear time, so size is all that needs a limit.
const REGEX_BYTES: usize = 1 << 20;
/// Matchers of one query.
const MAX_MATCHERS: usize = 32;

/// Parses a `where` parameter; empty means no matcher.
///
/// # Errors
/// Says what was expected and where.
pub fn parse(text: &str) -> Result<Vec<Matcher>, String> {
    let inner = text.trim();
    let inner = inner.strip_prefix('{').map_or(Some(inner), |rest| rest.strip_suffix('}')).ok_or("a } is missing at the end")?;
    let mut rest = inner.trim();
    let mut matchers = Vec::new();
    while !rest.is_empty() {
        let (matcher, behind) = one(rest)?;
        matchers.push(matcher);
        rest = behind.trim_start();
        rest = match rest.strip_prefix(',') {
            Some(behind) => behind.trim_start(),
            None if rest.is_empty() => rest,
            None => return Err(format!("expected a comma before {rest:?}")),
        };
        if matchers.len() > MAX_MATCHERS {
            return Err(format!("more than {MAX_MATCHERS} matchers"));
        }
    }
    Ok(matchers)
}

fn one(text: &str) -> Result<(Matcher, &str), String> {
    let end = text.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(text.len());
    let (name, rest) = text.split_at(end);
    if name.is_empty() {
        return Err(format!("expected a label name at {text:?}"));
    }
    let rest = rest.trim_start();
    let operator = ["=~", "!~", "!=", "="].into_iter().find(|op| rest.starts_with(op));
    let operator = operator.ok_or_else(|| format!("expected =, !=, =~ or !~ after {name}"))?;
    let (value, rest) = quoted(rest[operator.len()..].trim_start())?;
    let name = name.to_owned();
    let matcher = match operator {
        "=" => Matcher::Equal(name, value),
        "!=" => Matcher::NotEqual(name, value),
        "=~" => Matcher::Regex(name, anchored(&value)?),
        _ => Matcher::NotRegex(name, anchored(&value)?),
    };
    Ok((matcher, rest))
}

fn quoted(text: &str) -> Result<(String, &str), String> {
    let quote = text.chars().next().filter(|c| matches!(c, '"' | '\'')).ok_or("expected a quoted value")?;
    let mut value = String::new();
    let mut chars = text.char_indices().skip(1);
    while let Some((at, c)) = chars.next() {
        match c {
            '\\' => match chars.next() {
                Some((_, 'n')) => value.push('\n'),
                Some((_, escaped @ ('"' | '\'' | '\\'))) => value.push(escaped),
                // Every other escape belongs to the regular expression.
                Some((_, other)) => value.extend(['\\', other]),
                None => break,
            },
            c if c == quote => return Ok((value, &text[at + 1..])),
            c => value.push(c),
        }
    }
    Err(format!("the quote of {text:?} is not closed"))
}

fn anchored(pattern: &str) -> Result<regex::Regex, String> {
    // Compiled bare first: `a)|(b` would close the group that anchors it.
    RegexBuilder::new(pattern)
        .size_limit(REGEX_BYTES)
        .build()
        .map_err(|e| format!("{pattern:?} is not valid or too large: {e}"))?;
    let anchored = RegexBuilder::new(&format!("^(?:{pattern})$")).size_limit(REGEX_BYTES).build();
    anchored.map_err(|e| format!("the regular expression {pattern:?} is not valid or too large: {e}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::series::Series;

    fn passes(matchers: &str, labels: &[(&str, &str)]) -> bool {
        let series = Series::new("t", "m", labels.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())));
        parse(matchers).expect("parses").iter().all(|m| m.matches(&series))
    }

    #[test]
    fn matchers_match_as_prometheus_does() {
        let de = [("page", "/blog/x"), ("country", "DE")];
        for (matchers, expected) in [
            ("", true),
            ("{}", true),
            (r#"{page=~"/blog/.*",country="DE"}"#, true),
            (r#"country != "DE""#, false),
            (r#"{page=~"blog"}"#, false),
            (r#"{page!~"blog"}"#, true),
            (r#"{absent=""}"#, true),
            (r#"{absent!=""}"#, false),
            (r#"{country='DE',}"#, true),
        ] {
            assert_eq!(passes(matchers, &de), expected, "{matchers}");
        }
    }

    #[test]
    fn mistakes_are_explained() {
        for bad in [
            r#"{a="b""#,
            "{a}",
            r#"{="x"}"#,
            r#"{a=~"("}"#,
            r#"{a=~"a)|(b"}"#,
            r#"{a="x" b="y"}"#,
            r#"{a="x}"#,
            r#"{a=~"(a{1000}){1000}"}"#,
        ] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
