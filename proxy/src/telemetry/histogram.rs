//! Durations counted by size.
//!
//! **In** durations, from one worker. **Out** counts per bucket and their sum, added up over workers. The bounds are
//! the same for all: from a request inside one machine to the longest anybody waits.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Upper bounds in microseconds: 100 µs to 60 s, about three to a decade.
const BOUNDS_MICROS: [u64; 18] = [
    100, 250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000, 2_500_000,
    5_000_000, 10_000_000, 30_000_000, 60_000_000,
];

/// Counts of one worker.
#[derive(Debug, Default)]
pub(super) struct Histogram {
    /// One per bound, and one for what is longer.
    counts: [AtomicU64; BOUNDS_MICROS.len() + 1],
    sum_nanos: AtomicU64,
}

impl Histogram {
    pub(super) fn observe(&self, duration: Duration) {
        let micros = duration.as_micros();
        let bucket = BOUNDS_MICROS.partition_point(|bound| u128::from(*bound) < micros);
        self.counts[bucket].fetch_add(1, Ordering::Relaxed);
        let nanos = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        self.sum_nanos.fetch_add(nanos, Ordering::Relaxed);
    }
}

/// Counts of all workers.
#[derive(Clone, Debug, Default)]
pub(super) struct Sum {
    counts: [u64; BOUNDS_MICROS.len() + 1],
    nanos: u128,
}

impl Sum {
    pub(super) fn add(&mut self, histogram: &Histogram) {
        for (sum, count) in self.counts.iter_mut().zip(&histogram.counts) {
            *sum += count.load(Ordering::Relaxed);
        }
        self.nanos += u128::from(histogram.sum_nanos.load(Ordering::Relaxed));
    }

    pub(super) fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    #[expect(clippy::cast_precision_loss, reason = "a sum of seconds is shown as a float")]
    pub(super) fn seconds(&self) -> f64 {
        self.nanos as f64 / 1e9
    }

    #[expect(clippy::cast_precision_loss, reason = "a sum of milliseconds is shown as a float")]
    pub(super) fn millis(&self) -> f64 {
        self.nanos as f64 / 1e6
    }

    /// As [`Sum::buckets`], in milliseconds.
    #[expect(clippy::cast_precision_loss, reason = "the bounds are small")]
    pub(super) fn buckets_millis(&self) -> Vec<(f64, u64)> {
        let bounds = BOUNDS_MICROS.iter().map(|micros| *micros as f64 / 1e3).chain([f64::INFINITY]);
        bounds.zip(self.counts).collect()
    }

    /// Upper bounds in seconds, the last one infinite, with the count of each bucket by itself.
    #[expect(clippy::cast_precision_loss, reason = "the bounds are small")]
    pub(super) fn buckets(&self) -> Vec<(f64, u64)> {
        let bounds = BOUNDS_MICROS.iter().map(|micros| *micros as f64 / 1e6).chain([f64::INFINITY]);
        bounds.zip(self.counts).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_duration_falls_into_the_first_bucket_that_holds_it() {
        let histogram = Histogram::default();
        for micros in [0, 100, 101, 60_000_000, 60_000_001, u64::MAX] {
            histogram.observe(Duration::from_micros(micros));
        }
        let mut sum = Sum::default();
        sum.add(&histogram);
        let filled: Vec<_> = sum.buckets().into_iter().filter(|(_, count)| *count > 0).collect();
        assert_eq!(filled, [(0.0001, 2), (0.00025, 1), (60.0, 1), (f64::INFINITY, 2)]);
        assert_eq!(sum.count(), 6);
    }
}
