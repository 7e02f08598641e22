//! What the server tells of itself, on the worker's cell of the scoreboard and in the access log, and the balance between
//! workers.
//!
//! All workers of a generation wait in a line at the same listeners, and the kernel wakes the first that sleeps. The first
//! would take all connections that come one at a time, and keep those that are kept alive. So a worker that has more
//! connections than a sibling has the sibling woken first.

use std::sync::atomic::Ordering;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use forkmaster_http::serve::{self, Ending, Giving, HandoffRefusal, Metrics, Refused, Why};
use forkmaster_wire::access::record::begin_running;
use forkmaster_wire::scoreboard::{
    monotonic_ns, monotonic_ns_of_tick, Cell, Finished, Running, Scoreboard, ThreadCell,
};

use crate::access::{self, AccessLog, End, How};
use crate::beside::Beside;
use crate::lock_watch::LockWatch;
use crate::refusal_recorder::RefusalRecorder;

/// How many connections one may have taken more than a sibling.
const AHEAD_MAX: u64 = 16;

/// What a request that runs beyond its limit is answered with.
pub const TIMED_OUT: u16 = 504;

/// A request's number has its thread above these bits.
pub const REQUEST_BITS: u32 = 40;

pub struct CellMetrics {
    board: &'static Scoreboard,
    index: u32,
    cell: &'static Cell,
    lock: &'static LockWatch,
    access: Option<Arc<AccessLog>>,
    refusals: Option<RefusalRecorder>,
    /// The header field of requests' ids.
    id_header: Option<String>,
    /// Its generation is to have several workers.
    of_several: bool,
    beside: Arc<Beside>,
}

impl CellMetrics {
    pub fn new(
        board: &'static Scoreboard,
        index: u32,
        lock: &'static LockWatch,
        access: Option<Arc<AccessLog>>,
    ) -> CellMetrics {
        CellMetrics {
            board,
            index,
            cell: board.cell(index),
            lock,
            access,
            refusals: None,
            id_header: None,
            of_several: false,
            beside: Arc::default(),
        }
    }

    pub fn with_request_ids(self, id_header: Option<String>) -> CellMetrics {
        CellMetrics { id_header, ..self }
    }

    pub fn with_refusals(self, refusals: Option<RefusalRecorder>) -> CellMetrics {
        CellMetrics { refusals, ..self }
    }

    pub fn one_of(self, workers: u32) -> CellMetrics {
        CellMetrics { of_several: workers > 1, ..self }
    }

    pub fn beside(self, beside: Arc<Beside>) -> CellMetrics {
        CellMetrics { beside, ..self }
    }

    /// Requests can be answered, or one that is being answered keeps the lock: then its own limit decides.
    fn lives(&self, now_ns: u64) -> bool {
        let inside = || (0..self.board.threads()).any(|thread| self.board.thread(self.index, thread).is_inside());
        !self.lock.is_missed(now_ns) || inside()
    }

    /// The cell of the app thread that runs a request, which its number tells (`Gateway::new`).
    fn thread_of(&self, request: u64) -> Option<&ThreadCell> {
        let thread = u32::try_from(request >> REQUEST_BITS).ok().filter(|thread| *thread < self.board.threads())?;
        Some(self.board.thread(self.index, thread))
    }

    fn running(&self, request: u64) -> Option<Running> {
        self.thread_of(request)?.running().filter(|running| running.request == request)
    }

    /// The others that take connections.
    fn siblings(&self) -> impl Iterator<Item = &Cell> {
        let others = (0..self.board.cells()).filter(|index| *index != self.index);
        others.map(|index| self.board.cell(index)).filter(|cell| cell.accepting.load(Ordering::Relaxed) == 1)
    }
}

impl Metrics for CellMetrics {
    fn heartbeat(&self) {
        let now_ns = monotonic_ns_of_tick();
        if self.lives(now_ns) {
            self.cell.heartbeat_ns.store(now_ns, Ordering::Relaxed);
        }
    }

    fn accepted(&self) {
        self.cell.accepted.fetch_add(1, Ordering::Relaxed);
        self.cell.taken.fetch_add(1, Ordering::Relaxed);
    }

    fn given(&self, why: Giving) {
        // In this order: whoever reads that one was given reads that it was shared, too.
        self.cell.shared.fetch_add(u64::from(why == Giving::Shared), Ordering::Relaxed);
        self.cell.given.fetch_add(1, Ordering::Release);
    }

    fn adopted(&self) {
        self.cell.adopted.fetch_add(1, Ordering::Relaxed);
    }

    fn free_siblings(&self) -> usize {
        let now_ns = monotonic_ns();
        let threads = self.board.threads();
        let here: usize =
            self.siblings().filter(|cell| cell.lives(now_ns)).map(|cell| cell.free_threads(threads)).sum();
        here + self.beside.free_threads(now_ns)
    }

    fn idle_siblings(&self) -> usize {
        let now_ns = monotonic_ns();
        let here = self.siblings().filter(|cell| cell.is_idle() && cell.lives(now_ns)).count();
        here + self.beside.idle_workers(now_ns)
    }

    fn has_room_elsewhere(&self, connections_max: usize) -> bool {
        let now_ns = monotonic_ns();
        let has_room = |cell: &Cell| (cell.connections.load(Ordering::Relaxed) as usize) < connections_max;
        self.siblings().filter(|cell| cell.lives(now_ns)).any(has_room) || self.beside.has_room(connections_max, now_ns)
    }

    fn handoff_refused(&self, why: HandoffRefusal) {
        let count = match why {
            HandoffRefusal::Full => &self.cell.queue_full,
            HandoffRefusal::Unusable => &self.cell.unusable,
        };
        count.fetch_add(1, Ordering::Relaxed);
    }

    fn connections(&self, open: usize) {
        self.cell.connections.store(u32::try_from(open).unwrap_or(u32::MAX), Ordering::Relaxed);
    }

    fn ended(&self, record: &mut [u8], ending: Ending) {
        let Some(access) = &self.access else { return };
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let end = End {
            at_ms: u64::try_from(now.as_millis()).unwrap_or(u64::MAX),
            took_us: micros(ending.took),
            bytes: ending.body_bytes,
            how: how(ending.how),
        };
        access::end(record, end);
        access.push(record);
    }

    fn describe(&self, number: u64, record: &mut Vec<u8>, id: &mut Vec<u8>) -> bool {
        let Some(running) = self.running(number) else { return false };
        if let Some(header) = self.id_header.as_ref().filter(|_| !running.id.is_empty()) {
            id.extend_from_slice(format!("{header}: {}", running.id).as_bytes());
        }
        if let Some(access) = self.access.as_ref().filter(|access| access.wants(running.path(), TIMED_OUT)) {
            begin_running(record, &running, TIMED_OUT, access.wanted());
        }
        true
    }

    fn overtaken(&self, number: u64, record: &mut [u8], ending: Ending) {
        let queued_us = self.running(number).map_or(0, |running| running.queued_us);
        // So that the master does not tell of it too when it ends this process.
        if let Some(thread) = self.thread_of(number) {
            thread.answered(number);
        }
        let latency_ns = micros(ending.took).saturating_sub(queued_us).saturating_mul(1000);
        self.cell.finished(Finished { status: TIMED_OUT, latency_ns, queued_ns: queued_us.saturating_mul(1000) });
        self.cell.timed_out.fetch_add(1, Ordering::Relaxed);
        if let Some(access) = &self.access {
            // The worker is as good as ended.
            access.hurry(true);
        }
        if !record.is_empty() {
            self.ended(record, ending);
        }
    }

    fn shed(&self) {
        self.cell.shed.fetch_add(1, Ordering::Relaxed);
    }

    fn refused(&self, refused: &Refused<'_>, record: &mut Vec<u8>) {
        if refused.why == Why::Maintenance {
            self.cell.turned_away.fetch_add(1, Ordering::Relaxed);
        }
        if let Some(recorder) = &self.refusals {
            recorder.note(refused, record);
        }
    }

    fn accepting(&self, accepting: bool) {
        if accepting {
            // One that comes later does not have to catch up with those that were there before.
            let most = self.siblings().map(|cell| cell.taken.load(Ordering::Relaxed)).max();
            self.cell.taken.store(most.unwrap_or(0), Ordering::Relaxed);
        }
        self.cell.accepting.store(u32::from(accepting), Ordering::Relaxed);
        // Who takes no more ends before long, and may be killed then.
        if let Some(access) = &self.access {
            access.hurry(!accepting);
        }
    }

    fn is_ahead(&self, open: usize) -> bool {
        // The first one of a new generation: those of the old one are on another board, and have no less to do.
        if self.of_several && self.siblings().next().is_none() {
            return true;
        }
        let taken = self.cell.taken.load(Ordering::Relaxed);
        let has_less = |cell: &&Cell| {
            let connections = cell.connections.load(Ordering::Relaxed) as usize;
            connections < open || cell.taken.load(Ordering::Relaxed) + AHEAD_MAX < taken
        };
        self.siblings().filter(has_less).any(|cell| cell.lives(monotonic_ns()))
    }
}

fn how(how: serve::How) -> How {
    match how {
        serve::How::Complete => How::Complete,
        serve::How::ClientLeft => How::ClientLeft,
        serve::How::WriteTimeout => How::WriteTimeout,
        serve::How::Cut => How::Cut,
        serve::How::TimedOut => How::TimedOut,
        serve::How::Refused => How::Refused,
    }
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}
