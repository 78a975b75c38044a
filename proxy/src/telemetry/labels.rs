//! Label values with an end: who asked, and for what, in numbers that fit a metrics store.
//!
//! **In** an identity, a target. **Out** a small number that stands for it, the same on every worker, and back the
//! labels it stands for. **Refuses** to grow past its limit: what comes later is [`OTHER`].
//!
//! Identities come from certificates that a trusted authority signed, but targets are whatever a peer writes. A target
//! therefore gets a number only once the gateway knows it as a service; a peer that tries a thousand names fills
//! nothing.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::Arc;

use arc_swap::ArcSwap;
use parking_lot::Mutex;

use crate::identity::Identity;

/// Stands for a label value.
pub(super) type Id = u32;

/// Nothing is known: the label is empty.
pub(super) const NONE: Id = 0;

/// Known, but beyond the limit, or not worth a label of its own.
pub(super) const OTHER: Id = 1;

/// The first number given out.
const FIRST: Id = 2;

/// Gives out numbers for values, at most `max` of them. Looking up takes no lock.
#[derive(Debug)]
pub(super) struct Interner<T> {
    known: ArcSwap<HashMap<T, Id>>,
    growing: Mutex<()>,
    max: usize,
}

impl<T: Clone + Eq + Hash> Interner<T> {
    pub(super) fn new(max: usize) -> Self {
        Self { known: ArcSwap::default(), growing: Mutex::new(()), max }
    }

    /// The number of `value`; a new one only where `worthy`.
    pub(super) fn id(&self, value: &T, worthy: bool) -> Id {
        let known = self.known.load();
        match known.get(value) {
            Some(id) => *id,
            None if !worthy || known.len() >= self.max => OTHER,
            None => self.grow(value),
        }
    }

    /// The values by their numbers.
    pub(super) fn values(&self) -> HashMap<Id, T> {
        self.known.load().iter().map(|(value, id)| (*id, value.clone())).collect()
    }

    /// Copies the whole table: it happens `max` times in a life.
    fn grow(&self, value: &T) -> Id {
        let _growing = self.growing.lock();
        let known = self.known.load();
        if let Some(id) = known.get(value) {
            return *id;
        }
        let Some(id) = Id::try_from(known.len()).ok().and_then(|len| len.checked_add(FIRST)) else { return OTHER };
        if known.len() >= self.max {
            return OTHER;
        }
        let mut next = HashMap::clone(&known);
        next.insert(value.clone(), id);
        self.known.store(Arc::new(next));
        id
    }
}

/// The labels `client_namespace` and `client` of an identity: namespace and service account where the identity has the
/// form in which Linkerd or Istio issue them, else nothing and the whole identity.
pub(super) fn client(identity: &Identity) -> (&str, &str) {
    let whole = ("", identity.as_str());
    match identity {
        Identity::Dns(name) => {
            let mut labels = name.as_str().splitn(5, '.');
            match (labels.next(), labels.next(), labels.next(), labels.next()) {
                (Some(account), Some(namespace), Some("serviceaccount"), Some("identity")) => (namespace, account),
                _ => whole,
            }
        }
        Identity::Uri(uri) => {
            let Some((_, path)) = uri.strip_prefix("spiffe://").and_then(|rest| rest.split_once('/')) else {
                return whole;
            };
            let mut parts = path.split('/');
            match (parts.next(), parts.next(), parts.next(), parts.next(), parts.next()) {
                (Some("ns"), Some(namespace), Some("sa"), Some(account), None) => (namespace, account),
                _ => whole,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_by_form() {
        let table = [
            ("web.shop.serviceaccount.identity.linkerd.cluster.local", ("shop", "web")),
            ("web.shop.serviceaccount.identity", ("shop", "web")),
            ("web.shop.serviceaccount.other", ("", "web.shop.serviceaccount.other")),
            ("web.example", ("", "web.example")),
            ("spiffe://west.example/ns/shop/sa/web", ("shop", "web")),
            ("spiffe://west.example/ns/shop/sa/web/x", ("", "spiffe://west.example/ns/shop/sa/web/x")),
            ("spiffe://west.example/web", ("", "spiffe://west.example/web")),
            ("spiffe://west.example", ("", "spiffe://west.example")),
            ("https://west.example/ns/shop/sa/web", ("", "https://west.example/ns/shop/sa/web")),
        ];
        for (text, labels) in table {
            assert_eq!(client(&Identity::parse(text).expect("valid")), labels, "{text}");
        }
    }

    #[test]
    fn numbers_end_at_the_limit() {
        let interner = Interner::new(2);
        let a = interner.id(&"a", true);
        assert_eq!(interner.id(&"x", false), OTHER);
        let b = interner.id(&"b", true);
        assert_eq!(interner.id(&"c", true), OTHER);
        assert_eq!((interner.id(&"a", false), interner.id(&"b", true)), (a, b));
        assert_eq!(interner.values(), HashMap::from([(a, "a"), (b, "b")]));
    }
}
