//! The monitor thread takes over where the leader stays in the application. It has no interpreter state and never runs the
//! application.

use std::time::Duration;

use crate::serve::base::names::Blocking;
use crate::serve::base::sync;
use crate::serve::event_loop::interface::{Doors, Loop, Step};

use super::leader::{Leader, LeaderGuard, Owner, Word};

/// How long a request may be in the application before the monitor takes over: at least one tick, at most two. Each
/// costs a switch of threads, one percent of a processor at a thousand a second.
const TICK_TOGETHER: Duration = Duration::from_millis(1);

/// With one app thread nobody else could run the next request anyway; then the monitor only reads, writes, and keeps
/// deadlines.
const TICK_ALONE: Duration = Duration::from_millis(4);

/// After so many ticks without a request the monitor sleeps until it is woken.
const IDLE_TICKS: u32 = 20;

/// Runs until everything is drained.
pub fn run_monitor<L: Loop>(leader: &Leader<L>, threads: usize) {
    leader.set_monitor(sync::current());
    let tick = if threads == 1 { TICK_ALONE } else { TICK_TOGETHER };
    let mut seen = leader.word();
    let mut idle = 0;
    loop {
        let word = leader.word();
        let takes_over = match word.owner() {
            Owner::Ended => return,
            // Given up for us, or offered to an app thread that did not come for it within a tick.
            Owner::Free => true,
            Owner::App => word == seen && idle > 0,
            Owner::Loop | Owner::Monitor => false,
        };
        idle = if word == seen { idle + 1 } else { 1 };
        seen = word;
        if let Some(guard) = takes_over.then(|| leader.take_over(word)).flatten() {
            match lead(guard) {
                Some(word) => (seen, idle) = (word, 1),
                None => return,
            }
        }
        if seen.owner() == Owner::Loop && idle > IDLE_TICKS {
            park(leader, seen);
        } else {
            sync::park_timeout(tick);
        }
    }
}

/// Sleeps until the leader enters the application.
fn park<L: Loop>(leader: &Leader<L>, seen: Word) {
    if leader.park_monitor(seen) {
        sync::park();
    }
    leader.monitor_woke();
}

/// Leads as the monitor, until an app thread shall. None: everything is drained.
fn lead<L: Loop>(mut guard: LeaderGuard<'_, L>) -> Option<Word> {
    let leader = guard.leader();
    let run_queue = leader.doors().run_queue();
    guard.event_loop().monitor_took_over();
    loop {
        match guard.event_loop().step(Blocking::Allowed) {
            Step::Request(request) => run_queue.push(request),
            Step::Idle if !leader.is_slow() && run_queue.is_idle() => {
                let word = guard.release();
                run_queue.wake_one();
                return Some(word);
            }
            Step::Idle => {
                // Signals are the main thread's, which waits for them by itself.
                guard.event_loop().fetch();
            }
            Step::Done => {
                guard.end();
                return None;
            }
        }
    }
}
