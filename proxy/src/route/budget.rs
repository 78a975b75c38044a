//! What the retries of one service are paid from: a share of its requests of late, and a few a second in any case.
//!
//! Shared by all workers, so that the number of workers does not multiply it. (Linkerd wire document §5.7; the counting
//! is tower's.)

use std::time::Duration;

use tower::retry::budget::{Budget as _, TpsBudget};

/// A budget, and what it was made of.
#[derive(Debug)]
pub struct Budget {
    terms: Terms,
    spent: TpsBudget,
}

/// How much may be spent.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Terms {
    /// Retries as a share of requests: 0.2 is one in five. From 0 to 1000.
    pub ratio: f32,
    /// Retries a second that may be made in any case.
    pub min_per_second: u32,
    /// For how long a request counts: from 1 s to 60 s.
    pub ttl: Duration,
}

impl Terms {
    /// Within what can be counted. A ratio that is no number counts as none.
    fn clamped(self) -> Self {
        Self {
            ratio: if self.ratio.is_nan() { 0.0 } else { self.ratio.clamp(0.0, 1000.0) },
            min_per_second: self.min_per_second.min(MAX_PER_SECOND),
            ttl: self.ttl.clamp(Duration::from_secs(1), Duration::from_secs(60)),
        }
    }
}

/// The most of `min_per_second` that is taken: more than any gateway can send, and small enough to be counted.
const MAX_PER_SECOND: u32 = 1_000_000;

impl Budget {
    /// A budget of which nothing has been spent. Terms out of bounds are brought within them.
    pub fn new(terms: Terms) -> Self {
        let Terms { ratio, min_per_second, ttl } = terms.clamped();
        Self { terms, spent: TpsBudget::new(ttl, min_per_second, ratio) }
    }

    /// What it was made of.
    pub fn terms(&self) -> Terms {
        self.terms
    }

    /// A request came that could be retried.
    pub fn request(&self) {
        self.spent.deposit();
    }

    /// Whether a retry may be made; if so it is paid.
    pub fn take(&self) -> bool {
        self.spent.withdraw()
    }
}

impl PartialEq for Budget {
    /// By what they were made of: what is spent does not tell two budgets apart.
    fn eq(&self, other: &Self) -> bool {
        self.terms == other.terms
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn budget(ratio: f32, min_per_second: u32) -> Budget {
        Budget::new(Terms { ratio, min_per_second, ttl: Duration::from_secs(10) })
    }

    fn spend(budget: &Budget) -> usize {
        (0..100_000).take_while(|_| budget.take()).count()
    }

    #[tokio::test(start_paused = true)]
    async fn retries_are_a_share_of_requests_and_a_few_in_any_case() {
        assert_eq!(spend(&budget(0.0, 0)), 0);
        assert_eq!(spend(&budget(0.0, 2)), 20, "two a second for ten seconds");
        let share = budget(0.2, 0);
        (0..50).for_each(|_| share.request());
        assert_eq!(spend(&share), 10);
        (0..50).for_each(|_| share.request());
        tokio::time::advance(Duration::from_secs(30)).await;
        assert_eq!(spend(&share), 0, "requests count for ten seconds only");
    }

    #[test]
    fn terms_that_make_no_sense_are_brought_to_some() {
        for (ratio, min_per_second, ttl) in
            [(f32::NAN, u32::MAX, 0), (-1.0, 0, 3600), (f32::INFINITY, 0, 10), (1e9, u32::MAX, 61)]
        {
            let terms = Terms { ratio, min_per_second, ttl: Duration::from_secs(ttl) };
            Budget::new(terms).take();
        }
    }
}
