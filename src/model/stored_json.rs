//! JSON that is kept in the archive as it was sent.

use super::event::MAX_PROPERTIES_DEPTH;

/// Checks that stored JSON can be decoded by later readers of the archive. Expects valid JSON.
/// Fails if it is nested too deeply, or a string contains a lone surrogate, which is no character.
pub fn check_stored_json(what: &str, json: &str) -> Result<(), String> {
    let (bytes, mut depth, mut quoted, mut at) = (json.as_bytes(), 0usize, false, 0);
    while let Some(byte) = bytes.get(at) {
        match byte {
            b'\\' if quoted => {
                at += escape_len(&bytes[at..])
                    .ok_or_else(|| format!("a lone surrogate in {what}: it is no character"))?;
                continue;
            }
            b'"' => quoted = !quoted,
            b'[' | b'{' if !quoted => depth += 1,
            b']' | b'}' if !quoted => depth = depth.saturating_sub(1),
            _ => {}
        }
        if depth > MAX_PROPERTIES_DEPTH {
            return Err(format!("{what} nested deeper than {MAX_PROPERTIES_DEPTH}"));
        }
        at += 1;
    }
    Ok(())
}

/// Length of the escape, or surrogate pair of escapes, at the start of `text`; `None`
/// for a lone surrogate.
fn escape_len(text: &[u8]) -> Option<usize> {
    let unit = |at: usize| match text.get(at..at + 6)? {
        [b'\\', b'u', digits @ ..] => {
            u16::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()
        }
        _ => None,
    };
    match unit(0) {
        None => Some(2),
        Some(0xd800..=0xdbff) => unit(6).filter(|low| (0xdc00..=0xdfff).contains(low)).map(|_| 12),
        Some(0xdc00..=0xdfff) => None,
        Some(_) => Some(6),
    }
}
