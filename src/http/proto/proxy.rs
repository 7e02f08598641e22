//! The PROXY protocol, versions 1 and 2 (haproxy's doc/proxy-protocol.txt): what a proxy says of its client before
//! the first byte of HTTP. The listener's setting says whether it is there and which version. It is never sniffed,
//! because where it may be missing a client can send it itself.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::refusal::{self, Refusal};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProxyVersion {
    V1,
    V2,
}

/// What the proxy said.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ProxyHeader {
    /// Who connected to the proxy, and to which of its addresses. None: the proxy speaks for itself (`LOCAL`: a
    /// health check) or for a client without an internet address (`UNKNOWN`, `AF_UNSPEC`, `AF_UNIX`); then the
    /// connection's own addresses count, as section 2 has it.
    pub addresses: Option<(SocketAddr, SocketAddr)>,
    /// The client's connection to the proxy was TLS (version 2, `PP2_TYPE_SSL` with `PP2_CLIENT_SSL`).
    pub secure: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Parsed {
    /// What has come is the beginning of a header.
    More,
    Complete {
        header: ProxyHeader,
        /// The header's length; HTTP begins there.
        end: usize,
    },
}

/// Section 2.1: the longest line of version 1, its CRLF included.
const LINE_BYTES_MAX: usize = 107;

/// The fixed part of version 2.
const FIXED_BYTES: usize = 16;

/// Of a version 2 header. Addresses are at most 216 bytes; what follows are a few short values. nginx: 4096.
const HEADER_BYTES_MAX: usize = 4096;

const SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";

/// Reads a header from the front of what has come so far.
pub fn parse(version: ProxyVersion, bytes: &[u8]) -> Result<Parsed, Refusal> {
    match version {
        ProxyVersion::V1 => parse_v1(bytes),
        ProxyVersion::V2 => parse_v2(bytes),
    }
}

/// `PROXY TCP4 192.0.2.1 192.0.2.2 56324 443\r\n`
fn parse_v1(bytes: &[u8]) -> Result<Parsed, Refusal> {
    const BEGINNING: &[u8] = b"PROXY ";
    let known = bytes.len().min(BEGINNING.len());
    if bytes[..known] != BEGINNING[..known] {
        return Err(refusal::PROXY_MISSING);
    }
    let window = &bytes[..bytes.len().min(LINE_BYTES_MAX)];
    let Some(lf) = window.iter().position(|&byte| byte == b'\n') else {
        return if window.len() == LINE_BYTES_MAX { Err(refusal::PROXY_INVALID) } else { Ok(Parsed::More) };
    };
    let line = window[..lf].strip_suffix(b"\r").ok_or(refusal::PROXY_INVALID)?;
    let line = core::str::from_utf8(line).map_err(|_| refusal::PROXY_INVALID)?;
    let addresses = v1_addresses(&line[BEGINNING.len()..]).ok_or(refusal::PROXY_INVALID)?;
    Ok(Parsed::Complete { header: ProxyHeader { addresses, secure: false }, end: lf + 1 })
}

/// What stands after `PROXY `. None: malformed. Some(None): no addresses.
fn v1_addresses(rest: &str) -> Option<Option<(SocketAddr, SocketAddr)>> {
    let mut words = rest.split(' ');
    let family = words.next()?;
    let parse = |text: &str| -> Option<IpAddr> {
        match family {
            "TCP4" => text.parse::<Ipv4Addr>().ok().map(IpAddr::V4),
            "TCP6" => text.parse::<Ipv6Addr>().ok().map(|address| address.to_canonical()),
            _ => None,
        }
    };
    if family == "UNKNOWN" {
        // Whatever else stands in the line is to be ignored, up to the CRLF.
        return (!rest.contains(|c: char| c.is_control())).then_some(None);
    }
    let (source, destination) = (parse(words.next()?)?, parse(words.next()?)?);
    let (source_port, destination_port) = (v1_port(words.next()?)?, v1_port(words.next()?)?);
    let addresses = (SocketAddr::new(source, source_port), SocketAddr::new(destination, destination_port));
    words.next().is_none().then_some(Some(addresses))
}

/// Digits without sign and without leading zeroes.
fn v1_port(text: &str) -> Option<u16> {
    let plain = text == "0" || !text.starts_with(['0', '+']);
    text.parse().ok().filter(|_| plain)
}

fn parse_v2(bytes: &[u8]) -> Result<Parsed, Refusal> {
    let known = bytes.len().min(SIGNATURE.len());
    if bytes[..known] != SIGNATURE[..known] {
        return Err(refusal::PROXY_MISSING);
    }
    let Some(fixed) = bytes.get(..FIXED_BYTES) else { return Ok(Parsed::More) };
    let (command, family) = (fixed[12], fixed[13]);
    let end = FIXED_BYTES + usize::from(u16::from_be_bytes([fixed[14], fixed[15]]));
    // 0x20 is LOCAL, 0x21 is PROXY; connections with anything else must be dropped (section 2.2).
    if !matches!(command, 0x20 | 0x21) || end > HEADER_BYTES_MAX {
        return Err(refusal::PROXY_INVALID);
    }
    let Some(whole) = bytes.get(..end) else { return Ok(Parsed::More) };
    let rest = &whole[FIXED_BYTES..];
    // LOCAL: the family is to be ignored, and so is what it would say about the length of the addresses.
    let length = match (command, family) {
        (0x20, _) | (_, 0x00) => return Ok(Parsed::Complete { header: ProxyHeader::default(), end }),
        (_, 0x11) => 12,
        (_, 0x21) => 36,
        (_, 0x31) => 216,
        // Datagrams and families that do not exist cannot be what is inside a TCP connection.
        (_, _) => return Err(refusal::PROXY_INVALID),
    };
    let (addresses, values) = rest.split_at_checked(length).ok_or(refusal::PROXY_INVALID)?;
    let secure = read_values(whole, end - values.len())?;
    Ok(Parsed::Complete { header: ProxyHeader { addresses: v2_addresses(addresses), secure }, end })
}

fn v2_addresses(bytes: &[u8]) -> Option<(SocketAddr, SocketAddr)> {
    match *bytes {
        [a, b, c, d, e, f, g, h, p, q, r, s] => Some((
            SocketAddr::new(Ipv4Addr::new(a, b, c, d).into(), u16::from_be_bytes([p, q])),
            SocketAddr::new(Ipv4Addr::new(e, f, g, h).into(), u16::from_be_bytes([r, s])),
        )),
        [ref both @ .., p, q, r, s] if both.len() == 32 => {
            let (source, destination) = both.split_at(16);
            let address = |bytes: &[u8]| <[u8; 16]>::try_from(bytes).ok().map(|b| Ipv6Addr::from(b).to_canonical());
            Some((
                SocketAddr::new(address(source)?, u16::from_be_bytes([p, q])),
                SocketAddr::new(address(destination)?, u16::from_be_bytes([r, s])),
            ))
        }
        _ => None,
    }
}

/// Goes through the values (type, length, bytes) from `at` to the header's end; true: the client came by TLS. The
/// checksum must be right where there is one (section 2.2.3).
fn read_values(whole: &[u8], at: usize) -> Result<bool, Refusal> {
    const TYPE_CRC32C: u8 = 0x03;
    const TYPE_SSL: u8 = 0x20;
    const CLIENT_SSL: u8 = 0x01;
    let mut secure = false;
    let mut at = at;
    while let Some(start) = whole.get(at..).filter(|rest| !rest.is_empty()) {
        let [kind, high, low, ref rest @ ..] = *start else { return Err(refusal::PROXY_INVALID) };
        let value = rest.get(..usize::from(u16::from_be_bytes([high, low]))).ok_or(refusal::PROXY_INVALID)?;
        match (kind, value) {
            (TYPE_CRC32C, &[a, b, c, d]) => {
                let value_at = at + 3;
                let zeroed = whole.iter().enumerate().map(|(index, &byte)| {
                    let inside = (value_at..value_at + 4).contains(&index);
                    if inside {
                        0
                    } else {
                        byte
                    }
                });
                if crc32c(zeroed) != u32::from_be_bytes([a, b, c, d]) {
                    return Err(refusal::PROXY_INVALID);
                }
            }
            (TYPE_CRC32C, _) => return Err(refusal::PROXY_INVALID),
            // client, then verify in four bytes, then values of its own.
            (TYPE_SSL, &[client, _, _, _, _, ..]) => secure = client & CLIENT_SSL != 0,
            (TYPE_SSL, _) => return Err(refusal::PROXY_INVALID),
            (_, _) => {}
        }
        at += 3 + value.len();
    }
    Ok(secure)
}

/// RFC 3720 appendix B.4 names the polynomial; here it is reflected. Bit by bit: headers are short and rare.
fn crc32c(bytes: impl Iterator<Item = u8>) -> u32 {
    !bytes.fold(!0u32, |crc, byte| {
        (0..8).fold(crc ^ u32::from(byte), |crc, _| if crc & 1 == 1 { crc >> 1 ^ 0x82f6_3b78 } else { crc >> 1 })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn complete(version: ProxyVersion, bytes: &[u8]) -> (ProxyHeader, usize) {
        match parse(version, bytes) {
            Ok(Parsed::Complete { header, end }) => (header, end),
            other => panic!("{bytes:?}: {other:?}"),
        }
    }

    /// Byte by byte nothing else may come out: `More` until the end, or the same refusal.
    fn grows(version: ProxyVersion, bytes: &[u8]) -> Result<Parsed, Refusal> {
        let whole = parse(version, bytes);
        for end in 0..bytes.len() {
            match parse(version, &bytes[..end]) {
                Ok(Parsed::More) => {}
                early => {
                    assert_eq!(early, whole, "{end} bytes of {bytes:?}");
                    break;
                }
            }
        }
        whole
    }

    fn v2(command: u8, family: u8, rest: &[u8]) -> Vec<u8> {
        let length = (rest.len() as u16).to_be_bytes();
        [&SIGNATURE[..], &[command, family], &length, rest].concat()
    }

    const INET: &[u8] = &[192, 0, 2, 1, 10, 0, 0, 1, 0xdc, 0x04, 0x01, 0xbb];

    #[test]
    fn version_1() {
        let addresses = |text: &str| complete(ProxyVersion::V1, text.as_bytes()).0.addresses;
        let pair = |a: &str, b: &str| Some((a.parse().expect("an address"), b.parse().expect("an address")));
        assert_eq!(
            addresses("PROXY TCP4 192.0.2.1 10.0.0.1 56324 443\r\nGET"),
            pair("192.0.2.1:56324", "10.0.0.1:443")
        );
        assert_eq!(addresses("PROXY TCP6 2001:db8::1 ::1 1 65535\r\n"), pair("[2001:db8::1]:1", "[::1]:65535"));
        assert_eq!(addresses("PROXY TCP6 ::ffff:192.0.2.1 ::1 1 0\r\n"), pair("192.0.2.1:1", "[::1]:0"));
        assert_eq!(addresses("PROXY UNKNOWN\r\n"), None);
        assert_eq!(addresses("PROXY UNKNOWN ffff:f...f ffff:f...f 65535 65535\r\n"), None);
        assert_eq!(complete(ProxyVersion::V1, b"PROXY UNKNOWN\r\nGET").1, 15);
    }

    #[test]
    fn version_1_refused() {
        for missing in ["GET / HTTP/1.1\r\n", "PROXYTCP4", "proxy TCP4 ", "\r\n\r\n\0\r\nQUIT\n", "P\r"] {
            assert_eq!(grows(ProxyVersion::V1, missing.as_bytes()), Err(refusal::PROXY_MISSING), "{missing}");
        }
        for line in [
            "TCP4 1.2.3.4 1.2.3.4 1 2 ",
            "TCP4 1.2.3.4 1.2.3.4 1 2 3",
            "TCP4  1.2.3.4 1.2.3.4 1 2",
            "TCP4 1.2.3.4 1.2.3.4 1",
            "TCP4 1.2.3.4 1.2.3.4 1 65536",
            "TCP4 1.2.3.4 1.2.3.4 01 2",
            "TCP4 1.2.3.4 1.2.3.4 +1 2",
            "TCP4 1.2.3.4 1.2.3.4 -1 2",
            "TCP4 1.2.3.4 1.2.3.4 1 ",
            "TCP4 01.2.3.4 1.2.3.4 1 2",
            "TCP4 1.2.3 1.2.3.4 1 2",
            "TCP4 ::1 ::1 1 2",
            "TCP6 1.2.3.4 1.2.3.4 1 2",
            "TCP6 [::1] [::1] 1 2",
            "TCP6 fe80::1%eth0 ::1 1 2",
            "UDP4 1.2.3.4 1.2.3.4 1 2",
            "tcp4 1.2.3.4 1.2.3.4 1 2",
            "UNKNOWN\t",
            "UNKNOWN\0",
            "UNKNOWNS",
            "",
            "TCP4 \u{e9} 1.2.3.4 1 2",
        ] {
            let text = format!("PROXY {line}\r\nGET / HTTP/1.1\r\n\r\n");
            assert_eq!(grows(ProxyVersion::V1, text.as_bytes()), Err(refusal::PROXY_INVALID), "{line:?}");
        }
        assert_eq!(grows(ProxyVersion::V1, b"PROXY UNKNOWN\n"), Err(refusal::PROXY_INVALID));
        let long = |bytes: usize| format!("PROXY UNKNOWN {}\r\n", "x".repeat(bytes - 16));
        assert_eq!(complete(ProxyVersion::V1, long(107).as_bytes()).1, 107);
        assert_eq!(grows(ProxyVersion::V1, long(108).as_bytes()), Err(refusal::PROXY_INVALID));
        assert_eq!(grows(ProxyVersion::V1, "PROXY TCP4 1.2.3.4 \u{ff}\r\n".as_bytes()), Err(refusal::PROXY_INVALID));
    }

    #[test]
    fn version_2() {
        let header = |bytes: Vec<u8>| complete(ProxyVersion::V2, &bytes).0;
        let inet = header(v2(0x21, 0x11, INET));
        assert_eq!(inet.addresses.map(|(a, b)| (a.to_string(), b.to_string())), {
            Some(("192.0.2.1:56324".to_string(), "10.0.0.1:443".to_string()))
        });
        let mut inet6 = [0u8; 36];
        inet6[15] = 1;
        inet6[26..32].copy_from_slice(&[0xff, 0xff, 10, 0, 0, 9]);
        inet6[33] = 80;
        let six = header(v2(0x21, 0x21, &inet6)).addresses.map(|(a, b)| (a.to_string(), b.to_string()));
        assert_eq!(six, Some(("[::1]:80".to_string(), "10.0.0.9:0".to_string())));
        for local in
            [v2(0x20, 0x11, INET), v2(0x20, 0x77, b"x"), v2(0x21, 0x00, b"whatever"), v2(0x21, 0x31, &[1; 216])]
        {
            assert_eq!(header(local), ProxyHeader::default());
        }
        let bytes = [v2(0x21, 0x11, INET), b"GET".to_vec()].concat();
        assert_eq!(complete(ProxyVersion::V2, &bytes).1, 28);
        for end in 0..28 {
            assert_eq!(parse(ProxyVersion::V2, &bytes[..end]), Ok(Parsed::More));
        }
    }

    #[test]
    fn version_2_values() {
        let with = |values: &[u8]| v2(0x21, 0x11, &[INET, values].concat());
        let secure = |values: &[u8]| complete(ProxyVersion::V2, &with(values)).0.secure;
        assert!(secure(&[0x20, 0, 5, 1, 0, 0, 0, 0]));
        assert!(secure(&[0x04, 0, 2, 9, 9, 0x20, 0, 8, 7, 0, 0, 0, 0, 0x21, 0, 0]));
        assert!(!secure(&[0x20, 0, 5, 0, 0, 0, 0, 0]) && !secure(&[]) && !secure(&[0xea, 0, 1, 0]));
        let mut sum = with(&[0x03, 0, 4, 0, 0, 0, 0]);
        let crc = crc32c(sum.iter().copied());
        sum[31..35].copy_from_slice(&crc.to_be_bytes());
        assert_eq!(complete(ProxyVersion::V2, &sum).1, 35);
        sum[34] ^= 1;
        assert_eq!(grows(ProxyVersion::V2, &sum), Err(refusal::PROXY_INVALID));
        for values in
            [&[0x20u8, 0, 5, 1, 0, 0, 0][..], &[0x20, 0, 4, 1, 0, 0, 0], &[0x20], &[0x04, 0], &[0x03, 0, 3, 0, 0, 0]]
        {
            assert_eq!(grows(ProxyVersion::V2, &with(values)), Err(refusal::PROXY_INVALID), "{values:?}");
        }
        // The check value of the catalogue of parametrised CRC algorithms.
        assert_eq!(crc32c(b"123456789".iter().copied()), 0xe306_9283);
    }

    #[test]
    fn version_2_refused() {
        for bytes in [&b"GET / HTTP/1.1\r\n\r\n"[..], b"\r\nGET", b"PROXY TCP4 ", b"\r\n\r\n\0\r\nQUIT\r"] {
            assert_eq!(grows(ProxyVersion::V2, bytes), Err(refusal::PROXY_MISSING), "{bytes:?}");
        }
        for (command, family, rest) in [
            (0x22, 0x11, INET),
            (0x11, 0x11, INET),
            (0x21, 0x12, INET),
            (0x21, 0x01, INET),
            (0x21, 0x41, INET),
            (0x21, 0x11, &INET[..11]),
            (0x21, 0x21, INET),
            (0x21, 0x31, INET),
        ] {
            let bytes = v2(command, family, rest);
            assert_eq!(grows(ProxyVersion::V2, &bytes), Err(refusal::PROXY_INVALID), "{command:x} {family:x}");
        }
        assert_eq!(complete(ProxyVersion::V2, &v2(0x20, 0, &[0; 4080])).1, 4096);
        assert_eq!(grows(ProxyVersion::V2, &v2(0x20, 0, &[0; 4081])), Err(refusal::PROXY_INVALID));
    }
}
