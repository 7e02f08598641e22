//! What travels with a connection from one worker to another: a header of fixed fields, then the bytes that were read from
//! the client and not used. It touches no socket.
//!
//! Workers of several generations, and after an upgrade of several versions, receive from one queue. Therefore the header
//! has a length: fields that a receiver does not know stand at the end and are skipped. A field never changes its meaning.
//! A change that cannot be skipped needs a queue of its own.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};

use crate::message::{ListenerId, ProxyProtocol};

/// Bytes of a client that may travel with its connection. Nearly all heads are smaller; nginx reads 32 KiB at most.
pub const BYTES_MAX: usize = 16 * 1024;

/// Fields of later versions included.
pub const HEADER_BYTES_MAX: usize = 4 * 1024;

/// What this version writes.
pub const HEADER_BYTES: usize = 80;

const SECURE: u16 = 1 << 0;
const AWAITS_PROXY_V1: u16 = 1 << 1;
const AWAITS_PROXY_V2: u16 = 1 << 2;
const PROXY_TRUSTED: u16 = 1 << 3;
const FORKED: u16 = 1 << 4;
const HAS_LIMITS: u16 = 1 << 5;

/// What the receiver must know of the connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// Where the connection came in. The numbers are the service's and are never used again.
    pub listener: ListenerId,
    /// The client, as it is believed: by the kernel's word, or by a proxy's. None: a client of a Unix socket.
    pub peer: Option<SocketAddr>,
    /// The address that the client came to, likewise. None: a Unix socket, whose path its listener tells.
    pub local: Option<SocketAddr>,
    /// A proxy said that its client speaks TLS.
    pub secure: bool,
    /// A PROXY header must still come.
    pub awaits_proxy: Option<AwaitedProxy>,
    /// A child of the sender may hold a copy of the socket, so that close(2) alone does not end the connection.
    pub forked: bool,
    /// A request has begun, and these limits hold for its head: what was right when it was sent stays right.
    pub limits: Option<HeadLimits>,
    /// CLOCK_MONOTONIC in nanoseconds: since when a whole request waits for a thread. 0: none does.
    pub waits_since_ns: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AwaitedProxy {
    pub version: ProxyProtocol,
    /// The peer may say who its client is.
    pub trusted: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeadLimits {
    pub request_line: u32,
    pub field_size: u32,
    pub fields: u32,
    pub head: u32,
}

/// Why a message cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Malformed {
    Short,
    Long,
}

impl Header {
    pub fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut writer = Writer { bytes: [0; HEADER_BYTES], at: 0 };
        writer.put(&(HEADER_BYTES as u16).to_le_bytes());
        writer.put(&self.flags().to_le_bytes());
        writer.put(&self.listener.0.to_le_bytes());
        writer.put(&self.waits_since_ns.to_le_bytes());
        let HeadLimits { request_line, field_size, fields, head } = self.limits.unwrap_or(HeadLimits::NONE);
        for limit in [request_line, field_size, fields, head] {
            writer.put(&limit.to_le_bytes());
        }
        writer.put_address(self.peer);
        writer.put_address(self.local);
        writer.bytes
    }

    /// The header of a packet, and where its client's bytes begin.
    pub fn decode(packet: &[u8]) -> Result<(Header, usize), Malformed> {
        let mut reader = Reader { bytes: packet };
        let length = usize::from(u16::from_le_bytes(reader.take()?));
        if length < HEADER_BYTES || packet.len() < length {
            return Err(Malformed::Short);
        }
        if length > HEADER_BYTES_MAX || packet.len() - length > BYTES_MAX {
            return Err(Malformed::Long);
        }
        let flags = u16::from_le_bytes(reader.take()?);
        let has = |flag: u16| flags & flag != 0;
        let listener = ListenerId(u32::from_le_bytes(reader.take()?));
        let waits_since_ns = u64::from_le_bytes(reader.take()?);
        let mut limit = || reader.take().map(u32::from_le_bytes);
        let limits = HeadLimits { request_line: limit()?, field_size: limit()?, fields: limit()?, head: limit()? };
        let (peer, local) = (reader.take_address()?, reader.take_address()?);
        let trusted = has(PROXY_TRUSTED);
        let awaits_proxy = match (has(AWAITS_PROXY_V1), has(AWAITS_PROXY_V2)) {
            (true, false | true) => Some(AwaitedProxy { version: ProxyProtocol::V1, trusted }),
            (false, true) => Some(AwaitedProxy { version: ProxyProtocol::V2, trusted }),
            (false, false) => None,
        };
        let header = Header {
            listener,
            peer,
            local,
            secure: has(SECURE),
            awaits_proxy,
            forked: has(FORKED),
            limits: has(HAS_LIMITS).then_some(limits),
            waits_since_ns,
        };
        Ok((header, length))
    }

    fn flags(&self) -> u16 {
        let proxy = match self.awaits_proxy.map(|proxy| proxy.version) {
            Some(ProxyProtocol::V1) => AWAITS_PROXY_V1,
            Some(ProxyProtocol::V2) => AWAITS_PROXY_V2,
            None => 0,
        };
        let flag = |flag: u16, holds: bool| if holds { flag } else { 0 };
        proxy
            | flag(SECURE, self.secure)
            | flag(PROXY_TRUSTED, self.awaits_proxy.is_some_and(|proxy| proxy.trusted))
            | flag(FORKED, self.forked)
            | flag(HAS_LIMITS, self.limits.is_some())
    }
}

impl HeadLimits {
    const NONE: HeadLimits = HeadLimits { request_line: 0, field_size: 0, fields: 0, head: 0 };
}

impl Malformed {
    pub fn reason(self) -> &'static str {
        match self {
            Malformed::Short => "it is too short",
            Malformed::Long => "it is too long",
        }
    }
}

struct Writer {
    bytes: [u8; HEADER_BYTES],
    at: usize,
}

impl Writer {
    fn put(&mut self, bytes: &[u8]) {
        self.bytes[self.at..self.at + bytes.len()].copy_from_slice(bytes);
        self.at += bytes.len();
    }

    /// Family (0, 4 or 6), nothing, port, scope, address: 24 bytes.
    fn put_address(&mut self, address: Option<SocketAddr>) {
        let (family, port, scope, ip) = match address {
            None => (0, 0, 0, [0; 16]),
            Some(SocketAddr::V4(address)) => {
                let mut ip = [0; 16];
                ip[..4].copy_from_slice(&address.ip().octets());
                (4, address.port(), 0, ip)
            }
            Some(SocketAddr::V6(address)) => (6, address.port(), address.scope_id(), address.ip().octets()),
        };
        self.put(&[family, 0]);
        self.put(&port.to_le_bytes());
        self.put(&u32::to_le_bytes(scope));
        self.put(&ip);
    }
}

struct Reader<'a> {
    bytes: &'a [u8],
}

impl Reader<'_> {
    fn take<const LENGTH: usize>(&mut self) -> Result<[u8; LENGTH], Malformed> {
        let (taken, rest) = self.bytes.split_first_chunk::<LENGTH>().ok_or(Malformed::Short)?;
        self.bytes = rest;
        Ok(*taken)
    }

    fn take_address(&mut self) -> Result<Option<SocketAddr>, Malformed> {
        let [family, _] = self.take()?;
        let port = u16::from_le_bytes(self.take()?);
        let scope = u32::from_le_bytes(self.take()?);
        let ip: [u8; 16] = self.take()?;
        Ok(match family {
            4 => Some(SocketAddrV4::new(Ipv4Addr::new(ip[0], ip[1], ip[2], ip[3]), port).into()),
            6 => Some(SocketAddrV6::new(Ipv6Addr::from(ip), port, 0, scope).into()),
            _unix_or_later => None,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;

    fn header() -> Header {
        Header {
            listener: ListenerId(7),
            peer: Some(SocketAddr::new(IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)), 4711)),
            local: Some(SocketAddrV6::new(Ipv6Addr::LOCALHOST, 8000, 0, 3).into()),
            secure: true,
            awaits_proxy: Some(AwaitedProxy { version: ProxyProtocol::V2, trusted: true }),
            forked: true,
            limits: Some(HeadLimits { request_line: 8190, field_size: 8191, fields: 100, head: 65536 }),
            waits_since_ns: u64::MAX - 1,
        }
    }

    fn plain() -> Header {
        let (listener, waits_since_ns) = (ListenerId(0), 0);
        let (peer, local, awaits_proxy, limits) = (None, None, None, None);
        Header { listener, peer, local, secure: false, awaits_proxy, forked: false, limits, waits_since_ns }
    }

    #[test]
    fn every_field_arrives() {
        let v1 = Some(AwaitedProxy { version: ProxyProtocol::V1, trusted: false });
        for header in [header(), plain(), Header { awaits_proxy: v1, ..plain() }, Header { secure: true, ..plain() }] {
            let packet = [&header.encode()[..], b"GET / HTTP"].concat();
            assert_eq!(Header::decode(&packet), Ok((header, HEADER_BYTES)));
        }
    }

    #[test]
    fn fields_of_a_later_version_are_skipped() {
        let mut packet = header().encode().to_vec();
        packet[..2].copy_from_slice(&(HEADER_BYTES as u16 + 3).to_le_bytes());
        packet.extend_from_slice(b"newGET /");
        assert_eq!(Header::decode(&packet), Ok((header(), HEADER_BYTES + 3)));
    }

    /// Also flags and a family that this version does not know.
    #[test]
    fn no_packet_is_a_panic() {
        let mut packet = [&header().encode()[..], &[b'x'; 100]].concat();
        for length in 0..HEADER_BYTES {
            assert_eq!(Header::decode(&packet[..length]), Err(Malformed::Short), "{length} bytes");
        }
        for claimed in [0, 1, HEADER_BYTES as u16 - 1, HEADER_BYTES as u16 + 101, u16::MAX] {
            packet[..2].copy_from_slice(&claimed.to_le_bytes());
            assert_eq!(Header::decode(&packet), Err(Malformed::Short), "it claims {claimed} bytes");
        }
        let long = [&header().encode()[..], &[b'x'; BYTES_MAX + 1]].concat();
        assert_eq!(Header::decode(&long), Err(Malformed::Long));
        let all = [&(HEADER_BYTES as u16).to_le_bytes()[..], &[0xff; HEADER_BYTES]].concat();
        let (odd, _) = Header::decode(&all).expect("every bit is set");
        assert_eq!((odd.peer, odd.local), (None, None));
        let padded = [&u16::to_le_bytes(HEADER_BYTES_MAX as u16 + 1)[..], &[0; HEADER_BYTES_MAX]].concat();
        assert_eq!(Header::decode(&padded), Err(Malformed::Long));
    }
}
