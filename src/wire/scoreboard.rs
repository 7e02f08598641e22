//! The scoreboard: one memfd a generation, mapped by the master and its workers, a cell a process. Atomics only:
//! nobody waits, and a process that dies in the middle of a write leaves at worst a torn text, which the
//! sequence number betrays.
//!
//! The memfd is sealed against resizing, since a worker that shrank it would kill the master with SIGBUS. A
//! worker may be hostile all the same: the master checks every value it reads.

use std::io;
use std::net::{IpAddr, Ipv6Addr};
use std::num::NonZeroUsize;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::{fence, AtomicU32, AtomicU64, AtomicU8, Ordering};

use crate::histogram::Histogram;
use nix::fcntl::{fcntl, FcntlArg, SealFlag};
use nix::sys::memfd::MFdFlags;
use nix::sys::mman::{mmap, mmap_anonymous, munmap, MapFlags, ProtFlags};

/// Method and path of a running request, without query: enough to name it in a log line.
pub const REQUEST_TEXT_BYTES_MAX: usize = 256;

/// Of a request's id: of those in use, the longest have some hundred.
pub const ID_BYTES_MAX: usize = 128;

/// A process that shows no sign of life for so long, which is more than a turn of a worker's loop takes, is not waited for.
const HEARTBEAT_NS_MAX: u64 = 1_500_000_000;

/// 1xx to 5xx.
pub const STATUS_CLASSES: usize = 5;

/// What one process says of itself. Written by its owner, read by the master.
#[repr(C, align(64))]
pub struct Cell {
    /// CLOCK_MONOTONIC in nanoseconds: the worker's latest sign of life (at least once a second). Its event loop turned,
    /// and the interpreter's lock can be had, or a request within the application has it, for which its own limit counts.
    pub heartbeat_ns: AtomicU64,
    /// Requests answered by the application.
    pub requests: AtomicU64,
    /// Connections accepted.
    pub accepted: AtomicU64,
    /// Exceptions that left the application.
    pub errors: AtomicU64,
    /// Open client connections.
    pub connections: AtomicU32,
    /// App threads inside the application.
    pub busy: AtomicU32,
    /// Memory that it shares with nobody, and that plus its share of what several share, as it has measured itself.
    pub private_bytes: AtomicU64,
    pub pss_bytes: AtomicU64,
    /// 1: it takes connections.
    pub accepting: AtomicU32,
    /// Connections taken, counted on from those of its siblings when it began: for the balance between them only.
    pub taken: AtomicU64,
    /// Connections given to other workers, those of them whose request would have waited here, and connections taken.
    pub given: AtomicU64,
    pub shared: AtomicU64,
    pub adopted: AtomicU64,
    /// How often the handoff queue was full.
    pub queue_full: AtomicU64,
    /// Connections that were lost on their way here.
    pub unusable: AtomicU64,
    /// Requests that ran beyond their limit, and were answered in place of the application.
    pub timed_out: AtomicU64,
    /// Requests that had waited too long for a thread, and got 503.
    pub shed: AtomicU64,
    /// The answers by the class of their status.
    pub status: [AtomicU64; STATUS_CLASSES],
    /// From an app thread's taking the request to the end of its answer: that thread's busy time.
    pub latency: Histogram,
    /// How long requests waited for an app thread.
    pub queued: Histogram,
    /// Requests that got 503, since the service was paused for a maintenance. At the end, where an older build has a gap.
    pub turned_away: AtomicU64,
}

/// What is counted of a request when it has ended.
#[derive(Clone, Copy, Debug)]
pub struct Finished {
    pub status: u16,
    pub latency_ns: u64,
    pub queued_ns: u64,
}

/// One app thread of a process.
#[repr(C, align(64))]
pub struct ThreadCell {
    /// Even: stable; odd: being written. Guards `text`.
    sequence: AtomicU32,
    text_bytes: AtomicU32,
    /// Number of the running request within its worker; tells a request from the next one.
    request: AtomicU64,
    /// CLOCK_MONOTONIC in nanoseconds: when the request was dispatched; 0: no request.
    started_ns: AtomicU64,
    /// When application code was last entered (called, or asked for the next piece), or the lock of the interpreter was
    /// wanted for that; 0: not in application code, for example waiting for the client. `request_timeout` counts from
    /// here.
    entered_ns: AtomicU64,
    /// Since when the interpreter's lock is waited for; 0: it is not.
    lock_wanted_ns: AtomicU64,
    /// The thread's number as Python knows it (`threading.get_ident()`): it finds the thread in a dump of stacks. 0: not
    /// yet known.
    ident: AtomicU64,
    /// How long the request waited for the thread; 1: it speaks HTTP/1.0.
    queued_us: AtomicU64,
    is_http10: AtomicU32,
    /// The client's address, as an IPv6 address; 0: not yet known. Guarded by `sequence`.
    client: [AtomicU64; 2],
    /// The number of the request that was answered in place of the application; 0: none was.
    answered: AtomicU64,
    /// The latest request that has ended, its status and when.
    ended_request: AtomicU64,
    ended_status: AtomicU32,
    ended_ns: AtomicU64,
    /// Its id; guarded by `sequence`.
    id_bytes: AtomicU32,
    id: [AtomicU8; ID_BYTES_MAX],
    text: [AtomicU8; REQUEST_TEXT_BYTES_MAX],
}

/// A running request as the master sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Running {
    pub request: u64,
    pub started_ns: u64,
    /// 0: the application waits for the client.
    pub entered_ns: u64,
    /// It is not in the application, or not again: the interpreter's lock cannot be had.
    pub waits_for_lock: bool,
    /// `GET /reports/2024`, cut, lossy.
    pub text: String,
    pub queued_us: u64,
    pub is_http10: bool,
    /// Who asked; None until the head has been read by the application's side.
    pub client: Option<IpAddr>,
    /// Its client was answered in place of the application.
    pub answered: bool,
    /// Empty: it has none.
    pub id: String,
}

/// How a request has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EndOfRequest {
    pub status: u16,
    pub ended_ns: u64,
}

impl Running {
    /// For log lines: `"GET /reports/2024" id=4f1c`.
    pub fn shown(&self) -> String {
        let Running { text, id, .. } = self;
        if id.is_empty() {
            return format!("\"{text}\"");
        }
        format!("\"{text}\" id={id}")
    }

    pub fn method(&self) -> &[u8] {
        self.text.split_once(' ').map_or(self.text.as_str(), |(method, _)| method).as_bytes()
    }

    pub fn path(&self) -> &[u8] {
        self.text.split_once(' ').map_or("", |(_, path)| path).as_bytes()
    }
}

pub struct Scoreboard {
    memory: NonNull<u8>,
    bytes: NonZeroUsize,
    cells: u32,
    threads: u32,
    fd: OwnedFd,
}

// SAFETY: the mapping is shared memory that is only ever accessed through atomics.
unsafe impl Send for Scoreboard {}
// SAFETY: as above.
unsafe impl Sync for Scoreboard {}

impl Scoreboard {
    /// Makes a board for `cells` processes of `threads` app threads each. The memory is sparse: cells that are
    /// never used cost nothing.
    pub fn create(cells: u32, threads: u32) -> io::Result<Scoreboard> {
        let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
        let fd = crate::memfd::create(c"forkmaster-scoreboard", flags).map_err(io::Error::from)?;
        let bytes = board_bytes(cells, threads);
        nix::unistd::ftruncate(&fd, bytes.get() as libc::off_t).map_err(io::Error::from)?;
        let seals = SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SEAL;
        fcntl(&fd, FcntlArg::F_ADD_SEALS(seals)).map_err(io::Error::from)?;
        Self::map(fd, cells, threads, ProtFlags::PROT_READ | ProtFlags::PROT_WRITE)
    }

    /// Maps a board that another process made, with the numbers it was made with.
    pub fn open(fd: OwnedFd, cells: u32, threads: u32) -> io::Result<Scoreboard> {
        Self::open_for(fd, cells, threads, ProtFlags::PROT_READ | ProtFlags::PROT_WRITE)
    }

    fn open_for(fd: OwnedFd, cells: u32, threads: u32, protection: ProtFlags) -> io::Result<Scoreboard> {
        let size = nix::sys::stat::fstat(&fd).map_err(io::Error::from)?.st_size;
        if size as u64 != board_bytes(cells, threads).get() as u64 {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the scoreboard has another size than announced"));
        }
        Self::map(fd, cells, threads, protection)
    }

    fn map(fd: OwnedFd, cells: u32, threads: u32, protection: ProtFlags) -> io::Result<Scoreboard> {
        let bytes = board_bytes(cells, threads);
        // SAFETY: a fresh shared mapping of a file of exactly this size, whose size is sealed.
        let memory = unsafe { mmap(None, bytes, protection, MapFlags::MAP_SHARED, &fd, 0) }.map_err(io::Error::from)?;
        Ok(Scoreboard { memory: memory.cast(), bytes, cells, threads, fd })
    }

    /// A descriptor of the same memory through which nobody can write (memfd_create(2): it is a file like any other).
    pub fn for_readers(&self) -> io::Result<OwnedFd> {
        let file = std::fs::File::open(format!("/proc/self/fd/{}", self.fd.as_raw_fd()))?;
        Ok(file.into())
    }

    /// What another build must agree on to read it, in bytes.
    pub fn layout() -> [u64; 2] {
        [size_of::<Cell>() as u64, size_of::<ThreadCell>() as u64]
    }

    pub fn cells(&self) -> u32 {
        self.cells
    }

    pub fn threads(&self) -> u32 {
        self.threads
    }

    pub fn cell(&self, index: u32) -> &Cell {
        assert!(index < self.cells, "cell {index} of {}", self.cells);
        // SAFETY: within the mapping (asserted), aligned by construction, all fields are atomics, and the
        // zeroed memory of a new memfd is a valid Cell.
        unsafe { &*self.memory.as_ptr().add(cell_offset(index, self.threads)).cast::<Cell>() }
    }

    pub fn thread(&self, index: u32, thread: u32) -> &ThreadCell {
        assert!(index < self.cells && thread < self.threads, "cell {index}, thread {thread}");
        let offset = cell_offset(index, self.threads) + size_of::<Cell>() + thread as usize * size_of::<ThreadCell>();
        // SAFETY: as in `cell`.
        unsafe { &*self.memory.as_ptr().add(offset).cast::<ThreadCell>() }
    }

    /// Makes a cell ready for its next process. Only when the previous one has been reaped.
    pub fn clear(&self, index: u32) {
        let cell = self.cell(index);
        cell.heartbeat_ns.store(0, Ordering::Relaxed);
        cell.requests.store(0, Ordering::Relaxed);
        cell.accepted.store(0, Ordering::Relaxed);
        cell.errors.store(0, Ordering::Relaxed);
        cell.connections.store(0, Ordering::Relaxed);
        cell.busy.store(0, Ordering::Relaxed);
        cell.accepting.store(0, Ordering::Relaxed);
        cell.private_bytes.store(0, Ordering::Relaxed);
        cell.pss_bytes.store(0, Ordering::Relaxed);
        let handoffs = [&cell.taken, &cell.given, &cell.shared, &cell.adopted, &cell.queue_full, &cell.unusable];
        for count in handoffs.into_iter().chain([&cell.timed_out, &cell.shed, &cell.turned_away]) {
            count.store(0, Ordering::Relaxed);
        }
        cell.status.iter().for_each(|class| class.store(0, Ordering::Relaxed));
        cell.latency.clear();
        cell.queued.clear();
        for thread in 0..self.threads {
            let thread = self.thread(index, thread);
            thread.started_ns.store(0, Ordering::Relaxed);
            thread.entered_ns.store(0, Ordering::Relaxed);
            thread.lock_wanted_ns.store(0, Ordering::Relaxed);
            thread.ident.store(0, Ordering::Relaxed);
            thread.ended_request.store(0, Ordering::Relaxed);
            thread.answered.store(0, Ordering::Relaxed);
            // A process that died while writing left an odd number.
            thread.sequence.store(0, Ordering::Release);
        }
    }

    /// In a child that the application forked: what this process writes from now on is seen by nobody. The
    /// memory stays where it is, since references into it live on.
    pub fn forget_in_child(&self) -> io::Result<()> {
        let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        let flags = MapFlags::MAP_PRIVATE | MapFlags::MAP_FIXED;
        // SAFETY: replaces exactly the mapping made in `map`; zeroed memory is a valid board.
        unsafe { mmap_anonymous(Some(self.memory.addr()), self.bytes, protection, flags) }.map_err(io::Error::from)?;
        Ok(())
    }
}

impl AsFd for Scoreboard {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Drop for Scoreboard {
    fn drop(&mut self) {
        // SAFETY: the mapping made in `map`; every reference into it borrows self.
        let _ = unsafe { munmap(self.memory.cast(), self.bytes.get()) };
    }
}

/// A scoreboard of other processes, to be read only.
pub struct BoardView(Scoreboard);

impl BoardView {
    /// As `Scoreboard::open`.
    pub fn open(fd: OwnedFd, cells: u32, threads: u32) -> io::Result<BoardView> {
        Ok(BoardView(Scoreboard::open_for(fd, cells, threads, ProtFlags::PROT_READ)?))
    }

    /// Some worker of it takes connections.
    pub fn serves(&self, now_ns: u64) -> bool {
        self.servers(now_ns).next().is_some()
    }

    /// App threads that have nothing to do.
    pub fn free_threads(&self, now_ns: u64) -> usize {
        self.servers(now_ns).map(|cell| cell.free_threads(self.0.threads)).sum()
    }

    /// Workers that have nothing to do.
    pub fn idle_workers(&self, now_ns: u64) -> usize {
        self.servers(now_ns).filter(|cell| cell.is_idle()).count()
    }

    /// Whether a worker has fewer connections than these.
    pub fn has_room(&self, connections_max: usize, now_ns: u64) -> bool {
        self.servers(now_ns).any(|cell| (cell.connections.load(Ordering::Relaxed) as usize) < connections_max)
    }

    /// The cells of the workers that take connections and live.
    fn servers(&self, now_ns: u64) -> impl Iterator<Item = &Cell> {
        let cells = (0..self.0.cells).map(|index| self.0.cell(index));
        cells.filter(move |cell| cell.accepting.load(Ordering::Relaxed) == 1 && cell.lives(now_ns))
    }
}

impl Cell {
    /// It has shown a sign of life of late.
    pub fn lives(&self, now_ns: u64) -> bool {
        now_ns.saturating_sub(self.heartbeat_ns.load(Ordering::Relaxed)) < HEARTBEAT_NS_MAX
    }

    /// Of so many app threads, those that have nothing to do.
    pub fn free_threads(&self, threads: u32) -> usize {
        threads.saturating_sub(self.busy.load(Ordering::Relaxed)) as usize
    }

    /// No request is with the application.
    pub fn is_idle(&self) -> bool {
        self.busy.load(Ordering::Relaxed) == 0
    }

    /// What the process has in memory, in bytes: what no other shares, and that with its part of what several share.
    pub fn set_memory(&self, private: u64, pss: u64) {
        self.private_bytes.store(private, Ordering::Relaxed);
        self.pss_bytes.store(pss, Ordering::Relaxed);
    }

    /// Counts one finished request.
    pub fn finished(&self, finished: Finished) {
        self.requests.fetch_add(1, Ordering::Relaxed);
        let class = usize::from(finished.status / 100).clamp(1, STATUS_CLASSES) - 1;
        self.status[class].fetch_add(1, Ordering::Relaxed);
        self.latency.record(finished.latency_ns);
        self.queued.record(finished.queued_ns);
    }
}

/// How many bytes found room.
fn write_text(places: &[AtomicU8], text: &[u8]) -> usize {
    let bytes = text.len().min(places.len());
    for (place, byte) in places[..bytes].iter().zip(&text[..bytes]) {
        place.store(*byte, Ordering::Relaxed);
    }
    bytes
}

impl ThreadCell {
    /// A request goes to the application. Called before the interpreter's lock is taken: waiting for it counts.
    pub fn begin(&self, request: u64, now_ns: u64, method: &[u8], path: &[u8]) {
        let sequence = self.open();
        let mut bytes = 0;
        for part in [method, b" ", path] {
            bytes += write_text(&self.text[bytes..], part);
        }
        self.text_bytes.store(bytes as u32, Ordering::Relaxed);
        self.request.store(request, Ordering::Relaxed);
        self.started_ns.store(now_ns, Ordering::Relaxed);
        self.entered_ns.store(now_ns, Ordering::Relaxed);
        self.lock_wanted_ns.store(now_ns, Ordering::Relaxed);
        self.client.iter().for_each(|half| half.store(0, Ordering::Relaxed));
        self.id_bytes.store(0, Ordering::Relaxed);
        self.close(sequence);
    }

    /// A change begins: the sequence is odd until `close`, and whoever reads meanwhile reads again. A cell has one writer, its
    /// thread, so nothing here has to be one operation with its reading.
    fn open(&self) -> u32 {
        let sequence = self.sequence.load(Ordering::Relaxed).wrapping_add(1);
        self.sequence.store(sequence, Ordering::Relaxed);
        fence(Ordering::Release);
        sequence
    }

    fn close(&self, sequence: u32) {
        self.sequence.store(sequence.wrapping_add(1), Ordering::Release);
    }

    /// The request's id, where requests have one; after `begin`.
    pub fn id(&self, id: &[u8]) {
        let sequence = self.open();
        let bytes = write_text(&self.id, id);
        self.id_bytes.store(bytes as u32, Ordering::Relaxed);
        self.close(sequence);
    }

    /// The thread that this cell is of; said once, by itself.
    pub fn is_thread(&self, ident: u64) {
        self.ident.store(ident, Ordering::Relaxed);
    }

    /// The thread as Python knows it, once it runs.
    pub fn ident(&self) -> Option<u64> {
        Some(self.ident.load(Ordering::Relaxed)).filter(|ident| *ident != 0)
    }

    /// Said with `begin`, for whoever has to tell of the request in this thread's place.
    pub fn arrived(&self, queued_us: u64, is_http10: bool) {
        self.queued_us.store(queued_us, Ordering::Relaxed);
        self.is_http10.store(u32::from(is_http10), Ordering::Relaxed);
    }

    /// Who asked: known when the head has been read.
    pub fn client(&self, client: IpAddr) {
        let address = match client {
            IpAddr::V4(address) => address.to_ipv6_mapped(),
            IpAddr::V6(address) => address,
        };
        let bits = u128::from(address);
        let sequence = self.open();
        self.client[0].store((bits >> 64) as u64, Ordering::Relaxed);
        self.client[1].store(bits as u64, Ordering::Relaxed);
        self.close(sequence);
    }

    /// The client of this request was answered in place of the application. By whoever did that.
    pub fn answered(&self, request: u64) {
        self.answered.store(request, Ordering::Release);
    }

    /// The lock is had: the request is in the application.
    pub fn got_lock(&self) {
        self.lock_wanted_ns.store(0, Ordering::Relaxed);
    }

    /// The thread has waited for the client and now wants the lock, to go on.
    pub fn want_lock(&self, now_ns: u64) {
        self.entered_ns.store(now_ns, Ordering::Relaxed);
        self.lock_wanted_ns.store(now_ns, Ordering::Relaxed);
    }

    /// A request is within the application, with the lock or somewhere where it needs none.
    pub fn is_inside(&self) -> bool {
        self.entered_ns.load(Ordering::Relaxed) != 0 && self.lock_wanted_ns.load(Ordering::Relaxed) == 0
    }

    /// Application code is entered (again), with the lock.
    pub fn enter(&self, now_ns: u64) {
        self.entered_ns.store(now_ns, Ordering::Relaxed);
        self.lock_wanted_ns.store(0, Ordering::Relaxed);
    }

    /// Application code has been left: the thread waits for the client, or writes.
    pub fn leave(&self) {
        self.entered_ns.store(0, Ordering::Relaxed);
    }

    pub fn end(&self, status: u16, now_ns: u64) {
        self.entered_ns.store(0, Ordering::Relaxed);
        self.ended_status.store(u32::from(status), Ordering::Relaxed);
        self.ended_ns.store(now_ns, Ordering::Relaxed);
        self.ended_request.store(self.request.load(Ordering::Relaxed), Ordering::Release);
        self.started_ns.store(0, Ordering::Release);
    }

    /// How this request has ended, as long as no later one has.
    pub fn ended(&self, request: u64) -> Option<EndOfRequest> {
        let is_this = || self.ended_request.load(Ordering::Acquire) == request;
        let before = is_this();
        let status = u16::try_from(self.ended_status.load(Ordering::Relaxed)).ok()?;
        let end = EndOfRequest { status, ended_ns: self.ended_ns.load(Ordering::Relaxed) };
        fence(Ordering::Acquire);
        (before && is_this()).then_some(end)
    }

    /// The running request, if there is one; for the master.
    pub fn running(&self) -> Option<Running> {
        // A writer finishes within microseconds; a hostile or dead one never: give up after a few rounds.
        for _ in 0..16 {
            let before = self.sequence.load(Ordering::Acquire);
            let started_ns = self.started_ns.load(Ordering::Relaxed);
            if started_ns == 0 {
                return None;
            }
            let request = self.request.load(Ordering::Relaxed);
            let entered_ns = self.entered_ns.load(Ordering::Relaxed);
            let waits_for_lock = self.lock_wanted_ns.load(Ordering::Relaxed) != 0;
            let answered = self.answered.load(Ordering::Acquire) == request;
            let (queued_us, is_http10) =
                (self.queued_us.load(Ordering::Relaxed), self.is_http10.load(Ordering::Relaxed) == 1);
            let client = self.client.each_ref().map(|half| half.load(Ordering::Relaxed));
            let bytes = (self.text_bytes.load(Ordering::Relaxed) as usize).min(REQUEST_TEXT_BYTES_MAX);
            let text: Vec<u8> = self.text[..bytes].iter().map(|byte| byte.load(Ordering::Relaxed)).collect();
            let bytes = (self.id_bytes.load(Ordering::Relaxed) as usize).min(ID_BYTES_MAX);
            let id: Vec<u8> = self.id[..bytes].iter().map(|byte| byte.load(Ordering::Relaxed)).collect();
            fence(Ordering::Acquire);
            if before % 2 == 0 && self.sequence.load(Ordering::Relaxed) == before {
                let [text, id] =
                    [&text, &id].map(|text| String::from_utf8_lossy(text).chars().map(printable).collect());
                let client = address(client);
                return Some(Running {
                    request,
                    started_ns,
                    entered_ns,
                    waits_for_lock,
                    text,
                    queued_us,
                    is_http10,
                    client,
                    answered,
                    id,
                });
            }
            std::hint::spin_loop();
        }
        None
    }
}

/// As `ThreadCell::client` has stored it.
fn address([high, low]: [u64; 2]) -> Option<IpAddr> {
    let address = Ipv6Addr::from(u128::from(high) << 64 | u128::from(low));
    (!address.is_unspecified()).then(|| address.to_canonical())
}

/// The text goes into log lines: nothing in it may start a new one.
fn printable(character: char) -> char {
    if character.is_control() {
        '?'
    } else {
        character
    }
}

/// CLOCK_MONOTONIC in nanoseconds, the clock of every time on the board.
pub fn monotonic_ns() -> u64 {
    clock_ns(libc::CLOCK_MONOTONIC)
}

/// The same as it was at the kernel's latest tick, at most some 10 ms ago: time(7), "The software clock". To read it costs a
/// tenth, for what is said again and again.
pub fn monotonic_ns_of_tick() -> u64 {
    clock_ns(libc::CLOCK_MONOTONIC_COARSE)
}

fn clock_ns(clock: libc::clockid_t) -> u64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: a valid pointer; the clocks exist on every Linux.
    unsafe { libc::clock_gettime(clock, &mut now) };
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

fn cell_offset(index: u32, threads: u32) -> usize {
    index as usize * cell_bytes(threads)
}

fn cell_bytes(threads: u32) -> usize {
    size_of::<Cell>() + threads as usize * size_of::<ThreadCell>()
}

fn board_bytes(cells: u32, threads: u32) -> NonZeroUsize {
    NonZeroUsize::new(cells as usize * cell_bytes(threads)).expect("a scoreboard has at least one cell")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_sides_see_the_same_cells() {
        let master = Scoreboard::create(4, 2).unwrap();
        let worker = Scoreboard::open(master.as_fd().try_clone_to_owned().unwrap(), 4, 2).unwrap();
        assert_eq!(master.thread(3, 1).running(), None);
        worker.thread(3, 1).begin(7, 1000, b"GET", b"/a\nb");
        let running = master.thread(3, 1).running().unwrap();
        assert_eq!((running.request, running.started_ns, running.text.as_str()), (7, 1000, "GET /a?b"));
        assert!(running.waits_for_lock && !worker.thread(3, 1).is_inside());
        worker.thread(3, 1).got_lock();
        assert!(!master.thread(3, 1).running().unwrap().waits_for_lock && worker.thread(3, 1).is_inside());
        worker.thread(3, 1).leave();
        assert!(!worker.thread(3, 1).is_inside());
        worker.thread(3, 1).want_lock(2000);
        assert!(master.thread(3, 1).running().unwrap().waits_for_lock);
        worker.thread(3, 1).leave();
        assert_eq!(master.thread(3, 1).running().unwrap().entered_ns, 0);
        assert_eq!((running.client, running.answered, master.thread(3, 1).ended(7)), (None, false, None));
        for client in ["192.0.2.7", "2001:db8::1"].map(|text| text.parse().unwrap()) {
            worker.thread(3, 1).client(client);
            assert_eq!(master.thread(3, 1).running().unwrap().client, Some(client));
        }
        worker.thread(3, 1).id(b"4f\n1c");
        assert_eq!(master.thread(3, 1).running().unwrap().shown(), "\"GET /a?b\" id=4f?1c");
        worker.thread(3, 1).answered(7);
        assert!(master.thread(3, 1).running().unwrap().answered);
        worker.thread(3, 1).end(204, 3000);
        assert_eq!(master.thread(3, 1).running(), None);
        assert_eq!(master.thread(3, 1).ended(7), Some(EndOfRequest { status: 204, ended_ns: 3000 }));
        assert_eq!(master.thread(3, 1).ended(8), None);
        worker.cell(3).finished(Finished { status: 200, latency_ns: 150_000, queued_ns: 0 });
        assert_eq!(
            (master.cell(3).latency.read().sum_ns, master.cell(3).status[1].load(Ordering::Relaxed)),
            (150_000, 1)
        );
        master.clear(3);
        assert_eq!(worker.cell(3).requests.load(Ordering::Relaxed), 0);
        assert_eq!(
            (worker.cell(3).latency.read(), worker.cell(3).status[1].load(Ordering::Relaxed)),
            Default::default()
        );
    }

    #[test]
    fn a_forked_child_writes_for_itself_only() {
        let master = Scoreboard::create(2, 1).unwrap();
        let child = Scoreboard::open(master.as_fd().try_clone_to_owned().unwrap(), 2, 1).unwrap();
        child.forget_in_child().unwrap();
        child.cell(1).finished(Finished { status: 200, latency_ns: 0, queued_ns: 0 });
        assert_eq!(master.cell(1).requests.load(Ordering::Relaxed), 0);
        assert_eq!(child.cell(1).requests.load(Ordering::Relaxed), 1);
    }

    #[test]
    fn a_worker_cannot_shrink_the_board() {
        let board = Scoreboard::create(1, 1).unwrap();
        assert_eq!(nix::unistd::ftruncate(board.as_fd(), 0), Err(nix::errno::Errno::EPERM));
    }

    #[test]
    fn a_writer_that_died_does_not_hang_the_reader() {
        let board = Scoreboard::create(1, 1).unwrap();
        board.thread(0, 0).begin(1, 1, b"GET", b"/");
        board.thread(0, 0).sequence.fetch_add(1, Ordering::Relaxed);
        assert_eq!(board.thread(0, 0).running(), None);
    }
}
