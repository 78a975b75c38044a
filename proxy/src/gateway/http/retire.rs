//! When a session that should end is told so: a busy one at once, so that its next response says it; an idle one when it asks
//! again, or after a while.
//!
//! **In** the wish that a session end: the drain, its age, lost trust. **Out** the moment to tell it. A connection that is
//! closed while a request crosses it loses that request (RFC 9112 §9.6); said with a response it loses none.

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::task::Poll;
use std::time::Duration;

use tokio::time::Instant;

use super::session::HttpSession;

/// A session's way to its end.
#[derive(Debug)]
pub(super) struct Retirement {
    linger: Duration,
    state: State,
}

#[derive(Debug)]
enum State {
    Serving,
    /// To be told with its next request, or at this moment.
    Asked(Instant),
    Told,
}

impl Retirement {
    /// An idle session is told after `linger` at the latest.
    pub(super) fn new(linger: Duration) -> Self {
        Self { linger, state: State::Serving }
    }

    /// The session should end.
    pub(super) fn ask(&mut self, now: Instant) {
        if matches!(self.state, State::Serving) {
            self.state = State::Asked(now + self.linger);
        }
    }

    /// The session has been told.
    pub(super) fn told(&mut self) {
        self.state = State::Told;
    }

    /// The next moment to look, where that is sooner than `next`.
    pub(super) fn sooner(&self, next: Instant) -> Instant {
        match self.state {
            State::Asked(at) => at.min(next),
            State::Serving | State::Told => next,
        }
    }

    /// Drives the connection until it ends, or (None) until the session is to be told.
    pub(super) async fn drive<C: Future>(
        &mut self,
        session: &HttpSession,
        mut connection: Pin<&mut C>,
    ) -> Option<C::Output> {
        poll_fn(|cx| {
            if let Poll::Ready(ended) = connection.as_mut().poll(cx) {
                return Poll::Ready(Some(ended));
            }
            match self.state {
                State::Asked(at) if session.is_active() || Instant::now() >= at => {
                    self.state = State::Told;
                    Poll::Ready(None)
                }
                _ => Poll::Pending,
            }
        })
        .await
    }
}
