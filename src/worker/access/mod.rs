//! The access log of one worker. App threads leave a record of each finished request (`wire::access::record`), a thread of its own
//! makes lines of them (`wire::access::line`) and writes them in batches: neither an application's time nor the event loop's is
//! spent on formatting or on a disk, and where the log cannot be written fast enough, lines are dropped and counted,
//! never requests held up.
//!
//! Whole lines are written at the file's end with one write(2), so that lines of several workers never mix: a regular
//! file takes any length as one (the kernel holds the inode's lock), anything else at least `LINE_BYTES_MAX`.

use std::os::fd::{BorrowedFd, RawFd};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::Duration;
use std::{io, thread};

use forkmaster_wire::access::line::{Lines, LINE_BYTES_MAX};
use forkmaster_wire::access::record::{wanted, Reader};
use forkmaster_wire::message::Access;
use nix::errno::Errno;
use nix::poll::{poll, PollFd, PollFlags, PollTimeout};

pub use forkmaster_wire::access::line::Origin;
pub use forkmaster_wire::access::record::{begin, end, value, End, Facts, How, Wanted};

/// A line is written at the latest after this: who watches the log expects lines at once.
const BATCH_WITHIN: Duration = Duration::from_secs(1);

/// Or as soon as so much has come together.
const BATCH_BYTES: usize = 64 * 1024;

/// What waits while the log takes nothing (a full pipe). Some 5,000 requests.
const WAITING_BYTES_MAX: usize = 1024 * 1024;

pub struct AccessLog {
    shared: Arc<Shared>,
    access: Access,
    wanted: Vec<Wanted>,
}

struct Shared {
    state: Mutex<State>,
    /// Something is there, much is there, or the end has come.
    bell: Condvar,
    ended: Condvar,
}

#[derive(Default)]
struct State {
    records: Vec<u8>,
    /// Requests for which there was no room.
    dropped: u64,
    /// This process will be killed before long: lines are written at once.
    hurries: bool,
    ending: bool,
    ended: bool,
}

impl AccessLog {
    /// Starts the writing thread; signals are blocked by the caller.
    pub fn start(fd: RawFd, access: Access, origin: Origin) -> io::Result<AccessLog> {
        // Buffers have their usual size from the start: growing to it would cost the first requests allocations, and pages
        // that nobody touched cost nothing.
        let state = Mutex::new(State { records: Vec::with_capacity(BATCH_BYTES), ..State::default() });
        let shared = Arc::new(Shared { state, bell: Condvar::new(), ended: Condvar::new() });
        let wanted = wanted(&access.format);
        let out = Vec::with_capacity(BATCH_BYTES + LINE_BYTES_MAX);
        let writer = Writer { fd, lines: Lines::new(access.format.clone(), origin), out, torn: false, lost: 0 };
        let theirs = Arc::clone(&shared);
        thread::Builder::new().name("fm-access".into()).spawn(move || theirs.write(writer))?;
        Ok(AccessLog { shared, access, wanted })
    }

    /// Whether a request has a line: its path as it was sent, and the status of its answer.
    pub fn wants(&self, path: &[u8], status: u16) -> bool {
        self.access.wants(path, status)
    }

    /// And whether one that is refused has.
    pub fn wants_refused(&self, path: &[u8], status: u16) -> bool {
        self.access.refused && self.wants(path, status)
    }

    /// The values that each record must have, in this order.
    pub fn wanted(&self) -> &[Wanted] {
        &self.wanted
    }

    /// Leaves a record.
    pub fn push(&self, record: &[u8]) {
        let mut state = self.shared.lock();
        let before = state.records.len();
        if before + record.len() > WAITING_BYTES_MAX {
            state.dropped += 1;
            return;
        }
        state.records.extend_from_slice(record);
        let after = state.records.len();
        let hurries = state.hurries;
        drop(state);
        if before == 0 || hurries || (before < BATCH_BYTES && after >= BATCH_BYTES) {
            self.shared.bell.notify_one();
        }
    }

    /// Lines are written at once from now on, or together again.
    pub fn hurry(&self, hurries: bool) {
        self.shared.lock().hurries = hurries;
        self.shared.bell.notify_one();
    }

    /// Writes what is there, as far as that is possible in time. The thread ends.
    pub fn finish(&self, within: Duration) {
        let mut state = self.shared.lock();
        state.ending = true;
        self.shared.bell.notify_one();
        // A poisoned lock: the writer has panicked, which ends the process.
        let _ = self.shared.ended.wait_timeout_while(state, within, |state| !state.ended);
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing panics while it is held.
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn write(&self, mut writer: Writer) {
        let mut batch = Vec::with_capacity(BATCH_BYTES);
        loop {
            let mut state = self.lock();
            while state.records.is_empty() && !state.ending {
                state = self.bell.wait(state).unwrap_or_else(|poisoned| poisoned.into_inner());
            }
            if state.records.is_empty() {
                state.ended = true;
                self.ended.notify_all();
                return;
            }
            let more = |state: &mut State| state.records.len() < BATCH_BYTES && !state.ending && !state.hurries;
            let (mut state, _) = self
                .bell
                .wait_timeout_while(state, BATCH_WITHIN, more)
                .unwrap_or_else(|poisoned| poisoned.into_inner());
            // The two buffers take turns and keep their memory.
            std::mem::swap(&mut state.records, &mut batch);
            let dropped = std::mem::take(&mut state.dropped);
            drop(state);
            writer.write(&batch, dropped);
            batch.clear();
        }
    }
}

struct Writer {
    fd: RawFd,
    lines: Lines,
    out: Vec<u8>,
    /// The latest write ended within a line.
    torn: bool,
    /// Lines that could not be written, since it was last possible.
    lost: u64,
}

impl Writer {
    fn write(&mut self, records: &[u8], dropped: u64) {
        if dropped > 0 {
            log::warn!("access log: {dropped} lines dropped, since it is written too slowly");
        }
        let bytes_max = if is_regular(self.fd) { BATCH_BYTES } else { LINE_BYTES_MAX };
        let mut reader = Reader(records);
        let mut out = std::mem::take(&mut self.out);
        let mut whole = 0;
        // What is beyond the bound with its latest line is written without that line.
        while self.lines.next(&mut reader, &mut out) {
            if out.len() > bytes_max && whole > 0 {
                self.write_out(&out[..whole]);
                out.drain(..whole);
            }
            whole = out.len();
        }
        self.write_out(&out);
        out.clear();
        self.out = out;
    }

    fn write_out(&mut self, lines: &[u8]) {
        if lines.is_empty() {
            return;
        }
        let end: &[u8] = if std::mem::take(&mut self.torn) { b"\n" } else { b"" };
        let outcome = write_all(self.fd, end).and_then(|()| write_all(self.fd, lines));
        match outcome {
            Ok(()) if self.lost > 0 => {
                log::warn!("access log: written again, {} lines are lost", self.lost);
                self.lost = 0;
            }
            Ok(()) => {}
            Err((errno, torn)) => {
                if self.lost == 0 {
                    log::error!("access log: cannot be written: {}", io::Error::from(errno));
                }
                self.torn = torn;
                self.lost += lines.iter().filter(|byte| **byte == b'\n').count() as u64;
            }
        }
    }
}

/// The error, and whether a part was written.
fn write_all(fd: RawFd, bytes: &[u8]) -> Result<(), (Errno, bool)> {
    // SAFETY: open for the life of the process.
    let log = unsafe { BorrowedFd::borrow_raw(fd) };
    let mut rest = bytes;
    while !rest.is_empty() {
        match nix::unistd::write(log, rest) {
            Ok(written) => rest = &rest[written..],
            Err(Errno::EINTR) => {}
            // Whoever holds the other end has made it non-blocking.
            Err(Errno::EAGAIN) => {
                // An error shows at the next write.
                let _ = poll(&mut [PollFd::new(log, PollFlags::POLLOUT)], PollTimeout::NONE);
            }
            Err(errno) => return Err((errno, rest.len() < bytes.len())),
        }
    }
    Ok(())
}

fn is_regular(fd: RawFd) -> bool {
    // SAFETY: as in `write_all`.
    let log = unsafe { BorrowedFd::borrow_raw(fd) };
    nix::sys::stat::fstat(log).is_ok_and(|stat| stat.st_mode & libc::S_IFMT == libc::S_IFREG)
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Seek, SeekFrom};
    use std::os::fd::AsRawFd;

    use forkmaster_wire::message::{AccessFormat, AccessPart, Atom};

    use super::*;

    fn access() -> Access {
        let atom = |atom| AccessPart::Atom { atom, quoted: true };
        let text = |text: &str| AccessPart::Text(text.to_owned());
        let parts = vec![text("<"), atom(Atom::Path), text(">"), atom(Atom::RequestHeader("x".to_owned()))];
        Access {
            format: AccessFormat::Line(parts),
            skip: vec!["/healthz".to_owned(), "/static/*".to_owned()],
            status_min: 0,
            refused: false,
        }
    }

    fn push(log: &AccessLog, path: &str) {
        let client = "192.0.2.1".parse().unwrap();
        let (how, is_http10) = (How::Complete, false);
        let facts = Facts { at_ms: 0, took_us: 0, bytes: 0, queued_us: 0, status: 200, how, is_http10, client };
        let mut record = Vec::new();
        begin(&mut record, &facts, b"GET", path.as_bytes());
        for wanted in log.wanted() {
            assert_eq!(*wanted, Wanted::RequestHeader("x".to_owned()));
            value(&mut record, std::iter::once(&b"y"[..]));
        }
        end(&mut record, End { at_ms: 0, took_us: 0, bytes: 0, how: How::Complete });
        log.push(&record);
    }

    const ORIGIN: Origin = Origin { generation: 1, slot: 0, pid: 1 };

    #[test]
    fn lines_of_several_writers_never_mix() {
        let file = forkmaster_wire::memfd::create(c"access", nix::sys::memfd::MFdFlags::empty()).unwrap();
        let mut file = std::fs::File::from(file);
        nix::fcntl::fcntl(&file, nix::fcntl::FcntlArg::F_SETFL(nix::fcntl::OFlag::O_APPEND)).unwrap();
        let threads: Vec<_> = (0..4)
            .map(|writer| {
                let log = AccessLog::start(file.as_raw_fd(), access(), ORIGIN).unwrap();
                // Some write each line at once, as a worker does that may be killed.
                log.hurry(writer % 2 == 1);
                thread::spawn(move || {
                    for number in 0..3000 {
                        push(&log, &format!("/{writer}/{number}/{}", "x".repeat(number % 300)));
                    }
                    log.finish(Duration::from_secs(60));
                })
            })
            .collect();
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        let mut text = String::new();
        file.seek(SeekFrom::Start(0)).unwrap();
        file.read_to_string(&mut text).unwrap();
        assert_eq!(text.lines().count(), 12_000);
        let mut next = [0; 4];
        for line in text.lines() {
            let inner = line.strip_prefix("</").and_then(|rest| rest.strip_suffix(">y")).unwrap();
            let parts: Vec<&str> = inner.split('/').collect();
            let (writer, number): (usize, usize) = (parts[0].parse().unwrap(), parts[1].parse().unwrap());
            assert_eq!((number, parts[2].len()), (next[writer], number % 300));
            next[writer] += 1;
        }
    }

    #[test]
    fn a_request_has_a_line_unless_its_path_or_its_status_says_otherwise() {
        let file = nix::sys::memfd::memfd_create(c"access", nix::sys::memfd::MFdFlags::empty()).unwrap();
        let log = AccessLog::start(file.as_raw_fd(), Access { status_min: 400, ..access() }, ORIGIN).unwrap();
        assert!(log.wants(b"/", 400) && !log.wants(b"/", 399));
        assert!(!log.wants_refused(b"/", 400), "not unless that is asked for");
        assert!(!log.wants(b"/healthz", 500) && log.wants(b"/healthz/deep", 500) && !log.wants(b"/static/a.css", 500));
        log.finish(Duration::from_secs(60));
        let log = AccessLog::start(file.as_raw_fd(), Access { refused: true, ..access() }, ORIGIN).unwrap();
        assert!(log.wants_refused(b"", 400) && log.wants_refused(b"/", 503) && !log.wants_refused(b"/healthz", 503));
        log.finish(Duration::from_secs(60));
    }

    #[test]
    fn a_log_that_takes_nothing_holds_nobody_up() {
        let (reading, writing) = nix::unistd::pipe().unwrap();
        let mut reading = std::fs::File::from(reading);
        let log = AccessLog::start(writing.as_raw_fd(), access(), ORIGIN).unwrap();
        let path = format!("/{}", "x".repeat(900));
        for _ in 0..3000 {
            push(&log, &path);
        }
        // The pipe holds 64 KiB, the buffer 1 MiB; nobody reads.
        log.finish(Duration::from_millis(50));
        assert!(log.shared.lock().dropped > 0 || !log.shared.lock().ended);
        let shared = Arc::clone(&log.shared);
        let reader = thread::spawn(move || {
            let mut text = String::new();
            reading.read_to_string(&mut text).unwrap();
            text
        });
        log.finish(Duration::from_secs(60));
        assert!(shared.lock().ended);
        drop(writing);
        let text = reader.join().unwrap();
        let whole = format!("<{path}>y");
        assert!(text.lines().count() > 1000 && text.lines().all(|line| line == whole));
    }
}
