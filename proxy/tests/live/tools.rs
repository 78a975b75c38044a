//! `isthmus probe` and `isthmus check` as people run them, against a gateway in this process.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, SystemTime};

use isthmus::tls::mint::{self, Usage, Validity};
use serde_json::Value;
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::Command;

use crate::mount::Mount;
use crate::world::{self, Cluster, DAY, anchor, files, gateway_of, issuer, pair, workload_of};

/// What a command came to.
struct Ran {
    code: Option<i32>,
    out: String,
    err: String,
}

async fn isthmus(args: &[&str]) -> Ran {
    let ran = Command::new(env!("CARGO_BIN_EXE_isthmus")).args(args).stdin(Stdio::null()).output().await.unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    Ran { code: ran.status.code(), out: text(ran.stdout), err: text(ran.stderr) }
}

/// A gateway, and what a mirror of another cluster has in its folder.
struct Scene {
    east: Cluster,
    folder: TempDir,
    gateway: world::Pair,
    bundle: String,
}

impl Scene {
    async fn new() -> Self {
        let anchor = anchor("root.linkerd.cluster.local");
        let gateway = pair(&issuer(&anchor), &gateway_of("east"), DAY);
        let bundle = anchor.cert_pem();
        let mount = Mount::new(&files(&gateway, &bundle, None));
        let east = Cluster::start("east", mount, "", &world::web("web").await).await;
        let folder = TempDir::new().unwrap();
        let mirror = pair(&issuer(&anchor), &workload_of("west"), DAY);
        let other = world::anchor("root.elsewhere");
        let stranger = pair(&other, &workload_of("west"), DAY);
        for (name, text) in [
            ("bundle.crt", bundle.as_str()),
            ("mirror.crt", &mirror.chain),
            ("mirror.key", mirror.key()),
            ("other.crt", &other.cert_pem()),
            ("stranger.crt", &stranger.chain),
            ("stranger.key", stranger.key()),
        ] {
            fs::write(folder.path().join(name), text).unwrap();
        }
        Self { east, folder, gateway, bundle }
    }

    fn path(&self, name: &str) -> String {
        self.folder.path().join(name).display().to_string()
    }

    fn probe(&self) -> String {
        format!("east={}", self.east.app.addrs.probe)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_probe_says_which_step_failed() {
    let scene = Scene::new().await;
    let (probe, identity) = (scene.probe(), gateway_of("east").to_string());
    let (bundle, other) = (scene.path("bundle.crt"), scene.path("other.crt"));
    let (cert, key) = (scene.path("mirror.crt"), scene.path("mirror.key"));
    let (strange_cert, strange_key) = (scene.path("stranger.crt"), scene.path("stranger.key"));
    let wrong = gateway_of("west").to_string();
    let mirror = ["--bundle", &bundle, "--cert", &cert, "--key", &key, "--identity", &identity];
    let with = |more: &[&str]| [&mirror[..], more].concat().iter().map(ToString::to_string).collect::<Vec<_>>();
    let plain = |args: &[&str]| args.iter().map(ToString::to_string).collect::<Vec<_>>();
    for (target, args, code, wanted) in [
        (probe.as_str(), with(&[]), 0, "east     True"),
        (&probe, with(&["--mode", "h1", "--count", "3", "--period", "10ms"]), 0, "east     True"),
        (&probe, with(&["--path", "/nowhere"]), 1, "status: 404"),
        ("nobody.invalid", with(&[]), 1, "name: nobody.invalid cannot be resolved"),
        ("127.0.0.1:1", with(&[]), 1, "connect: 127.0.0.1:1 refuses the connection"),
        (&probe, with(&["--server-name", "else.where"]), 1, "tls: the gateway closed the connection without a word"),
        (&probe, plain(&["--bundle", &bundle, "--identity", &identity]), 1, "none was shown (--cert, --key)"),
        (
            &probe,
            plain(&["--bundle", &bundle, "--cert", &strange_cert, "--key", &strange_key, "--identity", &identity]),
            1,
            "the gateway refuses the certificate that was shown, with the alert UnknownCA",
        ),
        (
            &probe,
            plain(&["--bundle", &other, "--cert", &cert, "--key", &key, "--identity", &identity]),
            1,
            "is neither in the chain nor in the bundle; the bundle holds 'CN=root.elsewhere'",
        ),
        (
            &probe,
            plain(&[
                "--bundle",
                &bundle,
                "--cert",
                &cert,
                "--key",
                &key,
                "--identity",
                &wrong,
                "--server-name",
                &identity,
            ]),
            1,
            "', signed by the trusted root 'CN=root.linkerd.cluster.local'",
        ),
        (&probe, plain(&["--mode", "plaintext", "--timeout", "2s"]), 1, "http: "),
        (&probe, plain(&[]), 64, "--bundle is needed"),
        ("no target", with(&[]), 64, "is no target"),
    ] {
        let args: Vec<&str> = ["probe", target].into_iter().chain(args.iter().map(String::as_str)).collect();
        // A gateway's no may cross the first bytes of the probe: then the pipe breaks before the alert is read, and only
        // another try can tell.
        let mut tries = 0;
        loop {
            tries += 1;
            let ran = isthmus(&args).await;
            let said = ran.out + &ran.err;
            if said.contains("broken pipe") && !said.contains(wanted) && tries < 10 {
                continue;
            }
            assert!(ran.code == Some(code) && said.contains(wanted), "{args:?}: {:?}\n{said}", ran.code);
            break;
        }
    }
    let ran = isthmus(&[&["probe", &probe, "-o", "json"], &mirror[..]].concat()).await;
    let rows: Value = serde_json::from_str(&ran.out).unwrap();
    assert_eq!((&rows[0]["clusterName"], &rows[0]["alive"]), (&Value::from("east"), &Value::from(true)));
}

/// In a pipe `--watch` says one line for each change.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_in_a_pipe_tells_changes() {
    let scene = Scene::new().await;
    let identity = gateway_of("east").to_string();
    let mut child = Command::new(env!("CARGO_BIN_EXE_isthmus"))
        .args(["probe", &scene.probe(), "--watch", "--period", "50ms", "--timeout", "2s", "--failures", "2"])
        .args(["--bundle", &scene.path("bundle.crt"), "--cert", &scene.path("mirror.crt")])
        .args(["--key", &scene.path("mirror.key"), "--identity", &identity])
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut next = async || {
        let line = tokio::time::timeout(Duration::from_secs(10), lines.next_line()).await;
        line.expect("a line in time").unwrap().expect("a line")
    };
    assert!(next().await.contains(" east alive "));
    let drained = scene.east.app.drain(Duration::from_secs(2), Duration::from_secs(3), std::future::pending());
    let told = async {
        let mut line = next().await;
        while !line.contains(" east dead ") {
            assert!(line.contains(" east failing "), "{line}");
            line = next().await;
        }
        assert!(line.contains("status: 503"), "{line}");
    };
    tokio::join!(drained, told);
}

/// A configuration file beside the scene's own.
fn config(scene: &Scene, tls: &Path, ports: [u16; 3], rest: &str) -> PathBuf {
    let path = scene.folder.path().join("check.yaml");
    let [gateway, probe, admin] = ports;
    let tls = tls.display();
    let text = format!(
        "
accept: {{ listen: '127.0.0.1:{gateway}', max_connections: 100 }}
probe: {{ listen: '127.0.0.1:{probe}' }}
admin: {{ listen: '127.0.0.1:{admin}' }}
tls: {{ chain_file: {tls}/tls.crt, key_file: {tls}/tls.key, bundle_file: {tls}/ca.crt }}
sources: {{ dns: {{ enabled: false }} }}
{rest}
"
    );
    fs::write(&path, text).unwrap();
    path
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_check_tells_what_is_wrong_and_what_to_do() {
    let scene = Scene::new().await;
    let addrs = scene.east.app.addrs;
    let ports = [addrs.gateway.port(), addrs.probe.port(), addrs.admin.port()];
    let good = config(&scene, scene.east.mount.path(), ports, "").display().to_string();
    let identity = gateway_of("east").to_string();
    let (bundle, other) = (scene.path("bundle.crt"), scene.path("other.crt"));

    let base = ["check", "--config", &good];
    let probe = addrs.probe.to_string();
    let all_well = ["--gateway-identity", &identity, "--peer-bundle", &bundle, "--address", &probe];
    let ran = isthmus(&[&base[..], &all_well].concat()).await;
    for line in [
        "√ the gateway is who mirrors expect",
        "√ accept.listen",
        "is answered by the gateway",
        "says yes over mutual TLS, as a mirror asks",
        "shares a trust anchor with the gateway's bundle: 'CN=root.linkerd.cluster.local'",
        "Status check results are √",
    ] {
        assert!(ran.out.contains(line), "{line}\n{}", ran.out);
    }
    assert_eq!(ran.code, Some(0));

    let ran =
        isthmus(&[&base[..], &["--peer-bundle", &other, "--gateway-identity", "a.b", "-o", "short"]].concat()).await;
    assert_eq!(ran.code, Some(1));
    assert!(!ran.out.contains('√'), "{}", ran.out);
    assert!(ran.out.contains("ours: 'CN=root.linkerd.cluster.local'; theirs: 'CN=root.elsewhere'"), "{}", ran.out);
    assert!(ran.out.contains("the certificate names 'gateway.east."), "{}", ran.out);

    let ran = isthmus(&[&base[..], &["-o", "json"]].concat()).await;
    let json: Value = serde_json::from_str(&ran.out).unwrap();
    assert_eq!(json["success"], true);
    assert_eq!(json["categories"][0]["categoryName"], "configuration");

    assert!(isthmus(&["check", "--config", "/nowhere.yaml"]).await.out.contains("× the configuration can be used"));
}

/// Files that a gateway would refuse, and the line that says so.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_check_judges_files() {
    let scene = Scene::new().await;
    let tls = scene.folder.path().join("tls");
    fs::create_dir(&tls).unwrap();
    let write = |name: &str, text: &str| fs::write(tls.join(name), text).unwrap();
    let now = SystemTime::now();
    let anchor = anchor("root.linkerd.cluster.local");
    let leaf = |validity| mint::leaf(&anchor, &[gateway_of("east")], validity, Usage::Both).unwrap();
    let from = |begin: SystemTime, end: SystemTime| leaf(Validity { not_before: begin, not_after: end });
    let hour = Duration::from_secs(3600);
    let good = from(now - hour, now + DAY);
    for (chain, key, bundle, wanted) in [
        (good.cert_pem(), good.key_pem.clone(), anchor.cert_pem(), "√ the certificate is valid to"),
        (good.cert_pem(), scene.gateway.key().to_owned(), anchor.cert_pem(), "must be replaced together"),
        (good.cert_pem(), good.key_pem.clone(), scene.bundle.clone(), "roots of the same name"),
        (String::new(), good.key_pem.clone(), anchor.cert_pem(), "tls.crt: is empty"),
    ] {
        write("tls.crt", &chain);
        write("tls.key", &key);
        write("ca.crt", &bundle);
        let path = config(&scene, &tls, [1043, 1044, 1045], "").display().to_string();
        let ran = isthmus(&["check", "--config", &path]).await;
        assert!(ran.out.contains(wanted), "{wanted}:\n{}", ran.out);
        assert_eq!(ran.code == Some(0), wanted.starts_with('√'), "{}", ran.out);
    }
    for (leaf, wanted) in [
        (from(now + hour, now + DAY), "× this host's clock agrees"),
        (from(now - DAY, now + hour), "less than a fifth of its life"),
        (from(now - DAY, now - hour), "expired at"),
    ] {
        write("tls.crt", &leaf.cert_pem());
        write("tls.key", &leaf.key_pem);
        write("ca.crt", &anchor.cert_pem());
        let path = config(&scene, &tls, [1043, 1044, 1045], "").display().to_string();
        let ran = isthmus(&["check", "--config", &path]).await;
        assert!(ran.out.contains(wanted), "{wanted}:\n{}", ran.out);
    }
    let path = config(&scene, &tls, [1043, 1044, 1045], "http: { max_streams: 0 }").display().to_string();
    assert!(isthmus(&["check", "--config", &path]).await.out.contains("http.max_streams"));
}
