//! The budget that retries are paid from: a share of the requests, so that a failing service is not hit harder for
//! failing. Tokens: each request earns `ratio`, each retry costs one; a few are there from the start, so that a quiet
//! gateway may retry too.

use std::cell::Cell;

/// One worker's budget.
#[derive(Debug)]
pub(crate) struct Retries {
    /// Earned by each request, in thousandths of a retry.
    earned: u32,
    /// Saved up, in thousandths of a retry.
    saved: Cell<u32>,
}

/// What one retry costs, in thousandths.
const RETRY: u32 = 1000;

/// What may be saved up: the retries that a burst of failures can spend at once.
const MAX_SAVED: u32 = 100 * RETRY;

/// What is there before any request: enough for the first failures of a quiet gateway.
const FIRST: u32 = 10 * RETRY;

impl Retries {
    pub(super) fn new(ratio: f64) -> Self {
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "clamped to what fits")]
        let earned = (ratio.clamp(0.0, 1.0) * f64::from(RETRY)).round() as u32;
        Self { earned, saved: Cell::new(if earned > 0 { FIRST } else { 0 }) }
    }

    /// A request came.
    pub(super) fn request(&self) {
        self.saved.set((self.saved.get() + self.earned).min(MAX_SAVED));
    }

    /// Whether a retry may be made; if so it is paid.
    pub(super) fn take(&self) -> bool {
        let left = self.saved.get().checked_sub(RETRY);
        if let Some(left) = left {
            self.saved.set(left);
        }
        left.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retries_are_a_share_of_requests() {
        let retries = Retries::new(0.2);
        let spent = (0..1000).filter(|_| retries.take()).count();
        assert_eq!(spent, 10);
        (0..50).for_each(|_| retries.request());
        assert_eq!((0..1000).filter(|_| retries.take()).count(), 10);
        assert!(!Retries::new(0.0).take());
    }
}
