//! The path of a request, read as a server might read it.
//!
//! **In** the path as the client sent it (a query is cut off), or a pattern as the operator wrote it. **Out** a
//! [`Reading`] and whether a [`PathPattern`] holds for it. **Refuses** with [`Ambiguity`] what two servers would take for
//! two different paths. (RFC 3986 §2.3, §3.3, §5.2.4, §6.2.2.)
//!
//! Two readings are kept. `plain` has only the percent-encoding in one form; `normal` has parameters (`;x=y`) taken out,
//! double slashes made one and dot segments resolved, too. A pattern surely holds only when it holds for both. So
//! `/admin/../health` is not let in by `=/health`, as some servers would hand it to what serves `/admin/`; and it
//! does not slip past a deny rule for either.

use std::borrow::Cow;

use super::verdict::{Doubt, Verdict};

/// Why a path cannot be read in one way.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq, thiserror::Error)]
pub enum Ambiguity {
    /// A byte that no path holds unencoded.
    #[error("a byte that belongs in no path")]
    Character,
    /// NUL or another control character, encoded or not.
    #[error("a control character")]
    Control,
    /// Dot segments with parameters, or beside double slashes: servers resolve them in different orders.
    #[error("a dot segment with parameters or beside a double slash")]
    DotSegment,
    /// `%25` followed by two hexadecimal digits: encoded twice.
    #[error("percent-encoding that is encoded again")]
    EncodedTwice,
    /// `%` without two hexadecimal digits.
    #[error("a percent sign without two hexadecimal digits")]
    Percent,
    /// It does not begin with a slash.
    #[error("a path that does not begin with a slash")]
    Relative,
    /// `%3B`: some servers take it for the begin of parameters.
    #[error("an encoded semicolon")]
    Semicolon,
    /// `%2F`, `%5C` or a backslash: some servers take it for a slash.
    #[error("an encoded slash, or a backslash")]
    Slash,
    /// Encoded bytes that are no UTF-8, overlong forms included.
    #[error("encoded bytes that are no UTF-8")]
    Utf8,
}

/// A path in its two readings. Borrowed where the client sent it in normal form already.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Reading<'a> {
    /// Percent-encoding in one form, nothing else changed.
    pub plain: Cow<'a, str>,
    /// Parameters, double slashes and dot segments taken out; absent where that changes nothing.
    pub resolved: Option<String>,
}

impl<'a> Reading<'a> {
    /// Reads a path as sent; what follows a `?` is ignored.
    pub fn new(sent: &'a str) -> Result<Self, Ambiguity> {
        let path = sent.split('?').next().unwrap_or(sent);
        if path == "*" {
            // `OPTIONS *` (RFC 9110 §7.1) asks about the server, not about a path: no path pattern holds for it.
            return Ok(Self { plain: Cow::Borrowed(path), resolved: None });
        }
        if !path.starts_with('/') {
            return Err(Ambiguity::Relative);
        }
        let plain = decode(path)?;
        let resolved = resolve(&plain)?;
        Ok(Self { plain, resolved })
    }

    /// The normal form.
    pub fn normal(&self) -> &str {
        self.resolved.as_deref().unwrap_or(&self.plain)
    }
}

/// Brings percent-encoding into one form: what can stand for itself does, the rest is `%XX` in capitals.
fn decode(path: &str) -> Result<Cow<'_, str>, Ambiguity> {
    let bytes = path.as_bytes();
    let Some(first) = bytes.iter().position(|b| !stands_for_itself(*b)) else { return Ok(Cow::Borrowed(path)) };
    let mut out = String::with_capacity(path.len() + 8);
    out.push_str(&path[..first]);
    let mut non_ascii = Vec::new();
    let mut rest = &bytes[first..];
    while let Some((&byte, after)) = rest.split_first() {
        let (byte, encoded) = if byte == b'%' {
            let [high, low, ..] = *after else { return Err(Ambiguity::Percent) };
            let (Some(high), Some(low)) = (hex(high), hex(low)) else { return Err(Ambiguity::Percent) };
            rest = &after[2..];
            (high << 4 | low, true)
        } else {
            rest = after;
            (byte, false)
        };
        if byte >= 0x80 && encoded {
            non_ascii.push(byte);
        } else if !non_ascii.is_empty() {
            check_utf8(&non_ascii)?;
            non_ascii.clear();
        }
        match byte {
            b'\\' => return Err(Ambiguity::Slash),
            b'/' if encoded => return Err(Ambiguity::Slash),
            b';' if encoded => return Err(Ambiguity::Semicolon),
            0..0x20 | 0x7f => return Err(Ambiguity::Control),
            b'#' | 0x80.. if !encoded => return Err(Ambiguity::Character),
            _ if stands_for_itself(byte) => out.push(char::from(byte)),
            _ => {
                out.push('%');
                out.push(char::from(HEX[usize::from(byte >> 4)]));
                out.push(char::from(HEX[usize::from(byte & 15)]));
            }
        }
    }
    check_utf8(&non_ascii)?;
    // On the result, as the digits may have been encoded themselves: `%25%32%65`.
    let twice = out.as_bytes().windows(5).any(|w| w.starts_with(b"%25") && w[3..].iter().all(u8::is_ascii_hexdigit));
    if twice { Err(Ambiguity::EncodedTwice) } else { Ok(Cow::Owned(out)) }
}

fn check_utf8(bytes: &[u8]) -> Result<(), Ambiguity> {
    std::str::from_utf8(bytes).map(drop).map_err(|_| Ambiguity::Utf8)
}

/// Takes parameters and double slashes out and resolves dot segments; `None` where there is nothing to do.
fn resolve(plain: &str) -> Result<Option<String>, Ambiguity> {
    let segments = || plain.split('/').skip(1);
    let count = segments().count();
    let odd =
        |(at, raw): (usize, &str)| matches!(raw, "." | "..") || raw.contains(';') || (raw.is_empty() && at + 1 < count);
    if !segments().enumerate().any(odd) {
        return Ok(None);
    }
    let mut kept: Vec<&str> = Vec::new();
    let (mut climbs, mut empties, mut ends_open) = (false, false, false);
    for (at, raw) in segments().enumerate() {
        let segment = raw.split(';').next().unwrap_or(raw);
        ends_open = matches!(segment, "" | "." | "..");
        match segment {
            "." | ".." if raw.len() != segment.len() => return Err(Ambiguity::DotSegment),
            "." => {}
            ".." => {
                climbs = true;
                kept.pop();
            }
            "" => empties |= at + 1 < count,
            _ => kept.push(segment),
        }
    }
    if climbs && empties {
        return Err(Ambiguity::DotSegment);
    }
    let mut normal = String::with_capacity(plain.len());
    for segment in &kept {
        normal.push('/');
        normal.push_str(segment);
    }
    if ends_open || kept.is_empty() {
        normal.push('/');
    }
    Ok(Some(normal))
}

const HEX: [u8; 16] = *b"0123456789ABCDEF";

fn hex(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        b'A'..=b'F' => Some(digit - b'A' + 10),
        _ => None,
    }
}

/// `pchar` without the percent sign, and the slash (RFC 3986 §3.3). Servers decode all of these before they compare, so
/// `%3A` and `:` are one spelling here.
fn stands_for_itself(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"/-._~!$&'()*+,;=:@".contains(&byte)
}

/// What the operator wrote about paths: segments, some of them open, and whether more may follow.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct PathPattern {
    segments: Box<[Option<Box<str>>]>,
    below: bool,
}

/// Why a text is no pattern of a path, and what may have been meant.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct BadPath {
    pub(super) problem: String,
    pub(super) nearest: Option<String>,
}

impl PathPattern {
    /// Reads `=/health` or `/v1/*`.
    pub(super) fn parse(text: &str) -> Result<Self, BadPath> {
        let bad = |problem: &str, nearest: Option<String>| Err(BadPath { problem: problem.to_owned(), nearest });
        let (exact, path) = match text.strip_prefix('=') {
            Some(path) => (true, path),
            None => (false, text),
        };
        if !path.starts_with('/') {
            return bad("a path begins with a slash", Some(format!("{}/{path}", if exact { "=" } else { "" })));
        }
        if path.contains('?') {
            return bad("the query is no part of the path", path.split('?').next().map(|path| format!("={path}")));
        }
        let reading = Reading::new(path).map_err(|why| BadPath { problem: why.to_string(), nearest: None })?;
        if reading.resolved.is_some() {
            let normal = format!("{}{}", if exact { "=" } else { "" }, reading.normal());
            return bad("the path is not in normal form, and no request would match it", Some(normal));
        }
        let below = !exact && path.ends_with("/*");
        if !exact && !below {
            let nearest = path.strip_suffix('*').map_or_else(|| format!("={path}"), |path| format!("{path}/*"));
            return bad("`=/path` is that path alone, `/path/*` what lies below: this is neither", Some(nearest));
        }
        let plain = if below { &reading.plain[..reading.plain.len() - 2] } else { &*reading.plain };
        let mut segments = Vec::new();
        for segment in plain.split('/').skip(1) {
            match segment {
                "*" => segments.push(None),
                _ if segment.contains('*') => {
                    let whole = path.split('/').map(|s| if s.contains('*') { "*" } else { s }).collect::<Vec<_>>();
                    let nearest = format!("{}{}", if exact { "=" } else { "" }, whole.join("/"));
                    return bad("`*` stands for a whole segment", Some(nearest));
                }
                _ => segments.push(Some(segment.into())),
            }
        }
        Ok(Self { segments: segments.into(), below })
    }

    /// That path alone, segments given (as gRPC names its methods).
    pub(super) fn exact(segments: impl IntoIterator<Item = Option<Box<str>>>) -> Self {
        Self { segments: segments.into_iter().collect(), below: false }
    }

    /// How much it says: literal segments, then whether it is one path alone.
    pub(super) fn specificity(&self) -> usize {
        2 * self.segments.iter().flatten().count() + usize::from(!self.below)
    }

    /// Whether it holds for one reading.
    fn holds(&self, path: &str) -> Verdict {
        let Some(rest) = path.strip_prefix('/') else { return Verdict::No };
        let mut sent = rest.split('/');
        let mut sure = true;
        for (at, want) in self.segments.iter().enumerate() {
            match (want.as_deref(), sent.next()) {
                (None, Some(segment)) if !segment.is_empty() => {}
                (Some(want), Some(segment)) if want == segment => {}
                (Some(want), Some(segment)) if want.eq_ignore_ascii_case(segment) => sure = false,
                // `=/v1/` and the request `/v1`.
                (Some(""), None) if at + 1 == self.segments.len() => sure = false,
                _ => return Verdict::No,
            }
        }
        match (self.below, sent.next()) {
            (true, Some(_)) | (false, None) => {}
            // `/v1/*` and the request `/v1`: for some servers the same as `/v1/`.
            (true, None) => sure = false,
            (false, Some("")) if sent.next().is_none() => sure = false,
            (false, Some(_)) => return Verdict::No,
        }
        if sure { Verdict::Yes } else { Verdict::Maybe(Doubt::Path) }
    }
}

/// Whether one of the patterns holds, under every reading of the path.
pub(super) fn any_holds(patterns: &[PathPattern], path: &Result<Reading<'_>, Ambiguity>) -> Verdict {
    let Ok(reading) = path else { return Verdict::Maybe(Doubt::Unreadable) };
    let one = |path: &str| patterns.iter().fold(Verdict::No, |so_far, pattern| so_far.or(|| pattern.holds(path)));
    let plain = one(&reading.plain);
    match &reading.resolved {
        None => plain,
        Some(normal) => match (plain, one(normal)) {
            (a, b) if a == b => a,
            _ => Verdict::Maybe(Doubt::Path),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn readings() {
        for (sent, want) in [
            ("/", Ok("/")),
            ("/v1/x?y=/../z", Ok("/v1/x")),
            ("/a%2db%7E", Ok("/a-b~")),
            ("/%61%62", Ok("/ab")),
            ("/a%3ab%40", Ok("/a:b@")),
            ("/a b", Ok("/a%20b")),
            ("/a%20b%c3%a9", Ok("/a%20b%C3%A9")),
            ("/100%25", Ok("/100%25")),
            ("/what%3f%23", Ok("/what%3F%23")),
            ("/a/./b/", Ok("/a/b/")),
            ("/a/../b", Ok("/b")),
            ("/a/%2e%2e/b", Ok("/b")),
            ("/a/.%2E/b", Ok("/b")),
            ("/../../b", Ok("/b")),
            ("/a/..", Ok("/")),
            ("/a/b/.", Ok("/a/b/")),
            ("/...", Ok("/...")),
            ("//a///b//", Ok("/a/b/")),
            ("/a;x=1/b;y", Ok("/a/b")),
            ("/;/admin", Ok("/admin")),
            ("/;x", Ok("/")),
            ("*", Ok("*")),
            ("", Err(Ambiguity::Relative)),
            ("admin", Err(Ambiguity::Relative)),
            ("http://x/", Err(Ambiguity::Relative)),
            ("/..;/a", Err(Ambiguity::DotSegment)),
            ("/a/.;x/b", Err(Ambiguity::DotSegment)),
            ("/a//../b", Err(Ambiguity::DotSegment)),
            ("/a/../b//c", Err(Ambiguity::DotSegment)),
            ("/;x/../b", Err(Ambiguity::DotSegment)),
            ("/a%2fb", Err(Ambiguity::Slash)),
            ("/a%2Fb", Err(Ambiguity::Slash)),
            ("/a%5cb", Err(Ambiguity::Slash)),
            ("/a\\b", Err(Ambiguity::Slash)),
            ("/a%3Bx", Err(Ambiguity::Semicolon)),
            ("/a%00", Err(Ambiguity::Control)),
            ("/a\0", Err(Ambiguity::Control)),
            ("/a%0d%0aX:y", Err(Ambiguity::Control)),
            ("/a%7f", Err(Ambiguity::Control)),
            ("/a#b", Err(Ambiguity::Character)),
            ("/é", Err(Ambiguity::Character)),
            ("/a%", Err(Ambiguity::Percent)),
            ("/a%2", Err(Ambiguity::Percent)),
            ("/a%zz", Err(Ambiguity::Percent)),
            ("/a%u002e", Err(Ambiguity::Percent)),
            ("/%252e%252e/a", Err(Ambiguity::EncodedTwice)),
            ("/%25%32%65/a", Err(Ambiguity::EncodedTwice)),
            ("/%c0%af", Err(Ambiguity::Utf8)),
            ("/%c0%80", Err(Ambiguity::Utf8)),
            ("/%e0%80%af", Err(Ambiguity::Utf8)),
            ("/%c3x%a9", Err(Ambiguity::Utf8)),
            ("/%ff", Err(Ambiguity::Utf8)),
        ] {
            let got = Reading::new(sent);
            assert_eq!(got.as_ref().map(Reading::normal).map_err(|e| *e), want, "{sent:?}");
        }
    }

    #[test]
    fn what_is_normal_is_borrowed() {
        let reading = Reading::new("/v1/a:b/(c)/~d").expect("readable");
        assert!(matches!(reading.plain, Cow::Borrowed(_)) && reading.resolved.is_none());
    }

    #[test]
    fn patterns() {
        let maybe = Verdict::Maybe(Doubt::Path);
        for (pattern, sent, want) in [
            ("/v1/*", "/v1/x", Verdict::Yes),
            ("/v1/*", "/v1/x/y", Verdict::Yes),
            ("/v1/*", "/v1/", Verdict::Yes),
            ("/v1/*", "/v1", maybe),
            ("/v1/*", "/v11", Verdict::No),
            ("/v1/*", "/V1/x", maybe),
            ("/v1/*", "/v1;a/x", maybe),
            ("/v1/*", "/v1/x;a", Verdict::Yes),
            ("/v1/*", "/v1//x", Verdict::Yes),
            ("/v1/*", "//v1/x", maybe),
            ("/v1/*", "/v1/../x", maybe),
            ("/v1/*", "/v1/a/../x", Verdict::Yes),
            ("/v1/*", "/x/../v1/a", maybe),
            ("/v1/*", "/v1/a%2fb", Verdict::Maybe(Doubt::Unreadable)),
            ("/v1/*", "/v2/a%2fb", Verdict::Maybe(Doubt::Unreadable)),
            ("/*", "/", Verdict::Yes),
            ("/*", "*", Verdict::No),
            ("=/health", "/health", Verdict::Yes),
            ("=/health", "/health?x", Verdict::Yes),
            ("=/health", "/health/", maybe),
            ("=/health", "/health//", maybe),
            ("=/health", "/health/x", Verdict::No),
            ("=/health", "/%68ealth", Verdict::Yes),
            ("=/health", "/health;x", maybe),
            ("=/v1/", "/v1", maybe),
            ("=/", "/", Verdict::Yes),
            ("=/v1/*/items", "/v1/7/items", Verdict::Yes),
            ("=/v1/*/items", "/v1//items", Verdict::No),
            ("=/v1/*", "/v1/7/items", Verdict::No),
            ("/v1/*/items/*", "/v1/7/items/9", Verdict::Yes),
            ("=/a:b", "/a%3Ab", Verdict::Yes),
            ("=/a%20b", "/a b", Verdict::Yes),
        ] {
            let parsed = PathPattern::parse(pattern).expect(pattern);
            assert_eq!(any_holds(&[parsed], &Reading::new(sent)), want, "{pattern} {sent}");
        }
    }

    #[test]
    fn a_pattern_that_means_nothing_is_refused_with_the_nearest_that_does() {
        for (text, nearest) in [
            ("/v1", Some("=/v1")),
            ("v1/*", Some("/v1/*")),
            ("=health", Some("=/health")),
            ("/v1*", Some("/v1/*")),
            ("=/v1*", Some("=/*")),
            ("=/v1*/x", Some("=/*/x")),
            ("/a*/b/*", Some("/*/b/*")),
            ("=/a/../b", Some("=/b")),
            ("//a/*", Some("/a/*")),
            ("=/a?b", Some("=/a")),
            ("=/a%2fb", None),
            ("=/a%", None),
            ("", Some("/")),
        ] {
            let bad = PathPattern::parse(text).expect_err(text);
            assert_eq!(bad.nearest.as_deref(), nearest, "{text}: {}", bad.problem);
        }
    }
}
