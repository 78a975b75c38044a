//! A call as the query of a URL: `client=…&service=…&method=…&path=…`.
//!
//! **In** a query, or a [`Call`]. **Out** the other. **Refuses** unknown and repeated words, broken percent-encoding, and values that
//! do not read. Values are percent-encoded; `+` is itself, as it may stand in a path. (RFC 3986 §2.1, §3.4.)

use std::net::IpAddr;

use crate::authorise::{Call, nearest};

/// The words of a query.
const WORDS: [&str; 9] = ["client", "exported", "grpc", "header", "host", "method", "network", "path", "service"];

/// Reads a call, and whether its service is to be taken for exported.
pub(super) fn call(query: &str) -> Result<(Call, Option<bool>), String> {
    let mut call = Call::of("", "");
    let mut exported = None;
    let mut seen = Vec::new();
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (word, value) = pair.split_once('=').unwrap_or((pair, ""));
        if word != "header" && seen.contains(&word) {
            return Err(format!("{word} is there twice"));
        }
        seen.push(word);
        let value = decoded(value).ok_or_else(|| format!("{word}: not percent-encoded text"))?;
        match word {
            "client" => call.client = value,
            "exported" => exported = Some(flag(word, &value)?),
            "grpc" => call.grpc = flag(word, &value)?,
            "header" => {
                let (name, value) = value.split_once(':').ok_or("header: write it as name:value")?;
                call.headers.insert(name.trim().to_owned(), value.trim().to_owned());
            }
            "host" => call.host = Some(value),
            "method" => call.method = Some(value),
            "network" => call.network = address(&value)?,
            "path" => call.path = Some(value),
            "service" => call.service = value,
            other => {
                let nearest = nearest(other, WORDS).map(|word| format!("; did you mean {word}?"));
                return Err(format!("{other:?} is none of {}{}", WORDS.join(", "), nearest.unwrap_or_default()));
            }
        }
    }
    for (word, value) in [("client", &call.client), ("service", &call.service)] {
        if value.is_empty() {
            return Err(format!("{word} is missing"));
        }
    }
    Ok((call, exported))
}

/// Writes a call, the other way round.
pub(super) fn query(call: &Call, exported: Option<bool>) -> String {
    let mut words = vec![("client", call.client.clone()), ("service", call.service.clone())];
    words.extend(exported.map(|exported| ("exported", exported.to_string())));
    words.extend(call.grpc.then(|| ("grpc", "true".to_owned())));
    words.extend(call.headers.iter().map(|(name, value)| ("header", format!("{name}:{value}"))));
    words.extend(call.host.clone().map(|host| ("host", host)));
    words.extend(call.method.clone().map(|method| ("method", method)));
    words.push(("network", call.network.to_string()));
    words.extend(call.path.clone().map(|path| ("path", path)));
    words.iter().map(|(word, value)| format!("{word}={}", encoded(value))).collect::<Vec<_>>().join("&")
}

fn flag(word: &str, value: &str) -> Result<bool, String> {
    match value {
        "" | "true" | "1" => Ok(true),
        "false" | "0" => Ok(false),
        _ => Err(format!("{word}: {value:?} is neither true nor false")),
    }
}

fn address(value: &str) -> Result<IpAddr, String> {
    value.parse().map_err(|_| format!("network: {value:?} is no address such as 10.0.0.1"))
}

fn decoded(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
        bytes.push(if byte == b'%' { digit(rest.next()?)? * 16 + digit(rest.next()?)? } else { byte });
    }
    String::from_utf8(bytes).ok()
}

fn encoded(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~/:@".contains(&byte);
    text.bytes().map(|byte| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") }).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn queries() {
        for (query, want) in [
            ("client=a.b&service=c:80", Ok("a.b c:80 None None {} 0.0.0.0")),
            (
                "client=a.b&service=c%3a80&path=/x%2520&method=GET",
                Ok("a.b c:80 Some(\"GET\") Some(\"/x%20\") {} 0.0.0.0"),
            ),
            ("client=a&service=b&header=x-a:%20b&network=::1", Ok("a b None None {\"x-a\": \"b\"} ::1")),
            ("", Err("client is missing")),
            ("client=a&client=b", Err("client is there twice")),
            (
                "cleint=a",
                Err(
                    "\"cleint\" is none of client, exported, grpc, header, host, method, network, path, service; did you mean client?",
                ),
            ),
            ("client=%zz", Err("client: not percent-encoded text")),
            ("client=%f", Err("client: not percent-encoded text")),
            ("client=%ff", Err("client: not percent-encoded text")),
            ("client=a&service=b&network=here", Err("network: \"here\" is no address such as 10.0.0.1")),
            ("client=a&service=b&grpc=maybe", Err("grpc: \"maybe\" is neither true nor false")),
            ("client=a&service=b&header=x", Err("header: write it as name:value")),
        ] {
            let got = call(query).map(|(call, _)| {
                let Call { client, service, method, path, headers, network, .. } = call;
                format!("{client} {service} {method:?} {path:?} {headers:?} {network}")
            });
            assert_eq!(got, want.map(str::to_owned).map_err(str::to_owned), "{query}");
        }
    }

    proptest! {
        #[test]
        fn any_query_has_an_answer(query in ".{0,200}") {
            let _ = call(&query);
        }

        #[test]
        fn what_is_written_is_read(client in ".{1,20}", path in proptest::option::of(".{0,20}"), grpc: bool, exported: Option<bool>) {
            let written = Call { client, path, grpc, ..Call::of("", "b:80") };
            prop_assert_eq!(call(&query(&written, exported)), Ok((written, exported)));
        }
    }
}
