//! Every invariant is covered by existing tests, and checked in the running server wherever the
//! server can know it.

use rollmill::invariants::Invariant;

use crate::source::{product, root, walk};

/// Every source file, tests included.
fn everything() -> String {
    let files = ["src", "tests"].into_iter().flat_map(|dir| walk(&root().join(dir), "rs"));
    files.map(|path| std::fs::read_to_string(path).expect("UTF-8")).collect()
}

#[test]
fn every_invariant_names_tests_that_exist() {
    let page = std::fs::read_to_string(root().join("ARCHITECTURE.md")).expect("the page");
    let code = everything();
    for invariant in Invariant::ALL {
        // `### I1: …`, and below it a list.
        let head = format!("\n### {}: ", invariant.id());
        let section = page.split_once(&head).and_then(|(_, rest)| rest.split("\n#").next());
        let section =
            section.unwrap_or_else(|| panic!("ARCHITECTURE.md says nothing of {}", invariant.id()));
        let items = section.lines().filter_map(|line| line.strip_prefix("- `"));
        let tests: Vec<&str> = items.filter_map(|item| item.strip_suffix('`')).collect();
        assert!(!tests.is_empty(), "{} names no test", invariant.id());
        for test in tests {
            assert!(
                code.contains(&format!("fn {test}(")),
                "{} names {test}, which is not there",
                invariant.id()
            );
        }
    }
    let wide: Vec<_> = page.lines().filter(|line| line.chars().count() > 160).collect();
    assert!(wide.is_empty(), "nobody reads a line of more than 160 characters: {wide:?}");
}

/// Invariants that a running server cannot check, or not where they change, and what detects a
/// violation instead.
const FOUND_ELSEWHERE: &[(Invariant, &str)] = &[
    (Invariant::Liveness, "no moment breaks it: alerts watch lag and age"),
    (
        Invariant::Rebuildable,
        "`rollmill verify` and `rollmill rebuild` recompute, each in a process of its own",
    ),
];

#[test]
fn every_invariant_is_checked_in_the_server_or_says_why_not() {
    let code: String =
        product().iter().map(|source| source.code.split_whitespace().collect::<String>()).collect();
    let mut wrong = Vec::new();
    for invariant in Invariant::ALL {
        let is_checked = code.contains(&format!("check(Invariant::{invariant:?},"));
        if !is_checked && FOUND_ELSEWHERE.iter().all(|(other, _)| *other != invariant) {
            wrong.push(format!(
                "{} is checked nowhere in src/: check it, or say in FOUND_ELSEWHERE why not",
                invariant.id()
            ));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// A check that never fails in a test may be one that never can.
#[test]
fn every_check_is_broken_once_by_a_test() {
    let tests: String = walk(&root().join("src"), "rs")
        .iter()
        .map(|path| std::fs::read_to_string(path).expect("UTF-8"))
        .collect();
    let checked = Invariant::ALL
        .iter()
        .filter(|invariant| FOUND_ELSEWHERE.iter().all(|(other, _)| other != *invariant));
    let unbroken: Vec<_> = checked
        .filter(|invariant| !tests.contains(&format!("violations(Invariant::{invariant:?},")))
        .collect();
    assert!(unbroken.is_empty(), "break them with `invariants::tests::violations`: {unbroken:?}");
}
