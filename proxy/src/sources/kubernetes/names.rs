//! Which Service a name means.
//!
//! **In** `web.prod.svc.cluster.local`, or `web-0.web.prod.svc.cluster.local` for one pod of a headless service. **Out** a
//! [`Named`]. **Refuses** every other name: it is another source's. (Kubernetes, "DNS for Services and Pods".)

use crate::addr::Name;

/// The parts of a service's name.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Named<'a> {
    /// The pod, where one of the service's is meant.
    pub(super) host: Option<&'a str>,
    /// `service.namespace`
    pub(super) service: &'a str,
    pub(super) namespace: &'a str,
}

/// The names below one cluster's domain.
#[derive(Clone, Debug)]
pub(super) struct Names {
    /// `.svc.cluster.local`
    suffix: Box<str>,
}

impl Names {
    pub(super) fn new(cluster_domain: &Name) -> Self {
        Self { suffix: format!(".svc.{cluster_domain}").into() }
    }

    pub(super) fn read<'a>(&self, name: &'a Name) -> Option<Named<'a>> {
        let rest = name.as_str().strip_suffix(&*self.suffix)?;
        let mut labels = rest.rsplit('.');
        let (namespace, service) = (labels.next()?, labels.next()?);
        let host = labels.next();
        if labels.next().is_some() {
            return None;
        }
        let service_at = rest.len() - namespace.len() - service.len() - 1;
        Some(Named { host, service: &rest[service_at..], namespace })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_services_and_their_pods() {
        let names = Names::new(&"cluster.local".parse().expect("a name"));
        for (text, want) in [
            ("web.prod.svc.cluster.local", Some((None, "web.prod", "prod"))),
            ("web-0.web.prod.svc.cluster.local", Some((Some("web-0"), "web.prod", "prod"))),
            ("a.web-0.web.prod.svc.cluster.local", None),
            ("prod.svc.cluster.local", None),
            ("svc.cluster.local", None),
            ("web.prod.svc.other.local", None),
            ("web.prod.xsvc.cluster.local", None),
            ("kubernetes.default", None),
        ] {
            let name: Name = text.parse().expect("a name");
            let got = names.read(&name).map(|named| (named.host, named.service, named.namespace));
            assert_eq!(got, want, "{text}");
        }
    }
}
