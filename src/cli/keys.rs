//! `rollmill keys`: creates, lists and revokes API keys in the keys file, which a running server
//! reloads by itself.
//!
//! A key is printed once, when it is created, and not stored: the file holds only its hash.

use std::path::PathBuf;

use anyhow::bail;
use clap::{Args, Subcommand, ValueEnum};
use serde_json::json;

use super::UsageError;
use crate::clock::{Clock, SystemClock};
use crate::config::Config;
use crate::gateway::auth::{Scope, StoredKey, new_key};
use crate::gateway::keys_file;

const DAY_MS: i64 = 86_400_000;
/// Longest lifetime of a key that expires, in days.
const MAX_DAYS: i64 = 36_500;
const MAX_TENANT: usize = 64;

#[derive(Debug, Args)]
pub(super) struct KeysArgs {
    #[command(subcommand)]
    command: KeysCommand,
}

#[derive(Debug, Args)]
struct FileArgs {
    /// The keys file [default: auth.keys_file of the configuration]
    #[arg(long)]
    file: Option<PathBuf>,
    /// The server's configuration file, to find the keys file
    #[arg(long)]
    config: Option<PathBuf>,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Subcommand)]
enum KeysCommand {
    /// Create a key, and print it this once
    #[command(after_help = "Examples:
  rollmill keys add --file keys.toml --tenant shop --scopes write,read
  KEY=$(rollmill keys add --config rollmill.toml --tenant shop --scopes read --expires 90d)

The server uses the file if auth.keys_file names it, and reloads it within a second or two of
each change.")]
    Add {
        /// Tenant whose events the key sends and reads
        #[arg(long, value_parser = tenant)]
        tenant: String,
        /// What the key may do, separated by commas
        #[arg(long, value_delimiter = ',', required = true)]
        scopes: Vec<ScopeArg>,
        /// Days until it expires, such as 90d [default: never]
        #[arg(long, value_parser = days)]
        expires: Option<i64>,
        #[command(flatten)]
        file: FileArgs,
    },
    /// List the keys by name, never the keys themselves
    #[command(after_help = "Examples:
  rollmill keys list --file keys.toml
  rollmill keys list --config rollmill.toml --json")]
    List {
        #[command(flatten)]
        file: FileArgs,
    },
    /// Revoke a key: a running server refuses it within a second or two
    #[command(after_help = "Example:
  rollmill keys revoke rm_1a2b3c4d --file keys.toml")]
    Revoke {
        /// Name of the key, its first characters, as `list` prints it
        name: String,
        #[command(flatten)]
        file: FileArgs,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum ScopeArg {
    /// Send events
    Write,
    /// Query rollups and metric names
    Read,
    /// Release and discard the tenant's own quarantined events
    Admin,
    /// Operate the node: its metrics and status, and records without a known tenant
    Operator,
}

impl From<ScopeArg> for Scope {
    fn from(scope: ScopeArg) -> Self {
        match scope {
            ScopeArg::Write => Scope::Write,
            ScopeArg::Read => Scope::Read,
            ScopeArg::Admin => Scope::Admin,
            ScopeArg::Operator => Scope::Operator,
        }
    }
}

fn tenant(text: &str) -> Result<String, String> {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    if text.is_empty() || text.len() > MAX_TENANT || !text.chars().all(plain) {
        return Err(format!("a tenant is 1 to {MAX_TENANT} letters, digits, '.', '_' or '-'"));
    }
    Ok(text.to_owned())
}

fn days(text: &str) -> Result<i64, String> {
    let number = text.strip_suffix('d').and_then(|number| number.parse::<i64>().ok());
    number
        .filter(|days| (1..=MAX_DAYS).contains(days))
        .ok_or_else(|| format!("write 1d to {MAX_DAYS}d"))
}

impl FileArgs {
    fn path(&self) -> anyhow::Result<PathBuf> {
        if let Some(path) = &self.file {
            return Ok(path.clone());
        }
        let config = Config::load(self.config.as_deref(), std::env::vars(), &[])?;
        let none = || {
            UsageError(
                "no keys file is configured: set auth.keys_file, or name a file with --file"
                    .to_owned(),
            )
        };
        Ok(config.auth.keys_file.clone().ok_or_else(none)?)
    }
}

pub(super) fn run(args: &KeysArgs) -> anyhow::Result<()> {
    match &args.command {
        KeysCommand::Add { tenant, scopes, expires, file } => add(tenant, scopes, *expires, file),
        KeysCommand::List { file } => list(file),
        KeysCommand::Revoke { name, file } => revoke(name, file),
    }
}

#[allow(clippy::print_stdout)] // the output of the command
fn add(
    tenant: &str,
    scopes: &[ScopeArg],
    expires: Option<i64>,
    file: &FileArgs,
) -> anyhow::Result<()> {
    let mut random = [0; 24];
    getrandom::fill(&mut random).map_err(|e| anyhow::anyhow!("no randomness for a key: {e}"))?;
    let (plain, prefix, sha256) = new_key(random);
    let mut wanted: Vec<Scope> = Vec::new();
    for scope in scopes.iter().copied().map(Scope::from) {
        if !wanted.contains(&scope) {
            wanted.push(scope);
        }
    }
    let expires_ms = expires.map(|days| SystemClock.now() + days * DAY_MS);
    let key = StoredKey { prefix, sha256, tenant: tenant.to_owned(), scopes: wanted, expires_ms };
    let shown = key.clone();
    let path = file.path()?;
    keys_file::edit(&path, |keys| {
        // `revoke` names a key by its prefix alone.
        if keys.keys.iter().any(|other| other.prefix == key.prefix) {
            return Err(format!("there is a key {} already: run the command again", key.prefix));
        }
        keys.keys.push(key);
        Ok(())
    })?;
    if file.json {
        let mut answer = json_of(&shown);
        answer["key"] = plain.into();
        println!("{answer}");
        return Ok(());
    }
    // The key alone on standard output, for `KEY=$(rollmill keys add ...)`.
    println!("{plain}");
    let until =
        until(&shown).map_or_else(|| "never expires".to_owned(), |at| format!("expires {at}"));
    eprintln!(
        "This is the only time that the key is shown. Tenant {tenant}, scopes {}, {until}; in {}.",
        scopes_of(&shown),
        path.display()
    );
    Ok(())
}

#[allow(clippy::print_stdout)] // the output of the command
fn list(file: &FileArgs) -> anyhow::Result<()> {
    let keys = keys_file::read(&file.path()?)?.keys;
    if file.json {
        println!("{}", json!({ "keys": keys.iter().map(json_of).collect::<Vec<_>>() }));
        return Ok(());
    }
    let now = SystemClock.now();
    let mut table = comfy_table::Table::new();
    table.load_style(comfy_table::presets::NOTHING);
    table.set_header(["name", "tenant", "scopes", "expires"]);
    for key in &keys {
        let over = key.expires_ms.is_some_and(|at| at <= now);
        let until = until(key).map_or_else(
            || "never".to_owned(),
            |at| if over { format!("{at} (expired)") } else { at },
        );
        table.add_row([key.prefix.clone(), key.tenant.clone(), scopes_of(key), until]);
    }
    println!("{}", if keys.is_empty() { "no keys".to_owned() } else { table.to_string() });
    Ok(())
}

#[allow(clippy::print_stdout)] // the output of the command
fn revoke(name: &str, file: &FileArgs) -> anyhow::Result<()> {
    let path = file.path()?;
    // Fails on a missing file: `edit` would create it.
    keys_file::read(&path)?;
    let revoked = keys_file::edit(&path, |keys| {
        let at = keys.keys.iter().position(|key| key.prefix == name);
        Ok(at.map(|at| keys.keys.remove(at)))
    })?;
    let Some(key) = revoked else {
        bail!("no key {name} in {}: `rollmill keys list` prints the names", path.display())
    };
    if file.json {
        println!("{}", json!({ "revoked": key.prefix, "tenant": key.tenant }));
    } else {
        println!("{} of tenant {} is revoked", key.prefix, key.tenant);
    }
    Ok(())
}

fn until(key: &StoredKey) -> Option<String> {
    key.expires_ms.map(|at| {
        jiff::Timestamp::from_millisecond(at).map_or_else(|_| at.to_string(), |at| at.to_string())
    })
}

fn scopes_of(key: &StoredKey) -> String {
    key.scopes.iter().map(|scope| format!("{scope:?}").to_lowercase()).collect::<Vec<_>>().join(",")
}

fn json_of(key: &StoredKey) -> serde_json::Value {
    json!({ "name": key.prefix, "tenant": key.tenant, "scopes": key.scopes, "expires": until(key) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_and_tenants_are_checked() {
        assert_eq!((days("1d"), days("90d")), (Ok(1), Ok(90)));
        for wrong in ["", "d", "0d", "-1d", "90", "36501d", "1h"] {
            assert!(days(wrong).is_err(), "{wrong}");
        }
        assert!(tenant("shop-1.eu_x").is_ok());
        for wrong in ["", "a b", "a\n", "ü", &"x".repeat(65)] {
            assert!(tenant(wrong).is_err(), "{wrong:?}");
        }
    }
}
