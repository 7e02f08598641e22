//! TCP sockets: bound, not yet listening.

use std::io;
use std::os::fd::AsRawFd;

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

/// Connections that wait to be accepted, and how many may. None: not a TCP socket, or the kernel does not say it.
/// tcp_get_info of the kernel (net/ipv4/tcp.c): a listening socket tells both, as tcpi_unacked and tcpi_sacked.
pub(super) fn queue(socket: &Socket) -> Option<(u32, u32)> {
    /// The beginning of `struct tcp_info` (linux/tcp.h): eight bytes, then numbers of 32 bits.
    #[repr(C)]
    #[derive(Default)]
    struct TcpInfo {
        bytes: [u8; 8],
        rto: u32,
        ato: u32,
        snd_mss: u32,
        rcv_mss: u32,
        unacked: u32,
        sacked: u32,
    }
    let mut info = TcpInfo::default();
    let mut length = size_of::<TcpInfo>() as libc::socklen_t;
    // SAFETY: the kernel writes at most `length` bytes into a struct of that size.
    let failed = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            (&raw mut info).cast::<libc::c_void>(),
            &mut length,
        )
    };
    (failed == 0 && length as usize == size_of::<TcpInfo>()).then_some((info.unacked, info.sacked))
}
