//! What a request's body has brought, and whether its client sends it fast enough.
//!
//! **In** how many bytes came and how long they were waited for. **Out** the moment at which waiting ends. Only the time counts
//! in which the gateway asked and the client did not give: a slow endpoint, a bandwidth limit or `100-continue` cost the
//! client nothing. Streams whose silence is normal (gRPC, Connect) are not watched at all.

use std::cell::Cell;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use http::HeaderMap;
use http::header::CONTENT_TYPE;
use tokio::time::{Instant, Sleep, sleep};

/// What came of a request's body, shared with its record.
#[derive(Debug, Default)]
pub(crate) struct Intake {
    pub(super) bytes: Cell<u64>,
    pub(super) failure: Cell<Option<Failure>>,
}

/// How a client's body failed.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Failure {
    /// It broke off.
    Broken,
    /// It came too slowly.
    Slow,
}

/// The least rate of a body.
#[derive(Clone, Copy, Debug)]
pub(super) struct Least {
    /// Bytes that must come within each window.
    bytes: u64,
    window: Duration,
}

impl Least {
    /// What a request with these fields must keep to, if anything.
    pub(super) fn of(headers: &HeaderMap, bytes_per_second: u64, window: Duration) -> Option<Self> {
        let bytes = bytes_per_second.saturating_mul(window.as_secs().max(1));
        (bytes > 0 && !window.is_zero() && !may_be_silent(headers)).then_some(Self { bytes, window })
    }
}

/// Streams of messages, between which there may be any time (gRPC, gRPC-Web, Connect).
fn may_be_silent(headers: &HeaderMap) -> bool {
    headers.get(CONTENT_TYPE).is_some_and(|value| {
        let value = value.as_bytes();
        value.starts_with(b"application/grpc") || value.starts_with(b"application/connect+")
    })
}

/// Watches one body.
#[derive(Debug)]
pub(super) struct Patience {
    least: Least,
    came: u64,
    waited: Duration,
    since: Option<Instant>,
    timer: Option<Pin<Box<Sleep>>>,
}

impl Patience {
    pub(super) fn new(least: Least) -> Self {
        Self { least, came: 0, waited: Duration::ZERO, since: None, timer: None }
    }

    /// So many bytes came.
    pub(super) fn came(&mut self, bytes: usize) {
        self.came = self.came.saturating_add(bytes as u64);
        if let Some(since) = self.since.take() {
            self.waited += since.elapsed();
        }
        if self.came >= self.least.bytes {
            self.came = 0;
            self.waited = Duration::ZERO;
        }
    }

    /// Nothing is there. Ready when that has been so for too long.
    pub(super) fn poll_over(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let left = self.least.window.saturating_sub(self.waited);
        if self.since.is_none() {
            let now = Instant::now();
            self.since = Some(now);
            match &mut self.timer {
                Some(timer) => timer.as_mut().reset(now + left),
                None => self.timer = Some(Box::pin(sleep(left))),
            }
        }
        self.timer.as_mut().map_or(Poll::Pending, |timer| timer.as_mut().poll(cx))
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use super::*;

    fn least(content_type: &'static str) -> Option<Least> {
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_TYPE, http::HeaderValue::from_static(content_type));
        Least::of(&headers, 100, Duration::from_secs(10))
    }

    /// Waits for so long; whether patience ended before.
    async fn wait(patience: &mut Patience, seconds: u64) -> bool {
        let over = poll_fn(|cx| patience.poll_over(cx));
        tokio::time::timeout(Duration::from_secs(seconds), over).await.is_ok()
    }

    #[tokio::test(start_paused = true)]
    async fn time_that_the_client_was_waited_for_counts_and_no_other() {
        let mut patience = Patience::new(least("text/plain").unwrap());
        for _ in 0..5 {
            assert!(!wait(&mut patience, 6).await);
            patience.came(1000);
            tokio::time::advance(Duration::from_secs(100)).await; // the endpoint dawdles
        }
        assert!(!wait(&mut patience, 6).await);
        patience.came(999);
        assert!(wait(&mut patience, 5).await, "6 s and 4 s, and one byte too few");
    }

    #[tokio::test(start_paused = true)]
    async fn a_trickle_is_no_body() {
        let mut patience = Patience::new(least("text/plain").unwrap());
        let mut seconds = 0;
        while !wait(&mut patience, 1).await {
            patience.came(1);
            seconds += 1;
        }
        assert_eq!(seconds, 9);
    }

    #[test]
    fn streams_of_messages_may_be_silent() {
        assert!(least("application/json").is_some());
        assert!(least("application/grpc+proto").is_none());
        assert!(least("application/connect+json").is_none());
        assert!(Least::of(&HeaderMap::new(), 0, Duration::from_secs(10)).is_none(), "off");
    }
}
