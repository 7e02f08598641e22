//! The master's one loop: file descriptors and signals become events for the supervisor, and its actions become
//! system calls. It never waits for a child, a disk or a peer, and no error leaves it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use forkmaster_wire::channel::{Channel, Received};
use forkmaster_wire::message::{
    FromTemplate, FromWorker, GenerationId, ListenerId, ProofStep, SlotIndex, Spawn, ToTemplate, ToWorker, WorkerId,
};
use forkmaster_wire::WIRE_HASH;
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token};
use nix::fcntl::OFlag;
use nix::sys::signal::{kill, Signal};
use nix::unistd::Pid;
use serde_json::json;

use crate::children;
use crate::clock::Clock;
use crate::config::process_context::ProcessContext;
use crate::config::Source as ConfigSource;
use crate::doors::control::{ClientId, Control, Request, Waiting};
use crate::facts::snapshot::{self, Totals};
use crate::library::Library;
use crate::listeners::Listeners;
use crate::logs::LogFile;
use crate::service::prepare::{self, LastReload};
use crate::service::processes::{Dump, GenerationProcesses, TemplateProcess, WorkerProcess};
use crate::service::{python, watch};
use crate::signals::Signals;
use crate::supervisor::worker::{Event as WorkerEvent, Exit, Stuck};
use crate::supervisor::{Action, Event, Phase, Supervisor, TemplateEvent, Verdict};

const SIGNALS: Token = Token(0);
const CONTROL: Token = Token(1);
/// Without a free descriptor no client can be accepted, and nothing tells when there is one.
const ACCEPT_AGAIN_AFTER: Duration = Duration::from_secs(1);
/// Tokens from here on are handed out and never used again.
const FIRST_FREE_TOKEN: usize = 2;

/// Time for a worker to answer a request for its stacks, then for faulthandler to write them.
const STACKS_WITHIN: Duration = Duration::from_millis(500);

/// A hundred threads of a hundred frames; faulthandler itself stops at 100 of each.
const STACKS_BYTES_MAX: usize = 1024 * 1024;

/// Idle keep-alive connections live so much longer after the service was told to stop.
const STOP_IDLE: Duration = Duration::from_secs(2);

/// Messages read from one channel (or pieces from one pipe) before the others get their turn: a process that never
/// stops talking must not keep the master from anything. More than a dead process can have left behind, since the
/// kernel charges each packet with some 800 bytes of its 212,992 (socket(7), SO_SNDBUF).
const READS_PER_PASS_MAX: usize = 512;

/// How often `max_rss` is looked at.
const RSS_EVERY: Duration = Duration::from_secs(5);

/// What a token stands for.
#[derive(Clone, Copy, Debug)]
enum Watched {
    Template(GenerationId),
    Worker(WorkerId),
    /// The pipe that faulthandler writes to.
    Stacks(WorkerId),
}

pub struct Master {
    poll: Poll,
    pub source: ConfigSource,
    pub context: ProcessContext,
    pub log: LogFile,
    signals: Signals,
    control: Option<Control>,
    library: Library,
    /// Workers and templates hold the read end; its end-of-file tells them that the master is gone.
    lifeline: (OwnedFd, OwnedFd),
    pub clock: Clock,
    pub supervisor: Supervisor,
    pub listeners: Listeners,
    pub processes: BTreeMap<GenerationId, GenerationProcesses>,
    pub workers: BTreeMap<WorkerId, WorkerProcess>,
    pub last_generation: u32,
    pub last_reload: Option<LastReload>,
    pub totals: Totals,
    /// Templates and workers. Any other token is a control client's, and the control socket knows whose.
    watched: BTreeMap<Token, Watched>,
    /// Not read to their end: mio is edge-triggered and will not tell again.
    unread: BTreeSet<Token>,
    next_token: usize,
    last_stacks: u64,
    accept_at: Option<Instant>,
    look_at: Instant,
    rss_at: Instant,
    exit: Option<i32>,
}

impl Master {
    pub fn new(source: ConfigSource, context: ProcessContext, log: LogFile, signals: Signals) -> io::Result<Master> {
        let poll = Poll::new()?;
        signals.register(poll.registry(), SIGNALS)?;
        children::become_subreaper().map_err(io::Error::from)?;
        let lifeline = nix::unistd::pipe2(OFlag::O_CLOEXEC).map_err(io::Error::from)?;
        let clock = Clock::new();
        let now = clock.now();
        Ok(Master {
            poll,
            source,
            context,
            log,
            signals,
            control: None,
            library: Library::embed()?,
            lifeline,
            clock,
            supervisor: Supervisor::new(),
            listeners: Listeners::new(),
            processes: BTreeMap::new(),
            workers: BTreeMap::new(),
            last_generation: 0,
            last_reload: None,
            totals: Totals::default(),
            watched: BTreeMap::new(),
            unread: BTreeSet::new(),
            next_token: FIRST_FREE_TOKEN,
            last_stacks: 0,
            accept_at: None,
            look_at: now,
            rss_at: now,
            exit: None,
        })
    }

    pub fn open_control(&mut self, socket: &crate::config::settings::ControlSocket) -> io::Result<()> {
        self.control = Control::open(socket, self.poll.registry(), CONTROL)?;
        Ok(())
    }

    /// Runs until the supervisor says with which code to exit.
    pub fn run(&mut self) -> i32 {
        let mut events = Events::with_capacity(256);
        loop {
            if let Some(code) = self.exit {
                return code;
            }
            let wake_at = self.wake_at();
            let wait = wake_at.saturating_duration_since(self.clock.now());
            let began = Instant::now();
            if let Err(error) = self.poll.poll(&mut events, Some(wait)) {
                if error.kind() != io::ErrorKind::Interrupted {
                    // EBADF or ENOMEM: nothing that waiting here would mend, and nothing that ends a service.
                    log::error!("epoll_wait: {error}");
                }
            }
            if let Some(late) = self.clock.waited(began, Some(wait)) {
                log::warn!("the master did not run for {:.1}s: all deadlines move by that much", late.as_secs_f64());
            }
            // Channels first: what a process said before it ended counts before its end.
            let mut tokens = std::mem::take(&mut self.unread);
            tokens.extend(events.iter().map(|event| event.token()));
            for token in tokens.iter().filter(|token| **token >= Token(FIRST_FREE_TOKEN)) {
                self.on_ready(*token);
            }
            if tokens.contains(&CONTROL) || self.accept_at.is_some_and(|at| at <= self.clock.now()) {
                self.accept_clients();
            }
            if tokens.contains(&SIGNALS) {
                self.on_signals();
            }
            self.look_around();
            self.tell(Event::Tick);
            for client in self.control.as_ref().map_or_else(Vec::new, Control::pending) {
                self.serve_client(client);
            }
        }
    }

    fn wake_at(&self) -> Instant {
        if !self.unread.is_empty() {
            return self.clock.now();
        }
        let dumps = self.workers.values().filter_map(|worker| match worker.dump {
            Dump::None => None,
            Dump::Asked { answer_by } | Dump::Signalled { answer_by } => Some(answer_by),
        });
        let deadline = self.supervisor.next_deadline();
        dumps.chain(deadline).chain(self.accept_at).fold(self.look_at, Instant::min)
    }

    // --- what happens -----------------------------------------------------------------------------------------

    fn on_ready(&mut self, token: Token) {
        match self.watched.get(&token).copied() {
            Some(Watched::Template(generation)) => self.read_template(generation, token),
            Some(Watched::Worker(worker)) => self.read_worker(worker),
            Some(Watched::Stacks(worker)) => self.read_stacks(worker),
            // Or a process's that something earlier in the same batch has closed.
            None => self.on_client(token),
        }
    }

    fn on_signals(&mut self) {
        let taken = self.signals.take();
        if taken.child {
            self.reap();
        }
        if taken.reopen {
            self.reopen_logs();
        }
        if taken.upgrade {
            log::warn!("USR2 is ignored: upgrading the master in place comes with a later version");
        }
        if taken.scale != 0 {
            self.tell(Event::Scale { by: taken.scale });
        }
        if taken.reload {
            prepare::reload(self, None);
        }
        for _ in 0..taken.terms {
            self.tell(Event::Stop);
        }
        if taken.stop_now {
            self.tell(Event::StopNow);
        }
    }

    /// Opens the logs again by their names and hands them to everyone who writes to them.
    fn reopen_logs(&mut self) {
        match self.log.reopen() {
            Ok(()) => log::info!("log reopened"),
            Err(error) => log::error!("log cannot be reopened: {error}"),
        }
        for access in self.processes.values_mut().filter_map(|processes| processes.access.as_mut()) {
            if let Err(error) = access.reopen() {
                log::error!("access log cannot be reopened: {error}");
            }
        }
        let error_log = match self.log.fd() {
            Ok(error_log) => error_log,
            Err(error) => return log::error!("workers go on with the old log: {error}"),
        };
        for (processes, template) in
            self.processes.values().filter_map(|processes| Some((processes, processes.template.as_ref()?)))
        {
            template.tell_with(&ToTemplate::Logs, &processes.logs(&error_log));
        }
        for worker in self.workers.values() {
            if let Some(processes) = self.processes.get(&worker.generation) {
                worker.tell_with(&ToWorker::Logs, &processes.logs(&error_log));
            }
        }
    }

    /// Reaps every child that has ended.
    fn reap(&mut self) {
        while let Some(pid) = children::peek() {
            let worker = self.workers.iter().find(|(_, worker)| worker.pid == Some(pid)).map(|(id, _)| *id);
            match worker {
                Some(worker) => self.read_worker(worker),
                // Its `Forked` may not have been read yet.
                None => {
                    let unborn = self.workers.iter().filter(|(_, worker)| worker.pid.is_none());
                    for worker in unborn.map(|(id, _)| *id).collect::<Vec<_>>() {
                        self.read_worker(worker);
                    }
                }
            }
            let generation = self.template_of(pid);
            if let Some(generation) = generation {
                if let Some(token) = self.processes[&generation].template.as_ref().map(|template| template.token) {
                    self.read_template(generation, token);
                }
            }
            let Some(exit) = children::reap(pid) else { return };
            if let Some(worker) = self.worker_of(pid) {
                self.worker_ended(worker, exit);
            } else if let Some(generation) = generation {
                self.forget_template(generation);
                self.tell(Event::Template { generation, event: TemplateEvent::Exited(exit) });
            } else {
                log::debug!("reaped pid={pid}, left behind by the application: {exit}");
            }
        }
    }

    fn worker_of(&self, pid: i32) -> Option<WorkerId> {
        self.workers.iter().find(|(_, worker)| worker.pid == Some(pid)).map(|(id, _)| *id)
    }

    fn template_of(&self, pid: i32) -> Option<GenerationId> {
        let of =
            |processes: &GenerationProcesses| processes.template.as_ref().is_some_and(|template| template.pid == pid);
        self.processes.iter().find(|(_, processes)| of(processes)).map(|(id, _)| *id)
    }

    fn read_template(&mut self, generation: GenerationId, token: Token) {
        for _ in 0..READS_PER_PASS_MAX {
            let Some(template) = self.processes.get(&generation).and_then(|processes| processes.template.as_ref())
            else {
                return;
            };
            // A restarted template has another channel.
            if template.token != token {
                return;
            }
            let event = match template.channel.receive::<FromTemplate>(false) {
                Ok(Received::Message(message, _)) => match self.on_template_message(generation, message) {
                    Some(event) => event,
                    None => continue,
                },
                Ok(Received::Empty) => return,
                Ok(Received::Eof) => {
                    self.unwatch_template(generation);
                    return self.tell(Event::Template { generation, event: TemplateEvent::ChannelLost });
                }
                Err(error) => TemplateEvent::Broken { reason: format!("its channel: {error}") },
            };
            self.tell(Event::Template { generation, event });
        }
        self.unread.insert(token);
    }

    /// What a template's message means to the supervisor.
    fn on_template_message(&mut self, generation: GenerationId, message: FromTemplate) -> Option<TemplateEvent> {
        let processes = self.processes.get_mut(&generation)?;
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
                    Some(_) => None,
                    None => {
                        processes.interpreter = Some(hello);
                        None
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
                Some(TemplateEvent::Loaded)
            }
            FromTemplate::Failed(failure) => Some(TemplateEvent::Failed(failure)),
            FromTemplate::SpawnFailed { worker, reason } => {
                log::error!("template gen={generation} could not fork a worker: {reason}");
                // It may have been forked all the same, and then its own end is awaited.
                self.read_worker(worker);
                let unborn = self.workers.get(&worker).filter(|worker| worker.pid.is_none());
                if unborn.is_some_and(|worker| worker.generation == generation) {
                    self.worker_ended(worker, Exit::NeverBorn);
                }
                None
            }
            FromTemplate::Pong { id } => Some(TemplateEvent::Pong { ping: id }),
            FromTemplate::Broken { reason } => Some(TemplateEvent::Broken { reason }),
        }
    }

    fn read_worker(&mut self, id: WorkerId) {
        for _ in 0..READS_PER_PASS_MAX {
            let Some(worker) = self.workers.get_mut(&id) else { return };
            if !self.watched.contains_key(&worker.token) {
                return;
            }
            let event = match worker.channel.receive::<FromWorker>(false) {
                Ok(Received::Message(message, _)) => match self.on_worker_message(id, message) {
                    Some(event) => event,
                    None => continue,
                },
                Ok(Received::Empty) => return,
                Ok(Received::Eof) => return self.on_channel_lost(id),
                Err(error) => {
                    log::error!("{}: its channel: {error}", name(worker));
                    // The middle process, which is to tell the pid, has the same channel.
                    if worker.pid.is_none() {
                        continue;
                    }
                    return self.on_channel_lost(id);
                }
            };
            self.tell(Event::Worker { worker: id, event });
        }
        if let Some(worker) = self.workers.get(&id) {
            self.unread.insert(worker.token);
        }
    }

    /// The peer is gone, or what it says makes no sense and is not listened to any more. With a pid, the exit status
    /// follows, or the supervisor sees to that; without, nobody was ever born.
    fn on_channel_lost(&mut self, id: WorkerId) {
        let Some(worker) = self.workers.get(&id) else { return };
        if self.watched.remove(&worker.token).is_none() {
            return;
        }
        // It was registered once, and is deregistered once.
        let _ = self.poll.registry().deregister(&mut SourceFd(&worker.channel.as_raw_fd()));
        let unborn = worker.pid.is_none();
        if unborn {
            self.worker_ended(id, Exit::NeverBorn);
        } else {
            self.tell(Event::Worker { worker: id, event: WorkerEvent::ChannelLost });
        }
    }

    fn on_worker_message(&mut self, id: WorkerId, message: FromWorker) -> Option<WorkerEvent> {
        let worker = self.workers.get_mut(&id)?;
        Some(match message {
            FromWorker::Forked { pid } | FromWorker::Hello { pid } => {
                // The first one counts: what a worker says later cannot make the master signal another process.
                let pid = *worker.pid.get_or_insert(pid);
                WorkerEvent::Forked { pid }
            }
            FromWorker::Ready => WorkerEvent::Ready,
            FromWorker::Failed(failure) => WorkerEvent::Failed(failure),
            FromWorker::Serving => WorkerEvent::Serving,
            FromWorker::Draining => WorkerEvent::Draining,
            FromWorker::RequestsServed => WorkerEvent::RequestsServed,
            FromWorker::Leaving { reason } => WorkerEvent::Leaving { reason },
            FromWorker::Stacks { id: _, text } => {
                worker.dump = Dump::None;
                log::warn!("{} Python stacks:\n{text}", name(worker));
                return None;
            }
        })
    }

    /// faulthandler writes a word at a time; the log gets the whole when the dump is over.
    fn read_stacks(&mut self, id: WorkerId) {
        let Some(worker) = self.workers.get_mut(&id) else { return };
        let mut bytes = [0; 4096];
        for _ in 0..READS_PER_PASS_MAX {
            let Ok(read @ 1..) = nix::unistd::read(&worker.stacks, &mut bytes) else { return };
            let room = STACKS_BYTES_MAX.saturating_sub(worker.stacks_text.len());
            worker.stacks_text.extend_from_slice(&bytes[..read.min(room)]);
        }
        self.unread.insert(worker.stacks_token);
    }

    /// The process has been reaped, or was never born.
    fn worker_ended(&mut self, id: WorkerId, exit: Exit) {
        self.forget_worker(id);
        self.tell(Event::Worker { worker: id, event: WorkerEvent::Exited(exit) });
    }

    fn forget_worker(&mut self, id: WorkerId) {
        self.read_stacks(id);
        if let Some(mut worker) = self.workers.remove(&id) {
            log_stacks(&mut worker);
            for token in [worker.token, worker.stacks_token] {
                self.watched.remove(&token);
            }
            for fd in [worker.channel.as_raw_fd(), worker.stacks.as_raw_fd()] {
                // The channel may be deregistered already.
                let _ = self.poll.registry().deregister(&mut SourceFd(&fd));
            }
            if let Some(processes) = self.processes.get_mut(&worker.generation) {
                self.totals.add(&processes.board, worker.cell);
                processes.free_cell_of(id);
            }
        }
    }

    fn unwatch_template(&mut self, generation: GenerationId) {
        if let Some(template) = self.processes.get(&generation).and_then(|processes| processes.template.as_ref()) {
            if self.watched.remove(&template.token).is_some() {
                let _ = self.poll.registry().deregister(&mut SourceFd(&template.channel.as_raw_fd()));
            }
        }
    }

    fn forget_template(&mut self, generation: GenerationId) {
        self.unwatch_template(generation);
        if let Some(processes) = self.processes.get_mut(&generation) {
            processes.template = None;
        }
    }

    /// Looks at the scoreboards, memory, and unanswered dumps, when it is time to.
    fn look_around(&mut self) {
        let now = self.clock.now();
        self.escalate_dumps(now);
        if now < self.look_at {
            return;
        }
        let look_for_rss = now >= self.rss_at;
        if look_for_rss {
            self.rss_at = now + RSS_EVERY;
        }
        let mut every = Duration::from_secs(1);
        let mut found = Vec::new();
        for (id, worker) in &self.workers {
            let Some(processes) = self.processes.get(&worker.generation) else { continue };
            let Some(pid) = worker.pid else { continue };
            let server = &processes.settings.server;
            every = every.min(watch::every(server));
            let look = watch::look(&processes.board, worker.cell, server, &self.clock);
            if let Some((running, ..)) = look.stuck.first() {
                found.push((*id, WorkerEvent::Stuck(Stuck::Request(running.request))));
            } else if look.silent {
                found.push((*id, WorkerEvent::Stuck(Stuck::Silent)));
            }
            let too_big = |limit| watch::resident_bytes(pid).is_some_and(|resident| resident > limit);
            if look_for_rss && server.max_rss.is_some_and(too_big) {
                found.push((*id, WorkerEvent::TooBig));
            }
        }
        self.look_at = now + every;
        for (worker, event) in found {
            self.tell(Event::Worker { worker, event });
        }
    }

    /// Where C code holds the GIL no message is answered; faulthandler's signal handler needs no GIL.
    fn escalate_dumps(&mut self, now: Instant) {
        for worker in self.workers.values_mut() {
            match worker.dump {
                Dump::Asked { answer_by } if answer_by <= now => {
                    worker.dump = Dump::Signalled { answer_by: now + STACKS_WITHIN };
                    if let Some(pid) = worker.pid.filter(|pid| children::is_ours(*pid, None)) {
                        // SAFETY: the pid is a child of ours that has not been reaped.
                        unsafe { libc::kill(pid, libc::SIGRTMIN() + 3) };
                    }
                }
                Dump::Signalled { answer_by } if answer_by <= now => {
                    worker.dump = Dump::None;
                    log_stacks(worker);
                }
                Dump::None | Dump::Asked { .. } | Dump::Signalled { .. } => {}
            }
        }
    }

    // --- control clients --------------------------------------------------------------------------------------

    fn accept_clients(&mut self) {
        let Some(control) = &mut self.control else { return };
        let next_token = &mut self.next_token;
        let all = control.accept(self.poll.registry(), || {
            *next_token += 1;
            Token(*next_token - 1)
        });
        self.accept_at = (!all).then(|| self.clock.now() + ACCEPT_AGAIN_AFTER);
    }

    fn on_client(&mut self, token: Token) {
        let Some(control) = &mut self.control else { return };
        if let Some(client) = control.client(token) {
            control.ready(client);
            self.serve_client(client);
        }
    }

    /// Takes the requests of a client, one after the other: while it waits for an answer, its next one waits too.
    fn serve_client(&mut self, client: ClientId) {
        while let Some(request) = self.control.as_mut().and_then(|control| control.next_request(client)) {
            match request {
                Ok(request) => self.on_request(client, request),
                Err(reason) => self.answer(client, json!({"ok": false, "reason": reason})),
            }
        }
    }

    fn on_request(&mut self, client: ClientId, request: Request) {
        match request {
            Request::Status => {
                let status = snapshot::status(self);
                self.answer(client, status);
            }
            Request::Reload { wait } => prepare::reload(self, Some((client, wait))),
            Request::WaitReady if self.is_ready() => self.answer(client, json!({"ok": true})),
            Request::WaitReady => self.wait(client, Waiting::Ready),
            Request::Stop { now } => {
                self.answer(client, json!({"ok": true, "pid": std::process::id()}));
                self.wait(client, Waiting::End);
                self.tell(if now { Event::StopNow } else { Event::Stop });
            }
        }
    }

    pub fn answer(&mut self, client: ClientId, answer: serde_json::Value) {
        if let Some(control) = &mut self.control {
            control.answer(client, answer);
        }
    }

    pub fn wait(&mut self, client: ClientId, waiting: Waiting) {
        if let Some(control) = &mut self.control {
            control.wait(client, waiting);
        }
    }

    fn waiting(&self, matches: impl Fn(Waiting) -> bool) -> Vec<(ClientId, Waiting)> {
        self.control.as_ref().map_or_else(Vec::new, |control| control.waiting(matches))
    }

    /// A worker serves, and the master was not told to stop.
    pub fn is_ready(&self) -> bool {
        self.supervisor.phase() == Phase::Running
            && self.supervisor.generations().iter().any(|generation| generation.serving() > 0)
            && self.supervisor.serving().is_some()
    }

    // --- what is done -----------------------------------------------------------------------------------------

    /// Tells the supervisor and carries out what it decides. An action may itself be answered by an event.
    pub fn tell(&mut self, event: Event) {
        let mut events = VecDeque::from([event]);
        while let Some(event) = events.pop_front() {
            for action in self.supervisor.handle(event, self.clock.now()) {
                events.extend(self.carry_out(action));
            }
        }
    }

    fn carry_out(&mut self, action: Action) -> Option<Event> {
        match action {
            Action::StartTemplate { generation } => {
                let token = self.token(Watched::Template(generation));
                if let Err(error) = self.start_template(generation, token) {
                    self.watched.remove(&token);
                    return Some(Event::Template { generation, event: TemplateEvent::Failed(error) });
                }
            }
            Action::StopTemplate { generation } => self.tell_template(generation, &ToTemplate::Stop),
            Action::KillTemplate { generation } => {
                match self.processes.get(&generation).and_then(|processes| processes.template.as_ref()) {
                    Some(template) => signal_kill(template.pid),
                    // It could not even be started.
                    None => {
                        let event = TemplateEvent::Exited(Exit::NeverBorn);
                        return Some(Event::Template { generation, event });
                    }
                }
            }
            Action::PingTemplate { generation, ping } => self.tell_template(generation, &ToTemplate::Ping { id: ping }),
            Action::Spawn { generation, slot, worker, prove } => {
                if let Err(error) = self.spawn(generation, slot, worker, prove) {
                    log::error!("worker gen={generation} slot={slot} cannot be forked: {error}");
                    return Some(Event::Worker { worker, event: WorkerEvent::Exited(Exit::NeverBorn) });
                }
            }
            Action::Serve { worker } => self.tell_worker(worker, &ToWorker::Serve),
            Action::Drain { worker } => {
                let keep = self.listeners_without_heir(worker);
                self.tell_worker(worker, &ToWorker::Drain { keep });
            }
            Action::Retire { worker } => self.tell_worker(worker, &ToWorker::Retire),
            Action::StopWorker { worker } => {
                self.tell_worker(worker, &ToWorker::Stop { idle_ms: STOP_IDLE.as_millis() as u64 })
            }
            Action::Kill { worker } => return self.kill(worker),
            Action::DumpStacks { worker } => self.dump_stacks(worker),
            Action::CheckStuck { worker, stuck } => {
                let event = self.check_stuck(worker, stuck)?;
                return Some(Event::Worker { worker, event });
            }
            Action::OpenListeners { generation } => return Some(self.open_listeners(generation)),
            Action::Commit { generation } => {
                self.close_unused_listeners();
                if let Some(processes) = self.processes.get(&generation) {
                    let took = self.clock.now().saturating_duration_since(processes.began).as_millis();
                    log::info!("generation gen={generation} committed after={took}ms");
                }
            }
            Action::AbandonListeners { .. } => self.close_unused_listeners(),
            Action::CloseAllListeners => self.listeners.close_all(),
            Action::Forget { generation } => {
                self.processes.remove(&generation);
            }
            Action::Verdict { generation, verdict } => self.announce(generation, &verdict),
            Action::Log { level, line } => log::log!(level, "{line}"),
            Action::Exit { code } => self.exit = Some(code),
        }
        // Whoever waits for readiness is told with the first chance.
        if self.is_ready() {
            for (client, _) in self.waiting(|waiting| waiting == Waiting::Ready) {
                self.answer(client, json!({"ok": true}));
            }
        }
        None
    }

    fn start_template(
        &mut self,
        generation: GenerationId,
        token: Token,
    ) -> Result<(), forkmaster_wire::message::Failure> {
        let failure = |reason: String| forkmaster_wire::message::Failure {
            stage: ProofStep::Start,
            reason,
            details: String::new(),
        };
        let Some(processes) = self.processes.get_mut(&generation) else { return Err(failure("forgotten".to_owned())) };
        let (ours, theirs) = Channel::pair().map_err(|error| failure(format!("no channel: {error}")))?;
        // The first message waits in the channel before the interpreter has even started.
        let boot = ToTemplate::Boot(Box::new(processes.boot(generation)));
        let error_log = self.log.fd().map_err(|error| failure(format!("no log: {error}")))?;
        ours.send(&boot, &processes.logs(&error_log)).map_err(|error| failure(format!("no boot message: {error}")))?;
        let app = &processes.settings.app;
        let started = python::template(python::Start {
            executable: app.interpreter.executable.clone(),
            directory: app.release.clone(),
            environment: app.environment.clone(),
            identity: processes.settings.server.identity.clone(),
            umask: processes.settings.server.umask,
            channel: &theirs,
            library: self.library.as_fd(),
            lifeline: self.lifeline.0.as_fd(),
        });
        let pid = started
            .map_err(|error| failure(format!("{} cannot be started: {error}", app.interpreter.executable.display())))?;
        let watched = self.poll.registry().register(&mut SourceFd(&ours.as_raw_fd()), token, Interest::READABLE);
        if let Err(error) = watched {
            log::error!("template gen={generation} pid={pid} cannot be watched: {error}");
        }
        processes.template = Some(TemplateProcess { pid, channel: ours, token });
        Ok(())
    }

    fn spawn(&mut self, generation: GenerationId, slot: SlotIndex, id: WorkerId, prove: bool) -> io::Result<()> {
        let token = self.token(Watched::Worker(id));
        let stacks_token = self.token(Watched::Stacks(id));
        let worker = self.spawn_watched(generation, slot, id, prove, token, stacks_token);
        match worker {
            Ok(worker) => {
                self.workers.insert(id, worker);
                Ok(())
            }
            Err(error) => {
                for token in [token, stacks_token] {
                    self.watched.remove(&token);
                }
                if let Some(processes) = self.processes.get_mut(&generation) {
                    processes.free_cell_of(id);
                }
                Err(error)
            }
        }
    }

    /// Leaves it to `spawn` to undo what an error leaves behind. Telling the template is the last thing that can fail.
    fn spawn_watched(
        &mut self,
        generation: GenerationId,
        slot: SlotIndex,
        id: WorkerId,
        prove: bool,
        token: Token,
        stacks_token: Token,
    ) -> io::Result<WorkerProcess> {
        let processes = self.processes.get_mut(&generation).ok_or(io::ErrorKind::NotFound)?;
        let cell = processes.take_cell(id).ok_or_else(|| io::Error::other("the scoreboard has no cell left"))?;
        let template = processes.template.as_ref().ok_or(io::ErrorKind::NotFound)?;
        let (ours, theirs) = Channel::pair()?;
        let (stacks, stacks_write) = nix::unistd::pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK)?;
        let listeners = self.listeners.wire(&processes.listeners);
        let message = ToTemplate::Spawn(Spawn {
            worker: id,
            slot,
            cell,
            cells: processes.board.cells(),
            listeners: listeners.iter().map(|(listener, _)| listener.clone()).collect(),
            prove,
            max_requests: max_requests(&processes.settings.server, id),
        });
        let mut fds: Vec<BorrowedFd<'_>> = vec![theirs.as_fd(), processes.board.as_fd(), stacks_write.as_fd()];
        fds.extend(listeners.iter().map(|(_, fd)| *fd));
        let registry = self.poll.registry();
        registry.register(&mut SourceFd(&ours.as_raw_fd()), token, Interest::READABLE)?;
        registry.register(&mut SourceFd(&stacks.as_raw_fd()), stacks_token, Interest::READABLE)?;
        template.channel.send(&message, &fds)?;
        Ok(WorkerProcess {
            generation,
            slot,
            pid: None,
            channel: ours,
            token,
            cell,
            stacks,
            stacks_token,
            stacks_text: Vec::new(),
            dump: Dump::None,
            listeners: processes.listeners.clone(),
        })
    }

    fn tell_template(&self, generation: GenerationId, message: &ToTemplate) {
        if let Some(template) = self.processes.get(&generation).and_then(|processes| processes.template.as_ref()) {
            template.tell(message);
        }
    }

    fn tell_worker(&self, worker: WorkerId, message: &ToWorker) {
        if let Some(worker) = self.workers.get(&worker) {
            worker.tell(message);
        }
    }

    /// SIGKILL. Every request that it cuts gets a line, since nobody else will ever tell of it.
    /// Returns an event where there is no process of ours whose end could be awaited.
    fn kill(&mut self, id: WorkerId) -> Option<Event> {
        let worker = self.workers.get(&id)?;
        // Without a pid there is nothing to signal yet: the supervisor asks again when it is known.
        let pid = worker.pid?;
        if !self.is_ours(worker, pid) {
            log::error!("{} is not a process of this service: not signalled", name(worker));
            self.forget_worker(id);
            return Some(Event::Worker { worker: id, event: WorkerEvent::Exited(Exit::NeverBorn) });
        }
        if let Some(processes) = self.processes.get(&worker.generation) {
            for running in watch::running(&processes.board, worker.cell) {
                let age = watch::age(&running).as_secs_f64();
                log::warn!("{} cut request \"{}\" after={age:.3}s", name(worker), running.text);
            }
        }
        signal_kill(pid);
        None
    }

    /// A pid is the word of a process that runs the application's code, and the master may be root.
    fn is_ours(&self, worker: &WorkerProcess, pid: i32) -> bool {
        let template = self.processes.get(&worker.generation).and_then(|processes| processes.template.as_ref());
        children::is_ours(pid, template.map(|template| template.pid))
    }

    /// For `Mutant::KillOldFirst` only.
    pub fn kill_all_workers(&self) {
        self.workers.values().filter_map(|worker| worker.pid).for_each(signal_kill);
    }

    /// Logs what is stuck, and asks for the stacks.
    fn dump_stacks(&mut self, id: WorkerId) {
        self.last_stacks += 1;
        let answer_by = self.clock.now() + STACKS_WITHIN;
        let Some(worker) = self.workers.get_mut(&id) else { return };
        if let Some(processes) = self.processes.get(&worker.generation) {
            let look = watch::look(&processes.board, worker.cell, &processes.settings.server, &self.clock);
            for (running, inside, limit) in &look.stuck {
                log::error!(
                    "{} request \"{}\" exceeds request_timeout ({:.1}s): {:.1}s in the application without progress; \
                     replacing the worker",
                    name(worker),
                    running.text,
                    limit.as_secs_f64(),
                    inside.as_secs_f64()
                );
            }
            if look.stuck.is_empty() {
                let silent = watch::SILENT_AFTER.as_secs();
                log::error!("{} has given no sign of life for {silent}s: replacing it", name(worker));
            }
        }
        worker.dump = Dump::Asked { answer_by };
        worker.tell(&ToWorker::Stacks { id: self.last_stacks });
    }

    /// Whether a terminated worker may be killed now. Its stacks are waited for, since they are the reason why.
    fn check_stuck(&self, id: WorkerId, stuck: Stuck) -> Option<WorkerEvent> {
        let worker = self.workers.get(&id)?;
        let processes = self.processes.get(&worker.generation)?;
        if worker.dump != Dump::None {
            return Some(WorkerEvent::StillStuck { others: 1 });
        }
        if !watch::still_runs(&processes.board, worker.cell, stuck) {
            return Some(WorkerEvent::Unstuck);
        }
        let look = watch::look(&processes.board, worker.cell, &processes.settings.server, &self.clock);
        Some(WorkerEvent::StillStuck { others: look.others })
    }

    // --- listeners --------------------------------------------------------------------------------------------

    fn open_listeners(&mut self, generation: GenerationId) -> Event {
        let Some(processes) = self.processes.get(&generation) else {
            return Event::ListenersRefused { generation, reason: "forgotten".to_owned(), exit_code: 1 };
        };
        match self.listeners.open(&processes.listeners) {
            Ok(warnings) => {
                for warning in warnings {
                    log::warn!("{warning}");
                }
                let before = self.supervisor.serving().and_then(|generation| self.processes.get(&generation.id));
                let is_new = |id: &ListenerId| before.is_none_or(|before| !before.listeners.contains(id));
                for (listener, _) in self.listeners.wire(&processes.listeners) {
                    if is_new(&listener.id) {
                        log::info!("listening on {}", listener.address);
                    }
                }
                Event::ListenersOpen { generation }
            }
            Err(error) => {
                let exit_code = i32::from(error.exit_code());
                Event::ListenersRefused { generation, reason: error.to_string(), exit_code }
            }
        }
    }

    /// Listeners that a worker accepts from and that whoever follows it does not have: it goes on with them until
    /// the commit, since nobody else would serve who connects there.
    fn listeners_without_heir(&self, id: WorkerId) -> Vec<ListenerId> {
        let Some(worker) = self.workers.get(&id) else { return Vec::new() };
        // Until workers change places, the heir is the next worker of the generation that serves.
        let successor = self.supervisor.exchanging().filter(|generation| generation.id != worker.generation);
        let heir = successor.or(self.supervisor.serving());
        let Some(heir) = heir.and_then(|generation| self.processes.get(&generation.id)) else { return Vec::new() };
        worker.listeners.iter().filter(|listener| !heir.listeners.contains(listener)).copied().collect()
    }

    /// Closes listeners that neither the serving generation nor one in a transaction has. The master's copy goes
    /// first; then the workers that still have them accept what is queued and close theirs: the last close(2) is
    /// what makes the kernel refuse.
    pub fn close_unused_listeners(&mut self) {
        let used: Vec<ListenerId> = [self.supervisor.serving(), self.supervisor.in_transaction()]
            .into_iter()
            .flatten()
            .filter_map(|generation| self.processes.get(&generation.id))
            .flat_map(|processes| processes.listeners.iter().copied())
            .collect();
        let unused: Vec<ListenerId> = self.listeners.ids().into_iter().filter(|id| !used.contains(id)).collect();
        self.listeners.close(&unused);
        for worker in self.workers.values_mut() {
            let (listeners, kept): (Vec<ListenerId>, Vec<ListenerId>) =
                worker.listeners.iter().partition(|listener| unused.contains(listener));
            worker.listeners = kept;
            if !listeners.is_empty() {
                worker.tell(&ToWorker::CloseListeners { listeners });
            }
        }
    }

    // --- verdicts ---------------------------------------------------------------------------------------------

    fn announce(&mut self, generation: GenerationId, verdict: &Verdict) {
        let since = self.processes.get(&generation).map_or_else(|| self.clock.now(), |processes| processes.began);
        let took = self.clock.now().saturating_duration_since(since);
        let last = LastReload::of(generation, verdict, took);
        let asked = |waiting| matches!(waiting, Waiting::Verdict { generation: asked } if asked == generation);
        for (client, _) in self.waiting(asked) {
            self.answer(client, last.to_json());
        }
        self.last_reload = Some(last);
    }

    fn token(&mut self, watched: Watched) -> Token {
        let token = Token(self.next_token);
        self.next_token += 1;
        self.watched.insert(token, watched);
        token
    }
}

fn name(worker: &WorkerProcess) -> String {
    let pid = worker.pid.map_or_else(|| "?".to_owned(), |pid| pid.to_string());
    format!("worker gen={} slot={} pid={pid}", worker.generation, worker.slot)
}

/// Logs what faulthandler has written.
fn log_stacks(worker: &mut WorkerProcess) {
    let text = std::mem::take(&mut worker.stacks_text);
    if !text.is_empty() {
        log::warn!("{} Python stacks, from faulthandler:\n{}", name(worker), String::from_utf8_lossy(&text).trim_end());
    }
}

/// Only for a child that has not been reaped: until then its pid is its own.
fn signal_kill(pid: i32) {
    if let Err(error) = kill(Pid::from_raw(pid), Signal::SIGKILL) {
        log::error!("pid={pid} cannot be killed: {error}");
    }
}

/// `max_requests` with its jitter, spread evenly by the worker's number, so that workers that started together do
/// not end together.
fn max_requests(server: &crate::config::settings::Server, worker: WorkerId) -> Option<u64> {
    if server.max_requests == 0 {
        return None;
    }
    // Fibonacci hashing: consecutive numbers are spread over the whole range.
    let spread = worker.0.wrapping_mul(0x9E37_79B9_7F4A_7C15);
    let jitter = (u128::from(spread) * (u128::from(server.max_requests_jitter) + 1)) >> 64;
    Some(server.max_requests.saturating_add(jitter as u64))
}
