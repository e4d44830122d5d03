//! Names the commit of a release: `BUILD_COMMIT`, or what git says where it is at hand. Other
//! builds name none, or each commit would compile everything again.
//!
//! Embeds the dashboard, if `make web` has built it.

use std::fmt::Write as _;
use std::path::Path;
use std::process::Command;

fn main() {
    println!("cargo:rerun-if-env-changed=BUILD_COMMIT");
    println!("cargo:rerun-if-changed=build.rs");
    let told = std::env::var("BUILD_COMMIT").ok().filter(|commit| !commit.is_empty());
    let is_release = std::env::var("PROFILE").is_ok_and(|profile| profile == "release");
    if let Some(commit) = told.or_else(|| if is_release { from_git() } else { None }) {
        println!("cargo:rustc-env=BUILD_COMMIT={commit}");
    }
    // The folder is always there: a path that is missing would compile everything again each time.
    println!("cargo:rerun-if-changed=web/dist");
    let root = std::env::var("CARGO_MANIFEST_DIR").expect("cargo sets it");
    let out = std::env::var("OUT_DIR").expect("cargo sets it");
    let dist = Path::new(&root).join("web/dist");
    let (file, code) = (Path::new(&out).join("dashboard.rs"), dashboard(&dist));
    // Written again, the same file would compile everything again.
    if std::fs::read_to_string(&file).is_ok_and(|written| written == code) {
        return;
    }
    std::fs::write(file, code).expect("OUT_DIR can be written");
}

/// The constants that src/gateway/dashboard.rs includes.
fn dashboard(dist: &Path) -> String {
    let page = dist.join("index.html");
    if !page.exists() {
        return "const PAGE: Option<&str> = None;\nstatic ASSETS: &[Asset] = &[];\n".to_owned();
    }
    let mut names: Vec<_> = std::fs::read_dir(dist.join("assets"))
        .expect("the build of the dashboard has assets")
        .map(|entry| entry.expect("a readable folder").path())
        .filter(|path| path.extension().is_none_or(|extension| extension != "gz"))
        .collect();
    names.sort();
    let mut code = format!("const PAGE: Option<&str> = Some(include_str!({page:?}));\n");
    code.push_str("static ASSETS: &[Asset] = &[\n");
    for path in names {
        let name = path.file_name().unwrap_or_default();
        let packed = path.with_added_extension("gz");
        let gzip = if packed.exists() {
            format!("Some(include_bytes!({packed:?}))")
        } else {
            "None".to_owned()
        };
        let bytes = format!("include_bytes!({path:?})");
        writeln!(code, "    Asset {{ name: {name:?}, bytes: {bytes}, gzip: {gzip} }},")
            .expect("a string takes everything");
    }
    code.push_str("];\n");
    code
}

/// The commit, with a plus if the checkout differs from it.
fn from_git() -> Option<String> {
    let git = |args: &[&str]| {
        let output = Command::new("git")
            .args(args)
            .output()
            .ok()
            .filter(|output| output.status.success())?;
        String::from_utf8(output.stdout).ok().map(|text| text.trim().to_owned())
    };
    let commit = git(&["rev-parse", "--short=12", "HEAD"]).filter(|commit| !commit.is_empty())?;
    for path in
        [git(&["rev-parse", "--git-path", "HEAD"]), git(&["rev-parse", "--git-path", "logs/HEAD"])]
            .into_iter()
            .flatten()
    {
        println!("cargo:rerun-if-changed={path}");
    }
    let changed = git(&["status", "--porcelain", "--untracked-files=no"])
        .is_some_and(|changes| !changes.is_empty());
    Some(format!("{commit}{}", if changed { "+" } else { "" }))
}
