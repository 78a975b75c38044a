//! `isthmus explain` and `isthmus policy` from outside: words in, words and exit code out.

use std::fs;
use std::path::Path;

use assert_cmd::Command;

const CONFIG: &str = "\
tls: { chain_file: a, key_file: b, bundle_file: c }
authorise:
  files: [policy.d/shop.yaml]
  rules:
    - name: nobody-resets
      services: ['*']
      http: { paths: [/admin/*] }
      action: deny
sources:
  services:
    - { name: cart.prod.svc.cluster.local, port: 80, exported: true, endpoints: [{ address: 10.0.0.1:80 }] }
    - { name: hidden.prod.svc.cluster.local, port: 80, endpoints: [{ address: 10.0.0.2:80 }] }
";

const SHOP: &str = "\
rules:
  - name: shop-reads-carts
    clients: ['*.shop.serviceaccount.identity.linkerd.*']
    services: [cart.prod.svc.cluster.local]
    http: { methods: [GET, HEAD], paths: [/v1/*] }
    action: allow
  - name: shop-asks
    clients: ['*.shop.serviceaccount.identity.linkerd.*']
    services: [cart.prod.svc.cluster.local]
    grpc: { service: acme.Carts, methods: [Ask] }
    action: allow
";

const CASES: &str = "\
cases:
  - { client: web.shop.serviceaccount.identity.linkerd.cluster.local, service: 'cart.prod.svc.cluster.local:80', path: /v1/1, expect: allow, rule: shop-reads-carts }
  - client: web.shop.serviceaccount.identity.linkerd.cluster.local
    service: cart.prod.svc.cluster.local:80
    path: /v1/1
    method: POST
    expect: allow
    because: the shop fills carts
  - { client: web.shop.serviceaccount.identity.linkerd.cluster.local, service: 'cart.prod.svc.cluster.local:80', path: /admin/x, expect: deny, code: authorise.denied }
";

const WEB: &str = "web.shop.serviceaccount.identity.linkerd.cluster.local";
const OWN: &str = "isthmus.mc.serviceaccount.identity.linkerd.cluster.local";
const CART: &str = "cart.prod.svc.cluster.local:80";

fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    fs::create_dir(folder.path().join("policy.d")).expect("a folder");
    for (name, text) in [("east.yaml", CONFIG), ("policy.d/shop.yaml", SHOP), ("cases.yaml", CASES)] {
        fs::write(folder.path().join(name), text).expect("written");
    }
    folder
}

/// Standard output, standard error, exit code.
fn isthmus(folder: &Path, args: &[&str]) -> (String, String, i32) {
    let mut command = Command::cargo_bin("isthmus").expect("the binary");
    let output = command.current_dir(folder).args(args).output().expect("it runs");
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).expect("text");
    (text(&output.stdout), text(&output.stderr), output.status.code().expect("an exit code"))
}

#[test]
fn a_decision_is_explained() {
    let folder = folder();
    let explain = |more: &[&str]| {
        let mut args = vec!["explain", "--config", "east.yaml", "--identity", OWN, "--client", WEB];
        args.extend(more);
        isthmus(folder.path(), &args)
    };
    for (more, first, code) in [
        (&["--service", CART, "--path", "/v1/7"][..], "admitted by rule shop-reads-carts", 0),
        (
            &["--service", CART, "--path", "/v1/7", "--method", "PUT"],
            "refused: no rule allows it (authorise.no_rule)",
            3,
        ),
        (
            &["--service", CART, "--path", "/v1/../admin/x"],
            "refused: the path has more than one reading under rule nobody-resets (authorise.ambiguous_path)",
            3,
        ),
        (&["--service", CART, "--grpc", "acme.Carts/Ask"], "admitted by rule shop-asks", 0),
        (
            &["--service", CART, "--grpc", "--path", "/acme.Carts/Tell"],
            "refused: no rule allows it (authorise.no_rule)",
            3,
        ),
        (&["--service", CART], "refused: denied by rule nobody-resets (authorise.denied)", 3),
        (
            &["--service", "hidden.prod.svc.cluster.local:80", "--path", "/"],
            "refused: the service is not exported (authorise.not_exported)",
            3,
        ),
        (
            &["--service", "hidden.prod.svc.cluster.local:80", "--path", "/", "--exported"],
            "refused: no rule allows it (authorise.no_rule)",
            3,
        ),
    ] {
        let (out, err, exit) = explain(more);
        assert_eq!((out.lines().next(), exit), (Some(first), code), "{more:?}: {out}{err}");
    }
    let (out, _, _) = explain(&["--service", CART, "--path", "/v2/7"]);
    assert!(out.contains("× shop-reads-carts (allow) does not hold"), "{out}");
    assert!(out.contains("    √ http.methods: GET is what it asks for (GET, HEAD)"), "{out}");
    assert!(out.contains("    × http.paths: /v2/7 is not what it asks for (/v1/*)"), "{out}");
    let (out, _, exit) = explain(&["--service", CART, "--path", "/v1/7", "-o", "json"]);
    let json: serde_json::Value = serde_json::from_str(&out).expect("JSON");
    assert_eq!((&json["admitted"], json["rules"].as_array().map(Vec::len), exit), (&true.into(), Some(3), 0));
}

#[test]
fn wrong_words_and_wrong_files() {
    let folder = folder();
    let here = folder.path();
    let table: [(&[&str], i32, &str); 8] = [
        (&["explain", "--client", WEB, "--service", CART], 64, "--config"),
        (
            &["explain", "--config", "east.yaml", "--admin", "x", "--client", WEB, "--service", CART],
            64,
            "cannot be used with",
        ),
        (
            &["explain", "--config", "none.yaml", "--client", WEB, "--service", CART],
            64,
            "none.yaml: there is no such file",
        ),
        (&["explain", "--config", "east.yaml", "--client", "no body", "--service", CART], 64, "is no identity"),
        (&["explain", "--config", "east.yaml", "--client", WEB, "--service", "cart"], 64, "is no name:port"),
        // Without the gateway's identity nobody knows what the last `*` stands for.
        (
            &["explain", "--config", "east.yaml", "--client", WEB, "--service", CART],
            64,
            "policy.d/shop.yaml:3:15: rules[0].clients[0]: ",
        ),
        (
            &["explain", "--admin", "127.0.0.1:1", "--client", WEB, "--service", CART],
            1,
            "nobody answers at http://127.0.0.1:1",
        ),
        (&["policy", "suggest", "--log", "none.json"], 1, "none.json cannot be opened"),
    ];
    for (args, code, told) in table {
        let (out, err, exit) = isthmus(here, args);
        assert!(exit == code && err.contains(told), "{args:?}: {exit} {out}{err}");
    }
    fs::write(here.join("policy.d/shop.yaml"), SHOP.replace("methods: [GET", "methods: [GTE")).expect("written");
    let (_, err, exit) =
        isthmus(here, &["explain", "--config", "east.yaml", "--identity", OWN, "--client", WEB, "--service", CART]);
    let told = "isthmus: policy.d/shop.yaml:5:23: rules[0].http.methods[0]: \"GTE\": not a method: methods are written in capitals; \
                did you mean \"GET\"?\n";
    assert_eq!((err.as_str(), exit), (told, 64));
    let (_, err, exit) = isthmus(here, &["policy", "test", "cases.yaml", "--config", "east.yaml", "--identity", OWN]);
    assert_eq!((err.as_str(), exit), (told, 64));
}

#[test]
fn expectations() {
    let folder = folder();
    let test = || isthmus(folder.path(), &["policy", "test", "cases.yaml", "--config", "east.yaml", "--identity", OWN]);
    let (out, err, exit) = test();
    let told = "cases.yaml:3:5: expected allow, but it is deny (authorise.no_rule); expected because the shop fills carts\n\
                2 of 3 cases come out as expected\n";
    assert_eq!((out.as_str(), exit), (told, 3), "{err}");
    fs::write(folder.path().join("policy.d/shop.yaml"), SHOP.replace("[GET,", "[POST, GET,")).expect("written");
    let (out, _, exit) = test();
    assert_eq!((out.as_str(), exit), ("3 of 3 cases come out as expected\n", 0));
    fs::write(folder.path().join("cases.yaml"), CASES.replace("expect: allow, rule", "expect: alow, rule"))
        .expect("written");
    let (_, err, exit) = test();
    assert!(err.ends_with("cases[0].expect: \"alow\": not one of allow, deny; did you mean \"allow\"?\n"), "{err}");
    assert_eq!(exit, 64);
}

/// Lines as the gateway writes them.
fn log(calls: &[(&str, &str, u32)]) -> String {
    let mut text = String::from("a line of another kind\n");
    for (method, path, times) in calls {
        for _ in 0..*times {
            text += &format!(
                r#"{{"time":"2026-01-02T03:04:05.000000Z","kind":"request","outcome":"served","client_addr":"10.1.2.3:4","client_identity":"{WEB}","protocol":"http/2","target":"{CART}","would_refuse":"authorise.no_rule","method":"{method}","path":"{path}","status":200}}"#
            );
            text.push('\n');
        }
    }
    text
}

#[test]
fn rules_are_suggested_from_a_log_and_compared_by_it() {
    let folder = folder();
    let here = folder.path();
    fs::write(here.join("log.json"), log(&[("GET", "/v1/carts/7", 2), ("POST", "/v1/carts", 3)])).expect("written");
    let (out, err, exit) = isthmus(here, &["policy", "suggest", "--log", "log.json"]);
    assert_eq!(exit, 0, "{err}");
    assert!(err.contains("1 lines are none of an access log in JSON"), "{err}");
    assert!(out.contains("  # 3 calls, the last at 2026-01-02T03:04:05Z\n  - name: web-to-cart"), "{out}");
    assert!(out.contains("=/v1/carts/*"), "{out}");
    fs::write(here.join("suggested.yaml"), &out).expect("written");

    let diff =
        |old: &str, new: &str| isthmus(here, &["policy", "diff", old, new, "--against", "log.json", "--identity", OWN]);
    let (out, _, exit) = diff("suggested.yaml", "suggested.yaml");
    assert_eq!((out.as_str(), exit), ("no answer changes (5 calls of 2 kinds)\n", 0));
    let (out, err, exit) = diff("east.yaml", "suggested.yaml");
    assert!(out.contains("refused: authorise.no_rule") && out.contains("admitted by web-to-cart"), "{out}{err}");
    assert!(
        out.contains("\n3 of 5 calls change their answer: 0 that were let through would be refused, 3 that"),
        "{out}"
    );
    assert_eq!(exit, 3);
    let (out, _, _) = isthmus(
        here,
        &["policy", "diff", "east.yaml", "suggested.yaml", "--against", "log.json", "--identity", OWN, "-o", "json"],
    );
    let json: serde_json::Value = serde_json::from_str(&out).expect("JSON");
    assert_eq!((&json[0]["count"], &json[0]["call"]["network"]), (&3.into(), &"10.1.2.3".into()), "{out}");
}
