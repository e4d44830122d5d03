//! The dependencies, as `deny.toml` allows them: licences, duplicate versions, sources. Known
//! vulnerabilities are left to cargo-deny (`make deps`): they appear without any change here, and a
//! test that fails depending on the date says nothing about a change.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

use serde_json::Value;

use crate::source::root;

fn policy() -> toml::Table {
    std::fs::read_to_string(root().join("deny.toml")).expect("deny.toml").parse().expect("TOML")
}

/// The packages that are compiled into the program or build it, without those that only tests need.
fn shipped() -> Vec<Value> {
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned());
    let platform = "x86_64-unknown-linux-gnu";
    let what = [
        "metadata",
        "--format-version",
        "1",
        "--features",
        "kafka-tls",
        "--filter-platform",
        platform,
    ];
    let output = Command::new(cargo)
        .args(what)
        .args(["--locked", "--offline"])
        .current_dir(root())
        .output()
        .expect("cargo runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let all: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let (packages, nodes) = (list(&all["packages"]), list(&all["resolve"]["nodes"]));
    let nodes: BTreeMap<&str, &Value> =
        nodes.iter().map(|node| (text(&node["id"]), node)).collect();
    let (mut seen, mut pending) = (BTreeSet::new(), vec![text(&all["resolve"]["root"])]);
    while let Some(id) = pending.pop() {
        if seen.insert(id) {
            let is_shipped =
                |dep: &&Value| list(&dep["dep_kinds"]).iter().any(|kind| kind["kind"] != "dev");
            pending.extend(
                list(&nodes[id]["deps"]).iter().filter(is_shipped).map(|dep| text(&dep["pkg"])),
            );
        }
    }
    packages
        .iter()
        .filter(|package| seen.contains(text(&package["id"])) && !package["source"].is_null())
        .cloned()
        .collect()
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

/// Whether an SPDX expression can be satisfied. `/` is the old form of `OR`; everything joined by
/// `AND` must be allowed.
fn is_met(expression: &str, allowed: &[&str]) -> bool {
    let spaced = expression.replace('/', " OR ").replace('(', " ( ").replace(')', " ) ");
    let words: Vec<&str> = spaced.split_whitespace().collect();
    any_of(&mut words.as_slice(), allowed)
}

fn any_of(words: &mut &[&str], allowed: &[&str]) -> bool {
    let mut met = all_of(words, allowed);
    while words.first() == Some(&"OR") {
        *words = &words[1..];
        met |= all_of(words, allowed);
    }
    met
}

fn all_of(words: &mut &[&str], allowed: &[&str]) -> bool {
    let mut met = licence(words, allowed);
    while words.first() == Some(&"AND") {
        *words = &words[1..];
        met &= licence(words, allowed);
    }
    met
}

fn licence(words: &mut &[&str], allowed: &[&str]) -> bool {
    let Some((first, rest)) = words.split_first() else { return false };
    *words = rest;
    if *first == "(" {
        let met = any_of(words, allowed);
        *words = words.strip_prefix(&[")"]).unwrap_or_default();
        return met;
    }
    match words {
        ["WITH", exception, rest @ ..] => {
            let whole = format!("{first} WITH {exception}");
            *words = rest;
            allowed.contains(&whole.as_str())
        }
        _ => allowed.contains(first),
    }
}

#[test]
fn licences_are_those_that_are_allowed() {
    let allowed = ["Apache-2.0", "MIT"];
    assert!(is_met("MIT/GPL-3.0", &allowed) && is_met("(MIT OR X) AND Apache-2.0", &allowed));
    assert!(
        !is_met("MIT AND X", &allowed)
            && !is_met("Apache-2.0 WITH LLVM-exception", &allowed)
            && !is_met("", &allowed)
    );
    let policy = policy();
    let allowed: Vec<&str> = policy["licenses"]["allow"]
        .as_array()
        .expect("a list")
        .iter()
        .filter_map(|l| l.as_str())
        .collect();
    let packages = shipped();
    assert!(packages.len() > 200, "only {} packages", packages.len());
    let wrong = packages.iter().filter(|package| !is_met(text(&package["license"]), &allowed));
    let wrong: Vec<_> = wrong
        .map(|package| format!("{}: {}", text(&package["name"]), package["license"]))
        .collect();
    assert!(
        wrong.is_empty(),
        "allow the licence in deny.toml, or do without:\n{}",
        wrong.join("\n")
    );
}

#[test]
fn versions_that_are_there_twice_are_named_with_who_needs_them() {
    let (policy, packages) = (policy(), shipped());
    let rows = policy["bans"]["skip"].as_array().expect("a list").iter();
    let known: BTreeSet<&str> = rows.filter_map(|row| row["crate"].as_str()).collect();
    let mut versions: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for package in &packages {
        versions.entry(text(&package["name"])).or_default().insert(text(&package["version"]));
    }
    let mut used = BTreeSet::new();
    let mut wrong = Vec::new();
    for (name, versions) in versions.iter().filter(|(_, versions)| versions.len() > 1) {
        let row_of = |version: &str| {
            let is_row = |row: &&&str| {
                row.strip_prefix(&format!("{name}@")).is_some_and(|of| is_within(version, of))
            };
            known.iter().find(is_row).copied()
        };
        used.extend(versions.iter().filter_map(|version| row_of(version)));
        let left: Vec<_> = versions.iter().filter(|version| row_of(version).is_none()).collect();
        if left.len() > 1 {
            wrong.push(format!("{name}: {left:?}"));
        }
    }
    wrong.extend(
        known
            .difference(&used)
            .map(|row| format!("{row}: nobody needs this row of deny.toml any more")),
    );
    assert!(
        wrong.is_empty(),
        "take one version, or name in deny.toml who needs the older one:\n{}",
        wrong.join("\n")
    );
}

/// Whether `7.2.4` is a version of `7.2`.
fn is_within(version: &str, of: &str) -> bool {
    version.strip_prefix(of).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
}

#[test]
fn everything_comes_from_the_registry() {
    let wrong =
        shipped().into_iter().filter(|package| !text(&package["source"]).starts_with("registry+"));
    let wrong: Vec<_> = wrong.map(|package| package["id"].to_string()).collect();
    assert!(wrong.is_empty(), "{wrong:?}");
}
