//! The binary form of a cached day, for the shared cache. Pure.
//!
//! The name and the authentication code of a part are derived from everything it depends on:
//! tenant, query, generation, day, revision, the version of this format and of Rollmill. Revisions identify the
//! write itself and cannot be guessed. Hence somebody with access to the cache alone can neither
//! tell what a name stands for nor forge bytes that pass. Bytes that pass were written by a node of
//! this store for this very part; everything else is a miss.

use super::groups::{DayPart, SeriesGroup};
use super::request::QueryRequest;
use crate::model::CodecError;
use crate::model::decimal::Decimal;
use crate::model::generation::GenerationId;
use crate::model::rollup::{Rollup, RollupFigures};

/// Format version. Layout: version (1 byte), authentication code (16 bytes), body. The body: events
/// of the overflow series (u64), number of groups (u32), then the groups. A group: number of labels
/// (u32), each with its length (u32); number of points (u32), each with its start (i64) and its
/// rollup in canonical bytes. All integers are big-endian.
const VERSION: u8 = 3;
const CODE_BYTES: usize = 16;
const HEAD_BYTES: usize = 1 + CODE_BYTES;

/// A day of rows and its revision.
pub(super) type DayRevision = (i32, u64);

/// What the parts of some days are results of. A flush gives all generations that it writes the
/// same revision, so a revision says nothing without its generation.
#[allow(missing_docs, reason = "the names say it")]
#[derive(Clone, Copy)]
pub(super) struct PartSource<'a> {
    pub tenant: &'a str,
    pub request: &'a QueryRequest,
    pub generation: GenerationId,
}

/// The secret key of a part, from which its public name and its authentication code derive.
pub(super) struct PartName([u8; 32]);

impl PartName {
    /// Derives the key from what the part is the result of.
    pub(super) fn new(of: PartSource<'_>, (day, revision): DayRevision) -> Self {
        let mut material = Vec::new();
        for text in [env!("CARGO_PKG_VERSION"), of.tenant, of.request.cache_key.as_str()] {
            material.extend((text.len() as u64).to_be_bytes());
            material.extend(text.bytes());
        }
        material.extend(of.generation.0.to_be_bytes());
        material.extend(day.to_be_bytes());
        material.extend(revision.to_be_bytes());
        Self(blake3::derive_key("rollmill 2026 query part, version 3", &material))
    }

    /// The name under which the shared cache stores the part.
    pub(super) fn public(&self) -> [u8; 32] {
        *blake3::keyed_hash(&self.0, b"name").as_bytes()
    }

    fn code(&self, body: &[u8]) -> [u8; CODE_BYTES] {
        let mut hasher = blake3::Hasher::new_keyed(&self.0);
        hasher.update(b"part").update(body);
        let mut code = [0; CODE_BYTES];
        code.copy_from_slice(&hasher.finalize().as_bytes()[..CODE_BYTES]);
        code
    }

    /// Serialises a part, including its authentication code.
    pub(super) fn encode(&self, part: &DayPart) -> Vec<u8> {
        let mut out = vec![VERSION; HEAD_BYTES];
        out.extend(part.overflow.to_be_bytes());
        out.extend((part.groups.len() as u32).to_be_bytes());
        for group in &part.groups {
            out.extend((group.key.len() as u32).to_be_bytes());
            for value in &group.key {
                out.extend((value.len() as u32).to_be_bytes());
                out.extend(value.bytes());
            }
            out.extend((group.points.len() as u32).to_be_bytes());
            for (start, rollup) in &group.points {
                out.extend(start.to_be_bytes());
                rollup.encode(&mut out);
            }
        }
        let code = self.code(&out[HEAD_BYTES..]);
        out[1..HEAD_BYTES].copy_from_slice(&code);
        out
    }

    /// Parses and authenticates a part.
    ///
    /// # Errors
    /// If the bytes are not exactly what [`PartName::encode`] returned for this name.
    pub(super) fn decode(&self, bytes: &[u8]) -> Result<DayPart, CodecError> {
        let mut input = bytes;
        if take(&mut input)? != [VERSION] {
            return Err(bad("unknown version"));
        }
        let code: [u8; CODE_BYTES] = take(&mut input)?;
        if !bool::from(subtle::ConstantTimeEq::ct_eq(&code[..], &self.code(input)[..])) {
            return Err(bad("the authentication code is another"));
        }
        let mut part =
            DayPart { groups: Vec::new(), overflow: u64::from_be_bytes(take(&mut input)?) };
        for _ in 0..u32::from_be_bytes(take(&mut input)?) {
            part.groups.push(group(&mut input)?);
        }
        if input.is_empty() { Ok(part) } else { Err(bad("bytes are left")) }
    }
}

fn bad(why: &str) -> CodecError {
    CodecError::new("query part", why)
}

fn take<const N: usize>(input: &mut &[u8]) -> Result<[u8; N], CodecError> {
    let (head, rest) = input.split_first_chunk().ok_or_else(|| bad("it ends early"))?;
    *input = rest;
    Ok(*head)
}

/// Reads a length and that many bytes.
fn slice<'a>(input: &mut &'a [u8]) -> Result<&'a [u8], CodecError> {
    let length = u32::from_be_bytes(take(input)?) as usize;
    let (head, rest) = input.split_at_checked(length).ok_or_else(|| bad("it ends early"))?;
    *input = rest;
    Ok(head)
}

fn group(input: &mut &[u8]) -> Result<SeriesGroup, CodecError> {
    let (mut key, mut points) = (Vec::new(), Vec::new());
    for _ in 0..u32::from_be_bytes(take(input)?) {
        key.push(
            std::str::from_utf8(slice(input)?).map_err(|_| bad("a label is not UTF-8"))?.to_owned(),
        );
    }
    for _ in 0..u32::from_be_bytes(take(input)?) {
        points.push((i64::from_be_bytes(take(input)?), rollup(input)?));
    }
    Ok(SeriesGroup { key, points })
}

fn rollup(input: &mut &[u8]) -> Result<Rollup, CodecError> {
    let (count, value_count) = (u64::from_be_bytes(take(input)?), u64::from_be_bytes(take(input)?));
    let sum = i128::from_be_bytes(take(input)?);
    let mut bound = || -> Result<Option<Decimal>, CodecError> {
        let [flag] = take(input)?;
        let units = i128::from_be_bytes(take(input)?);
        Ok((flag != 0).then(|| Decimal::from_units(units)))
    };
    let (min, max) = (bound()?, bound()?);
    let (distinct, quantiles) = (slice(input)?, slice(input)?);
    Rollup::with_sketches(RollupFigures { count, value_count, sum, min, max }, distinct, quantiles)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(by: &str) -> QueryRequest {
        let params = [("metric", "m"), ("by", by), ("agg", "distinct,p95")];
        let params = params.map(|(name, value)| (name.to_owned(), value.to_owned()));
        crate::gateway::read_routes::query_request(&params, 0).expect("a request").0
    }

    fn source(request: &QueryRequest) -> PartSource<'_> {
        PartSource { tenant: "acme", request, generation: GenerationId::INGEST }
    }

    fn part() -> DayPart {
        let mut full = Rollup::default();
        (0..300).for_each(|n| full.add(Some(Decimal::from_units(n * n)), Some(n as u64)));
        let mut plain = Rollup::default();
        plain.add(None, None);
        let (key, points) =
            (vec!["DE".to_owned(), String::new()], vec![(-5, plain.clone()), (7, full)]);
        let groups = vec![
            SeriesGroup { key, points },
            SeriesGroup { key: vec![], points: vec![(1, plain)] },
            SeriesGroup { key: vec![], points: vec![] },
        ];
        DayPart { groups, overflow: 456 }
    }

    fn same(a: &DayPart, b: &DayPart) -> bool {
        let groups =
            a.groups.iter().zip(&b.groups).all(|(a, b)| a.key == b.key && a.points == b.points);
        a.overflow == b.overflow && a.groups.len() == b.groups.len() && groups
    }

    #[test]
    fn parts_come_back_and_only_under_their_name() {
        let (by_a, by_b) = (request("a"), request("b"));
        let of = source(&by_a);
        let name = PartName::new(of, (5, 77));
        let bytes = name.encode(&part());
        assert!(same(&name.decode(&bytes).expect("decodes"), &part()));
        let others = [
            PartName::new(PartSource { tenant: "acm", ..of }, (5, 77)),
            PartName::new(PartSource { request: &by_b, ..of }, (5, 77)),
            PartName::new(PartSource { generation: GenerationId(1), ..of }, (5, 77)),
            PartName::new(of, (6, 77)),
            PartName::new(of, (5, 78)),
        ];
        for other in others {
            assert_ne!(other.public(), name.public());
            assert!(other.decode(&bytes).is_err(), "bytes under another name");
        }
        assert!(same(
            &name.decode(&name.encode(&DayPart::default())).expect("decodes"),
            &DayPart::default()
        ));
    }

    #[test]
    fn every_damaged_or_missing_byte_is_found() {
        let request = request("a");
        let name = PartName::new(source(&request), (5, 77));
        let bytes = name.encode(&part());
        for at in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[at] ^= 1;
            assert!(name.decode(&damaged).is_err(), "byte {at}");
            assert!(name.decode(&bytes[..at]).is_err(), "cut at {at}");
        }
        assert!(name.decode(&[&bytes[..], b"x"].concat()).is_err());
    }
}
