//! The shards role: the shards that the log assigns to this node, their pulse, the archiver, and
//! the upkeep of the archive.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;

use super::tree::{self, ShardsPlace};
use super::{Ports, limits};
use crate::actors::archiver::{Archiver, Waiting};
use crate::actors::pulse::{self, ShardRefs};
use crate::actors::shard::ShardActor;
use crate::actors::shard_ports::{Names, ShardPorts};
use crate::actors::slots::Slots;
use crate::actors::upkeep::{Damaged, Looked, Upkeep};
use crate::config::{Config, millis};
use crate::shards::series::Census;
use crate::shards::state::ShardLimits;
use crate::supervision::policy::RestartPolicy;
use crate::supervision::shards::{ShardsMessage, ShardsSpec};
use crate::supervision::supervisor::ChildSpec;

/// Beyond the time of a handover, for the supervisor to answer.
const ANSWER: Duration = Duration::from_secs(1);

/// What the shards role adds to a node.
pub(crate) struct Shards {
    /// To reach them.
    pub handle: Handle,
    /// The supervisor of the shards, the archiver, and the upkeep of the archive.
    pub children: [ChildSpec; 3],
}

/// Reaches the shards of a running node.
pub(crate) struct Handle {
    place: ShardsPlace,
    refs: ShardRefs,
    handover: Duration,
}

/// The shards role.
pub(crate) fn role(
    config: &Config,
    ports: &Ports,
    slots: &Arc<Slots>,
    census: &Arc<Census>,
    shard_limits: &ShardLimits,
) -> anyhow::Result<Shards> {
    let store = ports.store.clone().context("the role shards needs a store")?;
    let archive = ports.archive.clone().context("the role shards needs an archive")?;
    let (log, clock) = (ports.log.clone(), ports.clock.clone());
    let refs: ShardRefs = tree::places(log.shard_count() as usize);
    let shard_ports = ShardPorts {
        shard: crate::model::offset::ShardId(0),
        log: log.clone(),
        store: store.clone(),
        archive: archive.clone(),
        names: Some(Names::new(census.clone())),
        slots: slots.clone(),
    };
    let actor = ShardActor {
        ports: shard_ports,
        limits: shard_limits.clone(),
        max_series: limits::max_series(config, log.shard_count()),
        isolation: Arc::new(Semaphore::new(1)),
    };
    let (places, handover, leaving) = (refs.clone(), config.shards.handover, log.clone());
    let spec = ShardsSpec {
        assignment: log.assignment(),
        child: Arc::new(move |shard| tree::shard(actor.of_shard(shard), &places)),
        let_go: Arc::new(move |shards| leaving.let_go(shards)),
        slots: slots.clone(),
        refs: refs.clone(),
        policy: RestartPolicy { escalates: false, ..limits::restarts(config) },
        refused_delay_ms: millis(config.shards.refused_delay),
        handover,
        clock: clock.clone(),
    };
    let upkeep = Upkeep {
        log: log.id(),
        store: store.clone(),
        archive: archive.clone(),
        clock: clock.clone(),
        limits: limits::upkeep(config),
        slots: slots.clone(),
        damaged: Damaged::default(),
        run: getrandom::u64().context("no randomness")?,
        looked: Looked::default(),
    };
    let archiver = Archiver {
        log,
        store,
        archive,
        clock,
        limits: limits::archive(config),
        slots: slots.clone(),
        waiting: Waiting::default(),
    };
    let place = ShardsPlace::default();
    let children =
        [tree::shards(spec, place.clone()), tree::archiver(archiver), tree::upkeep(upkeep)];
    Ok(Shards { handle: Handle { place, refs, handover }, children })
}

impl Handle {
    /// Starts the pulse.
    pub(crate) fn pulse(&self, config: &Config, slots: &Arc<Slots>) -> JoinHandle<()> {
        tokio::spawn(pulse::run(self.refs.clone(), slots.clone(), config.shards.pull_interval))
    }

    /// Drains every shard, bounded in time, and lets it go; what does not end in time is still in
    /// the log.
    pub(crate) async fn let_go(&self) {
        let Some(supervisor) = self.place.load_full() else { return };
        let longest = self.handover + ANSWER;
        if !supervisor
            .call(ShardsMessage::LetGoAll, Some(longest))
            .await
            .is_ok_and(|reply| reply.is_success())
        {
            tracing::warn!(
                "the shards were not let go within {longest:?}; other nodes get them when the log \
                 misses this one"
            );
        }
    }
}
