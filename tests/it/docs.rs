//! The docs match the program: every command line in them parses, and every shell block runs
//! unchanged or states why it cannot run here.
//!
//! Each block runs in a directory of its page, in page order, next to a node whose data is `./data`
//! there. `# {…}` in a block is the output of the preceding command. `<!-- not run: WHY -->` before
//! a block skips it; `<!-- stopped -->` stops the node for it.

use std::path::{Path, PathBuf};
use std::process::Command;

use rollmill::cli;

use crate::support::{Server, free_port, wait_until};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The README and every page of docs/, except the ADRs, with their paths.
fn pages() -> Vec<(String, String)> {
    let (mut found, mut pending) = (vec![root().join("README.md")], vec![root().join("docs")]);
    while let Some(dir) = pending.pop() {
        for path in std::fs::read_dir(dir).expect("docs/").map(|entry| entry.expect("entry").path())
        {
            if path.is_dir() && !path.ends_with("adr") {
                pending.push(path);
            } else if path.extension().is_some_and(|e| e == "md") {
                found.push(path);
            }
        }
    }
    found.sort();
    let read = |path: &PathBuf| std::fs::read_to_string(path).expect("UTF-8");
    let name =
        |path: &PathBuf| path.strip_prefix(root()).expect("below the root").display().to_string();
    found.iter().map(|path| (name(path), read(path))).collect()
}

/// A shell block, and the directive on the line before it.
struct Block {
    page: String,
    line: usize,
    note: Option<String>,
    text: String,
}

fn blocks(page: &str, text: &str) -> Vec<Block> {
    let (mut found, mut open): (Vec<Block>, Option<Block>) = (Vec::new(), None);
    let mut before = "";
    for (number, line) in text.lines().enumerate() {
        if line.starts_with("```") {
            match open.take() {
                Some(block) => found.push(block),
                None if line == "```sh" => {
                    let note = before
                        .strip_prefix("<!-- ")
                        .and_then(|note| note.strip_suffix(" -->"))
                        .map(str::to_owned);
                    open = Some(Block {
                        page: page.to_owned(),
                        line: number + 1,
                        note,
                        text: String::new(),
                    });
                }
                // A block in another language: nothing in it is shell.
                None => {
                    open = Some(Block {
                        page: String::new(),
                        line: 0,
                        note: None,
                        text: String::new(),
                    })
                }
            }
        } else if let Some(block) = &mut open {
            block.text.push_str(line);
            block.text.push('\n');
        }
        before = line;
    }
    assert!(open.is_none(), "{page}: a block does not end");
    found.retain(|block| !block.page.is_empty());
    found
}

/// The `rollmill` command lines in a piece of shell, split into words, without comments, other
/// programs, variables and redirections.
fn commands(shell: &str) -> Vec<Vec<String>> {
    let joined = shell.replace("\\\n", " ").replace("\\|", "/");
    let lines = joined.lines().map(|line| line.split(" #").next().unwrap_or_default());
    let parts = lines.flat_map(|line| {
        line.split(['|', ';'])
            .flat_map(|part| part.split("&&"))
            .map(str::to_owned)
            .collect::<Vec<_>>()
    });
    let mut found = Vec::new();
    for part in parts {
        let words: Vec<&str> = part.split_whitespace().collect();
        let ours = |word: &str| word == "rollmill" || word.ends_with("/rollmill");
        // Variables may be assigned before the command.
        let Some(at) = words.iter().position(|word| ours(word)) else { continue };
        if words[..at].iter().all(|word| word.contains('=')) {
            let rest = words[at + 1..]
                .iter()
                .take_while(|word| !word.starts_with(['>', '<']))
                // What a variable holds is known to the shell alone; a number is of every kind.
                .map(|word| if word.starts_with("\"$") { "1" } else { word.trim_matches('\'') })
                .map(str::to_owned);
            found.push(rest.collect());
        }
    }
    found
}

/// The text between backticks outside of blocks.
fn inline(text: &str) -> Vec<&str> {
    text.lines()
        .filter(|line| !line.starts_with("```"))
        .flat_map(|line| line.split('`').skip(1).step_by(2))
        .collect()
}

/// Expands `quarantine list/release/discard` into three commands.
fn alternatives(words: &[String]) -> Vec<Vec<String>> {
    let at = words.iter().position(|word| {
        word.contains('/') && word.split('/').all(|w| w.bytes().all(|b| b.is_ascii_lowercase()))
    });
    match at.filter(|at| *at == 1) {
        None => vec![words.to_vec()],
        Some(at) => words[at]
            .split('/')
            .map(|one| [&words[..at], &[one.to_owned()], &words[at + 1..]].concat())
            .collect(),
    }
}

#[test]
fn every_command_line_in_the_pages_is_one_of_ours() {
    let (mut seen, mut wrong) = (0, Vec::new());
    for (page, text) in pages() {
        let shown = blocks(&page, &text).into_iter().map(|block| block.text);
        let named = inline(&text)
            .into_iter()
            .filter(|code| code.starts_with("rollmill "))
            .map(str::to_owned);
        for command in shown
            .chain(named)
            .flat_map(|code| commands(&code))
            .flat_map(|words| alternatives(&words))
        {
            // `…` and `[FILE]` are placeholders; optional words are dropped.
            if command.iter().any(|word| word.contains('…')) {
                continue;
            }
            let words: Vec<&str> =
                command.iter().filter(|word| !word.starts_with('[')).map(String::as_str).collect();
            seen += 1;
            let error = cli::check(&words).err().unwrap_or_default();
            // Prose may name a command without its required arguments, but no unknown command or
            // option.
            let named_only = error.contains("required arguments were not provided")
                || error.contains("Usage: rollmill");
            let unknown = ["unexpected argument", "unrecognized subcommand", "invalid value"]
                .iter()
                .any(|why| error.contains(why));
            if !error.is_empty() && (unknown || !named_only) {
                wrong.push(format!("{page}: rollmill {}: {error}", words.join(" ")));
            }
        }
    }
    assert!(seen > 60, "only {seen} found");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn mistakes_in_a_page_are_found() {
    let page = "`rollmill keys add --tenant shop --scope write`\n```sh\nX=1 rollmill verify \
                --nope | cat  # why\nls rollmill\n```\n";
    let found: Vec<_> = blocks("p", page).iter().flat_map(|block| commands(&block.text)).collect();
    assert_eq!(found, [["verify", "--nope"]]);
    assert!(cli::check(&["verify", "--nope"]).is_err());
    assert_eq!(inline(page)[0], "rollmill keys add --tenant shop --scope write");
    assert!(cli::check(&["keys", "add", "--tenant", "shop", "--scope", "write"]).is_err());
    let list = ["quarantine", "list/discard"].map(str::to_owned);
    assert_eq!(alternatives(&list), [["quarantine", "list"], ["quarantine", "discard"]]);
}

/// A directory in which the pages' commands find the files they name.
struct PageSandbox {
    dir: tempfile::TempDir,
    port: u16,
    server: Option<Server>,
}

impl PageSandbox {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        std::fs::create_dir_all(dir.path().join("target/release")).expect("made");
        for name in ["rollmill", "target/release/rollmill"] {
            std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_rollmill"), dir.path().join(name))
                .expect("linked");
        }
        let mut sandbox = Self { dir, port: free_port(), server: None };
        sandbox.start();
        let event = |day: u32| {
            let origin = ["EWR", "JFK", "LGA"][day as usize % 3];
            let head = r#""metric":"departure_delay""#;
            let when = format!("2013-07-0{day}T10:00:00Z");
            let labels = format!(r#"{{"origin":"{origin}"}}"#);
            format!(r#"{{{head},"timestamp":"{when}","value":{day},"labels":{labels}}}"#)
        };
        let flights: Vec<String> = (1..8).map(event).collect();
        let now = jiff::Timestamp::now();
        let view = |days: i64| {
            let at = now - jiff::SignedDuration::from_hours(24 * days);
            let plan = ["free", "team", "company"][days as usize % 3];
            let plan = format!(r#"{{"plan":"{plan}"}}"#);
            format!(r#"{{"metric":"page_view","timestamp":"{at}","properties":{plan}}}"#)
        };
        let events: Vec<String> = flights.into_iter().chain((30..60).map(view)).collect();
        let server = sandbox.server.as_ref().expect("it runs");
        assert_eq!(server.post(&format!("[{}]", events.join(","))).0, 202);
        // In the store, where a replay looks for its metric.
        wait_until("it is flushed", || server.accounted()[0] == events.len() as u64);
        sandbox
    }

    fn start(&mut self) {
        let settings = [("archive.max_delay", "200ms"), ("flush.interval", "200ms")];
        self.server = Some(Server::start_on(&self.dir.path().join("data"), self.port, &settings));
    }

    fn run(&mut self, block: &Block) {
        let stopped = block.note.as_deref() == Some("stopped");
        if stopped {
            assert_eq!(self.server.take().expect("it runs").stop(), Some(0));
        }
        let script = format!(
            "set -euo pipefail\n{}",
            block.text.replace("127.0.0.1:8080", &format!("127.0.0.1:{}", self.port))
        );
        let mut command = Command::new("bash");
        std::env::vars()
            .filter(|(name, _)| name.starts_with("ROLLMILL_"))
            .for_each(|(name, _)| _ = command.env_remove(name));
        let path =
            format!("{}:{}", self.dir.path().display(), std::env::var("PATH").unwrap_or_default());
        let ran = command
            .args(["-c", &script])
            .current_dir(self.dir.path())
            .env("PATH", path)
            .env("ROLLMILL_URL", format!("http://127.0.0.1:{}", self.port))
            .output()
            .expect("bash runs");
        let (stdout, stderr) =
            (String::from_utf8_lossy(&ran.stdout), String::from_utf8_lossy(&ran.stderr));
        let location = format!("{}, line {}", block.page, block.line);
        assert!(ran.status.success(), "{location}: {}\n{stdout}\n{stderr}", ran.status);
        for refusal in ["{\"error\":", "rollmill:"] {
            assert!(
                !stdout.contains(refusal) && !stderr.contains(refusal),
                "{location}:\n{stdout}\n{stderr}"
            );
        }
        for promised in block.text.lines().filter_map(|line| line.strip_prefix("# {")) {
            assert!(
                stdout.contains(&format!("{{{promised}")),
                "{location} promises {{{promised} and prints:\n{stdout}"
            );
        }
        if stopped {
            self.start();
        }
    }
}

#[test]
fn every_block_of_shell_in_the_pages_runs_or_says_why_not() {
    let mut sandbox = PageSandbox::new();
    let mut ran = 0;
    for (page, text) in pages() {
        for block in blocks(&page, &text) {
            match block.note.as_deref() {
                Some(note) if note.starts_with("not run: ") => {
                    assert!(note.len() > 20, "{page}, line {}: say why", block.line)
                }
                _ => {
                    sandbox.run(&block);
                    ran += 1;
                }
            }
        }
    }
    assert!(ran >= 5, "only {ran} blocks ran");
}
