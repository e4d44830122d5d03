//! The image's build, without a container engine: what of the source tree the build sees, what its
//! stages copy from each other, and the stage of the dashboard, whose commands run here.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &str) -> String {
    std::fs::read_to_string(root().join(path)).unwrap_or_else(|why| panic!("{path}: {why}"))
}

/// One instruction of a Dockerfile: its name, and the rest.
type Instruction = (String, String);

/// A stage: its name, or its number; its base; its instructions.
struct Stage {
    name: String,
    base: String,
    instructions: Vec<Instruction>,
}

/// The stages of the Dockerfile, with continued lines put together.
fn stages() -> Vec<Stage> {
    let text = read("docker/Dockerfile");
    let lines = text.lines().filter(|line| !line.trim_start().starts_with('#'));
    let joined = lines.collect::<Vec<_>>().join("\n").replace("\\\n", " ");
    let mut stages: Vec<Stage> = Vec::new();
    for line in joined.lines().filter(|line| !line.trim().is_empty()) {
        let (name, rest) = line.split_once(' ').expect("an instruction");
        if name == "FROM" {
            let (base, named) = rest.split_once(" AS ").unwrap_or((rest, ""));
            let number = stages.len().to_string();
            let name = if named.is_empty() { number } else { named.to_owned() };
            stages.push(Stage { name, base: base.to_owned(), instructions: Vec::new() });
        } else {
            let stage = stages.last_mut().expect("FROM comes first");
            stage.instructions.push((name.to_owned(), rest.to_owned()));
        }
    }
    stages
}

impl Stage {
    fn of<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.instructions.iter().filter(move |(of, _)| of == name).map(|(_, rest)| rest.as_str())
    }

    /// What is copied: from which stage, if not from the context; the sources; the target.
    fn copies(&self) -> Vec<(Option<String>, Vec<String>, String)> {
        self.of("COPY")
            .map(|rest| {
                let (from, rest) = match rest.strip_prefix("--from=") {
                    Some(rest) => {
                        let (from, rest) = rest.split_once(' ').expect("a source");
                        (Some(from.to_owned()), rest)
                    }
                    None => (None, rest),
                };
                let mut words: Vec<String> = rest.split_whitespace().map(str::to_owned).collect();
                let target = words.pop().expect("a target");
                (from, words, target)
            })
            .collect()
    }
}

/// What .dockerignore keeps from the build.
fn ignored() -> Vec<PathBuf> {
    let ignored: Vec<PathBuf> = read(".dockerignore").lines().map(PathBuf::from).collect();
    for pattern in &ignored {
        let text = pattern.display().to_string();
        assert!(!text.contains(['*', '!', '?']), "{text}: this test reads plain paths only");
    }
    ignored
}

/// Copies a file or folder of the tree, as far as the context has it.
fn copy(from: &Path, to: &Path, ignored: &[PathBuf]) {
    let within = from.strip_prefix(root()).expect("in the tree");
    if ignored.iter().any(|pattern| within == pattern) {
        return;
    }
    if from.is_dir() {
        std::fs::create_dir_all(to).expect("made");
        for entry in std::fs::read_dir(from).expect("a folder") {
            let path = entry.expect("an entry").path();
            copy(&path, &to.join(path.file_name().expect("a name")), ignored);
        }
    } else {
        std::fs::create_dir_all(to.parent().expect("a folder")).expect("made");
        std::fs::copy(from, to).expect("copied");
    }
}

/// Carries out the copies of a stage from the context into a folder that stands for its workdir.
fn copy_sources(stage: &Stage, to: &Path) {
    let ignored = ignored();
    for (from, sources, target) in stage.copies() {
        if from.is_some() {
            continue;
        }
        for source in sources {
            let path = root().join(&source);
            assert!(path.exists(), "{}: {source} is not there", stage.name);
            // A folder gives its content, a file keeps its name in a folder.
            let into = to.join(target.trim_start_matches("./"));
            let into = if path.is_dir() || !target.ends_with('/') {
                into
            } else {
                into.join(path.file_name().expect("a name"))
            };
            copy(&path, &into, &ignored);
        }
    }
}

#[test]
fn stages_copy_what_earlier_ones_make() {
    let stages = stages();
    let names: Vec<&str> = stages.iter().map(|stage| stage.name.as_str()).collect();
    assert_eq!(names, ["web", "build", "2"], "dashboard, binary, image");
    let mut copied = BTreeMap::new();
    for (at, stage) in stages.iter().enumerate() {
        for (from, sources, target) in stage.copies() {
            let Some(from) = from else { continue };
            assert!(names[..at].contains(&from.as_str()), "{}: no stage {from}", stage.name);
            copied.insert((stage.name.clone(), from), (sources.join(" "), target));
        }
    }
    // The build script embeds web/dist; the binary is what the last stage starts.
    let of = |to: &str, from: &str| copied[&(to.to_owned(), from.to_owned())].clone();
    assert_eq!(of("build", "web"), ("/web/dist".to_owned(), "web/dist".to_owned()));
    assert_eq!(stages[0].of("WORKDIR").collect::<Vec<_>>(), ["/web"]);
    assert_eq!(of("2", "build"), ("/rollmill".to_owned(), "/usr/local/bin/rollmill".to_owned()));
    let builds: Vec<&str> = stages[1].of("RUN").collect();
    assert!(builds.last().is_some_and(|run| run.contains("strip -o /rollmill ")), "{builds:?}");
    let before_cargo = |instruction: &Instruction| instruction.1.contains("cargo build");
    let cargo = stages[1].instructions.iter().position(before_cargo).expect("cargo build");
    let dist = |instruction: &Instruction| instruction.1.contains("--from=web");
    assert!(stages[1].instructions.iter().position(dist).expect("copied") < cargo);
}

#[test]
fn the_build_stage_sees_all_that_cargo_and_the_binary_are_made_of() {
    let work = tempfile::tempdir().expect("a directory");
    let stages = stages();
    copy_sources(&stages[1], work.path());
    // Reads the manifest, and looks for the file of each target.
    let checked = Command::new(env!("CARGO"))
        .args(["metadata", "--no-deps", "--offline", "--locked", "--format-version", "1"])
        .current_dir(work.path())
        .output()
        .expect("cargo runs");
    assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stderr));
    let mut included = 0;
    let mut folders = vec![work.path().join("src")];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).expect("a folder") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            if path.extension().is_none_or(|extension| extension != "rs") {
                continue;
            }
            let text = std::fs::read_to_string(&path).expect("text");
            let product = text.split("#[cfg(test)]").next().unwrap_or_default();
            for (_, rest) in product
                .match_indices("include_str!(\"")
                .map(|(at, start)| (at, &product[at + start.len()..]))
            {
                let file = rest.split('"').next().unwrap_or_default();
                let there = path.parent().expect("a folder").join(file);
                assert!(there.exists(), "{}: {file} is not copied", path.display());
                included += 1;
            }
        }
    }
    assert!(included > 3, "{included}");
    assert!(work.path().join("docs/README.md").exists(), "the pages are part of the binary");
    assert!(!work.path().join("web/dist").exists(), "it comes from the stage of the dashboard");
}

#[test]
fn the_stage_of_the_dashboard_builds_it_from_the_context_alone() {
    let has_npm = Command::new("npm").arg("--version").output().is_ok();
    if !has_npm {
        eprintln!("skipped: npm is missing, scripts/install-test-tools installs it");
        return;
    }
    let work = tempfile::tempdir().expect("a directory");
    let stage = stages().remove(0);
    let major = stage.base.strip_prefix("node:").and_then(|tag| tag.split('-').next());
    assert!(major.and_then(|tag| tag.parse::<u32>().ok()) >= Some(18), "{}", stage.base);
    copy_sources(&stage, work.path());
    for unwanted in ["node_modules", "dist"] {
        assert!(!work.path().join(unwanted).exists(), "{unwanted} is ours, not the context's");
    }
    for command in stage.of("RUN") {
        let done = Command::new("sh")
            .args(["-euc", command])
            .current_dir(work.path())
            // The packages are those of `make web`, so its cache has them.
            .env("npm_config_prefer_offline", "true")
            .output()
            .expect("sh runs");
        let said = [&done.stdout[..], &done.stderr].concat();
        assert!(done.status.success(), "{command}: {}", String::from_utf8_lossy(&said));
    }
    let page = std::fs::read_to_string(work.path().join("dist/index.html")).expect("a page");
    let assets: Vec<String> = std::fs::read_dir(work.path().join("dist/assets"))
        .expect("assets")
        .map(|entry| entry.expect("an entry").file_name().into_string().expect("text"))
        .collect();
    for (start, end) in [("app-", ".js"), ("style-", ".css"), ("icon-", ".svg")] {
        let found = assets.iter().find(|name| name.starts_with(start) && name.ends_with(end));
        let name = found.unwrap_or_else(|| panic!("no {start}*{end}: {assets:?}"));
        assert!(page.contains(&format!("/assets/{name}")), "{page}");
        assert!(end == ".svg" || assets.contains(&format!("{name}.gz")), "{assets:?}");
    }
}
