use super::*;
use crate::model::flush::RuleEvents;

/// What the action makes of the sample: its labels, value and user, and the reason if it is left.
fn result(action: &str) -> (String, String, Option<u64>, String) {
    let (kept, counts) = applied(&rule("", action));
    let (labels, value, user) = kept.expect("kept");
    let labels: Vec<String> =
        labels.iter().map(|(name, value)| format!("{name}={value}")).collect();
    let count = &counts.rules()[0];
    let reasons: Vec<_> = count.refused().map(|(reason, times)| (reason.name(), times)).collect();
    let reason = match reasons.as_slice() {
        [] => String::new(),
        [(reason, 1)] => (*reason).to_owned(),
        more => panic!("{more:?}"),
    };
    assert_eq!(count.matched, 1);
    (labels.join(" "), value, user, reason)
}

const BEFORE: &str = "carrier=US country=DE";

#[test]
fn labels_are_set_removed_and_mapped() {
    for (action, expected, reason) in [
        (
            r#"set_label = { label = "plan", value = "free" }"#,
            "carrier=US country=DE plan=free",
            "",
        ),
        (r#"set_label = { label = "a", value = "b" }"#, "a=b carrier=US country=DE", ""),
        (r#"set_label = { label = "country", value = "FR" }"#, "carrier=US country=FR", ""),
        (r#"set_label = { label = "country", value = "" }"#, "carrier=US", ""),
        (r#"set_label = { label = "absent", value = "" }"#, BEFORE, ""),
        (r#"set_label = { label = "p", property = "/plan" }"#, "carrier=US country=DE p=free", ""),
        (r#"set_label = { label = "p", property = "/ms" }"#, "carrier=US country=DE p=1500", ""),
        (r#"set_label = { label = "p", property = "/yes" }"#, "carrier=US country=DE p=true", ""),
        (r#"set_label = { label = "carrier", property = "/" }"#, "country=DE", ""),
        (r#"set_label = { label = "p", property = "/absent" }"#, BEFORE, "property_missing"),
        (r#"set_label = { label = "p", property = "/nothing" }"#, BEFORE, "property_missing"),
        (r#"set_label = { label = "p", property = "/list" }"#, BEFORE, "property_invalid"),
        (r#"set_label = { label = "p", property = "/huge" }"#, BEFORE, "property_invalid"),
        (r#"set_label = { label = "p", property = "/long" }"#, BEFORE, "label_invalid"),
        (r#"set_label = { label = "p", property = "/escape" }"#, BEFORE, "label_invalid"),
        (r#"remove_label = "carrier""#, "country=DE", ""),
        (r#"remove_label = "absent""#, BEFORE, ""),
        (
            r#"map_label = { label = "carrier", values = { US = "AA", HP = "US" } }"#,
            "carrier=AA country=DE",
            "",
        ),
        (r#"map_label = { label = "carrier", values = { HP = "US" } }"#, BEFORE, ""),
        (r#"map_label = { label = "carrier", values = { US = "" } }"#, "country=DE", ""),
        (
            r#"map_label = { label = "new", values = { "" = "none" } }"#,
            "carrier=US country=DE new=none",
            "",
        ),
    ] {
        let (labels, value, user, left) = result(action);
        assert_eq!((labels.as_str(), left.as_str()), (expected, reason), "{action}");
        assert_eq!((value.as_str(), user), ("90", Some(user_hash("alice"))), "{action}");
    }
}

#[test]
fn values_and_users_come_from_properties() {
    let alice = Some(user_hash("alice"));
    for (action, value, user, reason) in [
        (r#"set_value = { property = "/ms" }"#, "1500", alice, ""),
        (r#"set_value = { property = "/text" }"#, "12.5", alice, ""),
        (r#"set_value = { property = "/plan" }"#, "90", alice, "not_a_number"),
        (r#"set_value = { property = "/yes" }"#, "90", alice, "not_a_number"),
        (r#"set_value = { property = "/list" }"#, "90", alice, "not_a_number"),
        (r#"set_value = { property = "/huge" }"#, "90", alice, "value_out_of_range"),
        (r#"set_value = { property = "/absent" }"#, "90", alice, "property_missing"),
        (r#"set_user = { property = "/plan" }"#, "90", Some(user_hash("free")), ""),
        (r#"set_user = { property = "/uid" }"#, "90", Some(user_hash("7")), ""),
        (r#"set_user = { property = "/" }"#, "90", Some(user_hash("")), ""),
        (r#"set_user = { property = "/long" }"#, "90", alice, "user_invalid"),
        (r#"set_user = { property = "/list" }"#, "90", alice, "property_invalid"),
        (r#"set_user = { property = "/absent" }"#, "90", alice, "property_missing"),
        ("scale_value = { divide = 60 }", "1.5", alice, ""),
        ("scale_value = { multiply = 0.001 }", "0.09", alice, ""),
        ("scale_value = { multiply = \"-2\", divide = 7 }", "-25.714285714", alice, ""),
        ("scale_value = { multiply = 0 }", "0", alice, ""),
        ("scale_value = { multiply = 1e17 }", "90", alice, "value_out_of_range"),
    ] {
        let (labels, new_value, new_user, left) = result(action);
        assert_eq!(
            (new_value.as_str(), new_user, left.as_str()),
            (value, user, reason),
            "{action}"
        );
        assert_eq!(labels, BEFORE, "{action}");
    }
}

#[test]
fn an_event_without_value_is_not_scaled_but_can_get_one() {
    let mut sample = Sample::new();
    sample.value = None;
    let rules = toml(
        r#"
        rule = [
          { name = "scale", scale_value = { divide = 60 } },
          { name = "take", set_value = { property = "/ms" } },
          { name = "again", scale_value = { divide = 60 } },
        ]"#,
    );
    let mut counts = RuleCounts::of(&rules);
    let RuleOutcome::Kept(kept) = rules.apply(&sample.event(), &mut counts) else {
        panic!("dropped")
    };
    assert_eq!(kept.value, Decimal::parse("25").ok());
    let refused: Vec<_> = counts.rules()[0].refused().collect();
    assert_eq!(refused, [(RefusedAction::NoValue, 1)]);
    let no_value = RuleEvents { rule: 0, outcome: "no_value".to_owned(), events: 1 };
    assert_eq!(counts.events()[0], no_value);
    assert_eq!([counts.rules()[1].changed, counts.rules()[2].changed], [1, 1]);
}

#[test]
fn no_event_gets_more_labels_than_it_may_have() {
    let mut sample = Sample::new();
    sample.labels = (10..26).map(|n| (format!("l{n}"), "x".to_owned())).collect();
    for (action, count, refused) in [
        (
            r#"set_label = { label = "more", value = "x" }"#,
            16,
            vec![(RefusedAction::TooManyLabels, 1)],
        ),
        (r#"set_label = { label = "l10", value = "y" }"#, 16, vec![]),
        (r#"remove_label = "l10""#, 15, vec![]),
    ] {
        let rules = rule("", action);
        let mut counts = RuleCounts::of(&rules);
        let RuleOutcome::Kept(kept) = rules.apply(&sample.event(), &mut counts) else {
            panic!("dropped")
        };
        assert_eq!(kept.labels.len(), count, "{action}");
        assert_eq!(counts.rules()[0].refused().collect::<Vec<_>>(), refused, "{action}");
    }
}

#[test]
fn rules_see_what_those_before_them_made() {
    let rules = toml(
        r#"
        [[rule]]
        name = "merge"
        map_label = { label = "carrier", values = { US = "AA" } }
        [[rule]]
        name = "drop what was merged"
        where = { labels = '{carrier="AA"}' }
        drop = true
        [[rule]]
        name = "never reached"
        remove_label = "country"
        "#,
    );
    let (kept, counts) = applied(&rules);
    assert_eq!(kept, None);
    let did: Vec<_> = counts.rules().iter().map(|count| (count.matched, count.changed)).collect();
    assert_eq!(did, [(1, 1), (1, 1), (0, 0)]);
    let of = |rule, outcome: &str| RuleEvents { rule, outcome: outcome.to_owned(), events: 1 };
    assert_eq!(counts.events(), [of(0, RuleEvents::CHANGED), of(1, RuleEvents::DROPPED)]);
    let mut twice = RuleCounts::default();
    twice.add(&counts);
    twice.add(&counts);
    assert_eq!(twice.rules()[0].matched, 2);
}
