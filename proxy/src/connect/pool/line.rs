//! Requests in line for a connection or a stream, first come first served.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::time::Duration;

use tokio::sync::oneshot;

use super::super::Error;

#[derive(Debug)]
pub(super) struct Line<T>(RefCell<VecDeque<Waiter<T>>>);

/// Somebody in line; gone when its future was dropped.
#[derive(Debug)]
struct Waiter<T>(oneshot::Sender<Result<T, Error>>);

/// A place in line.
#[derive(Debug)]
pub(super) struct Place<T>(oneshot::Receiver<Result<T, Error>>);

impl<T> Default for Line<T> {
    fn default() -> Self {
        Self(RefCell::default())
    }
}

impl<T> Line<T> {
    /// Joins the line, unless `most` are in it.
    pub(super) fn join(&self, most: usize) -> Result<Place<T>, Error> {
        if self.0.borrow().len() >= most {
            self.0.borrow_mut().retain(|waiter| !waiter.0.is_closed());
        }
        if self.0.borrow().len() >= most {
            return Err(Error::PoolFull);
        }
        let (sender, receiver) = oneshot::channel();
        self.0.borrow_mut().push_back(Waiter(sender));
        Ok(Place(receiver))
    }

    /// How many are in line.
    pub(super) fn len(&self) -> usize {
        self.0.borrow().iter().filter(|waiter| !waiter.0.is_closed()).count()
    }

    /// Whether there is nobody in line. Those who left count until they are passed over.
    pub(super) fn is_empty(&self) -> bool {
        self.0.borrow().is_empty()
    }

    /// Gives `item` to the first in line, or back where there is nobody.
    pub(super) fn serve(&self, item: T) -> Option<T> {
        let mut item = Ok(item);
        loop {
            let Some(waiter) = self.0.borrow_mut().pop_front() else { return item.ok() };
            match waiter.0.send(item) {
                Ok(()) => return None,
                Err(back) => item = back,
            }
        }
    }

    /// Fails the first in line.
    pub(super) fn fail_one(&self, error: &Error) {
        loop {
            let Some(waiter) = self.0.borrow_mut().pop_front() else { return };
            if waiter.0.send(Err(error.clone())).is_ok() {
                return;
            }
        }
    }

    /// Fails everybody in line.
    pub(super) fn fail_all(&self, error: &Error) {
        let waiters = std::mem::take(&mut *self.0.borrow_mut());
        for waiter in waiters {
            drop(waiter.0.send(Err(error.clone())));
        }
    }
}

impl<T> Place<T> {
    /// Waits to be served, at most `timeout`. Cancel safe: dropping it leaves the line.
    pub(super) async fn wait(self, timeout: Duration) -> Result<T, Error> {
        match tokio::time::timeout(timeout, self.0).await {
            Ok(Ok(result)) => result,
            // The line itself is gone.
            Ok(Err(_)) => Err(Error::Closed(None)),
            Err(_) => Err(Error::PoolFull),
        }
    }
}
