//! Secrets taken out of what is shown.
//!
//! **In** a value, such as the configuration. **Out** the same, where each value under a name that promises a secret is
//! replaced. The configuration names files rather than holding keys; this is the second fence, for what an operator put
//! where it does not belong: PEM private keys are masked wherever they stand, and so are passwords inside URLs.

use serde_json::Value;

/// Stands for what is not shown.
pub const MASK: &str = "***";

/// Masks secrets in `value`, at every depth.
pub fn secrets(value: Value) -> Value {
    match value {
        Value::Array(items) => items.into_iter().map(secrets).collect(),
        Value::Object(fields) => fields
            .into_iter()
            .map(|(name, value)| {
                let value = if promises_secret(&name) && holds_text(&value) { MASK.into() } else { secrets(value) };
                (name, value)
            })
            .collect(),
        Value::String(text) => Value::String(without_secret(text)),
        other => other,
    }
}

/// Names such as `token`, `clientSecret`, `private_key`; not `token_file`, which holds a path.
fn promises_secret(name: &str) -> bool {
    let name: String = name.chars().filter(char::is_ascii_alphanumeric).collect::<String>().to_ascii_lowercase();
    ["password", "passphrase", "secret", "token", "apikey", "privatekey", "credentials"]
        .iter()
        .any(|word| name.ends_with(word))
}

fn holds_text(value: &Value) -> bool {
    match value {
        Value::String(text) => !text.is_empty(),
        Value::Array(items) => items.iter().any(holds_text),
        _ => false,
    }
}

fn without_secret(text: String) -> String {
    if text.contains("PRIVATE KEY-----") {
        return MASK.to_owned();
    }
    let Some((scheme, rest)) = text.split_once("://") else { return text };
    let authority = rest.split('/').next().unwrap_or(rest);
    match authority.rsplit_once('@') {
        Some((user, _)) => format!("{scheme}://{MASK}{}", &rest[user.len()..]),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn secrets_are_masked_at_every_depth() {
        let config = json!({
            "listen": "0.0.0.0:4143",
            "tls": { "key_file": "/etc/key.pem", "key": "-----BEGIN PRIVATE KEY-----\nMII", "token_file": "/t" },
            "sources": [{ "clientSecret": "s", "api-key": ["a"], "url": "https://me:pw@host/x", "token": "" }],
            "password": { "file": "/p" },
            "dns": "spiffe://west/ns",
        });
        assert_eq!(
            secrets(config),
            json!({
                "listen": "0.0.0.0:4143",
                "tls": { "key_file": "/etc/key.pem", "key": "***", "token_file": "/t" },
                "sources": [{ "clientSecret": "***", "api-key": "***", "url": "https://***@host/x", "token": "" }],
                "password": { "file": "/p" },
                "dns": "spiffe://west/ns",
            })
        );
    }
}
