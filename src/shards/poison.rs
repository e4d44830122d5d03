//! What a shard does after it died again and again at the same checkpoint: smaller steps, then one event at a time.

/// Starts at one checkpoint that are taken for bad luck.
const PATIENCE: u32 = 3;
/// Records between two flushes at the first careful start; a quarter at each later one.
const FIRST_STEP: usize = 4096;

/// How a shard goes through its log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// As fast as it can.
    Normal,
    /// At most `step` records between two flushes, so that the checkpoint closes in on the poison.
    Careful {
        /// Records.
        step: usize,
    },
    /// One record, event by event, each noted in the store before it is applied.
    Alone,
}

impl Mode {
    /// Records between two flushes; none means no bound.
    pub fn step(self) -> Option<usize> {
        match self {
            Mode::Normal => None,
            Mode::Careful { step } => Some(step),
            Mode::Alone => Some(1),
        }
    }
}

/// The mode of the `attempts`-th start at one checkpoint.
pub fn mode(attempts: u32) -> Mode {
    if attempts <= PATIENCE {
        return Mode::Normal;
    }
    match FIRST_STEP >> (attempts - PATIENCE - 1).saturating_mul(2).min(63) {
        0 => Mode::Alone,
        step => Mode::Careful { step },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_shrink_to_a_single_event() {
        let modes: Vec<_> = [1, 3, 4, 5, 10, 11, u32::MAX].into_iter().map(mode).collect();
        let careful = |step| Mode::Careful { step };
        assert_eq!(modes, [Mode::Normal, Mode::Normal, careful(4096), careful(1024), careful(1), Mode::Alone, Mode::Alone]);
    }
}
