//! Which rooms, files and concrete backends may depend on which.

use std::collections::{BTreeMap, BTreeSet};

use crate::source::{Source, product};

/// Each room, and the rooms it may import besides itself and `clock`, `telemetry`, `invariants`.
const MATRIX: &[(&str, &[&str])] = &[
    ("clock", &["model"]),
    ("telemetry", &[]),
    ("invariants", &[]),
    ("api", &["model"]),
    ("model", &[]),
    ("promql", &["model"]),
    ("rules", &["model"]),
    ("collect", &["model", "rules"]),
    ("shards", &["model", "rules"]),
    ("config", &["model"]),
    ("persistence", &["model", "config"]),
    ("actors", &["model", "shards", "persistence"]),
    ("recompute", &["model", "rules", "shards", "persistence", "actors"]),
    ("supervision", &["model", "actors"]),
    ("query", &["model", "shards", "persistence", "actors"]),
    ("cluster", &["model", "shards", "persistence", "actors"]),
    ("operate", &["api", "model", "rules", "shards", "persistence", "actors"]),
    (
        "gateway",
        &[
            "api",
            "model",
            "promql",
            "collect",
            "config",
            "persistence",
            "query",
            "operate",
            "actors",
        ],
    ),
    (
        "node",
        &[
            "model",
            "collect",
            "shards",
            "config",
            "persistence",
            "actors",
            "supervision",
            "query",
            "recompute",
            "cluster",
            "operate",
            "gateway",
        ],
    ),
    ("migrate", &["model", "config", "persistence", "actors", "node"]),
    (
        "cli",
        &[
            "api",
            "model",
            "rules",
            "shards",
            "config",
            "persistence",
            "actors",
            "supervision",
            "query",
            "recompute",
            "gateway",
            "node",
            "migrate",
        ],
    ),
];

/// Backends behind a port; code that names one directly cannot use another.
const BACKENDS: &[&[&str]] = &[
    &["persistence", "log", "embedded"],
    &["persistence", "log", "kafka"],
    &["persistence", "store", "sqlite"],
    &["persistence", "store", "postgres"],
    &["persistence", "archive", "objects"],
    &["persistence", "archive", "location"],
    &["persistence", "cache", "redis"],
];

/// The only files outside `persistence` that name them: those that compose a node, and those that
/// move data from one backend to another.
const COMPOSES: &[&str] = &[
    "src/node/backends.rs",
    "src/migrate/checks.rs",
    "src/migrate/mod.rs",
    "src/migrate/move_topic.rs",
    "src/migrate/store.rs",
    "src/migrate/target_topic.rs",
    "src/node/migration_marker.rs",
    "src/node/offline.rs",
    "src/node/rebuild.rs",
];

/// Known import cycles, to be removed. None may be added, and a cycle that no longer exists is
/// removed from this list.
const KNOWN_CIRCLES: &[&str] = &[];

#[test]
fn imports_point_to_lower_rooms() {
    let mut wrong = Vec::new();
    for source in product().iter().filter(|source| source.room() != "lib") {
        let here = source.room();
        let allowed = MATRIX
            .iter()
            .find(|(name, _)| *name == here)
            .unwrap_or_else(|| panic!("unknown room {here}"))
            .1;
        for path in source.paths.iter().filter(|path| path[0] == "crate") {
            let other = path[1].as_str();
            let level_zero = matches!(other, "clock" | "telemetry" | "invariants");
            if other != here && !level_zero && !allowed.contains(&other) {
                wrong.push(format!(
                    "{}: {here} must not import {}",
                    source.shown(),
                    path.join("::")
                ));
            }
        }
    }
    assert!(wrong.is_empty(), "move the code or turn the dependency round:\n{}", wrong.join("\n"));
}

/// The modules of the product, to resolve paths in.
struct Modules<'a>(BTreeMap<&'a [String], &'a Source>);

impl<'a> Modules<'a> {
    fn all() -> Self {
        Self(
            product()
                .iter()
                .filter(|source| !source.path.ends_with("main.rs"))
                .map(|s| (s.module.as_slice(), s))
                .collect(),
        )
    }

    /// The module that defines what a path names. A re-exported name belongs to the module that it
    /// comes from.
    fn has(&self, from: &[String], path: &[String], depth: usize) -> Option<&'a [String]> {
        let mut at: Vec<String> = match path[0].as_str() {
            "crate" => Vec::new(),
            "self" => from.to_vec(),
            "super" => from[..from.len().checked_sub(1)?].to_vec(),
            child => [from, &[child.to_owned()]].concat(),
        };
        let mut found = self.0.get_key_value(at.as_slice())?;
        for (number, name) in path.iter().enumerate().skip(1) {
            match name.as_str() {
                "self" => continue,
                "super" => {
                    at.pop()?;
                }
                name => at.push(name.to_owned()),
            }
            if let Some(deeper) = self.0.get_key_value(at.as_slice()) {
                found = deeper;
                continue;
            }
            at.pop();
            let passed_on = found.1.names.get(name).filter(|_| depth < 8);
            return match passed_on {
                Some(origin) => {
                    let origin = [origin.as_slice(), &path[number + 1..]].concat();
                    self.has(found.0, &origin, depth + 1).or(Some(found.0))
                }
                None => Some(found.0),
            };
        }
        Some(found.0)
    }

    /// From each file to the files it uses. A child using its own ancestor does not count.
    fn arrows(&self) -> BTreeMap<&'a [String], BTreeSet<&'a [String]>> {
        let mut arrows = BTreeMap::new();
        for (&module, source) in &self.0 {
            let used = source.paths.iter().filter_map(|path| self.has(module, path, 0));
            let used: BTreeSet<_> = used.filter(|used| !module.starts_with(used)).collect();
            arrows.insert(module, used);
        }
        arrows
    }
}

#[test]
fn no_circle_of_files() {
    let arrows = Modules::all().arrows();
    assert!(
        arrows.values().map(BTreeSet::len).sum::<usize>() > 500,
        "too few arrows: are paths still found?"
    );
    let reached = |from: &[String]| {
        let (mut seen, mut pending) =
            (BTreeSet::new(), Vec::from_iter(arrows[from].iter().copied()));
        while let Some(next) = pending.pop() {
            if seen.insert(next) {
                pending.extend(arrows[next].iter().copied());
            }
        }
        seen
    };
    let reach: BTreeMap<_, _> = arrows.keys().map(|&module| (module, reached(module))).collect();
    let mut circles = BTreeSet::new();
    for (module, seen) in &reach {
        if seen.contains(module) {
            let circle: Vec<String> = seen
                .iter()
                .filter(|other| reach[*other].contains(module))
                .map(|m| m.join("::"))
                .collect();
            circles.insert(circle.join(", "));
        }
    }
    let new: Vec<_> = circles
        .iter()
        .filter(|circle| !KNOWN_CIRCLES.contains(&circle.as_str()))
        .cloned()
        .collect();
    assert!(new.is_empty(), "take what both need out into a file of its own:\n{}", new.join("\n"));
    let gone: Vec<_> = KNOWN_CIRCLES.iter().filter(|known| !circles.contains(**known)).collect();
    assert!(gone.is_empty(), "well done; take them out of KNOWN_CIRCLES: {gone:?}");
}

#[test]
fn concrete_backends_are_named_in_one_place() {
    let modules = Modules::all();
    let mut wrong = Vec::new();
    let outside =
        product().iter().filter(|source| source.room() != "persistence" && source.room() != "lib");
    for source in outside.filter(|source| !COMPOSES.contains(&source.shown().as_str())) {
        // A name re-exported by `node` belongs to `node`.
        for path in source
            .paths
            .iter()
            .filter(|path| path.starts_with(&["crate".to_owned(), "persistence".to_owned()]))
        {
            let named = modules.has(&source.module, path, 0).unwrap_or_default();
            let is_concrete = BACKENDS.iter().any(|backend| {
                named.iter().map(String::as_str).take(backend.len()).eq(backend.iter().copied())
            });
            if is_concrete {
                wrong.push(format!("{}: {}", source.shown(), path.join("::")));
            }
        }
    }
    assert!(
        wrong.is_empty(),
        "only {COMPOSES:?} name a backend; take a port, or hand it out through `node`:\n{}",
        wrong.join("\n")
    );
}
