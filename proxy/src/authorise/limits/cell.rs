//! What one limited subject has used: four numbers, each changed in one atomic step.
//!
//! **In** what is to be used, the bounds, and the time in nanoseconds. **Out** whether it may be, or after how long.
//! Requests and bytes are counted by GCRA (ITU-T I.371 §A): one number, the *theoretical arrival time*, says everything about
//! a bucket, and one compare-and-swap moves it; so all workers share one count without a lock, and the count is exact. The interval
//! between two requests is kept in whole nanoseconds, rounded down: a rate is met to within one part in a thousand million
//! divided by it, which is 0.1 % at a million requests a second, and nothing above a thousand million can be limited.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use crate::authorise::settings::LimitSettings;

const SECOND: u64 = 1_000_000_000;

/// How far bytes may run ahead of their rate: a quarter of a second's worth, so that a pause is worth the timer.
const BYTES_AHEAD: u64 = SECOND / 4;

/// The limits of one scope, ready to be compared.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(in crate::authorise) struct Bounds {
    pub(super) rate: Option<Rate>,
    pub(super) requests: Option<u32>,
    pub(super) connections: Option<u32>,
    pub(super) bytes_per_second: Option<u64>,
}

/// A request rate.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Rate {
    pub(super) per_second: u32,
    pub(super) burst: u32,
    interval: u64,
    tolerance: u64,
}

impl Bounds {
    /// From words that were checked: zero rates are refused when a policy is compiled.
    pub(in crate::authorise) fn new(settings: &LimitSettings) -> Self {
        let rate = settings.requests_per_second.map(|per_second| {
            let interval = (SECOND / u64::from(per_second.max(1))).max(1);
            let burst = settings.burst.unwrap_or(per_second).max(1);
            Rate { per_second, burst, interval, tolerance: interval * u64::from(burst - 1) }
        });
        Self {
            rate,
            requests: settings.concurrent_requests,
            connections: settings.connections,
            bytes_per_second: settings.bytes_per_second.map(|size| size.0),
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// What is left of a rate after a request was counted.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Left {
    pub(super) requests: u32,
    pub(super) full_after: Duration,
}

/// The four numbers.
#[derive(Debug, Default)]
pub(in crate::authorise) struct Cell {
    /// Theoretical arrival time of the next request.
    arrival: AtomicU64,
    /// The same for bytes.
    bytes: AtomicU64,
    pub(super) requests: AtomicU32,
    pub(super) connections: AtomicU32,
}

impl Cell {
    /// Counts one request, or says how long until one would be counted.
    pub(super) fn count(&self, rate: &Rate, now: u64) -> Result<Left, Duration> {
        let mut arrival = self.arrival.load(Ordering::Relaxed);
        loop {
            let early = arrival.saturating_sub(now);
            if early > rate.tolerance {
                return Err(Duration::from_nanos(early - rate.tolerance));
            }
            let next = arrival.max(now).saturating_add(rate.interval);
            match self.arrival.compare_exchange_weak(arrival, next, Ordering::Relaxed, Ordering::Relaxed) {
                Err(seen) => arrival = seen,
                Ok(_) => {
                    let used = early + rate.interval;
                    let room = (rate.tolerance + rate.interval).saturating_sub(used) / rate.interval;
                    let requests = u32::try_from(room).unwrap_or(u32::MAX);
                    return Ok(Left { requests, full_after: Duration::from_nanos(used) });
                }
            }
        }
    }

    /// Takes a counted request back, as another limit refused it.
    pub(super) fn uncount(&self, rate: &Rate) {
        change(&self.arrival, |arrival| arrival.saturating_sub(rate.interval));
    }

    /// Counts bytes that were or are being moved, and says how long to pause before more.
    pub(super) fn pause(&self, bytes_per_second: u64, bytes: u64, now: u64) -> Duration {
        let cost = u128::from(bytes) * u128::from(SECOND) / u128::from(bytes_per_second.max(1));
        let cost = u64::try_from(cost).unwrap_or(u64::MAX);
        let next = change(&self.bytes, |arrival| arrival.max(now).saturating_add(cost));
        Duration::from_nanos(next.saturating_sub(now).saturating_sub(BYTES_AHEAD))
    }

    /// Whether forgetting it would change nothing: nothing is under way, and both buckets are full again.
    pub(super) fn is_idle(&self, now: u64) -> bool {
        self.requests.load(Ordering::Acquire) == 0
            && self.connections.load(Ordering::Acquire) == 0
            && self.arrival.load(Ordering::Acquire) <= now
            && self.bytes.load(Ordering::Acquire) <= now
    }

    /// Begins anew, for another subject.
    pub(super) fn reset(&self) {
        self.arrival.store(0, Ordering::Release);
        self.bytes.store(0, Ordering::Release);
    }
}

/// One more, unless that is more than `most`.
pub(super) fn enter(count: &AtomicU32, most: u32) -> bool {
    let mut now = count.load(Ordering::Relaxed);
    while now < most {
        match count.compare_exchange_weak(now, now + 1, Ordering::AcqRel, Ordering::Relaxed) {
            Ok(_) => return true,
            Err(seen) => now = seen,
        }
    }
    false
}

/// Applies `to` in one step and returns the new value.
fn change(number: &AtomicU64, to: impl Fn(u64) -> u64) -> u64 {
    let mut now = number.load(Ordering::Relaxed);
    loop {
        let next = to(now);
        match number.compare_exchange_weak(now, next, Ordering::Relaxed, Ordering::Relaxed) {
            Ok(_) => return next,
            Err(seen) => now = seen,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::authorise::settings::ByteSize;

    fn rate(per_second: u32, burst: Option<u32>) -> Rate {
        let settings = LimitSettings { requests_per_second: Some(per_second), burst, ..LimitSettings::default() };
        Bounds::new(&settings).rate.expect("a rate")
    }

    #[test]
    fn a_burst_then_the_rate() {
        let (cell, rate) = (Cell::default(), rate(10, Some(3)));
        let start = 5 * SECOND;
        for left in [2, 1, 0] {
            assert_eq!(cell.count(&rate, start).map(|left| left.requests), Ok(left));
        }
        assert_eq!(cell.count(&rate, start), Err(Duration::from_millis(100)));
        assert_eq!(cell.count(&rate, start + SECOND / 20), Err(Duration::from_millis(50)));
        assert!(cell.count(&rate, start + SECOND / 10).is_ok());
        assert!(cell.count(&rate, start + SECOND / 10).is_err());
        assert!(!cell.is_idle(start + SECOND / 10));
        assert!(cell.is_idle(start + SECOND));
    }

    #[test]
    fn over_any_second_no_more_than_rate_and_burst_pass() {
        assert!(Cell::default().count(&rate(u32::MAX, None), SECOND).is_ok());
        for per_second in [1, 3, 7, 1000, 999_983] {
            let (cell, rate) = (Cell::default(), rate(per_second, Some(5)));
            // Eight tries for each that may pass, over one second.
            let tries = u64::from(per_second) * 8;
            let passed = (0..tries).filter(|i| cell.count(&rate, SECOND + i * SECOND / tries).is_ok()).count() as u64;
            let most = u64::from(per_second) + 5;
            assert!((most - 2..=most + most / 500).contains(&passed), "{per_second}: {passed}");
        }
    }

    #[test]
    fn a_request_that_is_taken_back_was_never_counted() {
        let (cell, rate) = (Cell::default(), rate(1, Some(1)));
        for _ in 0..5 {
            assert!(cell.count(&rate, SECOND).is_ok());
            cell.uncount(&rate);
        }
    }

    #[test]
    fn bytes_pause_the_sender() {
        let settings = LimitSettings { bytes_per_second: Some(ByteSize(1000)), ..LimitSettings::default() };
        let per_second = Bounds::new(&settings).bytes_per_second.expect("a rate");
        let cell = Cell::default();
        assert_eq!(cell.pause(per_second, 250, SECOND), Duration::ZERO);
        assert_eq!(cell.pause(per_second, 100, SECOND), Duration::from_millis(100));
        assert_eq!(cell.pause(per_second, 0, SECOND + SECOND / 10), Duration::ZERO);
        assert!(cell.pause(1, u64::MAX, SECOND) > Duration::from_secs(1 << 30));
    }
}
