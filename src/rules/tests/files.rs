use super::*;

const EVERYTHING: &str = r#"
# Every key once.
[[rule]]
name = "bots"
drop = true
[rule.where]
labels = '{country=~"D.*|\"F\\.R\"", page!="/"}'
user = { in = ["b", "a", "b"] }
time = { from = 2026-01-01T00:00:00Z, to = "2026-02-01T00:00:00Z" }
properties = [
  { at = "/agent", regex = ".*[Bb]ot.*" },
  { at = "/n", in = [true, 1.50, "x", 1.5] },
  { at = "/test", exists = true },
  { at = "/plan", equal = "free", not = true },
]

[[rule]]
name = "constant"
set_label = { label = "source", value = "web" }

[[rule]]
name = "dimension"
where = { properties = [{ at = "/plan", exists = false, not = true }] }
set_label = { label = "plan", property = "/plan" }

[[rule]]
name = "no debug"
where = { user = { exists = false } }
remove_label = "debug"

[[rule]]
name = "merged"
map_label = { label = "carrier", values = { US = "AA", HP = "AA" } }

[[rule]]
name = "ms"
set_value = { property = "/ms" }

[[rule]]
name = "seconds"
scale_value = { divide = 1_000 }

[[rule]]
name = "account"
where = { user = { equal = "nobody", not = true } }
set_user = { property = "/account/id" }
"#;

/// Pinned: a hash identifies the rules of a replay for years.
const CANONICAL: &str = concat!(
    r#"{"rule":[{"name":"bots","where":{"labels":"{country=~\"D.*|\\\"F\\\\.R\\\"\",page!=\"/\"}","#,
    r#""properties":[{"at":"/agent","regex":".*[Bb]ot.*"},{"at":"/n","in":["x",1.5,true]},"#,
    r#"{"at":"/test","exists":true},{"at":"/plan","equal":"free","not":true}],"#,
    r#""user":{"in":["a","b"]},"time":{"from":1767225600000,"to":1769904000000}},"drop":true},"#,
    r#"{"name":"constant","set_label":{"label":"source","value":"web"}},"#,
    r#"{"name":"dimension","where":{"properties":[{"at":"/plan","exists":true}]},"#,
    r#""set_label":{"label":"plan","property":"/plan"}},"#,
    r#"{"name":"no debug","where":{"user":{"exists":false}},"remove_label":"debug"},"#,
    r#"{"name":"merged","map_label":{"label":"carrier","values":{"HP":"AA","US":"AA"}}},"#,
    r#"{"name":"ms","set_value":{"property":"/ms"}},"#,
    r#"{"name":"seconds","scale_value":{"multiply":1,"divide":1000}},"#,
    r#"{"name":"account","where":{"user":{"equal":"nobody","not":true}},"#,
    r#""set_user":{"property":"/account/id"}}]}"#,
);

#[test]
fn the_canonical_form_and_its_hash_are_pinned() {
    let rules = toml(EVERYTHING);
    assert_eq!(rules.canonical_json(), CANONICAL);
    assert_eq!(rules.hash().to_string(), "89e78f94706ab9f9ac68d0d594330540");
    assert_eq!(RuleSet::default().canonical_json(), r#"{"rule":[]}"#);
    assert_eq!(RuleSet::default().hash().to_string(), "f44de2d4389be75df96fd2f5136846ab");
}

#[test]
fn the_canonical_form_is_a_file_with_the_same_rules() {
    let rules = toml(EVERYTHING);
    let again = RuleSet::parse(CANONICAL, RulesFormat::Json).expect("reads");
    assert_eq!(again, rules);
    assert_eq!(again.hash(), rules.hash());
    assert_eq!(rules.names().nth(2), Some("dimension"));
}

#[test]
fn toml_and_json_of_the_same_rules_have_one_hash() {
    let json = r#"
    {
      "rule": [
        { "set_label": { "property": "/plan", "label": "plan" },
          "where": { "time": { "from": "2026-01-01T01:00:00+01:00" }, "labels": " country = \"DE\" , " },
          "name": "p" }
      ]
    }"#;
    let other = "rule = [{ name = 'p', set_label.label = 'plan', set_label.property = '/plan', \
                 where.labels = '{country=\"DE\"}', where.time.from = 2026-01-01T00:00:00Z }]";
    let (json, other) = (RuleSet::parse(json, RulesFormat::Json).expect("JSON"), toml(other));
    assert_eq!((json.hash(), &json), (other.hash(), &other));
    let changed = toml("[[rule]]\nname = 'q'\ndrop = true\n");
    assert_ne!(changed.hash(), toml("[[rule]]\nname = 'r'\ndrop = true\n").hash());
}

#[test]
fn the_language_is_known_by_the_extension_or_the_beginning() {
    for (extension, text, expected) in [
        (Some("toml"), "{", RulesFormat::Toml),
        (Some("json"), "[[rule]]", RulesFormat::Json),
        (Some("txt"), " {\"rule\":[]}", RulesFormat::Json),
        (None, "[[rule]]", RulesFormat::Toml),
        (None, "", RulesFormat::Toml),
    ] {
        assert_eq!(RulesFormat::of(extension, text), expected, "{extension:?} {text}");
    }
}

#[test]
fn a_file_without_rules_is_the_empty_set() {
    for text in ["", "# nothing yet\n", "rule = []"] {
        assert_eq!(toml(text), RuleSet::default(), "{text}");
    }
    for text in ["{}", "\u{feff}{\"rule\":[]}"] {
        assert_eq!(RuleSet::parse(text, RulesFormat::Json), Ok(RuleSet::default()), "{text}");
    }
    assert!(RuleSet::default().is_empty());
}

#[test]
fn the_page_shows_valid_rules_the_reasons_and_the_limits() {
    const PAGE: &str = include_str!("../../../docs/reference/rules.md");
    let (_, file) = PAGE.split_once("<<'EOF'\n").expect("a file");
    let rules = toml(file.split_once("EOF\n").expect("its end").0);
    assert_eq!(rules.len(), 3);
    let (_, actions) = PAGE.split_once("## Actions").expect("actions");
    let (actions, rest) = actions.split_once("\n## ").expect("their end");
    let shown: Vec<&str> = actions.split('`').filter(|code| code.contains(" = ")).collect();
    let shown: Vec<&str> = shown.into_iter().filter(|code| !code.starts_with("divide")).collect();
    assert_eq!(shown.len(), 9, "{shown:?}");
    for action in shown {
        toml(&format!("[[rule]]\nname = \"r\"\n{action}\n"));
    }
    for reason in RefusedAction::ALL {
        assert!(rest.contains(&format!("\n| `{}` | ", reason.name())), "{}", reason.name());
    }
    for limit in [
        MAX_FILE_BYTES,
        MAX_RULES,
        MAX_PROPERTY_TESTS,
        MAX_LIST,
        MAX_REGEXES,
        MAX_POINTER_BYTES,
        crate::model::event::MAX_LABELS,
        crate::model::matcher_syntax::MAX_MATCHERS,
        crate::model::matcher_syntax::REGEX_BYTES,
    ] {
        assert!(rest.contains(&format!(" | {limit} |\n")), "{limit}");
    }
    assert!(PAGE.contains(&format!("1 to {MAX_NAME_BYTES} bytes")));
}
