//! `x-forwarded-for`: the addresses a request came through, as far as somebody trusted says so.
//!
//! **In** the address of the client, and lines that earlier proxies wrote. **Out** one line. **Refuses** to carry on what
//! is too long or holds anything but addresses and names.

use std::net::IpAddr;

use http::HeaderValue;

/// The address alone. IPv6 is written without brackets, as everybody does here.
pub fn address(client: IpAddr) -> HeaderValue {
    HeaderValue::try_from(client.to_canonical().to_string()).expect("an address is visible ASCII")
}

/// The longest line that is carried on, in bytes: some twenty hops.
pub const MAX_LINE_BYTES: usize = 1024;

/// What earlier proxies wrote, and `own` after it, on one line; `own` alone where the earlier part is not fit.
pub fn appended<'a>(earlier: impl IntoIterator<Item = &'a HeaderValue>, own: &HeaderValue) -> HeaderValue {
    let mut line = Vec::new();
    for value in earlier {
        let value = value.as_bytes().trim_ascii();
        let fit = |byte: &u8| byte.is_ascii_alphanumeric() || b".:[]-_%, ".contains(byte);
        if line.len() + value.len() + own.len() + 4 > MAX_LINE_BYTES || !value.iter().all(fit) {
            return own.clone();
        }
        if !value.is_empty() {
            line.extend_from_slice(value);
            line.extend_from_slice(b", ");
        }
    }
    line.extend_from_slice(own.as_bytes());
    HeaderValue::from_bytes(&line).unwrap_or_else(|_| own.clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_as_everybody_writes_them() {
        for (addr, want) in
            [("192.0.2.1", "192.0.2.1"), ("::ffff:192.0.2.1", "192.0.2.1"), ("2001:DB8::1", "2001:db8::1")]
        {
            assert_eq!(address(addr.parse().expect("an address")), want);
        }
    }

    #[test]
    fn earlier_hops_are_carried_on_while_they_are_fit() {
        let own = HeaderValue::from_static("192.0.2.1");
        let long = "203.0.113.7, ".repeat(100);
        for (earlier, want) in [
            (&[][..], "192.0.2.1"),
            (&["203.0.113.7"], "203.0.113.7, 192.0.2.1"),
            (&["203.0.113.7", "[2001:db8::1]:80, unknown"], "203.0.113.7, [2001:db8::1]:80, unknown, 192.0.2.1"),
            (&["\"><script>"], "192.0.2.1"),
            (&[long.as_str()], "192.0.2.1"),
        ] {
            let values: Vec<HeaderValue> =
                earlier.iter().map(|v| HeaderValue::try_from(*v).expect("a value")).collect();
            assert_eq!(appended(&values, &own), want, "{earlier:?}");
        }
    }
}
