//! authorise: whether the original client may reach what it names.
//!
//! **In** a [`Client`], a target, and where one was read a request. **Out** an [`Admission`] holding the target as
//! [`Admitted`], which only this room can make. **Refuses** with [`Denied`].

mod admitted;
mod denied;
mod policy;
mod settings;

pub use admitted::Admitted;
pub use denied::{Denied, Reason};
pub use policy::{Admission, Client, Policy, RequestFacts};
pub use settings::{DefaultAction, Settings};
