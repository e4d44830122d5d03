//! The shared cache over a real Redis: values that return and expire, and servers that hang, die
//! and come back.

use std::time::Duration;

use super::redis::{RedisCache, RedisOptions};
use super::server::Redis;
use super::{PartKey, SharedCache};
use crate::clock::Stopwatch;

const OPTIONS: RedisOptions =
    RedisOptions { deadline: Duration::from_millis(50), ttl: Duration::from_secs(60) };

fn name(n: u8) -> PartKey {
    [n; 32]
}

fn until(what: &str, mut done: impl FnMut() -> bool) {
    let watch = Stopwatch::start();
    while !done() {
        assert!(watch.elapsed() < Duration::from_secs(120), "{what}");
        // Let the cache's own thread run.
        std::thread::yield_now();
    }
}

fn kept(cache: &RedisCache, n: u8, value: &[u8]) -> bool {
    cache.put(name(n), value.to_vec());
    cache.get(&[name(n)]) == [Some(value.to_vec())]
}

#[test]
fn values_come_back_in_order_and_expire() {
    let redis = Redis::start();
    let cache = RedisCache::open(&redis.url(), OPTIONS).expect("opens");
    until("the first value", || kept(&cache, 1, b"one"));
    until("the second value", || kept(&cache, 3, b"\x00\xffthree"));
    let found = [Some(b"\x00\xffthree".to_vec()), None, Some(b"one".to_vec())];
    until("both", || cache.get(&[name(3), name(2), name(1)]) == found);
    let mut connection = redis.connection();
    let keys: Vec<String> = ::redis::cmd("KEYS").arg("*").query(&mut connection).expect("keys");
    assert!(
        keys.len() == 2
            && keys.iter().all(|key| key.starts_with("rollmill:part:") && key.len() == 14 + 64),
        "{keys:?}"
    );
    let left: i64 = ::redis::cmd("PTTL").arg(&keys[0]).query(&mut connection).expect("a time");
    assert!((1..=60_000).contains(&left), "{left}");
    // Too large to arrive within the deadline: not stored.
    cache.put(name(9), vec![7; (256 << 10) + 1]);
    until("a later one", || kept(&cache, 10, b"x"));
    assert_eq!(cache.get(&[name(9)]), [None]);
}

#[test]
fn a_silent_or_dead_one_costs_nothing_after_the_first_failures_and_comes_back() {
    let mut redis = Redis::start();
    let cache = RedisCache::open(&redis.url(), OPTIONS).expect("opens");
    until("a value", || kept(&cache, 1, b"one"));
    redis.pause();
    let watch = Stopwatch::start();
    for _ in 0..1_000 {
        assert_eq!(cache.get(&[name(1)]), [None]);
    }
    // Without a breaker, 1000 deadlines of 50 ms would add up to 50 s.
    assert!(
        watch.elapsed() < Duration::from_secs(15),
        "1000 questions to a silent server took {:?}",
        watch.elapsed()
    );
    redis.resume();
    until("it answers again", || cache.get(&[name(1)]) == [Some(b"one".to_vec())]);
    redis.kill();
    let watch = Stopwatch::start();
    for _ in 0..1_000 {
        assert_eq!(cache.get(&[name(1)]), [None]);
    }
    assert!(
        watch.elapsed() < Duration::from_secs(15),
        "1000 questions to a dead server took {:?}",
        watch.elapsed()
    );
    redis.restart();
    until("it keeps again", || kept(&cache, 2, b"two"));
}

#[test]
fn one_that_is_not_there_or_refuses_us_is_no_error() {
    let redis = Redis::start();
    let wrong = redis.url().replace(super::server::PASSWORD, "wrong");
    for url in [wrong.as_str(), "redis://127.0.0.1:1"] {
        let cache = RedisCache::open(url, OPTIONS).expect("opens");
        for n in 0..50 {
            cache.put(name(n), vec![1]);
            assert_eq!(cache.get(&[name(n), name(0)]), [None, None]);
        }
    }
    let why =
        RedisCache::open("http://user:hidden@host", OPTIONS).err().expect("no address of Redis");
    assert!(why.contains("redis://") && !why.contains("hidden"), "{why}");
}

#[test]
fn a_value_of_another_kind_under_our_name_is_not_kept() {
    let redis = Redis::start();
    let cache = RedisCache::open(&redis.url(), OPTIONS).expect("opens");
    until("a value", || kept(&cache, 1, b"one"));
    let key = format!("rollmill:part:{}", "02".repeat(32));
    ::redis::cmd("LPUSH").arg(key).arg("x").query::<i64>(&mut redis.connection()).expect("a list");
    until("the other one", || cache.get(&[name(1), name(2)]) == [Some(b"one".to_vec()), None]);
}

#[test]
fn it_may_be_asked_and_dropped_inside_of_a_runtime() {
    let redis = Redis::start();
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).build().expect("runtime");
    runtime.block_on(async {
        let cache = RedisCache::open(&redis.url(), OPTIONS).expect("opens");
        until("a value", || kept(&cache, 1, b"one"));
    });
}
