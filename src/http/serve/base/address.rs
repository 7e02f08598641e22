//! Who speaks, and to which address.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;

#[derive(Clone, Debug)]
pub enum Peer {
    Inet(SocketAddr),
    Unix,
}

/// Where the request came in.
#[derive(Clone, Debug)]
pub enum Local {
    Inet(SocketAddr),
    Unix(PathBuf),
}

/// As log lines name a client.
impl fmt::Display for Peer {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Peer::Inet(address) => write!(formatter, "{address}"),
            Peer::Unix => write!(formatter, "a client of a Unix socket"),
        }
    }
}
