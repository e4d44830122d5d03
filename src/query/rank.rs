//! The values by which series are sorted. Exact; series without a value come last. Pure.
//!
//! A sum over many windows can exceed 128 bits and an average is a fraction, so both are compared
//! as wider integers. As doubles, amounts of money would tie above 10^15 and the top ten would be
//! arbitrary.

use std::cmp::Ordering;

use super::request::Aggregate;
use crate::model::decimal::Decimal;
use crate::model::rollup::Rollup;
use crate::model::window::Millis;

/// The value of an aggregate over a series' whole range.
#[allow(missing_docs, reason = "the names say it")]
#[derive(Debug, Clone, Copy)]
pub(super) enum RankValue {
    /// A count of events or users.
    Whole(u128),
    /// A minimum, maximum or quantile.
    Value(Decimal),
    Sum(WideSum),
    /// A sum and the number of values it is divided by, which is never 0.
    Fraction(WideSum, u64),
}

impl RankValue {
    /// Computes the value from all points of a series; None if no event has a value.
    pub(super) fn of(aggregate: Aggregate, points: &[(Millis, Rollup)]) -> Option<Self> {
        let figures = || points.iter().map(|(_, rollup)| &rollup.figures);
        let values: u64 = figures().map(|f| f.value_count).sum();
        if values == 0
            && !matches!(aggregate, Aggregate::Count | Aggregate::Rate | Aggregate::Distinct)
        {
            return None;
        }
        let sum = || figures().fold(WideSum::default(), |sum, f| sum.plus(f.sum));
        match aggregate {
            // All series have the same range, so their rates are in the order of their counts.
            Aggregate::Count | Aggregate::Rate => {
                Some(RankValue::Whole(figures().map(|f| u128::from(f.count)).sum()))
            }
            Aggregate::Distinct => {
                Some(RankValue::Whole(u128::from(merged(points).distinct.estimate())))
            }
            Aggregate::Sum => Some(RankValue::Sum(sum())),
            Aggregate::Avg => Some(RankValue::Fraction(sum(), values)),
            Aggregate::Min => figures().filter_map(|f| f.min).min().map(RankValue::Value),
            Aggregate::Max => figures().filter_map(|f| f.max).max().map(RankValue::Value),
            Aggregate::Quantile(q, _) => merged(points).quantile(q).map(RankValue::Value),
        }
    }

    /// Compares two figures of one aggregate.
    fn compare(&self, other: &Self) -> Ordering {
        match (self, other) {
            (RankValue::Whole(a), RankValue::Whole(b)) => a.cmp(b),
            (RankValue::Value(a), RankValue::Value(b)) => a.cmp(b),
            (RankValue::Sum(a), RankValue::Sum(b)) => a.cmp(b),
            (RankValue::Fraction(a, n), RankValue::Fraction(b, m)) => {
                compare_fractions((*a, *n), (*b, *m))
            }
            // Figures of different aggregates are never compared.
            _ => Ordering::Equal,
        }
    }
}

/// Orders two series by value, descending or ascending; those without a value come last in both.
pub(super) fn order(a: Option<&RankValue>, b: Option<&RankValue>, descending: bool) -> Ordering {
    match (a, b) {
        (Some(a), Some(b)) if descending => b.compare(a),
        (Some(a), Some(b)) => a.compare(b),
        (a, b) => b.is_some().cmp(&a.is_some()),
    }
}

/// All points merged. Sums and counts are left out: they could overflow and are not needed here.
fn merged(points: &[(Millis, Rollup)]) -> Rollup {
    let mut whole = Rollup::default();
    for (_, rollup) in points {
        whole.figures.min = [whole.figures.min, rollup.figures.min].into_iter().flatten().min();
        whole.figures.max = [whole.figures.max, rollup.figures.max].into_iter().flatten().max();
        whole.distinct.merge(&rollup.distinct);
        whole.quantiles.merge(&rollup.quantiles);
    }
    whole
}

/// A 192-bit signed integer: `high × 2^64 + low`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub(super) struct WideSum {
    high: i128,
    low: u64,
}

impl WideSum {
    /// Adds a number. Cannot overflow: that would take 2^63 additions.
    fn plus(self, number: i128) -> Self {
        let (low, carry) = self.low.overflowing_add(number as u64);
        Self { high: self.high + (number >> 64) + i128::from(carry), low }
    }

    /// The quotient, rounded down, and the remainder.
    fn divided_by(self, divisor: u64) -> (Self, u64) {
        let (quotient, rest) =
            (self.high.div_euclid(i128::from(divisor)), self.high.rem_euclid(i128::from(divisor)));
        // The remainder is below the 64-bit divisor, so `below` fits 128 bits and its quotient 64.
        let below = ((rest as u128) << 64) | u128::from(self.low);
        let low = (below / u128::from(divisor)) as u64;
        (Self { high: quotient, low }, (below % u128::from(divisor)) as u64)
    }
}

/// Compares `a / n` with `b / m`: by their integer quotients, then by cross-multiplied remainders.
fn compare_fractions((a, n): (WideSum, u64), (b, m): (WideSum, u64)) -> Ordering {
    let ((a, rest_of_a), (b, rest_of_b)) = (a.divided_by(n.max(1)), b.divided_by(m.max(1)));
    a.cmp(&b).then_with(|| {
        (u128::from(rest_of_a) * u128::from(m)).cmp(&(u128::from(rest_of_b) * u128::from(n)))
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn wide(numbers: &[i128]) -> WideSum {
        numbers.iter().fold(WideSum::default(), |sum, number| sum.plus(*number))
    }

    #[test]
    fn sums_beyond_128_bits_are_compared_to_the_last_digit() {
        let many = vec![i128::MAX; 1_000];
        let more: Vec<i128> = many.iter().copied().chain([1]).collect();
        assert!(wide(&many) < wide(&more));
        assert_eq!(wide(&[many, vec![-i128::MAX; 1_000]].concat()), wide(&[]));
        assert!(wide(&[i128::MIN; 3]) < wide(&[i128::MIN, i128::MIN, i128::MIN + 1]));
        assert_eq!(
            compare_fractions((wide(&[i128::MAX; 9]), 9), (wide(&[i128::MAX; 4]), 4)),
            Ordering::Equal
        );
        assert_eq!(
            compare_fractions((wide(&[i128::MAX; 9]), 9), (wide(&[i128::MAX, i128::MAX - 1]), 2)),
            Ordering::Greater
        );
    }

    #[test]
    fn what_has_no_figure_comes_last_either_way() {
        let (three, five) =
            (RankValue::Value(Decimal::from_units(-3)), RankValue::Value(Decimal::from_units(-5)));
        for descending in [true, false] {
            assert_eq!(order(Some(&five), None, descending), Ordering::Less);
            assert_eq!(order(None, Some(&five), descending), Ordering::Greater);
            assert_eq!(order(None, None, descending), Ordering::Equal);
        }
        assert_eq!(order(Some(&three), Some(&five), true), Ordering::Less);
        assert_eq!(order(Some(&three), Some(&five), false), Ordering::Greater);
    }

    proptest! {
        #[test]
        fn fractions_compare_as_their_cross_products(
            a in -1_000_000_000_000i128..1_000_000_000_000, n in 1u64..1_000,
            b in -1_000_000_000_000i128..1_000_000_000_000, m in 1u64..1_000,
            near in any::<bool>(),
        ) {
            // Half of the cases are equal or differ by the smallest possible amount.
            let (b, m) = if near { (a * i128::from(m) + b.signum(), n * m) } else { (b, m) };
            let expected = (a * i128::from(m)).cmp(&(b * i128::from(n)));
            prop_assert_eq!(compare_fractions((wide(&[a]), n), (wide(&[b]), m)), expected);
        }

        #[test]
        fn wide_sums_equal_narrow_ones(
            numbers in proptest::collection::vec(any::<i64>().prop_map(i128::from), 0..20),
            divisor in 1u64..,
        ) {
            let sum: i128 = numbers.iter().sum();
            prop_assert_eq!(wide(&numbers), wide(&[sum]));
            let (quotient, rest) = wide(&[sum]).divided_by(divisor);
            prop_assert_eq!(quotient, wide(&[sum.div_euclid(i128::from(divisor))]));
            prop_assert_eq!(i128::from(rest), sum.rem_euclid(i128::from(divisor)));
        }
    }
}
