//! Checks the published interface against the API types, and the fast renderer against both.

use serde_json::{Map, Value};

use super::*;
use crate::api;
use crate::gateway::read_routes;
use crate::model::decimal::Decimal;
use crate::model::rollup::Rollup;
use crate::query::completeness::IncompleteShard;

/// The answers of all routes: path, method, status, and schema of the type.
fn answers(
    generator: &mut schemars::SchemaGenerator,
) -> Vec<(&'static str, &'static str, &'static str, Value)> {
    let mut of = Vec::new();
    let mut add = |path, method, status, schema: schemars::Schema| {
        of.push((path, method, status, schema.to_value()))
    };
    add("/v1/events", "post", "202", generator.subschema_for::<api::events::IngestAnswer>());
    add("/v1/query", "get", "200", generator.subschema_for::<api::query::QueryAnswer>());
    add("/v1/metrics", "get", "200", generator.subschema_for::<api::catalogue::MetricsAnswer>());
    add(
        "/v1/labels/{name}/values",
        "get",
        "200",
        generator.subschema_for::<api::catalogue::LabelValuesAnswer>(),
    );
    add(
        "/v1/accounting",
        "get",
        "200",
        generator.subschema_for::<api::accounting::AccountingAnswer>(),
    );
    add("/v1/limits", "get", "200", generator.subschema_for::<api::limits::LimitsAnswer>());
    add("/v1/status", "get", "200", generator.subschema_for::<api::status::StatusAnswer>());
    add(
        "/v1/quarantine",
        "get",
        "200",
        generator.subschema_for::<api::quarantine::QuarantineAnswer>(),
    );
    add(
        "/v1/quarantine/release",
        "post",
        "200",
        generator.subschema_for::<api::quarantine::ReleaseAnswer>(),
    );
    add(
        "/v1/quarantine/discard",
        "post",
        "200",
        generator.subschema_for::<api::quarantine::DiscardAnswer>(),
    );
    add(
        "/v1/archive/flush",
        "post",
        "200",
        generator.subschema_for::<api::archive::ArchiveFlushAnswer>(),
    );
    add(
        "/v1/archive/expiry",
        "get",
        "200",
        generator.subschema_for::<api::archive::ExpiryAnswer>(),
    );
    add(
        "/v1/archive/expiry",
        "post",
        "200",
        generator.subschema_for::<api::archive::ExpiryGoesOnAnswer>(),
    );
    add_replays(generator, &mut of);
    add_boards(generator, &mut of);
    of
}

fn add_replays(
    generator: &mut schemars::SchemaGenerator,
    of: &mut Vec<(&'static str, &'static str, &'static str, Value)>,
) {
    let list = generator.subschema_for::<api::replays::ReplaysAnswer>().to_value();
    let one = generator.subschema_for::<api::replays::Replay>().to_value();
    let diff = generator.subschema_for::<api::replays::ReplayDiff>().to_value();
    of.push(("/v1/replays", "get", "200", list));
    of.push(("/v1/replays", "post", "200", one.clone()));
    of.push(("/v1/replays/{id}", "get", "200", one.clone()));
    of.push(("/v1/replays/{id}/diff", "get", "200", diff));
    of.push(("/v1/replays/{id}/apply", "post", "200", one.clone()));
    of.push(("/v1/replays/{id}/undo", "post", "200", one.clone()));
    of.push(("/v1/replays/{id}/cancel", "post", "200", one));
}

fn add_boards(
    generator: &mut schemars::SchemaGenerator,
    of: &mut Vec<(&'static str, &'static str, &'static str, Value)>,
) {
    let info = generator.subschema_for::<api::boards::BoardInfo>().to_value();
    let list = generator.subschema_for::<api::boards::BoardsAnswer>().to_value();
    of.push(("/v1/boards", "get", "200", list));
    let board = generator.subschema_for::<api::boards::Board>().to_value();
    of.push(("/v1/boards/{id}", "get", "200", board));
    of.push(("/v1/boards/{id}", "put", "200", info.clone()));
    of.push(("/v1/boards/{id}", "put", "201", info));
}

/// Writes the schemas of the API types into the interface.
fn with_types(mut interface: Value) -> Value {
    let mut generator = schemars::generate::SchemaSettings::openapi3().into_generator();
    for (path, method, status, schema) in answers(&mut generator) {
        let answer = &mut interface["paths"][path][method]["responses"][status];
        assert!(answer.is_object(), "{method} {path} {status} is not published");
        answer["content"]["application/json"] = serde_json::json!({ "schema": schema });
    }
    let _request = generator.subschema_for::<api::replays::StartReplay>();
    let _error = generator.subschema_for::<api::error::ErrorAnswer>();
    let schemas: Map<String, Value> = generator.take_definitions(true);
    let published = interface["components"]["schemas"].as_object_mut().expect("schemas");
    published.extend(schemas);
    interface
}

#[test]
fn the_published_answers_are_the_types_of_the_wire() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/src/gateway/openapi.json");
    let published: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    let expected = with_types(published.clone());
    if std::env::var_os("ROLLMILL_WRITE_DOCS").is_some() {
        std::fs::write(path, serde_json::to_string_pretty(&expected).unwrap() + "\n").unwrap();
        return;
    }
    assert!(
        published == expected,
        "src/gateway/openapi.json differs from src/api: run this test with ROLLMILL_WRITE_DOCS=1"
    );
}

/// Two points: one with a value and one without.
fn answer<'a>(request: &'a QueryRequest, budget: &'a QueryBudget) -> QueryOutput<'a> {
    let mut full = Rollup::default();
    full.add(Some(Decimal::parse("123456789012345678.423456789").unwrap()), Some(7));
    let mut empty = Rollup::default();
    empty.add(None, None);
    let series = |label: &str, rollup: Rollup| SeriesGroup {
        key: vec![label.to_owned()],
        points: vec![(NOW, rollup)],
    };
    let mut completeness = QueryCompleteness::of(&[], &Vec::new(), NOW, 1).with_overflow(Some(5));
    completeness.missing.push(IncompleteShard {
        shard: crate::model::offset::ShardId(3),
        reason: "behind",
        behind_ms: Some(9),
    });
    QueryOutput::new(
        request,
        vec![series("a\"\n", full), series("", empty)],
        completeness,
        QueryCharge::new(budget),
    )
    .unwrap()
}

#[test]
fn the_fast_renderer_writes_the_type_of_the_wire() {
    let given =
        [("metric", "m"), ("by", "page"), ("agg", "count,sum,avg,min,max,distinct,rate,p50")];
    for numbers in ["json", "string"] {
        let given: Vec<_> = given
            .iter()
            .chain(&[("numbers", numbers)])
            .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
            .collect();
        let ((request, form), budget) =
            (read_routes::query_request(&given, NOW).unwrap(), QueryBudget::default());
        let text =
            crate::gateway::render::query_answer(&mut answer(&request, &budget), form.decimals)
                .unwrap();
        assert_eq!(budget.charged_bytes(), 0, "what an answer holds is given back");
        let parsed: api::query::QueryAnswer = serde_json::from_str(&text).unwrap();
        let again: Value = serde_json::from_str(&serde_json::to_string(&parsed).unwrap()).unwrap();
        assert_eq!(serde_json::from_str::<Value>(&text).unwrap(), again, "nothing beside the type");
        let point = &parsed.series[0].points[0];
        assert_eq!(point.figure("sum"), Some("123456789012345678.423456789"));
        assert_eq!(
            (point.figure("count"), point.figure("rate")),
            (Some("1"), Some("0.0002777777777777778"))
        );
        assert_eq!(
            (parsed.series[1].points[0].figure("sum"), parsed.series[1].labels.len()),
            (None, 0)
        );
        let (partial, overflow) = (parsed.completeness.partial, parsed.completeness.overflow);
        assert_eq!(
            (partial, overflow, parsed.completeness.missing[0].behind_ms),
            (true, Some(5), Some(9))
        );
    }
}

#[test]
fn only_what_does_not_move_by_itself_is_worth_an_update() {
    let given = [("metric".to_owned(), "m".to_owned()), ("by".to_owned(), "page".to_owned())];
    let ((request, form), budget) =
        (read_routes::query_request(&given, NOW).unwrap(), QueryBudget::default());
    let hash = |change: &dyn Fn(&mut QueryOutput<'_>)| {
        let mut answer = answer(&request, &budget);
        change(&mut answer);
        let (text, hash) =
            crate::gateway::render::update("q\"1", &mut answer, form.decimals).unwrap();
        assert!(text.starts_with(r#"{"update":"q\"1","metric":"m","#), "{text}");
        assert!(serde_json::from_str::<Value>(&text).is_ok(), "{text}");
        hash
    };
    let same = hash(&|_| ());
    assert_eq!(hash(&|answer| answer.completeness.as_of += 1_000), same);
    assert_ne!(hash(&|answer| answer.completeness.missing.clear()), same);
    assert_ne!(hash(&|answer| answer.completeness.overflow = Some(6)), same);
    assert_ne!(hash(&|answer| answer.series.truncate(1)), same);
    assert_eq!(budget.charged_bytes(), 0, "what an answer holds is given back");
}
