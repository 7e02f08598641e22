//! The worker library, embedded in this binary, as a file descriptor that a Python can load it from. So there is one
//! file to deploy, nothing is installed into a release's venv, and master and worker are of one version.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::{fcntl, FcntlArg, SealFlag};
use nix::sys::memfd::{memfd_create, MFdFlags};

static BYTES: &[u8] = include_bytes!(env!("FORKMASTER_WORKER_LIB_PATH"));

pub struct Library(OwnedFd);

impl Library {
    /// Puts it into a memfd and seals that, so that nobody who gets hold of it can change what the next template
    /// loads. MFD_NOEXEC_SEAL only forbids execve(2), not mapping as code; kernels before 6.3 do not know it.
    pub fn embed() -> io::Result<Library> {
        let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
        let no_exec = flags | MFdFlags::from_bits_retain(libc::MFD_NOEXEC_SEAL);
        let fd = match memfd_create(c"forkmaster-worker", no_exec) {
            Err(Errno::EINVAL) => memfd_create(c"forkmaster-worker", flags),
            made => made,
        };
        let mut file = File::from(fd.map_err(io::Error::from)?);
        file.write_all(BYTES)?;
        let fd = OwnedFd::from(file);
        let seals = SealFlag::F_SEAL_WRITE | SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SEAL;
        fcntl(&fd, FcntlArg::F_ADD_SEALS(seals)).map_err(io::Error::from)?;
        Ok(Library(fd))
    }
}

impl AsFd for Library {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
