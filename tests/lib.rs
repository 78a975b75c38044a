//! The world that the end-to-end cases live in: certificates, gateways in this process on ports of the kernel's choice,
//! services behind them that behave well and badly, and peers in front of them that speak bytes.
//!
//! Everything goes through the front door: real sockets, real TLS. What a case asserts it asserts three times where that
//! can be: in the bytes that came back, in the metric, and in the access-log line of the same event.

#![allow(clippy::unwrap_used, reason = "a world that cannot be set up is a failed test, and says where")]

pub mod h2raw;
pub mod kubernetes;
pub mod linkerd;
pub mod load;
pub mod mesh;
pub mod peer;
pub mod pki;
pub mod upstream;
pub mod wire;
pub mod world;

use std::future::Future;
use std::time::Duration;

/// Nothing in these tests takes this long unless it hangs.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// Runs a future beside the test.
pub fn spawn<F>(future: F) -> tokio::task::JoinHandle<F::Output>
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    tokio::runtime::Handle::current().spawn(future)
}

/// Waits for a future, and fails the test at this place when it hangs.
#[track_caller]
pub fn soon<F: Future>(future: F) -> impl Future<Output = F::Output> {
    let place = std::panic::Location::caller();
    async move {
        match tokio::time::timeout(PATIENCE, future).await {
            Ok(done) => done,
            Err(_) => panic!("hangs: {place}"),
        }
    }
}

/// Waits until a condition holds, looking every few milliseconds; fails the test at this place when it never does.
#[track_caller]
pub fn until<F: FnMut() -> bool>(mut holds: F) -> impl Future<Output = ()> {
    let place = std::panic::Location::caller();
    async move {
        let look = async {
            while !holds() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        assert!(tokio::time::timeout(PATIENCE, look).await.is_ok(), "never came: {place}");
    }
}

/// As [`until`], for what must be asked for.
#[track_caller]
pub fn until_async<F: AsyncFnMut() -> bool>(mut holds: F) -> impl Future<Output = ()> {
    let place = std::panic::Location::caller();
    async move {
        let look = async {
            while !holds().await {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        assert!(tokio::time::timeout(PATIENCE, look).await.is_ok(), "never came: {place}");
    }
}
