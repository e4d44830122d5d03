//! An S3 server on loopback, in the test's own process, with faults by seed.
#![allow(dead_code)] // each test binary uses its part

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use hyper::body::Incoming;
use hyper::{Method, Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use s3s::auth::SimpleAuth;
use s3s::service::{S3Service, S3ServiceBuilder};

pub const ACCESS_KEY: &str = "ROLLMILLTESTKEY";
pub const SECRET_KEY: &str = "a/secret+that=is-never-logged";
pub const BUCKET: &str = "events";

/// How a request goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum S3Fault {
    /// 503 SlowDown, nothing done.
    SlowDown,
    /// 500, nothing done.
    Internal,
    /// No answer until the client gives up, nothing done.
    Hang,
    /// Done, but the answer is 500.
    LostReply,
    /// Done, but the connection is cut.
    Cut,
    /// A put that is acknowledged and of which half is there.
    Truncated,
}

pub const FAULTS: [S3Fault; 6] = [
    S3Fault::SlowDown,
    S3Fault::Internal,
    S3Fault::Hang,
    S3Fault::LostReply,
    S3Fault::Cut,
    S3Fault::Truncated,
];

/// What the server makes of conditional puts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ConditionalPuts {
    Honoured,
    /// The header is refused with 501.
    Refused,
    /// The header is not looked at.
    Ignored,
}

#[derive(Debug)]
struct Behaviour {
    dice: u64,
    per_mille: u64,
    next: Vec<S3Fault>,
    hit: Vec<S3Fault>,
    conditional: ConditionalPuts,
    puts: u64,
    down: bool,
}

/// A running server; it ends when it is dropped.
pub struct S3Server {
    pub endpoint: String,
    root: PathBuf,
    behaviour: Arc<Mutex<Behaviour>>,
    _runtime: tokio::runtime::Runtime,
}

impl S3Server {
    /// A server over a directory, with one bucket.
    pub fn start(root: &Path) -> Self {
        Self::start_on("127.0.0.1:0", root)
    }

    /// As [`Self::start`], at an address.
    pub fn start_on(address: &str, root: &Path) -> Self {
        std::fs::create_dir_all(root.join(BUCKET)).expect("the bucket");
        let behaviour = Behaviour {
            dice: 1,
            per_mille: 0,
            next: Vec::new(),
            hit: Vec::new(),
            conditional: ConditionalPuts::Honoured,
            puts: 0,
            down: false,
        };
        let behaviour = Arc::new(Mutex::new(behaviour));
        let files = s3s_fs::FileSystem::new(root).expect("the directory");
        let mut builder = S3ServiceBuilder::new(files);
        builder.set_auth(SimpleAuth::from_single(ACCESS_KEY, SECRET_KEY));
        let service = builder.build();
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .expect("runtime");
        let listener = runtime.block_on(tokio::net::TcpListener::bind(address)).expect("a port");
        let endpoint = format!("http://{}", listener.local_addr().expect("address"));
        runtime.spawn(accept(listener, service, root.to_owned(), behaviour.clone()));
        Self { endpoint, root: root.to_owned(), behaviour, _runtime: runtime }
    }

    fn set<T>(&self, change: impl FnOnce(&mut Behaviour) -> T) -> T {
        change(&mut self.behaviour.lock().expect("no panic"))
    }

    /// So many of a thousand requests go wrong, which ones the seed says.
    pub fn set_faults(&self, seed: u64, per_mille: u64) {
        self.set(|b| (b.dice, b.per_mille) = (seed | 1, per_mille));
    }

    /// The next requests go wrong so; what only a put can suffer waits for one.
    pub fn fail_next(&self, faults: &[S3Fault]) {
        self.set(|b| b.next = faults.iter().rev().copied().collect());
    }

    pub fn set_conditional(&self, conditional: ConditionalPuts) {
        self.set(|b| b.conditional = conditional);
    }

    /// While it is down, every request is answered 503.
    pub fn set_down(&self, down: bool) {
        self.set(|b| b.down = down);
    }

    /// The faults that happened.
    pub fn injected_faults(&self) -> Vec<S3Fault> {
        self.set(|b| b.hit.clone())
    }

    pub fn puts(&self) -> u64 {
        self.set(|b| b.puts)
    }

    /// Where the bytes of a key are.
    pub fn file(&self, key: &str) -> PathBuf {
        self.root.join(BUCKET).join(key)
    }
}

async fn accept(
    listener: tokio::net::TcpListener,
    service: S3Service,
    root: PathBuf,
    behaviour: Arc<Mutex<Behaviour>>,
) {
    while let Ok((socket, _)) = listener.accept().await {
        let (service, root, behaviour) = (service.clone(), root.clone(), behaviour.clone());
        let answer = hyper::service::service_fn(move |request| {
            answer(service.clone(), root.clone(), behaviour.clone(), request)
        });
        tokio::spawn(async move {
            let builder = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
            // A connection that is cut is what the test wants.
            _ = builder.serve_connection(TokioIo::new(socket), answer).await;
        });
    }
}

fn decide(behaviour: &Mutex<Behaviour>, put: bool) -> (Option<S3Fault>, ConditionalPuts) {
    let mut b = behaviour.lock().expect("no panic");
    b.puts += u64::from(put);
    if b.down {
        return (Some(S3Fault::SlowDown), b.conditional);
    }
    let due = b.next.last().is_some_and(|next| put || *next != S3Fault::Truncated);
    let mut fault = if due { b.next.pop() } else { None };
    if fault.is_none() && b.per_mille > 0 {
        // xorshift64
        b.dice ^= b.dice << 13;
        b.dice ^= b.dice >> 7;
        b.dice ^= b.dice << 17;
        if b.dice % 1_000 < b.per_mille {
            fault = Some(FAULTS[(b.dice / 1_000 % FAULTS.len() as u64) as usize]);
        }
    }
    let fault = fault.filter(|fault| put || *fault != S3Fault::Truncated);
    b.hit.extend(fault);
    (fault, b.conditional)
}

type Answer = Result<Response<s3s::Body>, Box<dyn std::error::Error + Send + Sync>>;

async fn answer(
    service: S3Service,
    root: PathBuf,
    behaviour: Arc<Mutex<Behaviour>>,
    request: Request<Incoming>,
) -> Answer {
    let put = request.method() == Method::PUT;
    let key = request.uri().path().trim_start_matches('/').replace("%3D", "=");
    let (fault, conditional) = decide(&behaviour, put);
    match fault {
        Some(S3Fault::SlowDown) => return status(503, "SlowDown"),
        Some(S3Fault::Internal) => return status(500, "InternalError"),
        Some(S3Fault::Hang) => {
            tokio::time::sleep(Duration::from_secs(5)).await;
            return status(500, "InternalError");
        }
        _ => {}
    }
    if put
        && request.headers().contains_key("if-none-match")
        && conditional != ConditionalPuts::Honoured
    {
        if conditional == ConditionalPuts::Refused {
            return status(501, "NotImplemented");
        }
        // The signature covers the header, so the object goes away instead: then nothing is in the
        // way of the put.
        _ = std::fs::remove_file(root.join(&key));
    }
    let response = service.call(request.map(s3s::Body::from)).await?;
    match fault {
        Some(S3Fault::LostReply) => status(500, "InternalError"),
        Some(S3Fault::Cut) => Err("cut".into()),
        Some(S3Fault::Truncated) => {
            let path = root.join(&key);
            let half = std::fs::metadata(&path)?.len() / 2;
            std::fs::File::options().write(true).open(&path)?.set_len(half)?;
            Ok(response)
        }
        _ => Ok(response),
    }
}

fn status(status: u16, code: &str) -> Answer {
    let body = format!("<?xml version=\"1.0\"?><Error><Code>{code}</Code></Error>");
    Ok(Response::builder().status(status).body(s3s::Body::from(body))?)
}
