//! Label selectors, as `kubectl -l` takes them.
//!
//! **In** `a=b`, `a==b`, `a!=b`, `a in (b, c)`, `a notin (b, c)`, `a`, `!a`, joined by commas. **Out** a
//! [`Selector`]. **Refuses** what is none, with what was found. An empty text is refused: it would export everything.
//! (Kubernetes, "Labels and Selectors".)

use std::collections::BTreeSet;

use kube::core::{Expression, Selector};

/// Reads a selector.
pub fn parse(text: &str) -> Result<Selector, String> {
    let mut expressions = Vec::new();
    for part in parts(text) {
        expressions.push(expression(part.trim())?);
    }
    if expressions.is_empty() {
        return Err("a selector names at least one label, such as mirror.linkerd.io/exported=true".to_owned());
    }
    Ok(expressions.into_iter().collect())
}

/// Splits at the commas that stand outside parentheses.
fn parts(text: &str) -> Vec<&str> {
    let mut depth = 0_usize;
    let split = text.split(|c: char| {
        match c {
            '(' => depth += 1,
            ')' => depth = depth.saturating_sub(1),
            _ => {}
        }
        c == ',' && depth == 0
    });
    if text.trim().is_empty() { Vec::new() } else { split.collect() }
}

fn expression(text: &str) -> Result<Expression, String> {
    for (sign, make) in [
        ("!=", Expression::NotEqual as fn(String, String) -> Expression),
        ("==", Expression::Equal),
        ("=", Expression::Equal),
    ] {
        if let Some((name, value)) = text.split_once(sign) {
            return Ok(make(key(name)?, self::value(value)?));
        }
    }
    if let Some((head, set)) = text.split_once('(') {
        let set = set.strip_suffix(')').ok_or_else(|| format!("`{text}` lacks its closing parenthesis"))?;
        let values = set.split(',').map(value).collect::<Result<BTreeSet<_>, _>>()?;
        return match head.split_whitespace().collect::<Vec<_>>()[..] {
            [name, "in"] => Ok(Expression::In(key(name)?, values)),
            [name, "notin"] => Ok(Expression::NotIn(key(name)?, values)),
            _ => Err(format!("`{text}` is no set; write `label in (one, two)` or `label notin (one, two)`")),
        };
    }
    match text.strip_prefix('!') {
        Some(name) => Ok(Expression::DoesNotExist(key(name)?)),
        None => Ok(Expression::Exists(key(text)?)),
    }
}

/// An optional DNS name and a slash, then a name.
fn key(text: &str) -> Result<String, String> {
    let text = text.trim();
    let (prefix, name) = match text.split_once('/') {
        Some((prefix, name)) => (Some(prefix), name),
        None => (None, text),
    };
    let good = !name.is_empty()
        && is_label(name)
        && prefix.is_none_or(|prefix| prefix.parse::<crate::addr::Name>().is_ok() && prefix.len() <= 253);
    if good {
        Ok(text.to_owned())
    } else {
        Err(format!("`{text}` is no label; one is such as mirror.linkerd.io/exported"))
    }
}

fn value(text: &str) -> Result<String, String> {
    let text = text.trim();
    if is_label(text) { Ok(text.to_owned()) } else { Err(format!("`{text}` is no value of a label")) }
}

/// At most 63 letters, digits, `-`, `_` and `.`, the first and last of them a letter or digit; or nothing.
fn is_label(text: &str) -> bool {
    let outer = |c: Option<char>| c.is_none_or(|c| c.is_ascii_alphanumeric());
    text.len() <= 63
        && outer(text.chars().next())
        && outer(text.chars().next_back())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use kube::core::SelectorExt;

    use super::*;

    fn labels(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn what_kubectl_takes_is_taken() {
        let exported = labels(&[("mirror.linkerd.io/exported", "true"), ("tier", "web")]);
        for (text, holds) in [
            ("mirror.linkerd.io/exported=true", true),
            ("mirror.linkerd.io/exported == true , tier=web", true),
            ("mirror.linkerd.io/exported=remote-discovery", false),
            ("mirror.linkerd.io/exported!=true", false),
            ("tier in (api, web)", true),
            ("tier in (api),mirror.linkerd.io/exported", false),
            ("tier notin (api,batch),!internal", true),
            ("mirror.linkerd.io/exported", true),
            ("!mirror.linkerd.io/exported", false),
            ("tier=", false),
        ] {
            assert_eq!(parse(text).map(|selector| selector.matches(&exported)), Ok(holds), "{text}");
        }
    }

    #[test]
    fn what_is_none_is_refused_with_what_was_found() {
        for (text, says) in [
            ("", "at least one label"),
            ("a b", "`a b` is no label"),
            ("tier in web", "is no label"),
            ("tier of (web)", "is no set"),
            ("tier in (web", "closing parenthesis"),
            ("a=b c", "`b c` is no value"),
            ("a=b,", "`` is no label"),
            ("-a=b", "`-a` is no label"),
        ] {
            let said = parse(text).map(drop).expect_err(text);
            assert!(said.contains(says), "{text}: {said}");
        }
    }
}
