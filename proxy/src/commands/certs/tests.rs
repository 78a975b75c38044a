//! The command as a person types it, in a directory of its own, and openssl looking over its shoulder.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::process::Command as Process;

use clap::Parser;
use serde_json::Value;

use super::*;

#[derive(Parser)]
struct Cli {
    #[command(flatten)]
    args: Args,
}

const ID: &str = "gateway.multicluster.serviceaccount.identity.linkerd.cluster.local";

struct Desk(tempfile::TempDir);

impl Desk {
    /// A directory with what the installation guide makes.
    fn furnished() -> Self {
        let desk = Self::new();
        desk.ok("anchor root.linkerd.cluster.local @ca.crt @ca.key");
        desk.ok("issuer identity.linkerd.cluster.local @issuer.crt @issuer.key --ca @ca.crt --ca-key @ca.key");
        desk.ok(&format!("leaf @leaf.crt @leaf.key --identity {ID} --ca @issuer.crt --ca-key @issuer.key"));
        desk
    }

    fn new() -> Self {
        Self(tempfile::tempdir().expect("a directory"))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).expect("a file")
    }

    /// Runs a command line, in which @ stands for the directory.
    fn run(&self, line: &str) -> anyhow::Result<(u8, String)> {
        let dir = format!("{}/", self.0.path().display());
        let words = line.split_whitespace().map(|word| match word.strip_prefix('@') {
            Some(name) => format!("{dir}{name}"),
            None => word.to_owned(),
        });
        let cli = Cli::try_parse_from(std::iter::once("certs".to_owned()).chain(words))?;
        let mut out = Vec::new();
        let code = exit_code(cli.args, &mut out)?;
        Ok((code, String::from_utf8(out).expect("text").replace(&dir, "")))
    }

    fn ok(&self, line: &str) -> String {
        let (code, text) = self.run(line).unwrap_or_else(|error| panic!("{line}: {error:#}"));
        assert_eq!(code, 0, "{line}: {text}");
        text
    }

    fn error(&self, line: &str) -> String {
        format!("{:#}", self.run(line).expect_err(line))
    }

    fn openssl(&self, line: &str) -> (bool, String) {
        let output = Process::new("openssl")
            .args(line.split_whitespace())
            .current_dir(self.0.path())
            .output()
            .expect("openssl is installed");
        let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        (output.status.success(), text)
    }
}

#[test]
fn what_is_made_is_taken_by_openssl() {
    let desk = Desk::furnished();
    for purpose in ["sslserver", "sslclient"] {
        let line = format!("verify -x509_strict -purpose {purpose} -CAfile ca.crt -untrusted leaf.crt leaf.crt");
        assert_eq!(desk.openssl(&line), (true, "leaf.crt: OK\n".into()));
    }
    desk.ok("crl @crl.pem --ca @issuer.crt --ca-key @issuer.key --revoke @leaf.crt");
    desk.ok("crl @root-crl.pem --ca @ca.crt --ca-key @ca.key");
    fs::write(desk.path("crls.pem"), desk.read("crl.pem") + &desk.read("root-crl.pem")).expect("writes");
    let (ok, text) =
        desk.openssl("verify -crl_check_all -CRLfile crls.pem -CAfile ca.crt -untrusted leaf.crt leaf.crt");
    assert!(!ok && text.contains("certificate revoked"), "{text}");
    let (ok, text) = desk.openssl("x509 -in leaf.crt -noout -text");
    assert!(ok && text.contains("Digital Signature, Key Encipherment") && text.contains("id-ecPublicKey"), "{text}");
    assert!(text.contains("TLS Web Server Authentication, TLS Web Client Authentication"), "{text}");
    assert!(desk.openssl("pkey -in leaf.key -noout").0);
    desk.ok(&format!("csr @leaf.csr @csr.key --identity {ID}"));
    let (ok, text) = desk.openssl("req -in leaf.csr -noout -verify -subject");
    assert!(ok && text.contains("verify OK"), "{text}");
    desk.ok("leaf @signed.crt --csr @leaf.csr --ca @issuer.crt --ca-key @issuer.key");
    assert!(desk.openssl("verify -CAfile ca.crt -untrusted signed.crt signed.crt").0);
}

#[test]
fn what_openssl_makes_is_taken() {
    let desk = Desk::new();
    let config = "[req]\ndistinguished_name=dn\n[dn]\n[ca]\nbasicConstraints=critical,CA:TRUE\nkeyUsage=critical,\
                  keyCertSign,cRLSign\nsubjectKeyIdentifier=hash\n[leaf]\nsubjectAltName=URI:spiffe://west.example/web\n\
                  authorityKeyIdentifier=keyid\n";
    fs::write(desk.path("x.cnf"), config).expect("writes");
    for line in [
        "ecparam -name prime256v1 -genkey -noout -out root.key",
        "req -x509 -new -key root.key -subj /O=Acme/CN=root -days 30 -config x.cnf -extensions ca -out root.crt",
        "ecparam -name prime256v1 -genkey -noout -out web.key",
        "req -new -key web.key -subj /CN=ignored -config x.cnf -out web.csr",
        "x509 -req -in web.csr -CA root.crt -CAkey root.key -CAcreateserial -days 10 -extfile x.cnf -extensions leaf \
         -out web.crt",
    ] {
        let (ok, text) = desk.openssl(line);
        assert!(ok, "{line}: {text}");
    }
    let text = desk.ok("verify --bundle @root.crt --cert @web.crt --identity spiffe://west.example/web");
    assert!(text.contains("as a client: accepted") && text.contains("as a server: accepted"), "{text}");
    // Its root, with a key in SEC 1, can sign here too.
    desk.ok(&format!("leaf @l.crt @l.key --identity {ID} --ca @root.crt --ca-key @root.key"));
    assert!(desk.openssl("verify -CAfile root.crt l.crt").0);
    let error = desk.error("leaf @m.crt --csr @web.csr --ca @root.crt --ca-key @root.key");
    assert!(error.contains("no name"), "{error}");
}

#[test]
fn files_are_guarded() {
    let desk = Desk::furnished();
    let mode = |name: &str| fs::metadata(desk.path(name)).expect("a file").permissions().mode() & 0o777;
    assert_eq!((mode("ca.key"), mode("leaf.key")), (0o600, 0o600));
    assert!(desk.read("ca.key").starts_with("-----BEGIN PRIVATE KEY-----"), "PKCS#8");
    let before = desk.read("ca.crt");
    assert!(desk.error("anchor other @ca.crt @new.key").contains("--force"));
    assert!(!desk.path("new.key").exists(), "all or nothing");
    assert_eq!(desk.read("ca.crt"), before);
    fs::set_permissions(desk.path("ca.key"), fs::Permissions::from_mode(0o644)).expect("changes");
    desk.ok("anchor other @ca.crt @ca.key --force");
    assert!(desk.read("ca.crt") != before && mode("ca.key") == 0o600);
    assert!(desk.error("anchor x @a @a").contains("twice"));
    assert_eq!(fs::read_dir(desk.0.path()).expect("lists").count(), 6, "nothing is left lying about");
}

#[test]
fn mistakes_are_told() {
    let desk = Desk::furnished();
    for (line, want) in [
        (format!("leaf @x.crt @x.key --identity {ID} --ca @leaf.crt --ca-key @leaf.key"), "no CA's certificate"),
        (format!("leaf @x.crt @x.key --identity {ID} --ca @issuer.crt --ca-key @ca.key"), "does not belong"),
        ("issuer sub @x.crt @x.key --ca @issuer.crt --ca-key @issuer.key".into(), "path length 0"),
        (format!("anchor {ID} @x.crt @x.key"), "1 to 64 characters"),
        ("leaf @x.crt @x.key --identity 10.0.0.1 --ca @ca.crt --ca-key @ca.key".into(), "invalid value"),
        ("anchor x @x.crt @x.key --valid-for 10".into(), "write 90d, 24h"),
        ("bundle @ca.crt @leaf.crt".into(), "no CA's certificate"),
        ("bundle @ca.key".into(), "no certificate"),
        ("show @ca.key".into(), "no certificate"),
        ("show @none".into(), "cannot be read"),
        ("crl @x.crl --ca @ca.crt --ca-key @ca.key --revoke @leaf.crt".into(), "only that CA can revoke it"),
        ("crl @x.crl --ca @ca.crt --ca-key @ca.key --revoke xyz".into(), "neither a file nor a serial number"),
    ] {
        let error = desk.error(&line);
        assert!(error.contains(want), "{line}: {error}");
    }
}

#[test]
fn bundles_hold_each_root_once_and_say_what_it_is() {
    let desk = Desk::furnished();
    desk.ok("anchor root.linkerd.cluster.local @west.crt @west.key");
    fs::write(desk.path("noted.crt"), "# the east's, since 2026\n".to_owned() + &desk.read("ca.crt")).expect("writes");
    let text = desk.ok("bundle @ca.crt @west.crt @noted.crt");
    assert_eq!(text.matches("BEGIN CERTIFICATE").count(), 2, "{text}");
    for want in
        ["# the east's, since 2026\n", "# root: CN=root.linkerd.cluster.local\n", "# sha256: ", "# from: ca.crt\n"]
    {
        assert!(text.contains(want), "{want} in {text}");
    }
    let said = desk.ok("bundle @ca.crt @west.crt @noted.crt --out @bundle.crt");
    assert!(said.contains("2 roots, 1 duplicates dropped") && said.contains("share a name"), "{said}");
    // Merging again changes nothing but the origins; comments do not pile up.
    let again = desk.ok("bundle @bundle.crt @bundle.crt").replace("# from: bundle.crt", "");
    assert_eq!(again.lines().count(), desk.read("bundle.crt").lines().count());
    assert!(desk.openssl("verify -CAfile bundle.crt -untrusted leaf.crt leaf.crt").0);
    desk.ok("verify --bundle @bundle.crt --cert @leaf.crt");
}

#[test]
fn bundles_come_out_of_clusters() {
    let desk = Desk::furnished();
    let indent = |text: &str, by: &str| text.lines().map(|line| format!("{by}{line}\n")).collect::<String>();
    let config = format!(
        "apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: linkerd-config\n  namespace: linkerd\ndata:\n  values: |\n    \
         identity:\n      issuer:\n        tls:\n          crtPEM: |\n{}    identityTrustAnchorsPEM: |\n{}",
        indent(&desk.read("issuer.crt"), "            "),
        indent(&desk.read("ca.crt"), "      "),
    );
    fs::write(desk.path("config.yaml"), config).expect("writes");
    let text = desk.ok("bundle @config.yaml");
    assert!(text.contains("# from: config.yaml: ConfigMap linkerd/linkerd-config values.identityTrustAnchorsPEM"));
    assert_eq!(text.matches("BEGIN CERTIFICATE").count(), 1, "the issuer is no anchor");
    desk.ok("verify --bundle @config.yaml --cert @leaf.crt");
    let secret = format!(
        "kind: Secret\nmetadata: {{name: gw, namespace: mc}}\nstringData:\n  tls.crt: |\n{}  ca.crt: |\n{}",
        indent(&desk.read("leaf.crt"), "    "),
        indent(&desk.read("ca.crt"), "    ")
    );
    fs::write(desk.path("secret.yaml"), secret).expect("writes");
    desk.ok("verify --bundle @secret.yaml --cert @secret.yaml");
}

#[test]
fn tables_and_warnings() {
    let desk = Desk::furnished();
    let (code, text) = desk.run("show @leaf.crt @ca.crt --colour never").expect("shows");
    assert_eq!(code, 2, "a leaf of a day ends within a month");
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines.len(), 4, "{text}");
    assert!(lines[0].starts_with("SUBJECT") && lines[0].ends_with("FROM"), "{text}");
    assert!(lines[1].starts_with('-') && lines[1].contains(ID) && lines[1].contains(" 23 h "), "{text}");
    assert!(lines[3].contains("itself") && lines[3].contains("ECDSA P-256") && lines[3].ends_with("ca.crt"), "{text}");
    let (_, text) = desk.run("show @leaf.crt --colour always").expect("shows");
    assert!(text.lines().nth(1).is_some_and(|line| line.starts_with("\x1b[33m")), "{text}");
    desk.ok("show @ca.crt");
    desk.ok("show @leaf.crt --warn-days 0");
    let (_, text) = desk.run("show @leaf.crt -o json").expect("shows");
    let json: Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!((&json[0]["identity"], &json[0]["ca"], &json[1]["ca"]), (&ID.into(), &false.into(), &true.into()));
    desk.ok("crl @crl.pem --ca @issuer.crt --ca-key @issuer.key --revoke 0a:0b");
    desk.ok("crl @next.pem --ca @issuer.crt --ca-key @issuer.key --revoke @leaf.crt --previous @crl.pem");
    let text = desk.ok("show @next.pem --warn-days 1");
    assert!(text.starts_with("CRL OF") && text.contains("CN=identity.linkerd.cluster.local"), "{text}");
    let (_, text) = desk.run("show @next.pem -o json").expect("shows");
    let json: Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!(json[0]["revoked"], 2);
    desk.ok(&format!("csr @l.csr @l.key --identity {ID} --identity spiffe://a.example/b"));
    assert!(desk.ok("show @l.csr").contains("uri:spiffe://a.example/b"));
}

#[test]
fn the_link_that_fails_is_named() {
    let desk = Desk::furnished();
    desk.ok("anchor root.linkerd.cluster.local @west.crt @west.key");
    desk.ok("anchor elsewhere @else.crt @else.key");
    let text = desk.ok("verify --bundle @ca.crt --cert @leaf.crt --for client");
    let lines: Vec<&str> = text.lines().map(str::trim).collect();
    assert_eq!(lines.len(), 4, "{text}");
    assert!(lines[3].starts_with("ok: CN=root.linkerd.cluster.local") && lines[3].ends_with("in the bundle"), "{text}");
    fs::write(
        desk.path("alone.crt"),
        desk.read("leaf.crt").split_inclusive("-----END CERTIFICATE-----\n").next().unwrap(),
    )
    .expect("writes");
    desk.ok("crl @crl.pem --ca @ca.crt --ca-key @ca.key --revoke @issuer.crt");
    desk.ok(&format!("leaf @c.crt @c.key --identity {ID} --ca @issuer.crt --ca-key @issuer.key --for client"));
    for (line, place, want) in [
        ("verify --bundle @west.crt --cert @leaf.crt", 1, "is at hand in name only: 1 of that name"),
        ("verify --bundle @else.crt --cert @leaf.crt", 1, "is neither in the chain nor in the bundle"),
        ("verify --bundle @ca.crt --cert @alone.crt", 0, "is neither in the chain nor in the bundle"),
        ("verify --bundle @ca.crt --cert @leaf.crt --crl @crl.pem", 1, "revoked at"),
        ("verify --bundle @ca.crt --cert @leaf.crt --identity other.example", 0, "not 'other.example'"),
        ("verify --bundle @ca.crt --cert @c.crt --for server", 0, "does not allow this use"),
    ] {
        let (code, text) = desk.run(line).expect(line);
        assert!(code == 1 && text.contains("refused, tls."), "{line}: {text}");
        let (_, json) = desk.run(&format!("{line} -o json")).expect(line);
        let json: Value = serde_json::from_str(&json).expect("JSON");
        let problem = json[0]["chain"][place]["problem"].as_str().unwrap_or_default();
        assert!(problem.contains(want), "{line}: {json:#}");
    }
    // A client's certificate, asked both ways: one passes, the other tells why not.
    let (code, text) = desk.run("verify --bundle @ca.crt --cert @c.crt").expect("verifies");
    assert!(code == 1 && text.contains("client: accepted") && text.contains("server: refused"), "{text}");
}

#[test]
fn lengths_of_time() {
    for (text, want) in [
        ("24h", Some(86_400)),
        ("1d12h", Some(129_600)),
        ("90s", Some(90)),
        ("", None),
        ("0d", None),
        ("1", None),
        ("d", None),
        ("1y", None),
        ("99999999999999999999d", None),
        ("40000d", None),
    ] {
        assert_eq!(duration(text).ok().map(|length| length.as_secs()), want, "{text}");
    }
}
