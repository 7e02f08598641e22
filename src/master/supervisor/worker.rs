//! One worker process in the eyes of the master: its states, each with its own deadline, and the one place where they
//! change.
//!
//! | State | Event | Next | What is done |
//! |---|---|---|---|
//! | - | a slot is vacant | Starting | the template is told to fork; the deadline is set before the fork |
//! | Starting | ready | Ready | where its generation serves it is told to serve at once |
//! | Starting | boots for long | Starting | its stacks are asked for, and stand in the refusal |
//! | Starting | failed, leaves | Exiting | the slot rests and gets another; refused while proving |
//! | Starting | deadline | Killed | as above |
//! | Ready | its channel is closed, says what makes no sense | Lost | its exit says why |
//! | Lost | exit, deadline | gone, Killed | the slot rests and gets another; refused while proving |
//! | Ready | its turn | Opening | told to serve |
//! | Opening | serves | Serving | |
//! | Opening | deadline | Killed | the slot gets another |
//! | Opening, Serving | the service is paused | Pausing | told to pause: it finishes what runs |
//! | Ready | its service is paused, and clients are turned away | Pausing | told to pause, and to turn them away |
//! | Pausing | no request is under way | Paused | |
//! | Paused | clients are to be shown something else | Pausing | told to pause anew, and what to show |
//! | Pausing, Paused | the pause is over | Opening | told to serve |
//! | Serving | `max_*` reached | Serving, due | a successor first, then it drains |
//! | Serving, Pausing, Paused | replaced, and to be kept | Kept | told to pause; it stays alive for gdb or py-spy |
//! | Kept | deadline | Closing | told to drain, with `graceful_timeout` |
//! | Ready, Opening, Serving, Pausing, Paused | superseded, scaled down, due and replaced | Closing | told to drain |
//! | Ready, Opening, Serving, Pausing, Paused, Closing | leaves by itself | Draining | the slot gets another |
//! | Closing | confirms, or does not in time | Draining | |
//! | Closing, Draining | the successor was refused | Opening | told to serve again |
//! | Closing, Draining, Terminating | serves nothing any more | Finishing | only the interpreter's own end is missing |
//! | Serving, Pausing, Paused, Closing, Draining | a request over its limit, no sign of life | Terminating | stacks; takes nothing new. Not where it is to be kept; the end of a canary |
//! | Terminating | the request has ended after all | Draining | |
//! | Terminating | only stuck requests are left, deadline | Killed | |
//! | Closing, Draining, Finishing, Exiting | deadline | Killed | every request that is cut gets a line |
//! | Opening, Serving, Pausing, Paused | its channel is closed | Exiting | the slot gets another |
//! | any that may serve | says what makes no sense | Killed | it serves and hears nobody; the slot gets another |
//! | Killed | deadline | gone | given up: the kernel does not let it die |
//! | any | exit | gone | one line with generation, slot, pid, cause, age |

use std::fmt;
use std::time::{Duration, Instant};

use forkmaster_wire::message::{SlotIndex, WorkerId, EXIT_CHANNEL_CLOSED};
use forkmaster_wire::rehearsal::Remembered;

use super::dump::Dump;
use super::generation::State as GenerationState;
use super::pace::Boot;
use super::rehearsal::Rehearsed;
use super::reports::Failed;
use super::{Action, Supervisor, ANSWER_WITHIN, KILLED_WITHIN};
use crate::facts::note::Note;
use crate::facts::outcome::Refusal;

/// How often a terminated worker is asked whether only stuck requests are left.
pub(super) const CHECK_STUCK_EVERY: Duration = Duration::from_millis(100);

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
    pub dump: Dump,
    /// Its Python stacks when they were last asked for; empty where they never were.
    pub stacks: String,
}

#[derive(Clone, Debug, PartialEq)]
pub enum State {
    /// The template was told to fork it; it boots. The deadline was set before the fork.
    /// A boot that takes long is looked at on the way.
    Starting { deadline: Instant, look_at: Option<Instant> },
    /// Booted and paused: it waits to be told to serve.
    Ready,
    /// It had booted, and its channel is closed. Its exit, which says why, should follow in a moment.
    Lost { kill_at: Instant },
    /// Told to serve; not yet heard that it accepts.
    Opening { deadline: Instant, due: Option<Due> },
    /// It accepts. `due` says why it is to be replaced, if it is.
    Serving { since: Instant, due: Option<Due> },
    /// Told to pause; a request may still run.
    Pausing { due: Option<Due> },
    /// No request is under way, and none is begun.
    Paused { due: Option<Due> },
    /// Told to drain; not yet heard that it has stopped accepting.
    Closing { heard_by: Instant, deadline: Instant },
    /// Out of service, and alive for somebody who looks into it; told to pause, and so serves nothing once it is `quiet`.
    Kept { until: Instant, quiet: bool },
    /// It accepts nothing new and finishes what was begun.
    Draining { deadline: Instant },
    /// It serves nothing any more, and only the interpreter's own end is missing: it waits for these threads.
    Finishing { kill_at: Instant, threads: Vec<String> },
    /// A request runs beyond its limit, or the worker gives no sign of life: it takes nothing new, and is killed
    /// once its replacement is ready (or `check_at` has passed) and only stuck requests are left.
    Terminating { stuck: Stuck, check_at: Instant, deadline: Instant },
    /// It has said why it ends, or its channel is closed without a word: it should be gone in a moment.
    Exiting { kill_at: Instant, said_why: bool },
    /// SIGKILL was sent, once. Only the exit is left.
    Killed { give_up: Instant },
}

/// Why a healthy worker is replaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Due {
    Requests,
    Lifetime,
    Memory,
    /// Somebody asked for it.
    Asked,
    /// The same, and it is to stay alive for so long after its successor serves.
    Kept(Duration),
    /// It has said that it wants to end.
    Leaving,
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
    Ready(Boot),
    Failed(Refusal),
    Serving,
    Draining,
    Paused,
    /// The answer to `Action::Probe`; None: the release answers.
    Probed(Option<Refusal>),
    /// The answer to `Action::Recall`.
    Remembered {
        requests: Vec<Remembered>,
        /// There are more, which did not fit.
        more: bool,
    },
    /// The answer to `Action::Rehearse`.
    Rehearsed(Rehearsed),
    /// It serves nothing any more: no request, no connection. It waits for these threads, which are not daemons.
    Drained {
        threads: Vec<String>,
    },
    RequestsServed,
    Leaving {
        reason: String,
    },
    /// More memory than `max_rss`.
    TooBig,
    /// A request runs longer than its limit, or there is no beat.
    Stuck(Stuck),
    /// A request runs longer than `slow_request`.
    Slow,
    /// The answer to `Action::CheckStuck`: requests beyond their limit and others that run.
    StillStuck {
        others: u32,
    },
    /// The answer to `Action::CheckStuck` where the stuck request has ended after all.
    Unstuck,
    /// The answer to `Action::AskStacks`, `Action::LookAt` and `Action::LookAtSlow`, and what faulthandler has written.
    Stacks {
        text: String,
    },
    /// Its channel is closed, or could not be made.
    ChannelLost,
    /// What it says makes no sense, and nothing more is read or believed.
    Garbled,
    /// Reaped.
    Exited(Exit),
}

/// How a process ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Exit {
    Code(i32),
    Signal {
        number: i32,
        core: bool,
    },
    /// The kernel has killed it for want of memory, and whose: "out of memory: cgroup limit 256.0 MiB".
    OutOfMemory(String),
    /// There never was a process, and this is why.
    NeverBorn(Refusal),
    /// The same, for want of what the machine may have later.
    NoRoom(Refusal),
    /// Its channel was closed before anyone knew its pid: whoever was to fork it is gone.
    LostAtBirth,
}

impl Worker {
    /// Occupies its slot: booting, waiting, or serving. The others are on their way out.
    pub fn is_present(&self) -> bool {
        match self.state {
            State::Starting { .. }
            | State::Ready
            // Its slot waits for its exit.
            | State::Lost { .. }
            | State::Opening { .. }
            | State::Serving { .. }
            | State::Pausing { .. }
            | State::Paused { .. } => true,
            State::Kept { .. }
            | State::Closing { .. }
            | State::Draining { .. }
            | State::Terminating { .. }
            | State::Finishing { .. }
            | State::Exiting { .. }
            | State::Killed { .. } => false,
        }
    }

    /// Was told to serve, and not to leave. A pause changes nothing.
    pub fn is_in_service(&self) -> bool {
        match self.state {
            State::Opening { .. } | State::Serving { .. } | State::Pausing { .. } | State::Paused { .. } => true,
            State::Starting { .. }
            | State::Lost { .. }
            | State::Ready
            | State::Kept { .. }
            | State::Closing { .. }
            | State::Draining { .. }
            | State::Terminating { .. }
            | State::Finishing { .. }
            | State::Exiting { .. }
            | State::Killed { .. } => false,
        }
    }

    /// It is out of service and stays alive, or will be.
    pub fn is_kept(&self) -> bool {
        match self.state {
            State::Kept { .. } => true,
            State::Opening { due, .. }
            | State::Serving { due, .. }
            | State::Pausing { due }
            | State::Paused { due } => {
                matches!(due, Some(Due::Kept(_)))
            }
            State::Starting { .. }
            | State::Lost { .. }
            | State::Ready
            | State::Closing { .. }
            | State::Draining { .. }
            | State::Terminating { .. }
            | State::Finishing { .. }
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
            State::Opening { .. } | State::Serving { .. } | State::Pausing { .. } | State::Closing { .. } => true,
            State::Starting { .. } | State::Lost { .. }
            | State::Ready
            | State::Paused { .. }
            // It does as soon as it reads its channel, and a debugger may have stopped it: a commit must not wait for it.
            | State::Kept { .. }
            | State::Draining { .. }
            | State::Terminating { .. }
            | State::Finishing { .. }
            | State::Exiting { .. }
            | State::Killed { .. } => false,
        }
    }

    /// When it must be looked at again.
    pub fn deadline(&self, max_lifetime: Option<Duration>) -> Option<Instant> {
        self.state_deadline(max_lifetime).into_iter().chain(self.dump.deadline()).min()
    }

    fn state_deadline(&self, max_lifetime: Option<Duration>) -> Option<Instant> {
        match self.state {
            State::Starting { deadline, look_at } => Some(look_at.map_or(deadline, |look_at| look_at.min(deadline))),
            State::Opening { deadline, .. } | State::Draining { deadline } => Some(deadline),
            State::Closing { heard_by, deadline } => Some(heard_by.min(deadline)),
            // Its stacks are waited for, since they are the reason why.
            State::Terminating { check_at, deadline, .. } => match self.dump {
                Dump::None => Some(check_at.min(deadline)),
                Dump::Asked { .. } | Dump::Signalled { .. } | Dump::Taken => Some(deadline),
            },
            State::Lost { kill_at } | State::Exiting { kill_at, .. } | State::Finishing { kill_at, .. } => Some(kill_at),
            State::Killed { give_up } => Some(give_up),
            State::Kept { until, .. } => Some(until),
            State::Serving { since, due: None } => max_lifetime.map(|lifetime| since + lifetime),
            State::Ready
            | State::Serving { due: Some(_), .. }
            // As long as the pause lasts, which is the supervisor's.
            | State::Pausing { .. }
            | State::Paused { .. } => None,
        }
    }
}

impl State {
    /// The word for log lines and `status`.
    pub fn word(&self) -> &'static str {
        match self {
            State::Starting { .. } => "starting",
            State::Ready => "ready",
            State::Lost { .. } => "lost",
            State::Opening { .. } => "opening",
            State::Serving { .. } => "serving",
            State::Pausing { .. } => "pausing",
            State::Paused { .. } => "paused",
            State::Kept { .. } => "kept",
            State::Closing { .. } => "closing",
            State::Draining { .. } => "draining",
            State::Finishing { .. } => "finishing",
            State::Terminating { .. } => "terminating",
            State::Exiting { .. } => "exiting",
            State::Killed { .. } => "killed",
        }
    }
}

impl Due {
    pub fn word(self) -> &'static str {
        match self {
            Due::Requests => "max_requests",
            Due::Lifetime => "max_lifetime",
            Due::Memory => "max_rss",
            Due::Asked | Due::Kept(_) => "recycle",
            Due::Leaving => "leaving",
        }
    }
}

impl Exit {
    /// As the reason that whoever asked hears: the true one, where there is one.
    pub fn refusal(&self, what: &str) -> Refusal {
        match self {
            Exit::NeverBorn(refusal) | Exit::NoRoom(refusal) => refusal.clone(),
            Exit::Code(EXIT_CHANNEL_CLOSED) => Refusal::new(format!(
                "{what}: {self}: the application has closed file descriptors that are not its own (os.closerange?)"
            )),
            Exit::OutOfMemory(reason) => Refusal::new(format!("{what}: {self}, {reason}")),
            Exit::Code(_) | Exit::Signal { .. } | Exit::LostAtBirth => Refusal::new(format!("{what}: {self}")),
        }
    }
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Exit::Code(code) => write!(f, "exit code {code}"),
            Exit::Signal { number, core } => {
                match nix::sys::signal::Signal::try_from(*number) {
                    Ok(signal) => f.write_str(signal.as_str())?,
                    Err(_) => write!(f, "signal {number}")?,
                }
                f.write_str(if *core { " (core dumped)" } else { "" })
            }
            Exit::NeverBorn(refusal) | Exit::NoRoom(refusal) => write!(f, "never born: {}", refusal.reason),
            Exit::OutOfMemory(_) => f.write_str("SIGKILL"),
            Exit::LostAtBirth => f.write_str("died before it was known"),
        }
    }
}

impl Supervisor {
    /// The one place where a worker's state changes, and its log line.
    pub(super) fn change(&mut self, at: usize, id: WorkerId, to: State, now: Instant) {
        let generation = &mut self.generations[at];
        let Some(worker) = generation.worker_mut(id) else { return };
        let after = now.saturating_duration_since(worker.since);
        let from = std::mem::replace(&mut worker.state, to);
        let to = worker.state.word();
        // A new deadline for the same state is no news.
        if from.word() == to {
            return;
        }
        worker.since = now;
        let worker = worker.clone();
        let worker = generation.name(&worker);
        let after_ms = after.as_millis() as u64;
        self.note(Note::Worker { worker, from: Some(from.word()), to, after_ms });
    }

    /// Tells the template to fork a worker for the slot, if it takes another one now and there is room.
    pub(super) fn spawn(&mut self, at: usize, slot: SlotIndex, now: Instant) {
        let (free, wanted) = (self.free_processes(), self.wanted(at));
        let generation = &mut self.generations[at];
        if !generation.template.takes_spawns() || generation.unborn() >= usize::from(generation.plan.unborn_max) {
            return;
        }
        if generation.no_room.is_some_and(|no_room| no_room.until.is_some()) {
            return;
        }
        if free == Some(0) {
            generation.denied += 1;
            return;
        }
        self.last_worker += 1;
        let id = WorkerId(self.last_worker);
        let deadline = now + generation.plan.boot_timeout;
        let state = State::Starting { deadline, look_at: next_look(now, now, deadline) };
        let prove = !generation.slot_mut(slot).proved;
        // What the command of a paused reload is still to do, the release cannot be asked for yet.
        let probe = !(generation.plan.pause.is_some()
            && matches!(generation.state, GenerationState::Proving | GenerationState::Rolling { .. }));
        let max_requests = max_requests(generation.plan.max_requests, generation.plan.max_requests_jitter, id);
        // The candidate, where others follow it.
        let weigh = generation.state == GenerationState::Proving && wanted > 1;
        let (pid, dump, stacks) = (None, Dump::None, String::new());
        generation.workers.push(Worker { id, slot, pid, state, since: now, born: now, dump, stacks });
        let generation = generation.id;
        self.actions.push(Action::Spawn { generation, slot, worker: id, prove, probe, weigh, max_requests });
        self.watch_forks(at, false, now);
    }

    pub(super) fn serve_ready(&mut self, at: usize, now: Instant) {
        // The candidate of a release that was proved while nobody is wanted leaves without having served. And while the
        // service is paused a worker that has never served need not be told.
        if self.wanted(at) == 0 || self.is_held() {
            return;
        }
        for id in self.worker_ids(at) {
            if self.generations[at].worker(id).is_some_and(|worker| worker.state == State::Ready) {
                self.serve(at, id, now);
                self.progress(at, now);
            }
        }
    }

    pub(super) fn serve(&mut self, at: usize, id: WorkerId, now: Instant) {
        self.serve_within(at, id, ANSWER_WITHIN, now);
    }

    pub(super) fn serve_within(&mut self, at: usize, id: WorkerId, limit: Duration, now: Instant) {
        let Some(worker) = self.generations[at].worker(id).cloned() else { return };
        if self.is_held() {
            return self.pause_worker(at, &worker, now);
        }
        let due = match worker.state {
            State::Pausing { due } | State::Paused { due } => due,
            State::Starting { .. }
            | State::Lost { .. }
            | State::Ready
            | State::Kept { .. }
            | State::Opening { .. }
            | State::Serving { .. }
            | State::Closing { .. }
            | State::Draining { .. }
            | State::Terminating { .. }
            | State::Finishing { .. }
            | State::Exiting { .. }
            | State::Killed { .. } => None,
        };
        self.actions.push(Action::Serve { worker: id });
        self.change(at, id, State::Opening { deadline: now + limit, due }, now);
    }

    pub(super) fn drain(&mut self, at: usize, id: WorkerId, now: Instant) {
        self.drain_as(at, id, false, now);
    }

    /// `yields`: its successors are not yet told to serve.
    pub(super) fn drain_as(&mut self, at: usize, id: WorkerId, yields: bool, now: Instant) {
        let keep = self.without_heir(at);
        self.actions.push(Action::Drain { worker: id, keep, yields });
        let generation = &self.generations[at];
        let (drain, graceful) = (generation.plan.drain_timeout, generation.plan.graceful_timeout);
        let deadline = now + if generation.condemned { drain.min(graceful) } else { drain };
        self.change(at, id, State::Closing { heard_by: now + ANSWER_WITHIN, deadline }, now);
    }

    /// SIGKILL, at most once in a worker's life.
    pub(super) fn kill(&mut self, at: usize, id: WorkerId, now: Instant) {
        let Some(worker) = self.generations[at].worker(id) else { return };
        if !matches!(worker.state, State::Killed { .. }) {
            self.actions.push(Action::Kill { worker: id });
            self.change(at, id, State::Killed { give_up: now + KILLED_WITHIN }, now);
        }
    }

    pub(super) fn expire_worker(&mut self, at: usize, id: WorkerId, now: Instant) {
        let generation = &self.generations[at];
        let (max_lifetime, boot_timeout) = (generation.plan.max_lifetime, generation.plan.boot_timeout);
        let Some(worker) = generation.worker(id).cloned() else { return };
        self.expire_dump(at, &worker, now);
        if worker.state_deadline(max_lifetime).is_none_or(|deadline| deadline > now) {
            return;
        }
        let name = self.generations[at].name(&worker);
        match worker.state {
            State::Starting { deadline, .. } if deadline > now => {
                let after_s = now.saturating_duration_since(worker.born).as_secs_f64();
                self.note(Note::StillBoots { worker: name, after_s });
                self.actions.push(Action::LookAt { worker: id });
                self.await_stacks(at, id, now);
                let look_at = next_look(worker.born, now, deadline);
                self.change(at, id, State::Starting { deadline, look_at }, now);
            }
            State::Starting { deadline, .. } => {
                let limit = boot_timeout.as_secs_f64();
                self.kill(at, id, now);
                let reason = match deadline == worker.born + boot_timeout {
                    true => format!("the worker was not ready within boot_timeout ({limit:.1}s)"),
                    // Else it had no more time than this.
                    false => {
                        "the worker closed its channel or sent nonsense before it served, and did not end".to_owned()
                    }
                };
                let refusal = Refusal { details: worker.stacks, ..Refusal::new(reason) };
                self.not_come_up(at, name, Failed::ToBoot, refusal, now);
            }
            State::Lost { .. } => {
                self.kill(at, id, now);
                let reason = "the worker closed its channel or sent nonsense before it served, and did not end";
                self.not_come_up(at, name, Failed::ToServe, Refusal::new(reason), now);
            }
            State::Opening { .. } => {
                self.note(Note::DidNotServe { worker: name });
                self.slot_lost(at, &worker, now);
                self.kill(at, id, now);
            }
            State::Serving { due: None, .. } => self.mark_due(at, id, Due::Lifetime),
            State::Closing { heard_by, deadline } if deadline > heard_by => {
                self.note(Note::DidNotConfirm { worker: name });
                self.change(at, id, State::Draining { deadline }, now);
            }
            State::Closing { .. } | State::Draining { .. } => {
                self.note(Note::NotFinished { worker: name });
                self.kill(at, id, now);
            }
            State::Finishing { threads, .. } => {
                let limit_s = self.generations[at].plan.graceful_timeout.as_secs_f64();
                self.note(Note::Held { worker: name, threads, limit_s });
                self.kill(at, id, now);
            }
            State::Terminating { deadline, .. } if deadline <= now => self.kill(at, id, now),
            State::Terminating { stuck, deadline, .. } => {
                self.actions.push(Action::CheckStuck { worker: id, stuck });
                let check_at = now + CHECK_STUCK_EVERY;
                self.change(at, id, State::Terminating { stuck, check_at, deadline }, now);
            }
            State::Exiting { .. } => self.kill(at, id, now),
            State::Kept { .. } => self.end_kept(at, id, now),
            State::Killed { .. } => {
                self.note(Note::WontDie { worker: name });
                self.generations[at].workers.retain(|worker| worker.id != id);
                self.watch_forks(at, false, now);
            }
            State::Ready | State::Serving { due: Some(_), .. } | State::Pausing { .. } | State::Paused { .. } => {}
        }
    }
}

/// A boot that takes longer than this may hang: who started it wants to know where.
const LOOK_AFTER: Duration = Duration::from_secs(10);

/// Before a boot is given up it is looked at again, early enough for an answer and for faulthandler after it.
const LAST_LOOK_BEFORE: Duration = Duration::from_secs(2);

/// When a boot is looked at next: after a while, and shortly before its end.
pub(super) fn next_look(born: Instant, now: Instant, deadline: Instant) -> Option<Instant> {
    let limit = deadline.saturating_duration_since(born);
    let last = deadline - LAST_LOOK_BEFORE.min(limit / 2);
    [born + LOOK_AFTER, last].into_iter().filter(|look| *look > now && *look <= last).min()
}

/// `max_requests` with its jitter, spread evenly by the worker's number, so that workers that started together do
/// not end together.
fn max_requests(max: u64, jitter: u64, worker: WorkerId) -> Option<u64> {
    if max == 0 {
        return None;
    }
    // Fibonacci hashing: consecutive numbers are spread over the whole range.
    let spread = worker.0.wrapping_mul(0x9E37_79B9_7F4A_7C15);
    let spread = (u128::from(spread) * (u128::from(jitter) + 1)) >> 64;
    Some(max.saturating_add(spread as u64))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_boot_is_looked_at_on_the_way_and_before_its_end() {
        let born = Instant::now();
        let looks = |limit: u64| {
            let deadline = born + Duration::from_secs(limit);
            let first = next_look(born, born, deadline);
            let second = first.and_then(|now| next_look(born, now, deadline));
            let third = second.and_then(|now| next_look(born, now, deadline));
            [first, second, third].map(|look| look.map(|look| look.duration_since(born).as_millis()))
        };
        assert_eq!(looks(60), [Some(10_000), Some(58_000), None]);
        assert_eq!(looks(12), [Some(10_000), None, None]);
        assert_eq!(looks(11), [Some(9_000), None, None]);
        assert_eq!(looks(2), [Some(1_000), None, None]);
    }

    #[test]
    fn workers_that_started_together_do_not_end_together() {
        let limits: Vec<u64> = (1..=8).filter_map(|id| max_requests(100, 50, WorkerId(id))).collect();
        assert!(limits.iter().all(|limit| (100..=150).contains(limit)), "{limits:?}");
        let mut sorted = limits.clone();
        sorted.sort_unstable();
        sorted.dedup();
        assert_eq!(sorted.len(), limits.len(), "{limits:?}");
        assert_eq!(max_requests(0, 50, WorkerId(1)), None);
    }
}
