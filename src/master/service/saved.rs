//! The hands of an application over an exec: its generation that serves, its processes, and what was counted and is remembered.
//! What they look at or do just now is begun anew by the next binary: dumps, slow requests, hooks, the counter of OOM
//! kills. A save is possible only while nothing of that kind is under way, but for slow requests, which are told again.

use std::collections::{BTreeMap, VecDeque};
use std::io;

use forkmaster_wire::channel::Channel;
use forkmaster_wire::message::{GenerationId, Hello, ListenerId, SlotIndex, WorkerId};
use forkmaster_wire::scoreboard::Scoreboard;
use forkmaster_wire::WIRE_HASH;
use serde::{Deserialize, Serialize};

use super::earlier::Earlier;
use super::measures::Counted;
use super::output::Output;
use super::processes::{GenerationProcesses, Said, TemplateProcess, WorkerProcess};
use super::readiness::Readiness;
use super::services::ServiceProcess;
use super::Service;
use crate::children::Who;
use crate::config::change::Fixed;
use crate::config::settings::{AccessTarget, Settings};
use crate::config::{Effective, Source as ConfigSource};
use crate::facts::history::{Entry, Grown, Growth};
use crate::facts::outcome::Reload;
use crate::logs::{self, AccessLog};
use crate::saved::{Claims, Kept, Moment};
use crate::shared::Shared;
use crate::sources::Source;
use crate::supervisor::services::ServiceId;
use crate::supervisor::{saved, Supervisor};

const READINESS: &str = "readiness";

#[derive(Serialize, Deserialize)]
pub struct Saved {
    supervisor: saved::Saved,
    generation: SavedGeneration,
    workers: Vec<SavedWorker>,
    services: Vec<SavedService>,
    last_generation: u32,
    reloads: u64,
    last_reload: Option<Reload>,
    last_refusal: Option<Reload>,
    fixed: Option<Fixed>,
    earlier: Earlier,
    counted: Counted,
    began: Moment,
    history: VecDeque<Entry>,
    /// Lines that could not be written to its file yet.
    unwritten: VecDeque<String>,
    last_hook: u64,
    was_ready: bool,
    last_stacks: u64,
}

/// The one that serves.
#[derive(Serialize, Deserialize)]
struct SavedGeneration {
    settings: Settings,
    written: Vec<Effective>,
    in_place: bool,
    back: Option<GenerationId>,
    #[serde(default)]
    origin: Option<GenerationId>,
    asked: String,
    changes: Vec<String>,
    proved_s: Option<f64>,
    grown: Grown,
    listeners: Vec<ListenerId>,
    #[serde(default)]
    service_listeners: BTreeMap<String, Vec<ListenerId>>,
    /// The template's pid.
    template: Option<i32>,
    interpreter: Option<Hello>,
    cells: u32,
    threads: u32,
    bodies_in_memory: bool,
    access: Option<logs::saved::Saved<AccessTarget>>,
    began: Moment,
}

#[derive(Serialize, Deserialize)]
struct SavedWorker {
    id: WorkerId,
    slot: SlotIndex,
    pid: i32,
    cell: u32,
    growth: Option<Growth>,
    listeners: Vec<ListenerId>,
}

#[derive(Serialize, Deserialize)]
struct SavedService {
    id: ServiceId,
    pid: i32,
    name: String,
    stop_signal: i32,
    unfinished: Vec<u8>,
}

impl Saved {
    pub fn settings(&self) -> &Settings {
        &self.generation.settings
    }
}

impl Service {
    /// None: something is under way.
    pub fn save(&self, kept: &mut Kept) -> Option<Saved> {
        let supervisor = self.supervisor.save()?;
        self.readiness.iter().for_each(|readiness| kept.keep(READINESS, readiness));
        let generation = self.generations.get(&supervisor.generation)?.save(kept);
        let workers = self.workers.iter().map(|(id, worker)| worker.save(*id, kept)).collect::<Option<_>>()?;
        let running = self.supervisor.services().iter().filter_map(|service| Some((service.id, service.pid?)));
        let services = running.map(|(id, pid)| Some(self.services.get(&id)?.save(id, pid, kept)));
        Some(Saved {
            supervisor,
            generation,
            workers,
            services: services.collect::<Option<_>>()?,
            last_generation: self.last_generation,
            reloads: self.reloads,
            last_reload: self.last_reload.clone(),
            last_refusal: self.last_refusal.clone(),
            fixed: self.fixed.clone(),
            earlier: self.earlier.clone(),
            counted: self.counted.clone(),
            began: self.began.into(),
            history: self.history.entries.clone(),
            unwritten: self.history.unwritten.clone(),
            last_hook: self.hooks.last,
            was_ready: self.hooks.was_ready,
            last_stacks: self.last_stacks,
        })
    }

    pub fn restore(
        saved: Saved,
        source: ConfigSource,
        shared: &mut Shared,
        claims: &mut Claims,
    ) -> io::Result<Service> {
        let mut service = Service::new(source, shared.clock.now());
        let id = saved.supervisor.generation;
        let mut generation = GenerationProcesses::restore(saved.generation, id, shared, claims)?;
        for worker in saved.workers {
            generation.keep_cell(worker.cell, worker.id);
            service.workers.insert(worker.id, WorkerProcess::restore(worker, id, shared, claims)?);
        }
        for process in saved.services {
            service.services.insert(process.id, ServiceProcess::restore(process, id, shared, claims)?);
        }
        let readiness = claims.claim_if_there(READINESS);
        service.readiness = readiness.map(|socket| Readiness::at(socket, &mut shared.sources)).transpose()?;
        service.set_hooks(&generation.settings);
        service.supervisor = Supervisor::restore(saved.supervisor, generation.plan(), shared.clock.now());
        service.history.path.clone_from(&generation.settings.control.history);
        service.generations.insert(id, generation);
        service.last_generation = saved.last_generation;
        service.reloads = saved.reloads;
        (service.last_reload, service.last_refusal) = (saved.last_reload, saved.last_refusal);
        service.fixed = saved.fixed;
        (service.earlier, service.counted) = (saved.earlier, saved.counted);
        service.began = saved.began.into();
        (service.history.entries, service.history.unwritten) = (saved.history, saved.unwritten);
        (service.hooks.last, service.hooks.was_ready) = (saved.last_hook, saved.was_ready);
        service.last_stacks = saved.last_stacks;
        Ok(service)
    }
}

impl GenerationProcesses {
    fn save(&self, kept: &mut Kept) -> SavedGeneration {
        kept.keep("scoreboard", &self.board);
        if let Some(template) = &self.template {
            kept.keep("template", &template.channel);
        }
        SavedGeneration {
            settings: self.settings.clone(),
            written: self.written.clone(),
            in_place: self.in_place,
            back: self.back,
            origin: self.origin,
            asked: self.asked.clone(),
            changes: self.changes.clone(),
            proved_s: self.proved_s,
            grown: self.grown,
            listeners: self.listeners.clone(),
            service_listeners: self.service_listeners.clone(),
            template: self.template.as_ref().map(|template| template.pid),
            interpreter: self.interpreter.clone(),
            cells: self.board.cells(),
            threads: self.board.threads(),
            bodies_in_memory: self.bodies_in_memory,
            access: self.access.as_ref().map(|access| access.save(kept)),
            began: self.began.into(),
        }
    }

    fn restore(
        saved: SavedGeneration,
        id: GenerationId,
        shared: &mut Shared,
        claims: &mut Claims,
    ) -> io::Result<GenerationProcesses> {
        let board = Scoreboard::open(claims.claim("scoreboard")?, saved.cells, saved.threads)?;
        let SavedGeneration { settings, written, in_place, listeners, began, .. } = saved;
        let mut processes = GenerationProcesses::on(board, settings, written, listeners, in_place, began.into());
        if let Some(pid) = saved.template {
            let channel = Channel::from(claims.claim("template")?);
            take_over(shared, Who::Template(id), pid)?;
            let token = shared.sources.add(&channel, Source::Template(id))?;
            processes.template = Some(TemplateProcess { pid, channel, token, failure: None, said: Said::Loaded });
        }
        processes.access = saved.access.map(|access| AccessLog::restore(access, claims)).transpose()?;
        // A template that is started again brings the library of this binary.
        processes.interpreter = saved.interpreter.map(|hello| Hello { wire_hash: WIRE_HASH, ..hello });
        processes.origin = saved.origin;
        (processes.back, processes.asked, processes.changes) = (saved.back, saved.asked, saved.changes);
        (processes.proved_s, processes.grown) = (saved.proved_s, saved.grown);
        processes.service_listeners = saved.service_listeners;
        processes.bodies_in_memory = saved.bodies_in_memory;
        Ok(processes)
    }
}

impl WorkerProcess {
    /// None: it has not been born yet.
    fn save(&self, id: WorkerId, kept: &mut Kept) -> Option<SavedWorker> {
        let pid = self.pid?;
        kept.keep(channel_of(id), &self.channel);
        kept.keep(stacks_of(id), &self.stacks);
        let (slot, cell, growth, listeners) = (self.slot, self.cell, self.growth, self.listeners.clone());
        Some(SavedWorker { id, slot, pid, cell, growth, listeners })
    }

    fn restore(
        saved: SavedWorker,
        generation: GenerationId,
        shared: &mut Shared,
        claims: &mut Claims,
    ) -> io::Result<WorkerProcess> {
        let SavedWorker { id, slot, pid, cell, growth, listeners } = saved;
        let channel = Channel::from(claims.claim(&channel_of(id))?);
        let stacks = claims.claim(&stacks_of(id))?;
        take_over(shared, Who::Worker(id), pid)?;
        let token = shared.sources.add(&channel, Source::Worker(id))?;
        let stacks_token = shared.sources.add(&stacks, Source::Stacks(id))?;
        Ok(WorkerProcess {
            generation,
            slot,
            pid: Some(pid),
            not_forked: None,
            channel,
            token,
            cell,
            stacks,
            stacks_token,
            stacks_text: Vec::new(),
            stacks_asked: false,
            stacks_logged: false,
            killed: false,
            doubted: false,
            growth,
            beside: None,
            listeners,
        })
    }
}

impl ServiceProcess {
    fn save(&self, id: ServiceId, pid: i32, kept: &mut Kept) -> SavedService {
        kept.keep(output_of(id), &self.output);
        let (name, unfinished) = (self.name.clone(), self.output.unfinished().to_vec());
        SavedService { id, pid, name, stop_signal: self.stop_signal, unfinished }
    }

    fn restore(
        saved: SavedService,
        generation: GenerationId,
        shared: &mut Shared,
        claims: &mut Claims,
    ) -> io::Result<ServiceProcess> {
        let SavedService { id, pid, name, stop_signal, unfinished } = saved;
        let output = Output::new(claims.claim(&output_of(id))?).after(unfinished);
        take_over(shared, Who::Service(id), pid)?;
        let token = shared.sources.add(&output, Source::Service(id))?;
        Ok(ServiceProcess { generation, name, stop_signal, output, token, start: None })
    }
}

fn take_over(shared: &mut Shared, who: Who, pid: i32) -> io::Result<()> {
    shared.children.take_over(who, pid).map_err(|claim| io::Error::other(format!("{who:?}: {claim}")))
}

fn channel_of(worker: WorkerId) -> String {
    format!("worker.{}", worker.0)
}

fn stacks_of(worker: WorkerId) -> String {
    format!("worker.{}.stacks", worker.0)
}

fn output_of(service: ServiceId) -> String {
    format!("service.{}", service.0)
}
