//! What one tenant may have in the book of replays, which all tenants share and all nodes hold in
//! memory. Pure.

use std::collections::BTreeSet;

use super::request::CheckedRequest;
use crate::model::generation_book::GenerationBook;
use crate::operate::service::OperateError;
use crate::rules::RuleSet;

/// Most metrics of all replays of a tenant that have rows, each counted once for each replay. A
/// correction of one metric a day for five years needs fewer.
const MAX_RANGES: usize = 2_000;
/// Most bytes of the different rules of these replays, canonical.
const MAX_RULE_BYTES: usize = 1 << 20;
/// Most regular expressions of them. Each takes up to 1 MiB on every node.
const MAX_REGEXES: usize = 128;

/// Refuses a replay with which its tenant would have more than its share.
pub(super) fn check_share(
    book: &GenerationBook,
    tenant: &str,
    request: &CheckedRequest,
) -> Result<(), OperateError> {
    let own = || book.generations().values().filter(|generation| generation.tenant == tenant);
    let ranges = own().map(|generation| generation.metrics.len()).sum::<usize>();
    let rules: BTreeSet<&str> =
        own().map(|generation| &*generation.rules).chain([&*request.rules]).collect();
    let bytes = rules.iter().map(|rules| rules.len()).sum::<usize>();
    // Those of a later release cannot be read here, and take no memory here.
    let regexes = |text: &&str| RuleSet::shared(text).map_or(0, |rules| rules.regexes());
    let found = [
        ("metrics", ranges + request.metrics.len(), MAX_RANGES),
        ("bytes of rules", bytes, MAX_RULE_BYTES),
        ("regular expressions", rules.iter().map(regexes).sum(), MAX_REGEXES),
    ];
    let over = found.into_iter().find(|(_, count, max)| count > max);
    over.map_or(Ok(()), |(what, count, max)| {
        Err(OperateError::ReplayRefused(format!(
            "your replays would have {count} {what}, and may have {max}: cancel one, or wait until \
             one that was replaced has left"
        )))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::generation::DayRange;
    use crate::model::generation_book::NewGeneration;

    fn request(metrics: usize, rules: &str) -> CheckedRequest {
        let metrics = (0..metrics).map(|n| format!("m{n}")).collect();
        CheckedRequest { metrics, days: DayRange::ALWAYS, rules: rules.into() }
    }

    fn start(book: &mut GenerationBook, tenant: &str, day: i32, request: &CheckedRequest) {
        let new = NewGeneration {
            tenant: tenant.to_owned(),
            metrics: request.metrics.clone(),
            days: DayRange::new(day, Some(day + 1)).expect("a day"),
            rules: request.rules.clone(),
            started: (1, "k".to_owned()),
        };
        book.start(new, 3, 1).expect("started");
    }

    fn with_regexes(name: &str, count: usize) -> String {
        let tests = (0..16).map(|_| r#"{"at":"/a","regex":"b.*"}"#).collect::<Vec<_>>().join(",");
        let rule =
            |n| format!(r#"{{"name":"{name}{n}","where":{{"properties":[{tests}]}},"drop":true}}"#);
        format!(r#"{{"rule":[{}]}}"#, (0..count / 16).map(rule).collect::<Vec<_>>().join(","))
    }

    fn refused(book: &GenerationBook, request: &CheckedRequest) -> String {
        check_share(book, "t", request).expect_err("refused").to_string()
    }

    #[test]
    fn a_tenant_has_a_share_of_metrics_bytes_and_expressions_and_no_other_pays_for_it() {
        let mut book = GenerationBook::default();
        let none = r#"{"rule":[]}"#;
        for day in 0..20 {
            assert!(check_share(&book, "t", &request(100, none)).is_ok());
            start(&mut book, "t", day, &request(100, none));
        }
        let metrics = refused(&book, &request(1, none));
        assert!(metrics.contains("2001 metrics, and may have 2000"), "{metrics}");
        assert!(check_share(&book, "other", &request(100, none)).is_ok());

        let mut book = GenerationBook::default();
        let (first, second) = (with_regexes("a", 64), with_regexes("b", 64));
        start(&mut book, "t", 0, &request(1, &first));
        start(&mut book, "t", 1, &request(1, &second));
        assert!(check_share(&book, "t", &request(1, &first)).is_ok(), "equal rules count once");
        let regexes = refused(&book, &request(1, &with_regexes("c", 16)));
        assert!(regexes.contains("144 regular expressions"), "{regexes}");

        let mut book = GenerationBook::default();
        let long = |n: usize| format!(r#"{{"rule":[]}}{}"#, " ".repeat(200_000 + n));
        for n in 0..5 {
            start(&mut book, "t", i32::try_from(n).expect("a day"), &request(1, &long(n)));
        }
        let bytes = refused(&book, &request(1, &long(5)));
        assert!(bytes.contains("bytes of rules, and may have 1048576"), "{bytes}");
    }
}
