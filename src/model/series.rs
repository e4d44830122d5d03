//! Series: tenant + metric + sorted labels, with its canonical bytes, its stable id and its shard.
//!
//! The series key is a sequence of strings, each preceded by its length as unsigned LEB128: tenant,
//! metric, then name and value of each label in ascending byte order of the names. A label with an
//! empty value equals an absent label. The series id is BLAKE3 of the key, truncated to 128 bits;
//! the shard is its first 8 bytes, big-endian, modulo the shard count.

use std::collections::BTreeSet;

use super::CodecError;
use super::offset::ShardId;

/// Label of the series that collects events beyond the cardinality limit.
pub const OVERFLOW_LABEL: (&str, &str) = ("__overflow__", "true");
/// Metric that collects events beyond the limit of metric names.
pub const OVERFLOW_METRIC: &str = "__overflow__";
/// Label that distinguishes the overflow series of different shards.
const OVERFLOW_SHARD: &str = "shard";
/// What the key of every overflow series contains. A label value of a client may contain it, too.
pub const OVERFLOW_IN_KEY: &str = OVERFLOW_LABEL.0;

/// Stable 128-bit hash of a series key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SeriesId(pub [u8; 16]);

impl SeriesId {
    /// The id of a series key.
    pub fn of_key(key: &[u8]) -> Self {
        let mut id = [0; 16];
        id.copy_from_slice(&blake3::hash(key).as_bytes()[..16]);
        Self(id)
    }
    /// The shard that owns the series.
    pub fn shard(self, shard_count: u32) -> ShardId {
        ShardId((self.prefix() % u64::from(shard_count)) as u32)
    }
    /// The first 8 bytes, big-endian.
    pub fn prefix(self) -> u64 {
        let mut first = [0; 8];
        first.copy_from_slice(&self.0[..8]);
        u64::from_be_bytes(first)
    }
}

impl std::fmt::Display for SeriesId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.iter().try_for_each(|b| write!(f, "{b:02x}"))
    }
}

/// A series, parsed from its key or from an event.
#[allow(missing_docs, reason = "the names say it")]
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Series {
    pub tenant: String,
    pub metric: String,
    /// Ascending by name, without empty values.
    pub labels: Vec<(String, String)>,
}

impl Series {
    /// A series from labels in any order. Labels with an empty value are dropped; of equal names,
    /// the last one wins.
    pub fn new(
        tenant: &str,
        metric: &str,
        labels: impl IntoIterator<Item = (String, String)>,
    ) -> Self {
        let map: std::collections::BTreeMap<String, String> = labels.into_iter().collect();
        Self {
            tenant: tenant.to_owned(),
            metric: metric.to_owned(),
            labels: map.into_iter().filter(|(_, v)| !v.is_empty()).collect(),
        }
    }

    /// The overflow series of the same metric.
    pub fn overflow(&self) -> Self {
        Self {
            tenant: self.tenant.clone(),
            metric: self.metric.clone(),
            labels: vec![(OVERFLOW_LABEL.0.to_owned(), OVERFLOW_LABEL.1.to_owned())],
        }
    }

    /// The overflow series of the same metric to which only one shard writes.
    pub fn overflow_of_shard(&self, shard: ShardId) -> Self {
        let mut overflow = self.overflow();
        overflow.labels.push((OVERFLOW_SHARD.to_owned(), shard.to_string()));
        overflow
    }

    /// The series, one per shard, that collects the events of the tenant's metrics beyond the
    /// limit of metric names.
    pub fn overflow_of_tenant(&self, shard: ShardId) -> Self {
        Self { metric: OVERFLOW_METRIC.to_owned(), ..self.overflow_of_shard(shard) }
    }

    /// Whether this is an overflow series. Clients cannot send it: their labels never begin with
    /// `__`.
    pub fn is_overflow(&self) -> bool {
        self.label(OVERFLOW_LABEL.0) == OVERFLOW_LABEL.1
    }

    /// The canonical bytes of the series.
    pub fn key(&self) -> Vec<u8> {
        let labels = self.labels.iter().map(|(name, value)| (&**name, &**value));
        key_of(&self.tenant, &self.metric, labels)
    }

    /// Parses canonical bytes. Fails if they are cut off, not UTF-8, or not canonical (labels out
    /// of order or empty).
    pub fn from_key(mut key: &[u8]) -> Result<Self, CodecError> {
        let tenant = take(&mut key)?.to_owned();
        let metric = take(&mut key)?.to_owned();
        let mut labels: Vec<(String, String)> = Vec::new();
        while !key.is_empty() {
            let name = take(&mut key)?;
            let value = take(&mut key)?;
            let ordered = labels.last().is_none_or(|(last, _)| last.as_str() < name);
            if !ordered || value.is_empty() {
                return Err(CodecError::new("series key", "labels are not canonical"));
            }
            labels.push((name.to_owned(), value.to_owned()));
        }
        Ok(Self { tenant, metric, labels })
    }

    /// Whether `key` is this series' key. Compares without allocating.
    pub fn has_key(&self, mut key: &[u8]) -> bool {
        let labels = self.labels.iter().flat_map(|(name, value)| [name, value]);
        let mut strings = [&self.tenant, &self.metric].into_iter().chain(labels);
        strings.all(|string| take_equal(&mut key, string)) && key.is_empty()
    }

    /// Whether a series key belongs to the tenant.
    pub fn key_is_of_tenant(mut key: &[u8], tenant: &str) -> bool {
        take_equal(&mut key, tenant)
    }

    /// Whether a series key belongs to the tenant and the metric.
    pub fn key_is_of(mut key: &[u8], tenant: &str, metric: &str) -> bool {
        [tenant, metric].iter().all(|name| take_equal(&mut key, name))
    }

    /// The value of a label; a missing label reads as empty.
    pub fn label(&self, name: &str) -> &str {
        label_of(&self.labels, name)
    }
}

/// The value of one of these labels; a missing label reads as empty.
pub fn label_of<'a>(labels: &'a [(String, String)], name: &str) -> &'a str {
    labels.iter().find(|(n, _)| n == name).map_or("", |(_, v)| v.as_str())
}

/// The canonical bytes of the series that has these labels, ascending by name and none empty.
pub fn key_of<'l>(
    tenant: &str,
    metric: &str,
    labels: impl Iterator<Item = (&'l str, &'l str)>,
) -> Vec<u8> {
    let mut key = Vec::with_capacity(64);
    put(&mut key, tenant);
    put(&mut key, metric);
    for (name, value) in labels {
        put(&mut key, name);
        put(&mut key, value);
    }
    key
}

fn put(key: &mut Vec<u8>, s: &str) {
    let mut n = s.len();
    while n >= 0x80 {
        key.push((n as u8 & 0x7f) | 0x80);
        n >>= 7;
    }
    key.push(n as u8);
    key.extend_from_slice(s.as_bytes());
}

/// Takes the next text and compares it. As bytes: what equals a text needs no check for UTF-8.
fn take_equal(key: &mut &[u8], text: &str) -> bool {
    take_bytes(key).is_ok_and(|found| found == text.as_bytes())
}

fn take<'a>(key: &mut &'a [u8]) -> Result<&'a str, CodecError> {
    let not_text = |_| CodecError::new("series key", "not UTF-8");
    std::str::from_utf8(take_bytes(key)?).map_err(not_text)
}

fn take_bytes<'a>(key: &mut &'a [u8]) -> Result<&'a [u8], CodecError> {
    let bad = |why: &str| CodecError::new("series key", why);
    let mut len = 0usize;
    // Five groups of seven bits are enough for any length; more could overflow the shift.
    for shift in (0..35).step_by(7) {
        let (&byte, rest) = key.split_first().ok_or_else(|| bad("cut off"))?;
        *key = rest;
        // A second spelling of a length would give the same series a second id.
        if byte == 0 && shift > 0 {
            return Err(bad("a length is longer than it need be"));
        }
        len |= usize::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            let (s, rest) = key.split_at_checked(len).ok_or_else(|| bad("cut off"))?;
            *key = rest;
            return Ok(s);
        }
    }
    Err(bad("a length is too long"))
}

/// A short stand-in for a metric of a tenant. Two metrics may share a hash, so a match means
/// "perhaps", but a mismatch always means "no".
pub fn metric_hash(tenant: &str, metric: &str) -> u64 {
    xxhash_rust::xxh3::xxh3_64_with_seed(
        metric.as_bytes(),
        xxhash_rust::xxh3::xxh3_64(tenant.as_bytes()),
    )
}

/// The series that a writer has admitted for a tenant.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AdmittedSeries {
    /// All of them.
    pub ids: Vec<SeriesId>,
    /// How many of them are overflow series, which do not count against the limit of series.
    pub overflow: u64,
}

impl AdmittedSeries {
    /// Adds a series. `key` is its key if that contains [`OVERFLOW_IN_KEY`].
    ///
    /// # Errors
    /// If the key is none.
    pub fn add(&mut self, id: SeriesId, key: Option<&[u8]>) -> Result<(), CodecError> {
        self.ids.push(id);
        if let Some(key) = key {
            self.overflow += u64::from(Series::from_key(key)?.is_overflow());
        }
        Ok(())
    }
}

impl AdmittedSeries {
    /// The series that a writer of a shard has admitted of these metrics of a tenant.
    pub fn of_metrics<'a>(
        ids: Vec<SeriesId>,
        (tenant, metrics): (&str, impl IntoIterator<Item = &'a str>),
        shard: ShardId,
    ) -> Self {
        let overflow = metrics.into_iter().flat_map(|metric| {
            let any = Series::new(tenant, metric, []);
            [any.overflow(), any.overflow_of_shard(shard), any.overflow_of_tenant(shard)]
        });
        let overflow: BTreeSet<_> = overflow.map(|of| SeriesId::of_key(&of.key())).collect();
        let overflow = ids.iter().filter(|id| overflow.contains(id)).count() as u64;
        Self { ids, overflow }
    }
}

impl From<Vec<SeriesId>> for AdmittedSeries {
    /// Series that all count against the limit.
    fn from(ids: Vec<SeriesId>) -> Self {
        Self { ids, overflow: 0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page_view() -> Series {
        let labels = [("page", "/home"), ("country", "DE"), ("empty", "")];
        Series::new("default", "page_view", labels.map(|(k, v)| (k.to_owned(), v.to_owned())))
    }

    #[test]
    fn golden_key_id_and_shard() {
        let key = page_view().key();
        assert_eq!(key, b"\x07default\x09page_view\x07country\x02DE\x04page\x05/home");
        assert_eq!(SeriesId::of_key(&key).to_string(), "bc9cd3550038c24437dd0bf5339bb02b");
        assert_eq!(SeriesId::of_key(&key).shard(64), ShardId(4));
    }

    #[test]
    fn keys_round_trip_and_refuse_what_is_not_canonical() {
        let series = page_view();
        assert_eq!(Series::from_key(&series.key()), Ok(series));
        assert!(Series::from_key(b"\x01a\x01b\x01z\x01v\x01a\x01v").is_err());
        assert!(Series::from_key(b"\x01a\x01b\x01z\x00").is_err());
        assert!(Series::from_key(b"\x05a").is_err());
        assert!(Series::from_key(b"\xff\xff\xff\xff\xff\xff").is_err());
        assert!(
            Series::from_key(b"\x01t\x01m").is_ok() && Series::from_key(b"\x01t\x81\x00m").is_err()
        );
    }

    #[test]
    fn a_series_has_one_key() {
        let (series, key) = (page_view(), page_view().key());
        assert!(series.has_key(&key));
        let longer = [key.as_slice(), b"\x01z\x01z"].concat();
        let others = [
            &key[..key.len() - 6],
            &longer,
            b"",
            b"\x87\x00default\x09page_view\x07country\x02DE\x04page\x05/home",
        ];
        assert!(others.iter().all(|other| !series.has_key(other)));
    }

    #[test]
    fn a_key_is_of_its_tenant_and_metric_only() {
        let key = page_view().key();
        assert!(Series::key_is_of(&key, "default", "page_view"));
        for (tenant, metric) in [
            ("default", "page"),
            ("defaul", "tpage_view"),
            ("", "page_view"),
            ("default", "page_views"),
        ] {
            assert!(!Series::key_is_of(&key, tenant, metric), "{tenant} {metric}");
        }
        assert!(!Series::key_is_of(b"", "", ""));
        let of_tenant = ["default", "defaul", "defaultp", ""]
            .map(|tenant| Series::key_is_of_tenant(&key, tenant));
        assert_eq!(
            (of_tenant, Series::key_is_of_tenant(b"", "")),
            ([true, false, false, false], false)
        );
    }
}
