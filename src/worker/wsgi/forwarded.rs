//! Who is believed about where a request came from: `http.forwarded_allow_ips` and `http.forwarded_headers`.

use std::net::{IpAddr, SocketAddr};

/// The peers whose `X-Forwarded-*` fields are believed.
#[derive(Clone, Debug, Default)]
pub struct Trusted {
    everyone: bool,
    unix: bool,
    networks: Vec<(IpAddr, u32)>,
}

/// Which of the fields are believed from such a peer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Believed {
    pub client: bool,
    pub proto: bool,
    pub host: bool,
    pub prefix: bool,
}

impl Trusted {
    /// Entries are addresses, networks (`10.0.0.0/8`), `unix` and `*`. Returns those that are none of these too.
    pub fn parse(entries: &[String]) -> (Trusted, Vec<String>) {
        let mut trusted = Trusted::default();
        let mut unknown = Vec::new();
        for entry in entries {
            match entry.trim() {
                "*" => trusted.everyone = true,
                "unix" => trusted.unix = true,
                text => match network(text) {
                    Some(network) => trusted.networks.push(network),
                    None => unknown.push(entry.clone()),
                },
            }
        }
        (trusted, unknown)
    }

    pub fn trusts_unix(&self) -> bool {
        self.everyone || self.unix
    }

    pub fn trusts(&self, address: IpAddr) -> bool {
        self.everyone || self.networks.iter().any(|(network, bits)| contains(*network, *bits, address.to_canonical()))
    }

    /// Walks `X-Forwarded-For` from the right, where the nearest proxy wrote, to the first hop that is not
    /// trusted: everything left of it may be the client's invention. Where all are trusted it is the leftmost.
    /// An entry that is no address ends the walk at the hop that reported it. None: nothing better is known than
    /// the peer itself.
    pub fn client(&self, forwarded_for: &str) -> Option<(IpAddr, Option<u16>)> {
        let mut client = None;
        for entry in forwarded_for.rsplit(',') {
            let Some((address, port)) = hop(entry.trim()) else { break };
            client = Some((address, port));
            if !self.trusts(address) {
                break;
            }
        }
        client
    }
}

impl Believed {
    pub fn parse(names: &[String]) -> (Believed, Vec<String>) {
        let mut believed = Believed::default();
        let mut unknown = Vec::new();
        for name in names {
            match name.as_str() {
                "for" => believed.client = true,
                "proto" => believed.proto = true,
                "host" => believed.host = true,
                "prefix" => believed.prefix = true,
                _other => unknown.push(name.clone()),
            }
        }
        (believed, unknown)
    }
}

/// The last of a comma-separated list: what the peer itself says, not what it passes on.
pub fn last_element(value: &str) -> &str {
    value.rsplit(',').next().unwrap_or_default().trim()
}

/// `192.0.2.1`, `192.0.2.1:8080`, `2001:db8::1`, `[2001:db8::1]`, `[2001:db8::1]:8080`, quoted or not.
fn hop(entry: &str) -> Option<(IpAddr, Option<u16>)> {
    let entry = entry.trim_matches('"');
    if let Ok(address) = entry.parse::<IpAddr>() {
        return Some((address.to_canonical(), None));
    }
    if let Ok(address) = entry.parse::<SocketAddr>() {
        return Some((address.ip().to_canonical(), Some(address.port())));
    }
    let bare = entry.strip_prefix('[')?.strip_suffix(']')?;
    bare.parse::<IpAddr>().ok().map(|address| (address.to_canonical(), None))
}

fn network(text: &str) -> Option<(IpAddr, u32)> {
    let (address, bits) = match text.split_once('/') {
        Some((address, bits)) => (address, Some(bits)),
        None => (text, None),
    };
    let address: IpAddr = address.parse().ok()?;
    let bits_max = if address.is_ipv4() { 32 } else { 128 };
    let bits = match bits {
        Some(bits) => bits.parse().ok().filter(|bits| *bits <= bits_max)?,
        None => bits_max,
    };
    Some((address, bits))
}

fn contains(network: IpAddr, bits: u32, address: IpAddr) -> bool {
    match (network, address) {
        (IpAddr::V4(network), IpAddr::V4(address)) => {
            let differing = network.to_bits() ^ address.to_bits();
            differing.checked_shr(32 - bits).unwrap_or(0) == 0
        }
        (IpAddr::V6(network), IpAddr::V6(address)) => {
            let differing = network.to_bits() ^ address.to_bits();
            differing.checked_shr(128 - bits).unwrap_or(0) == 0
        }
        (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trusted(entries: &[&str]) -> Trusted {
        let entries: Vec<String> = entries.iter().map(|entry| entry.to_string()).collect();
        let (trusted, unknown) = Trusted::parse(&entries);
        assert!(unknown.is_empty(), "{unknown:?}");
        trusted
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn networks_contain_what_they_say() {
        let some = trusted(&["10.0.0.0/8", "192.0.2.7", "2001:db8::/32", "::1"]);
        for inside in ["10.255.0.1", "192.0.2.7", "2001:db8:1::1", "::1", "::ffff:10.1.1.1"] {
            assert!(some.trusts(ip(inside)), "{inside}");
        }
        for outside in ["11.0.0.1", "192.0.2.8", "2001:db9::1", "::2"] {
            assert!(!some.trusts(ip(outside)), "{outside}");
        }
        assert!(!some.trusts_unix() && trusted(&["unix"]).trusts_unix() && trusted(&["*"]).trusts_unix());
        assert!(trusted(&["0.0.0.0/0"]).trusts(ip("203.0.113.9")) && !trusted(&["0.0.0.0/0"]).trusts(ip("::2")));
    }

    #[test]
    fn what_is_no_address_is_named() {
        let entries = ["localhost", "10.0.0.0/33", "::1/129", "127.0.0.1"].map(str::to_owned);
        assert_eq!(Trusted::parse(&entries).1, ["localhost", "10.0.0.0/33", "::1/129"]);
        let (believed, unknown) = Believed::parse(&["for", "by"].map(str::to_owned));
        assert!(believed.client && !believed.proto && unknown == ["by"]);
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
            ("unknown", None),
            ("", None),
        ];
        for (field, expected) in cases {
            let expected = expected.map(|(address, port)| (ip(address), port));
            assert_eq!(proxies.client(field), expected, "{field}");
        }
    }

    #[test]
    fn the_nearest_proxy_has_the_last_word() {
        assert_eq!((last_element("http, https "), last_element("https"), last_element("")), ("https", "https", ""));
    }
}
