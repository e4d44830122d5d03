//! Hour windows of event time, UTC.

/// Milliseconds since the Unix epoch, UTC. Negative before 1970.
pub type Millis = i64;

/// Length of a window in milliseconds.
pub const HOUR_MS: i64 = 3_600_000;

/// The hour `[start, start + 1 h)`, as whole hours since the Unix epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Hour(pub i32);

impl Hour {
    /// The hour that holds `t`. Euclidean division, because `/` would round times before 1970
    /// into the wrong hour.
    pub fn of(t: Millis) -> Self {
        Self(t.div_euclid(HOUR_MS).clamp(i64::from(i32::MIN), i64::from(i32::MAX)) as i32)
    }
    /// First millisecond of the hour.
    pub fn start(self) -> Millis {
        i64::from(self.0) * HOUR_MS
    }
    /// Exclusive end: the first millisecond after the hour.
    pub fn end(self) -> Millis {
        self.start() + HOUR_MS
    }
    /// The UTC day of the hour, in days since the Unix epoch.
    pub fn day(self) -> i32 {
        self.0.div_euclid(24)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hours_before_1970_round_down() {
        assert_eq!(Hour::of(-1), Hour(-1));
        assert_eq!(Hour::of(-HOUR_MS), Hour(-1));
        assert_eq!(Hour::of(-HOUR_MS - 1), Hour(-2));
        assert_eq!(Hour(-1).day(), -1);
    }

    #[test]
    fn boundaries_belong_to_the_later_hour() {
        assert_eq!(Hour::of(0), Hour(0));
        assert_eq!(Hour::of(HOUR_MS - 1), Hour(0));
        assert_eq!(Hour::of(HOUR_MS), Hour(1));
        assert_eq!(Hour(1).start(), Hour(0).end());
    }
}
