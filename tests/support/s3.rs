//! An S3 server on loopback, inside the test process, with seeded faults.
#![allow(dead_code)] // each test binary uses a part of this file

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

/// How a request fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum S3Fault {
    /// 503 SlowDown; not executed.
    SlowDown,
    /// 500; not executed.
    Internal,
    /// No answer until the client gives up; not executed.
    Hang,
    /// Executed, but the answer is 500.
    LostReply,
    /// Executed, but the connection is cut.
    Cut,
    /// A put that is acknowledged although only half of the object is stored.
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

/// How the server treats conditional puts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ConditionalPuts {
    Honoured,
    /// Refuses the header with 501.
    Refused,
    /// Ignores the header.
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

/// A running server; it stops when dropped.
pub struct S3Server {
    pub endpoint: String,
    root: PathBuf,
    behaviour: Arc<Mutex<Behaviour>>,
    _runtime: tokio::runtime::Runtime,
}

impl S3Server {
    /// Starts a server over a directory, with one bucket.
    pub fn start(root: &Path) -> Self {
        Self::start_on("127.0.0.1:0", root)
    }

    /// Like [`Self::start`], at a given address.
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

    /// Makes this many of a thousand requests fail; the seed decides which.
    pub fn set_faults(&self, seed: u64, per_mille: u64) {
        self.set(|b| (b.dice, b.per_mille) = (seed | 1, per_mille));
    }

    /// Makes the next requests fail like this. A fault that only applies to puts waits for one.
    pub fn fail_next(&self, faults: &[S3Fault]) {
        self.set(|b| b.next = faults.iter().rev().copied().collect());
    }

    pub fn set_conditional(&self, conditional: ConditionalPuts) {
        self.set(|b| b.conditional = conditional);
    }

    /// While the server is down, every request is answered 503.
    pub fn set_down(&self, down: bool) {
        self.set(|b| b.down = down);
    }

    /// The faults injected so far.
    pub fn injected_faults(&self) -> Vec<S3Fault> {
        self.set(|b| b.hit.clone())
    }

    pub fn puts(&self) -> u64 {
        self.set(|b| b.puts)
    }

    /// The file that holds a key's bytes.
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
            // Cut connections are intended here.
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
        // The signature covers the `If-None-Match` header, so it cannot be removed from the
        // request. Removing the object instead lets the put succeed.
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
