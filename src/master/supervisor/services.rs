//! Services: programs that belong to a generation and serve no HTTP (a Celery worker, a scheduler). They begin when their
//! generation commits, and those of the generation before are told to stop then. So no process of an old release starts
//! after the commit and none of a new one before it, and a release that is refused touches none of them.
//!
//! | State | Event | Next | What is done |
//! |---|---|---|---|
//! | - | its generation serves | Running; Waiting where it runs every so often | started |
//! | Waiting | its time has come (`rhythm`) | Running | started |
//! | Waiting | its generation serves no more, TERM | gone | |
//! | Running | exit | Resting | it says why; the pause is doubled each time, until one has lived for long |
//! | Running, every so often | exit, or a start that failed | Waiting | it says how the run has ended |
//! | Running | a start that failed | Resting | the same |
//! | Resting | deadline | Running | started again, from the same generation |
//! | Resting | its generation serves no more, TERM | gone | |
//! | Running | its generation serves no more, TERM | Stopping | its `stop_signal` |
//! | Stopping | deadline | Killed | KILL, to all that it has started |
//! | Killed | deadline | gone | given up: the kernel does not let it die |
//! | Stopping, Killed | exit | gone | |
//!
//! One with `notify` says itself when it is ready, and is `starting` until then:
//!
//! | Readiness | Event | Next | What is done |
//! |---|---|---|---|
//! | Unasked | | | |
//! | Awaited | it says READY=1 | Ready | |
//! | Awaited | deadline | Late | it says so, and the state of the whole is `degraded` |
//! | Late | it says READY=1 | Ready | |
//! | Ready | exit | Awaited | |
//!
//! A service never decides about a release: one that dies again and again costs lines of the log, and the site serves.

use std::time::{Duration, Instant};

use forkmaster_wire::message::GenerationId;
use serde::{Deserialize, Serialize};

use super::backoff::Backoff;
#[cfg(test)]
use super::generation::State as GenerationState;
use super::worker::Exit;
use super::{Action, Supervisor, KILLED_WITHIN};
use crate::facts::note::{Note, ServiceName};

/// One process of a service, unique over the life of the master.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ServiceId(pub u64);

/// What the supervisor must know of a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServicePlan {
    pub name: String,
    pub count: u32,
    pub stop_timeout: Duration,
    /// It says when it is ready, and should within this. None: it is once it runs.
    pub ready_within: Option<Duration>,
    /// It runs every so often and ends. None: it runs all the time.
    pub every: Option<Duration>,
}

#[derive(Clone, Debug)]
pub struct Service {
    pub id: ServiceId,
    pub generation: GenerationId,
    pub name: String,
    /// From 0, within its service.
    pub number: u32,
    pub pid: Option<i32>,
    pub state: State,
    pub(super) readiness: Readiness,
    pub restarts: u32,
    pub(super) every: Option<Duration>,
    pub(super) ready_within: Option<Duration>,
    pub(super) stop_timeout: Duration,
    pub(super) backoff: Backoff,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Its time has not come.
    Waiting,
    Running {
        since: Instant,
    },
    /// It has ended, and begins again.
    Resting {
        until: Instant,
    },
    Stopping {
        kill_at: Instant,
    },
    Killed {
        give_up: Instant,
    },
}

/// What a service with `notify` has said of itself. It lives on over a crash: one that dies before it is ready, again and
/// again, is late as well.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Readiness {
    /// It runs, and that is enough.
    Unasked,
    Awaited {
        by: Instant,
    },
    Late,
    Ready,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    Started {
        pid: i32,
    },
    /// It has said so itself.
    Ready,
    Exited(Exit),
}

impl Readiness {
    fn awaited(within: Option<Duration>, now: Instant) -> Readiness {
        within.map_or(Readiness::Unasked, |within| Readiness::Awaited { by: now + within })
    }

    fn deadline(self) -> Option<Instant> {
        match self {
            Readiness::Awaited { by } => Some(by),
            Readiness::Unasked | Readiness::Late | Readiness::Ready => None,
        }
    }
}

impl State {
    fn deadline(self) -> Option<Instant> {
        match self {
            State::Waiting | State::Running { .. } => None,
            State::Resting { until } => Some(until),
            State::Stopping { kill_at } => Some(kill_at),
            State::Killed { give_up } => Some(give_up),
        }
    }
}

impl Service {
    fn shown(&self) -> ServiceName {
        let (generation, number, pid) = (self.generation, self.number, self.pid);
        ServiceName { name: self.name.clone(), generation, number, pid }
    }

    /// The word for log lines and `status`.
    pub fn word(&self) -> &'static str {
        match (self.state, self.readiness) {
            (State::Waiting, _) => "waiting",
            (State::Running { .. }, Readiness::Unasked | Readiness::Ready) => "running",
            (State::Running { .. }, Readiness::Awaited { .. }) => "starting",
            (State::Running { .. }, Readiness::Late) => "late",
            (State::Resting { .. }, _) => "resting",
            (State::Stopping { .. }, _) => "stopping",
            (State::Killed { .. }, _) => "killed",
        }
    }

    /// `begins`: programs are started at this time; without, the end of a rest is nothing to wake up for.
    pub fn deadline(&self, begins: bool) -> Option<Instant> {
        let state = match self.state {
            State::Resting { .. } if !begins => None,
            state => state.deadline(),
        };
        state.into_iter().chain(self.ready_by()).min()
    }

    /// Who stops need not become ready any more.
    fn ready_by(&self) -> Option<Instant> {
        match self.state {
            State::Running { .. } | State::Resting { .. } => self.readiness.deadline(),
            State::Waiting | State::Stopping { .. } | State::Killed { .. } => None,
        }
    }
}

impl Supervisor {
    pub fn services(&self) -> &[Service] {
        &self.services
    }

    /// One of the generation that serves should have become ready by now.
    pub(super) fn is_service_late(&self) -> bool {
        self.services.iter().any(|of| self.is_serving(of.generation) && of.readiness == Readiness::Late)
    }

    pub(super) fn is_serving(&self, generation: GenerationId) -> bool {
        self.serving().is_some_and(|serving| serving.id == generation)
    }

    pub(super) fn has_services(&self, generation: GenerationId) -> bool {
        self.services.iter().any(|service| service.generation == generation)
    }

    /// Starts those of the generation that serves, and stops those of others.
    pub(super) fn tend_services(&mut self, now: Instant) {
        let serving = self.serving().map(|generation| (generation.id, generation.plan.services.clone()));
        let Some((generation, plans)) = serving else { return };
        self.keep_books(&plans, now);
        let wanted = |supervisor: &Supervisor, service: &Service| {
            let plan = plans.iter().find(|plan| plan.name == service.name);
            plan.is_some_and(|plan| service.number < supervisor.wanted_processes(plan))
        };
        for at in (0..self.services.len()).rev() {
            if self.services[at].generation != generation || !wanted(self, &self.services[at]) {
                self.stop_service(at, now);
            }
        }
        for plan in &plans {
            for number in 0..self.wanted_processes(plan) {
                let is_it = |service: &Service| {
                    service.generation == generation && service.name == plan.name && service.number == number
                };
                if !self.services.iter().any(is_it) {
                    self.add_service(generation, plan, number, now);
                }
            }
        }
        self.keep_rhythm(now);
    }

    fn add_service(&mut self, generation: GenerationId, plan: &ServicePlan, number: u32, now: Instant) {
        self.last_service += 1;
        let id = ServiceId(self.last_service);
        self.services.push(Service {
            id,
            generation,
            name: plan.name.clone(),
            number,
            pid: None,
            state: State::Waiting,
            readiness: Readiness::awaited(plan.ready_within, now),
            restarts: 0,
            every: plan.every,
            ready_within: plan.ready_within,
            stop_timeout: plan.stop_timeout,
            backoff: Backoff::default(),
        });
        if plan.every.is_none() {
            self.run_service(self.services.len() - 1, now);
        }
    }

    pub(super) fn run_service(&mut self, at: usize, now: Instant) {
        let service = &mut self.services[at];
        service.state = State::Running { since: now };
        let (generation, id, name) = (service.generation, service.id, service.name.clone());
        self.actions.push(Action::StartService { generation, service: id, name });
    }

    pub(super) fn stop_services(&mut self, now: Instant) {
        for at in (0..self.services.len()).rev() {
            self.stop_service(at, now);
        }
    }

    pub(super) fn stop_service(&mut self, at: usize, now: Instant) {
        let service = &mut self.services[at];
        let from = Some(service.word());
        match service.state {
            State::Running { .. } => {
                service.state = State::Stopping { kill_at: now + service.stop_timeout };
                self.actions.push(Action::StopService { service: service.id, kill: false });
                let service = service.shown();
                self.note(Note::Service { service, from, to: "stopping" });
            }
            State::Waiting | State::Resting { .. } => drop(self.services.remove(at)),
            State::Stopping { .. } | State::Killed { .. } => {}
        }
    }

    /// KILL to all, at the end.
    pub(super) fn kill_services(&mut self, now: Instant) {
        for at in (0..self.services.len()).rev() {
            self.kill_service(at, now);
        }
    }

    fn kill_service(&mut self, at: usize, now: Instant) {
        let service = &mut self.services[at];
        match service.state {
            State::Running { .. } | State::Stopping { .. } => {
                service.state = State::Killed { give_up: now + KILLED_WITHIN };
                self.actions.push(Action::StopService { service: service.id, kill: true });
            }
            State::Waiting | State::Resting { .. } => drop(self.services.remove(at)),
            State::Killed { .. } => {}
        }
    }

    pub(super) fn on_service(&mut self, id: ServiceId, event: Event, now: Instant) {
        let Some(at) = self.services.iter().position(|service| service.id == id) else { return };
        match event {
            Event::Started { pid } => {
                self.services[at].pid = Some(pid);
                let (service, to) = (self.services[at].shown(), self.services[at].word());
                self.note(Note::Service { service, from: None, to });
            }
            Event::Ready => self.service_ready(at),
            Event::Exited(exit) => self.service_gone(at, &exit, now),
        }
    }

    fn service_ready(&mut self, at: usize) {
        let service = &mut self.services[at];
        let from = Some(service.word());
        match (service.state, service.readiness) {
            (State::Running { .. }, Readiness::Awaited { .. } | Readiness::Late) => {
                service.readiness = Readiness::Ready;
                let (service, to) = (service.shown(), service.word());
                self.note(Note::Service { service, from, to });
            }
            // It says so again, it was not asked, or its end has begun.
            (State::Running { .. }, Readiness::Unasked | Readiness::Ready)
            | (State::Waiting | State::Resting { .. } | State::Stopping { .. } | State::Killed { .. }, _) => {}
        }
    }

    fn service_gone(&mut self, at: usize, exit: &Exit, now: Instant) {
        let service = &mut self.services[at];
        let (shown, from, cause) = (service.shown(), service.word(), exit.to_string());
        match service.state {
            State::Running { since } if service.every.is_some() => {
                (service.state, service.pid) = (State::Waiting, None);
                let took_s = now.saturating_duration_since(since).as_secs_f64();
                let next = self.run_ended(&shown.name, exit, now).unwrap_or_default();
                let (ok, next_s) = (*exit == Exit::Code(0), next.as_secs_f64());
                self.note(Note::ServiceRan { service: shown, cause, ok, took_s, next_s });
            }
            State::Running { since } => {
                let pause = match exit {
                    Exit::NeverBorn(_) | Exit::NoRoom(_) => service.backoff.after_failed_boot(),
                    Exit::Code(_) | Exit::Signal { .. } | Exit::OutOfMemory(_) | Exit::LostAtBirth => {
                        service.backoff.after_death(now.saturating_duration_since(since))
                    }
                };
                service.state = State::Resting { until: now + pause };
                service.pid = None;
                if service.readiness == Readiness::Ready {
                    service.readiness = Readiness::awaited(service.ready_within, now);
                }
                let next_s = Some(pause.as_secs_f64());
                self.note(Note::ServiceGone { service: shown, from, cause, next_s });
            }
            State::Stopping { .. } | State::Killed { .. } => {
                if self.services.remove(at).every.is_some() {
                    self.run_ended(&shown.name, exit, now);
                }
                self.note(Note::ServiceGone { service: shown, from, cause, next_s: None });
            }
            // It has no process.
            State::Waiting | State::Resting { .. } => {}
        }
    }

    pub(super) fn expire_services(&mut self, now: Instant) {
        for at in (0..self.services.len()).rev() {
            let service = &mut self.services[at];
            if service.ready_by().is_some_and(|by| by <= now) {
                service.readiness = Readiness::Late;
                let (shown, within_s) = (service.shown(), service.ready_within.unwrap_or_default().as_secs_f64());
                self.note(Note::ServiceLate { service: shown, within_s });
            }
            let service = &self.services[at];
            if service.state.deadline().is_none_or(|deadline| deadline > now) {
                continue;
            }
            let id = service.id;
            match service.state {
                State::Waiting | State::Running { .. } => {}
                State::Resting { .. } if !self.phase.begins_processes() => {}
                State::Resting { .. } => {
                    self.services[at].restarts += 1;
                    if let Some(book) = self.books.get_mut(&self.services[at].name) {
                        book.restarts += 1;
                    }
                    self.run_service(at, now);
                }
                State::Stopping { .. } => {
                    let service = service.shown();
                    self.note(Note::ServiceKilled { service });
                    self.kill_service(at, now);
                }
                State::Killed { .. } => {
                    let service = service.shown();
                    self.note(Note::ServiceWontDie { service });
                    self.services.remove(at);
                    self.actions.push(Action::GiveUpService { service: id });
                }
            }
        }
    }

    /// A generation that serves, as far as services are concerned.
    #[cfg(test)]
    pub(super) fn running_services(&self, generation: u32) -> usize {
        let runs = |service: &&Service| {
            service.generation == GenerationId(generation) && matches!(service.state, State::Running { .. })
        };
        debug_assert!(self.generations.iter().all(|generation| match generation.state {
            GenerationState::Proving | GenerationState::Rolling { .. } => !self.has_services(generation.id),
            GenerationState::Serving
            | GenerationState::Draining
            | GenerationState::Kept
            | GenerationState::Abandoned => true,
        }));
        self.services.iter().filter(runs).count()
    }
}
