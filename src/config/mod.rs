//! Configuration: one TOML file, then environment variables, then flags; all mistakes reported at once.
//!
//! One table of keys drives reading, the environment and the check of the docs. The key `accept.max_age` is
//! `ROLLMILL_ACCEPT_MAX_AGE` in the environment.

mod kafka;
mod keys;
mod origins;
mod roles;
mod service_links;
mod values;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

pub use kafka::{Gaps, Properties};
pub use keys::{KEYS, Key, Kind};
pub use roles::Roles;
use service_links::is_service_link;
use values::{Value, parse};

use crate::model::near::near;

/// The configuration, checked.
#[derive(Debug, Clone)]
pub struct Config(BTreeMap<&'static str, Value>);

/// Everything that is wrong with a configuration.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the configuration has {} mistake(s):\n{}", .0.len(), .0.join("\n"))]
pub struct ConfigErrors(pub Vec<String>);

impl Config {
    /// Reads the file, if one is given, then the environment, then the flags; later ones win.
    ///
    /// # Errors
    /// All mistakes at once, each with the place, and the nearest known key for an unknown one.
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

    /// As [`Config::load`], for a command that needs one of the servers of a cluster: it does not ask where the others are.
    ///
    /// # Errors
    /// As [`Config::load`].
    pub fn load_part(
        file: Option<&Path>,
        env: impl Iterator<Item = (String, String)>,
        flags: &[(&str, String)],
    ) -> Result<Self, ConfigErrors> {
        let (config, mut mistakes) = Self::read(file, env, flags);
        config.check_together(&mut mistakes);
        if mistakes.is_empty() { Ok(config) } else { Err(ConfigErrors(mistakes)) }
    }

    fn read(file: Option<&Path>, env: impl Iterator<Item = (String, String)>, flags: &[(&str, String)]) -> (Self, Vec<String>) {
        let mut mistakes = Vec::new();
        let mut texts: Vec<(String, String, String)> = Vec::new();
        if let Some(path) = file {
            match read_file(path) {
                Ok(pairs) => texts.extend(pairs.into_iter().map(|(k, v)| (path.display().to_string(), k, v))),
                Err(why) => mistakes.push(format!("{}: {why}", path.display())),
            }
        }
        for (name, value) in env.filter(|(name, _)| name.starts_with("ROLLMILL_") && !name.starts_with("ROLLMILL_TEST_")) {
            match KEYS.iter().find(|key| key.env() == name) {
                Some(key) => texts.push((format!("environment {name}"), key.name.to_owned(), value)),
                None if IGNORED.contains(&name.as_str()) || is_service_link(&name, &value) => {}
                None => mistakes.push(format!("environment {name}: no such key{}", nearest(&name, |key| key.env()))),
            }
        }
        texts.extend(flags.iter().map(|(key, value)| ("command line".to_owned(), (*key).to_owned(), value.clone())));
        let mut config = Self::default();
        for (place, name, text) in texts {
            match KEYS.iter().find(|key| key.name == name) {
                None => mistakes.push(format!("{place}: {name}: no such key{}", nearest(&name, |key| key.name.to_owned()))),
                Some(key) => match parse(key, &text) {
                    Ok(value) => {
                        config.0.insert(key.name, value);
                    }
                    Err(why) => mistakes.push(format!("{place}: {name} = {text:?}: {why}")),
                },
            }
        }
        (config, mistakes)
    }

    /// Shards move between nodes, so what they write must not stay on one.
    fn check_shared(&self, mistakes: &mut Vec<String>) {
        if self.text("kafka.brokers").is_empty() {
            return;
        }
        for key in ["store.url", "archive.url"].into_iter().filter(|key| self.text(key).is_empty()) {
            mistakes.push(format!(
                "kafka.brokers is set and {key} is not: shards move between nodes, so what they write must not stay on one"
            ));
        }
    }

    fn check_together(&self, mistakes: &mut Vec<String>) {
        if self.millis("supervision.backoff_min") > self.millis("supervision.backoff_max") {
            mistakes.push("supervision.backoff_min is above supervision.backoff_max".to_owned());
        }
        self.check_cluster(mistakes);
        mistakes.extend(Properties::parse(self.text("kafka.properties")).err());
        mistakes.extend(Gaps::parse(self.text("kafka.passed_gaps")).err());
        if self.number("accept.max_event_bytes") > self.number("accept.max_body") {
            mistakes.push("accept.max_event_bytes is above accept.max_body".to_owned());
        }
        let (keep, max_age) = (self.millis("rollups.keep"), self.millis("accept.max_age"));
        if keep != 0 && keep < max_age {
            mistakes.push(
                "rollups.keep is below accept.max_age: accepted events would be dropped; raise it, or set it to 0".to_owned(),
            );
        }
        let keep = self.millis("archive.keep");
        if keep != 0 && keep < max_age {
            mistakes.push(
                "archive.keep is below accept.max_age: accepted events could not be recomputed; raise it, or set it to 0"
                    .to_owned(),
            );
        }
        mistakes.extend(origins::parse(self.text("server.cors_origins")).err().map(|why| format!("server.cors_origins: {why}")));
        match Roles::parse(self.text("node.roles")) {
            Err(why) => mistakes.push(format!("node.roles = {:?}: {why}", self.text("node.roles"))),
            Ok(roles) if roles != Roles::ALL && self.is_embedded() => mistakes.push(format!(
                "node.roles = {:?}: the embedded log and SQLite belong to one process, so this node needs every role: leave the key \
                 out, or configure a log and a store that nodes share",
                self.text("node.roles")
            )),
            Ok(_) => {}
        }
    }

    /// With another value of a key, unchecked.
    ///
    /// # Panics
    /// If there is no such key, or the text is not for it.
    #[cfg(test)]
    pub fn with(mut self, name: &str, text: &str) -> Self {
        let key = KEYS.iter().find(|key| key.name == name).expect("a key");
        self.0.insert(key.name, parse(key, text).expect("a value"));
        self
    }

    /// With a number that is no larger than this.
    pub fn lowered(mut self, name: &str, most: u64) -> Self {
        if let Some(Value::Number(number)) = self.0.get_mut(name) {
            *number = most.min(*number);
        }
        self
    }

    /// Whether log or store belong to this process alone.
    fn is_embedded(&self) -> bool {
        self.text("store.url").is_empty() || self.text("kafka.brokers").is_empty()
    }

    /// `server.cors_origins`
    pub fn origins(&self) -> Vec<String> {
        // Checked when the configuration was read.
        origins::parse(self.text("server.cors_origins")).unwrap_or_default()
    }

    /// `node.roles`
    pub fn roles(&self) -> Roles {
        // Checked when the configuration was read.
        Roles::parse(self.text("node.roles")).unwrap_or(Roles::ALL)
    }

    fn check_cluster(&self, mistakes: &mut Vec<String>) {
        let insecure = self.text("cluster.insecure");
        if !matches!(insecure, "true" | "false") {
            mistakes.push(format!("cluster.insecure = {insecure:?} is neither true nor false"));
        }
        let tls = ["cluster.cert", "cluster.key", "cluster.ca"].map(|key| self.text(key).is_empty());
        if tls.contains(&true) && tls.contains(&false) {
            mistakes.push("TLS between nodes takes all three: cluster.cert, cluster.key and cluster.ca".to_owned());
        }
        if self.text("cluster.listen").is_empty() {
            return;
        }
        if self.millis("cluster.call_timeout") * 2 > self.millis("query.deadline") {
            mistakes.push("cluster.call_timeout is above half of query.deadline: a query may ask twice".to_owned());
        }
        if self.millis("cluster.dead_after") < self.millis("cluster.heartbeat") * 2 {
            mistakes
                .push("cluster.dead_after is below twice cluster.heartbeat: one lost heartbeat would be a dead node".to_owned());
        }
    }

    /// A number, or a size in bytes.
    pub fn number(&self, key: &str) -> u64 {
        match self.0.get(key) {
            Some(Value::Number(number)) => *number,
            other => unreachable_key(key, other),
        }
    }

    /// A duration in milliseconds.
    pub fn millis(&self, key: &str) -> i64 {
        match self.0.get(key) {
            Some(Value::Millis(millis)) => *millis,
            other => unreachable_key(key, other),
        }
    }

    /// A text.
    pub fn text(&self, key: &str) -> &str {
        match self.0.get(key) {
            Some(Value::Text(text)) => text,
            other => unreachable_key(key, other),
        }
    }

    /// A duration.
    pub fn duration(&self, key: &str) -> std::time::Duration {
        std::time::Duration::from_millis(self.millis(key).unsigned_abs())
    }

    /// A path; none if empty.
    pub fn path(&self, key: &str) -> Option<PathBuf> {
        let text = self.text(key);
        (!text.is_empty()).then(|| PathBuf::from(text))
    }

    /// The whole of it as a file that gives the same configuration. A password is not shown: its key is a remark.
    pub fn to_toml(&self) -> String {
        let mut out = String::new();
        for key in KEYS {
            let Some(value) = self.0.get(key.name) else { continue };
            let written = match value {
                Value::Text(text) if shown(key.name, text.clone()) != *text => {
                    let hidden = Value::Text(shown(key.name, text.clone()));
                    format!("# holds a password, which is not shown: {} = {}", key.name, values::to_toml(key, &hidden))
                }
                _ => format!("{} = {}", key.name, values::to_toml(key, value)),
            };
            out.push_str(&written);
            out.push('\n');
        }
        out
    }

    /// Every key with its value as text, to be shown: the password of an address is not.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, String)> {
        self.0.iter().map(|(key, value)| (*key, shown(key, value.to_string())))
    }
}

fn shown(key: &str, text: String) -> String {
    if key == "kafka.properties" && !text.is_empty() { "***".to_owned() } else { without_password(text) }
}

/// `scheme://user:***@host` for an address with a password.
fn without_password(text: String) -> String {
    let Some((scheme, rest)) = text.split_once("://") else { return text };
    let Some((user, host)) = rest.rsplit_once('@') else { return text };
    let name = user.split_once(':').map_or("", |(name, _)| name);
    format!("{scheme}://{name}:***@{host}")
}

/// Variables with our prefix that are no keys: the client's address and key, and a secret that no listing of the keys may show.
const IGNORED: &[&str] = &["ROLLMILL_URL", "ROLLMILL_KEY", "ROLLMILL_FLIGHTS", "ROLLMILL_LOG", "ROLLMILL_CLUSTER_COOKIE"];

/// Asking for a key that is not in the table, or as another type, is a mistake of the program.
fn unreachable_key(key: &str, found: Option<&Value>) -> ! {
    panic!("the program asks for {key} in the wrong way: {found:?}")
}

impl Default for Config {
    fn default() -> Self {
        let value = |key: &Key| parse(key, key.default).unwrap_or_else(|why| panic!("default of {}: {why}", key.name));
        Self(KEYS.iter().map(|key| (key.name, value(key))).collect())
    }
}

fn nearest(name: &str, spelled: impl Fn(&Key) -> String) -> String {
    nearest_of(name, KEYS.iter().map(spelled))
}

fn nearest_of(name: &str, known: impl Iterator<Item = String>) -> String {
    near(name, known).map(|best| format!("; did you mean {best}?")).unwrap_or_default()
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
        let config = load("accept.max_age = \"10d\"\n[shards]\ncount = 8\n", &environment).expect("valid");
        assert_eq!((config.millis("accept.max_age"), config.number("shards.count")), (400 * 86_400_000, 8));
    }

    #[test]
    fn what_is_printed_gives_the_same_configuration() {
        let demo = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("config/demo.toml")).expect("reads");
        let odd = "accept.max_age = \"36h\"\narchive.keep = 0\naccept.max_body = \"20971521B\"\nnode.name = \"a \\\"b\\\"\"\n";
        for text in ["", demo.as_str(), odd] {
            let config = load(text, &[]).expect("valid");
            let printed = config.to_toml();
            let again = load(&printed, &[]).unwrap_or_else(|why| panic!("{why}\n{printed}"));
            assert_eq!(again.0, config.0);
        }
        let printed = load("store.url = \"postgres://me:secret@db/r\"\n", &[]).expect("valid").to_toml();
        assert!(
            printed.contains("# holds a password, which is not shown: store.url") && !printed.contains("secret"),
            "{printed}"
        );
        assert!(
            printed.contains("accept.max_age = \"365d\"\n") && printed.contains("accept.max_body = \"20MiB\"\n"),
            "{printed}"
        );
    }

    #[test]
    fn a_directory_is_never_empty() {
        for text in ["data.dir = \"\"\n", "data.dir = \" \"\n", "server.listen = \"\"\n"] {
            let ConfigErrors(mistakes) = load(text, &[]).expect_err("empty");
            assert!(mistakes[0].contains("must not be empty"), "{mistakes:?}");
        }
        assert!(load("", &[("ROLLMILL_DATA_DIR", "")]).is_err(), "a variable that is set to nothing");
        assert!(load("node.name = \"\"\n", &[]).is_ok(), "empty by default");
    }

    #[test]
    fn all_mistakes_at_once_with_the_nearest_key() {
        let ConfigErrors(mistakes) =
            load("accept.max_agee = \"1d\"\nshards.count = 0\nflush.interval = \"soon\"\n", &[("ROLLMILL_SHARD_COUNT", "1")])
                .expect_err("mistakes");
        assert_eq!(mistakes.len(), 4, "{mistakes:?}");
        let all = mistakes.join("\n");
        for part in
            ["did you mean accept.max_age?", "did you mean ROLLMILL_SHARDS_COUNT?", "flush.interval = \"soon\"", "shards.count"]
        {
            assert!(all.contains(part), "{part} in {all}");
        }
    }

    #[test]
    fn what_needs_a_name_is_refused_without_one() {
        let named: Vec<_> = KEYS.iter().filter(|key| key.kind == Kind::Text && !key.default.is_empty()).collect();
        assert!(["data.dir", "server.listen", "kafka.topic"].iter().all(|name| named.iter().any(|key| key.name == *name)));
        for key in named {
            for empty in ["", "  "] {
                let ConfigErrors(mistakes) = load("", &[(&key.env(), empty)]).expect_err(key.name);
                assert!(mistakes[0].contains(key.name) && mistakes[0].contains("must not be empty"), "{mistakes:?}");
            }
        }
        assert!(load("", &[("ROLLMILL_AUTH_KEYS_FILE", "")]).is_ok(), "no keys are a choice");
    }

    #[test]
    fn embedded_parts_need_every_role_on_one_node() {
        let ConfigErrors(mistakes) = load("node.roles = \"gateway\"\n", &[]).expect_err("no store for one role");
        assert!(mistakes[0].contains("node.roles") && mistakes[0].contains("every role"), "{mistakes:?}");
        let ConfigErrors(mistakes) = load("node.roles = \"gateway,shard\"\n", &[]).expect_err("no such role");
        assert!(mistakes[0].contains("did you mean shards?"), "{mistakes:?}");
        assert_eq!(load("node.roles = \"replay, query, shards, gateway\"\n", &[]).expect("valid").roles(), Roles::ALL);
    }

    #[test]
    fn the_stores_password_is_not_shown() {
        let config = load("store.url = \"postgres://me:top@se:cret@db,db2/rollmill\"\n", &[]).expect("valid");
        assert_eq!(config.text("store.url"), "postgres://me:top@se:cret@db,db2/rollmill");
        let shown: BTreeMap<_, _> = config.iter().collect();
        assert_eq!(shown["store.url"], "postgres://me:***@db,db2/rollmill");
    }

    #[test]
    fn rollups_are_kept_as_long_as_events_are_accepted() {
        let ConfigErrors(mistakes) = load("rollups.keep = \"364d\"\n", &[]).expect_err("kept for a shorter time");
        assert!(mistakes[0].contains("rollups.keep is below accept.max_age"), "{mistakes:?}");
        assert!(load("rollups.keep = \"365d\"\n", &[]).is_ok());
    }

    #[test]
    fn a_log_that_nodes_share_needs_a_store_and_an_archive_that_they_share() {
        let ConfigErrors(mistakes) = load("kafka.brokers = \"b:9092\"\n", &[]).expect_err("nothing shared");
        assert!(mistakes[0].contains("store.url") && mistakes[1].contains("archive.url"), "{mistakes:?}");
        let brokers = [("ROLLMILL_KAFKA_BROKERS".to_owned(), "b:9092".to_owned())];
        assert!(Config::load_part(None, brokers.into_iter(), &[]).is_ok(), "enough for the topic");
        let shared = "kafka.brokers = \"b:9092\"\nstore.url = \"postgres://db/r\"\narchive.url = \"s3://b/p\"\n";
        let config =
            load(&format!("{shared}node.roles = \"gateway\"\nkafka.properties = \"sasl.password=x\"\n"), &[]).expect("valid");
        assert_eq!(config.iter().find(|(key, _)| *key == "kafka.properties"), Some(("kafka.properties", "***".to_owned())));
    }

    #[test]
    fn properties_of_kafka_are_checked_with_the_rest() {
        let text = "kafka.properties = \"sasl.password=s3cret,acks=1\"\nws.window = -1\n";
        let ConfigErrors(mistakes) = load(text, &[]).expect_err("two mistakes");
        assert!(mistakes.len() == 2 && mistakes[1].contains("kafka.properties: acks is set by Rollmill"), "{mistakes:?}");
        assert!(!mistakes.concat().contains("s3cret"));
    }

    #[test]
    fn passwords_are_not_shown() {
        let config = load("query.redis = \"redis://me:top@se:cret@cache:6379/1\"\n", &[]).expect("valid");
        assert_eq!(config.text("query.redis"), "redis://me:top@se:cret@cache:6379/1");
        let shown: BTreeMap<_, _> = config.iter().collect();
        assert_eq!(shown["query.redis"], "redis://me:***@cache:6379/1");
        assert_eq!(without_password("redis://secret@cache".to_owned()), "redis://:***@cache");
        assert_eq!(without_password("http://127.0.0.1:9000".to_owned()), "http://127.0.0.1:9000");
    }

    #[test]
    fn what_is_accepted_is_kept() {
        let ConfigErrors(mistakes) = load("accept.max_age = \"366d\"\n", &[]).expect_err("kept for a shorter time");
        assert!(mistakes[0].contains("archive.keep is below accept.max_age"), "{mistakes:?}");
        assert!(load("accept.max_age = \"366d\"\narchive.keep = \"0\"\n", &[]).is_ok(), "0 keeps for ever");
    }

    #[test]
    fn nothing_needs_no_unit() {
        let config = load("query.cache = 0\naccept.max_ahead = \"0\"\n", &[]).expect("valid");
        assert_eq!((config.number("query.cache"), config.millis("accept.max_ahead")), (0, 0));
        let ConfigErrors(mistakes) = load("accept.max_body = 0\n", &[]).expect_err("too small");
        assert!(mistakes[0].contains("must be from 1024B"), "{mistakes:?}");
    }

    #[test]
    fn the_documented_file_holds_every_key_with_its_default() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("config/rollmill.toml");
        let pairs: BTreeMap<_, _> = read_file(&path).expect("reads").into_iter().collect();
        for key in KEYS {
            assert_eq!(pairs.get(key.name).map(String::as_str), Some(key.default), "{} in config/rollmill.toml", key.name);
        }
        assert_eq!(pairs.len(), KEYS.len());
        assert!(Config::load(Some(&Path::new(env!("CARGO_MANIFEST_DIR")).join("config/demo.toml")), [].into_iter(), &[]).is_ok());
    }
}
