//! The demo's rows: who calls, what, and what must come back. The same rows are a test.

use std::time::Duration;

use tokio::time::Instant;

use super::pki::Pki;
use super::west::West;
use crate::addr::Target;
use crate::app::Addrs;

/// One call and its answer.
#[derive(Clone, Debug)]
pub struct Row {
    /// Who called.
    pub who: &'static str,
    /// What was called.
    pub what: &'static str,
    /// What the answer must contain.
    pub expected: &'static str,
    /// What came back.
    pub back: String,
    /// From connect to answer.
    pub took: Duration,
}

impl Row {
    /// Whether the answer is what it must be.
    pub fn as_expected(&self) -> bool {
        self.back.contains(self.expected)
    }
}

const WEB: &str = "web.demo.svc.cluster.local";
const NOBODY: &str = "no certificate";
const SHOP: &str = "shop.west";

/// Makes every call, one after the other.
pub async fn all(pki: &Pki, addrs: Addrs) -> Vec<Row> {
    let mut rows = Vec::new();
    match callers(pki, addrs) {
        Ok(callers) => calls(&mut rows, &callers, addrs).await,
        Err(error) => rows.push(row("demo", "set up", "", Instant::now(), Err(error))),
    }
    rows
}

struct Callers {
    shop: West,
    nobody: West,
    stranger: West,
    expired: West,
    echo: Target,
    web: Target,
}

fn callers(pki: &Pki, addrs: Addrs) -> anyhow::Result<Callers> {
    Ok(Callers {
        shop: West::new(pki, Some(&pki.client), addrs.gateway)?,
        nobody: West::new(pki, None, addrs.gateway)?,
        stranger: West::new(pki, Some(&pki.stranger), addrs.gateway)?,
        expired: West::new(pki, Some(&pki.expired), addrs.gateway)?,
        echo: Target::parse("echo.demo.svc.cluster.local:9000", 0)?,
        web: Target::parse(WEB, 80)?,
    })
}

fn row(
    who: &'static str,
    what: &'static str,
    expected: &'static str,
    from: Instant,
    back: anyhow::Result<String>,
) -> Row {
    let back = back.unwrap_or_else(|error| format!("refused: {error:#}"));
    Row { who, what, expected, back, took: from.elapsed() }
}

async fn calls(rows: &mut Vec<Row>, callers: &Callers, addrs: Addrs) {
    let Callers { shop, nobody, stranger, expired, echo, web } = callers;
    macro_rules! call {
        ($who:expr, $what:literal, $expected:literal, $call:expr) => {{
            let from = Instant::now();
            let back = match tokio::time::timeout(PATIENCE, $call).await {
                Ok(back) => back,
                Err(_) => Err(anyhow::anyhow!("no answer in time")),
            };
            rows.push(row($who, $what, $expected, from, back));
        }};
    }
    call!(SHOP, "HTTP/1.1", "200 GET /hello over HTTP/1.1, called by shop.west", shop.http1(WEB, "/hello"));
    call!(SHOP, "HTTP/2", "200 GET /hello over HTTP/2.0, called by shop.west", shop.http2(WEB, "/hello", None));
    call!(SHOP, "gRPC, transport header", "grpc-status 0 in trailers, 11 bytes echoed", shop.grpc(web, b"hello world"));
    call!(SHOP, "WebSocket", "101, echo \"hello\"", shop.websocket(WEB, "hello"));
    call!(SHOP, "TCP by transport header", "echo \"ahoy\"", shop.opaque(echo, "ahoy"));
    match "_9000._tcp.echo.demo.svc.cluster.local".parse() {
        Ok(name) => call!(SHOP, "TCP by SNI", "echo \"ahoy\"", shop.sni(&name, "ahoy")),
        Err(error) => rows.push(row(SHOP, "TCP by SNI", "", Instant::now(), Err(anyhow::Error::new(error)))),
    }
    call!(SHOP, "probe over mTLS", "200 healthy", shop.probe(addrs.probe));
    call!(NOBODY, "a handshake", "refused: closed without a byte", nobody.knock());
    call!("a stranger", "a handshake", "refused: TLS alert UnknownCA", stranger.knock());
    call!("shop.west, expired", "a handshake", "refused: TLS alert CertificateExpired", expired.knock());
    call!(SHOP, "outside the suffixes", "404 bad gateway domain", shop.http2("intranet.example", "/", None));
    call!(
        SHOP,
        "a service not exported",
        "404 service is not exported",
        shop.http2("private.demo.svc.cluster.local", "/", None)
    );
    let by = "by=isthmus.isthmus-system.serviceaccount.identity.linkerd.cluster.local;for=x;host=y;proto=https";
    call!(SHOP, "a loop", "508 gateway loop detected", shop.http2(WEB, "/", Some(("forwarded", by))));
}

/// No call of the demo takes this long unless something hangs.
const PATIENCE: Duration = Duration::from_secs(10);
