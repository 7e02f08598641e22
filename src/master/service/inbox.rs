//! Messages of templates and workers, and what they mean to the supervisor. Nothing else reads their channels.

use std::fmt;
use std::time::Duration;

use forkmaster_wire::channel::{Received, Sender};
use forkmaster_wire::message::{FromTemplate, FromWorker, GenerationId, WorkerId};
use forkmaster_wire::WIRE_HASH;
use mio::Token;

use super::dumps::log_last_stacks;
use super::processes::{Said, WorkerProcess};
use super::{history, name, EventQueue, Service};
use crate::children::{Proof, Who};
use crate::chores::gauges::Gauges;
use crate::chores::Chore;
use crate::config::settings::Identity;
use crate::facts::outcome::Refusal;
use crate::shared::Shared;
use crate::supervisor::pace::Boot;
use crate::supervisor::rehearsal::Rehearsed;
use crate::supervisor::template::Event as TemplateEvent;
use crate::supervisor::worker::{Event as WorkerEvent, Exit};
use crate::supervisor::Event;

/// Messages read from one channel (or pieces from one pipe) before the others get their turn: a process that never
/// stops talking must not keep the master from anything. More than a dead process can have left behind, since the
/// kernel charges each packet with some 800 bytes of its 212,992 (socket(7), SO_SNDBUF).
pub const READS_PER_PASS_MAX: usize = 512;

impl Service {
    /// Reads what a process that has ended had still to say. A stranger may be a worker whose introduction was not read.
    pub fn read_last_words(&mut self, who: Option<Who>, shared: &mut Shared, events: &mut EventQueue) {
        match who {
            Some(Who::Worker(worker)) => self.read_worker(worker, shared, events),
            Some(Who::Template(generation)) => {
                let template = self.generations.get(&generation).and_then(|processes| processes.template.as_ref());
                if let Some(token) = template.map(|template| template.token) {
                    self.read_template(generation, token, shared, events);
                }
            }
            Some(Who::Hook(_) | Who::NewBinary) => {}
            // It says nothing but what stands in its output.
            Some(Who::Command(_) | Who::Service(_)) => {}
            Some(Who::Stray) | None => {
                let unborn = self.workers.iter().filter(|(_, worker)| worker.pid.is_none());
                for worker in unborn.map(|(id, _)| *id).collect::<Vec<_>>() {
                    self.read_worker(worker, shared, events);
                }
            }
        }
    }

    /// Reads a template's channel. `token` tells a restarted template's channel from its predecessor's.
    pub fn read_template(
        &mut self,
        generation: GenerationId,
        token: Token,
        shared: &mut Shared,
        events: &mut EventQueue,
    ) {
        for _ in 0..READS_PER_PASS_MAX {
            let Some(template) = self.generations.get(&generation).and_then(|processes| processes.template.as_ref())
            else {
                return;
            };
            // A restarted template has another channel.
            if template.token != token {
                return;
            }
            let event = match template.channel.receive::<FromTemplate>(false) {
                Ok(Received::Message(message, _)) => {
                    match self.on_template_message(generation, message, shared, events) {
                        Some(event) => event,
                        None => continue,
                    }
                }
                Ok(Received::Empty) => return,
                Ok(Received::Eof) => {
                    self.unwatch_template(generation, shared);
                    return events.push_back(Event::Template { generation, event: TemplateEvent::ChannelLost });
                }
                Err(error) => TemplateEvent::Broken { reason: format!("its channel: {error}") },
            };
            events.push_back(Event::Template { generation, event });
        }
        shared.sources.mark_unread(token);
    }

    /// What a template's message means to the supervisor.
    fn on_template_message(
        &mut self,
        generation: GenerationId,
        message: FromTemplate,
        shared: &mut Shared,
        events: &mut EventQueue,
    ) -> Option<TemplateEvent> {
        let processes = self.generations.get_mut(&generation)?;
        let said = processes.template.as_mut().map(|template| &mut template.said)?;
        let says = match message {
            FromTemplate::Hello(_) => Said::Hello,
            FromTemplate::Loaded(_) => Said::Loaded,
            FromTemplate::Failed(_) => Said::Failed,
            FromTemplate::SpawnFailed { .. } | FromTemplate::Pong { .. } => *said,
        };
        let repeats = matches!(message, FromTemplate::Hello(_) | FromTemplate::Loaded(_)) && says <= *said;
        if repeats {
            return Some(TemplateEvent::Broken { reason: "it introduces itself twice".to_owned() });
        }
        *said = says;
        match message {
            FromTemplate::Hello(hello) => {
                if hello.wire_hash != WIRE_HASH {
                    let reason = "its worker library is of another version than the master".to_owned();
                    return Some(TemplateEvent::Broken { reason });
                }
                let pid = processes.template.as_ref().map_or(0, |template| template.pid);
                log::info!(
                    "template gen={generation} pid={pid} python={} prefix={} ({})",
                    hello.version,
                    hello.prefix.display(),
                    processes.settings.app.interpreter.chosen_by,
                );
                match &processes.interpreter {
                    Some(pinned) if *pinned != hello => Some(TemplateEvent::Broken {
                        reason: format!(
                            "another interpreter than this generation's: {} {} instead of {} {}",
                            hello.executable.display(),
                            hello.version,
                            pinned.executable.display(),
                            pinned.version
                        ),
                    }),
                    Some(_) => Some(TemplateEvent::Hello),
                    None => {
                        processes.interpreter = Some(hello);
                        Some(TemplateEvent::Hello)
                    }
                }
            }
            FromTemplate::Loaded(loaded) => {
                if processes.settings.app.preload {
                    log::info!("template gen={generation} imported the application after={}ms", loaded.import_ms);
                }
                if !loaded.threads.is_empty() {
                    log::warn!(
                        "template gen={generation}: the import left threads running, which forked workers do not have: \
                         {}; start them in the worker, or set preload = false",
                        loaded.threads.join(", ")
                    );
                }
                if !loaded.sockets.is_empty() {
                    log::warn!(
                        "template gen={generation}: the import left sockets open, which all workers share: {}; open them \
                         in the worker, or set preload = false",
                        loaded.sockets.join(", ")
                    );
                }
                Some(TemplateEvent::Loaded)
            }
            FromTemplate::Failed(failure) => Some(TemplateEvent::Failed(failure.into())),
            FromTemplate::SpawnFailed { worker, reason, no_room } => {
                let refusal = Refusal::new(format!("the worker could not be forked: {reason}"));
                let exit = if no_room { Exit::NoRoom(refusal) } else { Exit::NeverBorn(refusal) };
                let unborn = self.workers.get_mut(&worker).filter(|worker| worker.pid.is_none());
                let unborn = unborn.filter(|worker| worker.generation == generation)?;
                unborn.not_forked = Some(exit.clone());
                // It may have been forked all the same, and then its own end is awaited.
                self.read_worker(worker, shared, events);
                let known = self.workers.get(&worker);
                if known.is_some_and(|worker| worker.pid.is_some()) {
                    return None;
                }
                if !no_room {
                    log::error!("template gen={generation} could not fork a worker: {reason}");
                }
                if known.is_some() {
                    self.worker_ended(worker, exit, shared, events);
                }
                None
            }
            FromTemplate::Pong { id } => Some(TemplateEvent::Pong { ping: id }),
        }
    }

    /// Reads a worker's channel.
    pub fn read_worker(&mut self, id: WorkerId, shared: &mut Shared, events: &mut EventQueue) {
        for _ in 0..READS_PER_PASS_MAX {
            let Some(worker) = self.workers.get_mut(&id) else { return };
            if !shared.sources.is_watched(worker.token) {
                return;
            }
            let event = match worker.channel.receive_from::<FromWorker>(false) {
                Ok((Received::Message(message, _), sender)) => {
                    match self.on_worker_message(id, message, sender, shared) {
                        Some(event) => event,
                        None => continue,
                    }
                }
                Ok((Received::Empty, _)) => return,
                Ok((Received::Eof, _)) => return self.on_channel_lost(id, WorkerEvent::ChannelLost, shared, events),
                Err(error) => {
                    doubt(worker, format_args!("its channel: {error}"));
                    // The worker's introduction, which proves its pid, may be next.
                    if worker.pid.is_none() {
                        continue;
                    }
                    return self.on_channel_lost(id, WorkerEvent::Garbled, shared, events);
                }
            };
            events.push_back(Event::Worker { worker: id, event });
        }
        if let Some(worker) = self.workers.get(&id) {
            shared.sources.mark_unread(worker.token);
        }
    }

    /// The peer is gone, or what it says makes no sense and is not listened to any more. With a pid, the exit status
    /// follows, or the supervisor sees to that; without, nobody was ever born.
    fn on_channel_lost(&mut self, id: WorkerId, event: WorkerEvent, shared: &mut Shared, events: &mut EventQueue) {
        let Some(worker) = self.workers.get_mut(&id) else { return };
        if !shared.sources.remove(worker.token, &worker.channel) {
            return;
        }
        if worker.pid.is_none() {
            let exit = worker.not_forked.take().unwrap_or(Exit::LostAtBirth);
            self.worker_ended(id, exit, shared, events);
        } else {
            events.push_back(Event::Worker { worker: id, event });
        }
    }

    fn on_worker_message(
        &mut self,
        id: WorkerId,
        message: FromWorker,
        sender: Option<Sender>,
        shared: &mut Shared,
    ) -> Option<WorkerEvent> {
        let worker = self.workers.get_mut(&id)?;
        Some(match message {
            FromWorker::Hello { .. } => {
                let template = shared.children.pid_of(Who::Template(worker.generation));
                let proof = Proof::Sender { sender: sender?, session: template.unwrap_or_default() };
                match shared.children.claim(Who::Worker(id), proof) {
                    Ok(pid) => {
                        worker.pid = Some(pid);
                        WorkerEvent::Forked { pid }
                    }
                    Err(claim) => {
                        doubt(worker, format_args!("{claim}: not believed"));
                        // Another process speaks for one that is known.
                        return worker.pid.map(|_| WorkerEvent::Garbled);
                    }
                }
            }
            FromWorker::Ready { private_bytes, boot_wall_ms, boot_cpu_ms, bodies_in_memory } => {
                if let Some(processes) = self.generations.get_mut(&worker.generation) {
                    processes.bodies_in_memory = bodies_in_memory;
                }
                WorkerEvent::Ready(Boot {
                    private_bytes,
                    wall: Duration::from_millis(boot_wall_ms),
                    cpu: Duration::from_millis(boot_cpu_ms),
                })
            }
            FromWorker::Failed(failure) => WorkerEvent::Failed(failure.into()),
            FromWorker::Serving => WorkerEvent::Serving,
            FromWorker::Draining => WorkerEvent::Draining,
            FromWorker::Paused => WorkerEvent::Paused,
            FromWorker::Remembered { requests, more } => WorkerEvent::Remembered { requests, more },
            FromWorker::Rehearsed { number, status, details } => {
                WorkerEvent::Rehearsed(Rehearsed { number, status, details })
            }
            FromWorker::Probed { failure } => WorkerEvent::Probed(failure.map(Refusal::from)),
            FromWorker::Drained { threads } => WorkerEvent::Drained { threads },
            FromWorker::RequestsServed => WorkerEvent::RequestsServed,
            FromWorker::Leaving { reason } => WorkerEvent::Leaving { reason },
            FromWorker::Stacks { id: _, text } => return self.on_stacks(id, &text, shared),
        })
    }

    /// The process has been reaped, or was never born.
    pub fn worker_ended(&mut self, id: WorkerId, exit: Exit, shared: &mut Shared, events: &mut EventQueue) {
        let exit = self.explain_death(id, exit, shared.clock.now());
        self.name_death(id);
        if let Some((generation, pid)) = self.workers.get(&id).and_then(|worker| Some((worker.generation, worker.pid?)))
        {
            self.remove_gauges(generation, pid, shared);
        }
        self.have_others_look(id);
        self.forget_worker(id, shared);
        events.push_back(Event::Worker { worker: id, event: WorkerEvent::Exited(exit) });
    }

    pub fn forget_worker(&mut self, id: WorkerId, shared: &mut Shared) {
        self.read_stacks(id, shared);
        self.slow.forget(id);
        let Some(worker) = self.workers.remove(&id) else { return };
        log_last_stacks(&worker);
        shared.sources.remove(worker.token, &worker.channel);
        shared.sources.remove(worker.stacks_token, &worker.stacks);
        if let Some(generation) = self.generations.get_mut(&worker.generation) {
            self.trial.worker_gone(id, &generation.board, worker.cell);
            self.counted.fold(worker.generation, &generation.board, worker.cell);
            generation.free_cell_of(id);
            history::fold(&mut generation.grown, worker.growth);
        }
    }

    fn unwatch_template(&mut self, generation: GenerationId, shared: &mut Shared) {
        if let Some(template) = self.generations.get(&generation).and_then(|processes| processes.template.as_ref()) {
            shared.sources.remove(template.token, &template.channel);
        }
    }

    pub fn forget_template(&mut self, generation: GenerationId, shared: &mut Shared) {
        self.unwatch_template(generation, shared);
        let template = self.generations.get_mut(&generation).and_then(|processes| processes.template.take());
        if let Some(template) = template {
            self.remove_gauges(generation, template.pid, shared);
        }
    }

    /// A process of the application is gone, and may have left live gauges of prometheus_client behind.
    fn remove_gauges(&self, generation: GenerationId, pid: i32, shared: &mut Shared) {
        let Some(processes) = self.generations.get(&generation) else { return };
        let app = &processes.settings.app;
        let rights = processes.settings.server.identity.as_ref().map(Identity::rights);
        if let Some(gauges) = Gauges::of(&app.environment, &app.release, rights) {
            shared.chores.give(Chore::RemoveGauges { gauges, pid }, shared.clock.now());
        }
    }
}

/// What makes no sense may come without end: the log has one line of it a worker.
fn doubt(worker: &mut WorkerProcess, why: fmt::Arguments<'_>) {
    if !std::mem::replace(&mut worker.doubted, true) {
        log::error!("{}: {why}", name(worker));
    }
}
