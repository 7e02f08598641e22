//! The system calls on sockets, one a function, with the flags that must never be forgotten: MSG_NOSIGNAL
//! (a client that leaves is no reason for SIGPIPE), CLOEXEC and NONBLOCK at birth.

use std::io::{self, IoSlice};
use std::mem::{size_of, zeroed, MaybeUninit};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::path::PathBuf;
use std::time::Duration;

use crate::serve::base::address::{Local, Peer};

fn check(outcome: libc::ssize_t) -> io::Result<usize> {
    usize::try_from(outcome).map_err(|_| io::Error::last_os_error())
}

/// The two calls of a request are made without the C library's functions, which are cancellation points (pthreads(7)):
/// in a process with threads each would change the thread's state twice with atomic operations.
///
/// # Safety
/// As recv(2).
unsafe fn recv(fd: RawFd, buffer: *mut libc::c_void, length: usize, flags: libc::c_int) -> libc::ssize_t {
    // SAFETY: the caller's, and the two last arguments are null.
    unsafe { libc::syscall(libc::SYS_recvfrom, fd, buffer, length, flags, 0usize, 0usize) as libc::ssize_t }
}

/// Sends one part. Where there are several and they are small, copying them together costs less than sendmsg(2) does to
/// look at a list.
pub fn send_one(fd: RawFd, bytes: &[u8], more: bool) -> io::Result<usize> {
    let flags = libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT | if more { libc::MSG_MORE } else { 0 };
    loop {
        // SAFETY: the kernel reads the slice; the two last arguments are null.
        let sent = unsafe { libc::syscall(libc::SYS_sendto, fd, bytes.as_ptr(), bytes.len(), flags, 0usize, 0usize) };
        match check(sent as libc::ssize_t) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            outcome => return outcome,
        }
    }
}

/// Sends what the socket takes now. `more`: further bytes follow at once (MSG_MORE).
pub fn send(fd: RawFd, parts: &[IoSlice<'_>], more: bool) -> io::Result<usize> {
    let flags = libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT | if more { libc::MSG_MORE } else { 0 };
    // SAFETY: msghdr is plain data for which zeroes mean "nothing".
    let mut message: libc::msghdr = unsafe { zeroed() };
    // IoSlice has the layout of iovec; sendmsg reads it only.
    message.msg_iov = parts.as_ptr().cast::<libc::iovec>().cast_mut();
    // Of another type in musl.
    message.msg_iovlen = parts.len() as _;
    loop {
        // SAFETY: the message points to `parts`, which outlive the call.
        match check(unsafe { libc::sendmsg(fd, &message, flags) }) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            outcome => return outcome,
        }
    }
}

/// Receives into the spare capacity of `buffer`, at most `bytes_max`.
pub fn receive(fd: RawFd, buffer: &mut Vec<u8>, bytes_max: usize) -> io::Result<usize> {
    let start = buffer.len();
    let spare = buffer.spare_capacity_mut();
    let room = spare.len().min(bytes_max);
    loop {
        // SAFETY: the kernel writes at most `room` bytes into memory that the vector owns.
        match check(unsafe { recv(fd, spare.as_mut_ptr().cast(), room, libc::MSG_DONTWAIT) }) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
            Ok(length) => {
                // SAFETY: the kernel has initialised `length` bytes after `start`.
                unsafe { buffer.set_len(start + length) };
                return Ok(length);
            }
        }
    }
}

/// Receives to a place that is there already.
pub fn receive_into(fd: RawFd, place: &mut [u8]) -> io::Result<usize> {
    loop {
        // SAFETY: the kernel writes at most the slice's length into it.
        match check(unsafe { recv(fd, place.as_mut_ptr().cast(), place.len(), libc::MSG_DONTWAIT) }) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            outcome => return outcome,
        }
    }
}

/// Waits until there is something to read, or an end; not longer than this, and not beyond a signal.
pub fn wait_readable(fd: RawFd, longest: Duration) {
    let mut entry = libc::pollfd { fd, events: libc::POLLIN | libc::POLLRDHUP, revents: 0 };
    // Rounded up, or the last millisecond would be waited for without waiting.
    let timeout = i32::try_from(longest.as_millis()).unwrap_or(i32::MAX).saturating_add(1);
    // SAFETY: one entry, which outlives the call.
    unsafe { libc::poll(&raw mut entry, 1, timeout) };
}

/// Whether there is something to be read, or to be accepted.
pub fn is_readable(fd: RawFd) -> bool {
    let mut entry = libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
    // SAFETY: one entry, which outlives the call. It does not wait.
    unsafe { libc::poll(&raw mut entry, 1, 0) };
    entry.revents & libc::POLLIN != 0
}

/// Reads and drops; for lingering closes.
pub fn discard(fd: RawFd, scratch: &mut [MaybeUninit<u8>]) -> io::Result<usize> {
    // SAFETY: the kernel writes at most the slice's length into it.
    check(unsafe { libc::recv(fd, scratch.as_mut_ptr().cast(), scratch.len(), libc::MSG_DONTWAIT) })
}

/// sendfile from `offset` (which is advanced; the file's own position stays). The caller's thread must have
/// SIGPIPE blocked or ignored: sendfile has no MSG_NOSIGNAL.
pub fn send_file(socket: RawFd, file: BorrowedFd<'_>, offset: &mut u64, bytes_max: u64) -> io::Result<usize> {
    let Ok(mut position) = libc::off_t::try_from(*offset) else { return Err(io::ErrorKind::InvalidInput.into()) };
    let count = usize::try_from(bytes_max).unwrap_or(usize::MAX);
    loop {
        // SAFETY: both descriptors are open, and `position` outlives the call.
        match check(unsafe { libc::sendfile(socket, file.as_raw_fd(), &mut position, count) }) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
            Ok(length) => {
                *offset += length as u64;
                return Ok(length);
            }
        }
    }
}

/// Takes a connection from a listener, CLOEXEC and non-blocking from birth. The peer of a Unix socket has no
/// address worth telling.
pub fn accept(listener: BorrowedFd<'_>) -> io::Result<(OwnedFd, Peer)> {
    // SAFETY: sockaddr_storage is plain data.
    let mut address: libc::sockaddr_storage = unsafe { zeroed() };
    let mut length = size_of::<libc::sockaddr_storage>() as libc::socklen_t;
    let flags = libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY: address and length outlive the call and length says how large address is.
    let fd =
        unsafe { libc::accept4(listener.as_raw_fd(), (&raw mut address).cast::<libc::sockaddr>(), &mut length, flags) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made this descriptor for us.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    let peer = inet(&address).map_or(Peer::Unix, Peer::Inet);
    Ok((socket, peer))
}

/// Who is at the other end; not known where the connection is gone.
pub fn peer(socket: RawFd) -> Option<Peer> {
    // SAFETY: sockaddr_storage is plain data.
    let mut address: libc::sockaddr_storage = unsafe { zeroed() };
    let mut length = size_of::<libc::sockaddr_storage>() as libc::socklen_t;
    // SAFETY: address and length outlive the call and length says how large address is.
    let outcome = unsafe { libc::getpeername(socket, (&raw mut address).cast::<libc::sockaddr>(), &mut length) };
    (outcome == 0).then(|| inet(&address).map_or(Peer::Unix, Peer::Inet))
}

/// The address that a socket is bound to.
pub fn local(socket: BorrowedFd<'_>) -> io::Result<Local> {
    // SAFETY: sockaddr_storage is plain data.
    let mut address: libc::sockaddr_storage = unsafe { zeroed() };
    let mut length = size_of::<libc::sockaddr_storage>() as libc::socklen_t;
    // SAFETY: address and length outlive the call and length says how large address is.
    let outcome =
        unsafe { libc::getsockname(socket.as_raw_fd(), (&raw mut address).cast::<libc::sockaddr>(), &mut length) };
    if outcome < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(match inet(&address) {
        Some(address) => Local::Inet(address),
        None => Local::Unix(unix_path(&address, length as usize)),
    })
}

/// None: not an internet address. IPv4 clients of an IPv6 socket appear with their IPv4 address, so that lists
/// of trusted addresses mean what they say.
fn inet(address: &libc::sockaddr_storage) -> Option<SocketAddr> {
    match i32::from(address.ss_family) {
        libc::AF_INET => {
            // SAFETY: the family says that it is a sockaddr_in, and storage is larger and aligned for it.
            let v4 = unsafe { &*(&raw const *address).cast::<libc::sockaddr_in>() };
            let ip = Ipv4Addr::from(u32::from_be(v4.sin_addr.s_addr));
            Some(SocketAddr::new(IpAddr::V4(ip), u16::from_be(v4.sin_port)))
        }
        libc::AF_INET6 => {
            // SAFETY: the family says that it is a sockaddr_in6, and storage is larger and aligned for it.
            let v6 = unsafe { &*(&raw const *address).cast::<libc::sockaddr_in6>() };
            let ip = Ipv6Addr::from(v6.sin6_addr.s6_addr).to_canonical();
            Some(SocketAddr::new(ip, u16::from_be(v6.sin6_port)))
        }
        _ => None,
    }
}

/// unix(7): the path ends at a NUL or at the address's length; an abstract name begins with NUL.
fn unix_path(address: &libc::sockaddr_storage, length: usize) -> PathBuf {
    use std::os::unix::ffi::OsStrExt;
    let header = size_of::<libc::sa_family_t>();
    let length = length.min(size_of::<libc::sockaddr_storage>()).saturating_sub(header);
    // SAFETY: storage has at least header + length bytes, all initialised.
    let bytes = unsafe { std::slice::from_raw_parts((&raw const *address).cast::<u8>().add(header), length) };
    let path = match bytes.first() {
        Some(0) => return PathBuf::from(format!("@{}", String::from_utf8_lossy(&bytes[1..]))),
        Some(_) => bytes.split(|&byte| byte == 0).next().unwrap_or_default(),
        None => b"",
    };
    PathBuf::from(std::ffi::OsStr::from_bytes(path))
}

/// Bytes that were handed to the socket and that the peer has not acknowledged (SIOCOUTQ, tcp(7); for Unix sockets
/// what the peer has not read, with the kernel's overhead).
pub fn unacknowledged(socket: RawFd) -> u64 {
    let mut bytes: libc::c_int = 0;
    // SAFETY: TIOCOUTQ, which is SIOCOUTQ, writes one int, and `bytes` outlives the call.
    match unsafe { libc::ioctl(socket, libc::TIOCOUTQ, &raw mut bytes) } {
        0 => u64::try_from(bytes).unwrap_or(0),
        _ => 0,
    }
}

/// How many connections wait in a listening socket: its TCP_INFO has their number where a connection's has the segments
/// that were not acknowledged (tcp_get_info). None: not TCP, or not known.
pub fn waiting(listener: RawFd) -> Option<u32> {
    tcp_info(listener).map(|info| info.tcpi_unacked)
}

/// Since when the peer has sent nothing. One that has sent its request and waits has waited for so long. None: not TCP.
pub fn silence(socket: RawFd) -> Option<Duration> {
    tcp_info(socket).map(|info| Duration::from_millis(info.tcpi_last_data_recv.into()))
}

fn tcp_info(socket: RawFd) -> Option<libc::tcp_info> {
    // SAFETY: tcp_info is plain data, for which zeroes are valid.
    let mut info: libc::tcp_info = unsafe { zeroed() };
    let mut length = size_of::<libc::tcp_info>() as libc::socklen_t;
    // SAFETY: the kernel writes at most `length` bytes into `info`, which outlives the call.
    let outcome =
        unsafe { libc::getsockopt(socket, libc::IPPROTO_TCP, libc::TCP_INFO, (&raw mut info).cast(), &raw mut length) };
    (outcome == 0).then_some(info)
}

/// What the peer has done to a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HangUp {
    None,
    /// It sends no more (FIN).
    Half,
    /// The connection is no more (RST, or a Unix socket that was closed).
    Full,
}

/// For connections that epoll does not watch, or of which nobody has looked at the events yet.
pub fn hang_up(socket: RawFd) -> HangUp {
    let mut entry = libc::pollfd { fd: socket, events: libc::POLLRDHUP, revents: 0 };
    // SAFETY: one entry, which outlives the call; it does not wait.
    match unsafe { libc::poll(&raw mut entry, 1, 0) } {
        1 if entry.revents & (libc::POLLHUP | libc::POLLERR | libc::POLLNVAL) != 0 => HangUp::Full,
        1 => HangUp::Half,
        _nothing => HangUp::None,
    }
}

/// Whether what sendfile(2) failed of is the socket, whose peer has gone, and not the file.
#[cold]
pub fn is_at_fault(socket: RawFd, error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EPIPE | libc::ECONNRESET)) || hang_up(socket) == HangUp::Full
}

pub fn set_nodelay(socket: RawFd) -> io::Result<()> {
    let value: libc::c_int = 1;
    set_tcp_option(socket, libc::TCP_NODELAY, &value.to_ne_bytes())
}

/// How long the kernel keeps a connection to itself that is open but says nothing (tcp(7), `TCP_DEFER_ACCEPT`).
pub fn set_deferred(listener: RawFd, seconds: libc::c_int) -> io::Result<()> {
    set_tcp_option(listener, libc::TCP_DEFER_ACCEPT, &seconds.to_ne_bytes())
}

/// No pacing, for connections that never leave the machine. Where the machine's default is BBR, it would send a large
/// answer piece by piece, by a timer, at the rate of a network that is not there. Reno paces nothing, is in every kernel,
/// and may be chosen by every process (tcp(7), `tcp_allowed_congestion_control`).
pub fn set_unpaced(socket: RawFd) -> io::Result<()> {
    set_tcp_option(socket, libc::TCP_CONGESTION, b"reno")
}

/// How much may lie in the socket that was not sent yet (tcp(7), `TCP_NOTSENT_LOWAT`): beyond, it is not writable.
pub fn set_unsent_max(socket: RawFd, bytes: u32) -> io::Result<()> {
    set_tcp_option(socket, libc::TCP_NOTSENT_LOWAT, &bytes.to_ne_bytes())
}

fn set_tcp_option(socket: RawFd, option: libc::c_int, value: &[u8]) -> io::Result<()> {
    let length = value.len() as libc::socklen_t;
    // SAFETY: value outlives the call and length is its size.
    match unsafe { libc::setsockopt(socket, libc::IPPROTO_TCP, option, value.as_ptr().cast(), length) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Sends RST at once: the only way to tell that a body without a length was cut. connect(2) with AF_UNSPEC
/// dissolves the connection itself, so that it works also while a child of the application holds a copy.
pub fn reset(socket: RawFd) {
    // SAFETY: sockaddr is plain data, and zeroes are AF_UNSPEC.
    let nowhere: libc::sockaddr = unsafe { zeroed() };
    let length = size_of::<libc::sockaddr>() as libc::socklen_t;
    // SAFETY: the address outlives the call. Unix sockets refuse, where a reset has no meaning.
    unsafe { libc::connect(socket, &nowhere, length) };
}

/// Whoever closes this socket, and be it the kernel for a dead process, sends RST and not FIN (SO_LINGER with a time of
/// zero, socket(7)): where only the end of the connection ends a body, anything else would tell the client that it has
/// all of it. Of no effect on Unix sockets, which have no reset.
pub fn set_end_by_reset(socket: RawFd, by_reset: bool) {
    let linger = libc::linger { l_onoff: libc::c_int::from(by_reset), l_linger: 0 };
    let length = size_of::<libc::linger>() as libc::socklen_t;
    // SAFETY: the value outlives the call and length is its size.
    unsafe { libc::setsockopt(socket, libc::SOL_SOCKET, libc::SO_LINGER, (&raw const linger).cast(), length) };
}

/// Sends FIN; false if the connection is gone already.
pub fn shutdown_write(socket: RawFd) -> bool {
    // SAFETY: a call with two numbers.
    unsafe { libc::shutdown(socket, libc::SHUT_WR) == 0 }
}

/// Ends the connection although a child of the application may hold a copy of the descriptor.
pub fn shutdown_both(socket: RawFd) {
    // SAFETY: a call with two numbers. It fails where the peer is gone, which is what is wanted.
    unsafe { libc::shutdown(socket, libc::SHUT_RDWR) };
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn accepted_sockets_inherit_options_and_have_their_flags() {
        let listener = TcpListener::bind("[::]:0").expect("a free port");
        set_nodelay(listener.as_raw_fd()).expect("setsockopt");
        set_unpaced(listener.as_raw_fd()).expect("setsockopt");
        let port = listener.local_addr().expect("its address").port();
        let client = TcpStream::connect(("127.0.0.1", port)).expect("connect");
        let (socket, peer) = accept(listener.as_fd()).expect("a connection");
        // SAFETY: these take no argument.
        let (flags, descriptor) =
            unsafe { (libc::fcntl(socket.as_raw_fd(), libc::F_GETFL), libc::fcntl(socket.as_raw_fd(), libc::F_GETFD)) };
        assert!(flags & libc::O_NONBLOCK != 0 && descriptor & libc::FD_CLOEXEC != 0);
        let congestion = nix::sys::socket::getsockopt(&socket, nix::sys::socket::sockopt::TcpCongestion);
        assert!(congestion.expect("getsockopt").to_string_lossy().starts_with("reno"));
        assert!(TcpStream::from(socket).nodelay().expect("getsockopt"));
        // An IPv4 client of an IPv6 socket is an IPv4 client.
        assert!(matches!(peer, Peer::Inet(address) if Some(address) == client.local_addr().ok()));
    }
}
