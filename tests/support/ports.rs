//! Ports for servers that take a port number and bind it later, or again after a crash.
//!
//! A port that the system assigned and that was then closed may be assigned to another process
//! before the server binds it. The ports here lie below the system's ephemeral range, and a process
//! hands out each of them only once.
#![allow(dead_code)] // each test binary uses a part of this file

use std::net::TcpListener;
use std::sync::atomic::{AtomicU16, Ordering};

/// A range of ports for one kind of server. The ranges are disjoint, because each module of the
/// tests that needs ports compiles its own copy of this file.
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

/// A loopback port on which nobody listens.
pub fn free(family: PortRange) -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    // The start depends on the process id, so that other test processes on this machine start
    // elsewhere.
    let begin = (std::process::id() % u32::from(family.count)) as u16;
    let numbers =
        std::iter::repeat_with(|| NEXT.fetch_add(1, Ordering::Relaxed)).take(family.count.into());
    let mut ports = numbers.map(|n| {
        family.first + ((u32::from(begin) + u32::from(n)) % u32::from(family.count)) as u16
    });
    ports.find(|port| TcpListener::bind(("127.0.0.1", *port)).is_ok()).expect("a free port")
}
