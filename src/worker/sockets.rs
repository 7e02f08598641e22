//! Sockets that are open in this process, in words: what a preloaded import has left open is shared by all workers, whose
//! packets would mix (a database says "decryption failed or bad record mac").

use std::collections::BTreeSet;
use std::os::fd::{BorrowedFd, RawFd};

use forkmaster_wire::text::cut_names;
use nix::sys::socket::{getpeername, getsockname, getsockopt, sockopt, SockaddrLike, SockaddrStorage};

/// The numbers of all sockets. Empty where /proc is not mounted.
pub fn open() -> BTreeSet<RawFd> {
    let Ok(entries) = std::fs::read_dir("/proc/self/fd") else { return BTreeSet::new() };
    let is_socket = |entry: &std::fs::DirEntry| {
        std::fs::read_link(entry.path())
            .is_ok_and(|target| target.as_os_str().as_encoded_bytes().starts_with(b"socket:"))
    };
    let sockets = entries.flatten().filter(is_socket);
    sockets.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}

/// Tells one socket from all others, whatever number it has. None: the number is no socket's.
pub fn identity(fd: RawFd) -> Option<u64> {
    // SAFETY: only for the length of the call, which bears any number.
    let stat = nix::sys::stat::fstat(unsafe { BorrowedFd::borrow_raw(fd) }).ok()?;
    (stat.st_mode & libc::S_IFMT == libc::S_IFSOCK).then_some(stat.st_ino)
}

/// The sockets that were opened since `before`: where they are connected to, or listen. Pairs without a name, by which
/// event loops wake themselves up, lead nowhere and are left out.
pub fn opened_since(before: &BTreeSet<RawFd>) -> Vec<String> {
    cut_names(open().difference(before).filter_map(|fd| in_words(*fd)))
}

fn in_words(fd: RawFd) -> Option<String> {
    // A number that is not open any more, or another file's by now, has no peer and no name.
    if let Some(peer) = getpeername::<SockaddrStorage>(fd).ok().and_then(|peer| address(&peer)) {
        return Some(format!("connected to {peer}"));
    }
    let own = address(&getsockname::<SockaddrStorage>(fd).ok()?)?;
    // SAFETY: only for the length of the call, which bears any number.
    let socket = unsafe { BorrowedFd::borrow_raw(fd) };
    let listens = getsockopt(&socket, sockopt::AcceptConn).unwrap_or(false);
    Some(format!("{} {own}", if listens { "listening on" } else { "bound to" }))
}

fn address(address: &SockaddrStorage) -> Option<String> {
    use nix::sys::socket::AddressFamily::{Inet, Inet6, Unix};
    match address.family()? {
        Inet | Inet6 => Some(address.to_string()),
        Unix => {
            let unix = address.as_unix_addr()?;
            match (unix.path(), unix.as_abstract()) {
                (Some(path), _) => Some(format!("unix:{}", path.display())),
                (None, Some(name)) => Some(format!("unix:@{}", String::from_utf8_lossy(name))),
                (None, None) => None,
            }
        }
        _other => None,
    }
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream, UdpSocket};
    use std::os::fd::AsRawFd;
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn sockets_are_named_by_where_they_lead() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let client = TcpStream::connect(address).unwrap();
        let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
        let pair = UnixStream::pair().unwrap();
        assert!(open().contains(&client.as_raw_fd()));
        assert_eq!(identity(client.as_raw_fd()), identity(client.try_clone().unwrap().as_raw_fd()));
        assert!(identity(client.as_raw_fd()).is_some() && identity(udp.as_raw_fd()) != identity(client.as_raw_fd()));
        assert_eq!(in_words(listener.as_raw_fd()), Some(format!("listening on {address}")));
        assert_eq!(in_words(client.as_raw_fd()), Some(format!("connected to {address}")));
        assert_eq!(in_words(udp.as_raw_fd()), Some(format!("bound to {}", udp.local_addr().unwrap())));
        assert_eq!(in_words(pair.0.as_raw_fd()), None);
        assert_eq!(in_words(-1), None);
        assert!(!opened_since(&BTreeSet::new()).is_empty());
        assert!(opened_since(&open()).len() <= 8, "other tests open sockets meanwhile");
    }
}
