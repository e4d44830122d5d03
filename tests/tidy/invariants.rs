//! Every invariant is kept by tests that exist, and checked where the running server itself knows.

use rollmill::invariants::Invariant;

use crate::source::{root, walk};

/// Every source file, tests too.
fn everything() -> String {
    let files = ["src", "tests"].into_iter().flat_map(|dir| walk(&root().join(dir), "rs"));
    files.map(|path| std::fs::read_to_string(path).expect("UTF-8")).collect()
}

#[test]
fn every_invariant_names_tests_that_exist() {
    let page = std::fs::read_to_string(root().join("ARCHITECTURE.md")).expect("the page");
    let code = everything();
    for invariant in Invariant::ALL {
        let row = page.lines().find(|line| line.starts_with(&format!("| {} |", invariant.id())));
        let row = row.unwrap_or_else(|| panic!("ARCHITECTURE.md says nothing of {}", invariant.id()));
        let tests: Vec<&str> = row.rsplit('|').nth(1).expect("a column").split('`').skip(1).step_by(2).collect();
        assert!(!tests.is_empty(), "{} names no test", invariant.id());
        for test in tests {
            assert!(code.contains(&format!("fn {test}(")), "{} names {test}, which is not there", invariant.id());
        }
    }
}
