//! The record: those events of one request that fall on one shard, and its MessagePack form,
//! version 2.
//!
//! A MessagePack array `[version, tenant, gateway, series, events, stamp]`. `series` is an array of
//! `[id: bin16, key: bin]`, `events` an array of `[series index, timestamp ms, value, user, id,
//! raw]`. `value` is nil, or the units of 10^-9: an integer if they fit 64 bits, otherwise 16
//! big-endian bytes. `user` and `id` are str or nil. `raw` is the event as the client sent it (JSON
//! text, or the MessagePack of that event). `stamp` is the reading of the gateway's append clock in
//! milliseconds, a bin of 8 bytes, big-endian, so that it can be read from the end of the bytes;
//! version 1 has none. The append time is up to the log: Kafka's is derived from the stamp and the
//! broker's clock, the embedded log writes its own.

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::CodecError;
use super::decimal::Decimal;
use super::series::SeriesId;
use super::window::Millis;

/// The version that is written.
pub const VERSION: u8 = 2;
/// The version without a stamp, which is still read.
pub const VERSION_1: u8 = 1;
/// Larger records are split, keeping the order of events.
pub const MAX_RECORD_BYTES: usize = 512 * 1024;

/// A record that borrows from its encoded bytes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record<'a> {
    /// Format version: [`VERSION`], or [`VERSION_1`] without a stamp. [`decode`] refuses others.
    pub version: u8,
    /// The tenant that sent the events.
    #[serde(borrow)]
    pub tenant: &'a str,
    /// The number of the gateway that accepted them.
    pub gateway: u32,
    /// The series that events refer to by index.
    #[serde(borrow)]
    pub series: Vec<SeriesEntry<'a>>,
    /// The events, in the order of the request.
    #[serde(borrow)]
    pub events: Vec<RecordEvent<'a>>,
    /// The reading of the gateway's append clock; `None` in version 1.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "stamp")]
    pub stamp: Option<Millis>,
}

/// One series of a record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SeriesEntry<'a> {
    /// BLAKE3 of the key, 16 bytes.
    #[serde(borrow, with = "serde_bytes")]
    pub id: &'a [u8],
    /// The canonical bytes of the series.
    #[serde(borrow, with = "serde_bytes")]
    pub key: &'a [u8],
}

impl SeriesEntry<'_> {
    /// The id. Zero-padded if it is not 16 bytes, which [`decode`] refuses.
    pub fn series_id(&self) -> SeriesId {
        let mut id = [0; 16];
        let n = self.id.len().min(16);
        id[..n].copy_from_slice(&self.id[..n]);
        SeriesId(id)
    }
}

/// One event of a record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecordEvent<'a> {
    /// Index into the record's series.
    pub series: u32,
    /// Event time, as the client gave it.
    pub timestamp: Millis,
    /// `None` if the event has no value.
    #[serde(serialize_with = "put_value", deserialize_with = "take_value")]
    pub value: Option<Decimal>,
    /// The user to count as distinct.
    #[serde(borrow)]
    pub user: Option<&'a str>,
    /// The client's id for de-duplication.
    #[serde(borrow)]
    pub id: Option<&'a str>,
    /// The event as the client sent it.
    #[serde(borrow, with = "serde_bytes")]
    pub raw: &'a [u8],
}

impl RecordEvent<'_> {
    /// XXH3-64 of the user, the input of the distinct sketch.
    pub fn user_hash(&self) -> Option<u64> {
        self.user.map(user_hash)
    }
    /// The hash for de-duplication: XXH3-128 of the event id, seeded with the first 8
    /// bytes of the series id and XORed with the whole series id, so that equal ids of
    /// different series never collide.
    pub fn id_hash(&self, series: SeriesId) -> Option<u128> {
        self.id.map(|id| {
            xxhash_rust::xxh3::xxh3_128_with_seed(id.as_bytes(), series.prefix())
                ^ u128::from_be_bytes(series.0)
        })
    }
}

/// XXH3-64 of a user, the input of the distinct sketch.
pub fn user_hash(user: &str) -> u64 {
    xxhash_rust::xxh3::xxh3_64(user.as_bytes())
}

/// The version of a record that this build cannot read, if the bytes are such a record.
/// Records of every version are arrays that begin with the version and the tenant; other
/// bytes are not records.
pub fn unknown_version(bytes: &[u8]) -> Option<u64> {
    // The markers of a MessagePack array with at least two elements.
    let rest = match bytes {
        [0x92..=0x9f, rest @ ..] | [0xdc, _, _, rest @ ..] | [0xdd, _, _, _, _, rest @ ..] => rest,
        _ => return None,
    };
    let (version, rest) = match rest {
        [small @ ..=0x7f, rest @ ..] => (u64::from(*small), rest),
        [0xcc, a, rest @ ..] => (u64::from(*a), rest),
        [0xcd, a, b, rest @ ..] => (u64::from(u16::from_be_bytes([*a, *b])), rest),
        [0xce, a, b, c, d, rest @ ..] => (u64::from(u32::from_be_bytes([*a, *b, *c, *d])), rest),
        [0xcf, rest @ ..] => (u64::from_be_bytes(*rest.first_chunk()?), &rest[8..]),
        _ => return None,
    };
    let tenant_follows = matches!(rest, [0xa0..=0xbf | 0xd9..=0xdb, ..]);
    (tenant_follows && !is_known(version)).then_some(version)
}

/// Whether [`decode`] reads this version.
fn is_known(version: u64) -> bool {
    (u64::from(VERSION_1)..=u64::from(VERSION)).contains(&version)
}

/// Appends the MessagePack form.
pub fn encode(record: &Record<'_>, out: &mut Vec<u8>) {
    // Writing to a Vec cannot fail, and the types hold nothing that MessagePack cannot express.
    #[allow(clippy::expect_used)]
    rmp_serde::encode::write(out, record).expect("a record always encodes");
}

/// Decodes the MessagePack form.
///
/// # Errors
/// If the version is unknown, the bytes do not decode, an id is not 16 bytes, or an event refers to
/// a series that is not in the record.
pub fn decode(bytes: &[u8]) -> Result<Record<'_>, CodecError> {
    let bad = |why: String| CodecError::new("record", why);
    if let Some(version) = unknown_version(bytes) {
        return Err(bad(format!("version {version} is unknown, this build reads {VERSION}")));
    }
    let record: Record<'_> = rmp_serde::from_slice(bytes).map_err(|e| bad(e.to_string()))?;
    if !is_known(record.version.into()) {
        return Err(bad(format!(
            "version {} is unknown, this build reads {VERSION_1} and {VERSION}",
            record.version
        )));
    }
    if record.stamp.is_some() != (record.version == VERSION) {
        return Err(bad(format!("version {} and the stamp do not fit", record.version)));
    }
    if record.series.iter().any(|s| s.id.len() != 16) {
        return Err(bad("a series id is not 16 bytes".to_owned()));
    }
    if record.events.iter().any(|e| e.series as usize >= record.series.len()) {
        return Err(bad("an event names a series that is not there".to_owned()));
    }
    Ok(record)
}

/// The stamp of an encoded record, read from its end without decoding; `None` in version 1.
pub fn stamp_of(bytes: &[u8]) -> Option<Millis> {
    let (_, end) = bytes.split_at_checked(bytes.len().checked_sub(STAMP_MARK.len() + 8)?)?;
    let stamped = bytes.starts_with(&VERSION_2_MARK) && end.starts_with(&STAMP_MARK);
    Some(i64::from_be_bytes(*end.last_chunk()?)).filter(|_| stamped)
}

/// The first bytes of a version 2 record: an array of six, and the version.
const VERSION_2_MARK: [u8; 2] = [0x96, VERSION];
/// The bytes before a stamp: a bin of 8 bytes.
const STAMP_MARK: [u8; 2] = [0xc4, 8];

mod stamp {
    use serde::{Deserializer, Serializer, de::Error};

    use super::Millis;

    pub(super) fn serialize<S: Serializer>(
        stamp: &Option<Millis>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        match stamp {
            Some(stamp) => serializer.serialize_bytes(&stamp.to_be_bytes()),
            None => serializer.serialize_none(),
        }
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<Millis>, D::Error> {
        let bytes: &[u8] = serde_bytes::deserialize(deserializer)?;
        let stamp = bytes
            .try_into()
            .map_err(|_| D::Error::invalid_length(bytes.len(), &"a stamp of 8 bytes"))?;
        Ok(Some(i64::from_be_bytes(stamp)))
    }
}

fn put_value<S: Serializer>(value: &Option<Decimal>, serializer: S) -> Result<S::Ok, S::Error> {
    match value.map(Decimal::units) {
        None => serializer.serialize_none(),
        // Nearly all values fit 64 bits, and take at most 9 bytes instead of 18.
        Some(units) => match i64::try_from(units) {
            Ok(small) => serializer.serialize_i64(small),
            Err(_) => serializer.serialize_bytes(&units.to_be_bytes()),
        },
    }
}

fn take_value<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Decimal>, D::Error> {
    struct Units;
    impl serde::de::Visitor<'_> for Units {
        type Value = Option<Decimal>;
        fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("nil, an integer or 16 bytes")
        }
        fn visit_unit<E>(self) -> Result<Self::Value, E> {
            Ok(None)
        }
        fn visit_none<E>(self) -> Result<Self::Value, E> {
            Ok(None)
        }
        fn visit_i64<E>(self, units: i64) -> Result<Self::Value, E> {
            Ok(Some(Decimal::from_units(i128::from(units))))
        }
        fn visit_u64<E>(self, units: u64) -> Result<Self::Value, E> {
            Ok(Some(Decimal::from_units(i128::from(units))))
        }
        fn visit_bytes<E: serde::de::Error>(self, bytes: &[u8]) -> Result<Self::Value, E> {
            let units: [u8; 16] =
                bytes.try_into().map_err(|_| E::invalid_length(bytes.len(), &self))?;
            // Checked, because sums of values are not: see `RollupFigures::sum`.
            let value = Decimal::checked_from_units(i128::from_be_bytes(units));
            value.map(Some).ok_or_else(|| E::custom("a value beyond ±10^18"))
        }
    }
    deserializer.deserialize_any(Units)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn bytes(version: u8) -> Vec<u8> {
        let mut bytes = Vec::new();
        encode(
            &Record {
                version,
                tenant: "shop",
                gateway: 7,
                series: vec![],
                events: vec![],
                stamp: (version == VERSION).then_some(1),
            },
            &mut bytes,
        );
        bytes
    }

    #[test]
    fn records_of_versions_that_are_not_known_are_told_from_bytes_that_are_no_record() {
        assert_eq!(unknown_version(&bytes(VERSION)), None);
        for version in [0, 100, 127, 128, 255] {
            assert_eq!(unknown_version(&bytes(version)), Some(version.into()));
            let why = decode(&bytes(version)).expect_err("refused").to_string();
            assert!(why.contains(&format!("version {version} is unknown")), "{why}");
        }
        // Forms that this build does not know: more elements, wider numbers, a longer header.
        assert_eq!(unknown_version(b"\x97\x63\xa4shop\xc0\xc0\xc0\xc0\xc0"), Some(99));
        assert_eq!(unknown_version(b"\xdc\x00\x02\xcd\x01\x00\xd9\x01t"), Some(256));
        assert_eq!(unknown_version(b"\xdd\x00\x00\x00\x02\xce\x00\x01\x00\x00\xa0"), Some(65_536));
        assert_eq!(
            unknown_version(b"\x92\xcf\x00\x00\x00\x01\x00\x00\x00\x00\xa1t"),
            Some(1 << 32)
        );
        for garbage in [
            &b""[..],
            b"\x95",
            b"\x95\x63",
            b"\x95\x63\x01",
            b"\x95\xff\xa1t",
            b"\x91\x63",
            b"{\"version\":9}",
            b"\x92\xcf\x01",
        ] {
            assert_eq!(unknown_version(garbage), None, "{garbage:x?}");
            assert!(decode(garbage).is_err());
        }
        assert!(
            decode(&bytes(VERSION)[..8]).is_err_and(|why| !why.to_string().contains("unknown")),
            "a known one, cut off"
        );
    }

    fn encoded(version: u8, stamp: Option<Millis>) -> Vec<u8> {
        let series = vec![SeriesEntry { id: &[7; 16], key: b"k" }];
        let event = RecordEvent {
            series: 0,
            timestamp: -1,
            value: None,
            user: Some("u"),
            id: None,
            raw: b"{}",
        };
        let mut bytes = Vec::new();
        encode(
            &Record { version, tenant: "t", gateway: 3, series, events: vec![event], stamp },
            &mut bytes,
        );
        bytes
    }

    /// Golden bytes: what was written once must stay readable for ever.
    #[test]
    fn both_versions_are_pinned() {
        let body = [
            &b"\xa1t\x03\x91\x92\xc4\x10"[..],
            &[7; 16],
            b"\xc4\x01k\x91\x96\x00\xff\xc0\xa1u\xc0\xc4\x02{}",
        ]
        .concat();
        assert_eq!(encoded(VERSION_1, None), [&b"\x95\x01"[..], &body].concat());
        let two = [&b"\x96\x02"[..], &body, b"\xc4\x08\x00\x00\x01\x9e\x73\x09\x29\x00"].concat();
        assert_eq!(encoded(VERSION, Some(0x019e_7309_2900)), two);
        assert_eq!(
            decode(&two).map(|record| (record.version, record.stamp)),
            Ok((2, Some(0x019e_7309_2900)))
        );
        let one = encoded(VERSION_1, None);
        assert_eq!(decode(&one).map(|record| (record.version, record.stamp)), Ok((1, None)));
    }

    /// Sums are not checked for overflow, because values are.
    #[test]
    fn a_value_that_no_gateway_lets_in_is_refused() {
        let with = |units: i128| {
            let series = vec![SeriesEntry { id: &[7; 16], key: b"k" }];
            let value = Some(Decimal::from_units(units));
            let event =
                RecordEvent { series: 0, timestamp: 0, value, user: None, id: None, raw: b"{}" };
            let mut bytes = Vec::new();
            let record = Record {
                version: VERSION,
                tenant: "t",
                gateway: 3,
                series,
                events: vec![event],
                stamp: Some(1),
            };
            encode(&record, &mut bytes);
            decode(&bytes)
                .map(|record| record.events[0].value.map(Decimal::units))
                .map_err(|why| why.to_string())
        };
        let most = 10i128.pow(27);
        for units in [0, -1, most, -most] {
            assert_eq!(with(units), Ok(Some(units)));
        }
        for units in [most + 1, -most - 1, i128::MAX, i128::MIN] {
            assert!(with(units).is_err_and(|why| why.contains("beyond")), "{units}");
        }
    }

    #[test]
    fn a_stamp_that_does_not_fit_the_version_is_refused() {
        for (version, stamp) in [(VERSION, None), (VERSION_1, Some(5)), (3, Some(5)), (0, None)] {
            assert!(decode(&encoded(version, stamp)).is_err(), "{version} {stamp:?}");
        }
    }

    proptest! {
        #[test]
        fn a_stamp_is_read_off_the_end(
            stamp in any::<i64>(),
            flips in proptest::collection::vec((0usize..80, any::<u8>()), 0..3),
        ) {
            prop_assert_eq!(stamp_of(&encoded(VERSION, Some(stamp))), Some(stamp));
            prop_assert_eq!(stamp_of(&encoded(VERSION_1, None)), None);
            // Whatever the bytes are: the stamp of a record that decodes is the one read from its
            // end.
            let mut bytes = encoded(VERSION, Some(stamp));
            for (at, byte) in flips {
                if let Some(there) = bytes.get_mut(at) {
                    *there = byte;
                }
            }
            if let Ok(record) = decode(&bytes) {
                prop_assert_eq!(stamp_of(&bytes), record.stamp);
            }
        }
    }
}
