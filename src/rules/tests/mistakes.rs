use super::*;

fn mistakes(text: &str, format: RulesFormat) -> Vec<String> {
    let RuleMistakes { listed, hidden } = RuleSet::parse(text, format).expect_err(text);
    assert_eq!(hidden, 0, "{text}");
    listed.iter().map(ToString::to_string).collect()
}

/// Asserts that a rule has exactly one mistake, which says this.
fn assert_mistake(keys: &str, key: &str, says: &str) {
    let text = format!("[[rule]]\nname = \"r\"\n{keys}\n");
    let found = mistakes(&text, RulesFormat::Toml);
    let place = format!("{key}: ");
    let is_it = found[0].contains(": rule 1") && found[0].contains(&place);
    assert!(found.len() == 1 && is_it && found[0].contains(says), "{keys}: {found:?}");
}

#[test]
fn all_mistakes_are_told_at_once_with_line_key_and_nearest_name() {
    let toml = r#"[[rule]]
name = "one"
dorp = true

[[rule]]
name = "two"
where = { labels = '{country=~"("}', propertis = [] }
set_label = { label = "a-b", value = "x" }

[[rule]]
drop = true
remove_label = 7
[rule.where]
properties = [
  { at = "plan", equal = "free" },
  { at = "/plan", regexp = "x" },
]
"#;
    let found = mistakes(toml, RulesFormat::Toml);
    let expected = [
        ("1: rule 1:", "the action is missing: one of drop, set_label"),
        ("3: rule 1: dorp:", "did you mean drop? allowed: name, where, drop"),
        ("7: rule 2: where.propertis:", "did you mean properties? allowed: labels, properties"),
        ("7: rule 2: where.labels:", "regular expression"),
        ("8: rule 2: set_label.label:", "a label name is"),
        ("10: rule 3:", "drop and remove_label are given"),
        ("10: rule 3: name:", "is missing"),
        ("12: rule 3: remove_label:", "a number, where there should be a text"),
        ("15: rule 3: where.properties[0].at:", "\"/plan\""),
        ("16: rule 3: where.properties[1].regexp:", "did you mean regex?"),
        ("16: rule 3: where.properties[1]:", "the comparison is missing"),
    ];
    for (place, says) in expected {
        let is_it = |found: &&String| found.starts_with(place) && found.contains(says);
        assert_eq!(found.iter().filter(is_it).count(), 1, "{place} {says}: {found:#?}");
    }
    assert_eq!(found.len(), expected.len(), "{found:#?}");
}

#[test]
fn mistakes_of_json_have_lines_too() {
    let json = r#"{
  "rule": [
    {
      "name": "one",
      "name": "again",
      "drop": true,
      "where": {
        "time": { "from": "2026-01-01" }
      }
    },
    { "name": "one", "drop": 1 },
    { "name": "one", "drop": true,
      "wher": {} }
  ]
}"#;
    let found = mistakes(json, RulesFormat::Json);
    let places: Vec<&str> =
        found.iter().map(|found| found.rsplit_once(": ").expect("a message").0).collect();
    assert_eq!(
        places,
        [
            "5: name",
            "8: rule 1: where.time.from",
            "11: rule 2: drop",
            "13: rule 3: wher: no such key; did you mean where? allowed",
        ],
        "{found:#?}"
    );
    for (text, line) in [("{", 1), ("{\n\"rule\": [\n}", 3), ("[]", 1), ("{}\n{}", 2), ("", 1)] {
        let found = mistakes(text, RulesFormat::Json);
        assert!(found[0].starts_with(&format!("{line}: ")), "{text}: {found:?}");
    }
}

#[test]
fn text_that_is_no_toml_has_lines() {
    let found = mistakes("[[rule]]\nname = \nwhere = {\n", RulesFormat::Toml);
    assert!(found[0].starts_with("2: not readable TOML: "), "{found:?}");
    let twice = mistakes("[[rule]]\nname = 'a'\nname = 'b'\ndrop = true", RulesFormat::Toml);
    assert!(twice[0].starts_with("3: not readable TOML: "), "{twice:?}");
    let wrong = mistakes("[rule]\nname = 'a'\ndrop = true", RulesFormat::Toml);
    assert!(wrong[0].contains("write [[rule]]"), "{wrong:?}");
    let misspelt = mistakes("[[rules]]\nname = 'a'\ndrop = true", RulesFormat::Toml);
    assert!(misspelt[0].contains("did you mean rule?"), "{misspelt:?}");
}

#[test]
fn every_key_says_what_is_allowed() {
    for (keys, key, says) in [
        ("drop = false", ": drop", "leave it out"),
        ("drop = 'yes'", ": drop", "true or false"),
        ("where = 7\ndrop = true", ": where", "a table"),
        ("where.labels = ['a']\ndrop = true", ": where.labels", "a text"),
        ("where.labels = 'a'\ndrop = true", ": where.labels", "expected ="),
        ("where.properties = 'a'\ndrop = true", ": where.properties", "a list"),
        ("where.properties = ['a']\ndrop = true", ": where.properties[0]", "a table"),
        ("where.properties = [{ equal = 1 }]\ndrop = true", "[0].at", "is missing"),
        ("where.properties = [{ at = '/~2', equal = 1 }]\ndrop = true", "[0].at", "~0"),
        ("where.properties = [{ at = '/a', equal = [] }]\ndrop = true", "[0].equal", "a number"),
        ("where.properties = [{ at = '/a', in = [] }]\ndrop = true", "[0].in", "empty"),
        ("where.properties = [{ at = '/a', in = 1 }]\ndrop = true", "[0].in", "a list"),
        (
            "where.properties = [{ at = '/a', equal = 1, regex = 'a' }]\ndrop = true",
            "[0]",
            "exactly",
        ),
        ("where.properties = [{ at = '/a', regex = '(' }]\ndrop = true", "[0].regex", "not valid"),
        (
            "where.properties = [{ at = '/a', regex = '(a{999}){999}' }]\ndrop = true",
            "[0].regex",
            "too large",
        ),
        ("where.properties = [{ at = '/a', equal = 1e-10 }]\ndrop = true", "[0].equal", "9 digits"),
        ("where.properties = [{ at = '/a', equal = nan }]\ndrop = true", "[0].equal", "no decimal"),
        ("where.properties = [{ at = '/a', exists = 1 }]\ndrop = true", "[0].exists", "true or"),
        (
            "where.properties = [{ at = '/a', equal = 1, not = 1 }]\ndrop = true",
            "[0].not",
            "true or",
        ),
        ("where.user = 'alice'\ndrop = true", ": where.user", "a table"),
        (
            "where.user.regex = 'a'\nwhere.user.equal = 'a'\ndrop = true",
            ": where.user.regex",
            "allowed",
        ),
        ("where.user.equal = 7\ndrop = true", ": where.user.equal", "a text"),
        ("where.user.not = true\ndrop = true", ": where.user", "comparison is missing"),
        ("where.time = {}\ndrop = true", ": where.time", "from or to"),
        ("where.time.from = 2026-01-01\ndrop = true", ": where.time.from", "RFC 3339"),
        ("where.time.from = 1.5\ndrop = true", ": where.time.from", "RFC 3339"),
        ("where.time = { from = 5, to = 5 }\ndrop = true", ": where.time.to", "not later"),
        ("set_label = { label = '__x', value = 'a' }", ": set_label.label", "reserved"),
        ("set_label = { value = 'a' }", ": set_label.label", "is missing"),
        ("set_label = { label = 'a' }", ": set_label", "one of value, property"),
        ("set_label = { label = 'a', value = 'a', property = '/b' }", ": set_label", "exactly one"),
        ("set_label = { label = 'a', value = \"\\u001b\" }", ": set_label.value", "control"),
        ("set_label = { label = 'a', property = 'b' }", ": set_label.property", "begins with /"),
        ("remove_label = '1a'", ": remove_label", "a label name"),
        ("map_label = { label = 'a' }", ": map_label.values", "is missing"),
        ("map_label = { label = 'a', values = {} }", ": map_label.values", "at least 1"),
        ("map_label = { label = 'a', values = ['x'] }", ": map_label.values", "a table"),
        ("map_label = { label = 'a', values = { x = 1 } }", ": map_label.values.x", "a text"),
        ("set_value = '/a'", ": set_value", "a table"),
        ("set_value = {}", ": set_value.property", "is missing"),
        ("set_user = { property = 7 }", ": set_user.property", "a text"),
        ("scale_value = {}", ": scale_value", "multiply or divide"),
        ("scale_value = { divide = 0 }", ": scale_value.divide", "divided by 0"),
        ("scale_value = { multiply = 'x' }", ": scale_value.multiply", "no decimal"),
        ("scale_value = { multiply = 1e19 }", ": scale_value.multiply", "beyond"),
        ("scale_value = { multiply = 0.0166666666667 }", ": scale_value.multiply", "9 digits"),
    ] {
        assert_mistake(keys, key, says);
    }
    for name in ["''", "\"a\\n\"", &format!("'{}'", "n".repeat(MAX_NAME_BYTES + 1))] {
        let found = mistakes(&format!("[[rule]]\nname = {name}\ndrop = true"), RulesFormat::Toml);
        assert!(found[0].contains("1 to 100 bytes"), "{found:?}");
    }
    let twice = "[[rule]]\nname = 'a'\ndrop = true\n".repeat(2);
    assert!(mistakes(&twice, RulesFormat::Toml)[0].contains("another rule"), "{twice}");
}

fn numbered(count: usize) -> String {
    (0..count).map(|n| format!("[[rule]]\nname = 'r{n}'\ndrop = true\n")).collect()
}

#[test]
fn every_limit_is_kept_to_the_last_one() {
    let tests = |count: usize| {
        let test = "{ at = '/a', exists = true }";
        let all = vec![test; count].join(", ");
        format!("[[rule]]\nname = 'r'\nwhere.properties = [{all}]\ndrop = true")
    };
    let list = |count: usize| {
        let all: Vec<String> = (0..count).map(|n| n.to_string()).collect();
        let all = all.join(", ");
        format!(
            "[[rule]]\nname = 'r'\nwhere.user.in = ['a']\nwhere.properties = [{{ at = '/a', in = [{all}] }}]\ndrop = true"
        )
    };
    let map = |count: usize| {
        let all: Vec<String> = (0..count).map(|n| format!("v{n} = 'x'")).collect();
        format!(
            "[[rule]]\nname = 'r'\nmap_label = {{ label = 'a', values = {{ {} }} }}",
            all.join(", ")
        )
    };
    let regexes = |count: usize| {
        let rule = |n: usize| {
            let label = if n.is_multiple_of(2) {
                "labels = 'a=~\"b\"'"
            } else {
                "properties = [{ at = '/a', regex = 'b' }]"
            };
            format!("[[rule]]\nname = 'r{n}'\nwhere = {{ {label} }}\ndrop = true\n")
        };
        (0..count).map(rule).collect::<String>()
    };
    let pointer = |bytes: usize| {
        format!("[[rule]]\nname = 'r'\nset_value.property = '/{}'", "p".repeat(bytes - 1))
    };
    let file = |bytes: usize| format!("#{}", " ".repeat(bytes - 1));
    for (what, text, max) in [
        ("rules", &numbered as &dyn Fn(usize) -> String, MAX_RULES),
        ("comparisons", &tests, MAX_PROPERTY_TESTS),
        ("constants", &list, MAX_LIST),
        ("mapped values", &map, MAX_LIST),
        ("expressions", &regexes, MAX_REGEXES),
        ("pointer", &pointer, MAX_POINTER_BYTES),
        ("file", &file, MAX_FILE_BYTES),
    ] {
        assert!(RuleSet::parse(&text(max), RulesFormat::Toml).is_ok(), "{what}");
        let found = mistakes(&text(max + 1), RulesFormat::Toml);
        assert!(found.len() == 1 && found[0].contains(&max.to_string()), "{what}: {found:?}");
    }
}

#[test]
fn hostile_files_are_refused_in_bounded_time_and_space() {
    let deep = |open: &str, close: &str| {
        let (open, close) = (open.repeat(50_000), close.repeat(50_000));
        format!("{{\"rule\":{open}{close}}}")
    };
    for text in [deep("[", "]"), deep("{\"a\":", "1}")] {
        assert!(RuleSet::parse(&text, RulesFormat::Json).is_err());
    }
    for text in [
        format!("rule = {}{}", "[".repeat(50_000), "]".repeat(50_000)),
        format!("{}a = 1", "a.".repeat(50_000)),
        format!("[{}a]", "a.".repeat(50_000)),
    ] {
        assert!(RuleSet::parse(&text, RulesFormat::Toml).is_err());
    }
    let many: String = (0..20_000).map(|n| format!("a{n} = 1\n")).collect();
    let why = RuleSet::parse(&many, RulesFormat::Toml).expect_err("unknown keys");
    assert_eq!((why.listed.len(), why.hidden), (100, 19_900));
    assert!(why.to_string().contains("20000 mistake(s)"));
    let expressions: String = (0..100)
        .map(|n| {
            let test = "{ at = '/a', regex = '(a{999}){999}' }, ".repeat(16);
            format!("[[rule]]\nname = 'r{n}'\nwhere.properties = [{test}]\ndrop = true\n")
        })
        .collect();
    let why = RuleSet::parse(&expressions, RulesFormat::Toml).expect_err("too large");
    assert!(why.listed.len() == MAX_REGEXES + 1 && why.hidden == 0, "{}", why.listed.len());
}
