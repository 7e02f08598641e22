//! Log lines in the master's form, `2026-11-22T23:25:59.123Z INFO  message`, to where the master's go. One write(2) a
//! line, so that the lines of several processes do not mix.
//!
//! A worker's lines are written by a thread of their own (`log_queue`), so that neither its loop nor a request waits for
//! a log that nobody reads, and those that clients cause are limited in rate (`line_rate`). A template, and a child that
//! the application forks, have no such thread, and write what the log takes at once.

use std::cell::RefCell;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU64, Ordering};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use forkmaster_wire::log_line::{self, LineForm, Severity};
use log::{Level, LevelFilter, Log, Metadata, Record};

use crate::line_rate::{LineRate, BURST, PER_SECOND};
use crate::log_queue::LogQueue;
use crate::put::put;

struct ErrorLog;

/// The log crate knows one logger a process, and so there is one descriptor. Until the master has sent its log it is
/// stderr.
static FD: AtomicI32 = AtomicI32::new(libc::STDERR_FILENO);

static QUEUE: LogQueue = LogQueue::new(fd, lost_line);

/// Lines go through the queue, whose thread comes with the first. Not so in a child, which has none.
static QUEUED: AtomicBool = AtomicBool::new(false);

static CLIENTS: Mutex<LineRate> = Mutex::new(LineRate::new());

/// Lines that were written directly and did not fit.
static LOST: AtomicU64 = AtomicU64::new(0);

/// Of one line without an end.
const PIECES_BYTES_MAX: usize = 64 * 1024;

thread_local! {
    /// What the application has written of a line, in this thread.
    static PIECES: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// Whose lines clients cause: refusals and their like. What the server says of itself there is an error.
const CAUSED_BY_CLIENTS: &str = "forkmaster_http";

/// For a thread that is just writing, when the process ends or its master is told something.
const LAST_MOMENT: Duration = Duration::from_millis(50);

/// The first call installs the log; later ones only change its level.
pub fn start(level: LevelFilter) {
    // An error means that it is installed already.
    let _ = log::set_logger(&ErrorLog);
    log::set_max_level(level);
}

/// From now on lines wait for a thread of their own. In workers: a process that forks has no thread.
pub fn queue_lines() {
    QUEUED.store(true, Ordering::Release);
}

/// In a child that the application has forked: another thread may have held our locks at that moment. Atomics only.
pub fn forget_thread() {
    QUEUED.store(false, Ordering::Release);
}

/// What was said is in the log afterwards, if the log takes it.
pub fn settle() {
    if QUEUED.load(Ordering::Acquire) {
        QUEUE.settle(LAST_MOMENT);
    }
}

/// The process ends: what waits is written as far as the log takes it at once. Later lines are written directly.
pub fn finish() {
    if QUEUED.swap(false, Ordering::AcqRel) {
        QUEUE.finish(LAST_MOMENT);
        let left_out = CLIENTS.try_lock().ok().and_then(|mut rate| rate.take_all_left_out());
        left_out.into_iter().for_each(|left_out| {
            leave(left_out_line(left_out));
        });
    }
}

/// As `finish`, in a process that is broken.
pub fn finish_if_free() {
    if QUEUED.load(Ordering::Acquire) {
        QUEUE.finish_if_free();
    }
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
pub fn duplicate() -> io::Result<(OwnedFd, bool)> {
    // SAFETY: open for the life of the process: see `write_to`; Python sees to descriptor 2 at its start.
    let log = unsafe { BorrowedFd::borrow_raw(fd()) };
    Ok((log.try_clone_to_owned()?, true))
}

/// Writes all of it, after the lines that wait, however long the log takes: for the application's own words, and never
/// with the interpreter's lock.
pub fn write(bytes: &[u8]) {
    match log_line::form() {
        LineForm::Text | LineForm::Journal => write_as_it_is(bytes),
        LineForm::Json => write_objects(bytes),
    }
}

/// What is no object would be lost behind whatever reads the log. `print` writes a line in pieces, so they are kept
/// until its end comes.
fn write_objects(bytes: &[u8]) {
    let lines = PIECES.with_borrow_mut(|pieces| {
        pieces.extend_from_slice(bytes);
        let whole = match pieces.iter().rposition(|byte| *byte == b'\n') {
            Some(end) => end + 1,
            None if pieces.len() > PIECES_BYTES_MAX => pieces.len(),
            None => 0,
        };
        let text: Vec<u8> = pieces.drain(..whole).collect();
        let text = String::from_utf8_lossy(&text);
        let lines = text.lines().filter(|text| !text.trim().is_empty());
        lines.map(|text| line(Level::Error, text)).collect::<String>()
    });
    if !lines.is_empty() {
        write_as_it_is(lines.as_bytes());
    }
}

fn write_as_it_is(bytes: &[u8]) {
    if QUEUED.load(Ordering::Acquire) {
        return QUEUE.write_in_turn(bytes);
    }
    // SAFETY: as in `duplicate`.
    let log = unsafe { BorrowedFd::borrow_raw(fd()) };
    let mut rest = bytes;
    while !rest.is_empty() {
        match nix::unistd::write(log, rest) {
            Ok(written) => rest = &rest[written..],
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
        if record.level() > Level::Error && record.target().starts_with(CAUSED_BY_CLIENTS) {
            let (allowed, left_out) = clients_may_log();
            if let Some(left_out) = left_out.filter(|left_out| !leave(left_out_line(*left_out))) {
                // Somebody else who holds it is just logging too; then that many are not told.
                let _ = CLIENTS.try_lock().map(|mut rate| rate.give_back(left_out));
            }
            if !allowed {
                return;
            }
        }
        leave(line(record.level(), record.args()));
    }

    fn flush(&self) {}
}

/// Whether the line may be written, and how many were left out since that was last told.
fn clients_may_log() -> (bool, Option<u64>) {
    // Whoever finds it held logs at the same moment, or is a child of somebody who did: its line is written.
    let Ok(mut rate) = CLIENTS.try_lock() else { return (true, None) };
    let now = Instant::now();
    (rate.allows(now), rate.take_left_out(now))
}

/// False: it is lost, and counted.
fn leave(line: String) -> bool {
    if QUEUED.load(Ordering::Acquire) {
        return QUEUE.push(line.into_bytes());
    }
    let before = LOST.swap(0, Ordering::Relaxed);
    let line = if before > 0 { lost_line(before) + &line } else { line };
    let put = put(fd(), line.as_bytes());
    if put.is_err() {
        LOST.fetch_add(before + 1, Ordering::Relaxed);
    }
    put.is_ok()
}

fn line(level: Level, text: impl std::fmt::Display) -> String {
    log_line::line(
        match level {
            Level::Error => Severity::Error,
            Level::Warn => Severity::Warn,
            Level::Info => Severity::Info,
            Level::Debug => Severity::Debug,
            Level::Trace => Severity::Trace,
        },
        text,
    )
}

fn lost_line(lines: u64) -> String {
    let noun = if lines == 1 { "line" } else { "lines" };
    line(Level::Warn, format_args!("{lines} {noun} lost: the log could not be written in time"))
}

fn left_out_line(lines: u64) -> String {
    let noun = if lines == 1 { "line" } else { "lines" };
    line(
        Level::Warn,
        format_args!("{lines} {noun} that clients caused left out: more than {BURST} at once or {PER_SECOND} a second"),
    )
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

    #[test]
    fn lines_are_written_with_a_thread_and_without_one() {
        let (copy, is_the_log) = duplicate().unwrap();
        assert!(is_the_log);
        drop(copy);
        queue_lines();
        log::error!("a line of the tests, through the queue");
        settle();
        write(b"");
        finish_if_free();
        finish();
        log::error!("a line of the tests, written at once");
        forget_thread();
        assert!(!QUEUED.load(Ordering::Acquire));
    }

    #[test]
    fn lines_that_tell_of_others_look_like_lines() {
        assert!(lost_line(1).ends_with("Z WARN  1 line lost: the log could not be written in time\n"));
        assert!(left_out_line(2).contains("Z WARN  2 lines that clients caused left out: "));
    }
}
