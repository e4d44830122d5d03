//! The gateway role: a pool of actors that append requests to the log.

use std::sync::Arc;

use super::NodePorts;
use super::{limits, tree};
use crate::actors::gateway::BatchSink;
use crate::actors::gateway_pool::{AppendHealth, GatewayActor, GatewayClock, GatewayPool};
use crate::config::Config;
use crate::supervision::supervisor::ChildSpec;

/// The parts of a node with the gateway role.
pub(super) struct GatewayRole {
    /// Accepts validated requests, and answers when they are durable.
    pub submit: Arc<dyn BatchSink>,
    /// Whether recent appends succeeded.
    pub health: Arc<AppendHealth>,
    /// The supervisor of the actor pool.
    pub child: ChildSpec,
}
pub(super) fn role(config: &Config, ports: &NodePorts) -> anyhow::Result<GatewayRole> {
    let gateway =
        getrandom::u32().map_err(|e| anyhow::anyhow!("no randomness for the gateway's id: {e}"))?;
    let health = Arc::new(AppendHealth::default());
    let actor = GatewayActor {
        log: ports.log.clone(),
        gateway,
        health: health.clone(),
        append_clock: GatewayClock::start(&*ports.clock),
        clock: ports.clock.clone(),
    };
    let places = tree::empty_refs(config.gateway.actors);
    let child =
        tree::gateways(actor, places.clone(), limits::restarts(config), ports.clock.clone());
    Ok(GatewayRole { submit: GatewayPool::new(places), health, child })
}
