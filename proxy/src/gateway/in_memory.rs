//! Whole connections without a socket, for fuzzing alone: this module is built with `--cfg fuzzing` only.
//!
//! **In** a stream whose peer is known already, and what stands in for dialling. **Out** what becomes of the connection. All
//! that is between handshake and dial is the gateway's own, on the runtime of the caller, whose clock may be paused.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::SystemTime;

use tokio::io::DuplexStream;
use tokio::time::Instant;

use super::{Gateway, Shared, accept, connection};
use crate::record::{Observer, Peer, Record};
use crate::tls::{self, Alpn};

/// What a dial gives.
pub type Backend = Rc<dyn Fn(SocketAddr) -> DuplexStream>;

thread_local! {
    static BACKEND: RefCell<Option<Backend>> = const { RefCell::new(None) };
}

/// The stream to an endpoint, where something stands in for dialling.
pub(super) fn dialled(addr: SocketAddr) -> Option<DuplexStream> {
    let backend = BACKEND.with_borrow(Clone::clone);
    backend.map(|backend| backend(addr))
}

/// Serves one connection of a peer from its handshake to its end. Must run on a `LocalRuntime`.
pub async fn serve(
    shared: &Shared,
    observer: Rc<dyn Observer>,
    backend: Backend,
    (stream, peer, alpn): (DuplexStream, tls::server::Peer, Alpn),
) -> Record {
    BACKEND.set(Some(backend));
    let changes = shared.credentials.changes();
    let (gateway, _tending) = Gateway::new(shared, observer);
    let permit = Rc::new(accept::Permit::of_nobody(&shared.drain));
    let addr = SocketAddr::from(([192, 0, 2, 1], 40_000));
    let mut record =
        Record::connection(Arc::new(Peer { addr, identity: None, cluster: None, sni: None }), SystemTime::now());
    let session = (stream, peer, None, alpn);
    let place = gateway.networks.enter(addr.ip()).expect("no network has connections yet");
    place.identified();
    let places = (&permit, place, changes);
    if let Err(refused) = connection::known(&gateway, session, places, (&mut record, Instant::now())).await {
        refused.close(&mut record);
    }
    BACKEND.set(None);
    record
}
