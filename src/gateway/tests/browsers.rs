//! Requests of browsers: foreign pages, DNS rebinding to loopback, preflights, beacons.

use axum::http::HeaderMap;

use super::*;

const PAGE: &str = "https://shop.example";

fn listing(keys: KeyTable) -> (Arc<Gateway>, Arc<Log>) {
    let log = Arc::new(Log::default());
    let mut deps = deps(Some(log.clone()), Config::defaults(), keys);
    deps.origin_policy = OriginPolicy::new(
        "127.0.0.1:8080",
        vec![PAGE.to_owned(), "http://localhost:3000".to_owned()],
    );
    (Gateway::new(deps), log)
}

pub(super) fn with_key() -> (String, KeyTable) {
    let (plain, prefix, sha256) = new_key([7; 24]);
    let stored = StoredKey {
        prefix,
        sha256,
        tenant: "acme".into(),
        scopes: vec![Scope::Write, Scope::Read],
        expires_ms: None,
    };
    (plain, KeyTable::of(KeysFile { keys: vec![stored] }))
}

/// Status, headers and body of an answer.
async fn ask(
    gateway: &Arc<Gateway>,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &'static str,
) -> (u16, HeaderMap, String) {
    let mut request = Request::builder().method(method).uri(path);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let response = routes::router(gateway.clone())
        .oneshot(request.body(Body::from(body)).unwrap())
        .await
        .unwrap();
    let (parts, body) = response.into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    (parts.status.as_u16(), parts.headers, String::from_utf8_lossy(&body).into_owned())
}

const EVENT: &str = r#"{"metric":"m"}"#;
const ROUTES: [(&str, &str); 6] = [
    ("POST", "/v1/events"),
    ("GET", "/v1/query?metric=m"),
    ("GET", "/v1/ws"),
    ("GET", "/metrics"),
    ("POST", "/v1/quarantine/discard"),
    ("POST", "/topics/m"),
];

#[tokio::test]
async fn a_name_that_is_pointed_at_loopback_is_not_the_nodes() {
    let (gateway, log) = gateway(Config::defaults(), KeyTable::open());
    for (method, path) in ROUTES {
        for host in
            ["evil.example:8080", "evil.example", "localhost.evil.example", "10.0.0.1:8080", ""]
        {
            let origin = format!("http://{host}");
            for headers in [vec![("host", host), ("origin", origin.as_str())], vec![("host", host)]]
            {
                let (status, _, answer) = ask(&gateway, method, path, &headers, EVENT).await;
                assert_eq!(status, 421, "{method} {path} {headers:?}: {answer}");
                let shape = if path.starts_with("/topics") {
                    "\"error_code\":421"
                } else {
                    "\"host_unknown\""
                };
                assert!(answer.contains(shape) && answer.contains("rollmill keys"), "{answer}");
            }
        }
    }
    // The host in the request target is checked, too.
    let (status, ..) =
        ask(&gateway, "GET", "http://evil.example/v1/query?metric=m", &[("host", "localhost")], "")
            .await;
    assert_eq!(status, 421);
    assert!(log.batches.lock().unwrap().is_empty());
    for host in ["localhost", "127.0.0.1:8080", "[::1]:8080", "LOCALHOST:1"] {
        assert_eq!(
            ask(&gateway, "POST", "/v1/events", &[("host", host)], EVENT).await.0,
            202,
            "{host}"
        );
    }
    for path in ["/healthz", "/readyz"] {
        assert_eq!(
            ask(&gateway, "GET", path, &[("host", "balancer.example")], "").await.0,
            200,
            "{path}"
        );
    }
    let (plain, keys) = with_key();
    let (keyed, _) = super::gateway(Config::defaults(), keys);
    let bearer = format!("Bearer {plain}");
    let headers = [
        ("host", "mill.example"),
        ("authorization", bearer.as_str()),
        ("origin", "http://mill.example"),
    ];
    assert_eq!(
        ask(&keyed, "POST", "/v1/events", &headers, EVENT).await.0,
        202,
        "a key is proof enough"
    );
}

#[tokio::test]
async fn a_page_of_another_site_may_not_use_a_node_without_keys() {
    let (open, log) = listing(KeyTable::open());
    let host = ("host", "127.0.0.1:8080");
    for (method, path) in ROUTES {
        for page in [
            ("origin", "https://evil.example"),
            ("origin", "null"),
            ("origin", "http://127.0.0.1:8081"),
            ("origin", "127.0.0.1:8080"),
            ("origin", "https://127.0.0.1:8080"),
            ("origin", "http://localhost:8080"),
            ("origin", "https://shop.example.evil.example"),
            ("sec-fetch-site", "cross-site"),
            ("sec-fetch-site", "same-site"),
        ] {
            let (status, headers, answer) = ask(&open, method, path, &[host, page], EVENT).await;
            assert_eq!(status, 403, "{method} {path} {page:?}: {answer}");
            let shape = if path.starts_with("/topics") { "40301" } else { "origin_forbidden" };
            assert!(answer.contains(shape), "{answer}");
            assert!(headers.get("access-control-allow-origin").is_none());
        }
    }
    assert!(log.batches.lock().unwrap().is_empty());
    for page in [
        vec![],
        vec![("origin", "http://127.0.0.1:8080")],
        vec![("origin", "http://127.0.0.1:8080"), ("sec-fetch-site", "same-origin")],
        vec![("sec-fetch-site", "none")],
        vec![("origin", PAGE), ("sec-fetch-site", "cross-site")],
        vec![("origin", "http://localhost:3000"), ("sec-fetch-site", "same-site")],
    ] {
        let headers = [vec![host], page].concat();
        assert_eq!(ask(&open, "POST", "/v1/events", &headers, EVENT).await.0, 202, "{headers:?}");
        assert_eq!(
            ask(&open, "GET", "/v1/query?metric=m", &headers, "").await.0,
            200,
            "{headers:?}"
        );
    }
    let on_80 = [("host", "localhost:80"), ("origin", "http://localhost")];
    assert_eq!(ask(&open, "POST", "/v1/events", &on_80, EVENT).await.0, 202);
    for path in ["/", "/plain", "/openapi.json", "/healthz"] {
        let link = [host, ("sec-fetch-site", "cross-site")];
        assert_eq!(ask(&open, "GET", path, &link, "").await.0, 200, "a link to {path}");
    }
}

#[tokio::test]
async fn listed_pages_ask_first_send_and_read() {
    let (plain, keys) = with_key();
    let bearer = format!("Bearer {plain}");
    for keys in [keys, KeyTable::open()] {
        let (gateway, _) = listing(keys);
        let from =
            |origin| [("host", "localhost"), ("origin", origin), ("sec-fetch-site", "cross-site")];
        let asks = |origin| {
            let preflight = [
                ("access-control-request-method", "POST"),
                ("access-control-request-headers", "authorization,content-type"),
            ];
            [&from(origin)[..], &preflight[..]].concat()
        };
        for path in ["/v1/events", "/v1/query?metric=m", "/topics/m"] {
            let (status, headers, _) = ask(&gateway, "OPTIONS", path, &asks(PAGE), "").await;
            assert_eq!(
                (status, &headers["access-control-allow-origin"]),
                (204, &PAGE.parse().unwrap()),
                "{path}"
            );
            let said = |name: &str| headers[name].to_str().unwrap();
            assert!(
                said("access-control-allow-methods").contains("POST")
                    && said("vary").contains("origin")
            );
            assert!(
                ["authorization", "content-type", "idempotency-key", "x-retry-count"]
                    .iter()
                    .all(|h| said("access-control-allow-headers").contains(h))
            );
            let (status, headers, _) =
                ask(&gateway, "OPTIONS", path, &asks("https://evil.example"), "").await;
            assert!(
                matches!(status, 403 | 405) && headers.get("access-control-allow-origin").is_none(),
                "{path}: {status}"
            );
        }
        let private =
            [&asks(PAGE)[..], &[("access-control-request-private-network", "true")]].concat();
        let (_, headers, _) = ask(&gateway, "OPTIONS", "/v1/events", &private, "").await;
        assert_eq!(headers["access-control-allow-private-network"], "true");
        let sends = [
            &from(PAGE)[..],
            &[("authorization", bearer.as_str()), ("content-type", "application/json")],
        ]
        .concat();
        for (method, path, status) in [
            ("POST", "/v1/events", 202),
            ("GET", "/v1/query?metric=m", 200),
            ("GET", "/none", 404),
            ("PUT", "/v1/events", 405),
        ] {
            let (got, headers, _) = ask(&gateway, method, path, &sends, EVENT).await;
            assert_eq!(
                (got, &headers["access-control-allow-origin"]),
                (status, &PAGE.parse().unwrap()),
                "{method} {path}"
            );
            assert_eq!(
                headers["access-control-expose-headers"],
                "retry-after, etag, rollmill-completeness"
            );
        }
    }
    // A page may also read an error.
    let (keyed, _) = listing(with_key().1);
    let (status, headers, _) =
        ask(&keyed, "POST", "/v1/events", &[("host", "a"), ("origin", PAGE)], EVENT).await;
    assert_eq!((status, &headers["access-control-allow-origin"]), (401, &PAGE.parse().unwrap()));
    let (_, headers, _) = ask(&keyed, "POST", "/v1/events", &[("host", "a")], EVENT).await;
    assert!(
        headers.get("access-control-allow-origin").is_none() && headers["vary"] == "origin",
        "caches must tell them apart"
    );
}

#[tokio::test]
async fn a_beacon_is_taken_as_text_from_listed_pages_alone() {
    let (gateway, log) = listing(KeyTable::open());
    let beacon = |origin| {
        [
            ("host", "localhost:8080"),
            ("origin", origin),
            ("content-type", "text/plain;charset=UTF-8"),
        ]
    };
    assert_eq!(ask(&gateway, "POST", "/v1/events", &beacon(PAGE), EVENT).await.0, 202);
    assert_eq!(
        ask(&gateway, "POST", "/v1/events", &beacon("http://localhost:8080"), EVENT).await.0,
        415
    );
    assert_eq!(
        ask(&gateway, "POST", "/v1/events", &beacon("https://evil.example"), EVENT).await.0,
        403
    );
    assert_eq!(
        ask(
            &gateway,
            "POST",
            "/v1/events",
            &[("host", "localhost"), ("content-type", "text/plain")],
            EVENT
        )
        .await
        .0,
        415
    );
    assert_eq!(log.batches.lock().unwrap().len(), 1);
}

fn node_with(origins: &[&str], keys: KeyTable) -> (Arc<Gateway>, Arc<Log>) {
    let log = Arc::new(Log::default());
    let mut deps = deps(Some(log.clone()), Config::defaults(), keys);
    let origins = origins.iter().map(|origin| (*origin).to_owned()).collect();
    deps.origin_policy = OriginPolicy::new("127.0.0.1:8080", origins);
    (Gateway::new(deps), log)
}

/// A key with these scopes, and a table of it alone.
fn key_with(scopes: &[Scope]) -> (String, KeyTable) {
    let (plain, prefix, sha256) = new_key([9; 24]);
    let stored = StoredKey {
        prefix,
        sha256,
        tenant: "acme".into(),
        scopes: scopes.to_vec(),
        expires_ms: None,
    };
    (plain, KeyTable::of(KeysFile { keys: vec![stored] }))
}

#[tokio::test]
async fn a_beacon_brings_a_key_that_may_only_write_in_its_address() {
    let (key, keys) = key_with(&[Scope::Write]);
    let (gateway, log) = node_with(&[PAGE], keys);
    let beacon = [("host", "mill.example"), ("origin", PAGE), ("content-type", "text/plain")];
    let with = |key: &str| format!("/v1/events?key={key}");
    let (status, headers, answer) = ask(&gateway, "POST", &with(&key), &beacon, EVENT).await;
    assert_eq!(status, 202, "{answer}");
    assert_eq!(headers["access-control-allow-origin"], PAGE);
    assert_eq!(log.batches.lock().unwrap().len(), 1);
    let bearer = format!("Bearer {key}");
    let twice = [&beacon[..], &[("authorization", bearer.as_str())]].concat();
    for (path, headers, expected, code) in [
        (with("rm_0"), &beacon[..], 401, "unauthorized"),
        (with(""), &beacon[..], 401, "unauthorized"),
        (with("%zz"), &beacon[..], 401, "unauthorized"),
        (with("%0d%0ax"), &beacon[..], 401, "unauthorized"),
        (format!("{}&key={key}", with(&key)), &beacon[..], 400, "parameter_repeated"),
        (format!("{}&x=1", with(&key)), &beacon[..], 400, "parameter_unknown"),
        (with(&key), &twice[..], 400, "header_repeated"),
        // A page that is not listed may send, as anybody with the key may, but not as a beacon.
        (
            with(&key),
            &[("host", "a"), ("origin", "https://evil.example"), ("content-type", "text/plain")],
            415,
            "unsupported_media_type",
        ),
        // Nowhere else does an address hold a key.
        (format!("/v1/query?metric=m&key={key}"), &beacon[..], 401, "unauthorized"),
    ] {
        let method = if path.starts_with("/v1/query") { "GET" } else { "POST" };
        let (status, _, answer) = ask(&gateway, method, &path, headers, EVENT).await;
        assert_eq!(status, expected, "{path}: {answer}");
        assert!(answer.contains(code) && !answer.contains(&key), "{path}: {answer}");
    }
    assert_eq!(log.batches.lock().unwrap().len(), 1);
    // A key that may do more would be in the logs of proxies.
    for scopes in [&[Scope::Write, Scope::Read][..], &[Scope::Write, Scope::Admin]] {
        let (key, keys) = key_with(scopes);
        let (gateway, log) = node_with(&[PAGE], keys);
        let (status, _, answer) = ask(&gateway, "POST", &with(&key), &beacon, EVENT).await;
        assert!(status == 403 && answer.contains("--scopes write"), "{answer}");
        assert!(log.batches.lock().unwrap().is_empty());
    }
}

#[tokio::test]
async fn every_origin_is_let_in_by_its_key_and_never_without_one() {
    const ANYONE: &str = "https://anyone.example";
    let (key, keys) = key_with(&[Scope::Write]);
    let (gateway, log) = node_with(&["*"], keys);
    let bearer = format!("Bearer {key}");
    for origin in [ANYONE, "null"] {
        let page = [("host", "mill.example"), ("origin", origin), ("sec-fetch-site", "cross-site")];
        let preflight = [&page[..], &[("access-control-request-method", "POST")]].concat();
        let (status, headers, _) = ask(&gateway, "OPTIONS", "/v1/events", &preflight, "").await;
        assert_eq!((status, &headers["access-control-allow-origin"]), (204, &"*".parse().unwrap()));
        assert!(headers.get("access-control-allow-credentials").is_none());
        let sends = [&page[..], &[("authorization", bearer.as_str())]].concat();
        assert_eq!(ask(&gateway, "POST", "/v1/events", &sends, EVENT).await.0, 202);
        // The key in the page may write and read nothing; a page without it may do nothing.
        assert_eq!(ask(&gateway, "GET", "/v1/query?metric=m", &sends, "").await.0, 403);
        assert_eq!(ask(&gateway, "GET", "/v1/query?metric=m", &page, "").await.0, 401);
        assert_eq!(ask(&gateway, "POST", "/v1/events", &page, EVENT).await.0, 401);
        // A browser sends a stored password on its own.
        let password = format!("Basic {}", base64(&format!("any:{key}")));
        let stored = [&page[..], &[("authorization", password.as_str())]].concat();
        assert_eq!(ask(&gateway, "POST", "/topics/m", &stored, EVENT).await.0, 403);
    }
    assert_eq!(log.batches.lock().unwrap().len(), 2);
    // The node refuses this at its start. Even if it did not, no page would get in.
    let (open, log) = node_with(&["*"], KeyTable::open());
    for (method, path) in ROUTES {
        for header in [("origin", ANYONE), ("origin", "null"), ("sec-fetch-site", "cross-site")] {
            let headers = [("host", "localhost:8080"), header];
            let (status, ..) = ask(&open, method, path, &headers, EVENT).await;
            assert_eq!(status, 403, "{method} {path} {header:?}");
        }
    }
    assert!(log.batches.lock().unwrap().is_empty());
}

fn base64(text: &str) -> String {
    use base64::Engine;
    base64::engine::general_purpose::STANDARD.encode(text)
}

#[tokio::test]
async fn the_page_for_people_leads_somewhere_and_allows_its_own_style_alone() {
    let (gateway, _) = gateway(Config::defaults(), KeyTable::open());
    let get = async |path: &str| {
        let request = Request::get(path).header("host", "localhost").body(Body::empty()).unwrap();
        let response = routes::router(gateway.clone()).oneshot(request).await.unwrap();
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        let body = response.into_body().collect().await.unwrap().to_bytes();
        (status, headers, String::from_utf8(body.to_vec()).unwrap())
    };
    let (status, headers, page) = get("/plain").await;
    let policy = headers["content-security-policy"].to_str().unwrap();
    assert!(
        status == 200 && policy.starts_with("default-src 'none'; style-src 'sha256-"),
        "{policy}"
    );
    let hash = policy.split_once("sha256-").unwrap().1.split_once('\'').unwrap().0;
    assert_eq!(
        (hash.len(), page.contains("<script"), page.contains(" style=")),
        (44, false, false)
    );
    let links: Vec<&str> =
        page.split("href=\"").skip(1).map(|rest| rest.split_once('"').unwrap().0).collect();
    assert!(links.len() > 12, "{links:?}");
    for link in links {
        let (status, headers, text) = get(link).await;
        assert!(matches!(status, 200 | 503), "{link}: {status}");
        if link.starts_with("/docs/") {
            assert_eq!(headers["content-type"], "text/plain; charset=utf-8");
            assert!(text.starts_with("# "), "{link}");
        }
    }
    assert_eq!(get("/docs/none.md").await.0, 404);
    assert_eq!(get("/docs/reference/none.md").await.0, 404);
    let (.., list) = get("/docs/README.md").await;
    let pages = list.split("](").skip(1).map(|rest| rest.split_once(')').unwrap().0);
    let is_served =
        |page: &&str| !["..", "adr/", "style.md"].iter().any(|not| page.starts_with(not));
    let pages: Vec<&str> = pages.filter(is_served).collect();
    assert!(pages.len() > 40, "{pages:?}");
    for page in pages {
        assert_eq!(get(&format!("/docs/{page}")).await.0, 200, "{page}");
    }
    assert_eq!(get("/docs/reference/api.md?x=1").await.0, 400);
    let form = "/v1/query?metric=page_view&step=1h&agg=count%2Csum%2Cp95&format=csv";
    assert_eq!(get(form).await.0, 200, "what the form asks");
}
