//! The API keys of a running node. Only a node that was started without keys is open; deleting the
//! file does not open a node.

use std::path::Path;

use anyhow::Context;

use super::watched_file::WatchedFile;
use crate::config::Config;
use crate::gateway::auth::KeyTable;

/// Reads the keys that the configuration names; without a keys file the node is open.
///
/// # Errors
/// If the file cannot be used, or if the node has none and every page in every browser might use it.
pub fn load(config: &Config) -> anyhow::Result<WatchedFile<KeyTable>> {
    let Some(path) = &config.auth.keys_file else {
        anyhow::ensure!(
            !config.server.cors_origins.is_any(),
            "server.cors_origins = * on a node without keys would let every page in a browser on \
             this machine read and write: list the origins of your pages, or make a key (`rollmill \
             keys add`, auth.keys_file)"
        );
        return Ok(WatchedFile::absent(KeyTable::open()));
    };
    WatchedFile::read("auth.keys_file", path, read)
}

fn read(path: &Path) -> anyhow::Result<KeyTable> {
    KeyTable::load(path).context("`rollmill keys add` makes a keys file")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::OriginList;

    #[test]
    fn a_node_without_keys_lets_no_page_of_any_origin_in() {
        let any = Config::defaults()
            .with(|c| c.server.cors_origins = OriginList(vec![OriginList::ANY.to_owned()]));
        let why = load(&any).err().expect("refused").to_string();
        assert!(why.contains("server.cors_origins") && why.contains("rollmill keys add"), "{why}");
        let one = Config::defaults()
            .with(|c| c.server.cors_origins = OriginList(vec!["https://a.example".to_owned()]));
        assert!(load(&one).is_ok_and(|keys| keys.value.load().is_open()));
    }
}
