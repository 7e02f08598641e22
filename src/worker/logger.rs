//! Log lines in the master's form, `2026-11-22T23:25:59.123Z INFO  message`, to where the master's go. One write(2) a
//! line, so that the lines of several processes do not mix.

use std::fmt::Write;
use std::os::fd::{BorrowedFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicI32, Ordering};

use forkmaster_wire::timestamp;
use log::{LevelFilter, Log, Metadata, Record};

struct ErrorLog;

/// The log crate knows one logger a process, and so there is one descriptor. Until the master has sent its log it is
/// stderr.
static FD: AtomicI32 = AtomicI32::new(libc::STDERR_FILENO);

/// The first call installs the log; later ones only change its level.
pub fn start(level: LevelFilter) {
    // An error means that it is installed already.
    let _ = log::set_logger(&ErrorLog);
    log::set_max_level(level);
}

/// From now on lines go to this descriptor, which stays open for the life of the process.
pub fn write_to(fd: RawFd) {
    FD.store(fd, Ordering::Relaxed);
}

/// Where lines go.
pub fn fd() -> RawFd {
    FD.load(Ordering::Relaxed)
}

/// A descriptor of its own for the same log, and `true`: it is the log's.
pub fn duplicate() -> std::io::Result<(OwnedFd, bool)> {
    // SAFETY: open for the life of the process: see `write_to`; Python sees to descriptor 2 at its start.
    let log = unsafe { BorrowedFd::borrow_raw(fd()) };
    Ok((log.try_clone_to_owned()?, true))
}

/// Writes all of it, at once where the kernel takes it.
pub fn write(mut bytes: &[u8]) {
    // SAFETY: open for the life of the process: see `write_to`; Python sees to descriptor 2 at its start.
    let log = unsafe { BorrowedFd::borrow_raw(fd()) };
    while !bytes.is_empty() {
        match nix::unistd::write(log, bytes) {
            Ok(written) => bytes = &bytes[written..],
            Err(nix::errno::Errno::EINTR) => {}
            // Nobody is left to be told that the log cannot be written.
            Err(_) => return,
        }
    }
}

impl Log for ErrorLog {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= log::max_level()
    }

    fn log(&self, record: &Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        let mut line = String::with_capacity(128);
        timestamp::push_now(&mut line);
        // Writing to a String cannot fail.
        let _ = writeln!(line, " {:<5} {}", record.level(), record.args());
        write(line.as_bytes());
    }

    fn flush(&self) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn starting_twice_changes_the_level_only() {
        start(LevelFilter::Info);
        start(LevelFilter::Warn);
        assert_eq!(log::max_level(), LevelFilter::Warn);
        log::logger().flush();
    }
}
