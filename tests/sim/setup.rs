//! Parameters of one schedule. They are drawn from its seed, so that every
//! seed stresses something else.

use rollmill::shards::state::ShardLimits;

use crate::doubles::FaultRates;
use crate::fold::{OracleRules, POISON};
use crate::rng::Rng;

#[derive(Debug, Clone)]
pub struct SimSetup {
    pub shards: u32,
    pub nodes: usize,
    pub steps: usize,
    pub rules: OracleRules,
    pub limits: ShardLimits,
    pub pull_bytes: usize,
    pub object_bytes: u64,
    pub object_delay_ms: i64,
    pub rates: FaultRates,
    /// Per thousand steps.
    pub crash: usize,
    pub pause: usize,
    pub takeover: usize,
    pub jumps: usize,
    pub rollback: usize,
    /// Per thousand turns of a shard that is loading: how often the store is too slow to answer.
    pub slow_load: usize,
    /// Per thousand requests or events.
    pub ack_lost: usize,
    pub poison: usize,
    pub undecodable: usize,
    pub resend: usize,
    pub late: usize,
    pub without_id: usize,
    /// Per thousand steps: how often something is done about replays.
    pub replay: usize,
    /// Per thousand such steps that let an object expire.
    pub expiry: usize,
    /// Per thousand steps: how often somebody settles an event that was set aside.
    pub settle: usize,
    /// Whether some events are set aside before the first step.
    pub set_aside: bool,
    /// Whether queries also go through the real engine.
    pub engine: bool,
    /// Whether the archive's double writes real Parquet.
    pub parquet: bool,
}

impl SimSetup {
    /// Two nodes, one shard and no random faults, for schedules that are written down.
    pub fn calm(rng: &mut Rng) -> Self {
        let rules = OracleRules { horizon_ms: 1_000_000, max_ids: 1_000, max_series: 100 };
        let drawn = Self::draw(rng);
        let limits = ShardLimits {
            dedup_horizon_ms: rules.horizon_ms,
            dedup_max_ids: rules.max_ids,
            flush_interval_ms: 1_000_000,
            max_delta_bytes: 1 << 20,
            keep_flushed_ms: 1_000_000,
            shard_count: 1,
            ..drawn.limits
        };
        let rates = FaultRates::default();
        let (object_bytes, object_delay_ms) = (1 << 20, 1);
        let calm = Self {
            shards: 1,
            nodes: 2,
            rules,
            limits,
            rates,
            object_bytes,
            object_delay_ms,
            pull_bytes: 1 << 16,
            ..drawn
        };
        Self {
            ack_lost: 0,
            poison: 0,
            undecodable: 0,
            resend: 0,
            late: 0,
            without_id: 0,
            replay: 0,
            expiry: 0,
            settle: 0,
            set_aside: false,
            engine: false,
            parquet: false,
            ..calm
        }
    }

    pub fn draw(rng: &mut Rng) -> Self {
        // Off, rare or frequent, each on its own: there are schedules with one kind of fault and
        // with all of them.
        let rate = |rng: &mut Rng, frequent: usize| match rng.below(3) {
            0 => 0,
            1 => frequent / 4,
            _ => frequent,
        };
        let rules = OracleRules {
            horizon_ms: rng.pick(&[100, 1_000, 20_000]),
            max_ids: rng.pick(&[2, 6, 1_000]),
            max_series: rng.pick(&[1, 2, 3, 20]),
        };
        let limits = ShardLimits {
            dedup_horizon_ms: rules.horizon_ms,
            dedup_max_ids: rules.max_ids,
            flush_interval_ms: rng.pick(&[1, 40, 200]),
            max_delta_bytes: rng.pick(&[700, 1 << 20]),
            keep_flushed_ms: rng.pick(&[0, 50, 10_000]),
            shard_count: 1,
            panic_on_user: Some(xxhash_rust::xxh3::xxh3_64(POISON.as_bytes())),
        };
        let rates = FaultRates {
            append: rate(rng, 200),
            flush: rate(rng, 300),
            claim: rate(rng, 150),
            mark: rate(rng, 100),
            manifest: rate(rng, 300),
            archive: rate(rng, 300),
            archive_takeover: rate(rng, 100),
        };
        let poisonous = rng.chance(30);
        let settle = rate(rng, 150);
        let mut setup = Self {
            shards: rng.pick(&[1, 2]),
            nodes: rng.pick(&[1, 2, 2]),
            // A poison event costs about fifteen lives.
            steps: (50 + rng.below(70)) * if poisonous { 4 } else { 1 },
            rules,
            limits,
            pull_bytes: rng.pick(&[1, 300, 1 << 16]),
            object_bytes: rng.pick(&[1, 400, 1 << 20]),
            object_delay_ms: rng.pick(&[1, 300]),
            rates,
            crash: rate(rng, 50),
            pause: rate(rng, 50),
            takeover: rate(rng, 60),
            jumps: rate(rng, 40),
            rollback: rate(rng, 30),
            slow_load: rate(rng, 850),
            ack_lost: rate(rng, 150),
            poison: if poisonous { 40 } else { 0 },
            undecodable: if rng.chance(150) { 40 } else { 0 },
            resend: rate(rng, 400),
            late: rate(rng, 200),
            without_id: rate(rng, 150),
            replay: if rng.chance(350) { rng.pick(&[100, 400, 700]) } else { 0 },
            expiry: if rng.chance(150) { 500 } else { 0 },
            settle,
            set_aside: settle > 0 && rng.chance(60),
            engine: rng.chance(80),
            parquet: rng.chance(1),
        };
        setup.limits.shard_count = setup.shards;
        setup
    }
}
