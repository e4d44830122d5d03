//! What holds of all rules and all events.

use proptest::prelude::*;

use super::*;
use crate::model::event::{MAX_LABELS, check_label};

fn action() -> impl Strategy<Value = serde_json::Value> {
    use serde_json::json;
    let label = || prop_oneof![Just("a"), Just("b"), Just("country")];
    let pointer = || prop_oneof![Just("/a"), Just("/b/0"), Just("/c"), Just("")];
    let text = || prop_oneof![Just(String::new()), "[a-c]{1,2}", Just("x".repeat(256))];
    let factor = || prop_oneof![Just("1"), Just("-0.000000001"), Just("7"), Just("1e18")];
    prop_oneof![
        Just(json!({"drop": true})),
        (label(), text()).prop_map(|(l, v)| json!({"set_label": {"label": l, "value": v}})),
        (label(), pointer()).prop_map(|(l, p)| json!({"set_label": {"label": l, "property": p}})),
        label().prop_map(|l| json!({"remove_label": l})),
        (label(), text(), text())
            .prop_map(|(l, from, to)| json!({"map_label": {"label": l, "values": {from: to}}})),
        pointer().prop_map(|p| json!({"set_value": {"property": p}})),
        pointer().prop_map(|p| json!({"set_user": {"property": p}})),
        (factor(), factor())
            .prop_map(|(m, d)| json!({"scale_value": {"multiply": m, "divide": d}})),
    ]
}

fn condition() -> impl Strategy<Value = serde_json::Value> {
    use serde_json::json;
    let test = prop_oneof![
        Just(json!({"at": "/a", "exists": false})),
        Just(json!({"at": "/b", "in": [1, "x", true], "not": true})),
        Just(json!({"at": "/c", "regex": "[a-c]*"})),
    ];
    prop_oneof![
        Just(json!({})),
        Just(json!({"labels": "{a=~\"[a-c]+\",b!=\"x\"}"})),
        Just(json!({"user": {"equal": "u", "not": true}})),
        Just(json!({"time": {"from": -5, "to": 5}})),
        proptest::collection::vec(test, 1..3).prop_map(|tests| json!({"properties": tests})),
    ]
}

fn rule_set() -> impl Strategy<Value = RuleSet> {
    proptest::collection::vec((condition(), action()), 0..6).prop_map(|rules| {
        let rules: Vec<_> = rules
            .into_iter()
            .enumerate()
            .map(|(number, (condition, mut rule))| {
                rule["name"] = number.to_string().into();
                rule["where"] = condition;
                rule
            })
            .collect();
        let text = serde_json::json!({ "rule": rules }).to_string();
        RuleSet::parse(&text, RulesFormat::Json).unwrap_or_else(|why| panic!("{text}: {why:?}"))
    })
}

fn property() -> impl Strategy<Value = serde_json::Value> {
    prop_oneof![
        any::<String>().prop_map(serde_json::Value::from),
        "[a-c]{0,300}".prop_map(serde_json::Value::from),
        any::<f64>().prop_map(serde_json::Value::from),
        any::<i64>().prop_map(serde_json::Value::from),
        Just(serde_json::json!(true)),
        Just(serde_json::json!(null)),
        Just(serde_json::json!([{"x": 1}])),
    ]
}

/// Bytes as a gateway may have accepted them, and some that none did.
fn raw() -> impl Strategy<Value = Vec<u8>> {
    let event = || {
        (property(), property(), property()).prop_map(|(a, b, c)| {
            serde_json::json!({"metric": "m", "properties": {"a": a, "b": [b], "c": c}})
        })
    };
    prop_oneof![
        event().prop_map(|event| event.to_string().into_bytes()),
        event().prop_map(|event| rmp_serde::to_vec(&event).expect("packs")),
        proptest::collection::vec(any::<u8>(), 0..40),
    ]
}

prop_compose! {
    fn event_fields()(
        names in proptest::collection::btree_map("[a-d]{1,3}", "[a-c]{1,2}", 0..=MAX_LABELS),
        units in proptest::option::of(-10i128.pow(27)..=10i128.pow(27)),
        user in proptest::option::of(any::<u64>()),
        time in any::<i64>(),
        raw in raw(),
    ) -> (Vec<(String, String)>, Option<Decimal>, Option<u64>, Millis, Vec<u8>) {
        (names.into_iter().collect(), units.map(Decimal::from_units), user, time, raw)
    }
}

/// Whether the gateway would have accepted these fields, in their canonical form.
fn is_valid(kept: &KeptEvent<'_>) -> bool {
    let in_range = |value: Decimal| Decimal::checked_from_units(value.units()).is_some();
    kept.labels.len() <= MAX_LABELS
        && kept.labels.iter().is_sorted_by(|a, b| a.0 < b.0)
        && kept.labels.iter().all(|(n, v)| check_label(n, v).is_ok() && !v.is_empty())
        && kept.value.is_none_or(in_range)
}

proptest! {
    #[test]
    fn every_event_has_a_valid_outcome_and_all_of_it_is_counted(
        rules in rule_set(),
        (labels, value, user, time, raw) in event_fields(),
    ) {
        let event = RuleEvent { labels: &labels, value, user, time, raw: &raw };
        let mut counts = RuleCounts::of(&rules);
        let outcome = rules.apply(&event, &mut counts);
        for count in counts.rules() {
            let refused: u64 = count.refused().map(|(_, times)| times).sum();
            prop_assert!(count.matched <= 1 && count.changed + refused <= count.matched);
        }
        let changed: u64 = counts.rules().iter().map(|count| count.changed).sum();
        match &outcome {
            RuleOutcome::Dropped => prop_assert!(changed > 0),
            RuleOutcome::Kept(kept) => {
                prop_assert!(is_valid(kept), "{kept:?}");
                if changed == 0 {
                    let is_borrowed = matches!(kept.labels, RuleLabels::Unchanged(_));
                    prop_assert!(is_borrowed && kept.value == value && kept.user == user);
                }
            }
        }
        // Equal input, equal outcome; and without properties the raw bytes do not matter.
        let again = rules.apply(&event, &mut RuleCounts::default());
        prop_assert_eq!(&again, &outcome);
        if !rules.needs_properties() {
            let blind = RuleEvent { raw: b"", ..event };
            prop_assert_eq!(rules.apply(&blind, &mut RuleCounts::default()), outcome);
        }
    }

    #[test]
    fn the_empty_set_is_the_identity((labels, value, user, time, raw) in event_fields()) {
        let event = RuleEvent { labels: &labels, value, user, time, raw: &raw };
        let empty = RuleSet::default();
        let kept = empty.apply(&event, &mut RuleCounts::default());
        let same = KeptEvent { labels: RuleLabels::Unchanged(&labels), value, user };
        prop_assert_eq!(kept, RuleOutcome::Kept(same));
    }

    #[test]
    fn reading_the_canonical_form_gives_the_same_rules(rules in rule_set()) {
        let canonical = rules.canonical_json();
        let again = RuleSet::parse(&canonical, RulesFormat::Json).expect("reads");
        prop_assert_eq!(again.canonical_json(), canonical);
        prop_assert_eq!(again, rules);
    }

    #[test]
    fn no_text_makes_reading_fail(text in any::<String>(), toml in "[\\[\\]{}=',\"a-z \n]{0,80}") {
        for format in [RulesFormat::Toml, RulesFormat::Json] {
            let _ = RuleSet::parse(&text, format);
            let _ = RuleSet::parse(&toml, format);
        }
    }
}
