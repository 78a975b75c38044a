//! Where connections come from, before anybody has said who they are: a share of the places for each source network.
//!
//! **In** a client's address, after the PROXY header where there is one. **Out** a `Place` that counts while it is held.
//! **Refuses** a network beyond its share: of connections in all, where the operator set one, and of connections whose
//! peer is not identified yet. One address is no unit to count by: whoever has one IPv6 address has a whole prefix.
//! Entered, identified and left once per connection, so one lock for all workers costs nothing.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use ipnet::IpNet;
use parking_lot::Mutex;

use crate::fault::{Fault, Refusal};

/// How networks are told apart, and what each may have. Keys below `accept:` in the configuration.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// The bits of an IPv4 address that name its network.
    pub prefix_v4: u8,
    /// The bits of an IPv6 address that name its network.
    pub prefix_v6: u8,
    /// The most connections of one network; 0: no limit.
    pub max_connections: usize,
    /// The most connections of one network whose peer is not identified yet; 0: no limit.
    pub max_unidentified: usize,
}

impl Default for Settings {
    fn default() -> Self {
        Self { prefix_v4: 24, prefix_v6: 56, max_connections: 0, max_unidentified: 2048 }
    }
}

/// The networks of all connections of the process.
#[derive(Debug, Default)]
pub struct Networks {
    settings: Settings,
    counts: Mutex<HashMap<IpNet, Count>>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Count {
    all: usize,
    unidentified: usize,
}

/// A connection's place in its network's share.
#[derive(Debug)]
pub(crate) struct Place {
    networks: Arc<Networks>,
    pub(crate) network: IpNet,
    unidentified: AtomicBool,
}

impl Networks {
    /// Nobody is connected yet.
    pub fn new(settings: Settings) -> Arc<Self> {
        Arc::new(Self { settings, counts: Mutex::default() })
    }

    /// The network of an address.
    fn of(&self, addr: IpAddr) -> IpNet {
        let (prefix, most) = match addr {
            IpAddr::V4(_) => (self.settings.prefix_v4, 32),
            IpAddr::V6(_) => (self.settings.prefix_v6, 128),
        };
        IpNet::new(addr, prefix.min(most)).expect("a prefix no longer than the address").trunc()
    }

    /// Counts a connection that has not said yet who it is.
    pub(crate) fn enter(self: &Arc<Self>, addr: IpAddr) -> Result<Place, TooMany> {
        let network = self.of(addr);
        let Settings { max_connections, max_unidentified, .. } = self.settings;
        let mut counts = self.counts.lock();
        let now = counts.get(&network).copied().unwrap_or_default();
        if max_connections > 0 && now.all >= max_connections {
            return Err(TooMany::Connections { network, limit: max_connections });
        }
        if max_unidentified > 0 && now.unidentified >= max_unidentified {
            return Err(TooMany::Unidentified { network, limit: max_unidentified });
        }
        counts.insert(network, Count { all: now.all + 1, unidentified: now.unidentified + 1 });
        Ok(Place { networks: Arc::clone(self), network, unidentified: AtomicBool::new(true) })
    }
}

impl Place {
    /// The peer has said who it is.
    pub(crate) fn identified(&self) {
        if self.unidentified.swap(false, Ordering::Relaxed)
            && let Some(count) = self.networks.counts.lock().get_mut(&self.network)
        {
            count.unidentified -= 1;
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut counts = self.networks.counts.lock();
        let Some(count) = counts.get_mut(&self.network) else { return };
        count.all -= 1;
        if *self.unidentified.get_mut() {
            count.unidentified -= 1;
        }
        if count.all == 0 {
            counts.remove(&self.network);
        }
    }
}

/// One network has as much as it may.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub(crate) enum TooMany {
    /// Connections in all.
    #[error("{network} has {limit} connections already, its limit (accept.max_connections_per_network)")]
    Connections {
        /// Whose.
        network: IpNet,
        /// How many it may have.
        limit: usize,
    },
    /// Connections that say nothing.
    #[error("{network} has {limit} unidentified connections already, its limit (accept.max_unidentified_per_network)")]
    Unidentified {
        /// Whose.
        network: IpNet,
        /// How many it may have.
        limit: usize,
    },
}

impl Refusal for TooMany {
    fn fault(&self) -> Fault {
        match self {
            Self::Connections { .. } => Fault::Policy,
            Self::Unidentified { .. } => Fault::Client,
        }
    }

    fn code(&self) -> &'static str {
        match self {
            Self::Connections { .. } => "accept.network_connections",
            Self::Unidentified { .. } => "accept.network_unidentified",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn networks(max_connections: usize, max_unidentified: usize) -> Arc<Networks> {
        Networks::new(Settings { max_connections, max_unidentified, ..Settings::default() })
    }

    fn addr(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn the_silent_of_one_network_leave_others_alone() {
        let networks = networks(0, 2);
        let first = networks.enter(addr("192.0.2.1")).unwrap();
        let _second = networks.enter(addr("192.0.2.200")).unwrap();
        let refused = networks.enter(addr("192.0.2.3")).unwrap_err();
        assert_eq!((refused.code(), refused.fault()), ("accept.network_unidentified", Fault::Client));
        let _other = networks.enter(addr("198.51.100.1")).unwrap();
        first.identified();
        first.identified();
        let _third = networks.enter(addr("192.0.2.3")).unwrap();
        assert!(networks.enter(addr("192.0.2.4")).is_err());
        drop(first);
        assert!(networks.enter(addr("192.0.2.4")).is_err(), "who is identified gave that place back before");
    }

    #[test]
    fn a_prefix_counts_as_one() {
        let networks = networks(1, 0);
        let held = networks.enter(addr("2001:db8:0:ff::1")).unwrap();
        assert_eq!(networks.enter(addr("2001:db8:0:1::2")).unwrap_err().code(), "accept.network_connections");
        let _beside = networks.enter(addr("2001:db8:0:100::1")).unwrap();
        drop(held);
        assert!(networks.enter(addr("2001:db8::9")).is_ok());
    }

    #[test]
    fn nothing_stays_behind() {
        let networks = networks(0, 0);
        let places: Vec<_> = (0..=255).map(|n| networks.enter(IpAddr::from([10, n, 0, 1])).unwrap()).collect();
        assert_eq!(networks.counts.lock().len(), 256);
        drop(places);
        assert!(networks.counts.lock().is_empty());
    }
}
