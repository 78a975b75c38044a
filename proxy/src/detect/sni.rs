//! A service and its port in a server name.
//!
//! **In** the server name of an opaque session. **Out** a [`Target`]: `web.ns.svc.cluster.local` with the default port,
//! or the port as the labels of an SRV record write it, `_8080._tcp.web.ns.svc.cluster.local` (RFC 2782; the `_tcp` may be
//! left out). **Refuses** underscored labels that hold no port: no service's name begins so.

use crate::addr::{Name, Target};
use crate::detect::Error;

/// Reads the target out of a server name.
pub(super) fn target(name: &Name, default_port: u16) -> Result<Target, Error> {
    let Some(rest) = name.as_str().strip_prefix('_') else {
        return Ok(Target { name: name.clone(), port: default_port });
    };
    let (port, service) = rest.split_once('.').ok_or(Error::Sni)?;
    let service = service.strip_prefix("_tcp.").unwrap_or(service);
    if service.starts_with('_') || !port.bytes().all(|b| b.is_ascii_digit()) {
        return Err(Error::Sni);
    }
    let port = port.parse().ok().filter(|port| *port != 0).ok_or(Error::Sni)?;
    Ok(Target { name: service.parse().map_err(|_| Error::Sni)?, port })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn table() {
        for (sni, want) in [
            ("web.ns.svc.cluster.local", Some("web.ns.svc.cluster.local:443")),
            ("_8080._tcp.web.ns.svc.cluster.local", Some("web.ns.svc.cluster.local:8080")),
            ("_8080.web.ns.svc.cluster.local", Some("web.ns.svc.cluster.local:8080")),
            ("8080.web.ns", Some("8080.web.ns:443")),
            ("_0._tcp.web", None),
            ("_65536._tcp.web", None),
            ("_http._tcp.web", None),
            ("_8080._udp.web", None),
            ("_8080._tcp", None),
            ("_8080", None),
            ("_", None),
        ] {
            let name = sni.parse().expect("a name");
            assert_eq!(target(&name, 443).ok().map(|target| target.to_string()).as_deref(), want, "{sni}");
        }
    }
}
