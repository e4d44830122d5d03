//! Questions that name generations, between nodes of this release and of the one before.

use std::sync::Mutex;

use super::*;
use crate::model::generation::{DayRange, GenerationId, MaintainedRange};
use crate::rules::{RuleSet, RulesFormat};

/// Version and pieces of a question, as the peer reads them.
type Question = (u8, Vec<ServedHours>);

/// All hours, of which those of one day are of generation 5.
fn pieces() -> Vec<ServedHours> {
    let (from, to, end) = (Hour(i32::MIN), Hour(i32::MAX), Hour(START.0 + 24));
    let day = ServedHours { from: START, to: end, generation: GenerationId(5) };
    vec![ServedHours::ingest(from, START), day, ServedHours::ingest(end, to)]
}

/// Generation 5 has that day, without the pages.
fn day_without_pages() -> MaintainedSet {
    let rules = r#"{"rule": [{"name": "page", "remove_label": "page"}]}"#;
    let rules = RuleSet::parse(rules, RulesFormat::Json).unwrap_or_else(|e| panic!("{e}"));
    let range = MaintainedRange {
        tenant: "acme".to_owned(),
        metric: "views".to_owned(),
        days: DayRange::new(START.day(), Some(START.day() + 1)).expect("a day"),
        generation: GenerationId(5),
        rules: rules.canonical_json().into(),
    };
    MaintainedSet { version: 1, ranges: vec![range] }
}

/// Events by page, and the outcome of each shard.
async fn read_pieces(
    pair: &Pair,
    served: Vec<ServedHours>,
) -> (BTreeMap<String, u64>, ShardResults) {
    let (reader, asked) = (pair.reader.clone(), pair.asked.clone());
    let read = tokio::task::spawn_blocking(move || {
        let (from, to) = (Hour(i32::MIN), Hour(i32::MAX));
        let (distinct, quantiles, overflow) = (true, true, false);
        let (tenant, metric, served) = ("acme", "views", &served[..]);
        let question =
            LiveQuery { tenant, metric, from, to, served, distinct, quantiles, overflow };
        let mut pages = BTreeMap::new();
        let reports = reader.read(&asked, &question, &[], &mut |_, info, _, rollup| {
            let page = info.series.label("page").to_owned();
            *pages.entry(page).or_default() += rollup.figures.count;
        });
        (pages, reports)
    });
    read.await.expect("no panic")
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_answer_for_the_generation_that_is_served_or_not_at_all() {
    let set = day_without_pages();
    let pair = Pair::under(&set, honest(), 1 << 20, Duration::ZERO).await;
    let (pages, reports) = read_pieces(&pair, pieces()).await;
    assert_eq!(pages, BTreeMap::from([(String::new(), 400)]));
    assert!(reports.iter().all(|(_, report)| report.is_ok()), "{reports:?}");
    let (pages, _) = read_pieces(&pair, vec![whole()]).await;
    assert_eq!((pages.len(), pages.values().sum::<u64>()), (20, 400), "as ingested");
    // Shards that have not adopted it.
    let pair = Pair::new(honest()).await;
    let (pages, reports) = read_pieces(&pair, pieces()).await;
    let moved = |(_, report): &(ShardId, Result<_, LiveError>)| {
        report.as_ref().err() == Some(&LiveError::StaleCheckpoint)
    };
    assert!(pages.is_empty() && reports.iter().all(moved), "{reports:?}");
}

fn whole() -> ServedHours {
    ServedHours::ingest(Hour(i32::MIN), Hour(i32::MAX))
}

#[tokio::test(flavor = "multi_thread")]
async fn the_pieces_of_a_question_travel_and_an_older_node_refuses_them() {
    let travelled: Arc<Mutex<Vec<Question>>> = Arc::default();
    let seen = travelled.clone();
    // As the release before answers: it reads version 3 alone.
    let older: Twist = Arc::new(move |request, reply| {
        let version = wire::WireMessage::version(&request);
        let PeerRequest::Live(live) = request else { panic!("{request:?}") };
        seen.lock().expect("no panic").push((version, live.served().expect("pieces")));
        let why = format!("it is of version {version}, this node speaks version 3");
        wire::encode(&if version > 3 { PeerReply::Refused(why) } else { reply }).ok()
    });
    let delay = Duration::from_millis(100);
    let pair = Pair::under(&day_without_pages(), older, 1 << 20, delay).await;
    // Asked at once: questions that differ in nothing but the pieces do not share a call.
    let ((_, plain), (_, cut)) =
        tokio::join!(read_pieces(&pair, vec![whole()]), read_pieces(&pair, pieces()));
    assert!(plain.iter().all(|(_, report)| report.is_ok()), "{plain:?}");
    for (shard, report) in cut {
        let refused = report.err() == Some(LiveError::Unreachable);
        assert_eq!(refused, shard.0 >= 2, "the peer's shards: {shard} {report:?}");
    }
    let mut travelled = travelled.lock().expect("no panic").clone();
    travelled.sort_by_key(|(version, _)| *version);
    assert_eq!(travelled, [(3, vec![whole()]), (4, pieces())]);
}

#[test]
fn a_question_whose_pieces_do_not_cover_it_is_refused() {
    let (here, asked) = slots(&[0]);
    let place = wire::ShardCheckpoint::of(ShardId(0), &asked[0].1.expect("a checkpoint"));
    let answer = |generations: Vec<(i32, i32, u64)>| {
        let request = PeerRequest::Live(wire::LiveRequest {
            tenant: "acme".to_owned(),
            metric: "views".to_owned(),
            from: 0,
            to: 10,
            distinct: false,
            quantiles: false,
            overflow: false,
            matchers: Vec::new(),
            places: vec![place],
            generations,
        });
        let question = wire::encode(&request).expect("encodes");
        let answer = server(&here, 1 << 20).answer(&question).expect("an answer");
        wire::decode::<PeerReply>(&answer).expect("decodes")
    };
    assert!(matches!(answer(vec![]), PeerReply::Live(_)));
    assert!(matches!(answer(vec![(0, 4, 0), (4, 10, 1)]), PeerReply::Live(_)));
    let many = (0..10).map(|hour| (hour, hour + 1, 1)).cycle().take(5_000).collect();
    for wrong in [vec![(0, 9, 1)], vec![(0, 4, 1), (5, 10, 0)], vec![(0, 11, 1)], many] {
        assert!(matches!(answer(wrong.clone()), PeerReply::Refused(_)), "{:?}", &wrong[..1]);
    }
}
