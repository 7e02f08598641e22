//! A file that an opening has made, until it is known whether it is to stay. One that is not kept is removed, with the
//! rights that made it: exactly this file and by exactly this name, and only while it is empty.

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use nix::fcntl::AtFlags;
use nix::sys::stat::fstatat;
use nix::unistd::{unlinkat, UnlinkatFlags};

use super::Rights;

/// Device and inode of an open file: two descriptors with the same are of one file.
pub type Node = (u64, u64);

pub struct Made {
    /// None: it stays.
    removal: Option<Removal>,
    node: Node,
}

struct Removal {
    directory: OwnedFd,
    name: OsString,
    /// None: those of the process.
    rights: Option<Rights>,
}

impl Made {
    pub(super) fn new(directory: OwnedFd, name: OsString, rights: Option<Rights>, node: Node) -> Made {
        Made { removal: Some(Removal { directory, name, rights }), node }
    }

    pub fn node(&self) -> Node {
        self.node
    }

    pub fn keep(mut self) {
        self.removal = None;
    }
}

/// It may wait for a disk.
impl Drop for Made {
    fn drop(&mut self) {
        let Some(removal) = self.removal.take() else { return };
        let name = removal.name.to_string_lossy().into_owned();
        match removal.carry_out(self.node) {
            Ok(()) => {}
            Err(error) => log::warn!("the new log {name} of a refused reload cannot be removed: {error}"),
        }
    }
}

impl Removal {
    fn carry_out(self, node: Node) -> io::Result<()> {
        let Some(rights) = self.rights.clone() else { return self.remove(node) };
        // They end with the thread.
        std::thread::scope(|scope| {
            let remove = || match rights.take()? {
                true => self.remove(node),
                false => Err(io::Error::from(io::ErrorKind::PermissionDenied)),
            };
            let thread = std::thread::Builder::new().name("remove".into()).spawn_scoped(scope, remove)?;
            thread.join().unwrap_or_else(|_| Err(io::Error::other("the thread that removes it has panicked")))
        })
    }

    fn remove(&self, node: Node) -> io::Result<()> {
        let stat = match fstatat(self.directory.as_fd(), self.name.as_os_str(), AtFlags::AT_SYMLINK_NOFOLLOW) {
            Ok(stat) => stat,
            // Moved away, as logrotate does.
            Err(nix::errno::Errno::ENOENT) => return Ok(()),
            Err(errno) => return Err(errno.into()),
        };
        if (stat.st_dev, stat.st_ino) != node || stat.st_size > 0 {
            return Ok(());
        }
        Ok(unlinkat(self.directory.as_fd(), self.name.as_os_str(), UnlinkatFlags::NoRemoveDir)?)
    }
}
