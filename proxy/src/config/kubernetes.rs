//! `sources.kubernetes`, checked and made into the source's settings.
//!
//! **In** the section. **Out** the source's `Settings`, in builds that have it. **Refuses** a selector that is none, times that no
//! watch can have, and the whole section where the build has no Kubernetes.

use super::Config;

/// The longest watch: kube's watcher ends one after this much silence, and API servers after some ten minutes.
const MAX_WATCH_SECONDS: u64 = 290;

impl Config {
    pub(super) fn check_kubernetes(&self) -> Result<(), (String, String)> {
        let file = &self.file.sources.kubernetes;
        let wrong = |key: &str, message: String| Err((format!("sources.kubernetes.{key}"), message));
        if !file.enabled {
            return Ok(());
        }
        if cfg!(not(feature = "kubernetes")) {
            return wrong("enabled", "this build has no Kubernetes; build it with the feature `kubernetes`".to_owned());
        }
        #[cfg(feature = "kubernetes")]
        if let Err(message) = crate::sources::kubernetes::selector::parse(&file.selector) {
            return wrong("selector", message);
        }
        let mut seen = std::collections::HashSet::new();
        for (index, namespace) in file.namespaces.iter().enumerate() {
            if !seen.insert(namespace) {
                return wrong(&format!("namespaces[{index}]"), format!("{namespace} stands in the list twice"));
            }
        }
        if !(1..=MAX_WATCH_SECONDS).contains(&file.watch_timeout.0.as_secs()) {
            return wrong(
                "watch_timeout",
                format!("a watch lasts from 1s to {MAX_WATCH_SECONDS}s; the default is 60s"),
            );
        }
        for (key, time) in [("answer_timeout", file.answer_timeout), ("backoff_min", file.backoff_min)] {
            if time.0.is_zero() {
                return wrong(key, "0 would ask the API server without a pause".to_owned());
            }
        }
        if file.backoff_max < file.backoff_min {
            return wrong("backoff_max", "shorter than sources.kubernetes.backoff_min".to_owned());
        }
        if file.page_size == 0 {
            return wrong("page_size", "0 would ask for everything at once; the default is 500".to_owned());
        }
        let domain = &file.cluster_domain.0;
        let served = format!("svc.{domain}").parse().is_ok_and(|below| {
            let suffixes = &self.file.route.suffixes;
            suffixes.iter().any(|suffix| suffix.0.holds(&below) || is_below(&suffix.0, &below))
        });
        if !served {
            return wrong("cluster_domain", format!("no service below svc.{domain} lies within route.suffixes"));
        }
        Ok(())
    }

    /// Whether what discovery needs beside this file is there, as far as that shows without asking anybody.
    #[cfg(feature = "kubernetes")]
    pub fn check_discovery(&self) -> Result<(), crate::sources::kubernetes::Unusable> {
        self.kubernetes().map_or(Ok(()), |settings| crate::sources::kubernetes::Kubernetes::check(&settings))
    }

    /// Whether what discovery needs beside this file is there.
    #[cfg(not(feature = "kubernetes"))]
    pub fn check_discovery(&self) -> Result<(), std::convert::Infallible> {
        Ok(())
    }

    /// Kubernetes, where it is on.
    #[cfg(feature = "kubernetes")]
    pub fn kubernetes(&self) -> Option<crate::sources::kubernetes::Settings> {
        let file = &self.file.sources.kubernetes;
        file.enabled.then(|| crate::sources::kubernetes::Settings {
            kubeconfig: file.kubeconfig.as_ref().map(|path| self.path(path)),
            namespaces: file.namespaces.iter().map(ToString::to_string).collect(),
            selector: file.selector.clone(),
            cluster_domain: file.cluster_domain.0.clone(),
            watch_timeout: file.watch_timeout.0,
            watch_interval: file.backoff_min.0,
            answer_timeout: file.answer_timeout.0,
            backoff: crate::backoff::Backoff { min: file.backoff_min.0, max: file.backoff_max.0, jitter: 0.3 },
            page_size: file.page_size,
            allow_local: file.allow_local,
            own: file.pod_ip,
        })
    }
}

/// Whether a suffix serves a part of what lies below `name`, such as a single namespace.
fn is_below(suffix: &crate::addr::Suffix, name: &crate::addr::Name) -> bool {
    match suffix {
        crate::addr::Suffix::All => true,
        crate::addr::Suffix::Below(below) => crate::addr::Suffix::Below(name.clone()).holds(below),
    }
}
