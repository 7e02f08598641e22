//! Who is at the other end of a Unix socket. It is the kernel's word, taken at connect or listen time, and no claim of
//! the peer's.

use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use nix::sys::socket::{getsockopt, sockopt};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer {
    pub uid: u32,
    /// 0: a process that this one's pid namespace does not have.
    pub pid: i32,
}

impl Peer {
    pub fn of(socket: &impl AsFd) -> nix::Result<Peer> {
        getsockopt(socket, sockopt::PeerCredentials).map(|peer| Peer { uid: peer.uid(), pid: peer.pid() })
    }

    /// It has a root directory of its own, or cannot even be seen: it lives in a container, and this process does not
    /// (or in another one). Containers of a pod may share /tmp and the network, and each is a world of its own.
    pub fn is_of_another_container(&self) -> bool {
        if self.pid == 0 {
            return true;
        }
        let identity = |path: &str| Path::new(path).metadata().map(|found| (found.dev(), found.ino()));
        match (identity(&format!("/proc/{}/root/.", self.pid)), identity("/")) {
            (Ok(theirs), Ok(ours)) => theirs != ours,
            // Another user's process; whether to believe that user is another question.
            (Err(_), _) | (_, Err(_)) => false,
        }
    }

    /// It sees the same files under the same names. A service that systemd has sandboxed does not, and neither does
    /// another container.
    pub fn shares_mounts(&self) -> bool {
        let namespace = |pid: &str| std::fs::read_link(format!("/proc/{pid}/ns/mnt"));
        match (namespace(&self.pid.to_string()), namespace("self")) {
            (Ok(theirs), Ok(ours)) => theirs == ours,
            (Err(_), _) | (_, Err(_)) => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn a_process_knows_itself() {
        let (ours, _theirs) = UnixStream::pair().unwrap();
        let peer = Peer::of(&ours).unwrap();
        assert_eq!(peer.pid, std::process::id() as i32);
        assert!(peer.shares_mounts() && !peer.is_of_another_container());
    }

    #[test]
    fn who_cannot_be_seen_is_a_stranger() {
        assert!(Peer { uid: 0, pid: 0 }.is_of_another_container());
    }
}
