//! A peer that may say who a client is. The master reads it from the settings once; the worker gets it parsed.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// One entry of `[http] forwarded_allow_ips`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum TrustedPeer {
    /// `*`
    Everyone,
    /// `unix`: whoever connects to a Unix socket.
    Unix,
    /// `10.0.0.0/8`: a network, and how many of its leading bits count. A single address has all of them.
    Network(IpAddr, u8),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotAPeer;

impl TrustedPeer {
    pub fn contains(&self, address: IpAddr) -> bool {
        match (self, address.to_canonical()) {
            (TrustedPeer::Everyone, _) => true,
            (TrustedPeer::Network(IpAddr::V4(network), bits), IpAddr::V4(address)) => {
                let differing = network.to_bits() ^ address.to_bits();
                differing.checked_shr(32 - u32::from(*bits)).unwrap_or(0) == 0
            }
            (TrustedPeer::Network(IpAddr::V6(network), bits), IpAddr::V6(address)) => {
                let differing = network.to_bits() ^ address.to_bits();
                differing.checked_shr(128 - u32::from(*bits)).unwrap_or(0) == 0
            }
            (TrustedPeer::Network(..) | TrustedPeer::Unix, _) => false,
        }
    }
}

impl FromStr for TrustedPeer {
    type Err = NotAPeer;

    fn from_str(text: &str) -> Result<TrustedPeer, NotAPeer> {
        match text {
            "*" => return Ok(TrustedPeer::Everyone),
            "unix" => return Ok(TrustedPeer::Unix),
            _address => {}
        }
        let (address, bits) = match text.split_once('/') {
            Some((address, bits)) => (address, Some(bits)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().map_err(|_| NotAPeer)?;
        let bits_max = bits_of(address);
        let bits = match bits {
            None => bits_max,
            Some(bits) => bits.parse().ok().filter(|bits| *bits <= bits_max).ok_or(NotAPeer)?,
        };
        // Addresses are compared in their canonical form, so networks have it too: `::ffff:10.0.0.0/104` is `10.0.0.0/8`.
        match (address, address.to_canonical()) {
            (IpAddr::V6(_), canonical @ IpAddr::V4(_)) if bits >= 96 => Ok(TrustedPeer::Network(canonical, bits - 96)),
            (address, _) => Ok(TrustedPeer::Network(address, bits)),
        }
    }
}

impl fmt::Display for TrustedPeer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            TrustedPeer::Everyone => f.write_str("*"),
            TrustedPeer::Unix => f.write_str("unix"),
            TrustedPeer::Network(address, bits) if *bits == bits_of(*address) => address.fmt(f),
            TrustedPeer::Network(address, bits) => write!(f, "{address}/{bits}"),
        }
    }
}

fn bits_of(address: IpAddr) -> u8 {
    if address.is_ipv4() {
        32
    } else {
        128
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_read_and_shown_the_same() {
        for text in ["*", "unix", "10.0.0.1", "10.0.0.0/8", "0.0.0.0/0", "::1", "2001:db8::/32"] {
            assert_eq!(text.parse::<TrustedPeer>().expect(text).to_string(), text);
        }
        assert_eq!("10.0.0.1/32".parse::<TrustedPeer>().expect("a network").to_string(), "10.0.0.1");
        for text in ["", "localhost", "10.0.0.0/33", "::1/129", "10.0.0.0/", "*/8", "unix/1", " ::1"] {
            assert_eq!(text.parse::<TrustedPeer>(), Err(NotAPeer), "{text}");
        }
    }

    #[test]
    fn networks_contain_what_they_say() {
        let contains = |network: &str, address: &str| {
            let network: TrustedPeer = network.parse().expect("a network");
            network.contains(address.parse().expect("an address"))
        };
        for (network, inside) in [
            ("10.0.0.0/8", "10.255.0.1"),
            ("10.0.0.0/8", "::ffff:10.1.1.1"),
            ("192.0.2.7", "192.0.2.7"),
            ("2001:db8::/32", "2001:db8:1::1"),
            ("::1", "::1"),
            ("::ffff:10.0.0.0/104", "10.1.1.1"),
            ("0.0.0.0/0", "203.0.113.9"),
            ("*", "::2"),
        ] {
            assert!(contains(network, inside), "{network} {inside}");
        }
        for (network, outside) in [
            ("10.0.0.0/8", "11.0.0.1"),
            ("192.0.2.7", "192.0.2.8"),
            ("2001:db8::/32", "2001:db9::1"),
            ("::1", "::2"),
            ("0.0.0.0/0", "::2"),
            ("unix", "127.0.0.1"),
        ] {
            assert!(!contains(network, outside), "{network} {outside}");
        }
    }
}
