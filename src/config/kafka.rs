//! `kafka.properties`: settings of the Kafka client, checked against what Rollmill promises and
//! against what this build supports.

use super::lists::list_items;
use super::values::{ConfigValue, ValueKind};

/// Whether this build has TLS and SCRAM for Kafka.
const TLS: bool = cfg!(feature = "kafka-tls");

/// Settings that Rollmill makes itself: another value would silently break a promise.
const RESERVED: &[&str] = &[
    "acks",
    "auto.offset.reset",
    "bootstrap.servers",
    "check.crcs",
    "delivery.timeout.ms",
    "enable.auto.commit",
    "enable.auto.offset.store",
    "enable.idempotence",
    "group.id",
    "group.instance.id",
    "isolation.level",
    "message.timeout.ms",
    "partition.assignment.strategy",
    "request.required.acks",
    "session.timeout.ms",
    "transactional.id",
];

/// Additional settings of the Kafka clients, such as those of SASL and TLS. Never printed, because
/// they may hold passwords.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct KafkaProperties(Vec<(String, String)>);

impl std::fmt::Debug for KafkaProperties {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Names only: values may be passwords.
        f.debug_list().entries(self.0.iter().map(|(name, _)| name)).finish()
    }
}

impl KafkaProperties {
    /// Parses `name=value,name=value`; a comma inside a value is written `\,`. Errors name what is
    /// wrong, but never a value that may be a secret.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut found = Vec::new();
        for pair in split(text).iter().filter(|pair| !pair.trim().is_empty()) {
            // Only the first `=` separates: values may contain more, such as base64.
            let (name, value) = pair.split_once('=').ok_or("write name=value,name=value")?;
            let name = name.trim();
            if RESERVED.contains(&name) {
                return Err(format!(
                    "{name} is set by Rollmill, because its promises depend on it: leave it out"
                ));
            }
            found.push((name.to_owned(), value.trim().to_owned()));
        }
        let properties = Self(found);
        properties.check(TLS).map(|()| properties)
    }

    /// All settings, in the order of the text.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(name, value)| (name.as_str(), value.as_str()))
    }

    /// The last value of a setting, in capitals: it is compared with names that are no secrets.
    fn last(&self, names: &[&str]) -> String {
        self.iter()
            .filter(|(name, _)| names.contains(name))
            .last()
            .map(|(_, value)| value.to_uppercase())
            .unwrap_or_default()
    }

    /// Refuses early what the Kafka client would refuse late, and with obscure messages.
    fn check(&self, tls: bool) -> Result<(), String> {
        let (protocol, mechanism) =
            (self.last(&["security.protocol"]), self.last(&["sasl.mechanism", "sasl.mechanisms"]));
        let wanted = match (&*protocol, &*mechanism) {
            ("SSL" | "SASL_SSL", _) => Some(format!("security.protocol={protocol}")),
            (_, "SCRAM-SHA-256" | "SCRAM-SHA-512" | "OAUTHBEARER") => {
                Some(format!("sasl.mechanism={mechanism}"))
            }
            _ => self
                .iter()
                .map(|(name, _)| name)
                .find(|name| name.starts_with("ssl."))
                .map(str::to_owned),
        };
        if let Some(wanted) = wanted.filter(|_| !tls) {
            return Err(format!(
                "{wanted} takes TLS, with which this build was not made: use the image of \
                 docker/Dockerfile, or build with `cargo build --release --features kafka-tls` \
                 (it needs OpenSSL: libssl-dev and pkg-config); `rollmill version` says what a \
                 build has"
            ));
        }
        if protocol.starts_with("SASL_") && matches!(&*mechanism, "" | "GSSAPI") {
            return Err(format!(
                "security.protocol={protocol} without sasl.mechanism is Kerberos, which Rollmill \
                 does not speak: set sasl.mechanism to SCRAM-SHA-512, SCRAM-SHA-256, OAUTHBEARER \
                 or PLAIN"
            ));
        }
        Ok(())
    }
}

impl ConfigValue for KafkaProperties {
    const KIND: ValueKind = ValueKind::Text;
    const IS_SECRET: bool = true;

    fn parse(text: &str) -> Result<Self, String> {
        Self::parse(text)
    }

    fn text(&self) -> String {
        if self.0.is_empty() { String::new() } else { "***".to_owned() }
    }

    fn is_secret(&self) -> bool {
        !self.0.is_empty()
    }
}

fn split(text: &str) -> Vec<String> {
    let (mut parts, mut escaped) = (vec![String::new()], false);
    for c in text.chars() {
        let part = parts.len() - 1;
        match c {
            '\\' if !escaped => escaped = true,
            ',' if !escaped => parts.push(String::new()),
            _ => {
                // A backslash that escapes no comma is kept, so that values need no doubling.
                if escaped && c != ',' {
                    parts[part].push('\\');
                }
                parts[part].push(c);
                escaped = false;
            }
        }
    }
    parts
}

/// `kafka.passed_gaps`: ranges of offsets of which an operator asserts that Rollmill wrote nothing
/// there.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PassedGaps(Vec<(u32, std::ops::Range<u64>)>);

impl PassedGaps {
    /// Whether one of the gaps of the shard covers all of `[from, to)`.
    pub fn covers(&self, shard: u32, from: u64, to: u64) -> bool {
        self.0.iter().any(|(of, range)| *of == shard && range.start <= from && to <= range.end)
    }
}

/// `shard:from-to,shard:from-to`; the start is inclusive, the end exclusive.
impl ConfigValue for PassedGaps {
    const KIND: ValueKind = ValueKind::Text;

    fn parse(text: &str) -> Result<Self, String> {
        let gap = |text: &str| {
            let (shard, range) = text.split_once(':')?;
            let (from, to) = range.split_once('-')?;
            let range = from.trim().parse().ok()?..to.trim().parse().ok()?;
            (range.start < range.end).then_some((shard.trim().parse().ok()?, range))
        };
        let all = list_items(text);
        all.map(|text| {
            gap(text).ok_or_else(|| {
                format!("{text:?} is no gap: write SHARD:FROM-TO, as the log names it")
            })
        })
        .collect::<Result<_, _>>()
        .map(Self)
    }

    fn text(&self) -> String {
        let gap = |(shard, range): &(u32, std::ops::Range<u64>)| {
            format!("{shard}:{}-{}", range.start, range.end)
        };
        self.0.iter().map(gap).collect::<Vec<_>>().join(",")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn properties_are_read_and_never_shown() {
        let text =
            r"security.protocol=SASL_PLAINTEXT, sasl.mechanism=PLAIN,sasl.password=a=b\,c\d,";
        let properties = KafkaProperties::parse(text).expect("valid");
        let expected = [
            ("security.protocol", "SASL_PLAINTEXT"),
            ("sasl.mechanism", "PLAIN"),
            ("sasl.password", r"a=b,c\d"),
        ];
        assert_eq!(properties.iter().collect::<Vec<_>>(), expected);
        assert_eq!(
            format!("{properties:?}"),
            r#"["security.protocol", "sasl.mechanism", "sasl.password"]"#
        );
        assert_eq!(KafkaProperties::parse(""), Ok(KafkaProperties::default()));
    }

    #[test]
    fn promises_cannot_be_overridden() {
        for wrong in ["acks=1", "linger.ms=5,auto.offset.reset=latest", "group.instance.id=a"] {
            assert!(
                KafkaProperties::parse(wrong).is_err_and(|why| why.contains("set by Rollmill")),
                "{wrong}"
            );
        }
        assert!(KafkaProperties::parse("secret").is_err_and(|why| !why.contains("secret")));
    }

    fn checked(pairs: &[(&str, &str)], tls: bool) -> Result<(), String> {
        KafkaProperties(
            pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect(),
        )
        .check(tls)
    }

    #[test]
    fn a_build_without_tls_says_so_before_kafka_does() {
        for (pairs, names) in [
            (&[("security.protocol", "ssl")][..], "security.protocol=SSL"),
            (
                &[("security.protocol", "SASL_SSL"), ("sasl.mechanism", "PLAIN")][..],
                "security.protocol=SASL_SSL",
            ),
            (
                &[("security.protocol", "sasl_plaintext"), ("sasl.mechanism", "SCRAM-SHA-512")][..],
                "sasl.mechanism=SCRAM-SHA-512",
            ),
            (&[("sasl.mechanisms", "scram-sha-256")][..], "sasl.mechanism=SCRAM-SHA-256"),
            (&[("sasl.password", "s3cret"), ("ssl.ca.location", "ca.pem")][..], "ssl.ca.location"),
        ] {
            let why = checked(pairs, false).expect_err("no TLS");
            assert!(
                why.contains(names)
                    && why.contains("--features kafka-tls")
                    && !why.contains("s3cret"),
                "{why}"
            );
            assert_eq!(checked(pairs, true), Ok(()));
        }
        for fine in [
            &[("linger.ms", "5")][..],
            &[("security.protocol", "SASL_PLAINTEXT"), ("sasl.mechanism", "PLAIN")][..],
        ] {
            assert_eq!((checked(fine, false), checked(fine, true)), (Ok(()), Ok(())));
        }
    }

    #[test]
    fn kerberos_is_in_no_build() {
        for pairs in [
            &[("security.protocol", "SASL_SSL")][..],
            &[("security.protocol", "sasl_ssl"), ("sasl.mechanism", "GSSAPI")][..],
        ] {
            assert!(checked(pairs, true).is_err_and(|why| why.contains("sasl.mechanism")));
        }
    }

    #[test]
    fn gaps_are_named_by_shard_and_offsets() {
        let gaps = PassedGaps::parse("3:120-122, 7:0-1,").expect("two");
        assert!(gaps.covers(3, 120, 122) && gaps.covers(3, 121, 122) && gaps.covers(7, 0, 1));
        assert!(
            !gaps.covers(3, 119, 121) && !gaps.covers(3, 121, 123) && !gaps.covers(2, 120, 121)
        );
        assert_eq!(gaps.text(), "3:120-122,7:0-1");
        assert_eq!(PassedGaps::parse(""), Ok(PassedGaps::default()));
        for wrong in ["3", "3:5", "3:5-5", "3:6-5", "x:1-2", "3:-1-2", "3:1-2;4:1-2"] {
            assert!(
                PassedGaps::parse(wrong).is_err_and(|why| why.contains("SHARD:FROM-TO")),
                "{wrong}"
            );
        }
    }
}
