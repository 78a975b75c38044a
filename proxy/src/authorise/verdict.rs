//! Whether a condition holds, where that may be unknown.
//!
//! Three values instead of two (Kleene's logic) are what keeps spellings from slipping past a rule: whatever can be read in
//! two ways, or cannot be seen at all, is [`Verdict::Maybe`]. A deny rule refuses what it *may* mean; an allow rule admits only
//! what it *surely* means. One table of conditions therefore serves both, and neither can be talked around.

/// Whether a condition holds.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Verdict {
    /// It does not.
    No,
    /// It may.
    Maybe(Doubt),
    /// It does.
    Yes,
}

/// What makes it uncertain.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(super) enum Doubt {
    /// The path has several readings, or differs by letter case or a slash at the end.
    Path,
    /// The path cannot be read at all.
    Unreadable,
    /// A header field, host or method that some servers would take for the one meant.
    Spelling,
    /// The request cannot be seen, or lacks what the condition looks at.
    Unseen,
}

impl Verdict {
    /// Both must hold.
    pub(super) fn and(self, other: impl FnOnce() -> Self) -> Self {
        match self {
            Self::No => Self::No,
            Self::Yes => other(),
            Self::Maybe(doubt) => match other() {
                Self::No => Self::No,
                Self::Yes => Self::Maybe(doubt),
                Self::Maybe(other) => Self::Maybe(doubt.min(other)),
            },
        }
    }

    /// One is enough.
    pub(super) fn or(self, other: impl FnOnce() -> Self) -> Self {
        match self {
            Self::Yes => Self::Yes,
            Self::No => other(),
            Self::Maybe(doubt) => match other() {
                Self::Yes => Self::Yes,
                Self::No => Self::Maybe(doubt),
                Self::Maybe(other) => Self::Maybe(doubt.min(other)),
            },
        }
    }
}

impl From<bool> for Verdict {
    fn from(holds: bool) -> Self {
        if holds { Self::Yes } else { Self::No }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Verdict::{Maybe, No, Yes};

    #[test]
    fn three_valued_logic() {
        let all = [No, Maybe(Doubt::Path), Maybe(Doubt::Unseen), Yes];
        for a in all {
            for b in all {
                assert_eq!(a.and(|| b), b.and(|| a), "{a:?} and {b:?}");
                assert_eq!(a.or(|| b), b.or(|| a), "{a:?} or {b:?}");
            }
            assert_eq!((a.and(|| No), a.and(|| Yes), a.or(|| No), a.or(|| Yes)), (No, a, a, Yes));
        }
    }
}
