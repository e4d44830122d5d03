//! The documentation pages: generated tables match the code, every link resolves, and every page is
//! in the index. `ROLLMILL_WRITE_DOCS=1` writes the tables.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Component, Path, PathBuf};

use rollmill::api::completeness::MISSING_REASONS;
use rollmill::gateway::codes::{CLOSE_CODES, ERROR_CODES, NumberedCode, PROXY_CODES};
use rollmill::model::event::EventErrorCode;
use rollmill::telemetry::{EVENTS_REJECTED, METRICS};

use crate::source::{product, root, walk};

fn read(path: &Path) -> String {
    std::fs::read_to_string(root().join(path))
        .unwrap_or_else(|why| panic!("{}: {why}", path.display()))
}

/// Checks that `made` follows the first `mark` of the page, or writes it there.
fn holds(page: &str, mark: &str, made: &str) {
    let text = read(Path::new(page));
    let at = text.find(mark).unwrap_or_else(|| panic!("{page}: no {mark:?}")) + mark.len();
    if std::env::var_os("ROLLMILL_WRITE_DOCS").is_some() {
        std::fs::write(root().join(page), format!("{}{made}", &text[..at])).expect("written");
        return;
    }
    assert!(
        text[at..] == *made,
        "{page} is not what the code says: `ROLLMILL_WRITE_DOCS=1 cargo test --test tidy pages` \
         writes it"
    );
}

#[test]
fn the_page_of_metrics_is_what_the_table_says() {
    let row = |metric: &rollmill::telemetry::MetricDefinition| {
        let kind = format!("{:?}", metric.kind).to_lowercase();
        let label = metric.label.map_or(String::new(), |(label, _)| format!("`{label}`"));
        format!("| `{}` | {kind} | {label} | {} |\n", metric.name, metric.help)
    };
    let rows: String = METRICS.iter().map(row).collect();
    holds("docs/reference/metrics.md", "\n|---|---|---|---|\n", &rows);
}

fn table(heads: [&str; 2], rows: impl Iterator<Item = (String, String)>) -> String {
    let rows: String = rows.map(|(code, means)| format!("| {code} | {means} |\n")).collect();
    format!("| {} | {} |\n|---|---|\n{rows}", heads[0], heads[1])
}

fn numbered(head: &str, codes: &[NumberedCode]) -> String {
    let rows = codes.iter().map(|code| (code.number.to_string(), code.means.to_owned()));
    table([head, "when"], rows)
}

#[test]
fn the_page_of_error_codes_is_what_the_tables_say() {
    let code = |code: &str| format!("`{code}`");
    let events = EventErrorCode::ALL.iter().map(|one| (code(one.name()), one.means().to_owned()));
    let requests: String = ERROR_CODES
        .iter()
        .map(|one| format!("| {} | `{}` | {} |\n", one.status, one.code, one.means))
        .collect();
    let reasons = MISSING_REASONS.iter().map(|(reason, means)| (code(reason), (*means).to_owned()));
    let made = format!(
        "\n## Events\n\nIn `errors` of an answer to `POST /v1/events`, and in acknowledgements of \
         a WebSocket. Only the named event is refused.\n\n{}\n## Requests\n\n\
         | status | code | means, and what to do |\n|--:|---|---|\n{requests}\n\
         ## Kafka REST Proxy\n\n`error_code` of `POST /topics/{{topic}}`.\n\n{}\n\
         ## Close codes of WebSockets\n\n{}\n## Why a shard is \
         missing from an answer\n\n`reason` in `completeness.missing`.\n\n{}",
        table(["code", "means"], events),
        numbered("number", PROXY_CODES),
        numbered("code", CLOSE_CODES),
        table(["reason", "means"], reasons),
    );
    holds("docs/reference/errors.md", "generated from `src/gateway/codes.rs`.\n", &made);
}

#[test]
fn every_code_of_an_error_is_in_one_table_and_in_use() {
    let code = |file: &str| product().iter().find(|source| source.shown() == file).expect("there");
    let elsewhere: String = product()
        .iter()
        .filter(|source| !source.shown().ends_with("gateway/codes.rs"))
        .map(|source| source.code.as_str())
        .collect();
    let pairs: BTreeSet<_> = ERROR_CODES.iter().map(|one| (one.status, one.code)).collect();
    assert_eq!(pairs.len(), ERROR_CODES.len(), "a code stands twice with one status");
    assert!(ERROR_CODES.is_sorted_by_key(|one| (one.status, one.code)), "by status, then by code");
    let unused = ERROR_CODES.iter().filter(|one| !elsewhere.contains(&format!("\"{}\"", one.code)));
    let unused: Vec<_> = unused.map(|one| one.code).collect();
    assert!(unused.is_empty(), "codes that no answer has: {unused:?}");

    let names: BTreeSet<_> = EventErrorCode::ALL.iter().map(|one| one.name()).collect();
    let counted =
        METRICS.iter().find(|metric| metric.name == EVENTS_REJECTED).expect("it is there");
    let counted: BTreeSet<_> = counted.label.expect("by code").1.iter().copied().collect();
    assert_eq!(counted.difference(&names).collect::<Vec<_>>(), [&"record_invalid"]);

    let interface: serde_json::Value =
        serde_json::from_str(&read(Path::new("src/gateway/openapi.json"))).expect("JSON");
    let mut published = BTreeSet::new();
    reasons(&interface, &mut published);
    let reasons: BTreeSet<_> = MISSING_REASONS.iter().map(|(name, _)| (*name).to_owned()).collect();
    assert_eq!(reasons, published);
    assert!(code("src/gateway/error.rs").code.contains("codes::is_known"), "who checks them?");
}

/// The values that the published interface allows for a `reason`.
fn reasons(value: &serde_json::Value, found: &mut BTreeSet<String>) {
    let serde_json::Value::Object(members) = value else {
        if let serde_json::Value::Array(items) = value {
            items.iter().for_each(|item| reasons(item, found));
        }
        return;
    };
    let allowed = value["reason"]["enum"].as_array().into_iter().flatten();
    found.extend(allowed.map(|name| name.as_str().expect("a word").to_owned()));
    members.values().for_each(|member| reasons(member, found));
}

#[test]
fn the_page_of_commands_is_what_they_say_of_themselves() {
    let section =
        |(command, help): (String, String)| format!("\n## `{command}`\n\n```text\n{help}```\n");
    let made: String = rollmill::cli::help().into_iter().map(section).collect();
    holds("docs/reference/cli.md", "it is generated.\n", &made);
}

/// Every documentation page, ADRs included, with its path from the root.
fn pages() -> BTreeMap<PathBuf, String> {
    let below = walk(&root().join("docs"), "md");
    let above =
        std::fs::read_dir(root()).expect("the root").map(|entry| entry.expect("entry").path());
    let all =
        below.into_iter().chain(above.filter(|path| path.extension().is_some_and(|e| e == "md")));
    all.map(|path| path.strip_prefix(root()).expect("below").to_owned())
        .map(|path| (path.clone(), read(&path)))
        .collect()
}

/// A page without its code blocks.
fn prose(text: &str) -> String {
    text.split("```").step_by(2).collect()
}

/// The link anchor of a heading.
fn anchors(text: &str) -> BTreeSet<String> {
    let text = prose(text);
    let headings = text.lines().filter(|line| line.starts_with('#'));
    let name = |heading: &str| {
        let kept = heading.trim_start_matches('#').trim().to_lowercase();
        kept.chars()
            .filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'))
            .map(|c| if c == ' ' { '-' } else { c })
            .collect()
    };
    headings.map(name).collect()
}

/// The path with `..` resolved.
fn normal(path: &Path) -> PathBuf {
    let mut found = PathBuf::new();
    for part in path.components() {
        if part == Component::ParentDir { _ = found.pop() } else { found.push(part) }
    }
    found
}

#[test]
fn every_link_leads_to_a_page_and_a_heading_that_are_there() {
    let pages = pages();
    assert!(pages.len() > 80, "only {} pages", pages.len());
    let (mut followed, mut wrong) = (0, Vec::new());
    for (page, text) in &pages {
        let text = prose(text);
        for link in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            if link.starts_with("http") || link.contains(' ') {
                continue;
            }
            followed += 1;
            let (path, anchor) = link.split_once('#').unwrap_or((link, ""));
            let target = match path {
                "" => page.clone(),
                _ => normal(&page.parent().expect("a file").join(path)),
            };
            let known = pages.get(&target).map(|text| anchors(text));
            let is_there = root().join(&target).exists();
            if !is_there || !anchor.is_empty() && !known.is_some_and(|all| all.contains(anchor)) {
                wrong.push(format!("{}: {link}", page.display()));
            }
        }
    }
    assert!(followed > 200, "only {followed} links found");
    assert!(wrong.is_empty(), "links that lead nowhere:\n{}", wrong.join("\n"));
}

#[test]
fn every_page_stands_in_the_index() {
    let index = read(Path::new("docs/README.md"));
    let missing: Vec<_> = pages()
        .into_keys()
        .filter_map(|page| page.strip_prefix("docs").ok().map(|page| page.display().to_string()))
        .filter(|page| {
            page != "README.md" && (!page.starts_with("adr/") || page.ends_with("README.md"))
        })
        .filter(|page| !index.contains(&format!("({page})")))
        .collect();
    assert!(missing.is_empty(), "docs/README.md names no {missing:?}");
}

/// Messages and comments refer to pages as `docs/how-to/verify.md`, possibly followed by a heading.
#[test]
fn every_page_that_code_and_configuration_name_is_there() {
    let pages = pages();
    let of = |dir: &str, kinds: &[&str]| -> Vec<PathBuf> {
        kinds.iter().flat_map(|kind| walk(&root().join(dir), kind)).collect()
    };
    let mut files = of("src", &["rs", "sql", "json"]);
    files.extend(of("tests", &["rs"]));
    files.extend(of("config", &["toml", "yml", "yaml", "json", "service"]));
    files.extend(of("docker", &["yaml"]));
    let (mut named, mut wrong) = (0, Vec::new());
    for file in files {
        // A string literal may continue on the next line.
        let text = std::fs::read_to_string(&file).expect("UTF-8").replace("\\\"", "\"");
        let text: String = text
            .split("\\\n")
            .enumerate()
            .map(|(at, part)| if at == 0 { part } else { part.trim_start() })
            .collect();
        for rest in text.split("docs/").skip(1) {
            let end = rest.find(|c: char| !(c.is_ascii_alphanumeric() || "-_/.".contains(c)));
            let page = rest[..end.unwrap_or(rest.len())].trim_end_matches('.');
            if !page.ends_with(".md") || page.ends_with("none.md") {
                continue;
            }
            named += 1;
            let heading = rest[page.len()..]
                .strip_prefix(", \"")
                .and_then(|heading| heading.split('"').next());
            let there = pages.get(&Path::new("docs").join(page)).is_some_and(|text| {
                heading.is_none_or(|heading| {
                    text.lines().any(|line| line.trim_start_matches('#') == format!(" {heading}"))
                })
            });
            if !there {
                wrong.push(format!("{}: docs/{page} {}", file.display(), heading.unwrap_or("")));
            }
        }
    }
    assert!(named > 25, "only {named} found");
    assert!(wrong.is_empty(), "there is no such page or heading:\n{}", wrong.join("\n"));
}
