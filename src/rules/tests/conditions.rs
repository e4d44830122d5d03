use super::*;

fn holds(condition: &str) -> bool {
    let (kept, counts) = applied(&rule(condition, "drop = true"));
    assert_eq!(counts.rules()[0].matched, u64::from(kept.is_none()), "{condition}");
    kept.is_none()
}

#[test]
fn conditions_hold_as_they_read() {
    for (condition, expected) in [
        ("", true),
        (r#"labels = '{country=~"D.*"}'"#, true),
        (r#"labels = '{country=~"D.*",carrier!="US"}'"#, false),
        (r#"labels = 'absent=""'"#, true),
        (r#"user = { equal = "alice" }"#, true),
        (r#"user = { equal = "Alice" }"#, false),
        (r#"user = { in = ["bob", "alice"] }"#, true),
        (r#"user = { in = ["bob", "alice"], not = true }"#, false),
        ("user = { exists = true }", true),
        ("user = { exists = false }", false),
        ("user = { exists = false, not = true }", true),
        ("time = { from = 2026-01-01T12:00:00Z }", true),
        ("time = { from = \"2026-01-01T13:00:00+01:00\" }", true),
        ("time = { from = 1767268800001 }", false),
        ("time = { to = 1767268800000 }", false),
        ("time = { from = 0, to = 1767268800001 }", true),
        (r#"user = { exists = true }, time = { to = 0 }"#, false),
    ] {
        assert_eq!(holds(condition), expected, "{condition}");
    }
}

#[test]
fn properties_are_compared_by_kind() {
    for (test, expected) in [
        (r#"at = "/plan", equal = "free""#, true),
        (r#"at = "/plan", equal = "Free""#, false),
        (r#"at = "/plan", equal = "Free", not = true"#, true),
        (r#"at = "/plan", in = ["paid", 3, "free"]"#, true),
        (r#"at = "/ms", equal = 1500"#, true),
        (r#"at = "/ms", equal = 1.5e3"#, true),
        (r#"at = "/ms", equal = 0x5dc"#, true),
        (r#"at = "/ms", equal = "1500""#, false),
        (r#"at = "/text", equal = 12.5"#, false),
        (r#"at = "/ms", in = [1, 2, 1_500, true, "x"]"#, true),
        (r#"at = "/yes", equal = true"#, true),
        (r#"at = "/yes", in = [false, 1, "true"]"#, false),
        (r#"at = "/huge", equal = 1"#, false),
        (r#"at = "/list", exists = true"#, true),
        (r#"at = "/list/0", equal = "a""#, true),
        (r#"at = "/nothing", exists = true"#, false),
        (r#"at = "/nothing", exists = false"#, true),
        (r#"at = "/absent", equal = "x", not = true"#, true),
        (r#"at = "", exists = true"#, true),
        (r#"at = "/", equal = """#, true),
        (r#"at = "/agent", regex = ".*[Bb]ot.*""#, true),
        (r#"at = "/agent", regex = "[Bb]ot""#, false),
        (r#"at = "/ms", regex = ".*""#, false),
        (r#"at = "/ms", regex = ".*", not = true"#, true),
    ] {
        assert_eq!(holds(&format!("properties = [{{ {test} }}]")), expected, "{test}");
    }
    let both = r#"properties = [{ at = "/plan", equal = "free" }, { at = "/ms", equal = 1 }]"#;
    assert!(!holds(both));
}

#[test]
fn an_event_without_user_equals_nobody() {
    let sample = Sample::new();
    let event = RuleEvent { user: None, ..sample.event() };
    for (condition, dropped) in [
        (r#"user = { equal = "alice" }"#, false),
        (r#"user = { equal = "alice", not = true }"#, true),
        ("user = { exists = false }", true),
    ] {
        let rules = rule(condition, "drop = true");
        let outcome = rules.apply(&event, &mut RuleCounts::of(&rules));
        assert_eq!(outcome == RuleOutcome::Dropped, dropped, "{condition}");
    }
}

#[test]
fn only_rules_that_read_properties_need_the_raw_bytes() {
    for (condition, action, expected) in [
        (r#"labels = '{a="b"}', user = { exists = true }"#, "drop = true", false),
        ("time = { from = 0 }", "set_label = { label = \"a\", value = \"b\" }", false),
        ("", "scale_value = { divide = 60 }", false),
        (r#"properties = [{ at = "/a", exists = true }]"#, "drop = true", true),
        ("", "set_label = { label = \"a\", property = \"/b\" }", true),
        ("", "set_value = { property = \"/b\" }", true),
        ("", "set_user = { property = \"/b\" }", true),
    ] {
        assert_eq!(rule(condition, action).needs_properties(), expected, "{condition} {action}");
    }
    assert!(!RuleSet::default().needs_properties());
}
