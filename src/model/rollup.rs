//! The mergeable aggregate of one series in one window.

use super::CodecError;
use super::decimal::Decimal;
use super::distinct::DistinctSketch;
use super::quantiles::QuantileSketch;

/// Count, sum, min, max, distinct users and quantiles of a set of events. Merging is commutative
/// and associative, down to the bytes.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Rollup {
    /// The figures of the hot table.
    pub figures: RollupFigures,
    /// The sketch of distinct users.
    pub distinct: DistinctSketch,
    /// The sketch of the values.
    pub quantiles: QuantileSketch,
}

/// A rollup without its sketches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RollupFigures {
    /// The number of events.
    pub count: u64,
    /// The number of events with a value.
    pub value_count: u64,
    /// Sum of the values in units of 10^-9. Cannot overflow: a value is at most 10^27 units, and a
    /// shard's window holds fewer than 10^11 events.
    pub sum: i128,
    /// Smallest value; `None` without values.
    pub min: Option<Decimal>,
    /// Largest value; `None` without values.
    pub max: Option<Decimal>,
}

impl RollupFigures {
    /// Adds one event, with its value if it has one.
    pub fn add(&mut self, value: Option<Decimal>) {
        self.count += 1;
        if let Some(value) = value {
            self.value_count += 1;
            self.sum += value.units();
            self.min = Some(self.min.map_or(value, |m| m.min(value)));
            self.max = Some(self.max.map_or(value, |m| m.max(value)));
        }
    }

    /// Adds the figures of another part.
    pub fn merge(&mut self, other: &RollupFigures) {
        self.count += other.count;
        self.value_count += other.value_count;
        self.sum += other.sum;
        // Flattened, because `None` is less than every `Some` and would win.
        self.min = [self.min, other.min].into_iter().flatten().min();
        self.max = [self.max, other.max].into_iter().flatten().max();
    }
}

impl Rollup {
    /// Adds one event; `user` is the hash of its user.
    pub fn add(&mut self, value: Option<Decimal>, user: Option<u64>) {
        self.figures.add(value);
        if let Some(value) = value {
            self.quantiles.insert(value);
        }
        if let Some(user) = user {
            self.distinct.insert(user);
        }
    }

    /// Merges another rollup into this one.
    pub fn merge(&mut self, other: &Rollup) {
        self.figures.merge(&other.figures);
        self.distinct.merge(&other.distinct);
        self.quantiles.merge(&other.quantiles);
    }

    /// A quantile of the values within 1 %, clamped to the minimum and the maximum; `None` if
    /// there are no values.
    pub fn quantile(&self, q: f64) -> Option<Decimal> {
        self.quantiles.quantile(q).map(|found| self.clamped(found))
    }

    /// The value of a rank, from 0 on, in ascending order, within 1 %; the first and the last are
    /// exact. `None` if there are not that many values.
    pub fn value_at(&self, rank: u64) -> Option<Decimal> {
        let figures = &self.figures;
        match rank {
            0 => figures.min,
            last if last + 1 == figures.value_count => figures.max,
            rank => self.quantiles.value_at(rank).map(|found| self.clamped(found)),
        }
    }

    fn clamped(&self, found: Decimal) -> Decimal {
        let found = self.figures.min.map_or(found, |min| found.max(min));
        self.figures.max.map_or(found, |max| found.min(max))
    }

    /// Appends the canonical bytes, which `verify` compares: count and value count (u64), sum
    /// (i128), min and max (a flag byte, then i128), then both sketches, each preceded by its
    /// length (u32). All big-endian.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let figures = &self.figures;
        out.extend(figures.count.to_be_bytes());
        out.extend(figures.value_count.to_be_bytes());
        out.extend(figures.sum.to_be_bytes());
        for bound in [figures.min, figures.max] {
            // The flag tells a missing bound from zero.
            out.push(u8::from(bound.is_some()));
            out.extend(bound.map_or(0, Decimal::units).to_be_bytes());
        }
        let mut sketch = Vec::new();
        self.distinct.encode(&mut sketch);
        out.extend((sketch.len() as u32).to_be_bytes());
        out.append(&mut sketch);
        self.quantiles.encode(&mut sketch);
        out.extend((sketch.len() as u32).to_be_bytes());
        out.append(&mut sketch);
    }

    /// Builds a rollup from figures and serialised sketches; an empty slice is an empty sketch.
    /// Fails if they are of an unknown version or do not decode.
    pub fn with_sketches(
        figures: RollupFigures,
        distinct: &[u8],
        quantiles: &[u8],
    ) -> Result<Self, CodecError> {
        Ok(Self {
            figures,
            distinct: DistinctSketch::decode(distinct)?,
            quantiles: QuantileSketch::decode(quantiles)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_stay_between_the_smallest_and_the_largest_value() {
        for values in [
            &[1i128][..],
            &[-1],
            &[1, 1, 1],
            &[-1, 1],
            &[999_999_999, 1_000_000_000],
            &[1 << 59, -(1 << 59)],
        ] {
            let mut rollup = Rollup::default();
            values.iter().for_each(|value| {
                rollup.add(Some(Decimal::from_units(value * 1_000_000_000)), None)
            });
            for q in [0.0, 0.5, 0.9, 0.95, 0.99, 0.999, 1.0] {
                let found = rollup.quantile(q);
                assert!(
                    rollup.figures.min <= found && found <= rollup.figures.max,
                    "{values:?}: {q} is {found:?}"
                );
            }
        }
        assert_eq!(Rollup::default().quantile(0.5), None);
    }
}
