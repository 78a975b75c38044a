//! The budget that retries are paid from: a share of the requests, so that a failing service is not hit harder for
//! failing. Tokens: each request earns `ratio`, each retry costs one; a few are there from the start, so that a quiet
//! gateway may retry too.

use std::cell::Cell;

/// One worker's budget.
#[derive(Debug)]
pub(crate) struct Retries {
    ratio: f64,
    tokens: Cell<f64>,
}

/// What may be saved up: the retries that a burst of failures can spend at once.
const MAX_TOKENS: f64 = 100.0;

/// What is there before any request: enough for the first failures of a quiet gateway.
const FIRST_TOKENS: f64 = 10.0;

impl Retries {
    pub(super) fn new(ratio: f64) -> Self {
        Self { ratio, tokens: Cell::new(if ratio > 0.0 { FIRST_TOKENS } else { 0.0 }) }
    }

    /// A request came.
    pub(super) fn request(&self) {
        self.tokens.set((self.tokens.get() + self.ratio).min(MAX_TOKENS));
    }

    /// Whether a retry may be made; if so it is paid.
    pub(super) fn take(&self) -> bool {
        let paid = self.tokens.get() >= 1.0;
        if paid {
            self.tokens.set(self.tokens.get() - 1.0);
        }
        paid
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
