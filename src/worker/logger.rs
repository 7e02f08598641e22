//! Log lines on stderr, in the master's form: `2026-11-22T23:25:59.123Z INFO  message`. One write(2) a line, so
//! that the lines of several processes do not mix.

use std::fmt::Write;
use std::os::fd::BorrowedFd;

use forkmaster_wire::timestamp;
use log::{LevelFilter, Log, Metadata, Record};

struct StderrLog;

/// The first call installs the log; later ones only change its level.
pub fn start(level: LevelFilter) {
    // An error means that it is installed already.
    let _ = log::set_logger(&StderrLog);
    log::set_max_level(level);
}

impl Log for StderrLog {
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
        // SAFETY: file descriptor 2 is open for the life of the process: Python sees to it at its start.
        let stderr = unsafe { BorrowedFd::borrow_raw(2) };
        // Nobody is left to be told that the log cannot be written.
        let _ = nix::unistd::write(stderr, line.as_bytes());
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
