//! What the open internet and bad neighbours do to the port, and what others see meanwhile: nothing.
//!
//! Each case attacks a gateway in this process while other clients, on a thread of their own, go on asking it: every one of
//! their requests must be answered, and their slowest hundredth may take no longer than a generous multiple of what it took
//! while nobody attacked. What the gateway does with the attacker itself is asserted by the attack.
//!
//! Attackers come from other source addresses (127.9.0.0/16) than the other clients, as they would.

#![allow(clippy::unwrap_used, reason = "these are tests")]

mod http1;
mod http2;
mod limits;
mod memory;
mod names;
mod others;
mod tls;

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicU16, Ordering};

use isthmus::tls::ALPN_H2;
use isthmus_tests::h2raw::Frames;
use isthmus_tests::peer::{Peer, Tls};
use isthmus_tests::pki::{GATEWAY, Pair, Pki, pair};
use isthmus_tests::soon;
use isthmus_tests::upstream::{self, Upstream};
use isthmus_tests::world::{Setup, World};
use tokio::io::AsyncReadExt;
use tokio::net::{TcpSocket, TcpStream};

/// The attacker's identity, where one is needed.
const MALLORY: &str = "mallory.west.serviceaccount.identity.linkerd.cluster.local";

/// A gateway, and what is behind it: `web:80` of every protocol.
async fn world(setup: Setup) -> (World, Upstream) {
    let web = upstream::http().await;
    let world = setup.service("web", 80, "as_client", &[web.addr]).start().await;
    (world, web)
}

fn mallory() -> &'static Pair {
    static PAIR: std::sync::OnceLock<Pair> = std::sync::OnceLock::new();
    PAIR.get_or_init(|| pair(&Pki::get().west, &[MALLORY]))
}

/// An attacker's socket, from a network of its own.
async fn socket(world: &World, network: u8) -> TcpStream {
    static HOST: AtomicU16 = AtomicU16::new(0);
    let host = u8::try_from(HOST.fetch_add(1, Ordering::Relaxed) % 250 + 1).unwrap();
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(SocketAddr::from((Ipv4Addr::new(127, 9, network, host), 0))).unwrap();
    let stream = soon(socket.connect(world.addrs.gateway)).await.unwrap();
    stream.set_nodelay(true).unwrap();
    stream
}

/// Mallory, who has a certificate like everybody.
fn peer(world: &World) -> Peer {
    world.peer(Some(mallory()))
}

/// Mallory's connection.
async fn connect(world: &World, alpn: &[&[u8]]) -> Tls {
    peer(world).shake(socket(world, 1).await, GATEWAY, alpn).await.unwrap()
}

/// Mallory's HTTP/2, frame by frame.
async fn frames(world: &World) -> Frames<Tls> {
    let mut frames = Frames(connect(world, &[ALPN_H2]).await);
    frames.preface().await;
    frames
}

/// Reads until the gateway ends it, however it does.
async fn ended(stream: &mut (impl tokio::io::AsyncRead + Unpin)) -> Vec<u8> {
    let mut all = Vec::new();
    let _ = soon(stream.read_to_end(&mut all)).await;
    all
}
