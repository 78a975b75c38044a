//! The gateways: their configurations filled in, their processes started on their core, and ended.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::ValueEnum;
use rustls::pki_types::ServerName;

use crate::pki::GATEWAY;
use crate::stats;

/// Who is measured.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd, ValueEnum)]
pub(crate) enum Kind {
    Isthmus,
    Floor,
    Haproxy,
    Nginx,
    Envoy,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Isthmus => "Isthmus",
            Self::Floor => "bare floor",
            Self::Haproxy => "HAProxy",
            Self::Nginx => "nginx",
            Self::Envoy => "Envoy",
        })
    }
}

/// What the endpoints of a service speak.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Speaks {
    H2,
    H1,
    Bytes,
}

/// A host that every gateway knows.
#[derive(Clone, Debug)]
pub(crate) struct Service {
    pub(crate) name: String,
    pub(crate) speaks: Speaks,
    pub(crate) endpoints: [SocketAddr; 2],
}

impl Service {
    pub(crate) fn host(&self) -> String {
        format!("{}.prod.svc.cluster.local", self.name)
    }
}

/// Programs and folders.
#[derive(Clone, Debug)]
pub(crate) struct Shop {
    pub(crate) configs: PathBuf,
    pub(crate) work: PathBuf,
    pub(crate) programs: BTreeMap<Kind, PathBuf>,
    /// What the program is started by: `taskset`, or a tool that counts its instructions.
    pub(crate) starter: Vec<String>,
    pub(crate) services: Vec<Service>,
}

/// What an instance has besides the fifty hosts.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct More {
    pub(crate) services: usize,
    pub(crate) rules: usize,
}

/// A gateway that runs. Dropping it ends it.
#[derive(Debug)]
pub(crate) struct Gateway {
    pub(crate) kind: Kind,
    child: Child,
    /// Its processes.
    pub(crate) watch: Vec<u32>,
    http: u16,
    ports: BTreeMap<String, u16>,
}

impl Drop for Gateway {
    fn drop(&mut self) {
        // Children first: a master that is killed leaves its worker behind.
        for process in self.watch.iter().rev() {
            let _ = Command::new("kill").args(["-9", &process.to_string()]).stderr(Stdio::null()).status();
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn free_port() -> Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

impl Shop {
    /// Starts one, and waits until it listens.
    pub(crate) fn start(&self, kind: Kind, more: More) -> Result<Gateway> {
        // A port that was free may be somebody else's by now: then it is tried with others.
        self.try_start(kind, more).or_else(|_| self.try_start(kind, more)).or_else(|_| self.try_start(kind, more))
    }

    fn try_start(&self, kind: Kind, more: More) -> Result<Gateway> {
        let program = self.programs.get(&kind).with_context(|| format!("{kind}: no program"))?;
        let http = free_port()?;
        let mut ports = BTreeMap::new();
        for service in &self.services {
            if kind == Kind::Floor || (service.speaks == Speaks::Bytes && kind != Kind::Isthmus) {
                ports.insert(service.name.clone(), free_port()?);
            }
        }
        let folder = self.work.join(format!("{kind:?}").to_lowercase());
        fs::create_dir_all(&folder)?;
        for file in ["gateway.crt", "gateway.key", "gateway.pem", "anchor.crt"] {
            fs::copy(self.work.join(file), folder.join(file))?;
        }
        let fill = |name: &str| -> Result<PathBuf> {
            let template = fs::read_to_string(self.configs.join(name))?;
            let path = folder.join(name);
            fs::write(&path, self.fill(&template, &folder, http, &ports, more)?)?;
            Ok(path)
        };
        let (starter, flags) = self.starter.split_first().context("nothing to start it by")?;
        let mut command = Command::new(starter);
        command.args(flags).arg(program).current_dir(&folder);
        match kind {
            Kind::Isthmus => command.args(["run", "--config"]).arg(fill("isthmus.yaml")?),
            Kind::Haproxy => {
                fill("hosts.map")?;
                command.args(["-db", "-f"]).arg(fill("haproxy.cfg")?)
            }
            Kind::Nginx => command.arg("-c").arg(fill("nginx.conf")?),
            Kind::Envoy => command
                .args(["--concurrency", "1", "--disable-hot-restart", "--log-level", "critical", "-c"])
                .arg(fill("envoy.yaml")?),
            Kind::Floor => {
                command.arg("--dir").arg(&folder);
                for service in self.services.iter().filter(|service| ports.contains_key(&service.name)) {
                    let flag = match service.speaks {
                        Speaks::H2 => "--h2",
                        Speaks::H1 => "--h1",
                        Speaks::Bytes => "--tcp",
                    };
                    command.arg(flag).arg(format!("127.0.0.1:{}={}", ports[&service.name], service.endpoints[0]));
                }
                &mut command
            }
        };
        let log = fs::File::create(folder.join("output.log"))?;
        let child = command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).spawn()?;
        let mut gateway = Gateway { kind, watch: vec![child.id()], child, http, ports };
        gateway.wait().with_context(|| format!("{kind}: see {}", folder.join("output.log").display()))?;
        Ok(gateway)
    }

    /// Fills a template in. `#each LIST` to `#end` is repeated for each entry.
    fn fill(
        &self,
        template: &str,
        folder: &Path,
        http: u16,
        ports: &BTreeMap<String, u16>,
        more: More,
    ) -> Result<String> {
        let mut text = String::new();
        let mut lines = template.lines();
        while let Some(line) = lines.next() {
            let Some(list) = line.strip_prefix("#each ") else {
                text.push_str(line);
                text.push('\n');
                continue;
            };
            let part: Vec<&str> = lines.by_ref().take_while(|line| *line != "#end").collect();
            let part = part.join("\n") + "\n";
            match list {
                "http" | "bytes" => {
                    let wanted = |service: &&Service| (service.speaks == Speaks::Bytes) == (list == "bytes");
                    for service in self.services.iter().filter(wanted) {
                        text.push_str(&one(&part, service, ports.get(&service.name).copied().unwrap_or(0)));
                    }
                }
                "more-services" => {
                    (0..more.services).for_each(|n| text.push_str(&part.replace("{{number}}", &n.to_string())))
                }
                "more-rules" => {
                    (0..more.rules).for_each(|n| text.push_str(&part.replace("{{number}}", &n.to_string())))
                }
                other => bail!("no list {other}"),
            }
        }
        let text = text
            .replace("{{dir}}", &folder.to_string_lossy())
            .replace("{{http}}", &http.to_string())
            .replace("{{admin}}", &free_port()?.to_string())
            .replace("{{probe}}", &free_port()?.to_string());
        if let Some(at) = text.find("{{") {
            bail!("not filled in: {}", &text[at..text.len().min(at + 30)]);
        }
        Ok(text)
    }
}

fn one(part: &str, service: &Service, port: u16) -> String {
    let h2 = service.speaks == Speaks::H2;
    let [a, b] = service.endpoints;
    let pass = if h2 { "grpc_pass grpc" } else { "proxy_pass http" };
    let envoy = if h2 {
        "http2_protocol_options: { initial_stream_window_size: 1048576, initial_connection_window_size: 4194304 }"
    } else {
        "http_protocol_options: { enable_trailers: true }"
    };
    part.replace("{{name}}", &service.name)
        .replace("{{a}}", &a.to_string())
        .replace("{{b}}", &b.to_string())
        .replace("{{a_port}}", &a.port().to_string())
        .replace("{{b_port}}", &b.port().to_string())
        .replace("{{port}}", &port.to_string())
        .replace("{{protocol}}", if h2 { "http2" } else { "http1" })
        .replace("{{proto}}", if h2 { "proto h2" } else { "" })
        .replace("{{pass}}", pass)
        .replace("{{envoy}}", envoy)
}

impl Gateway {
    fn wait(&mut self) -> Result<()> {
        let until = Instant::now() + Duration::from_secs(60);
        let port = self.ports.values().next().copied().filter(|_| self.kind == Kind::Floor).unwrap_or(self.http);
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            if let Some(status) = self.child.try_wait()? {
                bail!("ended with {status}");
            }
            if Instant::now() > until {
                bail!("does not listen after 60 s");
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        std::thread::sleep(Duration::from_millis(200));
        self.watch = stats::family(self.child.id());
        Ok(())
    }

    /// Where a service is reached, and the server name to ask for.
    pub(crate) fn door(&self, service: &Service) -> Result<(SocketAddr, ServerName<'static>)> {
        let port = self.ports.get(&service.name).copied().unwrap_or(self.http);
        let by_name = service.speaks == Speaks::Bytes && self.kind == Kind::Isthmus;
        let name = if by_name { service.host() } else { GATEWAY.to_owned() };
        Ok((SocketAddr::from(([127, 0, 0, 1], port)), ServerName::try_from(name)?))
    }
}
