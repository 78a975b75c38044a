//! How long probes took: counted by size for ever, and kept one by one for a while.
//!
//! **In** durations. **Out** a histogram with the bounds of Linkerd's service mirror, so that its dashboards fit, and
//! percentiles of the recent ones, which a histogram could only guess.

use std::collections::VecDeque;
use std::time::Duration;

/// Upper bounds of the latency histogram in milliseconds: those of the service mirror.
const BUCKETS_MS: [u64; 24] = [
    1, 2, 3, 4, 5, 10, 20, 30, 40, 50, 100, 200, 300, 400, 500, 1000, 2000, 3000, 4000, 5000, 10_000, 20_000, 30_000,
    50_000,
];

/// How many latencies percentiles are taken of: an hour at one probe every three seconds.
const RECENT: usize = 1200;

/// How long successful probes took.
#[derive(Clone, Debug, Default)]
pub struct Latencies {
    /// One per bound, and one for what is longer.
    buckets: [u64; BUCKETS_MS.len() + 1],
    sum: Duration,
    recent: VecDeque<Duration>,
}

impl Latencies {
    /// Takes one in.
    pub fn observe(&mut self, latency: Duration) {
        let bucket = BUCKETS_MS.partition_point(|bound| Duration::from_millis(*bound) < latency);
        self.buckets[bucket] += 1;
        self.sum = self.sum.saturating_add(latency);
        if self.recent.len() == RECENT {
            self.recent.pop_front();
        }
        self.recent.push_back(latency);
    }

    /// The last one.
    pub fn last(&self) -> Option<Duration> {
        self.recent.back().copied()
    }

    /// The latency that `percent` of the recent ones do not exceed (nearest rank).
    pub fn percentile(&self, percent: usize) -> Option<Duration> {
        let mut sorted: Vec<_> = self.recent.iter().copied().collect();
        sorted.sort_unstable();
        let rank = (sorted.len() * percent).div_ceil(100).max(1);
        sorted.get(rank - 1).copied()
    }

    /// How many there were.
    pub fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }

    /// All of them together.
    pub fn sum(&self) -> Duration {
        self.sum
    }

    /// The bounds in milliseconds, each with the count of what is longer than the bound before and no longer than it.
    pub fn buckets(&self) -> impl Iterator<Item = (u64, u64)> {
        BUCKETS_MS.into_iter().zip(self.buckets)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_of_few_and_of_many() {
        let mut latencies = Latencies::default();
        assert_eq!(latencies.percentile(50), None);
        latencies.observe(Duration::from_millis(7));
        for percent in [0, 50, 99, 100] {
            assert_eq!(latencies.percentile(percent), Some(Duration::from_millis(7)));
        }
        for _ in 0..2 * RECENT {
            latencies.observe(Duration::from_millis(9));
        }
        assert_eq!((latencies.percentile(1), latencies.recent.len()), (Some(Duration::from_millis(9)), RECENT));
    }
}
