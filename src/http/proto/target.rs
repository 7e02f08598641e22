//! The request target (RFC 9112 section 3.2) and the authority that goes with it.

use core::net::Ipv6Addr;

use super::refusal::{self, Refusal};
use super::syntax;

/// What a target is made of. `path` is None where an absolute-form target has an empty path.
#[derive(Debug, PartialEq, Eq)]
pub struct Target<'a> {
    pub path: Option<&'a [u8]>,
    pub query: &'a [u8],
    /// Only of absolute-form; it replaces the Host field (section 3.2.2).
    pub authority: Option<&'a [u8]>,
}

/// Takes a target apart. Bytes from 0x80 on are let through as they are: `curl http://host/é` sends them, and
/// the environ hands them to the application as latin-1. A fragment never belongs into a request.
pub fn parse<'a>(method: &[u8], target: &'a [u8]) -> Result<Target<'a>, Refusal> {
    if method == b"CONNECT" {
        return Err(refusal::CONNECT);
    }
    if target.iter().any(|&byte| byte <= 0x20 || byte == 0x7f || byte == b'#') {
        return Err(refusal::TARGET);
    }
    match target.first() {
        Some(b'/') => {
            let (path, query) = split_query(target);
            Ok(Target { path: Some(path), query, authority: None })
        }
        Some(b'*') if target == b"*" && method == b"OPTIONS" => {
            Ok(Target { path: Some(target), query: b"", authority: None })
        }
        Some(_) => absolute(method, target),
        None => Err(refusal::TARGET),
    }
}

fn absolute<'a>(method: &[u8], target: &'a [u8]) -> Result<Target<'a>, Refusal> {
    let rest = after_scheme(target, b"http://").or_else(|| after_scheme(target, b"https://")).ok_or(refusal::TARGET)?;
    let end = rest.iter().position(|&byte| byte == b'/' || byte == b'?').unwrap_or(rest.len());
    let (authority, rest) = rest.split_at(end);
    // Userinfo (`user@host`) is refused with everything else that is no host: it serves phishing only.
    if !is_host(authority) {
        return Err(refusal::TARGET);
    }
    let (path, query) = split_query(rest);
    let path = match (path.is_empty(), method == b"OPTIONS" && rest.is_empty()) {
        (false, _) => Some(path),
        (true, false) => None,
        // Section 3.2.4: a proxy's OPTIONS without a path means the server as a whole.
        (true, true) => Some(&b"*"[..]),
    };
    Ok(Target { path, query, authority: Some(authority) })
}

fn after_scheme<'a>(target: &'a [u8], scheme: &[u8]) -> Option<&'a [u8]> {
    let start = target.get(..scheme.len())?;
    start.eq_ignore_ascii_case(scheme).then(|| &target[scheme.len()..])
}

fn split_query(target: &[u8]) -> (&[u8], &[u8]) {
    match target.iter().position(|&byte| byte == b'?') {
        Some(at) => (&target[..at], &target[at + 1..]),
        None => (target, b""),
    }
}

/// `uri-host [":" port]` of RFC 3986 section 3.2, and not empty: an http URI without a host is invalid
/// (RFC 9110 section 4.2.1). Between brackets only IPv6 addresses: nobody has another kind (`IPvFuture`), and a zone
/// means nothing to a server (RFC 6874 section 4).
pub fn is_host(value: &[u8]) -> bool {
    let (host, port) = if value.first() == Some(&b'[') {
        let Some(end) = value.iter().position(|&byte| byte == b']') else { return false };
        let literal = core::str::from_utf8(&value[1..end]).is_ok_and(|text| text.parse::<Ipv6Addr>().is_ok());
        if !literal {
            return false;
        }
        (&value[..=end], &value[end + 1..])
    } else {
        let end = value.iter().position(|&byte| byte == b':').unwrap_or(value.len());
        (&value[..end], &value[end..])
    };
    let port_valid = match port.split_first() {
        None => true,
        // An empty port is the default one (RFC 3986 section 3.2.3).
        Some((b':', digits)) => digits.is_empty() || syntax::length(digits).is_some_and(|port| port <= 65_535),
        Some(_) => false,
    };
    port_valid && !host.is_empty() && (host[0] == b'[' || is_name(host))
}

/// unreserved and sub-delims of RFC 3986 section 2.
const NAME: [bool; 256] = {
    let mut table = [false; 256];
    let mut byte = 0;
    while byte < 256 {
        let b = byte as u8;
        table[byte] = b.is_ascii_alphanumeric()
            || matches!(
                b,
                b'-' | b'.' | b'_' | b'~' | b'!' | b'$' | b'&' | b'\'' | b'(' | b')' | b'*' | b'+' | b',' | b';' | b'='
            );
        byte += 1;
    }
    table
};

/// `reg-name`: unreserved, percent-encoded, sub-delims. IPv4 addresses are a part of it.
fn is_name(host: &[u8]) -> bool {
    let mut rest = host;
    while let Some(at) = rest.iter().position(|&byte| !NAME[usize::from(byte)]) {
        match &rest[at..] {
            [b'%', a, b, tail @ ..] if a.is_ascii_hexdigit() && b.is_ascii_hexdigit() => rest = tail,
            _ => return false,
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forms() {
        let get = |target: &'static [u8]| parse(b"GET", target);
        assert_eq!(get(b"/a?b=/c?d"), Ok(Target { path: Some(b"/a"), query: b"b=/c?d", authority: None }));
        assert_eq!(get(b"/caf\xc3\xa9"), Ok(Target { path: Some(b"/caf\xc3\xa9"), query: b"", authority: None }));
        assert_eq!(get(b"//x/y"), Ok(Target { path: Some(b"//x/y"), query: b"", authority: None }));
        assert_eq!(get(b"HTTP://h:8/p?q"), Ok(Target { path: Some(b"/p"), query: b"q", authority: Some(b"h:8") }));
        assert_eq!(get(b"http://h?q"), Ok(Target { path: None, query: b"q", authority: Some(b"h") }));
        assert_eq!(parse(b"OPTIONS", b"*"), Ok(Target { path: Some(b"*"), query: b"", authority: None }));
        assert_eq!(parse(b"OPTIONS", b"https://h"), Ok(Target { path: Some(b"*"), query: b"", authority: Some(b"h") }));
        for bad in
            [&b""[..], b"*", b"a", b"h:80", b"ftp://h/", b"http://", b"http:///p", b"http://u@h/", b"/a#b", b"/\x7f"]
        {
            assert_eq!(parse(b"GET", bad), Err(refusal::TARGET), "{bad:?}");
        }
        assert_eq!(parse(b"CONNECT", b"h:80"), Err(refusal::CONNECT));
    }

    #[test]
    fn hosts() {
        for good in [
            &b"a"[..],
            b"a.example:80",
            b"127.0.0.1:8000",
            b"[::1]",
            b"[::1]:80",
            b"[::ffff:1.2.3.4]",
            b"a:65535",
            b"a_b",
            b"a:",
            b"%41",
        ] {
            assert!(is_host(good), "{good:?}");
        }
        for bad in [
            &b""[..],
            b":80",
            b"a b",
            b"a/b",
            b"a@b",
            b"a:b",
            b"a:1:2",
            b"[::1",
            b"[::1]x",
            b"[x]",
            b"[]",
            b"[:::]",
            b"[1.2.3.4]",
            b"[::1%25eth0]",
            b"[v1.x]",
            b"a:65536",
            b"a:+1",
            b"a:123456",
            b"%4",
            b"a,b c",
            b"\xe9",
        ] {
            assert!(!is_host(bad), "{bad:?}");
        }
    }
}
