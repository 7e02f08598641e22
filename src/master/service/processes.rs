//! What the master holds of a generation and of its processes: pids, channels, the scoreboard. The supervisor knows
//! their states and nothing of this.

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use forkmaster_wire::channel::Channel;
use forkmaster_wire::limits;
use forkmaster_wire::message::{
    Access as AccessLine, Boot, GenerationId, Hello, ListenerId, SlotIndex, ToTemplate, ToWorker, WorkerId,
};
use forkmaster_wire::rehearsal::Remember;
use forkmaster_wire::scoreboard::Scoreboard;
use mio::Token;

use super::birth::Failure;
use super::command::CommandProcess;
use super::open_files;
use crate::config::settings::{RehearsalSettings, Settings, Surge};
use crate::config::Effective;
use crate::facts::history::{Grown, Growth};
use crate::facts::note::WorkerName;
use crate::listeners::Access;
use crate::logs::{AccessLog, ErrorLog};
use crate::supervisor::canary::CanaryPlan;
use crate::supervisor::generation::{Plan, Surge as PlanSurge};
use crate::supervisor::maintenance::MaintenancePlan;
use crate::supervisor::pause::PausePlan;
use crate::supervisor::rehearsal::RehearsalPlan;
use crate::supervisor::services::ServicePlan;
use crate::supervisor::worker::Exit;

/// Beyond the workers that are wanted: successors, draining ones, and workers added by TTIN.
const SPARE_CELLS: u32 = 64;

/// An answer that took more than this part of what it may take in a rehearsal is not remembered: the candidate's caches are
/// empty, and the machine is busy.
const REMEMBERED_PART: u64 = 5;

pub struct GenerationProcesses {
    pub settings: Settings,
    /// The settings as written.
    pub written: Vec<Effective>,
    /// The predecessor's release and venv: its code on disk is not pinned.
    pub in_place: bool,
    /// The earlier generation that it was made of, if a rollback made it.
    pub back: Option<GenerationId>,
    /// The first one in a row of those, which all have the same directories and settings.
    pub origin: Option<GenerationId>,
    /// What `reload --pause` is to do before it takes over, and for how long it may pause.
    pub pause_timeout: Option<Duration>,
    pub pause_command: Vec<String>,
    pub pause_maintenance: Option<MaintenancePlan>,
    /// Requests that had got 503 because of a maintenance before it was made.
    pub turned_away_before: u64,
    pub command: Option<CommandProcess>,
    /// Its first workers are to serve beside the old ones first.
    pub canary: Option<CanaryPlan>,
    /// Who asked for it, and what it changes, in words.
    pub asked: String,
    pub changes: Vec<String>,
    /// From the ask until its candidate was ready.
    pub proved_s: Option<f64>,
    /// The memory of its workers that are gone.
    pub grown: Grown,
    /// Of its workers.
    pub listeners: Vec<ListenerId>,
    /// Of its services, by their names.
    pub service_listeners: BTreeMap<String, Vec<ListenerId>>,
    pub template: Option<TemplateProcess>,
    /// The interpreter as the first template found itself; a restarted one must be the same.
    pub interpreter: Option<Hello>,
    pub board: Scoreboard,
    /// Its workers found no temporary directory that they can write to.
    pub bodies_in_memory: bool,
    pub access: Option<AccessLog>,
    /// What the master logs to from the commit on.
    pub error_log: Option<ErrorLog>,
    cells: Vec<Option<WorkerId>>,
    pub began: Instant,
}

pub struct TemplateProcess {
    pub pid: i32,
    pub channel: Channel,
    pub token: Token,
    /// None: it has run for long.
    pub failure: Option<Failure>,
    pub said: Said,
}

/// How far a template has come, by its own words: each comes once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Said {
    Nothing,
    Hello,
    Loaded,
    /// Why it comes no further.
    Failed,
}

pub struct WorkerProcess {
    pub generation: GenerationId,
    pub slot: SlotIndex,
    pub pid: Option<i32>,
    /// Its template has said that it could not fork it.
    pub not_forked: Option<Exit>,
    pub channel: Channel,
    pub token: Token,
    pub cell: u32,
    /// The read end of the pipe that faulthandler writes to.
    pub stacks: OwnedFd,
    pub stacks_token: Token,
    /// What it has written, in many small pieces, until the dump is over.
    pub stacks_text: Vec<u8>,
    /// Its stacks were asked for and have not come.
    pub stacks_asked: bool,
    /// They are for the log, not only for a slow request's line or whoever asked.
    pub stacks_logged: bool,
    /// SIGKILL was sent by the master, which has named the requests that it cut.
    pub killed: bool,
    /// It, or somebody with its channel, has said what makes no sense.
    pub doubted: bool,
    /// What was seen of its memory.
    pub growth: Option<Growth>,
    /// The generation beside its own whose scoreboard it was last given.
    pub beside: Option<GenerationId>,
    pub listeners: Vec<ListenerId>,
}

impl GenerationProcesses {
    pub fn new(
        settings: Settings,
        written: Vec<Effective>,
        listeners: Vec<ListenerId>,
        in_place: bool,
        now: Instant,
    ) -> std::io::Result<GenerationProcesses> {
        let cells = settings.server.workers * 4 + SPARE_CELLS;
        let board = Scoreboard::create(cells, settings.server.threads)?;
        Ok(GenerationProcesses::on(board, settings, written, listeners, in_place, now))
    }

    /// With a scoreboard that is there.
    pub fn on(
        board: Scoreboard,
        settings: Settings,
        written: Vec<Effective>,
        listeners: Vec<ListenerId>,
        in_place: bool,
        now: Instant,
    ) -> GenerationProcesses {
        let cells = vec![None; board.cells() as usize];
        let access = None;
        GenerationProcesses {
            settings,
            written,
            in_place,
            back: None,
            origin: None,
            pause_timeout: None,
            pause_command: Vec::new(),
            pause_maintenance: None,
            turned_away_before: 0,
            command: None,
            canary: None,
            asked: "start".to_owned(),
            changes: Vec::new(),
            proved_s: None,
            grown: Grown::default(),
            listeners,
            service_listeners: BTreeMap::new(),
            template: None,
            interpreter: None,
            board,
            bodies_in_memory: false,
            access,
            error_log: None,
            cells,
            began: now,
        }
    }

    /// A free cell for a new worker; None only with more processes than any setting allows for.
    pub fn take_cell(&mut self, worker: WorkerId) -> Option<u32> {
        let index = self.cells.iter().position(Option::is_none)?;
        self.cells[index] = Some(worker);
        self.board.clear(index as u32);
        Some(index as u32)
    }

    /// Only when the process has been reaped: until then it may write.
    pub fn free_cell_of(&mut self, worker: WorkerId) {
        for cell in self.cells.iter_mut().filter(|cell| **cell == Some(worker)) {
            *cell = None;
        }
    }

    /// The cell is the worker's, and has been its own for long.
    pub fn keep_cell(&mut self, index: u32, worker: WorkerId) {
        if let Some(cell) = self.cells.get_mut(index as usize) {
            *cell = Some(worker);
        }
    }

    /// What the supervisor must know of the settings.
    pub fn plan(&self) -> Plan {
        let settings = &self.settings;
        let server = &settings.server;
        let limit = limits::open_files();
        // More than the scoreboard has room for are no bound.
        let by_files = limit.map(|limit| open_files::workers_max(settings, limit));
        let by_files = by_files.filter(|max| *max < server.max_processes.unwrap_or(self.board.cells()));
        Plan {
            workers: server.workers,
            cells: self.board.cells(),
            max_processes: by_files.or(server.max_processes),
            open_files: by_files.and(limit).and_then(|limit| NonZeroU32::new(u32::try_from(limit).ok()?)),
            unborn_max: open_files::unborn_max(self.listeners.len(), limit),
            listeners: self.all_listeners(),
            surge: match settings.reload.max_surge {
                // All of them have to boot before anything is paused, and memory is the bound.
                Surge::Workers(_) if self.pause_timeout.is_some() => PlanSurge::Auto,
                Surge::Workers(workers) => PlanSurge::Workers(workers),
                Surge::Auto => PlanSurge::Auto,
                Surge::All => PlanSurge::All,
            },
            unavailable: settings.reload.max_unavailable,
            boot_timeout: server.boot_timeout,
            // Idle connections get their whole keep-alive time, so that a reload closes nothing that would have lived.
            drain_timeout: settings.reload.drain_timeout.max(settings.http.keepalive_timeout.unwrap_or_default()),
            graceful_timeout: server.graceful_timeout,
            shutdown_delay: server.shutdown_delay,
            max_requests: server.max_requests,
            max_requests_jitter: server.max_requests_jitter,
            max_lifetime: server.max_lifetime,
            services: settings
                .services
                .iter()
                .map(|service| ServicePlan {
                    name: service.name.clone(),
                    count: service.count,
                    stop_timeout: service.stop_timeout,
                    ready_within: service.ready_within,
                    every: service.every,
                })
                .collect(),
            // The code that a template has imported would be back, and that of the directory not.
            rollback_window: if self.in_place { Duration::ZERO } else { settings.reload.rollback_window },
            origin: self.origin,
            canary: self.canary.map(Box::new),
            rehearsal: self.rehearsal().map(Box::new),
            pause: self.pause_timeout.map(|timeout| {
                Box::new(PausePlan {
                    timeout,
                    has_command: !self.pause_command.is_empty(),
                    has_probe: settings.app.probe.is_some(),
                    maintenance: self.pause_maintenance.clone().map(Box::new),
                })
            }),
        }
    }

    /// None: the settings ask for none, or this is development, where a reload follows each save.
    fn rehearsal(&self) -> Option<RehearsalPlan> {
        let RehearsalSettings { requests, refuses, timeout, request_timeout } = self.settings.reload.rehearsal;
        (requests > 0 && !self.settings.dev).then_some(RehearsalPlan { requests, refuses, timeout, request_timeout })
    }

    /// Its workers' and its services': bound, opened, adapted and closed in the same way.
    pub fn all_listeners(&self) -> Vec<ListenerId> {
        self.listeners.iter().chain(self.service_listeners.values().flatten()).copied().collect()
    }

    /// What its settings ask of its listeners.
    pub fn access(&self) -> Access {
        let server = &self.settings.server;
        Access { backlog: server.backlog, socket_file: server.socket.clone() }
    }

    /// The logs as `Boot` and `Logs` carry them.
    pub fn logs<'a>(&'a self, error: &'a OwnedFd) -> Vec<BorrowedFd<'a>> {
        let access = self.access.as_ref().map(AsFd::as_fd);
        std::iter::once(error.as_fd()).chain(access).collect()
    }

    /// What template and workers must know of the settings.
    pub fn boot(&self, generation: GenerationId) -> Boot {
        let Settings { name, app, server, hooks, http, log, .. } = &self.settings;
        let queue_limit = [server.request_timeout, server.queue_timeout].into_iter().flatten().min();
        Boot {
            generation,
            name: name.clone(),
            release: app.release.clone(),
            pythonpath: app.pythonpath.clone(),
            aliases: app.aliases.clone(),
            application: app.application.clone(),
            script_name: app.script_name.clone(),
            preload: app.preload,
            imports: app.imports.clone(),
            worker_start: hooks.worker_start.clone(),
            worker_exit: hooks.worker_exit.clone(),
            probe: app.probe.clone(),
            warmup: app.warmup.clone(),
            remember: self.rehearsal().map(|plan| Remember {
                requests: plan.requests,
                took_ms_max: plan.request_timeout.as_millis() as u64 / REMEMBERED_PART,
            }),
            threads: server.threads,
            queue_limit_ms: queue_limit.map(|limit| limit.as_millis() as u64),
            sheds: server.queue_timeout.is_some(),
            workers: server.workers,
            http: http.clone(),
            log_level: log.level,
            log_form: log.form,
            access: self.access_line(),
        }
    }

    /// None: there is no access log.
    pub fn access_line(&self) -> Option<AccessLine> {
        let log = &self.settings.log;
        self.access.as_ref().map(|_| AccessLine {
            format: log.access_format.clone(),
            skip: log.access_skip.clone(),
            status_min: log.access_status,
            refused: log.access_refused,
        })
    }
}

impl TemplateProcess {
    /// A template that cannot be told anything is dying, and its exit tells more.
    pub fn tell(&self, message: &ToTemplate) {
        self.tell_with(message, &[]);
    }

    pub fn tell_with(&self, message: &ToTemplate, fds: &[BorrowedFd<'_>]) {
        if let Err(error) = self.channel.send(message, fds) {
            log::debug!("template pid={} cannot be told {message:?}: {error}", self.pid);
        }
    }
}

impl WorkerProcess {
    pub fn name(&self) -> WorkerName {
        WorkerName { generation: self.generation, slot: self.slot, pid: self.pid }
    }

    /// As for a template; a worker that stopped reading is caught by the deadline of its answer.
    pub fn tell(&self, message: &ToWorker) {
        self.tell_with(message, &[]);
    }

    pub fn tell_with(&self, message: &ToWorker, fds: &[BorrowedFd<'_>]) {
        if let Err(error) = self.channel.send(message, fds) {
            log::debug!("worker pid={:?} cannot be told {message:?}: {error}", self.pid);
        }
    }
}
