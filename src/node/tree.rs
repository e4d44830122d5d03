//! The supervision tree of a node: a root over gateways, shards, archiver and mesh.

use std::sync::Arc;

use arc_swap::ArcSwapOption;
use ractor::{Actor, ActorRef};

use crate::actors::archive_maintenance::ArchiveMaintenance;
use crate::actors::archiver::Archiver;
use crate::actors::gateway_pool::{GatewayActor, GatewayRefs};
use crate::actors::generation_keeper::GenerationKeeper;
use crate::actors::set_watch::SetWatch;
use crate::actors::shard::ShardActor;
use crate::actors::ticker::ShardRefs;
use crate::clock::Clock;
use crate::cluster::membership::MeshActor;
use crate::recompute::replay::actor::ReplayActor;
use crate::supervision::policy::RestartPolicy;
use crate::supervision::replays::{ReplaysSpec, ReplaysSupervisor};
use crate::supervision::shards::{ShardsMessage, ShardsSpec, ShardsSupervisor};
use crate::supervision::supervisor::{
    ChildSpawner, ChildSpec, Supervisor, SupervisorMessage, SupervisorSpec,
};

/// `n` empty actor references, filled as the actors start.
pub fn empty_refs<M>(n: usize) -> Arc<Vec<ArcSwapOption<ActorRef<M>>>> {
    Arc::new((0..n).map(|_| ArcSwapOption::empty()).collect())
}

/// A child that is one actor; `place` receives its reference at every start.
fn actor_child<A>(
    kind: &'static str,
    name: String,
    actor: A,
    place: impl Fn(ActorRef<A::Msg>) + Send + Sync + Clone + 'static,
) -> ChildSpec
where
    A: Actor<Arguments = ()> + Clone + Sync,
{
    let spawn: ChildSpawner = Arc::new(move |supervisor| {
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

/// A child that is itself a supervisor, with its own restart budget.
fn supervisor_child(
    kind: &'static str,
    children: impl Fn() -> Vec<ChildSpec> + Send + Sync + 'static,
    policy: RestartPolicy,
    clock: Arc<dyn Clock>,
) -> ChildSpec {
    let children = Arc::new(children);
    let spawn: ChildSpawner = Arc::new(move |supervisor| {
        // `children` is called at each start, so that a restarted supervisor gets fresh children.
        let spec = SupervisorSpec { children: children(), policy, clock: clock.clone() };
        Box::pin(async move {
            let (spawned, _) = Actor::spawn_linked(None, Supervisor, spec, supervisor).await?;
            Ok(spawned.get_cell())
        })
    });
    ChildSpec { kind, name: kind.to_owned(), spawn }
}

/// The current supervisor of the shards; empty until it has started.
pub type ShardsSupervisorRef = Arc<ArcSwapOption<ActorRef<ShardsMessage>>>;

/// Starts the tree over the children of the node's roles. The node fails when the root does.
///
/// # Errors
/// If an actor cannot be spawned.
pub async fn start(
    children: Vec<ChildSpec>,
    policy: RestartPolicy,
    clock: Arc<dyn Clock>,
) -> anyhow::Result<(ActorRef<SupervisorMessage>, tokio::task::JoinHandle<()>)> {
    Ok(Actor::spawn(None, Supervisor, SupervisorSpec { children, policy, clock }).await?)
}

/// The pool of gateway actors, one per entry of `places`.
pub fn gateways(
    gateway: GatewayActor,
    places: GatewayRefs,
    policy: RestartPolicy,
    clock: Arc<dyn Clock>,
) -> ChildSpec {
    let children = move || {
        let one = |i: usize| {
            let places = places.clone();
            actor_child("gateway", format!("gateway {i}"), gateway.clone(), move |actor| {
                places[i].store(Some(Arc::new(actor)));
            })
        };
        (0..places.len()).map(one).collect()
    };
    supervisor_child("gateways", children, policy, clock)
}

/// The supervisor of all shards.
pub fn shards(spec: ShardsSpec, place: ShardsSupervisorRef) -> ChildSpec {
    let spawn: ChildSpawner = Arc::new(move |supervisor| {
        let (spec, place) = (spec.clone(), place.clone());
        Box::pin(async move {
            let (spawned, _) =
                Actor::spawn_linked(None, ShardsSupervisor, spec, supervisor).await?;
            let cell = spawned.get_cell();
            place.store(Some(Arc::new(spawned)));
            Ok(cell)
        })
    });
    ChildSpec { kind: "shards", name: "shards".to_owned(), spawn }
}

/// The actor of one shard.
pub fn shard(actor: ShardActor, places: &ShardRefs) -> ChildSpec {
    let (places, index) = (places.clone(), actor.ports.shard.0 as usize);
    actor_child("shard", format!("shard {index}"), actor, move |actor| {
        places[index].store(Some(Arc::new(actor)))
    })
}

/// The archiver actor, which has no callers.
pub fn archiver(archiver: Archiver) -> ChildSpec {
    actor_child("archiver", "archiver".to_owned(), archiver, |_| {})
}

/// The archive maintenance actor, which has no callers.
pub fn upkeep(upkeep: ArchiveMaintenance) -> ChildSpec {
    actor_child("upkeep", "upkeep of the archive".to_owned(), upkeep, |_| {})
}

/// The keeper of generations, which has no callers.
pub fn keeper(keeper: GenerationKeeper) -> ChildSpec {
    actor_child("keeper", "keeper of replays".to_owned(), keeper, |_| {})
}

/// The actor that tells shards which generations to write; it has no callers.
pub fn set_watch(watch: SetWatch) -> ChildSpec {
    actor_child("set_watch", "watch of the generations".to_owned(), watch, |_| {})
}

/// The actor of one replay.
pub fn replay(replay: ReplayActor) -> ChildSpec {
    let (generation, shard) = replay.key;
    actor_child("replay", format!("replay {generation} of shard {shard}"), replay, |_| {})
}

/// The supervisor of all replays.
pub fn replays(spec: ReplaysSpec) -> ChildSpec {
    actor_child("replays", "replays".to_owned(), ReplaysSupervisor(spec), |_| {})
}

/// The mesh actor. Its failures do not escalate: a node that has lost the others still takes writes
/// and answers for its own shards.
pub fn mesh(mesh: MeshActor, policy: RestartPolicy, clock: Arc<dyn Clock>) -> ChildSpec {
    let children = move || vec![actor_child("mesh", "mesh".to_owned(), mesh.clone(), |_| {})];
    supervisor_child("mesh", children, RestartPolicy { escalates: false, ..policy }, clock)
}
