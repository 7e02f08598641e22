//! Who is believed about where a request came from: `http.forwarded_allow_ips` and `http.forwarded_headers`.

use std::borrow::Cow;
use std::net::{IpAddr, SocketAddr};

use forkmaster_wire::message::ForwardedHeader;
use forkmaster_wire::peer::TrustedPeer;

/// An address and, where a proxy tells it, a port.
pub type Client = (IpAddr, Option<u16>);

/// The peers whose forwarded fields are believed.
#[derive(Clone, Debug, Default)]
pub struct Trusted(Vec<TrustedPeer>);

/// Which of the fields are believed from such a peer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Believed {
    pub family: Family,
    pub client: bool,
    pub proto: bool,
    pub host: bool,
    pub prefix: bool,
    pub script_name: bool,
}

/// A proxy sets one of the two; the other passes through it as the client sent it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Family {
    /// `X-Forwarded-For` and its kin.
    #[default]
    XForwarded,
    /// RFC 7239.
    Forwarded,
}

/// What the elements of `Forwarded` say that were written by trusted hops.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Hops<'a> {
    pub client: Option<Client>,
    pub proto: Option<Cow<'a, str>>,
    pub host: Option<Cow<'a, str>>,
}

impl Trusted {
    pub fn new(peers: Vec<TrustedPeer>) -> Trusted {
        Trusted(peers)
    }

    pub fn trusts_unix(&self) -> bool {
        self.0.iter().any(|peer| matches!(peer, TrustedPeer::Everyone | TrustedPeer::Unix))
    }

    pub fn trusts(&self, address: IpAddr) -> bool {
        self.0.iter().any(|peer| peer.contains(address))
    }

    /// Walks `X-Forwarded-For` from the right, where the nearest proxy wrote, to the first hop that is not
    /// trusted: everything left of it may be the client's invention. Where all are trusted it is the leftmost.
    /// A hop that is said to be unknown ends the walk at the one that reported it. None: nothing better is known than
    /// the peer itself, or what a trusted hop wrote is malformed.
    pub fn client(&self, forwarded_for: &str) -> Option<Client> {
        let mut client = None;
        for entry in forwarded_for.rsplit(',') {
            match node(entry.trim().trim_matches('"')) {
                Node::Address(address) => client = Some(address),
                Node::Unknown => break,
                Node::Malformed => return None,
            }
            if !self.trusts_hop(client) {
                break;
            }
        }
        client
    }

    /// Walks `Forwarded` (RFC 7239) in the same way. Each element is about the request that its writer received, so
    /// scheme and host are those of the outermost trusted hop that tells them. None: what a trusted hop wrote is
    /// malformed.
    pub fn forwarded<'a>(&self, field: &'a str) -> Option<Hops<'a>> {
        let mut hops = Hops::default();
        let mut rest = Some(field);
        while let Some(text) = rest {
            let (left, element) = last_of_list(text);
            rest = left;
            if element.trim().is_empty() {
                // RFC 9110 section 5.6.1: empty elements of a list do not count.
                continue;
            }
            let said = parameters(element)?;
            hops.proto = said.proto.or(hops.proto);
            hops.host = said.host.or(hops.host);
            match said.node.map_or(Node::Unknown, |name| node(&name)) {
                Node::Address(address) => hops.client = Some(address),
                Node::Unknown => break,
                Node::Malformed => return None,
            }
            if !self.trusts_hop(hops.client) {
                break;
            }
        }
        Some(hops)
    }

    fn trusts_hop(&self, hop: Option<Client>) -> bool {
        hop.is_some_and(|(address, _)| self.trusts(address))
    }
}

impl Believed {
    pub fn new(headers: &[ForwardedHeader]) -> Believed {
        let mut believed = Believed::default();
        for header in headers {
            match header {
                ForwardedHeader::For => believed.client = true,
                ForwardedHeader::Proto => believed.proto = true,
                ForwardedHeader::Host => believed.host = true,
                ForwardedHeader::Prefix => believed.prefix = true,
                ForwardedHeader::ScriptName => believed.script_name = true,
                ForwardedHeader::Forwarded => {
                    believed.family = Family::Forwarded;
                    believed.client = true;
                    believed.proto = true;
                }
            }
        }
        believed
    }
}

/// The last of a comma-separated list: what the peer itself says, not what it passes on.
pub fn last_element(value: &str) -> &str {
    value.rsplit(',').next().unwrap_or_default().trim()
}

/// Whether a host that a proxy tells is made of what hosts are made of (RFC 3986 section 3.2.2).
pub fn host_is_plausible(host: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b".-_:[]".contains(&byte);
    !host.is_empty() && host.bytes().all(plain)
}

/// A hop as a proxy names it.
enum Node {
    Address(Client),
    /// `unknown`, or a name that the proxy made up to hide it (RFC 7239 section 6).
    Unknown,
    Malformed,
}

/// `192.0.2.1`, `192.0.2.1:8080`, `2001:db8::1`, `[2001:db8::1]`, `[2001:db8::1]:8080`; the port may be made up.
fn node(text: &str) -> Node {
    if text.is_empty() || text.eq_ignore_ascii_case("unknown") || text.starts_with('_') {
        return Node::Unknown;
    }
    let address = |text: &str| text.parse::<IpAddr>().ok().map(|address| address.to_canonical());
    if let Some(address) = address(text) {
        return Node::Address((address, None));
    }
    if let Ok(address) = text.parse::<SocketAddr>() {
        return Node::Address((address.ip().to_canonical(), Some(address.port())));
    }
    let name = match text.rsplit_once(':') {
        Some((name, port)) if port.starts_with('_') => name,
        Some(_) | None => text,
    };
    let name = name.strip_prefix('[').and_then(|name| name.strip_suffix(']')).unwrap_or(name);
    match address(name) {
        Some(address) => Node::Address((address, None)),
        None if name.eq_ignore_ascii_case("unknown") => Node::Unknown,
        None => Node::Malformed,
    }
}

/// Splits the last element off a list, whose commas may stand in quoted strings too. Looked for from the right, since
/// what stands left may be a client's, with quotation marks that never end.
fn last_of_list(text: &str) -> (Option<&str>, &str) {
    let bytes = text.as_bytes();
    let mut quoted = false;
    for at in (0..bytes.len()).rev() {
        match bytes[at] {
            b'"' if quoted => {
                let backslashes = bytes[..at].iter().rev().take_while(|byte| **byte == b'\\').count();
                quoted = backslashes % 2 == 1;
            }
            b'"' => quoted = true,
            b',' if !quoted => return (Some(&text[..at]), &text[at + 1..]),
            _other => {}
        }
    }
    (None, text)
}

/// The parameters of one element of `Forwarded`.
#[derive(Default)]
struct Parameters<'a> {
    node: Option<Cow<'a, str>>,
    proto: Option<Cow<'a, str>>,
    host: Option<Cow<'a, str>>,
}

/// `for=192.0.2.43;proto=http;by=203.0.113.43` (RFC 7239 section 4). None: malformed, or a parameter is there twice.
fn parameters(element: &str) -> Option<Parameters<'_>> {
    let mut parameters = Parameters::default();
    let mut rest = element.trim();
    while !rest.is_empty() {
        let (name, after) = rest.split_once('=')?;
        let (value, after) = value(after)?;
        let after = after.trim_start();
        rest = match after.strip_prefix(';') {
            Some(after) => after.trim_start(),
            None if after.is_empty() => after,
            None => return None,
        };
        if name.is_empty() || !name.bytes().all(is_token_byte) {
            return None;
        }
        let place = match name.to_ascii_lowercase().as_str() {
            "for" => &mut parameters.node,
            "proto" => &mut parameters.proto,
            "host" => &mut parameters.host,
            _other => continue,
        };
        if place.replace(value).is_some() {
            return None;
        }
    }
    Some(parameters)
}

/// A token or a quoted string at the beginning, and what follows it.
fn value(text: &str) -> Option<(Cow<'_, str>, &str)> {
    let Some(inner) = text.strip_prefix('"') else {
        let end = text.bytes().position(|byte| !is_token_byte(byte)).unwrap_or(text.len());
        return (end > 0).then(|| (Cow::Borrowed(&text[..end]), &text[end..]));
    };
    let end = inner.find(['"', '\\'])?;
    if inner[end..].starts_with('"') {
        return Some((Cow::Borrowed(&inner[..end]), &inner[end + 1..]));
    }
    let mut value = String::new();
    let mut characters = inner.char_indices();
    while let Some((at, character)) = characters.next() {
        match character {
            '"' => return Some((Cow::Owned(value), &inner[at + 1..])),
            '\\' => value.push(characters.next()?.1),
            other => value.push(other),
        }
    }
    None
}

/// RFC 9110 section 5.6.2. Besides, what many proxies write without the quotation marks that it should have: an
/// address with a port, and brackets.
fn is_token_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~:[]".contains(&byte)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trusted(entries: &[&str]) -> Trusted {
        Trusted::new(entries.iter().map(|entry| entry.parse().expect("a peer")).collect())
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn all_entries_count() {
        let some = trusted(&["10.0.0.0/8", "::1"]);
        assert!(some.trusts(ip("10.255.0.1")) && some.trusts(ip("::ffff:10.1.1.1")) && some.trusts(ip("::1")));
        assert!(!some.trusts(ip("11.0.0.1")) && !some.trusts(ip("::2")));
        assert!(!some.trusts_unix() && trusted(&["unix"]).trusts_unix() && trusted(&["*"]).trusts_unix());
    }

    #[test]
    fn the_client_is_the_first_untrusted_hop_from_the_right() {
        let proxies = trusted(&["127.0.0.1", "10.0.0.0/8"]);
        let cases = [
            ("203.0.113.9", Some(("203.0.113.9", None))),
            ("6.6.6.6, 203.0.113.9, 10.0.0.2", Some(("203.0.113.9", None))),
            ("10.0.0.3, 10.0.0.2", Some(("10.0.0.3", None))),
            ("203.0.113.9:5555", Some(("203.0.113.9", Some(5555)))),
            ("[2001:db8::9]:5555", Some(("2001:db8::9", Some(5555)))),
            ("[2001:db8::9]", Some(("2001:db8::9", None))),
            ("203.0.113.9, unknown, 10.0.0.2", Some(("10.0.0.2", None))),
            ("203.0.113.9, 10.0.0.2:_hidden", Some(("203.0.113.9", None))),
            // A trusted hop wrote what is no address: then nothing of it is believed.
            ("203.0.113.9, nonsense, 10.0.0.2", None),
            ("203.0.113.9, 10.0.0.2:99999", None),
            // What an untrusted one wrote does not matter.
            ("nonsense, 203.0.113.9", Some(("203.0.113.9", None))),
            ("unknown", None),
            ("", None),
        ];
        for (field, expected) in cases {
            let expected = expected.map(|(address, port)| (ip(address), port));
            assert_eq!(proxies.client(field), expected, "{field}");
        }
    }

    #[test]
    fn forwarded_is_walked_from_the_right() {
        let proxies = trusted(&["127.0.0.1", "10.0.0.0/8"]);
        type Expected<'a> = Option<(Option<(&'a str, Option<u16>)>, Option<&'a str>, Option<&'a str>)>;
        let client = |text| Some((text, None));
        let cases: [(&str, Expected<'_>); 24] = [
            ("for=203.0.113.9", Some((client("203.0.113.9"), None, None))),
            ("For=203.0.113.9;PROTO=https;by=10.0.0.1", Some((client("203.0.113.9"), Some("https"), None))),
            (
                "for=203.0.113.9; proto=https ; host=a.example",
                Some((client("203.0.113.9"), Some("https"), Some("a.example"))),
            ),
            ("for=\"203.0.113.9:4711\"", Some((Some(("203.0.113.9", Some(4711))), None, None))),
            ("for=\"[2001:db8::17]:4711\"", Some((Some(("2001:db8::17", Some(4711))), None, None))),
            ("for=\"[2001:db8::17]\"", Some((client("2001:db8::17"), None, None))),
            ("for=\"203.0.113.9:_x\"", Some((client("203.0.113.9"), None, None))),
            ("for=203.0.113.9:4711", Some((Some(("203.0.113.9", Some(4711))), None, None))),
            // The outermost trusted hop tells the scheme.
            (
                "for=6.6.6.6;proto=http, for=203.0.113.9;proto=https, for=10.0.0.2;proto=http",
                Some((client("203.0.113.9"), Some("https"), None)),
            ),
            ("for=203.0.113.9, for=10.0.0.2;proto=https", Some((client("203.0.113.9"), Some("https"), None))),
            ("for=unknown;proto=https, for=10.0.0.2", Some((client("10.0.0.2"), Some("https"), None))),
            ("for=_hidden", Some((None, None, None))),
            ("proto=https", Some((None, Some("https"), None))),
            ("for=203.0.113.9,,", Some((client("203.0.113.9"), None, None))),
            ("", Some((None, None, None))),
            ("for=203.0.113.9;host=\"a,b;c\\\"d\"", Some((client("203.0.113.9"), None, Some("a,b;c\"d")))),
            // A client's own quotation mark does not swallow what the proxy added.
            ("for=\"6.6.6.6, for=203.0.113.9", Some((client("203.0.113.9"), None, None))),
            ("for=6.6.6.6;x=\"\\, for=203.0.113.9;host=\"h\"", Some((client("203.0.113.9"), None, Some("h")))),
            ("nonsense, for=203.0.113.9", Some((client("203.0.113.9"), None, None))),
            // What a trusted hop wrote is malformed.
            ("for=203.0.113.9, nonsense", None),
            ("for=", None),
            ("for=1.2.3.4;for=5.6.7.8", None),
            ("for=nonsense", None),
            ("for=\"1.2.3.4", None),
        ];
        for (field, expected) in cases {
            let hops = proxies.forwarded(field);
            let expected = expected.map(|(client, proto, host)| Hops {
                client: client.map(|(address, port)| (ip(address), port)),
                proto: proto.map(Cow::Borrowed),
                host: host.map(Cow::Borrowed),
            });
            assert_eq!(hops, expected, "{field}");
        }
        let believed = Believed::new(&[ForwardedHeader::Forwarded, ForwardedHeader::Host]);
        assert!(believed.family == Family::Forwarded && believed.client && believed.host && !believed.prefix);
    }

    #[test]
    fn hosts_that_are_none() {
        assert!(["a.example", "a_b:8000", "[::1]:80"].into_iter().all(host_is_plausible));
        assert!(!["", "a b", "a/b", "a\nb", "é", "a@b", "a,b"].into_iter().any(host_is_plausible));
    }

    #[test]
    fn the_nearest_proxy_has_the_last_word() {
        assert_eq!((last_element("http, https "), last_element("https"), last_element("")), ("https", "https", ""));
    }
}
