//! A mapping: which events become which metric, and which of their properties labels, value and
//! user.
//!
//! It is total: what would make no valid label, value or user is left out and counted, and the event
//! counts without it.

use std::borrow::Cow;
use std::collections::BTreeMap;

use super::Source;
use super::event::SentEvent;
use super::mapped::{MappedEvent, MappedValue, into_text};
use super::pointer_tree::PointerTree;
use crate::model::event::{MAX_METRIC_BYTES, check_metric, check_user};

/// The label that holds the name of an event which is no name of a metric.
const NAME_LABEL: &str = "event";

/// What becomes of events, in the order in which entries are tried.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Mapping {
    entries: Vec<Entry>,
    /// The entries for one name, by that name.
    exact: BTreeMap<String, Vec<usize>>,
    /// All others.
    patterns: Vec<usize>,
}

/// One entry. What is `None` fits, or takes, everything.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) tenant: Option<String>,
    pub(super) source: Option<Source>,
    pub(super) kind: Option<String>,
    pub(super) name: NamePattern,
    pub(super) metric: Option<String>,
    /// The names of the labels, in the order of their pointers in `pointers`.
    pub(super) labels: Vec<String>,
    pub(super) pointers: PointerTree,
    /// The numbers of the pointers of value and user.
    pub(super) value: Option<usize>,
    pub(super) user: Option<usize>,
}

/// Which names an entry is for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) enum NamePattern {
    #[default]
    Any,
    Exact(String),
    /// Names that begin so.
    Prefix(String),
}

impl Mapping {
    pub(super) fn of(entries: Vec<Entry>) -> Self {
        let (mut exact, mut patterns) = (BTreeMap::<String, Vec<usize>>::new(), Vec::new());
        for (at, entry) in entries.iter().enumerate() {
            match &entry.name {
                NamePattern::Exact(name) => exact.entry(name.clone()).or_default().push(at),
                NamePattern::Any | NamePattern::Prefix(_) => patterns.push(at),
            }
        }
        Self { entries, exact, patterns }
    }

    /// The number of entries.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there are no entries, so that every event is taken by its name.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The first entry that fits an event.
    fn entry(&self, tenant: &str, source: Source, sent: &SentEvent<'_>) -> Option<&Entry> {
        let fits = |at: &&usize| self.entries[**at].fits(tenant, source, sent);
        let exact = self.exact.get(&*sent.name).and_then(|found| found.iter().find(fits));
        let pattern = self.patterns.iter().find(fits);
        exact.into_iter().chain(pattern).min().map(|at| &self.entries[*at])
    }

    /// What becomes of an event of this tenant: what its request says of all events, and what was sent
    /// of this one, which counts where both say something.
    pub(super) fn apply<'a>(
        &'a self,
        tenant: &str,
        source: Source,
        sent: &'a SentEvent<'_>,
        objects: [&'a [u8]; 2],
    ) -> MappedEvent<'a> {
        let entry = self.entry(tenant, source, sent);
        let given = entry.and_then(|entry| entry.metric.as_deref());
        let metric = given.map_or_else(|| metric_of(&sent.name), Cow::Borrowed);
        let mut mapped = MappedEvent {
            metric,
            labels: Vec::new(),
            value: MappedValue::Default,
            user: None,
            left_out: Vec::new(),
        };
        let is_renamed = given.is_none() && mapped.metric != sent.name;
        if is_renamed && !entry.is_some_and(|entry| entry.labels.iter().any(|l| l == NAME_LABEL)) {
            mapped.push_label(NAME_LABEL, Some(Cow::Borrowed(&sent.name)));
        }
        if let Some(entry) = entry {
            entry.read(&objects, &mut mapped);
        }
        mapped.take_user(sent.user.as_deref());
        mapped
    }
}

impl Entry {
    fn fits(&self, tenant: &str, source: Source, sent: &SentEvent<'_>) -> bool {
        self.tenant.as_deref().is_none_or(|own| own == tenant)
            && self.source.is_none_or(|own| own == source)
            && self.kind.as_deref().is_none_or(|own| own == sent.kind)
            && match &self.name {
                NamePattern::Any => true,
                NamePattern::Exact(name) => *name == sent.name,
                NamePattern::Prefix(prefix) => sent.name.starts_with(prefix),
            }
    }

    fn read<'a>(&'a self, objects: &[&'a [u8]], mapped: &mut MappedEvent<'a>) {
        let count = self.labels.len()
            + usize::from(self.value.is_some())
            + usize::from(self.user.is_some());
        let mut found = vec![None; count];
        self.pointers.read_merged(objects, &mut found);
        let mut take = |at: usize| found.get_mut(at).and_then(Option::take);
        for (at, name) in self.labels.iter().enumerate() {
            let Some(value) = take(at) else { continue };
            mapped.push_label(name, into_text(value));
        }
        if let Some(at) = self.value {
            mapped.take_value(take(at));
        }
        if let Some(at) = self.user
            && let Some(value) = take(at)
        {
            match into_text(value).filter(|text| check_user(text).is_ok()) {
                Some(text) => mapped.user = Some(text),
                None => mapped.left_out.push("user"),
            }
        }
    }
}

/// The metric of events of this name: the name, with an underscore for each character that no
/// metric may have, and at most as long as a metric may be.
fn metric_of(name: &str) -> Cow<'_, str> {
    if name.is_empty() || check_metric(name).is_ok() {
        return Cow::Borrowed(name);
    }
    let is_allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | ':' | '.' | '-');
    let mut metric = String::with_capacity(name.len().min(MAX_METRIC_BYTES));
    if name.starts_with(|c: char| c.is_ascii_digit() || matches!(c, '.' | '-')) {
        metric.push('_');
    }
    let room = MAX_METRIC_BYTES - metric.len();
    metric.extend(name.chars().take(room).map(|c| if is_allowed(c) { c } else { '_' }));
    Cow::Owned(metric)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_gives_a_metric_and_different_names_stay_apart() {
        for (name, metric) in [
            ("login", "login"),
            ("Order Completed", "Order_Completed"),
            ("$pageview", "_pageview"),
            ("1st", "_1st"),
            ("-x", "_-x"),
            ("購入", "__"),
            ("com.example.order", "com.example.order"),
        ] {
            assert_eq!(metric_of(name), metric);
            assert_eq!(check_metric(&metric_of(name)), Ok(()), "{name}");
        }
        for long in ["ä".repeat(300), "1".repeat(300), "a".repeat(300)] {
            assert_eq!(check_metric(&metric_of(&long)), Ok(()), "{long}");
        }
        let labels = |name: &str| {
            let sent = sent(name);
            let mapped = Mapping::default();
            let mapped = mapped.apply("t", Source::Segment, &sent, [b"", b"{}"]);
            mapped.labels.iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>()
        };
        assert_eq!(labels("login"), Vec::<String>::new());
        assert_eq!(labels("Order Completed"), ["event=Order Completed"]);
    }

    fn sent(name: &str) -> SentEvent<'_> {
        SentEvent {
            name: name.into(),
            kind: "track",
            id: None,
            user: Some("u1".into()),
            timestamp: None,
        }
    }

    fn mapping(text: &str) -> Mapping {
        Mapping::parse(text).expect("a mapping")
    }

    #[test]
    fn the_first_entry_that_fits_decides() {
        let mapping = mapping(
            r#"
            [[map]]
            tenant = "shop"
            event = "Order*"
            metric = "shop_orders"
            [[map]]
            event = "Order Completed"
            metric = "orders"
            [[map]]
            source = "posthog"
            event = "Order Completed"
            metric = "never"
            [[map]]
            type = "page"
            metric = "views"
            "#,
        );
        let metric = |tenant, source, sent: &SentEvent<'_>| {
            mapping.apply(tenant, source, sent, [b"", b"{}"]).metric.into_owned()
        };
        let order = sent("Order Completed");
        assert_eq!(metric("shop", Source::Segment, &order), "shop_orders");
        assert_eq!(metric("other", Source::PostHog, &order), "orders");
        assert_eq!(metric("shop", Source::Segment, &sent("Order")), "shop_orders");
        assert_eq!(metric("other", Source::Segment, &sent("Order")), "Order");
        let page = SentEvent { kind: "page", ..sent("page") };
        assert_eq!(metric("other", Source::Segment, &page), "views");
    }

    #[test]
    fn what_makes_no_valid_part_is_left_out_and_the_event_counts() {
        let mapping = mapping(
            r#"
            [[map]]
            value = "/p/v"
            user = "/p/u"
            labels = { a = "/p/a", b = "/p/b", c = "/p/c" }
            "#,
        );
        let sent = sent("m");
        let of = |event: String| {
            let mapped = mapping.apply("t", Source::Segment, &sent, [b"", event.as_bytes()]);
            let labels: Vec<_> =
                mapped.labels.iter().map(|(name, value)| format!("{name}={value}")).collect();
            let value = match mapped.value {
                MappedValue::Default => "default".to_owned(),
                MappedValue::None => "none".to_owned(),
                MappedValue::Text(text) => text.into_owned(),
            };
            (labels.join(","), value, mapped.user.map(Cow::into_owned), mapped.left_out.join(","))
        };
        let (user, own) = (Some("u1".to_owned()), Some("42".to_owned()));
        let good = r#"{"p":{"v":"19.99","u":42,"a":"x","b":1.50,"c":false}}"#.to_owned();
        let labels = "a=x,b=1.5,c=false".to_owned();
        assert_eq!(of(good), (labels, "19.99".to_owned(), own, String::new()));
        let none = (String::new(), "none".to_owned(), user.clone(), String::new());
        assert_eq!(of("{}".to_owned()), none);
        assert_eq!(of(r#"{"p":{"v":null,"u":null,"a":null,"b":""}}"#.to_owned()), none);
        let long = "u".repeat(257);
        let bad =
            format!(r#"{{"p":{{"v":"much","u":"{long}","a":"\u0007","b":"{long}","c":[]}}}}"#);
        let all = "label,label,label,value,user".to_owned();
        assert_eq!(of(bad), (String::new(), "none".to_owned(), user.clone(), all));
        for huge in ["1e400", "1e19", "true", "[1]"] {
            let event = format!(r#"{{"p":{{"v":{huge}}}}}"#);
            let expected = (String::new(), "none".to_owned(), user.clone(), "value".to_owned());
            assert_eq!(of(event), expected, "{huge}");
        }
    }
}
