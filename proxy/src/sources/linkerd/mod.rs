//! A Linkerd control plane as a source: who the gateway is, where services are, and who may reach it.
//!
//! **In** the answers of the control plane's services, over connections of their own ([`control`]). **Out** credentials,
//! services and policy, in the shapes that the stages read. **Refuses** answers that contradict themselves or do not prove
//! what they claim; what was known before stays. (Linkerd wire document §5.1, §6, §7.)

pub mod control;
pub mod destination;
pub mod identity;
pub mod policy;
pub mod spiffe;
