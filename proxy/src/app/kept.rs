//! Tasks of the control runtime that the gateway cannot be without: the acceptor, the probe, the admin server, the sources.
//!
//! **In** what makes such a task. **Out** nothing. A task that panics would be gone without a word, and a gateway that accepts
//! nobody while its probe says yes is worse than one that has died: it is said in the log, and the task begins anew.

use std::panic::AssertUnwindSafe;
use std::time::Duration;

use futures_util::FutureExt;
use tokio::runtime::Handle;

/// How long a task that panicked rests, so that one that always does so leaves the processor to the others.
const REST: Duration = Duration::from_millis(100);

/// Runs a task to its end, however often it panics on the way.
pub(super) fn task<F>(runtime: &Handle, name: &'static str, make: impl FnMut() -> F + Send + 'static)
where
    F: Future<Output = ()> + Send + 'static,
{
    drop(runtime.spawn(again(name, make)));
}

async fn again<F: Future<Output = ()>>(name: &'static str, mut make: impl FnMut() -> F) {
    while AssertUnwindSafe(async { make().await }).catch_unwind().await.is_err() {
        tracing::error!(task = name, "a task that the gateway needs panicked, and begins anew");
        tokio::time::sleep(REST).await;
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_task_that_panics_begins_anew_until_it_ends() {
        let begun = Cell::new(0);
        let make = || {
            begun.set(begun.get() + 1);
            let now = begun.get();
            assert!(now > 1, "even before it is a task");
            async move { assert!(now > 2, "once more") }
        };
        again("test", make).await;
        assert_eq!(begun.get(), 3);
    }
}
