//! Parser of label matchers in Prometheus syntax: `{page=~"/blog/.*",country!="DE"}`. Regular
//! expressions are anchored.

use regex::RegexBuilder;

use super::event::check_label_name;
use super::matcher::{ANCHORS, Matcher};
use super::suggest::excerpt;

/// Memory limit of one compiled expression in bytes. The `regex` crate matches in linear time, so
/// only the size needs a limit.
pub const REGEX_BYTES: usize = 1 << 20;
/// Maximum number of matchers in one text.
pub const MAX_MATCHERS: usize = 32;

/// Parses a `where` parameter; empty means no matcher.
///
/// # Errors
/// If the text is malformed; the message says what was expected and where.
pub fn parse(text: &str) -> Result<Vec<Matcher>, String> {
    let inner = text.trim();
    let inner = inner
        .strip_prefix('{')
        .map_or(Some(inner), |rest| rest.strip_suffix('}'))
        .ok_or("a } is missing at the end")?;
    let mut rest = inner.trim();
    let mut matchers = Vec::new();
    while !rest.is_empty() {
        let (matcher, after) = one(rest)?;
        matchers.push(matcher);
        rest = after.trim_start();
        rest = match rest.strip_prefix(',') {
            Some(after) => after.trim_start(),
            None if rest.is_empty() => rest,
            None => return Err(format!("expected a comma before {:?}", excerpt(rest))),
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
        return Err(format!("expected a label name at {:?}", excerpt(text)));
    }
    check_label_name(name)?;
    let rest = rest.trim_start();
    let operator = ["=~", "!~", "!=", "="].into_iter().find(|op| rest.starts_with(op));
    let operator = operator.ok_or_else(|| format!("expected =, !=, =~ or !~ after {name}"))?;
    let (value, rest) = quoted(rest[operator.len()..].trim_start(), operator.ends_with('~'))?;
    let name = name.to_owned();
    let matcher = match operator {
        "=" => Matcher::Equal(name, value),
        "!=" => Matcher::NotEqual(name, value),
        "=~" => Matcher::Regex(name, anchored(&value)?),
        _ => Matcher::NotRegex(name, anchored(&value)?),
    };
    Ok((matcher, rest))
}

/// Parses a quoted value; returns it and the rest of the text. Backticks quote raw text without
/// escapes. Other quotes accept the escapes of PromQL and JSON, because programs write JSON. In a
/// regular expression, all escapes but those of the quotes are left to the expression.
fn quoted(text: &str, regex: bool) -> Result<(String, &str), String> {
    let quote = text
        .chars()
        .next()
        .filter(|c| matches!(c, '"' | '\'' | '`'))
        .ok_or("expected a quoted value")?;
    let mut value = Vec::new();
    let mut rest = &text[1..];
    while let Some(c) = rest.chars().next() {
        rest = &rest[c.len_utf8()..];
        match c {
            c if c == quote => {
                let value = String::from_utf8(value)
                    .map_err(|_| format!("the escapes of {:?} make no UTF-8", excerpt(text)))?;
                return Ok((value, rest));
            }
            '\\' if quote != '`' => rest = escape(rest, regex, &mut value)?,
            c => value.extend(c.encode_utf8(&mut [0; 4]).bytes()),
        }
    }
    Err(format!("the quote of {:?} is not closed", excerpt(text)))
}

/// Parses one escape; `text` starts after the backslash. Returns the rest of the text.
fn escape<'t>(text: &'t str, regex: bool, value: &mut Vec<u8>) -> Result<&'t str, String> {
    let mut chars = text.chars();
    let kind = chars.next().unwrap_or_default();
    let rest = chars.as_str();
    let plain = match kind {
        '"' | '\'' | '\\' => Some(kind as u8),
        'n' => Some(b'\n'),
        _ => None,
    };
    let simple = match kind {
        _ if plain.is_some() => plain,
        'a' if !regex => Some(0x07),
        'b' if !regex => Some(0x08),
        'f' if !regex => Some(0x0c),
        'r' if !regex => Some(b'\r'),
        't' if !regex => Some(b'\t'),
        'v' if !regex => Some(0x0b),
        '/' if !regex => Some(b'/'),
        _ => None,
    };
    if let Some(byte) = simple {
        value.push(byte);
        return Ok(rest);
    }
    let unknown = || {
        format!(
            "the escape \\{} is not understood",
            excerpt(text).chars().take(9).collect::<String>()
        )
    };
    match kind {
        // A surrogate pair is a JSON escape even in a regular expression: regex syntax has no
        // surrogates.
        'u' if !regex || surrogate(rest) => {
            let (code, rest) = unicode(rest).ok_or_else(unknown)?;
            let c = code.encode_utf8(&mut [0; 4]).to_owned();
            value.extend(if regex { regex::escape(&c) } else { c }.bytes());
            Ok(rest)
        }
        'U' if !regex => {
            let (code, rest) = number(rest, 8, 16).ok_or_else(unknown)?;
            let c = char::from_u32(code).ok_or_else(unknown)?;
            value.extend(c.encode_utf8(&mut [0; 4]).bytes());
            Ok(rest)
        }
        'x' if !regex => {
            let (byte, rest) = number(rest, 2, 16).ok_or_else(unknown)?;
            value.push(byte as u8);
            Ok(rest)
        }
        '0'..='3' if !regex => {
            let (byte, rest) = number(text, 3, 8).ok_or_else(unknown)?;
            value.push(byte as u8);
            Ok(rest)
        }
        kind if regex && kind != '\0' => {
            value.push(b'\\');
            value.extend(kind.encode_utf8(&mut [0; 4]).bytes());
            Ok(rest)
        }
        _ => Err(unknown()),
    }
}

/// Parses a number of exactly `digits` digits; returns it and the rest of the text.
fn number(text: &str, digits: usize, radix: u32) -> Option<(u32, &str)> {
    let (number, rest) = text.split_at_checked(digits)?;
    let number = number
        .bytes()
        .all(|b| char::from(b).is_digit(radix))
        .then(|| u32::from_str_radix(number, radix).ok())??;
    Some((number, rest))
}

fn surrogate(text: &str) -> bool {
    number(text, 4, 16).is_some_and(|(code, _)| (0xd800..0xe000).contains(&code))
}

/// Parses the code point after `\u`: four digits, or a surrogate pair of two escapes.
fn unicode(text: &str) -> Option<(char, &str)> {
    let (first, rest) = number(text, 4, 16)?;
    if let Some(c) = char::from_u32(first) {
        return Some((c, rest));
    }
    let (second, after) = number(rest.strip_prefix("\\u")?, 4, 16)?;
    let pair = [u16::try_from(first).ok()?, u16::try_from(second).ok()?];
    let mut decoded = char::decode_utf16(pair);
    let c = decoded.next()?.ok()?;
    decoded.next().is_none().then_some((c, after))
}

/// Compiles an expression that has to match a whole text.
///
/// # Errors
/// If it is not valid, or larger than [`REGEX_BYTES`] when compiled.
pub fn anchored(pattern: &str) -> Result<regex::Regex, String> {
    // Compiled without anchors first: `a)|(b` would close the group that anchors it.
    RegexBuilder::new(pattern).size_limit(REGEX_BYTES).build().map_err(|e| {
        format!("the regular expression {:?} is not valid or too large: {e}", excerpt(pattern))
    })?;
    let anchored = RegexBuilder::new(&format!("{}{pattern}{}", ANCHORS.0, ANCHORS.1))
        .size_limit(REGEX_BYTES)
        .build();
    anchored.map_err(|e| {
        format!("the regular expression {:?} is not valid or too large: {e}", excerpt(pattern))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::series::Series;

    fn passes(matchers: &str, labels: &[(&str, &str)]) -> bool {
        let series =
            Series::new("t", "m", labels.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())));
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
    fn escapes_are_those_that_programs_write() {
        let of = [("c", "M\u{fc}nchen \u{1f600}/\t\"'\\`")];
        for matchers in [
            r#"{c="M\u00fcnchen \ud83d\ude00/\t\"'\\`"}"#,
            r#"{c="M\u00FCnchen \uD83D\uDE00\/\u0009\u0022\u0027\u005c\u0060"}"#,
            r#"{c='M\u00fcnchen \U0001f600/\t"\'\\`'}"#,
            r#"{c="M\xc3\xbcnchen \360\237\230\200/\011\x22\x27\x5c\140"}"#,
            "{c=\"M\u{fc}nchen \u{1f600}/\t\\\"'\\\\`\"}",
            r#"{c=~"M\u00fcnchen \ud83d\ude00/\t\"'\\\\`"}"#,
            r#"{c=~"M\u00fcnchen \x{1f600}/\s\"'\\x5c."}"#,
            r#"{c=~`M.nchen .*\\.`}"#,
        ] {
            assert!(passes(matchers, &of), "{matchers}");
        }
        // Every byte that a program writes survives.
        for value in [
            "",
            "\u{0}",
            "\u{7f}\u{80}\u{7ff}\u{800}\u{ffff}\u{10000}\u{10ffff}",
            "\u{8}\u{c}\r\n",
            "a\\u00fc",
        ] {
            let json = serde_json::Value::from(value).to_string();
            let parsed = parse(&format!("{{c={json}}}"));
            assert!(
                matches!(&parsed.as_deref(), Ok([Matcher::Equal(_, found)]) if found == value),
                "{json}"
            );
        }
        // An escaped quote belongs to the quoting, an escaped dot to the expression.
        assert!(passes(r#"{c=~"a\.b\d+"}"#, &[("c", "a.b12")]));
        assert!(!passes(r#"{c=~"a\.b\d+"}"#, &[("c", "axb12")]));
        assert!(passes(r#"{c=`a\u00fc`}"#, &[("c", r"a\u00fc")]));
        // An escaped surrogate pair is a literal character, not an expression.
        assert!(!passes(r#"{c=~"\ud83d\ude00"}"#, &[("c", "x")]));
    }

    #[test]
    fn what_is_printed_is_the_same_matcher() {
        for text in [
            r#"{c="M\u00fcnchen \t\"'\\`",d!=""}"#,
            r#"{c=~"a\.b\d+|\"\\x5c.",d!~`\.\\n"`}"#,
            r#"{c=~"\ud83d\ude00",d=~"(?x) a # b
                ",e=~""}"#,
            "{}",
        ] {
            let matchers = parse(text).expect("parses");
            let printed: Vec<String> = matchers.iter().map(ToString::to_string).collect();
            let again = parse(&printed.join(",")).expect("parses again");
            assert_eq!(again, matchers, "{text}");
        }
        let (one, other) = (parse(r#"a="x""#).expect("one"), parse(r#"a=~"x""#).expect("other"));
        assert_ne!(one, other);
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
            r#"{a="\q"}"#,
            r#"{a="\d"}"#,
            r#"{a="\u12"}"#,
            r#"{a="\u00zz"}"#,
            r#"{a="\u+123"}"#,
            r#"{a="\ud83d"}"#,
            r#"{a="\ud83d\u0041"}"#,
            r#"{a="\ude00\ud83d"}"#,
            r#"{a=~"\ud83d"}"#,
            r#"{a="\U00110000"}"#,
            r#"{a="\x4"}"#,
            r#"{a="\xff"}"#,
            r#"{a="\777"}"#,
            r#"{a="\08"}"#,
            r#"{a="\u12\u{fc}"}"#,
            r#"{a="b\"#,
            r#"{a=~"\q"}"#,
            r#"{1a="b"}"#,
            r#"{__name__="b"}"#,
            r#"{a="b",,}"#,
        ] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
