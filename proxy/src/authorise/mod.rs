//! Whether it may: the only maker of [`Admitted`], which `route` insists on.
//!
//! **In** identity, target, request. **Out** an [`Admitted`] target. **Refuses** what no rule allows.

/// Something that was let through. Only this room can make one, so an unauthorised path to an upstream does not compile.
#[derive(Clone, Debug)]
pub struct Admitted<T> {
    value: T,
}

impl<T> Admitted<T> {
    #[allow(dead_code)]
    pub(crate) fn new(value: T) -> Self {
        Self { value }
    }

    /// What was let through.
    pub fn into_inner(self) -> T {
        self.value
    }
}

impl<T> AsRef<T> for Admitted<T> {
    fn as_ref(&self) -> &T {
        &self.value
    }
}
