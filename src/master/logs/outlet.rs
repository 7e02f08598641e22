//! A descriptor that log lines go to. Bytes get there without waiting.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use forkmaster_wire::put::{put, Kind};
use nix::sys::stat::fstat;

pub struct Outlet {
    fd: OwnedFd,
    kind: Kind,
    /// Device and inode.
    file: Option<(u64, u64)>,
}

impl Outlet {
    pub fn new(fd: OwnedFd) -> Outlet {
        let stat = fstat(&fd).ok();
        let kind = stat.map_or(Kind::Other, |stat| Kind::of(stat.st_mode));
        Outlet { fd, kind, file: stat.map(|stat| (stat.st_dev, stat.st_ino)) }
    }

    /// Whether both lead to the same file: where one has no room, the other has none.
    pub fn is_same_file(&self, other: &Outlet) -> bool {
        self.file.is_some() && self.file == other.file
    }

    /// Writes what fits now; `WouldBlock` where nothing does.
    pub fn put(&self, bytes: &[u8]) -> io::Result<usize> {
        put(self.fd.as_fd(), self.kind, bytes)
    }
}

impl AsFd for Outlet {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}
