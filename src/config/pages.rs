//! The reference pages of the keys: docs/reference/configuration.md and config/rollmill.toml.
//! `ROLLMILL_WRITE_DOCS=1` writes both.

use std::path::Path;

use super::{KEYS, KeyEntry, ValueKind};

const WIDTH: usize = 100;

fn row(key: &KeyEntry) -> String {
    let default =
        if key.text.is_empty() { "(empty)".to_owned() } else { format!("`{}`", key.text) };
    let range = match (&key.range, key.kind) {
        (Some((least, most)), _) => format!("`{least}` to `{most}`"),
        (None, ValueKind::Bool) => "`true` or `false`".to_owned(),
        (None, _) => String::new(),
    };
    format!("| `{}` | {default} | {range} | {} |\n", key.name, key.doc)
}

fn example(key: &KeyEntry) -> String {
    format!("\n{}{} = {}\n", comment(key.doc), key.name, key.toml())
}

/// Formats text as comment lines.
fn comment(text: &str) -> String {
    let mut lines = vec!["#".to_owned()];
    for word in text.split(' ') {
        let last = lines.len() - 1;
        if lines[last].len() + 1 + word.len() > WIDTH && lines[last].len() > 1 {
            lines.push("#".to_owned());
        }
        let last = lines.len() - 1;
        lines[last].push(' ');
        lines[last].push_str(word);
    }
    lines.iter().map(|line| format!("{line}\n")).collect()
}

/// Asserts that the file continues with `made` after the first occurrence of `mark`, or writes it.
fn holds(file: &str, mark: &str, made: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(file);
    let text = std::fs::read_to_string(&path).expect(file);
    let at = text.find(mark).expect(mark) + mark.len();
    if std::env::var_os("ROLLMILL_WRITE_DOCS").is_some() {
        std::fs::write(&path, format!("{}{made}", &text[..at])).expect(file);
        return;
    }
    let same = text[at..] == *made;
    assert!(same, "{file} is not what the table of keys says: ROLLMILL_WRITE_DOCS=1 writes it");
}

#[test]
fn the_page_has_every_key_as_it_is() {
    let rows: String = KEYS.iter().map(row).collect();
    holds("docs/reference/configuration.md", "\n|---|---|---|---|\n", &rows);
}

#[test]
fn the_example_has_every_key_with_its_default() {
    let examples: String = KEYS.iter().map(example).collect();
    holds("config/rollmill.toml", "then flags.\n", &examples);
}
