//! A node behind a failing network: it runs in a network namespace that one virtual link connects
//! to everything else.
//!
//! Every process believes that all others are on loopback: relays forward each port over the link.
//! While the link is down, packets are dropped in both directions, as when a cable is pulled. Where
//! network namespaces cannot be created (that takes root), the test says so and checks nothing.

use std::fs::File;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::{Cluster, FULL};
use crate::ledger::Ledger;
use crate::load::{ReadStats, StopOnDrop, accounting, check, client, reader};
use crate::number;

/// Index of the node behind the link.
const CUT_OFF_NODE: usize = 1;

fn try_ip(args: &str) -> Result<(), String> {
    let output = Command::new("ip")
        .args(args.split(' '))
        .output()
        .expect("ip is there: `make tools` installs it");
    let said = || format!("ip {args}: {}", String::from_utf8_lossy(&output.stderr).trim());
    if output.status.success() { Ok(()) } else { Err(said()) }
}

fn ip(args: &str) {
    try_ip(args).expect("a network");
}

/// A network namespace at the other end of a virtual link.
struct NetworkIsland {
    name: String,
    /// The interface at the island's end of the link.
    link: String,
    /// Addresses of this side and of the island's side.
    addresses: [String; 2],
}

impl NetworkIsland {
    /// `None` where network namespaces cannot be created.
    fn make() -> Option<Self> {
        let id = std::process::id();
        let (name, outer, link) = (format!("rm{id}"), format!("rmh{id}"), format!("rmi{id}"));
        // From the range reserved for network benchmarks (RFC 2544).
        let addresses = [1, 2].map(|end| format!("198.18.{}.{end}", id % 256));
        if let Err(why) = try_ip(&format!("netns add {name}")) {
            println!("skipped, for lack of network namespaces (they are for root): {why}");
            return None;
        }
        let island = Self { name, link, addresses };
        let (name, link, [near, far]) = (&island.name, &island.link, &island.addresses);
        ip(&format!("link add {outer} type veth peer name {link} netns {name}"));
        ip(&format!("addr add {near}/30 dev {outer}"));
        ip(&format!("-n {name} addr add {far}/30 dev {link}"));
        ip(&format!("link set {outer} up"));
        ip(&format!("-n {name} link set lo up"));
        island.join();
        Some(island)
    }

    fn join(&self) {
        ip(&format!("-n {} link set {} up", self.name, self.link));
    }

    /// Takes the island's end down. This side's end stays up and keeps its route: otherwise packets
    /// for the island would leave this machine by the default route, and another host might answer
    /// them.
    fn cut(&self) {
        ip(&format!("-n {} link set {} down", self.name, self.link));
    }

    /// Makes ports that listen on one side's loopback reachable on the other side's.
    fn relay(&self, ports: &[u16], from_island: bool) {
        let [near, far] = &self.addresses;
        let loopback = "127.0.0.1";
        for &port in ports {
            if from_island {
                self.carry(Some(&self.name), loopback, near, port);
                self.carry(None, near, loopback, port);
            } else {
                self.carry(None, loopback, far, port);
                self.carry(Some(&self.name), far, loopback, port);
            }
        }
    }

    /// Accepts at one address and connects to another, both as seen from the namespace.
    fn carry(&self, namespace: Option<&String>, listen: &str, connect: &str, port: u16) {
        let address = |host: &str| SocketAddr::new(host.parse().expect("an address"), port);
        let (listen, connect) = (address(listen), address(connect));
        let namespace = namespace.cloned();
        let (bound, wait) = std::sync::mpsc::sync_channel(1);
        std::thread::spawn(move || {
            enter(namespace.as_deref());
            let listener = TcpListener::bind(listen).unwrap_or_else(|e| panic!("{listen}: {e}"));
            bound.send(()).expect("somebody waits");
            // A thread inherits the namespace of the thread that spawns it.
            for client in listener.incoming().flatten() {
                std::thread::spawn(move || {
                    let Ok(server) = TcpStream::connect_timeout(&connect, Duration::from_secs(5))
                    else {
                        return;
                    };
                    let (from, to) = (
                        client.try_clone().expect("a socket"),
                        server.try_clone().expect("a socket"),
                    );
                    std::thread::spawn(move || pump(from, to));
                    pump(server, client);
                });
            }
        });
        wait.recv().expect("bound");
    }
}

impl Drop for NetworkIsland {
    fn drop(&mut self) {
        // Deleting the namespace deletes the link too.
        let _ = Command::new("ip").args(["netns", "del", &self.name]).status();
    }
}

fn enter(namespace: Option<&str>) {
    if let Some(name) = namespace {
        let file = File::open(format!("/run/netns/{name}")).expect("the namespace");
        move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network)).expect("entered");
    }
}

fn pump(mut from: TcpStream, mut to: TcpStream) {
    let mut chunk = vec![0; 16 * 1024];
    while let Ok(length @ 1..) = from.read(&mut chunk) {
        if to.write_all(&chunk[..length]).is_err() {
            break;
        }
    }
    let _ = from.shutdown(Shutdown::Both);
    let _ = to.shutdown(Shutdown::Both);
}

fn port_of(url: &str) -> u16 {
    url.rsplit(':').next().and_then(|port| port.trim_end_matches('/').parse().ok()).expect("a port")
}

#[test]
fn a_node_that_the_network_cuts_off_loses_its_shards_and_nothing_else() {
    let Some(island) = NetworkIsland::make() else { return };
    let mut cluster = Cluster::start(&[]);
    assert_eq!(cluster.nodes[CUT_OFF_NODE].server.take().expect("it runs").stop(), Some(0));
    let services = [
        port_of(&cluster.kafka.brokers()),
        cluster.store_proxy.port,
        port_of(&cluster.s3.endpoint),
        port_of(&cluster.redis.url()),
    ];
    let others = cluster
        .nodes
        .iter()
        .enumerate()
        .filter(|(at, _)| *at != CUT_OFF_NODE)
        .map(|(_, node)| node.mesh);
    island.relay(&services.into_iter().chain(others).collect::<Vec<_>>(), true);
    island.relay(&[cluster.port(CUT_OFF_NODE), cluster.nodes[CUT_OFF_NODE].mesh], false);
    cluster.nodes[CUT_OFF_NODE].namespace = Some(island.name.clone());
    cluster.spawn(CUT_OFF_NODE);
    cluster.await_ready(CUT_OFF_NODE);

    let urls = cluster.urls();
    let (ledger, stats, stop) = (Ledger::default(), ReadStats::default(), AtomicBool::new(false));
    let mut moved = Vec::new();
    std::thread::scope(|scope| {
        let (ledger, stats, stop, urls) = (&ledger, &stats, &stop, &urls);
        let stops = StopOnDrop(stop);
        let mut threads: Vec<_> =
            (0..4).map(|n| scope.spawn(move || client(n, 11, urls, ledger, stop))).collect();
        threads.push(scope.spawn(move || reader(urls, ledger, stop, stats)));
        for _ in 0..number("ROLLMILL_CHAOS_CUTS", 2) {
            cluster.await_served(0);
            while !cluster.owns(0, CUT_OFF_NODE) {
                std::thread::sleep(Duration::from_millis(100));
            }
            island.cut();
            moved.push(cluster.await_served(2));
            cluster.await_moved(0, CUT_OFF_NODE);
            assert!(
                cluster.nodes[CUT_OFF_NODE]
                    .server
                    .as_mut()
                    .is_some_and(|server| !server.has_ended()),
                "it ended: {}",
                cluster.node_log(CUT_OFF_NODE)
            );
            std::thread::sleep(Duration::from_secs(2));
            island.join();
            cluster.await_ready(CUT_OFF_NODE);
        }
        drop(stops);
        let failed = threads.into_iter().map(|thread| thread.join()).filter(Result::is_err).count();
        assert_eq!(failed, 0, "a client or the reader failed, see above");
    });
    (0..=FULL).for_each(|at| cluster.await_ready(at));
    check(&urls, &ledger);
    let accounted = accounting(&urls);
    assert_eq!((accounted[0], accounted[2]), (ledger.acked_total(), 0), "aggregated, quarantined");
    println!(
        "a node cut off {} times: {} events acknowledged, 0 lost, 0 double, {} requests repeated, \
         {} refused; queries {} complete, {} partial {:?}, {} unanswered; served elsewhere after \
         {moved:.1?}",
        moved.len(),
        ledger.acked_total(),
        ledger.retries.load(Ordering::SeqCst),
        ledger.refused.load(Ordering::SeqCst),
        stats.complete.load(Ordering::SeqCst),
        stats.partial.load(Ordering::SeqCst),
        stats.reasons.lock().expect("no panic"),
        stats.unanswered.load(Ordering::SeqCst),
    );
}
