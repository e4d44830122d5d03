//! The dashboard over events: every query in it is answered, as Grafana sends it.

use serde_json::{Value, json};

use super::{HOUR, HOURS, START, ask, await_all, send, test_series};
use crate::support::Server;

#[test]
fn every_query_of_the_dashboard_over_events_is_answered() {
    let dir = tempfile::tempdir().expect("a directory");
    let (server, series) = (Server::start(&dir.path().join("data"), &[]), test_series());
    send(&server, &series, &[]);
    await_all(&server.url, &series, |path, params| ask(&server.url, path, params));
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/config/grafana/events.json");
    let board: Value =
        serde_json::from_str(&std::fs::read_to_string(file).expect("a file")).expect("JSON");
    // What stands for Grafana's variables: its interval is whole hours, by the data source's
    // scrape interval.
    let filled = |text: &str| {
        [("$__interval", "3h"), ("$metric", "page_view"), ("$label", "country"), ("$top", "10")]
            .iter()
            .fold(text.to_owned(), |text, (name, value)| text.replace(name, value))
    };
    let seconds = |hour: i64| ((START + hour * HOUR) / 1_000).to_string();
    let (start, end) = (seconds(0), seconds(HOURS - 1));
    let mut asked = 0;
    for panel in board["panels"].as_array().expect("panels") {
        for target in panel["targets"].as_array().expect("targets") {
            let query = filled(target["expr"].as_str().expect("a query"));
            assert!(!query.contains('$'), "{query}");
            let answer = if target["instant"] == true {
                let params = [("query", query.as_str()), ("time", end.as_str())];
                ask(&server.url, "/api/v1/query", &params)
            } else {
                let params = [("query", query.as_str()), ("start", &start), ("end", &end)];
                let params = [&params[..], &[("step", "3h")]].concat();
                ask(&server.url, "/api/v1/query_range", &params)
            };
            assert_eq!(answer["status"], "success", "{query}: {answer}");
            // There are no events of the week before.
            let found = answer["data"]["result"].as_array().expect("series").len();
            assert!(found > 0 || query.contains("offset 7d"), "{query}: {answer}");
            asked += 1;
        }
    }
    assert!(asked > 12, "{asked}");
    let names = ask(&server.url, "/api/v1/label/__name__/values", &[]);
    assert_eq!(names["data"], json!(["load_time", "page_view"]));
    // The second is what Grafana makes of `label_names(page_view)`; of series, if it takes the
    // version for one without `match[]` there.
    let like = "{__name__=~\".*page_view.*\"}";
    for selector in ["page_view", like] {
        let labels = ask(&server.url, "/api/v1/labels", &[("match[]", selector)]);
        assert_eq!(labels["data"], json!(["__name__", "country", "page"]), "{selector}");
        let names = ask(&server.url, "/api/v1/label/__name__/values", &[("match[]", selector)]);
        assert_eq!(names["data"], json!(["page_view"]), "{selector}");
        let values = ask(&server.url, "/api/v1/label/country/values", &[("match[]", selector)]);
        assert_eq!(values["data"], json!(["AT", "DE", "FR"]), "{selector}");
        let series = ask(&server.url, "/api/v1/series", &[("match[]", selector)]);
        assert_eq!(series["data"].as_array().map(Vec::len), Some(12), "{selector}: {series}");
    }
    let german = [("match[]", "{__name__=~\"page.*|load.*\",country=\"DE\"}")];
    let series = ask(&server.url, "/api/v1/series", &german);
    assert_eq!(series["data"].as_array().map(Vec::len), Some(6), "{series}");
    let values = ask(
        &server.url,
        "/api/v1/label/page/values",
        &[("match[]", "page_view{country=\"DE\"}"), ("start", &start), ("end", &end)],
    );
    assert_eq!(values["data"], json!(["a", "b", "c"]));
    let series = ask(&server.url, "/api/v1/series", &[("match[]", "{__name__=\"page_view\"}")]);
    assert_eq!(series["data"].as_array().map(Vec::len), Some(12), "{series}");
    let described = ask(&server.url, "/api/v1/metadata", &[("metric", "page_view")]);
    assert_eq!(described["data"]["page_view"][0]["type"], "gauge", "{described}");
}
