//! Exponential backoff with jitter: how long to wait before trying again what failed.
//!
//! **In** the count of failures so far. **Out** a duration between `min` and `max`. Jitter spreads the retries of many
//! gateways that lost the same thing at the same moment.

use std::time::Duration;

/// An exponential backoff: `min * 2^failures`, at most `max`, less up to `jitter` of itself.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Backoff {
    /// The first wait.
    pub min: Duration,
    /// The longest wait.
    pub max: Duration,
    /// The share of the wait that chance takes off, 0.0 to 1.0.
    pub jitter: f64,
}

impl Backoff {
    /// The wait after `failures` failures in a row (0 is taken as 1).
    pub fn after(&self, failures: u32) -> Duration {
        let doublings = failures.saturating_sub(1).min(30);
        let full = self.min.saturating_mul(1 << doublings).min(self.max);
        full.mul_f64(1.0 - self.jitter.clamp(0.0, 1.0) * rand::random::<f64>())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grows_to_its_cap() {
        let backoff = Backoff { min: Duration::from_millis(100), max: Duration::from_secs(1), jitter: 0.0 };
        let waits: Vec<_> = (0..6).map(|n| backoff.after(n).as_millis()).collect();
        assert_eq!(waits, [100, 100, 200, 400, 800, 1000]);
        assert_eq!(backoff.after(u32::MAX), Duration::from_secs(1));
    }
}
