//! One endpoint's place in the pool.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;

use super::http1::Http1;
use super::http2::Http2;
use super::{Core, Stats};
use crate::endpoint::Endpoint;

#[derive(Debug)]
pub(super) struct Peer<B> {
    pub(super) endpoint: Endpoint,
    pub(super) core: Rc<Core<B>>,
    pub(super) http1: Http1<B>,
    pub(super) http2: Http2<B>,
    /// No longer in the pool: what comes back is closed.
    pub(super) retired: Cell<bool>,
}

/// Whether connections to the one can serve the other: weight and zone make no difference, nor does what is only said in
/// requests.
pub(super) fn same(one: &Endpoint, other: &Endpoint) -> bool {
    one.addr == other.addr
        && one.speaks == other.speaks
        && equal(one.tls.as_ref(), other.tls.as_ref())
        && equal(one.tunnel.as_ref(), other.tunnel.as_ref())
        && equal(one.http2.as_ref(), other.http2.as_ref())
}

/// Equal, and mostly the very same.
fn equal<T: PartialEq>(one: Option<&Arc<T>>, other: Option<&Arc<T>>) -> bool {
    match (one, other) {
        (Some(one), Some(other)) => Arc::ptr_eq(one, other) || one == other,
        (None, None) => true,
        _ => false,
    }
}

impl<B> Peer<B> {
    pub(super) fn new(endpoint: Endpoint, core: Rc<Core<B>>) -> Self {
        Self { endpoint, core, http1: Http1::default(), http2: Http2::default(), retired: Cell::new(false) }
    }

    pub(super) fn retire(&self) {
        self.retired.set(true);
        self.http1.close_idle(|_| true);
        self.http2.retire(|_| true);
    }

    pub(super) fn sweep(&self) {
        let (core, settings) = (&self.core, &self.core.settings);
        self.http1.close_idle(|conn| {
            core.older(conn.returned, settings.http1_idle_timeout) || core.older(conn.born, settings.max_age)
        });
        self.http2.retire(|conn| conn.is_idle() && core.older(conn.used.get(), settings.http2_idle_timeout));
    }

    pub(super) fn is_empty(&self) -> bool {
        self.http1.is_empty() && self.http2.is_empty()
    }

    pub(super) fn count(&self, stats: &mut Stats) {
        self.http1.count(stats);
        self.http2.count(stats);
    }
}
