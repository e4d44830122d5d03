//! How a node refuses to start, and how it stops: with the reason and the remedy, and without
//! losing anything acknowledged.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use futures::{SinkExt, StreamExt};
use tokio_tungstenite::tungstenite::Message;

use crate::support::{Server, agent, free_port, wait_until};

/// Starts a node that must refuse. Returns its exit code and output.
fn refused(args: &[&str], data: &Path) -> (Option<i32>, String) {
    let data = data.display().to_string();
    let output = Server::cli(&[&["serve", "--data", &data], args].concat());
    let said = String::from_utf8(output.stderr).expect("text");
    assert!(!said.contains("panicked"), "{said}");
    (output.status.code(), said)
}

fn says(said: &str, parts: &[&str]) {
    for part in parts {
        assert!(said.contains(part), "{part:?} is not in: {said}");
    }
}

#[test]
fn a_start_that_cannot_be_says_why_and_what_to_do() {
    let dir = tempfile::tempdir().expect("a directory");
    let fresh = dir.path().join("fresh");

    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = taken.local_addr().expect("an address").to_string();
    let (code, said) = refused(&["--listen", &address], &fresh);
    assert_eq!(code, Some(1), "{said}");
    says(&said, &[&address, "another process", "--listen"]);

    for open in ["0.0.0.0:0", "[::]:0", "192.0.2.1:8080"] {
        let (code, said) = refused(&["--listen", open], &fresh);
        assert_eq!(code, Some(1), "{said}");
        says(&said, &[open, "rollmill keys add", "auth.keys_file", "127.0.0.1"]);
    }
    let (code, said) = refused(&["--listen", "nonsense"], &fresh);
    assert_eq!(code, Some(1), "{said}");
    says(&said, &["cannot resolve nonsense", "HOST:PORT"]);

    let file = dir.path().join("file");
    std::fs::write(&file, "x").expect("written");
    let (code, said) = refused(&["--listen", "127.0.0.1:0"], &file);
    assert_eq!(code, Some(1), "{said}");
    says(&said, &["cannot create the data directory", &file.display().to_string()]);

    let config = dir.path().join("keys.toml");
    std::fs::write(
        &config,
        format!("auth.keys_file = \"{}/nowhere.toml\"\n", dir.path().display()),
    )
    .expect("written");
    let (code, said) =
        refused(&["--listen", "127.0.0.1:0", "--config", &config.display().to_string()], &fresh);
    assert_eq!(code, Some(1), "{said}");
    says(&said, &["rollmill keys add", "nowhere.toml"]);
}

#[test]
fn data_in_use_or_of_another_shape_is_refused() {
    let dir = tempfile::tempdir().expect("a directory");
    let data = dir.path().join("data");
    let server = Server::start(&data, &[("shards.count", "4")]);
    assert_eq!(server.post(r#"{"metric":"m"}"#).0, 202);
    let (code, said) = refused(&["--listen", "127.0.0.1:0"], &data);
    assert_eq!(code, Some(1), "{said}");
    says(&said, &["lock", &data.display().to_string(), "stop it", "--data"]);
    assert_eq!(server.post(r#"{"metric":"m"}"#).0, 202, "the first process is not disturbed");
    assert_eq!(server.stop(), Some(0));

    let config = dir.path().join("config.toml");
    std::fs::write(&config, "shards.count = 8\n").expect("written");
    let (code, said) =
        refused(&["--listen", "127.0.0.1:0", "--config", &config.display().to_string()], &data);
    assert_eq!(code, Some(1), "{said}");
    says(&said, &["4 shards", "shards.count = 8"]);
}

#[test]
fn every_mistake_of_a_configuration_is_named_at_once() {
    let dir = tempfile::tempdir().expect("a directory");
    let (data, config) = (dir.path().join("data"), dir.path().join("config.toml"));
    let text = "accept.max_agee = \"1d\"\nshards.count = 0\nflush.interval = \
                \"soon\"\nquery.cache = \"64\"\nws.window = -1\n";
    std::fs::write(&config, text).expect("written");
    let path = config.display().to_string();
    let (code, said) = refused(&["--listen", "127.0.0.1:0", "--config", &path], &data);
    assert_eq!(code, Some(2), "{said}");
    let parts = [
        "5 mistake",
        "did you mean accept.max_age?",
        "shards.count",
        "flush.interval",
        "query.cache",
        "64MiB",
        "ws.window",
    ];
    says(&said, &[&parts[..], &[&path]].concat());
    assert!(!data.exists(), "nothing is made before the configuration is sound");
    let checked = Server::cli(&["check-config", &path]);
    assert_eq!(checked.status.code(), Some(2));
    says(&String::from_utf8_lossy(&checked.stderr), &parts);
    for broken in ["= 7", "[accept\nmax_age = 1", "accept = 7"] {
        std::fs::write(&config, broken).expect("written");
        let (code, said) = refused(&["--listen", "127.0.0.1:0", "--config", &path], &data);
        assert_eq!((code, said.contains(&path)), (Some(2), true), "{broken}: {said}");
    }
    let (code, said) = refused(&["--config", "/nowhere/rollmill.toml"], &data);
    assert_eq!((code, said.contains("/nowhere/rollmill.toml")), (Some(2), true), "{said}");
}

fn event(id: &str) -> String {
    format!(r#"{{"metric":"m","id":"{id}"}}"#)
}

/// Sends over one connection until the server is gone. Returns the acknowledged ids.
fn post_until_gone(url: &str, name: usize, go: &AtomicBool, taken: &AtomicUsize) -> Vec<String> {
    let (agent, mut acked) = (agent(), Vec::new());
    for n in 0.. {
        let id = format!("{name}-{n}");
        let answer = agent
            .post(format!("{url}/v1/events"))
            .header("content-type", "application/json")
            .send(event(&id));
        match answer.map(|answer| answer.status().as_u16()) {
            Ok(202) => {
                taken.fetch_add(1, Ordering::AcqRel);
                acked.push(id);
            }
            Ok(503) => {}
            Ok(status) => panic!("{status}"),
            Err(_) if go.load(Ordering::Acquire) => panic!("refused before the signal"),
            Err(_) => break,
        }
    }
    acked
}

/// Like [`post_until_gone`], over a WebSocket that also holds a subscription.
async fn stream_until_gone(url: String) -> (Vec<String>, Option<u16>) {
    let (ws, _) = tokio_tungstenite::connect_async(format!("{}/v1/ws", url.replace("http", "ws")))
        .await
        .expect("connected");
    let (mut sink, mut stream) = ws.split();
    let subscribe = Message::text(r#"{"subscribe":"q","query":{"metric":"m"}}"#);
    sink.send(subscribe).await.expect("subscribed");
    let sending = tokio::spawn(async move {
        for n in 0.. {
            let message = format!(r#"{{"seq":{n},"events":[{}]}}"#, event(&format!("ws-{n}")));
            if sink.send(Message::text(message)).await.is_err() {
                return;
            }
        }
    });
    let (mut acked, mut code) = (Vec::new(), None);
    while let Some(Ok(message)) = stream.next().await {
        match message {
            Message::Text(text) => {
                let answer: serde_json::Value = serde_json::from_str(&text).expect("JSON");
                if let Some(seq) = answer["ack"].as_u64() {
                    acked.push(format!("ws-{seq}"));
                }
            }
            Message::Close(frame) => code = frame.map(|frame| u16::from(frame.code)),
            _ => {}
        }
    }
    sending.abort();
    (acked, code)
}

/// Connections that do not end by themselves delay a stop by ten seconds: then they are cut.
const QUICK_STOP: Duration = Duration::from_secs(9);

#[test]
fn a_stop_under_load_is_quick_and_loses_nothing_acknowledged() {
    // One fast stop is enough, because the other attempts may have met a busy machine.
    let mut took = vec![stop_under_load()];
    while took.len() < 4 && took.last() >= Some(&QUICK_STOP) {
        took.push(stop_under_load());
    }
    assert!(took.last() < Some(&QUICK_STOP), "the stop took {took:?}");
}

/// Duration of a stop under load.
fn stop_under_load() -> Duration {
    let dir = tempfile::tempdir().expect("a directory");
    let data = dir.path().join("data");
    let server = Server::start(&data, &[("shards.count", "4")]);
    let (url, go, taken) =
        (server.url.clone(), Arc::new(AtomicBool::new(true)), Arc::new(AtomicUsize::new(0)));
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .expect("a runtime");
    let streams: Vec<_> = (0..2).map(|_| runtime.spawn(stream_until_gone(url.clone()))).collect();
    let posts: Vec<_> = (0..4)
        .map(|name| {
            let (url, go, taken) = (url.clone(), go.clone(), taken.clone());
            std::thread::spawn(move || post_until_gone(&url, name, &go, &taken))
        })
        .collect();
    // Idle connections must not delay the stop.
    let port = url.rsplit(':').next().expect("a port").parse::<u16>().expect("a port");
    let idle: Vec<_> = (0..20)
        .map(|_| std::net::TcpStream::connect(("127.0.0.1", port)).expect("connected"))
        .collect();
    std::thread::sleep(Duration::from_millis(500));
    wait_until("it takes writes", || taken.load(Ordering::Acquire) > 20);
    go.store(false, Ordering::Release);
    let began = Instant::now();
    assert_eq!(server.stop(), Some(0));
    let took = began.elapsed();
    drop(idle);
    let mut acked: Vec<String> =
        posts.into_iter().flat_map(|post| post.join().expect("no panic")).collect();
    for stream in streams {
        let (streamed, code) = runtime.block_on(stream).expect("no panic");
        // Both clients use the same event ids, so each event counts once.
        acked.extend(streamed);
        assert!(matches!(code, Some(1001) | None), "{code:?}");
    }

    let server = Server::start_on(&data, free_port(), &[("shards.count", "4")]);
    let count = |answer: &serde_json::Value| {
        answer["series"][0]["points"][0]["count"].as_u64().unwrap_or(0)
    };
    acked.sort_unstable();
    acked.dedup();
    // The whole log is counted, which may include events that were not acknowledged.
    let there = count(&server.await_everything("/v1/query?metric=m&step=all"));
    assert!(
        there >= acked.len() as u64,
        "{there} of {} acknowledged events are there",
        acked.len()
    );
    for ids in acked.chunks(5_000) {
        let events: Vec<_> = ids.iter().map(|id| event(id)).collect();
        assert_eq!(server.post(&format!("[{}]", events.join(","))).0, 202);
    }
    let now = count(&server.await_everything("/v1/query?metric=m&step=all"));
    assert_eq!(now, there, "an acknowledged event was not there and counted only now");
    took
}
