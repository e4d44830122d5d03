//! The supervision tree of a node: root over gateways and shards.

use std::sync::Arc;

use arc_swap::ArcSwapOption;
use ractor::{Actor, ActorRef};

use crate::actors::archiver::Archiver;
use crate::actors::gateway_pool::{GatewayActor, GatewayRefs};
use crate::actors::pulse::ShardRefs;
use crate::actors::shard::ShardActor;
use crate::actors::upkeep::Upkeep;
use crate::clock::Clock;
use crate::supervision::policy::RestartPolicy;
use crate::supervision::supervisor::{ChildSpec, SpawnChild, Supervisor, SupervisorMessage, SupervisorSpec};

/// Empty places for `n` actors.
pub fn places<M>(n: usize) -> Arc<Vec<ArcSwapOption<ActorRef<M>>>> {
    Arc::new((0..n).map(|_| ArcSwapOption::empty()).collect())
}

/// A child that is one actor; `place` is told where it is.
fn actor_child<A>(
    kind: &'static str,
    name: String,
    actor: A,
    place: impl Fn(ActorRef<A::Msg>) + Send + Sync + Clone + 'static,
) -> ChildSpec
where
    A: Actor<Arguments = ()> + Clone + Sync,
{
    let spawn: SpawnChild = Arc::new(move |supervisor| {
        let (actor, place) = (actor.clone(), place.clone());
        Box::pin(async move {
            let (spawned, _) = Actor::spawn_linked(None, actor, (), supervisor).await?;
            let cell = spawned.get_cell();
            place(spawned);
            Ok(cell)
        })
    });
    ChildSpec { kind, name, spawn }
}

/// A child that is a supervisor of its own.
fn supervisor_child(
    kind: &'static str,
    children: impl Fn() -> Vec<ChildSpec> + Send + Sync + 'static,
    policy: RestartPolicy,
    clock: Arc<dyn Clock>,
) -> ChildSpec {
    let children = Arc::new(children);
    let spawn: SpawnChild = Arc::new(move |supervisor| {
        let spec = SupervisorSpec { children: children(), policy, clock: clock.clone() };
        Box::pin(async move {
            let (spawned, _) = Actor::spawn_linked(None, Supervisor, spec, supervisor).await?;
            Ok(spawned.get_cell())
        })
    });
    ChildSpec { kind, name: kind.to_owned(), spawn }
}

/// What the tree is made of.
#[derive(Clone)]
pub struct TreeParts {
    /// The gateway actors, one for each place.
    pub gateway: GatewayActor,
    /// Where they are.
    pub gateways: GatewayRefs,
    /// The shard actors, one for each place.
    pub shards: Vec<ShardActor>,
    /// Where they are.
    pub shard_refs: ShardRefs,
    /// The archiver.
    pub archiver: Archiver,
    /// The upkeep of the archive.
    pub upkeep: Upkeep,
    /// When failed actors start again.
    pub policy: RestartPolicy,
    /// Time.
    pub clock: Arc<dyn Clock>,
}

/// Starts the tree; the root's failure is the node's.
///
/// # Errors
/// If an actor cannot be spawned at all.
pub async fn start(parts: TreeParts) -> anyhow::Result<(ActorRef<SupervisorMessage>, tokio::task::JoinHandle<()>)> {
    let (policy, clock) = (parts.policy, parts.clock.clone());
    let shards_policy = RestartPolicy { escalates: false, ..policy };
    let (for_gateways, for_shards) = (parts.clone(), parts.clone());
    let (archiver, upkeep) = (parts.archiver.clone(), parts.upkeep.clone());
    let children = vec![
        supervisor_child("gateways", move || gateways(&for_gateways), policy, clock.clone()),
        supervisor_child("shards", move || shards(&for_shards), shards_policy, clock.clone()),
        actor_child("archiver", "archiver".to_owned(), archiver, |_| {}),
        actor_child("upkeep", "upkeep of the archive".to_owned(), upkeep, |_| {}),
    ];
    Ok(Actor::spawn(None, Supervisor, SupervisorSpec { children, policy, clock }).await?)
}

fn gateways(parts: &TreeParts) -> Vec<ChildSpec> {
    (0..parts.gateways.len())
        .map(|i| {
            let places = parts.gateways.clone();
            actor_child("gateway", format!("gateway {i}"), parts.gateway.clone(), move |actor| {
                places[i].store(Some(Arc::new(actor)));
            })
        })
        .collect()
}

fn shards(parts: &TreeParts) -> Vec<ChildSpec> {
    parts
        .shards
        .iter()
        .map(|shard| {
            let (places, index) = (parts.shard_refs.clone(), shard.shard.0 as usize);
            actor_child("shard", format!("shard {index}"), shard.clone(), move |actor| {
                places[index].store(Some(Arc::new(actor)));
            })
        })
        .collect()
}
