//! The shards role: actors for the shards that the log assigns to this node, their ticker, the
//! archiver, archive maintenance, and the keeper of generations.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;

use super::tree::{self, ShardsSupervisorRef};
use super::{NodePorts, limits};
use crate::actors::archive_maintenance::{ArchiveMaintenance, DamagedObjects, ExpiryChecks};
use crate::actors::archiver::{ArchiveDelays, Archiver};
use crate::actors::generation_documents::GenerationDocuments;
use crate::actors::generation_keeper::GenerationKeeper;
use crate::actors::set_watch::SetWatch;
use crate::actors::shard::ShardActor;
use crate::actors::shard_ports::{MetricNameLoader, ShardPorts};
use crate::actors::shard_table::ShardTable;
use crate::actors::ticker::{self, ShardRefs};
use crate::config::{Config, millis};
use crate::persistence::archive::Archive;
use crate::persistence::store::GenerationStore;
use crate::shards::series::MetricNameRegistry;
use crate::shards::state::ShardLimits;
use crate::supervision::policy::RestartPolicy;
use crate::supervision::shards::{ShardsMessage, ShardsSpec};
use crate::supervision::supervisor::ChildSpec;

/// Added to the handover time, for the supervisor to answer.
const ANSWER_MARGIN: Duration = Duration::from_secs(1);

/// The parts of a node with the shards role.
pub(crate) struct ShardsRole {
    /// Controls the shards at runtime.
    pub handle: ShardsHandle,
    /// The shards' supervisor, the archiver, archive maintenance, the keeper of generations and the
    /// watch of their set.
    pub children: [ChildSpec; 5],
}

/// Controls the shards of a running node.
pub(crate) struct ShardsHandle {
    place: ShardsSupervisorRef,
    refs: ShardRefs,
    handover: Duration,
}
pub(crate) fn role(
    config: &Config,
    ports: &NodePorts,
    slots: &Arc<ShardTable>,
    metric_names: &Arc<MetricNameRegistry>,
    shard_limits: &ShardLimits,
) -> anyhow::Result<ShardsRole> {
    let store = ports.store.clone().context("the role shards needs a store")?;
    let archive = ports.archive.clone().context("the role shards needs an archive")?;
    let (log, clock) = (ports.log.clone(), ports.clock.clone());
    let keeper = keeper(config, ports, store.clone(), archive.clone());
    let refs: ShardRefs = tree::empty_refs(log.shard_count() as usize);
    let watch = SetWatch { store: store.clone(), table: slots.clone(), refs: refs.clone() };
    let shard_ports = ShardPorts {
        shard: crate::model::offset::ShardId(0),
        log: log.clone(),
        store: store.clone(),
        archive: archive.clone(),
        metric_names: Some(MetricNameLoader::new(metric_names.clone())),
        table: slots.clone(),
    };
    let actor = ShardActor {
        ports: shard_ports,
        limits: shard_limits.clone(),
        max_series: limits::max_series(config, log.shard_count()),
        // Poison is isolated in one shard at a time.
        isolation: Arc::new(Semaphore::new(1)),
    };
    let (places, handover, leaving) = (refs.clone(), config.shards.handover, log.clone());
    let spec = ShardsSpec {
        assignment: log.assignment(),
        child: Arc::new(move |shard| tree::shard(actor.for_shard(shard), &places)),
        relinquish: Arc::new(move |shards| leaving.relinquish(shards)),
        table: slots.clone(),
        refs: refs.clone(),
        // A shard that keeps failing does not end the node: its supervisor retries on its own.
        policy: RestartPolicy { escalates: false, ..limits::restarts(config) },
        refused_delay_ms: millis(config.shards.refused_delay),
        handover,
        clock: clock.clone(),
    };
    let upkeep = ArchiveMaintenance {
        log: log.id(),
        store: store.clone(),
        archive: archive.clone(),
        clock: clock.clone(),
        limits: limits::upkeep(config),
        table: slots.clone(),
        damaged: DamagedObjects::default(),
        run_id: getrandom::u64().context("no randomness")?,
        expiry_checks: ExpiryChecks::default(),
    };
    let archiver = Archiver {
        retention: log.clone(),
        log,
        store,
        archive,
        clock,
        limits: limits::archive(config),
        table: slots.clone(),
        delays: ArchiveDelays::default(),
    };
    let place = ShardsSupervisorRef::default();
    let shards = tree::shards(spec, place.clone());
    let (archiver, upkeep) = (tree::archiver(archiver), tree::upkeep(upkeep));
    let children = [shards, archiver, upkeep, keeper, tree::set_watch(watch)];
    Ok(ShardsRole { handle: ShardsHandle { place, refs, handover }, children })
}

fn keeper(
    config: &Config,
    ports: &NodePorts,
    store: Arc<dyn GenerationStore>,
    archive: Arc<dyn Archive>,
) -> ChildSpec {
    let (clock, shard_count) = (ports.clock.clone(), ports.log.shard_count());
    let documents = GenerationDocuments { store: store.clone(), archive, log: ports.log.id() };
    let limits = limits::keeping(config);
    tree::keeper(GenerationKeeper { store, clock, shard_count, limits, documents })
}

impl ShardsHandle {
    /// Starts the ticker that wakes up the shards.
    pub(crate) fn start_ticker(&self, config: &Config, slots: &Arc<ShardTable>) -> JoinHandle<()> {
        tokio::spawn(ticker::run(self.refs.clone(), slots.clone(), config.shards.pull_interval))
    }

    /// Drains and relinquishes every shard within the handover time. Whatever is not flushed by
    /// then is still in the log, for the next owner.
    pub(crate) async fn relinquish(&self) {
        let Some(supervisor) = self.place.load_full() else { return };
        let longest = self.handover + ANSWER_MARGIN;
        if !supervisor
            .call(ShardsMessage::RelinquishAll, Some(longest))
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
