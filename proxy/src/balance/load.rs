//! What a request to an endpoint costs: a peak EWMA of its round trip × (pending + 1).
//!
//! The estimate jumps up to a slower answer at once and comes down with time. Reading decays it without writing, so
//! that looking (by the balancer or by an admin page) changes nothing: an endpoint left alone because it was slow is
//! tried again when the memory of it has faded.

use std::time::Duration;

use tokio::time::Instant;

use super::Settings;

/// A round trip, remembered with the moment of its last change. In seconds.
#[derive(Clone, Copy, Debug)]
pub(super) struct Estimate {
    rtt: f64,
    at: Instant,
}

/// The constants of estimation.
#[derive(Clone, Copy, Debug)]
pub(super) struct Clock {
    first_rtt: f64,
    decay: f64,
    pub(super) failure_rtt: Duration,
}

/// No estimate is taken for less than this: 1 µs keeps pending requests counting where the memory has all but faded.
const MIN_RTT: f64 = 1e-6;
/// The least first estimate.
const MIN_FIRST_RTT: Duration = Duration::from_millis(1);

impl Clock {
    pub(super) fn new(settings: &Settings) -> Self {
        Self {
            first_rtt: settings.first_rtt.max(MIN_FIRST_RTT).as_secs_f64(),
            // Zero would divide by zero; a nanosecond forgets everything just as well.
            decay: settings.decay.as_secs_f64().max(1e-9),
            failure_rtt: settings.failure_rtt,
        }
    }

    pub(super) fn first(&self, now: Instant) -> Estimate {
        Estimate { rtt: self.first_rtt, at: now }
    }

    /// The estimate as it counts now, in seconds.
    pub(super) fn read(&self, estimate: Estimate, now: Instant) -> f64 {
        let age = now.saturating_duration_since(estimate.at);
        if age.is_zero() { estimate.rtt.max(MIN_RTT) } else { (estimate.rtt * self.fade(age)).max(MIN_RTT) }
    }

    /// The estimate after an answer that took `rtt`.
    pub(super) fn observe(&self, estimate: Estimate, rtt: Duration, now: Instant) -> Estimate {
        let sample = rtt.as_secs_f64();
        let age = now.saturating_duration_since(estimate.at);
        let fade = self.fade(age);
        // A peak: anything slower than what is believed now is believed at once.
        let rtt = if sample >= estimate.rtt * fade { sample } else { estimate.rtt * fade + sample * (1.0 - fade) };
        Estimate { rtt, at: now }
    }

    fn fade(&self, age: Duration) -> f64 {
        (-age.as_secs_f64() / self.decay).exp()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn rises_at_once_falls_with_time_and_reading_changes_nothing() {
        let clock = Clock::new(&Settings::default());
        let start = Instant::now();
        let first = clock.first(start);
        assert!((clock.read(first, start) - 0.030).abs() < 1e-9);
        let slow = clock.observe(first, Duration::from_secs(2), start);
        assert!((clock.read(slow, start) - 2.0).abs() < 1e-9);
        let later = start + Duration::from_secs(10);
        assert!((clock.read(slow, later) - 2.0 / std::f64::consts::E).abs() < 1e-6);
        assert!((clock.read(slow, start) - 2.0).abs() < 1e-9, "reading has not changed it");
        let quick = clock.observe(slow, Duration::from_millis(10), later);
        assert!(clock.read(quick, later) < 0.75, "comes down");
        assert!(clock.read(quick, start + Duration::from_secs(86_400)) >= MIN_RTT);
    }

    #[test]
    fn the_first_estimate_has_a_floor() {
        let clock = Clock::new(&Settings { first_rtt: Duration::ZERO, decay: Duration::ZERO, ..Settings::default() });
        let now = Instant::now();
        assert!((clock.read(clock.first(now), now) - 0.001).abs() < 1e-9);
        assert!(clock.read(clock.observe(clock.first(now), Duration::ZERO, now), now).is_finite());
    }

    proptest! {
        #[test]
        fn stays_between_the_floor_and_the_slowest_ever_seen(
            samples in proptest::collection::vec((0u64..10_000, 0u64..30_000), 1..50)
        ) {
            let clock = Clock::new(&Settings::default());
            let mut now = Instant::now();
            let mut estimate = clock.first(now);
            let mut slowest: f64 = 0.030;
            for (rtt, pause) in samples {
                now += Duration::from_millis(pause);
                let rtt = Duration::from_millis(rtt);
                slowest = slowest.max(rtt.as_secs_f64());
                estimate = clock.observe(estimate, rtt, now);
                let read = clock.read(estimate, now);
                prop_assert!(read >= MIN_RTT.max(0.0) && read <= slowest + 1e-9);
                prop_assert!(read + 1e-9 >= rtt.as_secs_f64().min(slowest) || read <= slowest);
            }
        }
    }
}
