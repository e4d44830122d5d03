//! The dashboard and its files, as a browser fetches them; a build without it has the plain page.

use axum::http::HeaderMap;

use super::browsers::with_key;
use super::*;

async fn get(path: &str, headers: &[(&str, &str)]) -> (u16, HeaderMap, String) {
    get_from(KeyTable::open(), path, headers).await
}

async fn get_from(
    keys: KeyTable,
    path: &str,
    headers: &[(&str, &str)],
) -> (u16, HeaderMap, String) {
    let (gateway, _) = gateway(Config::defaults(), keys);
    let mut request = Request::get(path).header("host", "localhost");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let request = request.body(Body::empty()).unwrap();
    let response = routes::router(gateway).oneshot(request).await.unwrap();
    let (status, headers) = (response.status().as_u16(), response.headers().clone());
    let body = response.into_body().collect().await.unwrap().to_bytes();
    (status, headers, String::from_utf8_lossy(&body).into_owned())
}

#[tokio::test]
async fn the_root_is_the_dashboard_under_a_strict_policy_or_the_plain_page() {
    let (status, headers, page) = get("/", &[]).await;
    assert_eq!((status, &headers["content-type"].to_str().unwrap()[..9]), (200, "text/html"));
    let policy = headers["content-security-policy"].to_str().unwrap();
    assert!(policy.starts_with("default-src 'none'; "), "{policy}");
    assert!(!policy.contains("unsafe") && !policy.contains('*'), "{policy}");
    assert_eq!(headers["x-content-type-options"], "nosniff");
    assert_eq!(get("/?x=1", &[]).await.0, 400);
    if !page.contains("id=\"app\"") {
        let (.., plain) = get("/plain", &[]).await;
        assert_eq!(page, plain);
        return;
    }
    assert_eq!(headers["cache-control"], "no-cache");
    assert_eq!(headers["referrer-policy"], "no-referrer");
    let tag = headers["etag"].to_str().unwrap();
    let (status, headers, body) = get("/", &[("if-none-match", tag)]).await;
    assert_eq!((status, body.as_str(), headers["etag"].to_str().unwrap()), (304, "", tag));
    assert!(headers.contains_key("content-security-policy"));
    assert_eq!(get("/", &[("if-none-match", "\"old\"")]).await.0, 200);
    assert!(page.contains("content=\"unneeded\""));
    let (_, keys) = with_key();
    let (.., page) = get_from(keys, "/", &[("if-none-match", tag)]).await;
    assert!(page.contains("content=\"needed\""), "a node with keys has another page");
}

#[tokio::test]
async fn files_of_the_dashboard_are_kept_for_a_year_and_unknown_ones_are_not() {
    let (_, _, page) = get("/", &[]).await;
    let links = page.split('"').filter(|part| part.starts_with("/assets/"));
    for link in links {
        let (status, headers, body) = get(link, &[]).await;
        assert!(status == 200 && !body.is_empty(), "{link}: {status}");
        assert_eq!(headers["cache-control"], "public, max-age=31536000, immutable");
        let kind = headers["content-type"].to_str().unwrap();
        assert!(["text/javascript", "text/css", "image/svg"].iter().any(|k| kind.starts_with(k)));
        let tag = headers["etag"].to_str().unwrap();
        assert_eq!(get(link, &[("if-none-match", tag)]).await.0, 304, "{link}");
        let (_, plain, _) = get(link, &[("accept-encoding", "br")]).await;
        assert!(!plain.contains_key("content-encoding"));
    }
    for path in ["/assets/none.js", "/assets/..%2Findex.html", "/assets/index.html"] {
        let (status, headers, _) = get(path, &[]).await;
        assert_eq!(status, 404, "{path}");
        assert!(!headers.contains_key("cache-control"), "{path}");
    }
}

#[tokio::test]
async fn a_first_load_is_packed_however_busy_the_node_is() {
    let (gateway, _) = gateway(Config::defaults(), KeyTable::open());
    // What compresses answers is in use.
    let places = gateway.compression_permits.clone();
    let _held = places.try_acquire_many(places.available_permits() as u32).unwrap();
    let (_, _, page) = get("/", &[]).await;
    let links: Vec<&str> = page.split('"').filter(|part| part.starts_with("/assets/")).collect();
    let mut bytes = page.len();
    for link in &links {
        let request = Request::get(*link)
            .header("host", "localhost")
            .header("accept-encoding", "gzip, deflate, br, zstd");
        let request = request.body(Body::empty()).unwrap();
        let response = routes::router(gateway.clone()).oneshot(request).await.unwrap();
        let headers = response.headers().clone();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        bytes += body.len();
        if link.ends_with(".svg") {
            continue;
        }
        assert_eq!(headers["content-encoding"], "gzip", "{link}");
        assert_eq!(headers.get_all("vary").iter().filter(|v| *v == "accept-encoding").count(), 1);
        let mut plain = Vec::new();
        std::io::copy(&mut flate2::read::GzDecoder::new(&body[..]), &mut plain).unwrap();
        assert_eq!(String::from_utf8(plain).unwrap(), get(link, &[]).await.2, "{link}");
    }
    assert!(bytes < 150_000, "{bytes} bytes");
}
