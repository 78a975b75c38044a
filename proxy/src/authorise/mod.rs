//! authorise: whether the original client may reach what it names, and how much of it.
//!
//! **In** a [`Client`], a target, and where one was read a request. **Out** an [`Admission`] that holds the target as
//! [`Admitted`], which only this room can make and without which `route` does nothing; then a [`Permit`] against the limits.
//! **Refuses** with [`Denied`] (the rules) and [`Limited`] (the limits).
//!
//! [`Settings`] are the operator's words; [`Policy::compile`] turns them into an immutable [`Policy`] whose decision costs the
//! same for ten rules and ten thousand. Whoever holds it (in an arc-swap) replaces it whole.

mod admitted;
mod cases;
mod compile;
mod denied;
mod explain;
mod index;
mod invalid;
mod limits;
mod observe;
mod path;
mod pattern;
mod policy;
mod routes;
mod rule;
mod serve;
pub mod served;
mod settings;
mod suggest;
#[cfg(test)]
mod tests;
mod verdict;
mod words;

pub use admitted::Admitted;
pub use cases::{Answer, Call, Case, Change, Expected, InvalidCall, Surprise, check, diff, explain, judge};
pub use denied::{Denied, Reason};
pub use explain::{Condition, Considered, Explanation, Holds};
pub use invalid::{Invalid, InvalidPolicy, Wrong};
pub use limits::{Limit, Limited, Limits, Permit, Scope, Standing};
pub use observe::{Asking, Became, Observation, Sightings};
pub use path::{Ambiguity, Reading};
pub use policy::{Admission, Caller, Client, Policy, RequestFacts};
pub use served::{DefaultPolicy, LinkerdSettings, Origin, Served};
pub use settings::{
    Action, ByteSize, DefaultAction, GrpcSettings, HttpSettings, InvalidByteSize, LimitSettings, Mode, NetworkSettings,
    Observe, RuleSettings, Settings,
};
pub use suggest::{Grouping, LeftOut, Suggested, Suggestion, suggest};
pub use words::nearest;
