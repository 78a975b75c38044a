//! Puts the sources together that ask a control plane: the gateway's certificate, and its policy.
//!
//! **In** the configuration and the running [`App`]. **Out** tasks on the control runtime, parts of the process's health, and
//! metrics. **Refuses** to start where a control plane is configured that cannot be asked at all.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Context;
use isthmus_probe::health::Part;
use tokio::runtime::Handle;

use super::{App, kept};
use crate::addr::Host;
use crate::authorise::DefaultPolicy;
use crate::config::Config;
use crate::live::Live;
use crate::sources::dns::Names;
use crate::sources::files::{self, anchors::AnchorFiles};
use crate::sources::linkerd::control::{self, Control};
use crate::sources::linkerd::identity::certify::{self, Certifier};
use crate::sources::linkerd::identity::{Ledger, Progress};
use crate::sources::linkerd::policy;
use crate::sources::linkerd::spiffe::{self as svid, Beside, BesideFiles, Follower};
use crate::telemetry::metrics::{Kind, Metrics, Reading};
use crate::tls::Credentials;

/// A certificate from Linkerd's identity controller.
#[derive(Debug)]
pub(super) struct Certify {
    control: control::Settings,
    settings: certify::Settings,
    files: AnchorFiles,
    digest: [u8; 32],
}

impl Certify {
    pub(super) fn prepare(config: &Config) -> Result<Option<(Credentials, Self)>, files::Wrong> {
        let Some((control, settings)) = config.certify() else { return Ok(None) };
        let files = config.anchor_files(settings.name.clone());
        let (credentials, read) = files::load(&files)?;
        Ok(Some((credentials, Self { control, settings, files, digest: read.digest })))
    }

    pub(super) fn start(self, app: &mut App, config: &Config) -> anyhow::Result<()> {
        let believing = Arc::new(Live::new(Credentials::clone(&app.credentials.load())));
        let digest = Some(self.digest);
        app.credential_files =
            Some(files::watch(self.files, Arc::clone(&believing), digest, config.files(), app.reload.clone()));
        let names = names(config, &self.control)?;
        let control = Control::new(self.control, Arc::clone(&believing), names).context("identity.linkerd")?;
        show_control(&app.metrics, &control);
        let ledger = Ledger::default();
        let live = Arc::clone(&app.credentials);
        let certifier =
            Certifier::new(self.settings, control, believing, live, ledger.clone()).context("the gateway's key")?;
        kept::task(&Handle::current(), "identity", move || certifier.clone().run());
        keep_told(app, ledger);
        Ok(())
    }
}

/// A certificate from a SPIFFE Workload API.
#[derive(Debug)]
pub(super) struct Spiffe {
    settings: svid::Settings,
    files: BesideFiles,
    beside: Beside,
    digest: Option<[u8; 32]>,
}

impl Spiffe {
    pub(super) fn prepare(config: &Config) -> Result<Option<(Credentials, Self)>, files::Wrong> {
        let Some((settings, files)) = config.spiffe() else { return Ok(None) };
        let (beside, digest) = match files::Recipe::paths(&files).is_empty() {
            true => (Beside::default(), None),
            false => files::load(&files).map(|(beside, read)| (beside, Some(read.digest)))?,
        };
        let wrong =
            |error: crate::tls::CredentialsError| files::Wrong { file: error.file, reason: error.problem.to_string() };
        let bundle = beside.bundle.clone();
        let credentials = match bundle {
            Some(bundle) => Credentials::awaiting(settings.name.clone(), &bundle, &beside.crls, &settings.credentials)
                .map_err(wrong)?,
            None => Credentials::believing_nobody(settings.name.clone(), &settings.credentials),
        };
        Ok(Some((credentials, Self { settings, files, beside, digest })))
    }

    pub(super) fn start(self, app: &mut App, config: &Config) -> anyhow::Result<()> {
        let beside = Arc::new(Live::new(self.beside));
        if self.digest.is_some() {
            let (live, status) = (Arc::clone(&beside), app.reload.clone());
            app.credential_files = Some(files::watch(self.files, live, self.digest, config.files(), status));
        }
        let ledger = Ledger::default();
        let follower = Follower::new(self.settings, beside, Arc::clone(&app.credentials), ledger.clone());
        kept::task(&Handle::current(), "identity", move || follower.clone().run());
        keep_told(app, ledger);
        Ok(())
    }
}

/// Who asks for names, where there is one to ask for.
fn names(config: &Config, control: &control::Settings) -> anyhow::Result<Option<Arc<Names>>> {
    match control.at.host {
        Host::Ip(_) => Ok(None),
        Host::Name(_) => Ok(Some(Arc::new(Names::new(&config.control_dns()).context("DNS, for the control plane")?))),
    }
}

/// How often a part of the health that waits says anew what it waits for.
const SAY_AGAIN: Duration = Duration::from_secs(1);

/// Says why there is no certificate until there is one, and shows how it goes ever after.
fn keep_told(app: &mut App, ledger: Ledger) {
    show_certificate(&app.metrics, &ledger, &app.credentials);
    let Some(part) = app.awaits_certificate.take() else { return };
    let credentials = Arc::clone(&app.credentials);
    let mut changes = credentials.changes();
    drop(Handle::current().spawn(async move {
        while !credentials.load().has_certificate() {
            if let Some(problem) = ledger.read().problem {
                part.not_ready(format!("no certificate yet: {problem}"));
            }
            let _ = tokio::time::timeout(SAY_AGAIN, changes.next()).await;
        }
        part.ready();
    }));
}

impl App {
    /// Follows the policy of the control plane, where that is where the policy comes from; says whether it is.
    pub fn follow_policy(&mut self, config: &Config) -> anyhow::Result<bool> {
        let Some((settings, policy)) = config.policy_control() else { return Ok(false) };
        let names = names(config, &settings)?;
        let control = Control::new(settings, Arc::clone(&self.credentials), names).context("authorise.linkerd")?;
        show_control(&self.metrics, &control);
        let ledger = policy::Ledger::default();
        show_policy(&self.metrics, &ledger);
        let waits = policy.words.linkerd.default == DefaultPolicy::Deny;
        let part = waits.then(|| self.health.part("policy", "no answer of the policy controller yet"));
        let (live, told) = (Arc::clone(&self.policy), ledger.clone());
        kept::task(&Handle::current(), "policy", move || {
            policy::follow(control.clone(), policy.clone(), Arc::clone(&live), told.clone())
        });
        if let Some(part) = part {
            drop(Handle::current().spawn(answered(part, Arc::clone(&self.policy), ledger)));
        }
        Ok(true)
    }
}

/// Ready once the policy controller has said something.
async fn answered(part: Part, live: Arc<Live<crate::authorise::Policy>>, ledger: policy::Ledger) {
    let mut changes = live.changes();
    loop {
        let progress = ledger.read();
        if progress.taken > 0 {
            return part.ready();
        }
        if let Some(problem) = progress.problems.first() {
            part.not_ready(format!("no answer of the policy controller yet: {problem}"));
        }
        let _ = tokio::time::timeout(SAY_AGAIN, changes.next()).await;
    }
}

#[expect(clippy::cast_precision_loss, reason = "a count is shown, not calculated with")]
fn count(labels: Vec<(&'static str, String)>, value: u64) -> Reading {
    Reading { labels, value: value as f64 }
}

fn seconds(time: Option<SystemTime>) -> Vec<Reading> {
    let since = time.and_then(|time| time.duration_since(UNIX_EPOCH).ok());
    since.map(|since| Reading { labels: Vec::new(), value: since.as_secs_f64() }).into_iter().collect()
}

/// The families that Linkerd's dashboards read (Linkerd wire document §8.3).
fn show_certificate(metrics: &Metrics, ledger: &Ledger, credentials: &Arc<Live<Credentials>>) {
    let (refreshes, refreshed, live) = (ledger.clone(), ledger.clone(), Arc::clone(credentials));
    metrics.read(
        "control_identity_cert_refreshes",
        "Certificates asked for, by whether one was taken.",
        Kind::Counter,
        move || {
            let Progress { taken, failed, .. } = refreshes.read();
            let row = |result: &str, value| count(vec![("result", result.to_owned())], value);
            vec![row("ok", taken), row("error", failed)]
        },
    );
    metrics.read(
        "control_identity_cert_refresh_timestamp_seconds",
        "When a certificate was last taken, in seconds since 1970.",
        Kind::Gauge,
        move || seconds(refreshed.read().taken_at),
    );
    metrics.read(
        "control_identity_cert_expiration_timestamp_seconds",
        "When the gateway's certificate ends, in seconds since 1970.",
        Kind::Gauge,
        move || {
            let credentials = live.load();
            seconds(credentials.has_certificate().then(|| credentials.expires()))
        },
    );
}

/// How it goes with one service of the control plane.
fn show_control(metrics: &Metrics, control: &Control) {
    let service = control.settings().name;
    let label = move || vec![("service", service.to_owned())];
    let (calls, failures, age) = (control.clone(), control.clone(), control.clone());
    metrics.read("isthmus_sources_control_calls", "Calls to the control plane.", Kind::Counter, move || {
        vec![count(label(), calls.standing().calls)]
    });
    let help = "Calls and streams to the control plane that failed.";
    metrics.read("isthmus_sources_control_failures", help, Kind::Counter, move || {
        vec![count(label(), failures.standing().failures)]
    });
    let help = "Since something was last heard of the control plane.";
    metrics.read("isthmus_sources_control_age_seconds", help, Kind::Gauge, move || {
        let age = age.standing().age;
        age.map(|age| Reading { labels: label(), value: age.as_secs_f64() }).into_iter().collect()
    });
}

/// How it goes with the policy.
fn show_policy(metrics: &Metrics, ledger: &policy::Ledger) {
    let (messages, problems) = (ledger.clone(), ledger.clone());
    let help = "Policies that the policy controller sent, by whether they were taken.";
    metrics.read("isthmus_authorise_served", help, Kind::Counter, move || {
        let progress = messages.read();
        let row = |result: &str, value| count(vec![("result", result.to_owned())], value);
        vec![row("ok", progress.taken), row("failed", progress.refused)]
    });
    let help = "What is wrong with the policy in force or its source now.";
    metrics.read("isthmus_authorise_served_problems", help, Kind::Gauge, move || {
        vec![count(Vec::new(), problems.read().problems.len() as u64)]
    });
}
