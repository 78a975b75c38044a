//! The page for people at `/`: one document with its style and its script inside, that asks `/overview` every two seconds.
//!
//! **Out** the document, with a content security policy that lets run what is in it and nothing else: no outside asset, no
//! inline handler, no connection elsewhere. What it shows was partly written by peers (identities, paths, reasons), so its
//! script only ever sets text, never markup; the policy is the second lock.

use std::sync::LazyLock;

use aws_lc_rs::digest::{SHA256, digest};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::StatusCode;
use http::header::{CONTENT_SECURITY_POLICY, HeaderName, HeaderValue, REFERRER_POLICY};

use super::answer::{Page, whole};

const PAGE: &str = include_str!("page.html");

/// The page.
pub(super) fn html() -> Page {
    static POLICY: LazyLock<HeaderValue> = LazyLock::new(|| {
        let policy = format!(
            "default-src 'none'; script-src {}; style-src {}; connect-src 'self'; img-src data:; base-uri 'none'; \
             form-action 'none'; frame-ancestors 'none'",
            source(between("<script>", "</script>")),
            source(between("<style>", "</style>")),
        );
        HeaderValue::from_str(&policy).expect("hashes in base64 are fit for a header")
    });
    let mut page = whole(StatusCode::OK, "text/html; charset=utf-8", PAGE);
    let headers = page.headers_mut();
    headers.insert(CONTENT_SECURITY_POLICY, POLICY.clone());
    headers.insert(REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    headers.insert(OPENER_POLICY, HeaderValue::from_static("same-origin"));
    page
}

const OPENER_POLICY: HeaderName = HeaderName::from_static("cross-origin-opener-policy");

/// What stands between two marks of the page.
fn between(open: &str, close: &str) -> &'static str {
    let inside = PAGE.split_once(open).and_then(|(_, rest)| rest.split_once(close));
    inside.map(|(inside, _)| inside).expect("the page has one style and one script")
}

/// A source expression for one inline element (CSP 3 §2.3.1).
fn source(inline: &str) -> String {
    format!("'sha256-{}'", STANDARD.encode(digest(&SHA256, inline.as_bytes())))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the policy promises would break the page if the page did otherwise, and a browser alone would tell.
    #[test]
    fn nothing_comes_from_outside_and_nothing_runs_but_the_one_script() {
        for (mark, times) in [("<script", 1), ("<style", 1), (" style=", 0), ("http:", 0), ("https:", 0), ("src=", 0)] {
            assert_eq!(PAGE.matches(mark).count(), times, "{mark}");
        }
        for forbidden in
            ["innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", " onclick", " onload"]
        {
            assert!(!PAGE.contains(forbidden), "{forbidden}");
        }
        let page = html();
        let policy = page.headers()[CONTENT_SECURITY_POLICY].to_str().expect("text");
        assert!(policy.starts_with("default-src 'none'; script-src 'sha256-"), "{policy}");
    }
}
