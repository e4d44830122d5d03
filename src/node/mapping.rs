//! The mapping of SDK events to metrics, as the configuration names its file.

use std::path::Path;

use anyhow::Context;

use super::watched_file::WatchedFile;
use crate::collect::Mapping;
use crate::config::Config;

/// Reads the mapping; without a file every event is taken by its name.
///
/// # Errors
/// If the file cannot be read, or has mistakes, which are listed.
pub(super) fn load(config: &Config) -> anyhow::Result<WatchedFile<Mapping>> {
    match &config.collect.mapping_file {
        None => Ok(WatchedFile::absent(Mapping::default())),
        Some(path) => WatchedFile::read("collect.mapping_file", path, read),
    }
}

fn read(path: &Path) -> anyhow::Result<Mapping> {
    let file = path.display();
    let text = std::fs::read_to_string(path)
        .with_context(|| format!("the file of collect.mapping_file cannot be read: {file}"))?;
    Mapping::parse(&text).with_context(|| format!("{file} cannot be used"))
}
