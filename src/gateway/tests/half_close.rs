//! Clients that close their side of the connection when they have sent their request, over real
//! sockets.

use std::net::SocketAddr;

use tokio::net::TcpStream;

use super::*;
use crate::clock::Stopwatch;

/// Timeout for steps that take a moment on an idle machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// A log that is durable after a while.
struct SlowLog(Duration);

impl BatchSink for SlowLog {
    fn submit(&self, _: ValidBatch) -> Result<AppendTicket, AppendError> {
        let (reply, ticket) = oneshot::channel();
        let after = self.0;
        tokio::spawn(async move {
            tokio::time::sleep(after).await;
            reply.send(Ok(NOW)).unwrap();
        });
        Ok(ticket)
    }
}

/// Sends these bytes, closes that side, and reads what comes until the other side is closed.
async fn half_closed(address: SocketAddr, bytes: &[u8]) -> String {
    let mut socket = TcpStream::connect(address).await.unwrap();
    socket.write_all(bytes).await.unwrap();
    socket.shutdown().await.unwrap();
    rest(&mut socket).await
}

async fn rest(socket: &mut TcpStream) -> String {
    let mut answer = Vec::new();
    let read = tokio::time::timeout(PATIENCE, socket.read_to_end(&mut answer)).await;
    read.expect("the connection stays open").unwrap();
    String::from_utf8(answer).unwrap()
}

fn ask(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nhost: localhost\r\n\r\n")
}

fn write(body: &str) -> String {
    let length = body.len();
    format!("POST /v1/events HTTP/1.1\r\nhost: localhost\r\ncontent-length: {length}\r\n\r\n{body}")
}

fn statuses(answer: &str) -> Vec<&str> {
    answer.split("HTTP/1.1 ").skip(1).map(|rest| &rest[..3]).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_has_nothing_more_to_send_still_gets_its_answer() {
    // A large answer takes a busy machine longer than a client that seems gone is waited for.
    let config = Config::defaults().with(|c| c.query.client_gone_after = PATIENCE);
    let (address, _stop) = listen(config).await;
    let event = write(r#"{"metric":"m"}"#);
    let chunked = "POST /v1/events HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: \
                   chunked\r\n\r\ne\r\n{\"metric\":\"m\"}\r\n0\r\n\r\n";
    let large = ask("/v1/query?metric=m&by=pad&limit=8000000");
    let cases = [
        (event.clone(), vec!["202"]),
        (chunked.to_owned(), vec!["202"]),
        (event.replace("HTTP/1.1", "HTTP/1.0"), vec!["202"]),
        (ask("/v1/query?metric=m"), vec!["200"]),
        (ask("/v1/query?metric="), vec!["400"]),
        (ask("/v1/status"), vec!["200"]),
        (ask("/nowhere"), vec!["404"]),
        (format!("{event}{}{event}", ask("/v1/query?metric=m")), vec!["202", "200", "202"]),
        (large.clone(), vec!["200"]),
    ];
    for (request, expected) in cases {
        for _ in 0..20 {
            let answer = half_closed(address, request.as_bytes()).await;
            assert_eq!(statuses(&answer.replace("HTTP/1.0", "HTTP/1.1")), expected, "{request}");
            assert!(request != large || answer.len() > 8_000_000, "{} bytes", answer.len());
        }
    }
    // The answer is made before the end of the client's side is seen.
    let mut socket = TcpStream::connect(address).await.unwrap();
    socket.write_all(large.as_bytes()).await.unwrap();
    let mut first = [0; 100];
    socket.read_exact(&mut first).await.unwrap();
    socket.shutdown().await.unwrap();
    assert!(rest(&mut socket).await.len() > 7_999_000);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_that_takes_a_while_comes_to_the_closed_side_too() {
    let mut deps = deps(None, Config::defaults(), KeyTable::open());
    let (let_go, held) = std::sync::mpsc::sync_channel(0);
    deps.queries = Arc::new(Queries { held: Mutex::new(Some(held)) });
    deps.submit = Some(Arc::new(SlowLog(Duration::from_millis(500))));
    let config = Config::defaults().with(|c| c.query.client_gone_after = PATIENCE);
    deps.config = Arc::new(config);
    let (address, _stop) = serve(Gateway::new(deps)).await;
    let query = ask("/v1/query?metric=wait");
    let asking = tokio::spawn(async move { half_closed(address, query.as_bytes()).await });
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(!asking.is_finished());
    drop(let_go);
    assert_eq!(statuses(&asking.await.unwrap()), ["200"]);
    let answer = half_closed(address, write(r#"{"metric":"m"}"#).as_bytes()).await;
    assert_eq!(statuses(&answer), ["202"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_query_ends_some_time_after_its_client_closed_and_a_write_does_not() {
    let config =
        Config::defaults().with(|c| c.query.client_gone_after = Duration::from_millis(200));
    let mut deps = deps(None, config, KeyTable::open());
    deps.submit = Some(Arc::new(SlowLog(Duration::from_millis(600))));
    let gateway = Gateway::new(deps);
    let (address, _stop) = serve(gateway.clone()).await;
    let query = ask("/v1/query?metric=until_ended");
    for only_one_side in [true, false] {
        let mut socket = TcpStream::connect(address).await.unwrap();
        socket.write_all(query.as_bytes()).await.unwrap();
        while gateway.shares.queries.usage("").held == 0 {
            tokio::task::yield_now().await;
        }
        let began = Stopwatch::start();
        if only_one_side {
            socket.shutdown().await.unwrap();
            let answer = rest(&mut socket).await;
            assert!(answer.contains("query_abandoned"), "{answer}");
        } else {
            drop(socket);
        }
        while gateway.shares.queries.usage("").held > 0 {
            assert!(began.elapsed() < PATIENCE, "the query of a client that is gone still runs");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert!(began.elapsed() >= Duration::from_millis(200), "{:?}", began.elapsed());
    }
    let answer = half_closed(address, write(r#"{"metric":"m"}"#).as_bytes()).await;
    assert_eq!(statuses(&answer), ["202"], "the log took longer than a query may");
}

#[tokio::test]
async fn a_side_closed_within_a_request_or_between_two_ends_the_connection_at_once() {
    let config = Config::defaults().with(|c| {
        c.query.client_gone_after = 2 * PATIENCE;
        c.server.body_timeout = 2 * PATIENCE;
        c.server.header_timeout = 2 * PATIENCE;
    });
    let (address, _stop) = listen(config).await;
    let whole = write(r#"{"metric":"m"}"#);
    for part in ["", "GET / HT", &whole[..whole.len() - 3]] {
        let answer = half_closed(address, part.as_bytes()).await;
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 4"), "{part}: {answer}");
    }
    let mut socket = TcpStream::connect(address).await.unwrap();
    socket.write_all(whole.as_bytes()).await.unwrap();
    let mut answer = [0; 12];
    socket.read_exact(&mut answer).await.unwrap();
    assert_eq!(&answer, b"HTTP/1.1 202");
    tokio::time::sleep(Duration::from_millis(50)).await;
    socket.shutdown().await.unwrap();
    rest(&mut socket).await;
}
