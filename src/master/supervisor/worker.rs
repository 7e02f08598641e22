//! One worker process in the eyes of the master: its states, each with its own deadline. Only the supervisor
//! changes them. The file never signals, waits or reads a clock.

use std::fmt;
use std::time::{Duration, Instant};

use forkmaster_wire::message::{Failure, SlotIndex, WorkerId};

#[derive(Clone, Debug)]
pub struct Worker {
    pub id: WorkerId,
    pub slot: SlotIndex,
    /// Known from `Forked` on.
    pub pid: Option<i32>,
    pub state: State,
    /// When `state` was entered.
    pub since: Instant,
    /// When the template was told to fork it.
    pub born: Instant,
}

#[derive(Clone, Debug, PartialEq)]
pub enum State {
    /// The template was told to fork it; it boots. The deadline was set before the fork.
    Starting { deadline: Instant },
    /// Booted and paused: it waits to be told to serve.
    Ready,
    /// Told to serve; not yet heard that it accepts.
    Opening { deadline: Instant },
    /// It accepts. `due` says why it is to be replaced, if it is.
    Serving { since: Instant, due: Option<Due> },
    /// Told to drain; not yet heard that it has stopped accepting.
    Closing { heard_by: Instant, deadline: Instant },
    /// It accepts nothing new and finishes what was begun.
    Draining { deadline: Instant },
    /// A request runs beyond its limit, or the worker gives no sign of life: it takes nothing new, and is killed
    /// once its replacement is ready (or `check_at` has passed) and only stuck requests are left.
    Terminating { stuck: Stuck, check_at: Instant, deadline: Instant },
    /// It has said why it ends, or its channel is closed without a word: it should be gone in a moment.
    Exiting { kill_at: Instant, said_why: bool },
    /// SIGKILL was sent, once. Only the exit is left.
    Killed { at: Instant },
}

/// Why a healthy worker is replaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Due {
    Requests,
    Lifetime,
    Memory,
}

/// Why a worker is being terminated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stuck {
    /// The number of the request within its worker.
    Request(u64),
    /// No beat.
    Silent,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// The middle process, or the worker itself, told the pid.
    Forked {
        pid: i32,
    },
    Ready,
    Failed(Failure),
    Serving,
    Draining,
    RequestsServed,
    Leaving {
        reason: String,
    },
    /// More memory than `max_rss`.
    TooBig,
    /// A request runs longer than its limit, or there is no beat.
    Stuck(Stuck),
    /// The answer to `Action::CheckStuck`: requests beyond their limit and others that run.
    StillStuck {
        others: u32,
    },
    /// The answer to `Action::CheckStuck` where the stuck request has ended after all.
    Unstuck,
    /// Its channel is closed, or could not be made.
    ChannelLost,
    /// Reaped.
    Exited(Exit),
}

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    Code(i32),
    Signal {
        number: i32,
        core: bool,
    },
    /// The fork failed or the process died before anyone knew its pid.
    NeverBorn,
}

impl Worker {
    /// Occupies its slot: booting, waiting, or serving. The others are on their way out.
    pub fn is_present(&self) -> bool {
        match self.state {
            State::Starting { .. } | State::Ready | State::Opening { .. } | State::Serving { .. } => true,
            State::Closing { .. }
            | State::Draining { .. }
            | State::Terminating { .. }
            | State::Exiting { .. }
            | State::Killed { .. } => false,
        }
    }

    /// Has said that it accepts, and was not told to stop.
    pub fn is_serving(&self) -> bool {
        matches!(self.state, State::Serving { .. })
    }

    /// May still accept a connection: was told to serve and has not confirmed that it stopped.
    pub fn may_accept(&self) -> bool {
        match self.state {
            State::Opening { .. } | State::Serving { .. } | State::Closing { .. } => true,
            State::Starting { .. }
            | State::Ready
            | State::Draining { .. }
            | State::Terminating { .. }
            | State::Exiting { .. }
            | State::Killed { .. } => false,
        }
    }

    /// When this state must be looked at again.
    pub fn deadline(&self, max_lifetime: Option<Duration>) -> Option<Instant> {
        match self.state {
            State::Starting { deadline } | State::Opening { deadline } | State::Draining { deadline } => Some(deadline),
            State::Closing { heard_by, deadline } => Some(heard_by.min(deadline)),
            State::Terminating { check_at, deadline, .. } => Some(check_at.min(deadline)),
            State::Exiting { kill_at, .. } => Some(kill_at),
            State::Serving { since, due: None } => max_lifetime.map(|lifetime| since + lifetime),
            State::Ready | State::Serving { due: Some(_), .. } | State::Killed { .. } => None,
        }
    }
}

impl State {
    /// The word for log lines and `status`.
    pub fn word(&self) -> &'static str {
        match self {
            State::Starting { .. } => "starting",
            State::Ready => "ready",
            State::Opening { .. } => "opening",
            State::Serving { .. } => "serving",
            State::Closing { .. } => "closing",
            State::Draining { .. } => "draining",
            State::Terminating { .. } => "terminating",
            State::Exiting { .. } => "exiting",
            State::Killed { .. } => "killed",
        }
    }
}

impl fmt::Display for Due {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Due::Requests => "max_requests",
            Due::Lifetime => "max_lifetime",
            Due::Memory => "max_rss",
        })
    }
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Exit::Code(code) => write!(f, "exit code {code}"),
            Exit::Signal { number, core } => {
                match nix::sys::signal::Signal::try_from(number) {
                    Ok(signal) => f.write_str(signal.as_str())?,
                    Err(_) => write!(f, "signal {number}")?,
                }
                f.write_str(if core { " (core dumped)" } else { "" })
            }
            Exit::NeverBorn => f.write_str("died before it was known"),
        }
    }
}
