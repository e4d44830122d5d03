//! The reader against endpoints that answer correctly, wrongly, late or not at all.

mod generations;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Barrier};
use std::time::Duration;

use bytes::Bytes;
use ractor::{Actor, ActorProcessingErr, ActorRef, RpcReplyPort};
use tokio::sync::Semaphore;

use super::directory::PeerDirectory;
use super::endpoint::{EndpointMessage, PeerEndpoint};
use super::peer::MeshPeer;
use super::reader::MeshReader;
use super::server::MeshServer;
use super::wire::{self, PeerReply, PeerRequest, ShardFailure};
use crate::actors::catalogue::{CatalogueNames, CatalogueQuery, MAX_NAMES};
use crate::actors::live::{LiveError, LiveReader, ShardRead, ShardResults};
use crate::actors::record_builder::records_of;
use crate::actors::shard_table::ShardTable;
use crate::clock::{Clock, Stopwatch, SystemClock};
use crate::model::batch::{RoutedSeries, ValidBatch, ValidEvent};
use crate::model::decimal::Decimal;
use crate::model::generation::MaintainedSet;
use crate::model::matcher::Matcher;
use crate::model::offset::{Epoch, LogId, ShardId};
use crate::model::rollup::Rollup;
use crate::model::series::Series;
use crate::model::served::ServedHours;
use crate::model::window::{HOUR_MS, Hour};
use crate::persistence::log::memory::MemoryLog;
use crate::persistence::log::{LogAppender, LogIdentity, LogReader, ShardAssignment};
use crate::persistence::store::ShardStore;
use crate::persistence::store::memory::MemoryStore;
use crate::shards::generations::{ActiveSet, AdoptedGenerations};
use crate::shards::series::SeriesAdmission;
use crate::shards::state::{AccountingQuery, LiveQuery, ShardInput, ShardLimits, ShardState};

const SHARDS: u32 = 4;
/// Long enough that correct answers are not late on a busy machine.
const TIMEOUT: Duration = Duration::from_secs(3);
/// 2026-01-01T00:00:00Z.
const START: Hour = Hour(490_896);

fn limits() -> ShardLimits {
    ShardLimits {
        dedup_horizon_ms: HOUR_MS,
        dedup_max_ids: 1_000,
        flush_interval_ms: HOUR_MS,
        max_delta_bytes: 1 << 30,
        keep_flushed_ms: HOUR_MS,
        shard_count: SHARDS,
        panic_on_user: None,
    }
}

/// A table that owns these shards, with 400 events applied and nothing flushed, and the
/// checkpoints of the snapshot.
fn slots(owned: &[u32]) -> (Arc<ShardTable>, Vec<ShardRead>) {
    slots_under(owned, &MaintainedSet::default())
}

/// Like [`slots`], for shards that have adopted a set of generations.
fn slots_under(owned: &[u32], set: &MaintainedSet) -> (Arc<ShardTable>, Vec<ShardRead>) {
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let log = MemoryLog::new(LogId([7; 16]), SHARDS, clock.clone());
    for at in 0..400 {
        let series = Series::new("acme", "views", [("page".to_owned(), format!("/{}", at % 20))]);
        let routed = RoutedSeries::new(&series, SHARDS);
        let event = ValidEvent {
            series: Arc::new(routed),
            timestamp: START.start() + (at % 7) * HOUR_MS,
            value: Some(Decimal::from_units(i128::from(at) * 1_000_000_000)),
            user: Some(format!("u{}", at % 50)),
            id: None,
            raw: 0..2,
        };
        let batch = ValidBatch {
            tenant: "acme".into(),
            body: Bytes::from_static(b"{}"),
            events: vec![event],
        };
        drop(log.append(records_of(&batch, 1, 1)).expect("appended"));
    }
    let store = MemoryStore::new();
    let slots = ShardTable::new(log.clone(), log.assignment(), clock);
    let admitted: Vec<_> = set.ranges.iter().map(|range| (range.generation, vec![])).collect();
    let mut asked = Vec::new();
    for shard in (0..SHARDS).map(ShardId) {
        let claim = store.claim(shard, log.id(), 40 + u64::from(shard.0)).expect("claimed");
        asked.push((shard, Some(claim.checkpoint)));
        if owned.contains(&shard.0) {
            let admission = SeriesAdmission::limited(1_000, vec![]);
            let set = Arc::new(ActiveSet::compile(set).expect("compiles"));
            let adopted = AdoptedGenerations { set, admitted: admitted.clone() };
            let mut state =
                ShardState::new(limits(), shard, &claim, vec![], admission, log.end(shard))
                    .with_generations(adopted, 1_000);
            state.step(
                ShardInput::Records(&log.read(shard, 0, usize::MAX).expect("reads")),
                &mut Vec::new(),
            );
            slots.entry(shard).install_owner(&claim, state);
        }
    }
    (slots, asked)
}

fn server(slots: &Arc<ShardTable>, max_answer: usize) -> MeshServer {
    MeshServer {
        table: slots.clone(),
        clock: Arc::new(SystemClock),
        max_answer,
        node_status: Arc::new(Vec::new),
    }
}

/// Modifies the answers of a bad endpoint.
type Twist = Arc<dyn Fn(PeerRequest, PeerReply) -> Option<Vec<u8>> + Send + Sync>;

/// An endpoint that applies its twist to every answer and counts the
/// requests other than heartbeats.
#[derive(Clone)]
struct Twisted {
    server: MeshServer,
    twist: Twist,
    asked: Arc<AtomicUsize>,
    delay: Duration,
}

impl Actor for Twisted {
    type Msg = EndpointMessage;
    type State = Vec<RpcReplyPort<Vec<u8>>>;
    type Arguments = ();

    async fn pre_start(
        &self,
        _: ActorRef<EndpointMessage>,
        (): (),
    ) -> Result<Self::State, ActorProcessingErr> {
        Ok(Vec::new())
    }

    async fn handle(
        &self,
        _: ActorRef<EndpointMessage>,
        message: EndpointMessage,
        unanswered: &mut Self::State,
    ) -> Result<(), ActorProcessingErr> {
        let EndpointMessage::Ask(question, reply) = message;
        let request: PeerRequest = wire::decode(&question)?;
        let honest = self.server.answer(&question)?;
        if request == PeerRequest::Beat {
            return Ok(reply.send(honest)?);
        }
        self.asked.fetch_add(1, Ordering::SeqCst);
        tokio::time::sleep(self.delay).await;
        match (self.twist)(request, wire::decode(&honest)?) {
            Some(bytes) => Ok(reply.send(bytes)?),
            None => {
                unanswered.push(reply);
                Ok(())
            }
        }
    }
}

/// A node that owns shards 0 and 1, and its only peer, which owns the others.
struct Pair {
    reader: Arc<MeshReader>,
    peer: Arc<MeshPeer>,
    asked: Vec<ShardRead>,
    questions: Arc<AtomicUsize>,
}

impl Pair {
    async fn new(twist: Twist) -> Self {
        Self::with(twist, 1 << 20, Duration::ZERO).await
    }

    async fn with(twist: Twist, max_answer: usize, delay: Duration) -> Self {
        Self::under(&MaintainedSet::default(), twist, max_answer, delay).await
    }

    async fn under(set: &MaintainedSet, twist: Twist, max_answer: usize, delay: Duration) -> Self {
        let (here, asked) = slots_under(&[0, 1], set);
        let (there, _) = slots_under(&[2, 3], set);
        let questions = Arc::new(AtomicUsize::new(0));
        let door =
            Twisted { server: server(&there, max_answer), twist, asked: questions.clone(), delay };
        let (door, _) = Actor::spawn(None, door, ()).await.expect("spawned");
        let peer = MeshPeer::new("other".to_owned(), door, Arc::new(SystemClock), 16);
        peer.heartbeat(TIMEOUT).await.expect("it is there");
        let directory = Arc::new(PeerDirectory::default());
        directory.join(peer.clone());
        let clock = Arc::new(SystemClock);
        let reader = Arc::new(MeshReader { table: here, directory, clock, call_timeout: TIMEOUT });
        Self { reader, peer, asked, questions }
    }

    async fn read(&self, to: Hour, matchers: Vec<Matcher>) -> (Rows, ShardResults) {
        let (reader, asked) = (self.reader.clone(), self.asked.clone());
        tokio::task::spawn_blocking(move || read(&*reader, &asked, to, &matchers))
            .await
            .expect("no panic")
    }

    /// The outcome of each shard for a query whose windows are still open.
    async fn outcomes(&self) -> (Rows, Vec<Option<LiveError>>) {
        let (rows, mut reports) = self.read(Hour(i32::MAX), vec![]).await;
        reports.sort_by_key(|(shard, _)| *shard);
        assert_eq!(reports.iter().map(|(shard, _)| shard.0).collect::<Vec<_>>(), [0, 1, 2, 3]);
        (rows, reports.iter().map(|(_, report)| report.err()).collect())
    }
}

type Rows = BTreeMap<(u32, String, i32), Rollup>;

fn read(
    reader: &dyn LiveReader,
    asked: &[ShardRead],
    to: Hour,
    matchers: &[Matcher],
) -> (Rows, ShardResults) {
    let (tenant, metric, from) = ("acme", "views", Hour(i32::MIN));
    let served = &[ServedHours::ingest(from, to)];
    let (distinct, quantiles, overflow) = (true, true, false);
    let question = LiveQuery { tenant, metric, from, to, served, distinct, quantiles, overflow };
    let mut rows = Rows::new();
    let reports = reader.read(asked, &question, matchers, &mut |shard, info, hour, rollup| {
        rows.entry((shard.0, info.series.label("page").to_owned(), hour.0))
            .or_default()
            .merge(rollup);
    });
    (rows, reports)
}

fn honest() -> Twist {
    Arc::new(|_, reply| Some(wire::encode(&reply).expect("encodes")))
}

/// The answer of a node that owns everything, and the part of it in shards 0 and 1.
fn expected() -> (Rows, Rows) {
    let (all, asked) = slots(&[0, 1, 2, 3]);
    let (rows, _) = read(&*all, &asked, Hour(i32::MAX), &[]);
    let near = rows
        .iter()
        .filter(|((shard, ..), _)| *shard < 2)
        .map(|(key, rollup)| (key.clone(), rollup.clone()))
        .collect();
    (rows, near)
}

#[tokio::test(flavor = "multi_thread")]
async fn two_nodes_answer_as_one_in_one_call() {
    let pair = Pair::new(honest()).await;
    let (rows, outcomes) = pair.outcomes().await;
    assert_eq!((rows, outcomes), (expected().0, vec![None; 4]));
    assert_eq!(pair.questions.load(Ordering::SeqCst), 1, "one call for both shards");
    let matcher =
        Matcher::Regex("page".to_owned(), regex::Regex::new("^(?:/1.*)$").expect("an expression"));
    let (rows, _) = pair.read(Hour(i32::MAX), vec![matcher]).await;
    let mut matching = expected().0;
    matching.retain(|(_, page, _), _| page.starts_with("/1"));
    assert_eq!(rows, matching);
    let (reader, asked) = (pair.reader.clone(), pair.asked.clone());
    let counted = tokio::task::spawn_blocking(move || {
        let question = AccountingQuery { tenant: "acme", from: Hour(i32::MIN), to: Hour(i32::MAX) };
        let mut counted = 0;
        let reports = reader.accounting(&asked, &question, &mut |_, row| counted += row.aggregated);
        (counted, reports.iter().all(|(_, report)| report.is_ok()))
    });
    assert_eq!(counted.await.expect("no panic"), (400, true));
}

/// The pages of all shards as the reader lists them, and the outcome of each shard.
async fn pages(pair: &Pair, limit: usize) -> (BTreeSet<String>, Vec<Option<LiveError>>) {
    let (reader, asked) = (pair.reader.clone(), pair.asked.clone());
    let listed = tokio::task::spawn_blocking(move || {
        let names = CatalogueNames::Values("page", Some("views"));
        let (tenant, prefix, after) = ("acme", "/1", "/11");
        let question = CatalogueQuery { tenant, names, prefix, after, limit, others: &[] };
        let mut pages = BTreeSet::new();
        let mut reports =
            reader.catalogue(&asked, &question, &mut |growth| pages.extend(growth.values.clone()));
        reports.sort_by_key(|(shard, _)| *shard);
        (pages, reports.iter().map(|(_, report)| report.err()).collect())
    });
    listed.await.expect("no panic")
}

#[tokio::test(flavor = "multi_thread")]
async fn names_come_from_all_nodes_bounded_and_checked() {
    let pair = Pair::new(honest()).await;
    let all: BTreeSet<String> = (12..20).map(|page| format!("/{page}")).collect();
    assert_eq!(pages(&pair, MAX_NAMES).await, (all.clone(), vec![None; 4]));
    assert_eq!(pair.questions.load(Ordering::SeqCst), 1, "one call for both shards");
    let (first, _) = pages(&pair, 3).await;
    assert!(all.iter().take(3).all(|page| first.contains(page)), "{first:?}");
    let failed = |error| vec![None, None, Some(error), Some(error)];
    assert_eq!(
        pages(&pair, MAX_NAMES + 1).await.1,
        failed(LiveError::Unreachable),
        "it is refused"
    );
    let small = Pair::with(honest(), 10, Duration::ZERO).await;
    let (near, outcomes) = pages(&small, MAX_NAMES).await;
    assert_eq!(outcomes, failed(LiveError::TooLarge));
    for twist in [
        |body: &mut wire::CatalogueBody| body.values.push("/2".to_owned()),
        |body: &mut wire::CatalogueBody| body.values.resize(MAX_NAMES + 1, "/12".to_owned()),
        |body: &mut wire::CatalogueBody| {
            let row = wire::MetricRow {
                metric: "/12".to_owned(),
                labels: vec![],
                series: 1,
                overflow: false,
                hours: None,
            };
            body.metrics.push(row);
        },
    ] {
        let twisted: Twist = Arc::new(move |_, reply| {
            let PeerReply::Catalogue(mut answers) = reply else { panic!("{reply:?}") };
            answers
                .iter_mut()
                .for_each(|answer| twist(answer.outcome.as_mut().expect("an answer")));
            wire::encode(&PeerReply::Catalogue(answers)).ok()
        });
        assert_eq!(
            pages(&Pair::new(twisted).await, MAX_NAMES).await,
            (near.clone(), failed(LiveError::Unreachable))
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shard_that_stands_still_says_so_to_every_node() {
    let (here, asked) = slots(&[0, 1]);
    let (there, _) = slots(&[2]);
    // One has stopped before a record, the other could not start at all.
    there.stop(ShardId(2), Some(1_000), "a record of another release");
    there.stop(ShardId(3), None, "its log is damaged");
    let (door, _) = Actor::spawn(
        None,
        PeerEndpoint { server: server(&there, 1 << 20), permits: Arc::new(Semaphore::new(4)) },
        (),
    )
    .await
    .expect("spawned");
    let peer = MeshPeer::new("other".to_owned(), door, Arc::new(SystemClock), 16);
    peer.heartbeat(TIMEOUT).await.expect("it is there");
    let directory = Arc::new(PeerDirectory::default());
    directory.join(peer);
    let clock = Arc::new(SystemClock);
    let reader = MeshReader { table: here, directory, clock, call_timeout: TIMEOUT };
    let for_there = asked.clone();
    let (_, mut reports) =
        tokio::task::spawn_blocking(move || read(&reader, &asked, Hour(i32::MAX), &[]))
            .await
            .expect("no panic");
    reports.sort_by_key(|(shard, _)| *shard);
    let stopped: Vec<_> =
        reports.iter().map(|(_, report)| report.map(|report| report.stopped)).collect();
    assert_eq!(stopped, [Ok(false), Ok(false), Ok(true), Err(LiveError::Stopped)]);
    let at_home = read(&*there, &for_there[2..], Hour(i32::MAX), &[]).1;
    let stopped: Vec<_> =
        at_home.iter().map(|(_, report)| report.map(|report| report.stopped)).collect();
    assert_eq!(stopped, [Ok(true), Err(LiveError::Stopped)]);
}

/// What the reader reports for answers that are wrong in one way each; nothing of them is used.
#[tokio::test(flavor = "multi_thread")]
async fn answers_that_are_not_to_the_question_are_refused_whole() {
    let live = |twist: fn(&mut Vec<wire::ShardAnswer<wire::LiveBody>>)| -> Twist {
        Arc::new(move |_, reply| {
            let PeerReply::Live(mut answers) = reply else { panic!("{reply:?}") };
            twist(&mut answers);
            Some(wire::encode(&PeerReply::Live(answers)).expect("encodes"))
        })
    };
    let both = |error| vec![None, None, Some(error), Some(error)];
    let foreign: fn(&mut Vec<wire::ShardAnswer<wire::LiveBody>>) = |answers| {
        let key = Series::new("zeta", "views", []).key();
        for answer in answers {
            // The last series of many: the rows before it must not be used either.
            *answer.outcome.as_mut().expect("an answer").series.last_mut().expect("a series") =
                key.clone().into();
        }
    };
    let cases: Vec<(&str, Twist, Vec<Option<LiveError>>)> = vec![
        (
            "an old epoch",
            live(|all| all.iter_mut().for_each(|a| a.place.epoch.0 -= 1)),
            both(LiveError::StaleCheckpoint),
        ),
        (
            "the nonce of another life",
            live(|all| all.iter_mut().for_each(|a| a.place.epoch.1 ^= 1)),
            both(LiveError::StaleCheckpoint),
        ),
        (
            "another offset",
            live(|all| all.iter_mut().for_each(|a| a.place.next += 1)),
            both(LiveError::StaleCheckpoint),
        ),
        (
            "another log",
            live(|all| all.iter_mut().for_each(|a| a.place.log[0] ^= 1)),
            both(LiveError::StaleCheckpoint),
        ),
        ("another tenant's series", live(foreign), both(LiveError::Unreachable)),
        (
            "a shard left out",
            live(|all| all.retain(|a| a.place.shard == 2)),
            vec![None, None, None, Some(LiveError::Unreachable)],
        ),
        (
            "a failure of one shard",
            live(|all| all[0].outcome = Err(ShardFailure::Moved)),
            vec![None, None, Some(LiveError::StaleCheckpoint), None],
        ),
        (
            "an hour that was not asked for",
            live(|all| {
                all.iter_mut().for_each(|a| a.outcome.as_mut().expect("it").rows[0].hour = i32::MAX)
            }),
            both(LiveError::Unreachable),
        ),
        (
            "a sketch that does not decode",
            live(|all| {
                all.iter_mut().for_each(|a| {
                    a.outcome.as_mut().expect("it").rows[0].distinct = vec![99].into()
                })
            }),
            both(LiveError::Unreachable),
        ),
        (
            "a series without a key",
            live(|all| {
                all.iter_mut()
                    .for_each(|a| a.outcome.as_mut().expect("it").rows[0].series = 1 << 20)
            }),
            both(LiveError::Unreachable),
        ),
        ("garbage", Arc::new(|_, _| Some(vec![wire::VERSION, 0xc1])), both(LiveError::Unreachable)),
        ("another version", Arc::new(|_, _| Some(vec![9, 0x80])), both(LiveError::Unreachable)),
        (
            "the answer to another question",
            Arc::new(|_, _| wire::encode(&PeerReply::Accounting(vec![])).ok()),
            both(LiveError::Unreachable),
        ),
        (
            "no room",
            Arc::new(|_, _| wire::encode(&PeerReply::Overloaded).ok()),
            both(LiveError::Overloaded),
        ),
    ];
    for (name, twist, outcomes) in cases {
        let pair = Pair::new(twist).await;
        let (rows, found) = pair.outcomes().await;
        assert_eq!(found, outcomes, "{name}");
        let mut allowed = expected().0;
        allowed.retain(|(shard, ..), _| outcomes[*shard as usize].is_none());
        assert_eq!(
            rows, allowed,
            "{name}: a shard that failed contributes nothing, the others everything"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_does_not_answer_costs_one_deadline_and_then_nothing() {
    let pair = Pair::new(Arc::new(|_, _| None)).await;
    let watch = Stopwatch::start();
    let (rows, outcomes) = pair.outcomes().await;
    let took = watch.elapsed();
    assert!(took >= TIMEOUT && took < TIMEOUT * 2, "{took:?}");
    let unreachable = vec![None, None, Some(LiveError::Unreachable), Some(LiveError::Unreachable)];
    assert_eq!((rows, outcomes), (expected().1, unreachable.clone()));
    let watch = Stopwatch::start();
    for _ in 0..20 {
        assert_eq!(pair.outcomes().await.1, unreachable);
    }
    assert!(watch.elapsed() < TIMEOUT, "it is not asked any more: {:?}", watch.elapsed());
    assert_eq!(pair.questions.load(Ordering::SeqCst), 1);
    pair.peer.heartbeat(TIMEOUT).await.expect("it answers again");
    assert!(pair.peer.is_available(), "a heartbeat after the failure makes it worth asking");
    pair.peer.mark_gone();
    assert_eq!(
        pair.outcomes().await.1,
        unreachable,
        "what a peer owned that is gone is still known"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn equal_questions_share_a_call() {
    let pair = Pair::with(honest(), 1 << 20, TIMEOUT / 3).await;
    let expected = expected().0;
    // They ask when all of them are there: a busy machine may take longer to start so many threads
    // than the answer takes.
    let all_there = Arc::new(Barrier::new(100));
    let asking: Vec<_> = (0..100)
        .map(|_| {
            let (reader, asked) = (pair.reader.clone(), pair.asked.clone());
            let all_there = all_there.clone();
            tokio::task::spawn_blocking(move || {
                all_there.wait();
                read(&*reader, &asked, Hour(i32::MAX), &[])
            })
        })
        .collect();
    for asked in asking {
        let (rows, reports) = asked.await.expect("no panic");
        let failures: Vec<_> = reports.iter().map(|(_, report)| report.err()).collect();
        assert_eq!((rows, failures), (expected.clone(), vec![None; 4]));
    }
    assert_eq!(pair.questions.load(Ordering::SeqCst), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_is_too_large_is_missing_by_name() {
    let all = expected().0;
    let of = |shards: &[u32]| {
        let of_shards = all.iter().filter(|((shard, ..), _)| shards.contains(shard));
        of_shards.map(|(key, rollup)| (key.clone(), rollup.clone())).collect::<Rows>()
    };
    let pair = Pair::with(honest(), 100, Duration::ZERO).await;
    let too_large = Some(LiveError::TooLarge);
    assert_eq!(pair.outcomes().await, (of(&[0, 1]), vec![None, None, too_large, too_large]));
    // One of the two fits alone, and is not lost with the other.
    let pair = Pair::with(honest(), 2_000, Duration::ZERO).await;
    assert_eq!(pair.outcomes().await, (of(&[0, 1, 2]), vec![None, None, None, too_large]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_holds_nothing_of_closed_windows_is_not_asked() {
    let pair = Pair::new(honest()).await;
    let (_, reports) = pair.read(START, vec![]).await;
    assert_eq!((reports.len(), reports.iter().all(|(_, report)| report.is_ok())), (4, true));
    assert_eq!(pair.questions.load(Ordering::SeqCst), 0, "all that it holds is later");
    let now = SystemClock.now();
    assert!(
        reports.iter().all(|(_, r)| r.is_ok_and(|r| now - r.as_of < 60_000 && r.as_of <= now)),
        "{reports:?}"
    );
    let (rows, _) = pair.read(Hour(START.0 + 1), vec![]).await;
    assert_eq!(pair.questions.load(Ordering::SeqCst), 1, "one window of these it holds");
    let mut first = expected().0;
    first.retain(|(_, _, hour), _| *hour == START.0);
    assert_eq!(rows, first);
    let _ = pair.read(Hour::of(now + HOUR_MS), vec![]).await;
    assert_eq!(pair.questions.load(Ordering::SeqCst), 2, "what is open is always asked for");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_word_of_another_epoch_does_not_count_for_silence() {
    let mut pair = Pair::new(honest()).await;
    for (_, checkpoint) in &mut pair.asked {
        let at = checkpoint.as_mut().expect("claimed");
        at.epoch = Epoch { counter: at.epoch.counter + 1, nonce: 1 };
    }
    let (rows, reports) = pair.read(START, vec![]).await;
    assert!(rows.is_empty());
    let moved =
        reports.iter().filter(|(_, report)| *report == Err(LiveError::StaleCheckpoint)).count();
    assert_eq!(
        (moved, pair.questions.load(Ordering::SeqCst)),
        (4, 1),
        "it is asked, and says that the shards moved: {reports:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_door_refuses_at_once_what_it_has_no_permit_for() {
    let (there, asked) = slots(&[2, 3]);
    let permits = Arc::new(Semaphore::new(1));
    let door = PeerEndpoint { server: server(&there, 1 << 20), permits: permits.clone() };
    let (door, _) = Actor::spawn(None, door, ()).await.expect("spawned");
    let peer = MeshPeer::new("other".to_owned(), door, Arc::new(SystemClock), 16);
    peer.heartbeat(TIMEOUT).await.expect("it is there");
    let directory = Arc::new(PeerDirectory::default());
    directory.join(peer.clone());
    let (here, _) = slots(&[]);
    let reader = Arc::new(MeshReader {
        table: here,
        directory,
        clock: Arc::new(SystemClock),
        call_timeout: TIMEOUT,
    });
    let ask = || {
        let (reader, asked) = (reader.clone(), asked.clone());
        tokio::task::spawn_blocking(move || read(&*reader, &asked, Hour(i32::MAX), &[]).1)
    };
    let held = permits.acquire().await.expect("open");
    let reports = ask().await.expect("no panic");
    assert_eq!(
        reports.iter().filter(|(_, report)| *report == Err(LiveError::Overloaded)).count(),
        2,
        "{reports:?}"
    );
    peer.heartbeat(TIMEOUT).await.expect("to be busy is to be alive");
    drop(held);
    let reports = ask().await.expect("no panic");
    assert_eq!(reports.iter().filter(|(_, report)| report.is_ok()).count(), 2, "{reports:?}");
}
