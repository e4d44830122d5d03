//! The memory cost of an event id, as the operating system counts it, measured in a process that
//! does nothing else.

use std::process::Command;

use rollmill::model::flush::DedupRule;
use rollmill::shards::dedup::DedupIndex;

/// Ids per second on one of 64 shards, at a billion events a day.
const PER_SECOND: u64 = 181;
const HOUR: i64 = 3_600_000;
/// A shard's default rule.
const RULE: DedupRule = DedupRule { horizon_ms: HOUR, max_ids: 1_000_000 };
/// Environment variable set for the measuring process.
const CHILD: &str = "TEST_DEDUP_MEMORY";

fn id(number: u64) -> u128 {
    u128::from(number).wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835)
}

/// The append time of an id in ms, at the mean rate.
fn at(number: u64) -> i64 {
    (number * 1_000 / PER_SECOND).cast_signed()
}

fn take(dedup: &mut DedupIndex, ids: std::ops::Range<u64>, at: impl Fn(u64) -> i64) {
    for number in ids {
        dedup.advance(at(number));
        assert!(dedup.insert(id(number), at(number)));
    }
}

/// Anonymous resident memory of this process in bytes; the pages of the program itself do not
/// count.
fn memory() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("Linux");
    let line = status.lines().find(|line| line.starts_with("RssAnon")).expect("a line");
    line.split_whitespace().nth(1).and_then(|kb| kb.parse::<f64>().ok()).expect("a number") * 1024.0
}

/// Runs in the measuring process: inserts three hours of ids, each with its own append time, and
/// prints the highest cost per id once there were many.
#[allow(clippy::print_stdout)] // the parent process reads it
fn measured() {
    let before = memory();
    let mut dedup = DedupIndex::new(RULE, 7);
    let mut most = 0.0f64;
    for part in 0..3 * 360 {
        take(&mut dedup, part * 10 * PER_SECOND..(part + 1) * 10 * PER_SECOND, at);
        if dedup.len() > 200_000 {
            most = most.max((memory() - before) / dedup.len() as f64);
        }
    }
    let (now, asked) =
        ((memory() - before) / dedup.len() as f64, dedup.heap_bytes() as f64 / dedup.len() as f64);
    println!("ids {} bytes {now:.2} most {most:.2} asked {asked:.2}", dedup.len());
}

#[test]
fn an_id_costs_at_most_twenty_four_bytes() {
    if std::env::var_os(CHILD).is_some() {
        return measured();
    }
    let name = "dedup_memory::an_id_costs_at_most_twenty_four_bytes";
    let child = Command::new(std::env::current_exe().expect("this test"))
        .args([name, "--exact", "--nocapture", "--test-threads=1"])
        .env(CHILD, "1")
        .output()
        .expect("it runs");
    let text = String::from_utf8_lossy(&child.stdout).into_owned();
    let line = text
        .lines()
        .find_map(|line| line.split_once("ids "))
        .unwrap_or_else(|| panic!("nothing was measured: {text}"))
        .1;
    let words: Vec<&str> = line.split(' ').collect();
    let number = |at: usize| words[at].parse::<f64>().expect("a number");
    assert!(number(0) >= (3_600 * PER_SECOND) as f64, "an hour of ids: {line}");
    assert!([2, 4, 6].into_iter().all(|at| number(at) <= 24.0), "{line}");
}

#[test]
fn an_hour_of_ids_at_the_mean_rate_is_kept_by_default() {
    let mut dedup = DedupIndex::new(RULE, 7);
    let hours = |hours: u64| hours * 3_600 * PER_SECOND;
    take(&mut dedup, 0..hours(2), at);
    let now = at(hours(2));
    assert_eq!((dedup.evictions(), dedup.horizon_ms(now)), (0, HOUR));
    assert!(
        !dedup.insert(id(hours(1) + PER_SECOND), now)
            && dedup.insert(id(hours(1) - PER_SECOND), now)
    );
    // Beyond the capacity, the effective horizon is reported.
    let mut dedup = DedupIndex::new(DedupRule { max_ids: 100_000, ..RULE }, 7);
    take(&mut dedup, 0..400_000, |number| number.cast_signed());
    assert_eq!(
        (dedup.len(), dedup.evictions(), dedup.horizon_ms(399_999)),
        (100_000, 300_000, 100_000)
    );
}
