//! memfd_create(2) by its number: the C library has a function for it only since glibc 2.27, and the wheels run on 2.17.
//! Nobody else in the project makes a memfd.

use std::ffi::CStr;
use std::os::fd::{FromRawFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::memfd::MFdFlags;

/// An empty file in memory.
pub fn create(name: &CStr, flags: MFdFlags) -> Result<OwnedFd, Errno> {
    // SAFETY: the pointer is to a NUL-terminated string that lives; the kernel copies it.
    let fd = unsafe { libc::syscall(libc::SYS_memfd_create, name.as_ptr(), flags.bits()) };
    let fd = Errno::result(fd)?;
    // SAFETY: a descriptor that this call has just made, and that nobody else knows. It is an int in every kernel.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::{Read, Seek, SeekFrom, Write};

    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let mut file = File::from(create(c"test", MFdFlags::MFD_CLOEXEC).unwrap());
        file.write_all(b"abc").unwrap();
        file.seek(SeekFrom::Start(0)).unwrap();
        let mut text = String::new();
        file.read_to_string(&mut text).unwrap();
        assert_eq!(text, "abc");
        assert_eq!(create(c"test", MFdFlags::from_bits_retain(1 << 30)).unwrap_err(), Errno::EINVAL);
    }
}
