//! Configuration: one TOML file, then environment variables, then flags. All mistakes are reported
//! at once.
//!
//! One table (`keys.rs`) defines the typed [`Config`], its defaults, its parser, the environment
//! variables and the reference pages. The key `accept.max_age` is the field
//! `config.accept.max_age`, and `ROLLMILL_ACCEPT_MAX_AGE` in the environment.

mod kafka;
mod keys;
mod lists;
#[cfg(test)]
mod pages;
mod roles;
mod service_links;
mod table;
mod values;

use std::path::Path;
use std::sync::LazyLock;

pub use kafka::{KafkaProperties, PassedGaps};
pub use keys::*;
pub use lists::{HostList, OriginList};
pub use roles::Roles;
use service_links::is_service_link;
pub use table::KeyEntry;
pub(crate) use table::key;
pub use values::{ByteSize, SecretUrl, ValueKind, millis};

use crate::model::suggest::nearest_name;

/// Everything that is wrong with a configuration, one message for each mistake.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the configuration has {} mistake(s):\n{}", .0.len(), .0.join("\n"))]
pub struct ConfigErrors(pub Vec<String>);

/// Every key with its default.
pub static KEYS: LazyLock<Vec<KeyEntry>> = LazyLock::new(|| Config::defaults().entries());

impl Config {
    /// Reads the file, if one is given, then the environment, then the flags. Later sources win.
    ///
    /// # Errors
    /// All mistakes at once, each with its source, and with the nearest known key for an unknown
    /// one.
    pub fn load(
        file: Option<&Path>,
        env: impl Iterator<Item = (String, String)>,
        flags: &[(&str, String)],
    ) -> Result<Self, ConfigErrors> {
        let (config, mut mistakes) = Self::read(file, env, flags);
        config.check_together(&mut mistakes);
        config.check_shared(&mut mistakes);
        if mistakes.is_empty() { Ok(config) } else { Err(ConfigErrors(mistakes)) }
    }

    /// Like [`Config::load`], for commands that need only one of a cluster's servers: it does not
    /// check that log, store and archive are all shared. Reports all mistakes at once, too.
    pub fn load_part(
        file: Option<&Path>,
        env: impl Iterator<Item = (String, String)>,
        flags: &[(&str, String)],
    ) -> Result<Self, ConfigErrors> {
        let (config, mut mistakes) = Self::read(file, env, flags);
        config.check_together(&mut mistakes);
        if mistakes.is_empty() { Ok(config) } else { Err(ConfigErrors(mistakes)) }
    }

    fn read(
        file: Option<&Path>,
        env: impl Iterator<Item = (String, String)>,
        flags: &[(&str, String)],
    ) -> (Self, Vec<String>) {
        let mut mistakes = Vec::new();
        let mut texts: Vec<(String, String, String)> = Vec::new();
        if let Some(path) = file {
            match read_file(path) {
                Ok(pairs) => {
                    texts.extend(pairs.into_iter().map(|(k, v)| (path.display().to_string(), k, v)))
                }
                Err(why) => mistakes.push(format!("{}: {why}", path.display())),
            }
        }
        for (name, value) in env.filter(|(name, _)| {
            name.starts_with("ROLLMILL_") && !name.starts_with("ROLLMILL_TEST_")
        }) {
            // Unknown variables are mistakes, because a typo would silently leave a default in
            // force.
            match KEYS.iter().find(|key| key.env() == name) {
                Some(key) => {
                    texts.push((format!("environment {name}"), key.name.to_owned(), value))
                }
                None if IGNORED.contains(&name.as_str()) || is_service_link(&name, &value) => {}
                None => {
                    let nearest = nearest_of(&name, KEYS.iter().map(KeyEntry::env));
                    mistakes.push(format!("environment {name}: no such key{nearest}"));
                }
            }
        }
        texts.extend(
            flags
                .iter()
                .map(|(key, value)| ("command line".to_owned(), (*key).to_owned(), value.clone())),
        );
        let mut config = Self::defaults();
        // In the order of file, environment and flags: a later value replaces an earlier one.
        for (place, name, text) in texts {
            match config.set(&name, &text) {
                Some(Ok(())) => {}
                Some(Err(refusal)) if refusal.is_secret => {
                    // Without the text, which may contain a password.
                    mistakes.push(format!("{place}: {name}: {}", refusal.why))
                }
                Some(Err(refusal)) => {
                    mistakes.push(format!("{place}: {name} = {text:?}: {}", refusal.why))
                }
                None => {
                    let nearest = nearest_of(&name, KEYS.iter().map(|key| key.name.to_owned()));
                    mistakes.push(format!("{place}: {name}: no such key{nearest}"));
                }
            }
        }
        (config, mistakes)
    }

    /// Checks that a node on Kafka uses a shared store and archive: shards move between nodes, so
    /// what they write must not stay on one.
    fn check_shared(&self, mistakes: &mut Vec<String>) {
        if self.kafka.brokers.is_none() {
            return;
        }
        for (key, url) in
            [(key!(store.url), &self.store.url), (key!(archive.url), &self.archive.url)]
        {
            if url.is_some() {
                continue;
            }
            mistakes.push(format!(
                "kafka.brokers is set and {key} is not: shards move between nodes, so what they \
                 write must not stay on one"
            ));
        }
    }

    fn check_together(&self, mistakes: &mut Vec<String>) {
        if self.supervision.backoff_min > self.supervision.backoff_max {
            mistakes.push("supervision.backoff_min is above supervision.backoff_max".to_owned());
        }
        self.check_cluster(mistakes);
        if self.accept.max_event_bytes > self.accept.max_body {
            mistakes.push("accept.max_event_bytes is above accept.max_body".to_owned());
        }
        let max_age = self.accept.max_age;
        if !self.rollups.keep.is_zero() && self.rollups.keep < max_age {
            mistakes.push(
                "rollups.keep is below accept.max_age: accepted events would be dropped; raise \
                 it, or set it to 0"
                    .to_owned(),
            );
        }
        if !self.archive.keep.is_zero() && self.archive.keep < max_age {
            mistakes.push(
                "archive.keep is below accept.max_age: accepted events could not be recomputed; \
                 raise it, or set it to 0"
                    .to_owned(),
            );
        }
        if !self.node.roles.serve_alone() && self.is_embedded() {
            mistakes.push(format!(
                "node.roles = {:?}: the embedded log and SQLite belong to one process, so this \
                 node needs every role: leave the key out, or configure a log and a store that \
                 nodes share",
                self.node.roles.names().join(",")
            ));
        }
    }

    fn check_cluster(&self, mistakes: &mut Vec<String>) {
        let cluster = &self.cluster;
        let tls = [&cluster.cert, &cluster.key, &cluster.ca].map(Option::is_none);
        if tls.contains(&true) && tls.contains(&false) {
            mistakes.push(
                "TLS between nodes takes all three: cluster.cert, cluster.key and cluster.ca"
                    .to_owned(),
            );
        }
        if cluster.listen.is_none() {
            return;
        }
        if cluster.call_timeout * 2 > self.query.deadline {
            mistakes.push(
                "cluster.call_timeout is above half of query.deadline: a query may ask twice"
                    .to_owned(),
            );
        }
        if cluster.dead_after < cluster.heartbeat * 2 {
            mistakes.push(
                "cluster.dead_after is below twice cluster.heartbeat: one lost heartbeat would be \
                 a dead node"
                    .to_owned(),
            );
        }
    }

    /// A changed copy, unchecked.
    #[cfg(test)]
    pub fn with(mut self, change: impl FnOnce(&mut Self)) -> Self {
        change(&mut self);
        self
    }

    /// Whether the log or the store belongs to this process alone.
    fn is_embedded(&self) -> bool {
        self.store.url.is_none() || self.kafka.brokers.is_none()
    }

    /// The complete configuration as a file that would produce it again. Keys with a password are
    /// written as comments, with the password masked.
    pub fn to_toml(&self) -> String {
        let line = |entry: &KeyEntry| {
            let remark =
                if entry.is_secret { "# holds a password, which is not shown: " } else { "" };
            format!("{remark}{} = {}\n", entry.name, entry.toml())
        };
        self.entries().iter().map(line).collect()
    }
}

/// Variables with our prefix that are not keys: the client's address and key, and a secret that
/// must not appear in any listing of the keys.
const IGNORED: &[&str] = &[
    "ROLLMILL_URL",
    "ROLLMILL_KEY",
    "ROLLMILL_FLIGHTS",
    "ROLLMILL_LOG",
    "ROLLMILL_CLUSTER_COOKIE",
];

fn nearest_of(name: &str, known: impl Iterator<Item = String>) -> String {
    nearest_name(name, known).map(|best| format!("; did you mean {best}?")).unwrap_or_default()
}

fn read_file(path: &Path) -> Result<Vec<(String, String)>, String> {
    let text = std::fs::read_to_string(path).map_err(|e| e.to_string())?;
    let table: toml::Table = text.parse().map_err(|e: toml::de::Error| e.to_string())?;
    let mut pairs = Vec::new();
    flatten("", &toml::Value::Table(table), &mut pairs);
    Ok(pairs)
}

fn flatten(prefix: &str, value: &toml::Value, pairs: &mut Vec<(String, String)>) {
    match value {
        toml::Value::Table(table) => {
            for (name, value) in table {
                let key = if prefix.is_empty() { name.clone() } else { format!("{prefix}.{name}") };
                flatten(&key, value, pairs);
            }
        }
        toml::Value::String(text) => pairs.push((prefix.to_owned(), text.clone())),
        other => pairs.push((prefix.to_owned(), other.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(text: &str, env: &[(&str, &str)]) -> Result<Config, ConfigErrors> {
        let dir = tempfile::tempdir().expect("dir");
        let path = dir.path().join("c.toml");
        std::fs::write(&path, text).expect("write");
        Config::load(Some(&path), env.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())), &[])
    }

    #[test]
    fn file_then_environment() {
        let environment = [("ROLLMILL_ACCEPT_MAX_AGE", "400d"), ("ROLLMILL_ARCHIVE_KEEP", "400d")];
        let config =
            load("accept.max_age = \"10d\"\n[shards]\ncount = 8\n", &environment).expect("valid");
        assert_eq!((millis(config.accept.max_age), config.shards.count), (400 * 86_400_000, 8));
    }

    #[test]
    fn what_is_printed_gives_the_same_configuration() {
        let demo =
            std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("config/demo.toml"))
                .expect("reads");
        let odd = "accept.max_age = \"36h\"\narchive.keep = 0\naccept.max_body = \
                   \"20971521B\"\nnode.name = \"a \\\"b\\\"\"\n";
        for text in ["", demo.as_str(), odd] {
            let config = load(text, &[]).expect("valid");
            let printed = config.to_toml();
            let again = load(&printed, &[]).unwrap_or_else(|why| panic!("{why}\n{printed}"));
            assert_eq!(again, config);
        }
        let printed =
            load("store.url = \"postgres://me:secret@db/r\"\n", &[]).expect("valid").to_toml();
        assert!(
            printed.contains("# holds a password, which is not shown: store.url")
                && !printed.contains("secret"),
            "{printed}"
        );
        assert!(
            printed.contains("accept.max_age = \"365d\"\n")
                && printed.contains("accept.max_body = \"20MiB\"\n"),
            "{printed}"
        );
    }

    #[test]
    fn a_directory_is_never_empty() {
        for text in ["data.dir = \"\"\n", "data.dir = \" \"\n", "server.listen = \"\"\n"] {
            let ConfigErrors(mistakes) = load(text, &[]).expect_err("empty");
            assert!(mistakes[0].contains("must not be empty"), "{mistakes:?}");
        }
        assert!(
            load("", &[("ROLLMILL_DATA_DIR", "")]).is_err(),
            "a variable that is set to nothing"
        );
        assert!(load("node.name = \"\"\n", &[]).is_ok(), "empty by default");
    }

    #[test]
    fn all_mistakes_at_once_with_the_nearest_key() {
        let ConfigErrors(mistakes) = load(
            "accept.max_agee = \"1d\"\nshards.count = 0\nflush.interval = \"soon\"\n",
            &[("ROLLMILL_SHARD_COUNT", "1")],
        )
        .expect_err("mistakes");
        assert_eq!(mistakes.len(), 4, "{mistakes:?}");
        let all = mistakes.join("\n");
        for part in [
            "did you mean accept.max_age?",
            "did you mean ROLLMILL_SHARDS_COUNT?",
            "flush.interval = \"soon\"",
            "shards.count",
        ] {
            assert!(all.contains(part), "{part} in {all}");
        }
    }

    #[test]
    fn what_needs_a_name_is_refused_without_one() {
        let named: Vec<_> =
            KEYS.iter().filter(|key| key.kind == ValueKind::Text && !key.text.is_empty()).collect();
        assert!(
            ["data.dir", "server.listen", "kafka.topic"]
                .iter()
                .all(|name| named.iter().any(|key| key.name == *name))
        );
        for key in named {
            for empty in ["", "  "] {
                let ConfigErrors(mistakes) = load("", &[(&key.env(), empty)]).expect_err(key.name);
                assert!(
                    mistakes[0].contains(key.name) && mistakes[0].contains("must not be empty"),
                    "{mistakes:?}"
                );
            }
        }
        assert!(load("", &[("ROLLMILL_AUTH_KEYS_FILE", "")]).is_ok(), "no keys are a choice");
    }

    #[test]
    fn embedded_parts_need_every_role_on_one_node() {
        let ConfigErrors(mistakes) =
            load("node.roles = \"gateway\"\n", &[]).expect_err("no store for one role");
        assert!(
            mistakes[0].contains("node.roles") && mistakes[0].contains("every role"),
            "{mistakes:?}"
        );
        assert!(load("node.roles = \"query, shards, gateway\"\n", &[]).is_ok(), "no replays");
        let ConfigErrors(mistakes) =
            load("node.roles = \"gateway,shard\"\n", &[]).expect_err("no such role");
        assert!(mistakes[0].contains("did you mean shards?"), "{mistakes:?}");
        assert_eq!(
            load("node.roles = \"query, replay, shards, gateway\"\n", &[])
                .expect("valid")
                .node
                .roles,
            Roles::ALL
        );
    }

    #[test]
    fn the_stores_password_is_not_shown() {
        let config = load("store.url = \"postgres://me:top@se:cret@db,db2/rollmill\"\n", &[])
            .expect("valid");
        let url = config.store.url.as_ref().expect("a URL");
        assert_eq!(url.expose(), "postgres://me:top@se:cret@db,db2/rollmill");
        assert!(
            config.to_toml().contains("store.url = \"postgres://me:***@db,db2/rollmill\""),
            "{}",
            config.to_toml()
        );
        assert!(!format!("{config:?}").contains("cret"), "{config:?}");
    }

    #[test]
    fn rollups_are_kept_as_long_as_events_are_accepted() {
        let ConfigErrors(mistakes) =
            load("rollups.keep = \"364d\"\n", &[]).expect_err("kept for a shorter time");
        assert!(mistakes[0].contains("rollups.keep is below accept.max_age"), "{mistakes:?}");
        assert!(load("rollups.keep = \"365d\"\n", &[]).is_ok());
    }

    #[test]
    fn a_log_that_nodes_share_needs_a_store_and_an_archive_that_they_share() {
        let ConfigErrors(mistakes) =
            load("kafka.brokers = \"b:9092\"\n", &[]).expect_err("nothing shared");
        assert!(
            mistakes[0].contains("store.url") && mistakes[1].contains("archive.url"),
            "{mistakes:?}"
        );
        let brokers = [("ROLLMILL_KAFKA_BROKERS".to_owned(), "b:9092".to_owned())];
        assert!(Config::load_part(None, brokers.into_iter(), &[]).is_ok(), "enough for the topic");
        let shared = "kafka.brokers = \"b:9092\"\nstore.url = \"postgres://db/r\"\narchive.url = \
                      \"s3://b/p\"\n";
        let config = load(
            &format!("{shared}node.roles = \"gateway\"\nkafka.properties = \"sasl.password=x\"\n"),
            &[],
        )
        .expect("valid");
        assert!(
            config
                .to_toml()
                .contains("# holds a password, which is not shown: kafka.properties = \"***\"")
        );
    }

    #[test]
    fn properties_of_kafka_are_checked_with_the_rest() {
        let text = "kafka.properties = \"sasl.password=s3cret,acks=1\"\nws.window = -1\n";
        let ConfigErrors(mistakes) = load(text, &[]).expect_err("two mistakes");
        assert!(
            mistakes.len() == 2
                && mistakes.concat().contains("kafka.properties: acks is set by Rollmill"),
            "{mistakes:?}"
        );
        assert!(!mistakes.concat().contains("s3cret"));
    }

    #[test]
    fn what_is_accepted_is_kept() {
        let ConfigErrors(mistakes) =
            load("accept.max_age = \"366d\"\n", &[]).expect_err("kept for a shorter time");
        assert!(mistakes[0].contains("archive.keep is below accept.max_age"), "{mistakes:?}");
        assert!(
            load("accept.max_age = \"366d\"\narchive.keep = \"0\"\n", &[]).is_ok(),
            "0 keeps for ever"
        );
    }

    #[test]
    fn nothing_needs_no_unit() {
        let config = load("query.cache = 0\naccept.max_ahead = \"0\"\n", &[]).expect("valid");
        assert_eq!((config.query.cache.bytes(), millis(config.accept.max_ahead)), (0, 0));
        let ConfigErrors(mistakes) = load("accept.max_body = 0\n", &[]).expect_err("too small");
        assert!(mistakes[0].contains("must be from 1KiB to 1GiB"), "{mistakes:?}");
    }

    #[test]
    fn every_key_is_read_into_the_field_of_its_name() {
        for key in KEYS.iter() {
            let text = match key.kind {
                ValueKind::Number | ValueKind::Bytes | ValueKind::Duration => {
                    let (least, most) = key.range.clone().expect("a range");
                    if most == key.text { least } else { most }
                }
                ValueKind::Bool => "true".to_owned(),
                ValueKind::Text if key.name == key!(node.roles) => "shards,query".to_owned(),
                ValueKind::Text if key.name == key!(server.cors_origins) => "https://a".to_owned(),
                ValueKind::Text if key.name == key!(kafka.passed_gaps) => "1:2-3".to_owned(),
                ValueKind::Text if key.name == key!(kafka.properties) => "linger.ms=1".to_owned(),
                ValueKind::Text => "other".to_owned(),
            };
            let mut config = Config::defaults();
            assert!(config.set(key.name, &text).is_some_and(|read| read.is_ok()), "{}", key.name);
            let changed = config
                .entries()
                .into_iter()
                .zip(KEYS.iter())
                .filter(|(now, default)| now.text != default.text);
            let changed: Vec<_> =
                changed.map(|(now, _)| (now.name, now.is_secret || now.text == text)).collect();
            assert_eq!(changed, [(key.name, true)], "{text}");
        }
        assert!(Config::defaults().set("server.listens", "x").is_none());
    }

    #[test]
    fn defaults_are_allowed_and_limits_are_kept() {
        for key in KEYS.iter() {
            assert!(
                Config::defaults().set(key.name, &key.text).is_some_and(|read| read.is_ok()),
                "{}",
                key.name
            );
            let Some((least, most)) = &key.range else { continue };
            for (text, fits) in
                [(least.as_str(), true), (most, true), ("99999999999999999999", false)]
            {
                let read = Config::defaults().set(key.name, text).expect("a key");
                assert_eq!(read.is_ok(), fits, "{} = {text}", key.name);
            }
        }
        let ConfigErrors(mistakes) =
            load("shards.count = 5000\nws.idle_timeout = \"2d\"\n", &[]).expect_err("too large");
        assert!(
            mistakes[0].contains("shards.count = \"5000\": must be from 1 to 4096"),
            "{mistakes:?}"
        );
        assert!(
            mistakes[1].contains("ws.idle_timeout = \"2d\": must be from 1s to 1h"),
            "{mistakes:?}"
        );
    }

    #[test]
    fn true_and_false_are_read_as_they_are_and_as_texts() {
        for text in ["cluster.insecure = true\n", "cluster.insecure = \"true\"\n"] {
            assert!(load(text, &[]).expect("valid").cluster.insecure);
        }
        let ConfigErrors(mistakes) =
            load("", &[("ROLLMILL_CLUSTER_INSECURE", "yes")]).expect_err("neither");
        assert!(
            mistakes[0].contains("cluster.insecure = \"yes\": neither true nor false"),
            "{mistakes:?}"
        );
    }

    #[test]
    fn the_example_of_a_demo_is_valid() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("config/demo.toml");
        assert!(Config::load(Some(&path), [].into_iter(), &[]).is_ok());
    }
}
