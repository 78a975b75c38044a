//! The first of several addresses that answers (Happy Eyeballs, RFC 8305 §4 and §5).
//!
//! For endpoints whose several addresses are one place, such as a dual-stack name. The next address is tried when the one
//! before has failed or has not answered within the stagger; the first to connect wins and the others are dropped.

use std::future::poll_fn;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::Poll;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::time::Instant;

use super::{Error, Settings, tcp};

/// RFC 8305 §5: the recommended connection attempt delay.
const STAGGER: Duration = Duration::from_millis(250);

/// Connects to one of `addrs`, the families taking turns beginning with the first address's. Cancel safe.
pub async fn any(addrs: &[SocketAddr], settings: &Settings) -> Result<(TcpStream, SocketAddr), Error> {
    first(&interleave(addrs), STAGGER, |addr| tcp(addr, settings)).await
}

async fn first<T, F>(
    addrs: &[SocketAddr],
    stagger: Duration,
    connect: impl Fn(SocketAddr) -> F,
) -> Result<(T, SocketAddr), Error>
where
    F: Future<Output = Result<T, Error>>,
{
    let mut attempts: Vec<(SocketAddr, Pin<Box<F>>)> = Vec::new();
    let mut left = addrs.iter().copied();
    let mut last_error = Error::Unreachable;
    let mut next = std::pin::pin!(tokio::time::sleep(Duration::ZERO));
    loop {
        if let Some(addr) = left.next() {
            attempts.push((addr, Box::pin(connect(addr))));
            next.as_mut().reset(Instant::now() + stagger);
        } else if attempts.is_empty() {
            return Err(last_error);
        }
        let more = left.len() > 0;
        // Ends when an attempt has ended, or when it is time for the next.
        let ended = poll_fn(|cx| {
            for (index, (_, attempt)) in attempts.iter_mut().enumerate() {
                if let Poll::Ready(result) = attempt.as_mut().poll(cx) {
                    return Poll::Ready(Some((index, result)));
                }
            }
            if more { next.as_mut().poll(cx).map(|()| None) } else { Poll::Pending }
        })
        .await;
        match ended {
            None => {}
            Some((index, Ok(stream))) => return Ok((stream, attempts.swap_remove(index).0)),
            Some((index, Err(error))) => {
                attempts.swap_remove(index);
                last_error = error;
            }
        }
    }
}

/// RFC 8305 §4: families alternate, so that a broken one costs one stagger and not one per address.
fn interleave(addrs: &[SocketAddr]) -> Vec<SocketAddr> {
    let Some(first) = addrs.first() else { return Vec::new() };
    let (mut one, mut two): (Vec<_>, Vec<_>) =
        addrs.iter().copied().partition(|addr| addr.is_ipv4() == first.is_ipv4());
    one.reverse();
    two.reverse();
    let mut mixed = Vec::with_capacity(addrs.len());
    while !one.is_empty() || !two.is_empty() {
        mixed.extend(one.pop());
        mixed.extend(two.pop());
    }
    mixed
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    fn addr(text: &str) -> SocketAddr {
        text.parse().expect("an address")
    }

    #[test]
    fn families_take_turns() {
        let mixed = interleave(&[addr("[::1]:1"), addr("[::2]:1"), addr("[::3]:1"), addr("1.1.1.1:1")]);
        assert_eq!(mixed, [addr("[::1]:1"), addr("1.1.1.1:1"), addr("[::2]:1"), addr("[::3]:1")]);
        assert!(interleave(&[]).is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_address_costs_one_stagger_and_a_refusing_one_nothing() {
        let addrs = [addr("1.1.1.1:1"), addr("2.2.2.2:1"), addr("3.3.3.3:1")];
        let tried = RefCell::new(Vec::new());
        let start = Instant::now();
        let (_, winner) = first(&addrs, STAGGER, |addr| {
            tried.borrow_mut().push(addr);
            async move {
                match addr.ip().to_string().as_str() {
                    "1.1.1.1" => std::future::pending().await,
                    "2.2.2.2" => Err(Error::Refused),
                    _ => Ok(()),
                }
            }
        })
        .await
        .expect("the third answers");
        assert_eq!((winner, start.elapsed()), (addrs[2], STAGGER));
        assert_eq!(*tried.borrow(), addrs);
    }

    #[tokio::test(start_paused = true)]
    async fn all_failing_ends_in_the_last_error() {
        let failed = first(&[addr("1.1.1.1:1")], STAGGER, |_| async { Err::<(), _>(Error::Refused) }).await;
        assert!(matches!(failed, Err(Error::Refused)));
        let none = first(&[], STAGGER, |_| async { Err::<(), _>(Error::Refused) }).await;
        assert!(matches!(none, Err(Error::Unreachable)));
    }
}
