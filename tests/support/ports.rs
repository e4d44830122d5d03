//! Ports for servers that take a number and bind it later, or again after a death.
//!
//! A port that the system gave and that was given back may be given to somebody else before the
//! server has it. These lie below the range from which the system gives, and none is handed out
//! twice by one process.
#![allow(dead_code)] // each test binary uses its part

use std::net::TcpListener;
use std::sync::atomic::{AtomicU16, Ordering};

/// The kinds of servers have ranges of their own, because each part of the tests that needs ports
/// has its own copy of this file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PortRange {
    first: u16,
    count: u16,
}

pub const NODES: PortRange = PortRange { first: 10_000, count: 2_000 };
pub const KAFKA: PortRange = PortRange { first: 12_000, count: 1_000 };
pub const POSTGRES: PortRange = PortRange { first: 13_000, count: 500 };
pub const REDIS: PortRange = PortRange { first: 13_500, count: 500 };
pub const S3: PortRange = PortRange { first: 14_000, count: 500 };
pub const MESH: PortRange = PortRange { first: 14_500, count: 1_000 };

/// A port of loopback on which nobody listens.
pub fn free(family: PortRange) -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    // Other test processes on this machine begin elsewhere.
    let begin = (std::process::id() % u32::from(family.count)) as u16;
    let numbers =
        std::iter::repeat_with(|| NEXT.fetch_add(1, Ordering::Relaxed)).take(family.count.into());
    let mut ports = numbers.map(|n| {
        family.first + ((u32::from(begin) + u32::from(n)) % u32::from(family.count)) as u16
    });
    ports.find(|port| TcpListener::bind(("127.0.0.1", *port)).is_ok()).expect("a free port")
}
