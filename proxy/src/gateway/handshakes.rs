//! Handshakes under way on one worker: so many at once, and of those so many for one source network.
//!
//! **In** a network. **Out** a [`Place`], held while the handshake lasts. **Refuses** whom no place came free for in time.
//! Beyond a limit peers wait their turn and are not refused: a network that asks for more than its share, honest behind one
//! translated address or not, waits for itself and for nobody else.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;

use ipnet::IpNet;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout_at};

use super::refuse::Refused;
use crate::fault::Fault;
use crate::record::Stage;

/// The handshakes of one worker.
#[derive(Debug)]
pub(crate) struct Handshakes {
    all: Arc<Semaphore>,
    share: usize,
    networks: Rc<RefCell<HashMap<IpNet, Arc<Semaphore>>>>,
}

/// A handshake's place.
#[derive(Debug)]
pub(crate) struct Place {
    _all: OwnedSemaphorePermit,
    of_network: Option<OwnedSemaphorePermit>,
    network: IpNet,
    networks: Rc<RefCell<HashMap<IpNet, Arc<Semaphore>>>>,
}

impl Handshakes {
    /// `limit` places, at most `share` of them for one network; a share of 0 is none.
    pub(crate) fn new(limit: usize, share: usize) -> Self {
        let all = Arc::new(Semaphore::new(limit.clamp(1, Semaphore::MAX_PERMITS)));
        Self { all, share: share.min(Semaphore::MAX_PERMITS), networks: Rc::default() }
    }

    /// A place for a peer of this network, or a refusal when none is free by the deadline.
    pub(crate) async fn place(&self, network: IpNet, deadline: Instant) -> Result<Place, Refused> {
        let both = async {
            // First its own network's: who waits for that holds nothing that others need.
            let of_network = match self.share {
                0 => None,
                share => Some(self.of(network, share).acquire_owned().await),
            };
            (of_network, Arc::clone(&self.all).acquire_owned().await)
        };
        match timeout_at(deadline, both).await {
            Ok((of_network, Ok(all))) => Ok(Place {
                _all: all,
                of_network: of_network.and_then(Result::ok),
                network,
                networks: Rc::clone(&self.networks),
            }),
            _ => {
                self.tidy(network);
                Err(Refused::new(Stage::Tls, Fault::Ours, "tls.overloaded", "too many handshakes are under way"))
            }
        }
    }

    fn of(&self, network: IpNet, share: usize) -> Arc<Semaphore> {
        let mut networks = self.networks.borrow_mut();
        Arc::clone(networks.entry(network).or_insert_with(|| Arc::new(Semaphore::new(share))))
    }

    fn tidy(&self, network: IpNet) {
        forget(&self.networks, network);
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        drop(self.of_network.take());
        forget(&self.networks, self.network);
    }
}

/// Forgets a network of which nobody shakes hands or waits.
fn forget(networks: &RefCell<HashMap<IpNet, Arc<Semaphore>>>, network: IpNet) {
    let mut networks = networks.borrow_mut();
    if networks.get(&network).is_some_and(|semaphore| Arc::strong_count(semaphore) == 1) {
        networks.remove(&network);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn network(text: &str) -> IpNet {
        text.parse().unwrap()
    }

    fn later() -> Instant {
        Instant::now() + Duration::from_secs(1)
    }

    #[tokio::test(start_paused = true)]
    async fn a_network_beyond_its_share_waits_for_itself_alone() {
        let handshakes = Handshakes::new(4, 2);
        let (loud, calm) = (network("192.0.2.0/24"), network("198.51.100.0/24"));
        let first = handshakes.place(loud, later()).await.unwrap();
        let second = handshakes.place(loud, later()).await.unwrap();
        assert_eq!(handshakes.place(loud, later()).await.unwrap_err().code, "tls.overloaded");
        let _other = handshakes.place(calm, later()).await.unwrap();
        drop(first);
        let third = handshakes.place(loud, later()).await.unwrap();
        drop((second, third));
        assert_eq!(handshakes.networks.borrow().len(), 1, "only the calm one is still known");
    }

    #[tokio::test(start_paused = true)]
    async fn all_networks_together_have_their_limit() {
        let handshakes = Handshakes::new(2, 0);
        let _held = (
            handshakes.place(network("192.0.2.0/24"), later()).await.unwrap(),
            handshakes.place(network("192.0.2.0/24"), later()).await.unwrap(),
        );
        let refused = handshakes.place(network("198.51.100.0/24"), later()).await.unwrap_err();
        assert_eq!((refused.code, refused.fault), ("tls.overloaded", Fault::Ours));
    }
}
