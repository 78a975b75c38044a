//! Response streams of HTTP/2 whose clients take nothing: each is watched on its own, and reset on its own.
//!
//! **In** the futures that hyper runs for each stream. **Out** the same, ended early where a response has bytes to send and
//! its client opens no window for them in time. A client that does not read at all is the kernel's to find
//! (`accept.user_timeout`), but one that answers pings and reads every stream but one is not; that stream would hold its
//! endpoint's connection for as long as it likes. A slow endpoint is not meant: while the body is waited for, no time runs.
//! Other streams of the connection, which may be other clients' of the same proxy, go on.

use std::cell::Cell;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use pin_project_lite::pin_project;
use tokio::time::{Instant, Sleep, sleep};

use crate::gateway::worker::beside;
use crate::record::Observer;

/// What a response's body last said to the stream that is being polled.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Said {
    Nothing,
    /// It gave bytes.
    Sent,
    /// It waits for its endpoint, or has ended.
    Waits,
}

thread_local! {
    // A stream and its body are polled together, but hyper stands between them: this is how one tells the other.
    static SAID: Cell<Said> = const { Cell::new(Said::Nothing) };
    static ENDING: Cell<bool> = const { Cell::new(false) };
}

/// The body gave bytes.
pub(super) fn sent() {
    SAID.set(Said::Sent);
}

/// The body has none.
pub(super) fn waits() {
    SAID.set(Said::Waits);
}

/// Whether what is being dropped is a stream that stalled.
pub(super) fn is_ending() -> bool {
    ENDING.get()
}

/// Runs hyper's per-stream futures on the worker's own runtime, and watches them. A panic in one ends its stream alone.
#[derive(Clone, Debug)]
pub(super) struct OnWorker {
    pub(super) observer: Rc<dyn Observer>,
    /// How long a response may wait for its client; None: for ever.
    pub(super) stall_timeout: Option<Duration>,
}

impl<F: Future + 'static> hyper::rt::Executor<F> for OnWorker {
    fn execute(&self, future: F) {
        match self.stall_timeout {
            None => beside(&self.observer, future),
            Some(limit) => beside(&self.observer, Watched { future: Some(future), limit, until: None }),
        }
    }
}

pin_project! {
    struct Watched<F> {
        #[pin]
        future: Option<F>,
        limit: Duration,
        // Present while bytes wait for the client.
        until: Option<Pin<Box<Sleep>>>,
    }
}

impl<F: Future> Future for Watched<F> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let mut me = self.project();
        let Some(future) = me.future.as_mut().as_pin_mut() else { return Poll::Ready(()) };
        SAID.set(Said::Nothing);
        if future.poll(cx).is_ready() {
            return Poll::Ready(());
        }
        match (SAID.get(), me.until.as_mut()) {
            // Most streams never get here: bytes were given and could not all be sent.
            (Said::Sent, None) => *me.until = Some(Box::pin(sleep(*me.limit))),
            (Said::Sent, Some(until)) => until.as_mut().reset(Instant::now() + *me.limit),
            (Said::Waits, _) => *me.until = None,
            (Said::Nothing, _) => {}
        }
        if let Some(until) = me.until
            && until.as_mut().poll(cx).is_ready()
        {
            ENDING.set(true);
            me.future.set(None); // h2 resets the stream whose sender is gone
            ENDING.set(false);
            return Poll::Ready(());
        }
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use super::*;

    struct Bell(Rc<Cell<bool>>);

    impl Drop for Bell {
        fn drop(&mut self) {
            self.0.set(is_ending());
        }
    }

    /// Runs a stream that says something at each poll; gives whether it was ended as stalled, and after how long.
    async fn run(say: impl Fn(u32) + 'static, lasts: Duration) -> (bool, Duration) {
        let stalled = Rc::new(Cell::new(false));
        let bell = Bell(Rc::clone(&stalled));
        let mut polls = 0;
        let mut beat = tokio::time::interval(Duration::from_secs(1));
        let mut end = Box::pin(sleep(lasts));
        let future = poll_fn(move |cx| {
            let _held = &bell;
            while beat.poll_tick(cx).is_ready() {}
            say(polls);
            polls += 1;
            end.as_mut().poll(cx)
        });
        let began = Instant::now();
        Watched { future: Some(future), limit: Duration::from_secs(10), until: None }.await;
        (stalled.get(), began.elapsed())
    }

    #[tokio::test(start_paused = true)]
    async fn only_bytes_that_wait_for_the_client_end_a_stream() {
        let long = Duration::from_secs(60);
        let stuck = run(
            |polls| {
                if polls == 0 {
                    sent()
                }
            },
            long,
        )
        .await;
        assert_eq!((stuck.0, stuck.1.as_secs()), (true, 10));
        assert!(!run(|_| sent(), long).await.0, "it moves");
        assert!(!run(|polls| if polls == 1 { sent() } else { waits() }, long).await.0, "the endpoint is slow");
        assert!(!run(|_| {}, long).await.0, "no body yet");
        assert!(
            !run(
                |polls| if polls == 0 {
                    sent()
                },
                Duration::from_secs(9)
            )
            .await
            .0,
            "it ended in time"
        );
    }
}
