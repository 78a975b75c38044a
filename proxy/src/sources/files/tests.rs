//! Files as they are found in the world: whole, half written, hostile, swapped as kubelet does it.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tempfile::TempDir;

use super::credentials::CredentialFiles;
use super::*;
use crate::identity::Identity;
use crate::live::Live;
use crate::tls::mint::{self, Authority, Leaf, Usage, Validity};
use crate::tls::{Credentials, credentials, pem};

const DAY: Duration = Duration::from_secs(86_400);
const GATEWAY: &str = "gateway.mc.serviceaccount.identity.linkerd.cluster.local";

fn anchor(name: &str) -> Authority {
    mint::anchor(name, Validity::from_now(SystemTime::now(), DAY)).unwrap()
}

fn leaf(by: &Authority, validity: Validity) -> Leaf {
    mint::leaf(by, &[Identity::parse(GATEWAY).unwrap()], validity, Usage::Both).unwrap()
}

fn today() -> Validity {
    Validity::from_now(SystemTime::now(), DAY)
}

/// A folder with good files.
struct Mount {
    folder: TempDir,
    anchor: Authority,
}

impl Mount {
    fn new() -> Self {
        let mount = Self { folder: TempDir::new().unwrap(), anchor: anchor("root.linkerd.cluster.local") };
        let leaf = leaf(&mount.anchor, today());
        mount.write("tls.crt", leaf.cert_pem());
        mount.write("tls.key", leaf.key_pem);
        mount.write("ca.crt", mount.anchor.cert_pem());
        mount.write("ca.crl", mount.crl(SystemTime::now() + DAY));
        mount
    }

    fn crl(&self, next: SystemTime) -> String {
        let list = mint::crl(&self.anchor, &[], SystemTime::now() - DAY, next).unwrap();
        pem::section("X509 CRL", &list)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn write(&self, name: &str, contents: impl AsRef<[u8]>) {
        fs::write(self.path(name), contents).unwrap();
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap()
    }

    fn files(&self) -> CredentialFiles {
        CredentialFiles {
            chain: self.path("tls.crt"),
            key: self.path("tls.key"),
            bundle: self.path("ca.crt"),
            crls: vec![self.path("ca.crl")],
            settings: credentials::Settings::default(),
        }
    }
}

/// What an operator reads for each way in which files can be wrong.
#[test]
fn each_wrong_set_has_its_message() {
    type Break = fn(&Mount);
    let cut = |mount: &Mount, name: &str, part: usize| {
        let text = mount.read(name);
        mount.write(name, &text[..text.len() * part / 10]);
    };
    let past = || Validity { not_before: SystemTime::now() - DAY * 2, not_after: SystemTime::now() - DAY };
    let table: &[(&str, Break, &str)] = &[
        ("tls.crt", |m| fs::remove_file(m.path("tls.crt")).unwrap(), "there is no such file"),
        ("tls.crt", |m| m.write("tls.crt", ""), "is empty"),
        ("tls.key", |m| m.write("tls.key", ""), "is empty"),
        ("ca.crt", |m| m.write("ca.crt", ""), "is empty"),
        ("ca.crl", |m| m.write("ca.crl", ""), "is empty"),
        ("ca.crt", |m| m.write("ca.crt", "# to be filled in\n"), "holds no certificate"),
        ("tls.key", |m| m.write("tls.key", "no key yet\n"), "holds no private key"),
        ("ca.crl", |m| m.write("ca.crl", "nothing\n"), "holds no CRL"),
        ("tls.crt", |m| m.write("tls.crt", [0xff; 100]), "holds no certificate"),
        ("ca.crl", |m| m.write("ca.crl", [0x30; 100]), "not a certificate revocation list"),
        (
            "tls.crt",
            |m| {
                fs::remove_file(m.path("tls.crt")).unwrap();
                fs::create_dir(m.path("tls.crt")).unwrap();
            },
            "is a directory, not a file",
        ),
        (
            "ca.crt",
            |m| {
                fs::remove_file(m.path("ca.crt")).unwrap();
                symlink("/dev/zero", m.path("ca.crt")).unwrap();
            },
            "is a device, pipe or socket, not a file",
        ),
        (
            "ca.crt",
            |m| {
                fs::remove_file(m.path("ca.crt")).unwrap();
                symlink("ca.crt", m.path("ca.crt")).unwrap();
            },
            "cannot be read",
        ),
        (
            "tls.key",
            |m| m.write("tls.key", leaf(&m.anchor, today()).key_pem),
            "key and certificate must be replaced together",
        ),
        ("tls.crt", |m| m.write("ca.crt", anchor("another root").cert_pem()), "no trusted root leads to it"),
        (
            "tls.crt",
            |m| m.write("ca.crt", anchor("root.linkerd.cluster.local").cert_pem()),
            "the two sides have roots of the same name",
        ),
        ("tls.crt", |m| m.write("tls.crt", m.anchor.cert_pem()), "is a CA's"),
        ("ca.crt", |m| m.write("ca.crt", m.read("ca.crt") + &m.read("tls.crt")), "is no CA's"),
        (
            "tls.key",
            |m| {
                m.write("tls.key", "-----BEGIN ENCRYPTED PRIVATE KEY-----\nAA==\n-----END ENCRYPTED PRIVATE KEY-----\n")
            },
            "is encrypted",
        ),
        ("ca.crl", |m| m.write("ca.crl", m.read("tls.crt")), "holds no CRL"),
        ("ca.crl", |m| m.write("ca.crl", m.crl(SystemTime::now() - Duration::from_secs(60))), "due for renewal at"),
    ];
    for (file, break_it, message) in table {
        let mount = Mount::new();
        break_it(&mount);
        let wrong = load(&mount.files()).map(drop).unwrap_err();
        let blamed = if *message == "due for renewal at" { "tls.crt" } else { file };
        assert!(wrong.file.ends_with(blamed) && wrong.reason.contains(message), "{file}, {message}: {wrong}");
    }
    for (name, message) in [("tls.crt", "cut off"), ("tls.key", ""), ("ca.crt", "cut off"), ("ca.crl", "cut off")] {
        for part in 1..10 {
            let mount = Mount::new();
            cut(&mount, name, part);
            let wrong = load(&mount.files()).map(drop).unwrap_err();
            assert!(wrong.file.ends_with(name) && wrong.reason.contains(message), "{name} at {part}/10: {wrong}");
        }
    }
    let mount = Mount::new();
    let expired = leaf(&mount.anchor, past());
    mount.write("tls.crt", expired.cert_pem());
    mount.write("tls.key", expired.key_pem);
    let wrong = load(&mount.files()).map(drop).unwrap_err();
    assert!(wrong.file.ends_with("tls.crt") && wrong.reason.contains("expired at"), "{wrong}");
    assert!(load(&Mount::new().files()).is_ok());
}

#[test]
fn a_pipe_is_not_waited_for() {
    let mount = Mount::new();
    fs::remove_file(mount.path("tls.key")).unwrap();
    let made = std::process::Command::new("mkfifo").arg(mount.path("tls.key")).status().unwrap();
    assert!(made.success());
    let wrong = load(&mount.files()).map(drop).unwrap_err();
    assert!(wrong.reason.contains("pipe"), "{wrong}");
}

/// Waits for something that another thread is about to do.
async fn eventually(what: &str, is: impl Fn() -> bool) {
    for _ in 0..500 {
        if is() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("never: {what}");
}

fn watched(mount: &Mount, interval: Duration) -> (Arc<Live<Credentials>>, Source) {
    let (credentials, read) = load(&mount.files()).unwrap();
    let live = Arc::new(Live::new(credentials));
    let settings = Settings { interval, quiet: Duration::from_millis(20) };
    let source = watch(mount.files(), Arc::clone(&live), Some(read.digest), settings, Status::default());
    (live, source)
}

const NEVER: Duration = Duration::from_secs(3600);

#[tokio::test]
async fn a_bad_set_keeps_the_old_one_and_a_good_one_replaces_it() {
    let mount = Mount::new();
    let (live, source) = watched(&mount, NEVER);
    let problem = || source.status().read().problem.map(|problem| problem.wrong.to_string()).unwrap_or_default();
    let before = live.load().expires();

    let next = leaf(&mount.anchor, Validity::from_now(SystemTime::now(), DAY * 2));
    mount.write("tls.crt", next.cert_pem());
    eventually("the key's want is noticed", || problem().contains("must be replaced together")).await;
    assert_eq!((live.version(), live.load().expires()), (0, before));

    mount.write("tls.key", &next.key_pem);
    eventually("the pair is taken", || live.version() == 1).await;
    assert!(live.load().expires() > before);
    assert_eq!(problem(), "");

    mount.write("ca.crt", "");
    eventually("the emptied bundle is noticed", || problem().contains("ca.crt: is empty")).await;
    mount.write("ca.crt", mount.anchor.cert_pem());
    eventually("all is well again", || problem().is_empty()).await;
    let reload = source.status().read();
    assert_eq!((live.version(), reload.replaced), (1, 1), "what serves already is not replaced by itself");
    assert!(reload.refused >= 2, "{reload:?}");
}

/// What the system does not tell is found at the interval, and on demand.
#[tokio::test]
async fn the_interval_and_the_demand_find_what_no_notice_told_of() {
    let mount = Mount::new();
    // The files lie elsewhere than where they are watched: no notice comes.
    let elsewhere = TempDir::new().unwrap();
    let linked = |name: &str| {
        fs::rename(mount.path(name), elsewhere.path().join(name)).unwrap();
        symlink(elsewhere.path().join(name), mount.path(name)).unwrap();
    };
    ["tls.crt", "tls.key", "ca.crt", "ca.crl"].map(linked);
    let renew = || {
        let next = leaf(&mount.anchor, today());
        mount.write("tls.crt", next.cert_pem());
        mount.write("tls.key", next.key_pem);
    };
    let (live, _source) = watched(&mount, Duration::from_millis(50));
    renew();
    eventually("the interval", || live.version() > 0).await;

    let (live, source) = watched(&mount, NEVER);
    tokio::time::sleep(Duration::from_millis(100)).await;
    renew();
    source.reload();
    eventually("the demand", || live.version() > 0).await;
}

/// One version of the files as kubelet writes it: a directory of its own, and `..data` moved over to it.
fn publish(mount: &Path, version: &str, files: &[(&str, String)]) {
    let directory = mount.join(version);
    fs::create_dir(&directory).unwrap();
    for (name, contents) in files {
        fs::write(directory.join(name), contents).unwrap();
    }
    symlink(version, mount.join("..data_tmp")).unwrap();
    let old = fs::read_link(mount.join("..data")).ok();
    fs::rename(mount.join("..data_tmp"), mount.join("..data")).unwrap();
    for (name, _) in files {
        if fs::symlink_metadata(mount.join(name)).is_err() {
            symlink(Path::new("..data").join(name), mount.join(name)).unwrap();
        }
    }
    if let Some(old) = old {
        fs::remove_dir_all(mount.join(old)).unwrap();
    }
}

#[tokio::test]
async fn a_mount_is_swapped_as_kubelet_does() {
    let root = anchor("root.linkerd.cluster.local");
    let folder = TempDir::new().unwrap();
    let version = |number: usize| {
        let leaf = leaf(&root, today());
        let files = [("tls.crt", leaf.cert_pem()), ("tls.key", leaf.key_pem), ("ca.crt", root.cert_pem())];
        publish(folder.path(), &format!("..2026_11_20_14_00_00.{number:010}"), &files);
    };
    version(0);
    let files = CredentialFiles {
        chain: folder.path().join("tls.crt"),
        key: folder.path().join("tls.key"),
        bundle: folder.path().join("ca.crt"),
        crls: Vec::new(),
        settings: credentials::Settings::default(),
    };
    let (credentials, read) = load(&files).unwrap();
    let live = Arc::new(Live::new(credentials));
    let settings = Settings { interval: NEVER, quiet: Duration::from_millis(10) };
    let source = watch(files, Arc::clone(&live), Some(read.digest), settings, Status::default());
    for number in 1..=10 {
        version(number);
        eventually("the swap is found", || live.version() == number as u64).await;
    }
    let reload = source.status().read();
    assert_eq!((reload.replaced, reload.refused), (10, 0), "no half of a swap was ever judged: {reload:?}");
}
