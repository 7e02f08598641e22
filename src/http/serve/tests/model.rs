//! The leader, the monitor and the run queue with a loop that only counts: loom runs every interleaving of their threads,
//! with the order of memory accesses that processors may choose. A thread that is never woken, a loop that two threads are in,
//! and a request that is lost or run twice each end a run. `tests/model` builds and runs it.

use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use loom::cell::UnsafeCell;
use loom::model::Builder;
use loom::sync::{Condvar, Mutex, MutexGuard};
use loom::thread;

use crate::serve::base::names::Blocking;
use crate::serve::event_loop::fair_line::Alike;
use crate::serve::event_loop::interface::{Doors, Loop, Step};
use crate::serve::event_loop::run_queue::{RunQueue, Waited};
use crate::serve::io::parker::Parker;
use crate::serve::run::app_times::Times;
use crate::serve::run::follower::{Event, Follower, Taken};
use crate::serve::run::leader::Leader;
use crate::serve::run::monitor::{run_monitor, Patience};

/// Every run with so many forced switches of threads at most; a thread that waits switches besides.
fn explore(preemptions: usize, model: impl Fn() + Sync + Send + 'static) {
    let mut builder = Builder::new();
    builder.preemption_bound = Some(preemptions);
    builder.max_branches = 20_000;
    builder.check(model);
}

/// What the loop and the threads tell each other.
#[derive(Default)]
struct Told {
    /// Requests that threads have come back from.
    done: usize,
    /// Somebody wants the loop to look.
    woken: bool,
    /// Answers that are queued, each by the number of its request.
    queued: Vec<usize>,
    sent: Vec<usize>,
}

struct CountingDoors {
    queue: RunQueue<Numbered>,
    told: Mutex<Told>,
    wake: Condvar,
}

impl CountingDoors {
    fn told(&self) -> MutexGuard<'_, Told> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[derive(Debug)]
struct Numbered {
    number: usize,
    may_defer: bool,
}

impl Alike for Numbered {
    fn likeness(&self) -> &[u8] {
        b""
    }
}

impl Doors<Numbered> for CountingDoors {
    fn run_queue(&self) -> &RunQueue<Numbered> {
        &self.queue
    }
    fn wake(&self) {
        self.told().woken = true;
        self.wake.notify_one();
    }
    fn take_request(&self) -> Option<Numbered> {
        self.queue.take()
    }
    fn if_wanted(&self, request: Numbered) -> Option<Numbered> {
        Some(request)
    }
    fn is_behind(&self) -> bool {
        false
    }
    fn complete(&self) {
        self.told().done += 1;
        Doors::wake(self);
    }
    fn is_forgotten(&self) -> bool {
        false
    }
}

/// Hands out requests, and ends when all have been answered.
struct CountingLoop {
    doors: Arc<CountingDoors>,
    /// Two threads that are in the loop without one having seen what the other did are a fault.
    inside: UnsafeCell<usize>,
    requests: usize,
    handed_out: usize,
    /// Requests whose answers may wait for others.
    batch: Vec<usize>,
}

impl CountingLoop {
    fn enter(&self) {
        // SAFETY: loom checks that nobody else is here.
        self.inside.with_mut(|entered| unsafe { *entered += 1 });
    }

    fn send_batch(&mut self, are_kept: bool) {
        self.enter();
        let mut told = self.doors.told();
        let Told { queued, sent, .. } = &mut *told;
        self.batch.retain(|number| {
            let Some(at) = queued.iter().position(|queued| queued == number) else { return are_kept };
            sent.push(queued.remove(at));
            false
        });
    }
}

impl Loop for CountingLoop {
    type Request = Numbered;
    type Doors = CountingDoors;

    fn step(&mut self, _: Blocking) -> Step<Numbered> {
        self.enter();
        if self.handed_out < self.requests {
            self.handed_out += 1;
            return Step::Request(Numbered { number: self.handed_out, may_defer: false });
        }
        self.send_batch(false);
        if self.doors.told().done == self.requests {
            return Step::Done;
        }
        Step::Idle
    }

    fn fetch(&mut self, _is_main: bool) -> bool {
        self.enter();
        let doors = Arc::clone(&self.doors);
        let mut told = doors.told();
        while !std::mem::take(&mut told.woken) {
            told = doors.wake.wait(told).unwrap_or_else(PoisonError::into_inner);
        }
        false
    }

    fn now(&self) -> Instant {
        Instant::now()
    }

    fn share_rest(&mut self) {
        self.enter();
    }

    fn may_defer(&self, _: &Numbered) -> bool {
        self.handed_out < self.requests
    }

    fn defer_answer(&mut self, request: &mut Numbered) {
        self.enter();
        request.may_defer = true;
        self.batch.push(request.number);
    }

    fn holds_answers(&self) -> bool {
        self.enter();
        !self.batch.is_empty()
    }

    fn flush(&mut self) {
        self.send_batch(false);
    }

    fn flush_early(&mut self) {
        self.send_batch(true);
    }
}

fn leader(threads: usize, requests: usize) -> Arc<Leader<CountingLoop>> {
    let parkers = (0..threads).map(|_| Parker::plain()).collect();
    let queue = RunQueue::with_parkers(parkers, requests);
    let doors = Arc::new(CountingDoors { queue, told: Mutex::default(), wake: Condvar::new() });
    let batch = Vec::new();
    let event_loop =
        CountingLoop { doors: Arc::clone(&doors), inside: UnsafeCell::new(0), requests, handed_out: 0, batch };
    Arc::new(Leader::new(doors, event_loop, threads))
}

/// What an exchange does with its answer: it is left for the loop where that may be, or sent at once.
fn answer(leader: &Leader<CountingLoop>, taken: &Taken<Numbered>) {
    let Numbered { number, may_defer } = taken.request;
    let doors = leader.doors();
    match taken.lease.filter(|_| may_defer) {
        Some(lease) => {
            doors.told().queued.push(number);
            if !leader.keeps_answer(lease) {
                // The loop is told of a queue that somebody has to send.
                let mut told = doors.told();
                if let Some(at) = told.queued.iter().position(|queued| *queued == number) {
                    let number = told.queued.remove(at);
                    told.sent.push(number);
                }
            }
        }
        None => doors.told().sent.push(number),
    }
}

/// An app thread until nothing more will come.
fn run_app_thread(leader: &Arc<Leader<CountingLoop>>, index: usize) {
    let mut follower = Follower::new(Arc::clone(leader), index);
    loop {
        let taken = match follower.poll() {
            Some(taken) => taken,
            None => match follower.wait() {
                Event::Request(taken) => taken,
                Event::Signal => continue,
                Event::Done => return,
            },
        };
        answer(leader, &taken);
    }
}

const NEVER: Duration = Duration::from_secs(86_400);

/// The monitor takes over whenever it sees the leader in the application.
const TAKES_OVER: Patience = Patience { leads: Duration::ZERO, flushes: NEVER, idle: 1 };

/// It never does, and sends answers that wait for others instead.
const SENDS: Patience = Patience { leads: NEVER, flushes: Duration::ZERO, idle: 1 };

/// Runs `requests` in `threads` beside the monitor, and looks at what became of them.
fn serve(threads: usize, requests: usize, deferring: bool, patience: Patience) {
    let leader = leader(threads, requests);
    if deferring {
        let took = Duration::from_micros(50);
        let ended = Instant::now();
        for _ in 0..64 {
            leader.times().record(Times { begun: ended, ended, took, inside: None, waited: None, from_loop: true });
        }
        assert!(leader.times().may_defer());
    }
    let monitor = thread::spawn({
        let leader = Arc::clone(&leader);
        move || run_monitor(&leader, patience)
    });
    let others: Vec<_> = (1..threads)
        .map(|index| {
            let leader = Arc::clone(&leader);
            thread::spawn(move || run_app_thread(&leader, index))
        })
        .collect();
    run_app_thread(&leader, 0);
    others.into_iter().for_each(|thread| thread.join().expect("it does not panic"));
    monitor.join().expect("it does not panic");
    let mut told = leader.doors().told();
    told.sent.sort_unstable();
    assert_eq!(told.sent, (1..=requests).collect::<Vec<_>>(), "each is answered once");
}

#[test]
fn a_thread_and_the_monitor_answer_everything_once_and_end() {
    explore(3, || serve(1, 2, false, TAKES_OVER));
}

#[test]
fn two_threads_and_the_monitor_answer_everything_once_and_end() {
    explore(2, || serve(2, 2, false, TAKES_OVER));
}

#[test]
fn an_answer_that_waits_for_others_is_sent_by_whoever_takes_over() {
    explore(3, || serve(1, 2, true, TAKES_OVER));
}

#[test]
fn an_answer_that_waits_for_others_is_sent_while_the_lease_stays_good() {
    explore(3, || serve(1, 2, true, SENDS));
}

#[test]
fn a_request_in_the_queue_finds_a_thread_that_sleeps() {
    explore(3, || {
        let queue = Arc::new(RunQueue::with_parkers(vec![Parker::plain(), Parker::plain()], 2));
        let threads: Vec<_> = (0..2)
            .map(|index| {
                let queue = Arc::clone(&queue);
                thread::spawn(move || {
                    let mut taken = 0;
                    loop {
                        match queue.wait(index, || false) {
                            Waited::Request(Numbered { .. }) => taken += 1,
                            Waited::Signal | Waited::Leader => {}
                            Waited::Done => return taken,
                        }
                    }
                })
            })
            .collect();
        for number in 0..2 {
            queue.push(Numbered { number, may_defer: false });
        }
        queue.finish();
        let taken: usize = threads.into_iter().map(|thread| thread.join().expect("it does not panic")).sum();
        assert_eq!(taken, 2);
    });
}
