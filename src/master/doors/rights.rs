//! Who may ask what: root and the master's own user everything, those in `[control] readers` what changes nothing, and others
//! nothing. It is the kernel's word who they are, and never a claim of theirs.

use std::os::fd::{AsFd, AsRawFd};

use super::peer::Peer;
use super::protocol::{Refused, Request};
use crate::config::settings::{Reader, ReaderId};

/// Groups of a process (limits.h, NGROUPS_MAX).
const GROUPS_MAX: usize = 65536;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum May {
    Everything,
    Look,
}

#[derive(Debug)]
pub struct Rights {
    owner: u32,
    readers: Vec<Reader>,
}

impl Rights {
    pub fn new(owner: u32, readers: &[Reader]) -> Rights {
        Rights { owner, readers: readers.to_vec() }
    }

    pub fn readers(&self) -> &[Reader] {
        &self.readers
    }

    /// Others than the owner may connect.
    pub fn is_open(&self) -> bool {
        !self.readers.is_empty()
    }

    /// None: nothing.
    pub fn of(&self, peer: Peer, socket: &impl AsFd) -> Option<May> {
        if peer.uid == self.owner || peer.uid == 0 {
            return Some(May::Everything);
        }
        let mut groups = None;
        let reads = self.readers.iter().any(|reader| match reader.who {
            ReaderId::User(uid) => uid == peer.uid,
            ReaderId::Group(gid) => groups.get_or_insert_with(|| groups_of(socket)).contains(&gid),
        });
        reads.then_some(May::Look)
    }

    /// What is said to somebody who may not do this.
    pub fn refuse(&self, peer: Peer, may: May, request: &Request) -> Option<Refused> {
        let what = match may {
            May::Everything => return None,
            May::Look => request.beyond_looking()?,
        };
        let owners = self.owners();
        Some(Refused::because(format!("uid {} may only look ([control] readers); `{what}` is for {owners}", peer.uid)))
    }

    pub fn refuse_stranger(&self, peer: Peer) -> Refused {
        let owners = self.owners();
        let readers: Vec<&str> = self.readers.iter().map(|reader| reader.text.as_str()).collect();
        let text = match readers.as_slice() {
            [] => format!("uid {} may not ask this master; {owners} may", peer.uid),
            readers => {
                let readers = readers.join(", ");
                format!(
                    "uid {} may not ask this master; {owners} may, and look [control] readers ({readers})",
                    peer.uid
                )
            }
        };
        Refused::because(text)
    }

    fn owners(&self) -> String {
        match self.owner {
            0 => "root".to_owned(),
            owner => format!("root and uid {owner}"),
        }
    }
}

/// The peer's own and its supplementary groups, as they were when it connected (unix(7), SO_PEERGROUPS, Linux 4.13). Where
/// the kernel cannot tell there are none.
fn groups_of(socket: &impl AsFd) -> Vec<u32> {
    let fd = socket.as_fd().as_raw_fd();
    let own = nix::sys::socket::getsockopt(socket, nix::sys::socket::sockopt::PeerCredentials);
    let mut groups = vec![0u32; GROUPS_MAX];
    let mut bytes = std::mem::size_of_val(groups.as_slice()) as libc::socklen_t;
    // SAFETY: the kernel writes at most `bytes` bytes into the vector, which outlives the call.
    let outcome = unsafe {
        libc::getsockopt(fd, libc::SOL_SOCKET, libc::SO_PEERGROUPS, groups.as_mut_ptr().cast(), &raw mut bytes)
    };
    let known = if outcome == 0 { bytes as usize / size_of::<u32>() } else { 0 };
    groups.truncate(known);
    groups.extend(own.map(|own| own.gid()));
    groups
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;

    fn reader(who: ReaderId) -> Reader {
        Reader { text: format!("{who:?}"), who }
    }

    #[test]
    fn owner_and_root_may_everything_and_readers_may_look() {
        let (ours, _theirs) = UnixStream::pair().unwrap();
        let rights = Rights::new(7, &[reader(ReaderId::User(8))]);
        let of = |uid| rights.of(Peer { uid, pid: 1 }, &ours);
        assert_eq!([of(0), of(7), of(8), of(9)], [Some(May::Everything), Some(May::Everything), Some(May::Look), None]);
        // The groups are this process's.
        let own = nix::unistd::getegid().as_raw();
        let by_group = |gid| Rights::new(7, &[reader(ReaderId::Group(gid))]).of(Peer { uid: 9, pid: 1 }, &ours);
        assert_eq!((by_group(own), by_group(3_999_999_999)), (Some(May::Look), None));
    }

    #[test]
    fn a_refusal_says_who_may() {
        let rights = Rights::new(7, &[reader(ReaderId::User(8))]);
        let peer = Peer { uid: 8, pid: 1 };
        for looks in [Request::Status, Request::History, Request::WaitReady, Request::Events] {
            assert_eq!(rights.refuse(peer, May::Look, &looks), None);
        }
        let stop = Request::Stop { now: false };
        assert_eq!(rights.refuse(peer, May::Everything, &stop), None);
        let reason = |request: &Request| rights.refuse(peer, May::Look, request).map(|refused| refused.reason);
        let text = "uid 8 may only look ([control] readers); `stop` is for root and uid 7";
        assert_eq!(reason(&stop).as_deref(), Some(text));
        assert!(reason(&Request::Dump { slot: None }).is_some_and(|text| text.contains("`dump`")));
        let stranger = rights.refuse_stranger(Peer { uid: 9, pid: 1 }).reason;
        let text = "uid 9 may not ask this master; root and uid 7 may, and look [control] readers (User(8))";
        assert_eq!(stranger, text);
        assert_eq!(Rights::new(0, &[]).refuse_stranger(peer).reason, "uid 8 may not ask this master; root may");
    }
}
