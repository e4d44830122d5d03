//! `rollmill completions` and `rollmill man`: both are made from the definitions of the commands,
//! so they are always those of the program that prints them.

use std::path::PathBuf;

use anyhow::Context;
use clap::{Args, Command};
use clap_complete::Shell;

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  rollmill man ~/.local/share/man/man1
  rollmill man ./man1 && man -l ./man1/rollmill-query.1")]
pub(super) struct ManArgs {
    /// Directory of the pages, made if it is missing; `man` looks for them in one called man1
    dir: PathBuf,
}

/// Prints the completion script of a shell.
#[allow(clippy::print_stdout)] // the output of the command
pub(super) fn print_completions(shell: Shell, mut command: Command) {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut command, "rollmill", &mut script);
    print!("{}", String::from_utf8_lossy(&script));
}

/// Writes one page for each command, replacing those of another release.
pub(super) fn write_pages(args: &ManArgs, command: Command) -> anyhow::Result<()> {
    let wrong = || format!("cannot write man pages to {}", args.dir.display());
    std::fs::create_dir_all(&args.dir).with_context(wrong)?;
    // Nobody needs a page about the help on help.
    clap_mangen::generate_to(command.disable_help_subcommand(true), &args.dir).with_context(wrong)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    /// Every command, as the name of its page.
    fn pages(command: &Command, name: &str) -> Vec<String> {
        let below = command.get_subcommands();
        let below = below.flat_map(|below| pages(below, &format!("{name}-{}", below.get_name())));
        std::iter::once(format!("{name}.1")).chain(below).collect()
    }

    #[test]
    fn every_command_has_a_man_page_with_its_options_and_examples() {
        let dir = tempfile::tempdir().expect("a directory");
        let args = ManArgs { dir: dir.path().join("deep").join("man1") };
        for _ in 0..2 {
            write_pages(&args, super::super::Cli::command()).expect("written, and written again");
        }
        let expected = pages(&super::super::Cli::command(), "rollmill");
        assert!(expected.len() > 30, "{expected:?}");
        for page in &expected {
            let text = std::fs::read_to_string(args.dir.join(page));
            assert!(text.is_ok_and(|text| text.contains(".SH SYNOPSIS")), "{page}");
        }
        assert_eq!(std::fs::read_dir(&args.dir).expect("it is there").count(), expected.len());
        let query = std::fs::read_to_string(args.dir.join("rollmill-query.1")).expect("a page");
        assert!(query.contains("order desc") && query.contains("\\-\\-agg"), "{query}");
    }

    #[test]
    fn scripts_know_commands_options_and_their_values() {
        for shell in [Shell::Bash, Shell::Zsh, Shell::Fish, Shell::Elvish, Shell::PowerShell] {
            let mut script = Vec::new();
            let mut command = super::super::Cli::command();
            clap_complete::generate(shell, &mut command, "rollmill", &mut script);
            let script = String::from_utf8(script).expect("text");
            for word in ["accounting", "check-config", "p99.9"] {
                // PowerShell and Elvish complete no values.
                let plain = matches!(shell, Shell::Elvish | Shell::PowerShell) && word == "p99.9";
                assert!(plain || script.contains(word), "{shell}: {word}");
            }
        }
    }
}
