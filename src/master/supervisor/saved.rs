//! What the supervisor knows while the service is quiet, in the form that an upgrade in place carries. One generation serves
//! and nothing is under way, so of the states of its processes only these are left: a worker serves, or is kept for somebody
//! who looks into it; a slot or a service rests or runs; the template can fork or is gone. `upgrade` makes sure of that before.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use forkmaster_wire::message::{GenerationId, SlotIndex, WorkerId};
use serde::{Deserialize, Serialize};

use super::backoff::Backoff;
use super::dump::Dump;
use super::generation::{Generation, Plan, Slot, State};
use super::kept::Keep;
use super::pace::Boot;
use super::rehearsal::Rehearsal;
use super::rhythm::{Book, Rhythm};
use super::services::{Readiness, Service, ServiceId, State as ServiceState};
use super::target::Target;
use super::template::Template;
use super::worker::{State as WorkerState, Worker};
use super::Supervisor;
use crate::facts::outcome::Verb;
use crate::saved::Moment;

#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub struct Saved {
    pub generation: GenerationId,
    origin: GenerationId,
    began: Moment,
    /// Since when it can fork; None: it is gone, and is started again.
    template: Option<Moment>,
    template_backoff: Backoff,
    slots: Vec<SavedSlot>,
    workers: Vec<SavedWorker>,
    #[serde(default)]
    candidate: Boot,
    services: Vec<SavedService>,
    #[serde(default)]
    books: BTreeMap<String, SavedBook>,
    target: Target,
    last_worker: u64,
    last_service: u64,
    last_ping: u64,
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct SavedSlot {
    backoff: Backoff,
    backoff_until: Option<Moment>,
    proved: bool,
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct SavedWorker {
    id: WorkerId,
    slot: SlotIndex,
    pid: i32,
    since: Moment,
    born: Moment,
    serving_since: Moment,
    /// Out of service until then, for somebody who looks into it.
    #[serde(default)]
    kept_until: Option<Moment>,
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct SavedService {
    id: ServiceId,
    name: String,
    number: u32,
    /// While it runs.
    pid: Option<i32>,
    /// Since when it runs, or until when it rests.
    at: Moment,
    restarts: u32,
    #[serde(default)]
    readiness: SavedReadiness,
    #[serde(default)]
    every: Option<Duration>,
    #[serde(default)]
    ready_within: Option<Duration>,
    stop_timeout: Duration,
    backoff: Backoff,
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct SavedBook {
    extra: i32,
    #[serde(default)]
    off: bool,
    restarts: u64,
    rhythm: Option<SavedRhythm>,
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct SavedRhythm {
    every: Duration,
    due: Moment,
    runs: u64,
    failed: u64,
    skipped: u64,
    last: Option<String>,
}

#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
enum SavedReadiness {
    #[default]
    Unasked,
    Awaited(Moment),
    Late,
    Ready,
}

impl Supervisor {
    /// None: it is not quiet.
    pub fn save(&self) -> Option<Saved> {
        let generation = self.serving().filter(|_| self.unquiet().is_none())?;
        // Who waits for its time is begun anew from its book.
        let runs = self.services.iter().filter(|service| service.state != ServiceState::Waiting);
        Some(Saved {
            generation: generation.id,
            origin: generation.origin,
            began: generation.began.into(),
            template: generation.template.ready_since().map(Moment::from),
            template_backoff: generation.template_backoff,
            slots: generation.slots.iter().map(SavedSlot::of).collect(),
            workers: generation.workers.iter().map(SavedWorker::of).collect::<Option<_>>()?,
            candidate: generation.candidate,
            services: runs.map(SavedService::of).collect::<Option<_>>()?,
            books: self.books.iter().map(|(name, book)| (name.clone(), SavedBook::of(book))).collect(),
            target: self.target,
            last_worker: self.last_worker,
            last_service: self.last_service,
            last_ping: self.last_ping,
        })
    }

    /// It goes on as if nothing had happened. `plan`: of the generation that serves.
    pub fn restore(saved: Saved, plan: Plan, now: Instant) -> Supervisor {
        let mut supervisor = Supervisor::new();
        let Saved { generation, began, template, template_backoff, slots, workers, services, target, .. } = saved;
        supervisor.listeners.extend(&plan.listeners);
        supervisor.generations.push(Generation {
            id: generation,
            plan,
            pause: None,
            maintenance: None,
            canary: None,
            tried: None,
            rehearsal: Rehearsal::Off,
            rehearsed: None,
            keep: Keep::No,
            // It has committed, and nobody asks any more.
            verb: Verb::default(),
            origin: saved.origin,
            lender: None,
            state: State::Serving,
            began: began.into(),
            template: match template {
                Some(since) => Template::Ready { since: since.into() },
                None => Template::Backoff { until: now },
            },
            template_backoff,
            slots: slots.into_iter().map(SavedSlot::restore).collect(),
            workers: workers.into_iter().map(SavedWorker::restore).collect(),
            candidate: saved.candidate,
            condemned: false,
            denied: 0,
            blocked: None,
            no_room: None,
        });
        supervisor.services = services.into_iter().map(|service| service.restore(generation)).collect();
        supervisor.books = saved.books.into_iter().map(|(name, book)| (name, book.restore())).collect();
        supervisor.target = target;
        supervisor.last_worker = saved.last_worker;
        supervisor.last_service = saved.last_service;
        supervisor.last_ping = saved.last_ping;
        supervisor
    }
}

impl SavedSlot {
    fn of(slot: &Slot) -> SavedSlot {
        let backoff_until = slot.backoff_until.map(Moment::from);
        SavedSlot { backoff: slot.backoff, backoff_until, proved: slot.proved }
    }

    fn restore(self) -> Slot {
        let backoff_until = self.backoff_until.map(Instant::from);
        Slot { backoff: self.backoff, backoff_until, proved: self.proved, yielded: None }
    }
}

impl SavedWorker {
    /// None: it neither serves nor is kept out of service.
    fn of(worker: &Worker) -> Option<SavedWorker> {
        let (serving_since, kept_until) = match worker.state {
            WorkerState::Serving { since, due: None } => (since, None),
            WorkerState::Kept { until, quiet: true } => (worker.since, Some(until)),
            WorkerState::Serving { due: Some(_), .. }
            | WorkerState::Kept { quiet: false, .. }
            | WorkerState::Starting { .. }
            | WorkerState::Lost { .. }
            | WorkerState::Ready
            | WorkerState::Opening { .. }
            | WorkerState::Pausing { .. }
            | WorkerState::Paused { .. }
            | WorkerState::Closing { .. }
            | WorkerState::Draining { .. }
            | WorkerState::Finishing { .. }
            | WorkerState::Terminating { .. }
            | WorkerState::Exiting { .. }
            | WorkerState::Killed { .. } => return None,
        };
        Some(SavedWorker {
            id: worker.id,
            slot: worker.slot,
            pid: worker.pid?,
            since: worker.since.into(),
            born: worker.born.into(),
            serving_since: serving_since.into(),
            kept_until: kept_until.map(Moment::from),
        })
    }

    fn restore(self) -> Worker {
        Worker {
            id: self.id,
            slot: self.slot,
            pid: Some(self.pid),
            state: match self.kept_until {
                None => WorkerState::Serving { since: self.serving_since.into(), due: None },
                Some(until) => WorkerState::Kept { until: until.into(), quiet: true },
            },
            since: self.since.into(),
            born: self.born.into(),
            dump: Dump::None,
            stacks: String::new(),
        }
    }
}

impl SavedBook {
    fn of(book: &Book) -> SavedBook {
        let rhythm = book.rhythm.as_ref().map(|rhythm| SavedRhythm {
            every: rhythm.every,
            due: rhythm.due.into(),
            runs: rhythm.runs,
            failed: rhythm.failed,
            skipped: rhythm.skipped,
            last: rhythm.last.clone(),
        });
        SavedBook { extra: book.extra, off: book.off, restarts: book.restarts, rhythm }
    }

    fn restore(self) -> Book {
        let rhythm = self.rhythm.map(|rhythm| Rhythm {
            every: rhythm.every,
            due: rhythm.due.into(),
            runs: rhythm.runs,
            failed: rhythm.failed,
            skipped: rhythm.skipped,
            skip_told: false,
            last: rhythm.last,
        });
        Book { extra: self.extra, off: self.off, restarts: self.restarts, rhythm }
    }
}

impl SavedService {
    /// None: it is told to stop.
    fn of(service: &Service) -> Option<SavedService> {
        let at = match service.state {
            ServiceState::Running { since } => since,
            ServiceState::Resting { until } => until,
            ServiceState::Waiting | ServiceState::Stopping { .. } | ServiceState::Killed { .. } => return None,
        };
        Some(SavedService {
            id: service.id,
            name: service.name.clone(),
            number: service.number,
            pid: service.pid,
            at: at.into(),
            restarts: service.restarts,
            readiness: match service.readiness {
                Readiness::Unasked => SavedReadiness::Unasked,
                Readiness::Awaited { by } => SavedReadiness::Awaited(by.into()),
                Readiness::Late => SavedReadiness::Late,
                Readiness::Ready => SavedReadiness::Ready,
            },
            every: service.every,
            ready_within: service.ready_within,
            stop_timeout: service.stop_timeout,
            backoff: service.backoff,
        })
    }

    fn restore(self, generation: GenerationId) -> Service {
        let at = self.at.into();
        Service {
            id: self.id,
            generation,
            name: self.name,
            number: self.number,
            pid: self.pid,
            state: match self.pid {
                Some(_) => ServiceState::Running { since: at },
                None => ServiceState::Resting { until: at },
            },
            restarts: self.restarts,
            readiness: match self.readiness {
                SavedReadiness::Unasked => Readiness::Unasked,
                SavedReadiness::Awaited(by) => Readiness::Awaited { by: by.into() },
                SavedReadiness::Late => Readiness::Late,
                SavedReadiness::Ready => Readiness::Ready,
            },
            every: self.every,
            ready_within: self.ready_within,
            stop_timeout: self.stop_timeout,
            backoff: self.backoff,
        }
    }
}
