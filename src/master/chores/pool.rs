//! Threads for work that may wait. The loop gives a piece of work and goes on; the result wakes it. A thread that is
//! late keeps its thread and nothing else: its work is given up, its result dropped where it comes, and the next piece
//! gets another thread, of at most four. Work that panics is not done, and that is said at once.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use forkmaster_wire::limits;
use nix::sys::eventfd::{EfdFlags, EventFd};

use crate::progress::Progress;
use crate::signals::start_thread;

const THREADS_MAX: usize = 4;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ChoreId(u64);

/// Why work was not done (in time), as a sentence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NotDone(pub String);

type Work<D> = Box<dyn FnOnce() -> D + Send>;

pub struct Pool<D> {
    shared: Arc<Shared<D>>,
    given: BTreeMap<ChoreId, Given>,
    /// Work that no thread could be started for.
    failed: VecDeque<(ChoreId, NotDone)>,
    last: u64,
}

struct Given {
    what: &'static str,
    within: Duration,
    by: Instant,
    progress: Progress,
}

struct Shared<D> {
    state: Mutex<State<D>>,
    /// There is work.
    work: Condvar,
    /// There is a result.
    wake: EventFd,
}

struct State<D> {
    to_do: VecDeque<(ChoreId, Progress, Work<D>)>,
    /// An error: the work has panicked.
    done: VecDeque<(ChoreId, std::thread::Result<D>)>,
    /// Nobody waits for their results any more.
    given_up: BTreeSet<ChoreId>,
    threads: usize,
    idle: usize,
    /// The pool is gone.
    closed: bool,
}

impl<D: Send + 'static> Pool<D> {
    pub fn new() -> io::Result<Pool<D>> {
        let wake = EventFd::from_value_and_flags(0, EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
        let state = State {
            to_do: VecDeque::new(),
            done: VecDeque::new(),
            given_up: BTreeSet::new(),
            threads: 0,
            idle: 0,
            closed: false,
        };
        let shared = Shared { state: Mutex::new(state), work: Condvar::new(), wake };
        Ok(Pool { shared: Arc::new(shared), given: BTreeMap::new(), failed: VecDeque::new(), last: 0 })
    }

    /// Has it done by a thread. `what` is its name in a sentence: `reading the configuration`.
    pub fn give(
        &mut self,
        what: &'static str,
        within: Duration,
        now: Instant,
        work: impl FnOnce() -> D + Send + 'static,
    ) -> ChoreId {
        self.last += 1;
        let id = ChoreId(self.last);
        let mut state = self.shared.lock();
        if state.idle <= state.to_do.len() && state.threads < THREADS_MAX {
            let shared = Arc::clone(&self.shared);
            match start_thread("chores", move || run(&shared)) {
                Ok(()) => state.threads += 1,
                // Without any there is nobody who could wake the loop.
                Err(error) if state.threads == 0 => {
                    self.failed.push_back((
                        id,
                        NotDone(format!("{what}: no thread can be started: {}", limits::explain(&error))),
                    ));
                    let _ = self.shared.wake.write(1);
                    return id;
                }
                Err(error) => log::warn!("{what} waits for another thread: {error}"),
            }
        }
        let progress = Progress::default();
        self.given.insert(id, Given { what, within, by: now + within, progress: progress.clone() });
        state.to_do.push_back((id, progress, Box::new(work)));
        drop(state);
        self.shared.work.notify_one();
        id
    }

    /// The next result; to be called until there is none, whenever the descriptor is readable or a deadline is over.
    pub fn done(&mut self, now: Instant) -> Option<(ChoreId, Result<D, NotDone>)> {
        // Emptied first: a result that comes after the look wakes once more.
        let _ = self.shared.wake.read();
        if let Some((id, not_done)) = self.failed.pop_front() {
            return Some((id, Err(not_done)));
        }
        let mut state = self.shared.lock();
        if let Some((id, done)) = state.done.pop_front() {
            drop(state);
            let what = self.given.remove(&id).map_or("it", |given| given.what);
            let panicked =
                |_| NotDone(format!("{what} failed: it has panicked, a defect of forkmaster; the log says where"));
            return Some((id, done.map_err(panicked)));
        }
        let id = self.given.iter().find(|(_, given)| given.by <= now).map(|(id, _)| *id)?;
        let unbegun = state.to_do.iter().position(|(waiting, ..)| *waiting == id);
        match unbegun {
            Some(at) => {
                state.to_do.remove(at);
            }
            None => {
                state.given_up.insert(id);
            }
        }
        drop(state);
        let not_done = NotDone(self.sentence(id, unbegun.is_none()));
        self.given.remove(&id);
        Some((id, Err(not_done)))
    }

    pub fn next_deadline(&self) -> Option<Instant> {
        self.given.values().map(|given| given.by).min()
    }

    /// What a thread does, or is to do, and since when; also what was given up, since that holds its thread all the same.
    pub fn busy(&self) -> Option<(&'static str, Option<Instant>)> {
        let given = self.given.values().map(|given| (given.what, Some(given.by - given.within)));
        let first = given.min_by_key(|(_, since)| *since);
        let state = self.shared.lock();
        first.or_else(|| (state.threads > state.idle).then_some(("earlier work that took too long", None)))
    }

    fn sentence(&self, id: ChoreId, begun: bool) -> String {
        let given = &self.given[&id];
        let took = format!("{} took longer than {} s", given.what, given.within.as_secs_f64());
        match (given.progress.words(), begun) {
            (words, true) if !words.is_empty() => format!("{took}: {words}"),
            (_, true) => took,
            (_, false) => format!("{took}: all {THREADS_MAX} threads for what may wait hang in earlier work"),
        }
    }
}

impl<D> Drop for Pool<D> {
    fn drop(&mut self) {
        self.shared.lock().closed = true;
        self.shared.work.notify_all();
    }
}

impl<D> AsFd for Pool<D> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.shared.wake.as_fd()
    }
}

impl<D> Shared<D> {
    fn lock(&self) -> MutexGuard<'_, State<D>> {
        // Nothing panics while it is held.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One idle thread stays, so that most work needs no new one.
fn run<D>(shared: &Shared<D>) {
    let mut state = shared.lock();
    loop {
        if let Some((id, progress, work)) = state.to_do.pop_front() {
            drop(state);
            progress.follow();
            // Nobody looks at what it has left half done: it took all that it needs along.
            let done = catch_unwind(AssertUnwindSafe(work));
            state = shared.lock();
            if state.given_up.remove(&id) {
                // Dropping may close files, and wait for it.
                drop(state);
                drop(done);
                state = shared.lock();
            } else {
                state.done.push_back((id, done));
                // It fails only where the loop is to be woken 2^64 times already.
                let _ = shared.wake.write(1);
            }
        } else if state.idle > 0 || state.closed {
            state.threads -= 1;
            return;
        } else {
            state.idle += 1;
            state = shared.work.wait(state).unwrap_or_else(PoisonError::into_inner);
            state.idle -= 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::progress;
    use nix::poll::{poll, PollFd, PollFlags, PollTimeout};
    use std::sync::mpsc;

    const LONG: Duration = Duration::from_secs(60);

    fn wait<D: Send + 'static>(pool: &mut Pool<D>, now: Instant) -> (ChoreId, Result<D, NotDone>) {
        loop {
            if let Some(done) = pool.done(now) {
                return done;
            }
            let mut fds = [PollFd::new(pool.as_fd(), PollFlags::POLLIN)];
            assert_eq!(poll(&mut fds, PollTimeout::from(10_000u16)).unwrap(), 1, "nothing was done");
        }
    }

    #[test]
    fn results_come_with_the_number_of_their_work() {
        let mut pool = Pool::new().unwrap();
        let now = Instant::now();
        let ids: Vec<ChoreId> = (0..20).map(|number| pool.give("counting", LONG, now, move || number)).collect();
        let mut done: Vec<(ChoreId, i32)> = (0..20)
            .map(|_| {
                let (id, result) = wait(&mut pool, now);
                (id, result.unwrap())
            })
            .collect();
        done.sort_unstable();
        assert_eq!(done, ids.into_iter().zip(0..20).collect::<Vec<_>>());
        assert!(pool.next_deadline().is_none() && pool.done(now).is_none());
    }

    /// As found: whoever waited for it heard nothing until the deadline, and each such piece cost a thread for good.
    #[test]
    fn work_that_panics_is_not_done_and_costs_no_thread() {
        let mut pool = Pool::new().unwrap();
        let now = Instant::now();
        for _ in 0..=THREADS_MAX {
            let id = pool.give("counting", LONG, now, || -> i32 { panic!("as this test wants it") });
            let (failed, result) = wait(&mut pool, now);
            let reason = result.unwrap_err().0;
            assert!(failed == id && reason.starts_with("counting failed: it has panicked"), "{reason}");
        }
        let id = pool.give("counting", LONG, now, || 7);
        assert_eq!(wait(&mut pool, now), (id, Ok(7)));
    }

    #[test]
    fn late_work_is_given_up_with_its_words_and_the_next_has_another_thread() {
        let mut pool = Pool::new().unwrap();
        let now = Instant::now();
        let second = Duration::from_secs(1);
        let mut releases = Vec::new();
        let mut late = Vec::new();
        for number in 0..THREADS_MAX {
            let (release, released) = mpsc::channel::<()>();
            let (begun, has_begun) = mpsc::channel();
            let id = pool.give("reading", second, now, move || {
                progress::note(format!("looking up user {number} (NSS)"));
                begun.send(()).unwrap();
                let _ = released.recv();
                number
            });
            has_begun.recv().unwrap();
            late.push(id);
            releases.push(release);
        }
        let waits = pool.give("opening", second * 2, now, || 99);
        assert!(pool.done(now).is_none());
        assert_eq!(pool.next_deadline(), Some(now + second));
        for (number, id) in late.into_iter().enumerate() {
            let (given_up, result) = pool.done(now + second).unwrap();
            let sentence = format!("reading took longer than 1 s: looking up user {number} (NSS)");
            assert_eq!((given_up, result), (id, Err(NotDone(sentence))));
        }
        let (id, result) = pool.done(now + second * 2).unwrap();
        let sentence = "opening took longer than 2 s: all 4 threads for what may wait hang in earlier work";
        assert_eq!((id, result), (waits, Err(NotDone(sentence.to_owned()))));
        // One comes back: what it brings is dropped, and it takes the next piece.
        releases.pop();
        let id = pool.give("opening", LONG, now, || 100);
        assert_eq!(wait(&mut pool, now), (id, Ok(100)));
    }
}
