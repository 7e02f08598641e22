//! TCP sockets: bound, not yet listening.

use std::io;

use socket2::{Domain, SockAddr, Socket, Type};

use super::error::explain;
use super::{ListenError, Listener, ListenerState};
use crate::config::settings::Bind;

pub(super) fn bind(bind: &Bind, address: std::net::SocketAddr) -> Result<Listener, ListenError> {
    let failed = |error: io::Error| explain(bind, &error);
    let domain = Domain::for_address(address);
    let socket = Socket::new(domain, Type::STREAM.cloexec().nonblocking(), None).map_err(failed)?;
    // Connections of a previous master in TIME_WAIT would otherwise keep the port for a minute. On Linux this does
    // not let two sockets listen on one port (socket(7)).
    socket.set_reuse_address(true).map_err(failed)?;
    if address.is_ipv6() {
        // Whatever net.ipv6.bindv6only says: `[::]:P` and `0.0.0.0:P` are two addresses here.
        socket.set_only_v6(true).map_err(failed)?;
    }
    socket.bind(&SockAddr::from(address)).map_err(failed)?;
    let bound = socket.local_addr().map_err(failed)?;
    let address = bound.as_socket().map_or_else(|| bind.to_string(), |address| address.to_string());
    Ok(Listener { bind: bind.clone(), address, socket, stage: ListenerState::Bound { file: None } })
}
