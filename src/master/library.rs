//! The worker library, embedded in this binary, as a file descriptor that a Python can load it from. So there is one
//! file to deploy, nothing is installed into a release's venv, and master and worker are of one version.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use forkmaster_wire::memfd;
use nix::errno::Errno;
use nix::fcntl::{fcntl, FcntlArg, SealFlag};
use nix::sys::memfd::MFdFlags;

use crate::footprint;

static BYTES: &[u8] = include_bytes!(env!("EMBEDDED_WORKER_LIBRARY"));

pub struct Library(OwnedFd);

impl Library {
    /// Puts it into a memfd and seals that, so that nobody who gets hold of it can change what the next template
    /// loads. MFD_NOEXEC_SEAL only forbids execve(2), not mapping as code; kernels before 6.3 do not know it.
    pub fn embed() -> io::Result<Library> {
        let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
        let no_exec = flags | MFdFlags::from_bits_retain(libc::MFD_NOEXEC_SEAL);
        let fd = match memfd::create(c"forkmaster-worker", no_exec) {
            Err(Errno::EINVAL) => memfd::create(c"forkmaster-worker", flags),
            made => made,
        };
        let mut file = File::from(fd.map_err(forbidden)?);
        file.write_all(BYTES)?;
        // They are read once, and would count as the master's memory for the rest of its life.
        footprint::let_go(BYTES);
        let fd = OwnedFd::from(file);
        let seals = SealFlag::F_SEAL_WRITE | SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SEAL;
        fcntl(&fd, FcntlArg::F_ADD_SEALS(seals)).map_err(io::Error::from)?;
        Ok(Library(fd))
    }
}

/// There is no other place that a Python could load the library from without leaving a file behind.
fn forbidden(errno: Errno) -> io::Error {
    let error = io::Error::from(errno);
    match errno {
        Errno::EPERM | Errno::ENOSYS => io::Error::new(
            io::ErrorKind::PermissionDenied,
            format!(
                "memfd_create(2) is forbidden ({}), by a seccomp filter: allow it; systemd's \
                 SystemCallFilter=@system-service does",
                errno.desc()
            ),
        ),
        _other => error,
    }
}

impl AsFd for Library {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::*;
    use crate::footprint::tests::{pages_present, ALONE};

    #[test]
    fn the_embedded_bytes_leave_memory_once_the_library_is_a_file() {
        let _alone = ALONE.lock();
        let library = Library::embed().unwrap();
        // Reading what stands beside them brings some neighbours in.
        let pages = pages_present(BYTES);
        assert!(pages < 64, "{pages} pages are mapped");
        let file = File::from(library.0);
        assert_eq!(file.metadata().unwrap().len(), BYTES.len() as u64);
        let mut copy = vec![0; BYTES.len()];
        file.read_exact_at(&mut copy, 0).unwrap();
        assert!(copy == BYTES, "the library is not what was embedded");
        // Without this the test would not see the pages either.
        assert!(pages_present(BYTES) > pages, "{pages} pages, before and after they were read");
    }
}
