//! The monitor thread takes over where the leader stays in the application. It has no interpreter state and never runs the
//! application.

use std::time::Duration;

use crate::serve::base::names::Blocking;
use crate::serve::base::settings::FLUSH_DELAY_MAX;
use crate::serve::base::sync;
use crate::serve::event_loop::interface::{Doors, Loop, Step};

use super::leader::{Leader, LeaderGuard, Owner, Word};

/// How long a request may be in the application before the monitor takes over: at least one tick, at most two. Each
/// costs a switch of threads, one percent of a processor at a thousand a second. A garbage collection or a neighbour on
/// the processor that keeps the leader for so long costs two switches of threads, once; a slower processor makes requests
/// near the bound cost them. Answers that wait for others are sent after `FLUSH_DELAY_MAX` already, for which nobody has to
/// take over.
const TICK_TOGETHER: Duration = Duration::from_millis(1);

/// With one app thread nobody else could run the next request anyway; then the monitor only reads, writes, and keeps
/// deadlines.
const TICK_ALONE: Duration = Duration::from_millis(4);

/// So many looks after an answer was last left to wait for others, the monitor comes as often as while they are: 8 ms. Who
/// leaves one after that has to wake it.
const CLOSE_LOOKS: u32 = 4;

/// After so many ticks without a request the monitor sleeps until it is woken. Waking it costs about as much as two ticks,
/// so that more of them would cost a worker with a request now and then more than they spare.
const IDLE_TICKS: u32 = 4;

/// How long the leader may be in the application.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// Before the monitor takes over.
    pub leads: Duration,
    /// Before it sends the answers that wait for others.
    pub flushes: Duration,
    /// Ticks without a request after which it sleeps until it is woken.
    pub idle: u32,
}

impl Patience {
    pub fn of(threads: usize) -> Patience {
        let leads = if threads == 1 { TICK_ALONE } else { TICK_TOGETHER };
        Patience { leads, flushes: FLUSH_DELAY_MAX, idle: IDLE_TICKS }
    }
}

/// Runs until everything is drained.
pub fn run_monitor<L: Loop>(leader: &Leader<L>, patience: Patience) {
    leader.set_monitor(sync::current());
    let mut watch = Watch { usual: patience.leads, close: 0 };
    let mut seen = leader.word();
    // For how many looks the word has been the same, and for how long.
    let mut idle = 0;
    let mut unchanged = Duration::ZERO;
    let mut since_last = Duration::ZERO;
    loop {
        let word = leader.word();
        unchanged = if word == seen { unchanged + since_last } else { Duration::ZERO };
        let takes_over = match word.owner() {
            Owner::Ended => return,
            // Given up for us, or offered to an app thread that did not come for it within a tick.
            Owner::Free => true,
            Owner::App => unchanged >= patience.leads,
            Owner::Loop | Owner::Monitor => false,
        };
        idle = if word == seen { idle + 1 } else { 1 };
        seen = word;
        if let Some(guard) = takes_over.then(|| leader.take_over(word)).flatten() {
            match lead(guard) {
                Some(word) => (seen, idle, unchanged) = (word, 1, Duration::ZERO),
                None => return,
            }
        } else if word.owner() == Owner::App && unchanged >= patience.flushes && leader.is_holding() {
            leader.flush_for(word);
        }
        if seen.owner() == Owner::Loop && idle > patience.idle {
            park(leader, seen);
            since_last = Duration::ZERO;
        } else {
            since_last = watch.next_look(leader.was_deferring());
            if leader.set_watched(watch.is_close()) && !watch.is_close() {
                since_last = watch.next_look(true);
                leader.set_watched(true);
            }
            sync::park_timeout(since_last);
        }
    }
}

/// How soon the monitor looks again. Decides only.
struct Watch {
    usual: Duration,
    close: u32,
}

impl Watch {
    /// `deferring`: an answer has been left to wait for others since the last look.
    fn next_look(&mut self, deferring: bool) -> Duration {
        self.close = if deferring { CLOSE_LOOKS } else { self.close.saturating_sub(1) };
        if self.is_close() {
            self.usual.min(FLUSH_DELAY_MAX)
        } else {
            self.usual
        }
    }

    fn is_close(&self) -> bool {
        self.close > 0
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
    loop {
        match guard.event_loop().step(Blocking::Allowed) {
            Step::Request(request) => run_queue.push(request),
            Step::Idle if !leader.is_monitors() && (leader.was_wanted() || run_queue.is_idle()) => {
                let word = guard.release();
                run_queue.wake_one();
                return Some(word);
            }
            Step::Idle => {
                guard.event_loop().fetch(false);
            }
            Step::Done => {
                guard.end();
                return None;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_deferred_answer_is_looked_after_within_its_time() {
        for usual in [TICK_ALONE, TICK_TOGETHER] {
            let soon = usual.min(FLUSH_DELAY_MAX);
            let mut watch = Watch { usual, close: 0 };
            assert_eq!(watch.next_look(false), usual);
            for _ in 0..100 {
                assert_eq!(watch.next_look(true), soon);
            }
            // The request that it waits for has its two looks.
            assert_eq!([watch.next_look(false), watch.next_look(false)], [soon; 2]);
            let after = (0..CLOSE_LOOKS).map(|_| watch.next_look(false)).last();
            assert_eq!(after, Some(usual));
        }
    }
}
