//! A message that is larger than a packet: it travels in a sealed memfd beside a packet that says `null`. Only the master
//! sends such a message (a `Boot` with some thousand networks in `forwarded_allow_ips`), and only its processes take
//! it: the master never reads a descriptor that somebody else has made, since reading may wait. The state of an upgrade in place
//! travels in the same way, from the master to itself.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;

use nix::fcntl::{fcntl, FcntlArg, SealFlag};
use nix::sys::memfd::MFdFlags;

/// The packet that stands for a message in the memfd beside it: no message is `null`.
pub const MARK: &[u8] = b"null";

/// A configuration file has a few kilobytes; a list of all networks of the internet has some 20 MB.
const MESSAGE_BYTES_MAX: usize = 64 * 1024 * 1024;

/// Puts a message into a memfd whose content nobody can change any more.
pub fn seal(message: &[u8]) -> io::Result<OwnedFd> {
    if message.len() > MESSAGE_BYTES_MAX {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "message exceeds 64 MiB"));
    }
    let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
    let mut file = File::from(crate::memfd::create(c"forkmaster-message", flags).map_err(io::Error::from)?);
    file.write_all(message)?;
    let seals = SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_WRITE | SealFlag::F_SEAL_SEAL;
    fcntl(file.as_fd(), FcntlArg::F_ADD_SEALS(seals)).map_err(io::Error::from)?;
    Ok(file.into())
}

/// The message in a memfd.
pub fn read(fd: OwnedFd) -> io::Result<Vec<u8>> {
    let file = File::from(fd);
    let bytes = usize::try_from(file.metadata()?.len()).unwrap_or(usize::MAX);
    if bytes > MESSAGE_BYTES_MAX {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "message exceeds 64 MiB"));
    }
    let mut message = vec![0; bytes];
    file.read_exact_at(&mut message, 0)?;
    Ok(message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_can_change_a_message_that_was_sent() {
        let fd = seal(b"{}").unwrap();
        let file = File::from(fd.try_clone().unwrap());
        assert_eq!(file.write_at(b"x", 0).unwrap_err().raw_os_error(), Some(libc::EPERM));
        assert_eq!(file.set_len(0).unwrap_err().raw_os_error(), Some(libc::EPERM));
        assert_eq!(read(fd).unwrap(), b"{}");
    }
}
