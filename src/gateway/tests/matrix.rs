//! Every path and method of the published interface, with every kind of key.

use std::collections::BTreeSet;

use super::*;

const METHODS: [&str; 5] = ["GET", "POST", "PUT", "PATCH", "DELETE"];

fn interface() -> serde_json::Value {
    serde_json::from_str(include_str!("../openapi.json")).unwrap()
}

/// Path, method, and the scopes of which one is required; without scopes the route is public.
fn operations() -> Vec<(String, String, Vec<String>)> {
    let interface = interface();
    let mut found = Vec::new();
    for (path, methods) in interface["paths"].as_object().unwrap() {
        for (method, operation) in methods.as_object().unwrap() {
            let scopes = operation["x-scopes"].as_array().into_iter().flatten();
            let scopes: Vec<_> = scopes.map(|scope| scope.as_str().unwrap().to_owned()).collect();
            let open = operation.get("security").is_some_and(|s| s.as_array().unwrap().is_empty());
            assert_eq!(open, scopes.is_empty(), "{path}: either open to all, or it names scopes");
            found.push((path.clone(), method.to_uppercase(), scopes));
        }
    }
    assert!(found.len() >= 15, "{found:?}");
    found
}

fn ask(path: &str, method: &str, key: Option<&str>) -> Request<Body> {
    let uri = path
        .replace("{kind}/{page}", "reference/api.md")
        .replace("{page}", "README.md")
        .replace("/assets/{name}", &format!("/assets/{}", an_asset().unwrap_or("none")))
        .replace("{name}", "a")
        .replace("{topic}", "a")
        .replace("{id}", "1");
    let mut request =
        Request::builder().method(method).uri(uri).header("content-type", "application/json");
    if let Some(key) = key {
        request = request.header("authorization", format!("Bearer {key}"));
    }
    request.body(Body::from(r#"{"shard":1,"offset":2,"index":3}"#)).unwrap()
}

/// A file of the dashboard, if it is built.
fn an_asset() -> Option<&'static str> {
    crate::gateway::dashboard::asset_names().next()
}

/// Routes whose errors have another shape.
fn is_kafka(path: &str) -> bool {
    path.starts_with("/topics/")
}

/// Routes whose clients send parameters that are hints for others.
fn takes_any_parameter(path: &str) -> bool {
    let posthog = ["/batch", "/capture", "/e", "/i/v", "/flags", "/decide", "/array/"];
    path.contains("/mp/collect") || posthog.iter().any(|prefix| path.starts_with(prefix))
}

fn stored(
    seed: u8,
    tenant: &str,
    scopes: &[Scope],
    expires_ms: Option<i64>,
) -> (String, StoredKey) {
    let (plain, prefix, sha256) = new_key([seed; 24]);
    (
        plain,
        StoredKey { prefix, sha256, tenant: tenant.into(), scopes: scopes.to_vec(), expires_ms },
    )
}

const SCOPES: [(Scope, &str); 4] = [
    (Scope::Write, "write"),
    (Scope::Read, "read"),
    (Scope::Admin, "admin"),
    (Scope::Operator, "operator"),
];

#[tokio::test]
async fn every_operation_refuses_every_key_but_the_right_one() {
    let one: Vec<_> = SCOPES
        .iter()
        .zip(1..)
        .map(|((scope, _), seed)| stored(seed, "acme", &[*scope], None))
        .collect();
    let all = SCOPES.map(|(scope, _)| scope);
    let (expired, late) = stored(7, "acme", &all, Some(NOW));
    let (revoked, gone) = stored(8, "acme", &all, None);
    let kept: Vec<StoredKey> = one.iter().map(|(_, key)| key.clone()).chain([late]).collect();
    let with = [kept.clone(), vec![gone]].concat();
    let (gateway, _) = gateway(Config::defaults(), KeyTable::of(KeysFile { keys: with }));
    assert_ne!(
        call(&gateway, ask("/v1/query", "GET", Some(&revoked))).await.0,
        StatusCode::UNAUTHORIZED
    );
    gateway.deps.keys.store(Arc::new(KeyTable::of(KeysFile { keys: kept })));
    for (path, method, scopes) in operations() {
        if scopes.is_empty() {
            let is_there = !path.starts_with("/assets/") || an_asset().is_some();
            assert_eq!(
                call(&gateway, ask(&path, &method, None)).await.0,
                if is_there { StatusCode::OK } else { StatusCode::NOT_FOUND },
                "{method} {path} is open"
            );
            continue;
        }
        for key in [None, Some("wrong"), Some(""), Some(&expired), Some(&revoked)] {
            let (status, answer, _) =
                call(&gateway, ask(&path, &method, key.map(|k: &str| k))).await;
            assert_eq!(status, StatusCode::UNAUTHORIZED, "{method} {path} {key:?}: {answer}");
            assert!(
                answer.contains(if is_kafka(&path) { "40101" } else { "\"unauthorized\"" })
                    && !answer.contains("acme"),
                "{answer}"
            );
        }
        let in_url = format!("{path}?key={0}&token={0}&authorization=Bearer%20{0}", one[0].0);
        // Beacons bring a key that may only write, by one name.
        let is_beacon = path == "/v1/events";
        assert_eq!(
            call(&gateway, ask(&in_url, &method, None)).await.0,
            if is_beacon { StatusCode::BAD_REQUEST } else { StatusCode::UNAUTHORIZED },
            "{method} {path}: key in the URL"
        );
        for ((key, _), (_, scope)) in one.iter().zip(SCOPES) {
            let (status, answer, _) = call(&gateway, ask(&path, &method, Some(key))).await;
            if scopes.iter().any(|s| s == scope) {
                assert!(
                    !matches!(status.as_u16(), 401 | 403),
                    "{method} {path} as {scope}: {status} {answer}"
                );
            } else {
                assert_eq!(status, StatusCode::FORBIDDEN, "{method} {path} as {scope}: {answer}");
                assert!(
                    answer.contains(if is_kafka(&path) { "40301" } else { "\"forbidden\"" })
                        && !answer.contains("acme"),
                    "{answer}"
                );
            }
        }
    }
}

#[tokio::test]
async fn the_routes_are_those_of_the_published_interface() {
    let published: BTreeSet<_> =
        operations().into_iter().map(|(path, method, _)| (path, method)).collect();
    // A router cannot list its routes, so they are read from its source.
    let sources = [
        include_str!("../routes.rs"),
        include_str!("../prometheus/mod.rs"),
        include_str!("../collect.rs"),
    ];
    let routes = sources.iter().flat_map(|source| source.split(".route(\"").skip(1));
    let routes = routes.flat_map(|rest| {
        let (path, rest) = rest.split_once('"').unwrap();
        let method = rest.trim_start_matches([',', ' ']).split('(').next().unwrap();
        let post = rest.contains(").post(").then_some("POST");
        let methods = std::iter::once(method.to_uppercase()).chain(post.map(str::to_owned));
        methods.map(|method| (path.to_owned(), method))
    });
    assert_eq!(routes.collect::<BTreeSet<_>>(), published);
    let (gateway, _) = gateway(Config::defaults(), KeyTable::open());
    for (path, _) in &published {
        // These routes exist, but answer 404 in these tests.
        let gone = path.ends_with("/discard")
            || path.contains("/partitions/")
            || (path.starts_with("/assets/") && an_asset().is_none());
        for method in METHODS {
            let known = published.contains(&(path.clone(), method.to_owned()));
            let status = call(&gateway, ask(path, method, None)).await.0;
            assert_eq!(
                status != StatusCode::METHOD_NOT_ALLOWED && status != StatusCode::NOT_FOUND || gone,
                known || gone,
                "{method} {path}: {status}"
            );
        }
    }
    for path in [
        "/v1",
        "/v1/events/",
        "/v1/../metrics",
        "/V1/query",
        "//metrics",
        "/v1/labels/a/b/values",
        "/admin",
    ] {
        assert_eq!(call(&gateway, ask(path, "GET", None)).await.0, StatusCode::NOT_FOUND, "{path}");
    }
}

#[tokio::test]
async fn every_answer_is_one_that_is_published() {
    let interface = interface();
    let (key, stored) = stored(1, "acme", &SCOPES.map(|(scope, _)| scope), None);
    let (gateway, log) = gateway(Config::defaults(), KeyTable::of(KeysFile { keys: vec![stored] }));
    let bodies = ["", "{", "{}", "[1]", r#"{"metric":"m"}"#, r#"{"shard":1,"offset":2,"index":3}"#];
    for (path, method, scopes) in operations() {
        for key in [None, Some(key.as_str())] {
            for body in bodies {
                for kind in ["application/json", "text/plain"] {
                    let mut request = ask(&path, &method, key);
                    *request.body_mut() = Body::from(body);
                    request.headers_mut().insert("content-type", kind.parse().unwrap());
                    let status = call(&gateway, request).await.0.as_u16().to_string();
                    let published = &interface["paths"][&path][method.to_lowercase()]["responses"];
                    assert!(
                        published.get(&status).is_some(),
                        "{method} {path} {kind} {body}: {status} is not published, {scopes:?}"
                    );
                }
            }
        }
    }
    assert_eq!(log.batches.lock().unwrap().len(), 1, "of all that only one event is good");
}

#[tokio::test]
async fn no_operation_ignores_a_parameter() {
    let (key, stored) = stored(1, "acme", &SCOPES.map(|(scope, _)| scope), None);
    let (gateway, _) = gateway(Config::defaults(), KeyTable::of(KeysFile { keys: vec![stored] }));
    let interface = interface();
    for (path, method, _) in operations() {
        // The query engine checks the parameters of its routes; REST Proxy routes follow their own
        // rules.
        let of_the_engine =
            ["/v1/query", "/v1/accounting", "/v1/metrics", "/v1/labels/{name}/values"];
        // Prometheus ignores what it does not know, and its clients send such parameters.
        let is_prometheus = path.starts_with("/api/v1/");
        if of_the_engine.contains(&path.as_str())
            || is_kafka(&path)
            || is_prometheus
            || takes_any_parameter(&path)
        {
            continue;
        }
        let known = interface["paths"][&path][method.to_lowercase()]["parameters"]
            .as_array()
            .cloned()
            .unwrap_or_default();
        let known = known
            .iter()
            .filter(|p| p["in"] == "query")
            .map(|p| p["name"].as_str().unwrap().to_owned());
        let known: Vec<String> = known.collect();
        let mut refused = vec![
            ("nonsense=1".to_owned(), "parameter_unknown"),
            ("=1".to_owned(), "parameter_unknown"),
        ];
        for name in &known {
            refused.push((format!("{name}=a&{name}=a"), "parameter_repeated"));
            refused.push((format!("{name}="), "parameter_empty"));
            refused.push((format!("{}=a", name.to_uppercase()), "parameter_unknown"));
        }
        for (query, code) in refused {
            let (status, answer, _) =
                call(&gateway, ask(&format!("{path}?{query}"), &method, Some(&key))).await;
            assert_eq!(status, StatusCode::BAD_REQUEST, "{method} {path}?{query}: {answer}");
            assert!(answer.contains(code), "{method} {path}?{query}: {answer}");
        }
    }
}
