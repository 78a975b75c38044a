//! Who may reach what, by Linkerd's policy controller.
//!
//! **In** the policy of one port of one workload, streamed. **Out** a [`Policy`], replaced whole at each message: requests are
//! judged by it from then on, and connections of bytes that it no longer allows are cut. **Refuses** messages that say nothing
//! of the protocol; what served before stays. Of others, what cannot be read lets nobody in ([`read`]).
//!
//! Before the first answer counts what the operator said; after it the last answer, however long the controller is away.
//! (Linkerd wire document §7.)

pub mod read;

use std::sync::Arc;
use std::time::SystemTime;

use linkerd2_proxy_api::inbound::inbound_server_policies_client::InboundServerPoliciesClient;
use linkerd2_proxy_api::inbound::{PortSpec, Server};
use parking_lot::Mutex;

use super::control::Control;
use super::control::watch::{News, Watch};
use crate::authorise::{self, Policy};
use crate::live::Live;

/// Whose policy to follow.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// The workload, in the controller's words.
    pub workload: String,
    /// The port.
    pub port: u16,
    /// What the operator says of all policies.
    pub words: authorise::Settings,
}

/// How it goes with the policy.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Progress {
    /// Policies that were taken.
    pub taken: u64,
    /// Messages that were not.
    pub refused: u64,
    /// Streams that were lost.
    pub lost: u64,
    /// When the last policy was taken.
    pub taken_at: Option<SystemTime>,
    /// Which server the policy in force is of.
    pub server: Option<String>,
    /// What is wrong now: with the stream, with the last message, or with parts of the policy in force.
    pub problems: Vec<String>,
}

/// A [`Progress`] that one writes and others read. Clones are the same.
#[derive(Clone, Debug, Default)]
pub struct Ledger(Arc<Mutex<Progress>>);

impl Ledger {
    /// How it goes now.
    pub fn read(&self) -> Progress {
        self.0.lock().clone()
    }
}

/// Follows the policy for as long as the gateway lives. Never ends; dropping the future stops it.
pub async fn follow(control: Control, settings: Settings, live: Arc<Live<Policy>>, ledger: Ledger) {
    let spec = PortSpec { workload: settings.workload.clone(), port: settings.port.into() };
    let mut watch: Watch<Server> = Watch::new(control, move |control| {
        let spec = spec.clone();
        async move { InboundServerPoliciesClient::new(control).watch_port(spec).await }
    });
    let mut last: Option<Server> = None;
    loop {
        match watch.next().await {
            News::Message { value, .. } if last.as_ref() == Some(&value) => {
                ledger.0.lock().problems.retain(is_of_policy)
            }
            News::Message { value, .. } => {
                take(&value, &settings, &live, &ledger);
                last = Some(value);
            }
            News::Lost(loss) => {
                let problem = format!("{STREAM}: {loss}");
                let mut progress = ledger.0.lock();
                progress.lost += 1;
                let news = !progress.problems.contains(&problem);
                progress.problems.retain(is_of_policy);
                progress.problems.push(problem.clone());
                if news {
                    tracing::warn!(problem, "the policy in force stays: asking again");
                }
            }
        }
    }
}

/// What a problem of the stream begins with.
const STREAM: &str = "the policy controller is away";

#[expect(clippy::ptr_arg, reason = "asked by `retain`")]
fn is_of_policy(problem: &String) -> bool {
    !problem.starts_with(STREAM)
}

fn take(server: &Server, settings: &Settings, live: &Live<Policy>, ledger: &Ledger) {
    match read::server(server) {
        Ok(read::Read { served, problems }) => {
            let policy = Policy::serve(&settings.words, &served, Some(&live.load()));
            tracing::info!(
                server = served.server,
                authorizations = policy.rules(),
                "the policy controller's word is in force"
            );
            for problem in &problems {
                tracing::warn!(problem, "a part of the policy lets nobody in");
            }
            live.replace(policy);
            let mut progress = ledger.0.lock();
            progress.taken += 1;
            progress.taken_at = Some(SystemTime::now());
            progress.server = Some(served.server);
            progress.problems = problems;
        }
        Err(error) => {
            tracing::warn!(%error, "the policy in force stays");
            let mut progress = ledger.0.lock();
            progress.refused += 1;
            progress.problems = vec![error.to_string()];
        }
    }
}
