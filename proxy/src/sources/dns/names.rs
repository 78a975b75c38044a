//! The addresses of a server of the gateway's own: a control plane's service, say.
//!
//! **In** a name and a port. **Out** addresses, and how long they are good for. Asked by SRV first, at the bare name as
//! Linkerd's headless services answer it, and by address where there is no such record or it leads nowhere.
//! (Linkerd wire document §6.2.)

use std::net::SocketAddr;
use std::time::Duration;

use super::resolve::{Answer, Known, Resolver};
use super::{Settings, Unusable};
use crate::addr::{Name, Target};

/// Asks for addresses of names.
#[derive(Debug)]
pub struct Names {
    resolver: Resolver,
    min_ttl: Duration,
    max_ttl: Duration,
}

/// What was found.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Found {
    /// The addresses, sorted, each once, at least one.
    pub addrs: Vec<SocketAddr>,
    /// How long they are good for.
    pub ttl: Duration,
}

impl Names {
    /// Asks as `settings` say; suffixes, services and concurrency in them do not matter here. Fails where the system's
    /// configuration cannot be read.
    pub fn new(settings: &Settings) -> Result<Self, Unusable> {
        Ok(Self { resolver: Resolver::new(settings)?, min_ttl: settings.min_ttl, max_ttl: settings.max_ttl })
    }

    /// The addresses of `name`; `port` is for those that were found without SRV. None where there are none, or no answer.
    pub async fn find(&self, name: &Name, port: u16) -> Option<Found> {
        let target = Target { name: name.clone(), port };
        if let Some(found) = self.taken(self.resolver.services(name).await) {
            return Some(found);
        }
        self.taken(self.resolver.addresses(&target, &mut Known::default()).await)
    }

    fn taken(&self, answer: Answer) -> Option<Found> {
        match answer {
            Answer::Found { endpoints, ttl } if !endpoints.list.is_empty() => {
                let addrs = endpoints.list.iter().map(|endpoint| endpoint.addr).collect();
                Some(Found { addrs, ttl: ttl.clamp(self.min_ttl, self.max_ttl) })
            }
            _ => None,
        }
    }
}
