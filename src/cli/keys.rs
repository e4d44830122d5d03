//! `rollmill keys`: the file of API keys. A key is shown once and only its hash is kept; a running server reads the file again by itself.

use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use clap::{Args, Subcommand, ValueEnum};

use crate::clock::{Clock, SystemClock};
use crate::config;
use crate::gateway::auth::{KeysFile, Scope, StoredKey, new_key};

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  rollmill keys add --file keys.toml --tenant shop --scope write
  rollmill keys add --file keys.toml --tenant shop --scope read --scope admin --expires 90d
  rollmill keys list --file keys.toml
  rollmill keys revoke --file keys.toml rm_1a2b3c4d

Serve with ROLLMILL_AUTH_KEYS_FILE=keys.toml (or auth.keys_file in the configuration). A change of the file holds within two seconds.")]
pub(super) struct KeysArgs {
    #[command(subcommand)]
    command: Command,
    /// The keys file
    #[arg(long, global = true, env = "ROLLMILL_AUTH_KEYS_FILE", default_value = "keys.toml")]
    file: PathBuf,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make a key and print it, once
    Add {
        /// Whose events and metrics it opens
        #[arg(long)]
        tenant: String,
        /// What it may do; may be repeated
        #[arg(long = "scope", required = true)]
        scopes: Vec<ScopeArg>,
        /// How long it is valid, such as 90d [default: for ever]
        #[arg(long)]
        expires: Option<String>,
    },
    /// The keys, without what would open anything
    List {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Take a key away
    Revoke {
        /// The first characters of the key, as `list` shows them
        prefix: String,
    },
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum ScopeArg {
    Write,
    Read,
    Admin,
}

#[allow(clippy::print_stdout)] // the output of the command
pub(super) fn run(args: &KeysArgs) -> anyhow::Result<()> {
    let mut keys = read(&args.file)?;
    match &args.command {
        Command::Add { tenant, scopes, expires } => println!("{}", add(&args.file, keys, tenant, scopes, expires.as_deref())?),
        Command::List { json: true } => println!("{}", serde_json::to_string(&keys.keys.iter().map(shown).collect::<Vec<_>>())?),
        Command::List { json: false } => println!("{}", table(&keys)),
        Command::Revoke { prefix } => {
            let before = keys.keys.len();
            keys.keys.retain(|key| key.prefix != *prefix);
            if keys.keys.len() == before {
                bail!("{} holds no key {prefix}: see `rollmill keys list`", args.file.display());
            }
            write(&args.file, &keys)?;
            println!("revoked {prefix}");
        }
    }
    Ok(())
}

fn add(file: &Path, mut keys: KeysFile, tenant: &str, scopes: &[ScopeArg], expires: Option<&str>) -> anyhow::Result<String> {
    if !(1..=64).contains(&tenant.len()) || !tenant.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b)) {
        bail!("a tenant is 1 to 64 letters, digits, '-', '_' or '.': {tenant:?} is not");
    }
    let valid_ms = expires
        .map(|text| config::duration_ms(text).with_context(|| format!("--expires {text}: expected a duration such as 90d")))
        .transpose()?;
    let mut random = [0; 24];
    getrandom::fill(&mut random).map_err(|e| anyhow::anyhow!("no randomness for the key: {e}"))?;
    let (plain, prefix, sha256) = new_key(random);
    let scope = |scope: &ScopeArg| match scope {
        ScopeArg::Write => Scope::Write,
        ScopeArg::Read => Scope::Read,
        ScopeArg::Admin => Scope::Admin,
    };
    keys.keys.push(StoredKey {
        prefix,
        sha256,
        tenant: tenant.to_owned(),
        scopes: scopes.iter().map(scope).collect(),
        expires_ms: valid_ms.map(|ms| SystemClock.now().saturating_add(ms)),
    });
    write(file, &keys)?;
    Ok(plain)
}

fn read(file: &Path) -> anyhow::Result<KeysFile> {
    let text = match std::fs::read_to_string(file) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(KeysFile::default()),
        Err(error) => return Err(error).with_context(|| format!("cannot read {}", file.display())),
    };
    let parsed = if is_json(file) {
        serde_json::from_str(&text).map_err(anyhow::Error::from)
    } else {
        toml::from_str(&text).map_err(anyhow::Error::from)
    };
    parsed.with_context(|| format!("{} is no keys file", file.display()))
}

fn is_json(file: &Path) -> bool {
    file.extension().is_some_and(|extension| extension == "json")
}

/// Replaces the file as a whole, readable by its owner only: a reader sees the old keys or the new ones.
fn write(file: &Path, keys: &KeysFile) -> anyhow::Result<()> {
    use std::os::unix::fs::OpenOptionsExt;
    let text = if is_json(file) { serde_json::to_string_pretty(keys)? } else { toml::to_string(keys)? };
    let temporary = file.with_extension("new");
    let written =
        std::fs::File::options().write(true).create(true).truncate(true).mode(0o600).open(&temporary).and_then(|mut new| {
            new.write_all(text.as_bytes())?;
            new.sync_all()?;
            std::fs::rename(&temporary, file)
        });
    written.with_context(|| format!("cannot write {}", file.display()))
}

fn shown(key: &StoredKey) -> serde_json::Value {
    serde_json::json!({"prefix": key.prefix, "tenant": key.tenant, "scopes": key.scopes, "expires_ms": key.expires_ms})
}

fn table(keys: &KeysFile) -> String {
    if keys.keys.is_empty() {
        return "no keys".to_owned();
    }
    let mut table = comfy_table::Table::new();
    table.load_style(comfy_table::presets::NOTHING);
    table.set_header(["key", "tenant", "scopes", "expires"]);
    for key in &keys.keys {
        let scopes: Vec<String> = key.scopes.iter().map(|scope| format!("{scope:?}").to_lowercase()).collect();
        let expires = key.expires_ms.and_then(|ms| jiff::Timestamp::from_millisecond(ms).ok());
        let expires = expires.map_or_else(|| "never".to_owned(), |time| time.to_string());
        table.add_row([format!("{}…", key.prefix), key.tenant.clone(), scopes.join(","), expires]);
    }
    table.to_string()
}
