//! The decisions in `docs/adr/`: numbers, status, date, size, index, and the references to them.

use std::path::PathBuf;

use crate::source::{product, root, walk};

/// A decision as read from its file.
struct Decision {
    file: String,
    number: u32,
    title: String,
    status: String,
    lines: usize,
}

fn decisions() -> Vec<Decision> {
    let files = walk(&root().join("docs/adr"), "md")
        .into_iter()
        .filter(|path| !path.ends_with("README.md"));
    let read = |path: PathBuf| {
        let file = path.file_name().expect("a name").to_string_lossy().into_owned();
        let text = std::fs::read_to_string(&path).expect("UTF-8");
        let number = file[..4].parse().unwrap_or_else(|_| panic!("{file} begins with no number"));
        let title = text.lines().next().unwrap_or_default().strip_prefix(&format!("# {number}. "));
        let title =
            title.unwrap_or_else(|| panic!("{file}: its title has another number")).to_owned();
        let status =
            text.lines().nth(2).and_then(|line| line.strip_prefix("Status: ")).unwrap_or_else(
                || {
                    panic!(
                        "{file}: its third line is no `Status: accepted, 2026-11-28` or `Status: \
                         superseded by 33, 2026-11-28`"
                    )
                },
            );
        Decision { number, title, status: status.to_owned(), lines: text.lines().count(), file }
    };
    files.map(read).collect()
}

#[test]
fn every_decision_is_one_page_with_a_status_and_a_date() {
    for Decision { file, status, lines, .. } in decisions() {
        assert!(lines <= 60, "{file} has {lines} lines, a page has 60");
        let (state, date) =
            status.rsplit_once(", ").unwrap_or_else(|| panic!("{file}: no date in {status:?}"));
        let known = state == "accepted"
            || state.strip_prefix("superseded by ").is_some_and(|by| by.parse::<u32>().is_ok());
        assert!(known, "{file}: its status is {state:?}: accepted, or superseded by a number");
        let digits = date
            .split('-')
            .map(|part| part.bytes().all(|b| b.is_ascii_digit()).then_some(part.len()));
        assert!(digits.eq([Some(4), Some(2), Some(2)]), "{file}: {date:?} is no date");
    }
}

#[test]
fn the_index_of_decisions_is_what_they_say() {
    let mut index = "# Decisions\n\nWhy things are as they are. A decision that is given up \
                     stays, with `superseded by` and the number of the one that took its \
                     place.\n15 was never used.\n\n| | decision | status |\n|--:|---|---|\n"
        .to_owned();
    for Decision { file, number, title, status, .. } in decisions() {
        index.push_str(&format!("| {number} | [{title}]({file}) | {status} |\n"));
    }
    let path = root().join("docs/adr/README.md");
    if std::env::var_os("ROLLMILL_WRITE_DOCS").is_some() {
        std::fs::write(&path, &index).expect("written");
    }
    let page = std::fs::read_to_string(path).unwrap_or_default();
    assert!(
        page == index,
        "docs/adr/README.md is out of date: `ROLLMILL_WRITE_DOCS=1 cargo test --test tidy` writes \
         it"
    );
}

/// Two branches easily take the same number.
#[test]
fn every_decision_has_a_number_of_its_own_and_every_reference_one_that_is_there() {
    let names: Vec<String> = decisions().into_iter().map(|decision| decision.file).collect();
    for pair in names.windows(2) {
        assert_ne!(
            pair[0][..4],
            pair[1][..4],
            "two decisions with one number: {} and {}",
            pair[0],
            pair[1]
        );
    }
    let mut pages: Vec<(PathBuf, String)> =
        product().iter().map(|source| (source.path.clone(), source.text.clone())).collect();
    let markdown =
        walk(&root().join("docs"), "md").into_iter().chain([root().join("ARCHITECTURE.md")]);
    pages
        .extend(markdown.map(|path| (path.clone(), std::fs::read_to_string(path).expect("UTF-8"))));
    for (path, text) in pages {
        for reference in text.split("adr/").skip(1) {
            let end = reference.find(".md").map_or(4, |at| at + 3);
            let named = &reference[..end.min(reference.len())];
            let there = names
                .iter()
                .any(|name| name == named || named.len() == 4 && name.starts_with(named));
            assert!(
                there || !named.starts_with('0'),
                "{}: there is no docs/adr/{named}",
                path.display()
            );
        }
    }
}
