//! The proof that a decision was taken.
//!
//! **In** a value, from the decision in this room only. **Out** the same value, wrapped: [`Admitted`] has no public
//! constructor, so whoever holds one holds the word of the policy. `route` accepts nothing else, and a way to an upstream
//! that nobody authorised does not compile. It offers no way to change the value inside: an admitted target stays that target.

use std::fmt;

/// Something that the policy has let through.
#[derive(Debug, Eq, Hash, PartialEq)]
#[must_use]
pub struct Admitted<T>(T);

impl<T> Admitted<T> {
    /// Only the decision makes one.
    pub(super) fn new(value: T) -> Self {
        Self(value)
    }

    /// One that nobody decided about, for the tests of the rooms behind this one.
    #[cfg(test)]
    pub(crate) fn for_tests(value: T) -> Self {
        Self(value)
    }

    /// Gives the value up, and the proof with it.
    pub fn into_inner(self) -> T {
        self.0
    }
}

impl<T> AsRef<T> for Admitted<T> {
    fn as_ref(&self) -> &T {
        &self.0
    }
}

impl<T: fmt::Display> fmt::Display for Admitted<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
