//! Other generations whose workers serve beside this one's: during a canary, and while a release takes over in batches. A
//! worker whose threads are all busy gives its line to whoever has a free one, in either generation.

use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use forkmaster_wire::message::GenerationId;
use forkmaster_wire::scoreboard::{monotonic_ns, BoardView, Scoreboard};

/// More than two generations serve only in the moments in which one release takes the place of another.
const BOARDS_MAX: usize = 2;

/// A generation none of whose workers has taken connections for so long does not serve any more.
const FORGOTTEN_AFTER_NS: u64 = 10_000_000_000;

#[derive(Default)]
pub struct Beside {
    /// Apart from the mutex: there is hardly ever one, and a busy worker asks often.
    has_some: AtomicBool,
    others: Mutex<Vec<Other>>,
}

struct Other {
    generation: GenerationId,
    board: BoardView,
    /// When it was last seen to serve, or when it was told of.
    seen_ns: u64,
}

impl Beside {
    /// The master has said so, and has sent the generation's scoreboard. A worker of another build writes another one.
    pub fn hear(&self, generation: GenerationId, cells: u32, threads: u32, layout: [u64; 2], mut fds: Vec<OwnedFd>) {
        let (Some(fd), true) = (fds.pop(), layout == Scoreboard::layout()) else { return };
        let board = match BoardView::open(fd, cells, threads) {
            Ok(board) => board,
            Err(error) => return log::warn!("the workers of generation {generation} are not seen: {error}"),
        };
        let mut others = self.others();
        others.retain(|other| other.generation != generation);
        others.push(Other { generation, board, seen_ns: monotonic_ns() });
        if others.len() > BOARDS_MAX {
            others.remove(0);
        }
        self.has_some.store(true, Ordering::Relaxed);
    }

    /// Their app threads that have nothing to do.
    pub fn free_threads(&self, now_ns: u64) -> usize {
        self.sum(now_ns, |board| board.free_threads(now_ns))
    }

    /// Their workers that have nothing to do.
    pub fn idle_workers(&self, now_ns: u64) -> usize {
        self.sum(now_ns, |board| board.idle_workers(now_ns))
    }

    /// Whether one of their workers has fewer connections.
    pub fn has_room(&self, connections_max: usize, now_ns: u64) -> bool {
        self.sum(now_ns, |board| usize::from(board.has_room(connections_max, now_ns))) > 0
    }

    fn sum(&self, now_ns: u64, of: impl Fn(&BoardView) -> usize) -> usize {
        if !self.has_some.load(Ordering::Relaxed) {
            return 0;
        }
        let mut others = self.others();
        others.retain_mut(|other| {
            if other.board.serves(now_ns) {
                other.seen_ns = now_ns;
            }
            now_ns.saturating_sub(other.seen_ns) < FORGOTTEN_AFTER_NS
        });
        self.has_some.store(!others.is_empty(), Ordering::Relaxed);
        others.iter().map(|other| of(&other.board)).sum()
    }

    fn others(&self) -> MutexGuard<'_, Vec<Other>> {
        self.others.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn heard(beside: &Beside, generation: u32, board: &Scoreboard) {
        let fd = board.for_readers().expect("/proc is there");
        beside.hear(GenerationId(generation), board.cells(), board.threads(), Scoreboard::layout(), vec![fd]);
    }

    #[test]
    fn free_threads_of_others_count_while_they_serve() {
        let board = Scoreboard::create(4, 2).expect("a memfd");
        let beside = Beside::default();
        let now_ns = monotonic_ns();
        assert_eq!(beside.free_threads(now_ns), 0);
        heard(&beside, 7, &board);
        assert_eq!(beside.free_threads(now_ns), 0, "nobody takes connections yet");
        for cell in [0, 2] {
            board.cell(cell).accepting.store(1, Ordering::Relaxed);
            board.cell(cell).heartbeat_ns.store(now_ns, Ordering::Relaxed);
            board.cell(cell).connections.store(5, Ordering::Relaxed);
        }
        board.cell(2).busy.store(1, Ordering::Relaxed);
        assert_eq!((beside.free_threads(now_ns), beside.idle_workers(now_ns)), (3, 1));
        assert!(beside.has_room(6, now_ns) && !beside.has_room(5, now_ns));
        // Heard of twice, it counts once.
        heard(&beside, 7, &board);
        assert_eq!(beside.free_threads(now_ns), 3);
        // A silent worker is not waited for, and a generation that is gone is forgotten.
        let later_ns = now_ns + FORGOTTEN_AFTER_NS / 2;
        assert_eq!(beside.free_threads(later_ns), 0);
        assert_eq!(beside.others().len(), 1);
        assert_eq!(beside.free_threads(later_ns + FORGOTTEN_AFTER_NS), 0);
        assert_eq!((beside.others().len(), beside.has_some.load(Ordering::Relaxed)), (0, false));
    }

    #[test]
    fn the_oldest_and_what_another_build_writes_are_left_out() {
        let board = Scoreboard::create(1, 1).expect("a memfd");
        let beside = Beside::default();
        let [cell, thread] = Scoreboard::layout();
        let fd = board.for_readers().expect("/proc is there");
        beside.hear(GenerationId(1), 1, 1, [cell, thread + 64], vec![fd]);
        assert!(!beside.has_some.load(Ordering::Relaxed));
        (1..=3).for_each(|generation| heard(&beside, generation, &board));
        let known: Vec<u32> = beside.others().iter().map(|other| other.generation.0).collect();
        assert_eq!(known, [2, 3]);
    }
}
