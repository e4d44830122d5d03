//! The gateway role: a pool of actors that append requests to the log.

use std::sync::Arc;

use super::Ports;
use super::{limits, tree};
use crate::actors::gateway::Submit;
use crate::actors::gateway_pool::{AppendHealth, GatewayActor, GatewayPool, Stamps};
use crate::config::Config;
use crate::supervision::supervisor::ChildSpec;

/// What the gateway role adds to a node.
pub(super) struct Gateways {
    /// Takes requests.
    pub submit: Arc<dyn Submit>,
    /// Whether appends work.
    pub health: Arc<AppendHealth>,
    /// The pool.
    pub child: ChildSpec,
}

/// The gateway role.
pub(super) fn role(config: &Config, ports: &Ports) -> anyhow::Result<Gateways> {
    let gateway =
        getrandom::u32().map_err(|e| anyhow::anyhow!("no randomness for the gateway's id: {e}"))?;
    let health = Arc::new(AppendHealth::default());
    let actor = GatewayActor {
        log: ports.log.clone(),
        gateway,
        health: health.clone(),
        stamps: Stamps::begin(&*ports.clock),
        clock: ports.clock.clone(),
    };
    let places = tree::places(config.gateway.actors);
    let child =
        tree::gateways(actor, places.clone(), limits::restarts(config), ports.clock.clone());
    Ok(Gateways { submit: GatewayPool::new(places), health, child })
}
