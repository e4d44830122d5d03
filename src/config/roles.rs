//! The roles of a node.

use super::lists::list_items;
use super::nearest_of;
use super::values::{ConfigValue, ValueKind};

/// The roles of a node. Any node may have any of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Roles {
    /// Accepts writes and appends them to the log.
    pub gateway: bool,
    /// Owns shards: folds, flushes and archives their records.
    pub shards: bool,
    /// Answers queries from store and live deltas.
    pub query: bool,
    /// Fills generations from the archive: those of its own shards, and those that no other node
    /// fills.
    pub replay: bool,
}

const NAMES: [&str; 4] = ["gateway", "shards", "query", "replay"];

impl Roles {
    /// All roles, the default.
    pub const ALL: Roles = Roles { gateway: true, shards: true, query: true, replay: true };

    /// Parses comma-separated names, in any order. Fails if a name is not a role (naming the
    /// nearest one), or if there is no name at all.
    pub fn parse(text: &str) -> Result<Self, String> {
        let names: Vec<&str> = list_items(text).collect();
        if let Some(wrong) = names.iter().find(|name| !NAMES.contains(name)) {
            return Err(format!(
                "no such role: {wrong}{}",
                nearest_of(wrong, NAMES.iter().map(|n| (*n).to_owned()))
            ));
        }
        if names.is_empty() {
            return Err(format!("a node needs a role: {}", NAMES.join(", ")));
        }
        let [gateway, shards, query, replay] = NAMES.map(|name| names.contains(&name));
        Ok(Self { gateway, shards, query, replay })
    }

    /// The names of the roles, in a fixed order.
    pub fn names(self) -> Vec<&'static str> {
        let has = [self.gateway, self.shards, self.query, self.replay];
        NAMES.into_iter().zip(has).filter_map(|(name, has)| has.then_some(name)).collect()
    }

    /// Whether the node reads or writes the store. A node that only accepts writes does not.
    pub fn needs_store(self) -> bool {
        self.shards || self.query || self.replay
    }

    /// Whether a node with these roles serves without others. Files of earlier releases name all
    /// roles but the one that only replays need.
    pub fn serve_alone(self) -> bool {
        Roles { replay: true, ..self } == Roles::ALL
    }

    /// Whether the node reads or writes the archive.
    pub fn needs_archive(self) -> bool {
        self.shards || self.replay
    }
}

impl ConfigValue for Roles {
    const KIND: ValueKind = ValueKind::Text;

    fn parse(text: &str) -> Result<Self, String> {
        Self::parse(text)
    }

    fn text(&self) -> String {
        self.names().join(",")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn roles_are_named_in_any_order() {
        let roles = Roles::parse(" query, gateway,").expect("roles");
        assert_eq!((roles.names(), roles.needs_store()), (vec!["gateway", "query"], true));
        assert_eq!(Roles::parse("gateway,shards,query,replay"), Ok(Roles::ALL));
        let replay = Roles::parse("replay").expect("a role");
        assert_eq!((replay.needs_store(), replay.needs_archive()), (true, true));
        assert!(!Roles::parse("gateway").expect("a role").needs_store());
        assert_eq!(
            Roles::parse("gatway").unwrap_err(),
            "no such role: gatway; did you mean gateway?"
        );
        assert!(Roles::parse(" , ").unwrap_err().contains("gateway, shards, query, replay"));
    }
}
