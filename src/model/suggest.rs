//! What error messages repeat of a text, and the known name that a mistyped one probably stands for.

/// Least similarity of a suggestion (1 is equal, 0 shares nothing): below it, a hint misleads.
const NEAR: f64 = 0.6;

/// How many characters of a name or expression an error message repeats.
const MAX_EXCERPT: usize = 64;

/// Truncates a client's text for an error message; it may be as long as a whole request.
pub fn excerpt(text: &str) -> String {
    text.chars().take(MAX_EXCERPT).collect()
}

/// The known name most similar to `name`, if any is similar enough to suggest.
pub fn nearest_name(name: &str, known: impl IntoIterator<Item = String>) -> Option<String> {
    let likeness = |known: String| (strsim::normalized_damerau_levenshtein(name, &known), known);
    let best = known.into_iter().map(likeness).max_by(|a, b| a.0.total_cmp(&b.0));
    best.filter(|(likeness, _)| *likeness >= NEAR).map(|(_, known)| known)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_near_name_is_a_hint() {
        let known = || ["from", "to", "step", "group", "format_of"].map(str::to_owned);
        for (name, hint) in [
            ("form", Some("from")),
            ("grop", Some("group")),
            ("steps", Some("step")),
            ("where", None),
            ("x", None),
        ] {
            assert_eq!(nearest_name(name, known()).as_deref(), hint, "{name}");
        }
        for name in ["grop", "format"] {
            assert_eq!(
                nearest_name(name, ["from", "to", "step"].map(str::to_owned)),
                None,
                "{name}"
            );
        }
        assert_eq!(nearest_name("a", []), None);
    }
}
