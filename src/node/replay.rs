//! The replay role: actors that fill generations from the archive.

use std::collections::BTreeMap;
use std::sync::Arc;

use anyhow::Context;

use super::{NodePorts, limits, tree};
use crate::actors::shard_table::ShardTable;
use crate::config::Config;
use crate::model::generation::GenerationId;
use crate::model::offset::ShardId;
use crate::operate::service::FillWaits;
use crate::recompute::replay::actor::ReplayActor;
use crate::recompute::replay::node::ReplayNode;
use crate::recompute::replay::shard_replay::ReplaySources;
use crate::supervision::policy::RestartPolicy;
use crate::supervision::replays::ReplaysSpec;
use crate::supervision::supervisor::ChildSpec;

/// What replays of this node wait for, as people ask for it.
struct NodeWaits(Arc<ReplayNode>);

impl FillWaits for NodeWaits {
    fn waits(&self, id: GenerationId) -> BTreeMap<ShardId, String> {
        self.0.waits(id)
    }
}

/// The supervisor of the replays, and what they wait for.
pub(crate) fn role(
    config: &Config,
    ports: &NodePorts,
    table: &Arc<ShardTable>,
) -> anyhow::Result<(ChildSpec, Arc<dyn FillWaits>)> {
    let sources = ReplaySources {
        store: ports.store.clone().context("the role replay needs a store")?,
        archive: ports.archive.clone().context("the role replay needs an archive")?,
        limits: limits::replay(config, ports.log.shard_count()),
    };
    let (log, clock) = (ports.log.clone(), ports.clock.clone());
    let timing = limits::replay_timing(config);
    let node = ReplayNode::new(sources, log, table.clone(), clock.clone(), timing);
    let (wanted, waits) = (node.clone(), Arc::new(NodeWaits(node.clone())));
    let spec = ReplaysSpec {
        wanted: Arc::new(move || wanted.wanted().map_err(|error| error.to_string())),
        child: Arc::new(move |generation, shard| {
            tree::replay(ReplayActor { node: node.clone(), key: (generation, shard) })
        }),
        // A replay that keeps failing must not end the others, nor the node.
        policy: RestartPolicy { escalates: false, ..limits::restarts(config) },
        clock,
    };
    Ok((tree::replays(spec), waits))
}
