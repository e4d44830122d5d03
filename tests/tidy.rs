//! Tidiness is a test: the import matrix, purity, sizes, module docs.

use std::path::{Path, PathBuf};

/// Rooms and the rooms they may import, besides themselves and `clock`, `telemetry`, `invariants`.
const MATRIX: &[(&str, &[&str])] = &[
    ("clock", &["model"]),
    ("telemetry", &[]),
    ("invariants", &[]),
    ("model", &[]),
    ("shards", &["model"]),
    ("config", &["model"]),
    ("persistence", &["model", "config"]),
    ("actors", &["model", "shards", "persistence"]),
    ("supervision", &["model", "actors"]),
    ("query", &["model", "shards", "persistence", "actors"]),
    ("gateway", &["model", "config", "persistence", "query", "actors"]),
    ("node", &["model", "shards", "config", "persistence", "actors", "supervision", "query", "gateway"]),
    ("cli", &["model", "shards", "config", "persistence", "actors", "supervision", "query", "gateway", "node"]),
];

/// Code of these rooms is a function of its arguments.
const PURE: &[&str] = &["model", "shards"];
const IMPURE: &[&str] = &[
    "tokio::",
    "std::fs",
    "std::net",
    "std::thread",
    "std::time",
    "std::env",
    "crate::clock",
    "SystemTime",
    "getrandom",
    "async fn",
    ".await",
    "std::collections::HashMap",
    "RandomState",
];

const MAX_FILE_LINES: usize = 700;
const MAX_FUNCTION_LINES: usize = 90;

fn sources() -> Vec<(PathBuf, String)> {
    let mut found = Vec::new();
    let mut pending = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join("src")];
    while let Some(dir) = pending.pop() {
        for entry in std::fs::read_dir(&dir).expect("src is readable") {
            let path = entry.expect("entry").path();
            if path.is_dir() {
                pending.push(path);
            } else if path.extension().is_some_and(|e| e == "rs") {
                let text = std::fs::read_to_string(&path).expect("source is UTF-8");
                found.push((path, text));
            }
        }
    }
    assert!(found.len() > 20, "the walk found only {} files", found.len());
    found
}

fn room(path: &Path) -> String {
    let below = path.strip_prefix(Path::new(env!("CARGO_MANIFEST_DIR")).join("src")).expect("below src");
    let first = below.components().next().expect("a name").as_os_str().to_string_lossy();
    first.trim_end_matches(".rs").to_owned()
}

/// The code before the tests, comments cut.
fn product(text: &str) -> String {
    let code = text.split("#[cfg(test)]\nmod ").next().unwrap_or_default();
    code.lines().map(|l| l.split("//").next().unwrap_or_default()).collect::<Vec<_>>().join("\n")
}

fn is_test_file(path: &Path) -> bool {
    path.components().any(|c| matches!(c.as_os_str().to_str(), Some("tests.rs" | "conformance.rs" | "tests")))
}

#[test]
fn imports_point_to_lower_rooms() {
    let mut wrong = Vec::new();
    for (path, text) in sources() {
        let here = room(&path);
        if matches!(here.as_str(), "lib" | "main") || is_test_file(&path) {
            continue;
        }
        let allowed = MATRIX.iter().find(|(name, _)| *name == here).unwrap_or_else(|| panic!("unknown room {here}")).1;
        for (other, _) in MATRIX {
            let level_zero = matches!(*other, "clock" | "telemetry" | "invariants");
            if *other != here && !level_zero && !allowed.contains(other) && product(&text).contains(&format!("crate::{other}::"))
            {
                wrong.push(format!("{}: {here} must not import {other}", path.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "move the code or turn the dependency round:\n{}", wrong.join("\n"));
}

#[test]
fn pure_rooms_do_no_io() {
    let mut wrong = Vec::new();
    for (path, text) in sources().iter().filter(|(path, _)| PURE.contains(&room(path).as_str()) && !is_test_file(path)) {
        let code = product(text);
        wrong.extend(IMPURE.iter().filter(|w| code.contains(*w)).map(|w| format!("{}: {w}", path.display())));
    }
    assert!(wrong.is_empty(), "pure code takes time, randomness and bytes as arguments:\n{}", wrong.join("\n"));
}

#[test]
fn files_and_functions_stay_small() {
    let mut wrong = Vec::new();
    for (path, text) in sources() {
        if is_test_file(&path) {
            continue;
        }
        let code = product(&text);
        let lines = code.lines().count();
        if lines > MAX_FILE_LINES {
            wrong.push(format!("{}: {lines} lines, at most {MAX_FILE_LINES}: split it", path.display()));
        }
        wrong.extend(long_functions(&code).into_iter().map(|f| format!("{}: {f}", path.display())));
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Functions longer than the limit, found by the indentation that rustfmt guarantees.
fn long_functions(code: &str) -> Vec<String> {
    let mut long = Vec::new();
    let mut open: Option<(usize, usize, String)> = None;
    for (number, line) in code.lines().enumerate() {
        let indent = line.len() - line.trim_start().len();
        if let Some((start, depth, name)) = &open
            && line.trim_end() == format!("{}}}", " ".repeat(*depth))
        {
            if number - start > MAX_FUNCTION_LINES {
                long.push(format!("{name} has {} lines, at most {MAX_FUNCTION_LINES}", number - start));
            }
            open = None;
        }
        let starts = format!(" {}", line.trim_start()).contains(" fn ");
        if open.is_none() && starts && !line.trim_end().ends_with([';', '}']) {
            open = Some((number, indent, line.trim().to_owned()));
        }
    }
    long
}

#[test]
fn long_functions_are_found() {
    let body = "    step();\n".repeat(MAX_FUNCTION_LINES + 1);
    assert_eq!(long_functions(&format!("pub fn long() {{\n{body}}}\n")).len(), 1);
    assert_eq!(long_functions("fn short() {\n    step();\n}\n").len(), 0);
}

#[test]
fn every_module_says_what_it_is() {
    let silent: Vec<_> = sources()
        .into_iter()
        .filter(|(path, text)| !is_test_file(path) && !text.starts_with("//!"))
        .map(|(path, _)| path)
        .collect();
    assert!(silent.is_empty(), "begin with `//!`: {silent:?}");
}

#[test]
fn nothing_is_left_for_later() {
    let marks = ["todo!(", "unimplemented!(", "FIXME", "XXX", "for now", "To be written"];
    let mut wrong = Vec::new();
    for (path, text) in sources() {
        wrong.extend(marks.iter().filter(|m| text.contains(*m)).map(|m| format!("{}: {m}", path.display())));
    }
    assert!(wrong.is_empty(), "finish it or write an ADR:\n{}", wrong.join("\n"));
}

/// Every source file, tests too.
fn everything() -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut text = String::new();
    let mut pending = vec![root.join("src"), root.join("tests")];
    while let Some(dir) = pending.pop() {
        for entry in std::fs::read_dir(dir).expect("readable") {
            let path = entry.expect("entry").path();
            if path.is_dir() {
                pending.push(path);
            } else if path.extension().is_some_and(|e| e == "rs") {
                text.push_str(&std::fs::read_to_string(&path).expect("UTF-8"));
            }
        }
    }
    text
}

#[test]
fn every_invariant_names_tests_that_exist() {
    let page = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("ARCHITECTURE.md")).expect("the page");
    let code = everything();
    for invariant in rollmill::invariants::Invariant::ALL {
        let row = page.lines().find(|line| line.starts_with(&format!("| {} |", invariant.id())));
        let row = row.unwrap_or_else(|| panic!("ARCHITECTURE.md says nothing of {}", invariant.id()));
        let tests: Vec<&str> = row.rsplit('|').nth(1).expect("a column").split('`').skip(1).step_by(2).collect();
        assert!(!tests.is_empty(), "{} names no test", invariant.id());
        for test in tests {
            assert!(code.contains(&format!("fn {test}(")), "{} names {test}, which is not there", invariant.id());
        }
    }
}

/// What stands between quotes in code, and between backticks in comments.
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
            let hashes = if raw { rest[..at].len() - rest[..at].trim_end_matches('#').len() } else { 0 };
            let end = if raw { literal.find(&format!("\"{}", "#".repeat(hashes))) } else { end_of_literal(literal) };
            let end = end.expect("a literal ends");
            found.push(&literal[..end]);
            end + 2
        } else if let Some(name) = ["'\"'", "'\\\"'", "'/'"].iter().find(|c| tail.starts_with(**c)) {
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

/// `section.name` in a text, if the section is one of the configuration.
fn keys_named(text: &str) -> Vec<&str> {
    let is_name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '/' | '-');
    let words = text.split(|c: char| !is_name(c)).map(|word| word.trim_end_matches('.'));
    let section = |word: &&str| {
        let Some((section, name)) = word.split_once('.') else { return false };
        let known = rollmill::config::KEYS.iter().any(|key| key.name.starts_with(&format!("{section}.")));
        // A file of the data directory, and no key.
        known && *word != "store.sqlite" && !name.is_empty() && name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_')
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
    for (path, text) in sources() {
        // Metric names of the flights and names of files in tests are no keys.
        let text = text.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default();
        for key in quoted(text).into_iter().filter(|_| !is_test_file(&path)).flat_map(keys_named) {
            named += 1;
            if !rollmill::config::KEYS.iter().any(|known| known.name == key) {
                wrong.push(format!("{}: {key}", path.display()));
            }
        }
    }
    assert!(named > 100, "only {named} found");
    assert!(wrong.is_empty(), "no such keys of the configuration:\n{}", wrong.join("\n"));
}

/// What the server runs with is what tests run with: the table of keys alone knows a default.
#[test]
fn limits_have_no_defaults_beside_the_table_of_keys() {
    let is_limit = |name: &str| ["Limits", "Options", "Config", "Policy"].iter().any(|end| name.ends_with(end));
    for (path, text) in sources() {
        let mut derived = false;
        for line in text.lines().map(str::trim) {
            let of = line.strip_prefix("impl Default for ").map(|rest| rest.trim_end_matches(" {"));
            assert!(!of.is_some_and(is_limit), "{}: {line}", path.display());
            let name = line.split("struct ").nth(1).and_then(|rest| rest.split([' ', '(', '<', ';']).next());
            assert!(!(derived && name.is_some_and(is_limit)), "{}: {line}", path.display());
            derived = line.starts_with("#[derive(") && line.contains("Default") || derived && line.starts_with("#[");
        }
    }
}

/// Two branches take the same number easily.
#[test]
fn every_adr_has_a_number_of_its_own_and_every_reference_one_that_is_there() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut names: Vec<String> = std::fs::read_dir(root.join("docs/adr"))
        .expect("docs/adr")
        .map(|entry| entry.expect("entry").file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    for pair in names.windows(2) {
        assert_ne!(pair[0][..4], pair[1][..4], "two decisions with one number: {} and {}", pair[0], pair[1]);
    }
    for name in &names {
        let text = std::fs::read_to_string(root.join("docs/adr").join(name)).expect("UTF-8");
        let number: u32 = name[..4].parse().expect("a number");
        assert!(text.starts_with(&format!("# {number}. ")), "{name}: its title has another number");
    }
    let mut pages: Vec<(PathBuf, String)> = sources();
    let docs = std::fs::read_dir(root.join("docs")).expect("docs").map(|entry| entry.expect("entry").path());
    let markdown = docs.filter(|path| path.extension().is_some_and(|e| e == "md")).chain([root.join("ARCHITECTURE.md")]);
    pages.extend(markdown.map(|path| (path.clone(), std::fs::read_to_string(path).expect("UTF-8"))));
    for (path, text) in pages {
        for reference in text.split("adr/").skip(1) {
            let end = reference.find(".md").map_or(4, |at| at + 3);
            let named = &reference[..end.min(reference.len())];
            let there = names.iter().any(|name| name == named || named.len() == 4 && name.starts_with(named));
            assert!(there || !named.starts_with('0'), "{}: there is no docs/adr/{named}", path.display());
        }
    }
}

#[test]
fn every_adr_is_one_page() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/adr");
    for entry in std::fs::read_dir(dir).expect("docs/adr") {
        let path = entry.expect("entry").path();
        let lines = std::fs::read_to_string(&path).expect("UTF-8").lines().count();
        assert!(lines <= 60, "{} has {lines} lines, a page has 60", path.display());
    }
}
