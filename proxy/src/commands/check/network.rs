//! Checks of what is around the gateway: its ports, its probe, its upstreams, the limits of its process.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::time::Duration;

use futures_util::future::join_all;
use isthmus_probe::prober::{Dial, Mode, Prober, Progress, Settings, Target};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::timeout;

use super::Own;
use super::report::{Category, Check};
use crate::addr::Name;
use crate::commands::dial::{Dialer, Secrets, resolve};
use crate::config::Config;
use crate::identity::Identity;

/// How long one question may take: a person waits.
const PATIENCE: Duration = Duration::from_secs(3);

/// File descriptors besides connections: listeners, logs, files under watch, runtimes.
const FDS_BESIDES: u64 = 64;

/// Who has a port.
enum Port {
    Free,
    /// Somebody listens there.
    Taken,
    Unusable(std::io::Error),
}

fn port(addr: SocketAddr) -> Port {
    match TcpListener::bind(addr) {
        Ok(_) => Port::Free,
        Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => Port::Taken,
        Err(error) => Port::Unusable(error),
    }
}

/// Where to reach a listener of this host.
fn reached(addr: SocketAddr) -> SocketAddr {
    // A listener on all addresses takes IPv4 too, which every host has.
    let ip = if addr.ip().is_unspecified() { Ipv4Addr::LOCALHOST.into() } else { addr.ip() };
    SocketAddr::new(ip, addr.port())
}

/// Each port: free for the gateway, or the gateway's already.
pub(super) async fn listeners(config: &Config, own: Option<&Own>) -> Category {
    let mut category = Category::new("listeners");
    let [gateway, probe, admin] = config.listeners();
    let dialer = own.and_then(|own| dialer(own, config).ok());
    for (key, addr) in [("accept.listen", gateway), ("probe.listen", probe)] {
        let answering = async {
            let Some(dialer) = &dialer else { return Err("without credentials nobody can ask who it is".to_owned()) };
            let (at, progress) = (reached(addr).to_string(), Progress::default());
            match timeout(PATIENCE, dialer.dial(&at, &progress)).await {
                Ok(Ok(mut stream)) => {
                    // Leaves in order, so that the gateway has nothing to report.
                    let _ = timeout(PATIENCE, stream.shutdown()).await;
                    Ok(())
                }
                Ok(Err(error)) => Err(error.to_string()),
                Err(_) => Err("no handshake in time".to_owned()),
            }
        };
        category.add(listener(key, addr, answering).await);
    }
    let live = async {
        match timeout(PATIENCE, get(reached(admin), "/live")).await {
            Ok(Ok(answer)) if answer.starts_with("HTTP/1.0 200") || answer.starts_with("HTTP/1.1 200") => Ok(()),
            Ok(Ok(_)) => Err("answers, but not as the admin server does".to_owned()),
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err("no answer in time".to_owned()),
        }
    };
    category.add(listener("admin.listen", admin, live).await);
    category
}

async fn listener(key: &str, addr: SocketAddr, answering: impl Future<Output = Result<(), String>>) -> Check {
    match port(addr) {
        Port::Free => Check::passed(format!("{key} {addr} is free")),
        Port::Unusable(error) => {
            let hint = "ports below 1024 need CAP_NET_BIND_SERVICE; an address must be one of this host's";
            Check::failed(format!("{key} {addr} can be listened on"), error, hint)
        }
        Port::Taken => match answering.await {
            Ok(()) => Check::passed(format!("{key} {addr} is answered by the gateway")),
            Err(found) => {
                let hint = format!("something else may listen there (ss -ltnp): stop it, or choose another {key}");
                Check::failed(format!("{key} {addr} is free, or answered by this gateway"), found, hint)
            }
        },
    }
}

async fn get(addr: SocketAddr, path: &str) -> std::io::Result<String> {
    let mut socket = TcpStream::connect(addr).await?;
    socket.write_all(format!("GET {path} HTTP/1.0\r\nhost: {addr}\r\n\r\n").as_bytes()).await?;
    let mut answer = Vec::new();
    socket.take(64 * 1024).read_to_end(&mut answer).await?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

/// A caller that shows the gateway's own certificate, as a mirror's proxy shows its own.
fn dialer(own: &Own, config: &Config) -> anyhow::Result<Dialer> {
    let identity = own.credentials.identity().clone();
    let configured = config.credentials().server_names.into_iter().next();
    let server_name: Option<Name> = match &identity {
        Identity::Dns(name) => Some(name.clone()),
        Identity::Uri(_) => configured.or_else(|| own.credentials.server_names().first().cloned()),
    };
    let server_name = server_name.ok_or_else(|| anyhow::anyhow!("the gateway has no name that can be asked for"))?;
    let (bundle_name, bundle) = own.bundle.clone();
    Dialer::mutual(
        Secrets { bundle_name, bundle, pair: Some((own.chain.clone(), own.key.clone())) },
        identity,
        server_name,
    )
}

/// The probe, asked as mirrors ask: here where it runs, and where mirrors reach it.
pub(super) async fn probes(config: &Config, own: Option<&Own>, address: Option<&str>) -> Category {
    let mut category = Category::new("probe");
    let local = config.file.probe.listen;
    let running = matches!(port(local), Port::Taken);
    let dialer = match own.map(|own| dialer(own, config)) {
        Some(Ok(dialer)) => dialer,
        Some(Err(error)) => {
            category.add(Check::failed("the probe can be asked", error, "set tls.server_names"));
            return category;
        }
        None => {
            category.add(Check::warned("the probe can be asked", "not without credentials", "put those right first"));
            return category;
        }
    };
    if running {
        category.add(asked(&dialer, &reached(local).to_string()).await);
    } else {
        category.add(Check::passed(format!("no gateway runs here: nobody to ask at {local}")));
    }
    let Some(address) = address else { return category };
    match resolve(address).await {
        Err(error) => {
            let hint =
                "mirrors resolve this name in their own cluster: check the LoadBalancer's address and its DNS record";
            category.add(Check::failed(format!("{address} can be resolved"), error.message, hint));
        }
        Ok(addrs) => {
            category.add(Check::passed(format!("{address} can be resolved: {} addresses", addrs.len())));
            for check in join_all(addrs.iter().map(|addr| async { asked(&dialer, &addr.to_string()).await })).await {
                category.add(check);
            }
        }
    }
    category
}

async fn asked(dialer: &Dialer, addr: &str) -> Check {
    let what = format!("the probe at {addr} says yes over mutual TLS, as a mirror asks");
    let hint = "a mirror that is told no, or nothing, sends no traffic: isthmus probe shows more";
    let target = Target {
        cluster: addr.to_owned(),
        addr: addr.to_owned(),
        authority: "probe-gateway-check:4181".to_owned(),
        path: "/ready".to_owned(),
    };
    let settings = Settings { mode: Mode::Http2, timeout: PATIENCE, ..Settings::default() };
    match Prober::new(dialer.clone(), target, settings) {
        Ok((mut prober, _)) => match prober.probe().await {
            Ok(took) => Check::passed(format!("{what}: {:.1} ms", took.as_secs_f64() * 1e3)),
            Err(failure) => Check::failed(what, failure, hint),
        },
        Err(error) => Check::failed(what, error, hint),
    }
}

/// Whether services are where the configuration says, and whether there is a DNS that could find others.
pub(super) async fn upstreams(config: &Config) -> Category {
    let mut category = Category::new("upstreams");
    let services = &config.file.sources.services;
    let checks = services.iter().map(|service| async move {
        let what = format!("{}:{} has an endpoint that takes connections", service.name, service.port);
        let tried = service.endpoints.iter().map(|endpoint| async move {
            let connected = timeout(PATIENCE, TcpStream::connect(endpoint.address)).await;
            match connected {
                Ok(Ok(_)) => Ok(()),
                Ok(Err(error)) => Err(format!("{}: {error}", endpoint.address)),
                Err(_) => Err(format!("{}: no connection in time", endpoint.address)),
            }
        });
        let tried = join_all(tried).await;
        let wrong: Vec<String> = tried.iter().filter_map(|tried| tried.clone().err()).collect();
        let hint = "check sources.services and that network policies let the gateway there";
        match (tried.len(), wrong.len()) {
            (0, _) => Check::warned(what, "it has none", "add one below endpoints:, or drop the service"),
            (_, 0) => Check::passed(what),
            (all, failed) if failed < all => Check::warned(what, wrong.join("\n"), hint),
            _ => Check::failed(what, wrong.join("\n"), hint),
        }
    });
    for check in join_all(checks).await {
        category.add(check);
    }
    if config.file.sources.dns.enabled {
        for suffix in &config.file.route.suffixes {
            category.add(dns(&suffix.0.to_string(), &config.file.sources.dns.servers).await);
        }
    }
    category
}

/// Every Kubernetes has the service that is asked for here.
async fn dns(suffix: &str, servers: &[SocketAddr]) -> Check {
    let name =
        if suffix == "." { "kubernetes.default.svc".to_owned() } else { format!("kubernetes.default.{suffix}.") };
    let what = format!("cluster DNS answers for names below {suffix}");
    let hint = "run this inside the cluster; check /etc/resolv.conf, route.suffixes and sources.dns.servers, or turn \
                sources.dns off";
    let asked = async {
        if servers.is_empty() {
            return resolve(&format!("{name}:443")).await.map(drop).map_err(|error| error.message);
        }
        for server in servers {
            if let Err(error) = ask_server(*server, &name).await {
                return Err(format!("{server}: {error}"));
            }
        }
        Ok(())
    };
    match timeout(PATIENCE, asked).await {
        Ok(Ok(())) => Check::passed(what),
        Ok(Err(found)) => Check::warned(what, found, hint),
        Err(_) => Check::warned(what, format!("no answer for {name} in time"), hint),
    }
}

/// One question to one server (RFC 1035 §4.1): an address of `name`, which must exist.
async fn ask_server(server: SocketAddr, name: &str) -> Result<(), String> {
    /// NOERROR, and what the codes after it are called (RFC 1035 §4.1.1).
    const CODES: [&str; 6] = ["NOERROR", "FORMERR", "SERVFAIL", "NXDOMAIN", "NOTIMP", "REFUSED"];
    let id = rand::random::<[u8; 2]>();
    let mut question = vec![id[0], id[1], 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.trim_end_matches('.').split('.') {
        question.push(u8::try_from(label.len()).map_err(|_| "a label is too long".to_owned())?);
        question.extend_from_slice(label.as_bytes());
    }
    question.extend_from_slice(&[0, 0, 1, 0, 1]);
    let here: SocketAddr =
        if server.is_ipv6() { (Ipv6Addr::UNSPECIFIED, 0).into() } else { (Ipv4Addr::UNSPECIFIED, 0).into() };
    let failed = |error: std::io::Error| error.to_string();
    let socket = UdpSocket::bind(here).await.map_err(failed)?;
    socket.connect(server).await.map_err(failed)?;
    socket.send(&question).await.map_err(failed)?;
    let mut answer = [0; 512];
    loop {
        let len = socket.recv(&mut answer).await.map_err(failed)?;
        if len < 12 || answer[..2] != id {
            continue; // an answer to somebody else's question
        }
        return match (answer[3] & 0x0f, answer[6..8] != [0, 0]) {
            (0, true) => Ok(()),
            (0, false) => Err(format!("{name} has no address")),
            (code, _) => Err(format!("{name}: {}", CODES.get(usize::from(code)).unwrap_or(&"an error"))),
        };
    }
}

/// What the process may have against what the configuration lets it use.
pub(super) fn limits(config: &Config) -> Category {
    let mut category = Category::new("limits");
    let accept = &config.file.accept;
    // A connection of a client and, at worst, one to an endpoint for it.
    let wanted =
        u64::try_from(accept.max_connections).unwrap_or(u64::MAX).saturating_mul(2).saturating_add(FDS_BESIDES);
    let what =
        format!("file descriptors suffice for accept.max_connections {}: {wanted} at most", accept.max_connections);
    category.add(match std::fs::read_to_string("/proc/self/limits").ok().as_deref().and_then(open_files) {
        Some(limit) if limit >= wanted => Check::passed(format!("{what}, {limit} allowed")),
        Some(limit) => Check::warned(
            what,
            format!("{limit} are allowed (ulimit -n): accepting stops there, and waits"),
            format!(
                "raise the limit to {wanted}, or lower accept.max_connections to {}",
                limit.saturating_sub(FDS_BESIDES) / 2
            ),
        ),
        None => Check::warned(what, "/proc/self/limits cannot be read", "check ulimit -n where the gateway runs"),
    });
    if let Ok(most) = std::fs::read_to_string("/proc/sys/net/core/somaxconn")
        && let Ok(most) = most.trim().parse::<u32>()
        && most < u32::from(accept.backlog)
    {
        let hint = "raise net.core.somaxconn, or lower accept.backlog";
        let found = format!("the kernel cuts it to {most}");
        category.add(Check::warned(format!("the kernel grants accept.backlog {}", accept.backlog), found, hint));
    }
    category
}

/// The soft limit of open files in the text of `/proc/self/limits`.
fn open_files(text: &str) -> Option<u64> {
    let line = text.lines().find(|line| line.starts_with("Max open files"))?;
    let soft = line["Max open files".len()..].split_whitespace().next()?;
    if soft == "unlimited" { Some(u64::MAX) } else { soft.parse().ok() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_read() {
        let text = "Limit                     Soft Limit           Hard Limit           Units     \n\
                    Max open files            1024                 524288               files     \n";
        assert_eq!(open_files(text), Some(1024));
        assert_eq!(open_files("Max open files   unlimited  unlimited  files"), Some(u64::MAX));
        assert_eq!(open_files(""), None);
    }

    #[tokio::test]
    async fn servers_are_asked_for_a_name_that_every_cluster_has() {
        let server = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let addr = server.local_addr().unwrap();
        for (code, answers, want) in [
            (0, 1, Ok(())),
            (0, 0, Err("a.b has no address".to_owned())),
            (3, 0, Err("a.b: NXDOMAIN".to_owned())),
            (9, 0, Err("a.b: an error".to_owned())),
        ] {
            let answer = async {
                let mut question = [0; 512];
                let (len, from) = server.recv_from(&mut question).await.unwrap();
                assert_eq!(&question[12..len], b"\x01a\x01b\0\0\x01\0\x01");
                question[3] = code;
                question[7] = answers;
                server.send_to(b"stray", from).await.unwrap();
                server.send_to(&question[..len], from).await.unwrap();
            };
            assert_eq!(tokio::join!(ask_server(addr, "a.b"), answer).0, want);
        }
    }

    #[test]
    fn a_listener_on_all_addresses_is_reached_on_this_host() {
        for (listen, want) in [
            ("0.0.0.0:1", SocketAddr::from((Ipv4Addr::LOCALHOST, 1))),
            ("[::]:2", SocketAddr::from((Ipv4Addr::LOCALHOST, 2))),
            ("[::1]:3", SocketAddr::from((Ipv6Addr::LOCALHOST, 3))),
            ("192.0.2.1:4", SocketAddr::from(([192, 0, 2, 1], 4))),
        ] {
            assert_eq!(reached(listen.parse().unwrap()), want);
        }
    }
}
