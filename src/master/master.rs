//! The master's one loop: file descriptors and signals become events for the supervisor, and its actions become
//! calls of those who carry them out. It never waits for a child, a disk or a peer, and no error leaves it.

mod upgrading;

use std::io;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use forkmaster_wire::message::{ToTemplate, ToWorker};
use mio::Token;

use crate::children::{Children, Who};
use crate::config::process_context::ProcessContext;
use crate::config::settings::{self, Bind};
use crate::config::{Loaded, Source as ConfigSource};
use crate::doors::control::{ClientId, Waiting};
use crate::doors::metrics;
use crate::doors::page;
use crate::doors::protocol::{
    Done, Dumped, History, Proving, Recycled, Refused, Reloaded, Reply, Request, Scaled, ServiceScaled, Stopping,
};
use crate::doors::status::{Answer, Page};
use crate::doors::{Asked, Doors};
use crate::facts::note::Note;
use crate::facts::outcome::{Outcome, Refusal, Verb};
use crate::facts::snapshot::Word;
use crate::facts::standing::Standing;
use crate::footprint::Footprint;
use crate::library::Library;
use crate::listeners::ListenError;
use crate::logs::{AccessLog, LogFile, Opened};
use crate::pidfile::PidFile;
use crate::service::start::SpawnOrder;
use crate::service::{EventQueue, Service};
use crate::shared::Shared;
use crate::signals::Signals;
use crate::sources::{Source, CHORES, CONTROL, SIGNALS};
use crate::supervisor::asks::{Amount, Ask, AskId, AskedCanary, Deploy};
use crate::supervisor::maintenance::MaintenancePlan;
use crate::supervisor::template::Event as TemplateEvent;
use crate::supervisor::upgrade::QUIET_WITHIN;
use crate::supervisor::worker::{Event as WorkerEvent, Exit};
use crate::supervisor::{Action, Event};
use crate::upgrade::attempt::Attempt;

/// How long idle keep-alive connections stay open after the service was told to stop.
const STOP_IDLE: Duration = Duration::from_secs(2);

/// Killed processes are gone within this, unless the kernel itself hangs.
const SWEPT_WITHIN: Duration = Duration::from_secs(2);

/// Children reaped in one pass: an application's orphans must not keep the master from anything else.
const REAPED_PER_PASS_MAX: usize = 256;

/// How far a new binary's look at the state has come, before an upgrade.
#[derive(Default)]
enum Look {
    /// Nobody has asked for one.
    #[default]
    Off,
    /// The next turn of the loop starts it.
    Due,
    /// The new binary looks, in a process of its own.
    Running(Attempt),
}

pub struct Master {
    shared: Shared,
    service: Service,
    signals: Signals,
    doors: Doors,
    pidfile: Option<PidFile>,
    look: Look,
    /// Children may have ended that were not reaped yet.
    reap_again: bool,
    footprint: Footprint,
    exit: Option<i32>,
}

impl Master {
    pub fn new(
        source: ConfigSource,
        context: ProcessContext,
        log: LogFile,
        signals: Signals,
        control: &settings::Control,
        library: Library,
    ) -> io::Result<Master> {
        let shared = Shared::new(context, log, library)?;
        signals.register(shared.sources.registry(), SIGNALS)?;
        let service = Service::new(source, shared.clock.now());
        let doors = Doors::open(control, &shared.context, &shared.sources)?;
        Ok(Master::of(shared, service, signals, doors))
    }

    fn of(shared: Shared, service: Service, signals: Signals, doors: Doors) -> Master {
        let footprint = Footprint::new(shared.clock.now());
        Master {
            shared,
            service,
            signals,
            doors,
            pidfile: None,
            look: Look::Off,
            reap_again: false,
            footprint,
            exit: None,
        }
    }

    /// The pid file is removed when this master ends.
    pub fn keep_pidfile(&mut self, pidfile: Option<PidFile>) {
        self.pidfile = pidfile;
    }

    /// Listens for probes, which are to hear that the service starts.
    pub fn open_status(&mut self, binds: &[Bind]) -> Result<(), ListenError> {
        self.doors.open_status(binds, &self.shared.context, &mut self.shared.sources)
    }

    /// Whoever started this process waits for a newline on this descriptor.
    pub fn open_notify_fd(&mut self, number: u32) -> Result<(), String> {
        self.doors.open_notify_fd(number)
    }

    /// The first generation.
    pub fn start(&mut self, loaded: Loaded, access: Option<AccessLog>) -> Result<(), Refusal> {
        let began = self.shared.clock.now();
        let (history, app) = (loaded.settings.control.history.clone(), loaded.settings.app.clone());
        let prepared = self.service.prepare(loaded, Opened { error: None, access }, &mut self.shared)?;
        self.service.open_history(history, app, &mut self.shared);
        self.tell(Event::Configured { verb: Verb::Start, askers: Vec::new(), began, result: Ok(prepared) });
        Ok(())
    }

    /// Runs until the supervisor says with which code to exit.
    pub fn run(&mut self) -> i32 {
        loop {
            self.tell_manager();
            self.service.run_hooks(&mut self.shared);
            if let Some(code) = self.exit.filter(|_| !self.service.has_hooks_left()) {
                self.sweep();
                self.service.last_lines.finish();
                return code;
            }
            self.upgrade();
            let wait = match self.shared.sources.has_unread() || self.reap_again || self.doors.has_pending() {
                true => Duration::ZERO,
                false => self.wake_at().saturating_duration_since(self.shared.clock.now()),
            };
            let began = Instant::now();
            let tokens = self.shared.sources.wait(wait);
            if let Some(late) = self.shared.clock.waited(began, wait) {
                log::warn!("the master did not run for {:.1}s: all deadlines move by that much", late.as_secs_f64());
            }
            // Channels first: what a process said before it ended counts before its end.
            for token in tokens.iter().filter(|token| **token > CHORES) {
                self.on_ready(*token);
            }
            if tokens.contains(&CONTROL) {
                self.doors.accept(&mut self.shared.sources, self.shared.clock.now());
            }
            if tokens.contains(&SIGNALS) || self.reap_again {
                self.on_signals();
            }
            let chores = self.shared.chores.next_deadline();
            if tokens.contains(&CHORES) || chores.is_some_and(|by| by <= self.shared.clock.now()) {
                self.on_chores();
            }
            let mut events = EventQueue::new();
            let has_read = self.service.look_around(&self.shared, &mut events);
            self.service.hand_out_owed_logs(&self.shared);
            let due = self.service.supervisor.next_deadline();
            if due.is_some_and(|by| by <= self.shared.clock.now()) {
                events.push_back(Event::Tick);
            }
            self.decide(events);
            for note in self.service.take_noticed() {
                self.note(&note);
            }
            for asked in self.doors.asked(&mut self.shared.sources, self.shared.clock.now()) {
                self.on_asked(asked);
            }
            self.notice_who_left();
            self.footprint.turned(has_read || !tokens.is_empty(), self.shared.clock.now());
        }
    }

    /// After `run`. Nothing of this master is left but its process.
    pub fn close(self) {
        let Master { shared, service, doors, pidfile, .. } = self;
        drop((pidfile, service, shared));
        doors.close();
    }

    /// Ends all processes of the service, and closes the connections that lie in the handoff queue.
    fn sweep(&mut self) {
        end_all(&mut self.shared.children, &self.shared.lifeline.0);
        let left = self.shared.queue.close_all();
        if left > 0 {
            log::info!("connections={left} that no worker has taken any more are closed");
        }
    }

    /// Tells the service manager how the service stands.
    fn tell_manager(&mut self) {
        if self.doors.have_a_manager() {
            self.doors.tell_manager(&self.service.standing(), self.shared.clock.now());
        }
    }

    fn wake_at(&self) -> Instant {
        let doors = self.doors.next_deadline(self.shared.clock.now());
        let chores = self.shared.chores.next_deadline();
        let steps = matches!(self.look, Look::Due) || self.service.supervisor.may_be_taken_over().is_some();
        let upgrade = steps.then(|| self.shared.clock.now() + upgrading::LOOK_AGAIN_AFTER);
        doors.into_iter().chain(chores).chain(upgrade).fold(self.service.wake_at(), Instant::min)
    }

    // --- what happens -----------------------------------------------------------------------------------------

    fn on_ready(&mut self, token: Token) {
        let mut events = EventQueue::new();
        let (service, shared) = (&mut self.service, &mut self.shared);
        match shared.sources.source(token) {
            Some(Source::Template(generation)) => service.read_template(generation, token, shared, &mut events),
            Some(Source::Worker(worker)) => service.read_worker(worker, shared, &mut events),
            Some(Source::Stacks(worker)) => service.read_stacks(worker, shared),
            Some(Source::Service(of)) => service.read_service(of, shared),
            Some(Source::Readiness) => service.read_readiness(shared, &mut events),
            Some(Source::Command(generation)) => service.read_command(generation, shared),
            Some(Source::NewBinary) => self.read_look(),
            Some(Source::Status) => self.doors.accept_status(&mut shared.sources, shared.clock.now()),
            Some(Source::Signals | Source::Control | Source::Chores) => {}
            // Or a process's that something earlier in the same batch has closed.
            None => self.doors.ready(token, shared.clock.now()),
        }
        self.decide(events);
    }

    fn on_signals(&mut self) {
        let taken = self.signals.take();
        if taken.child || self.reap_again {
            self.reap();
        }
        if self.exit.is_some() {
            // Only the command of `on_exit` is waited for.
            if taken.terms > 0 || taken.stop_now {
                self.service.end_hooks(&mut self.shared);
            }
            return;
        }
        if taken.reopen {
            self.service.ask_to_reopen_logs(&mut self.shared);
        }
        if taken.upgrade {
            self.tell(Event::Ask { asker: None, ask: Ask::Upgrade { timeout: QUIET_WITHIN } });
        }
        if taken.scale != 0 {
            self.tell(Event::Ask { asker: None, ask: Ask::Scale { by: taken.scale, wait: false } });
        }
        if taken.reload {
            self.tell(Event::Ask {
                asker: None,
                ask: Ask::Reload { deploy: Deploy::OnDisk { force: false, canary: None }, wait: false },
            });
        }
        for _ in 0..taken.terms {
            self.tell(Event::Ask { asker: None, ask: Ask::Stop });
        }
        if taken.stop_now {
            self.tell(Event::Ask { asker: None, ask: Ask::StopNow });
        }
    }

    /// Takes what the chores' threads have done.
    fn on_chores(&mut self) {
        while let Some((id, done)) = self.shared.chores.done(self.shared.clock.now()) {
            if let Some(event) = self.service.on_chore(id, done, &mut self.shared) {
                self.tell(event);
            }
        }
        for (asker, reason) in self.service.take_pageless() {
            self.answer(ClientId(asker.0), Reply::Refused(Refused::because(reason)));
        }
        for (asker, reopened) in self.service.take_reopened() {
            let reply = match reopened {
                Ok(()) => Reply::Done(Done::default()),
                Err(reason) => Reply::Refused(Refused::because(reason)),
            };
            self.answer(ClientId(asker.0), reply);
        }
    }

    /// Reaps children that have ended, and first reads what they had to say.
    fn reap(&mut self) {
        self.reap_again = false;
        for _ in 0..REAPED_PER_PASS_MAX {
            let Some(pid) = Children::ended() else { return };
            let mut events = EventQueue::new();
            let (service, shared) = (&mut self.service, &mut self.shared);
            service.read_last_words(shared.children.who(pid), shared, &mut events);
            let Some((who, exit)) = shared.children.reap(pid) else { return };
            match who {
                Some(Who::Worker(worker)) => service.worker_ended(worker, exit, shared, &mut events),
                Some(Who::Template(generation)) => {
                    let exit = service.template_ended(generation, exit, shared);
                    events.push_back(Event::Template { generation, event: TemplateEvent::Exited(exit) });
                }
                Some(Who::Hook(hook)) => service.hook_ended(hook, &exit, shared.clock.now()),
                Some(Who::Service(of)) => events.push_back(service.service_ended(of, exit, shared)),
                Some(Who::Command(generation)) => events.push_back(service.command_ended(generation, exit, shared)),
                Some(Who::NewBinary) => events.extend(self.look_ended(&exit)),
                Some(Who::Stray) | None => log::debug!("reaped pid={pid}, left behind by the application: {exit}"),
            }
            self.decide(events);
        }
        self.reap_again = true;
    }

    // --- who asks ---------------------------------------------------------------------------------------------

    fn on_asked(&mut self, asked: Asked) {
        match asked {
            Asked::Request(client, Ok(request)) => self.on_request(client, request),
            Asked::Request(client, Err(refused)) => self.answer(client, Reply::Refused(refused)),
            Asked::Page(client, page) => {
                let answer = self.page(page);
                self.doors.show(client, &answer, self.shared.clock.now());
            }
        }
    }

    /// For probes and scrapers.
    fn page(&mut self, page: Page) -> Answer {
        match page {
            Page::Live => Answer::plain(200, "ok\n"),
            Page::Ready => {
                // The reason may be the last line of a traceback, and anybody may ask here.
                let standing = self.service.standing();
                let refused = standing.refused.as_ref().map(|(verb, _)| (*verb, "the log says why".to_owned()));
                let standing = Standing { refused, ..standing };
                Answer::plain(if standing.ready { 200 } else { 503 }, format!("{standing}\n"))
            }
            Page::Metrics => {
                let text = metrics::text(&self.service.measures(&self.shared));
                Answer { status: 200, content_type: metrics::CONTENT_TYPE, fields: "", text }
            }
            Page::State { among_us } => {
                let (snapshot, measures) = (self.service.snapshot(&self.shared), self.service.measures(&self.shared));
                page::json(snapshot, &measures, self.service.deploys(), among_us)
            }
        }
    }

    fn on_request(&mut self, client: ClientId, request: Request) {
        if let (Some(what), Some(peer)) = (request.changes(), self.doors.peer(client)) {
            log::info!("asked by uid={} pid={}: {what}", peer.uid, peer.pid);
            if request.deploys() {
                let who = format!("uid={} pid={}: {what}", peer.uid, peer.pid);
                self.service.history.note_asker(AskId(client.0), who);
            }
        }
        match request {
            Request::Status => {
                let snapshot = self.service.snapshot(&self.shared);
                self.answer(client, Reply::Status(Box::new(snapshot)));
            }
            Request::Reload { wait, force } => {
                self.ask(client, Ask::Reload { deploy: Deploy::OnDisk { force, canary: None }, wait });
            }
            Request::ReloadCanary { wait, force, workers, hold_ms } => {
                let canary = Some(AskedCanary { workers, hold: hold_ms.map(Duration::from_millis) });
                self.ask(client, Ask::Reload { deploy: Deploy::OnDisk { force, canary }, wait });
            }
            Request::Promote { wait } => self.ask(client, Ask::Promote { wait }),
            Request::Abandon => self.ask(client, Ask::Abandon),
            Request::ReloadPaused { force, argv, timeout_ms } => {
                let timeout = Duration::from_millis(timeout_ms);
                let deploy = Deploy::Paused { force, command: argv, timeout, maintenance: None };
                self.ask(client, Ask::Reload { deploy, wait: true });
            }
            Request::ReloadPausedAnswering { force, argv, timeout_ms, after_ms, page } => {
                let timeout = Duration::from_millis(timeout_ms);
                self.ask_with_page(client, after_ms, page, move |maintenance| {
                    let deploy = Deploy::Paused { force, command: argv, timeout, maintenance: Some(maintenance) };
                    Ask::Reload { deploy, wait: true }
                });
            }
            Request::Pause { timeout_ms } => {
                self.ask(client, Ask::Pause { timeout: Duration::from_millis(timeout_ms), maintenance: None });
            }
            Request::PauseAnswering { timeout_ms, after_ms, page } => {
                let timeout = Duration::from_millis(timeout_ms);
                let ask = move |maintenance| Ask::Pause { timeout, maintenance: Some(maintenance) };
                self.ask_with_page(client, after_ms, page, ask);
            }
            Request::Resume => self.ask(client, Ask::Resume),
            Request::Rollback { wait, to } => self.ask(client, Ask::Reload { deploy: Deploy::Back { to }, wait }),
            Request::History => {
                let entries = self.service.history(self.shared.clock.now());
                self.answer(client, Reply::History(History { entries }));
            }
            Request::WaitReady => self.ask(client, Ask::Ready),
            Request::Scale { by, wait } => self.ask(client, Ask::Scale { by, wait }),
            Request::ScaleTo { workers, wait } => self.ask(client, Ask::ScaleTo { workers, wait }),
            Request::Upgrade { timeout_ms } => {
                self.ask(client, Ask::Upgrade { timeout: Duration::from_millis(timeout_ms) });
            }
            Request::Recycle { slot, wait } => self.ask(client, Ask::Recycle { slot, keep: None, wait }),
            Request::RecycleKept { slot, keep_ms, wait } => {
                let keep = Some(Duration::from_millis(keep_ms));
                self.ask(client, Ask::Recycle { slot, keep, wait });
            }
            Request::ScaleService { name, by, to, wait } => {
                let amount = match (by, to) {
                    (Some(by), None) => Amount::By(by),
                    (None, Some(to)) => Amount::To(to),
                    (Some(_), Some(_)) | (None, None) => {
                        let refused = Refused::because("scale_service needs one of `by` and `to`");
                        return self.answer(client, Reply::Refused(refused));
                    }
                };
                self.ask(client, Ask::ScaleService { name, amount, wait });
            }
            Request::RecycleService { name, number, wait } => {
                self.ask(client, Ask::RecycleService { name, number, wait });
            }
            Request::Dump { slot } => self.ask(client, Ask::Dump { slot }),
            Request::ReopenLogs => {
                self.doors.wait(client, Waiting::Answer);
                self.service.reopen_logs_for(AskId(client.0), &mut self.shared);
            }
            Request::Events => {
                if !self.doors.listen(client, self.shared.clock.now()) {
                    self.answer(client, Reply::Refused(Refused::because("too many listen to events already")));
                }
            }
            Request::Stop { now } => self.ask(client, if now { Ask::StopNow } else { Ask::Stop }),
        }
    }

    fn ask(&mut self, client: ClientId, ask: Ask) {
        self.doors.wait(client, Waiting::Answer);
        self.tell(Event::Ask { asker: Some(AskId(client.0)), ask });
    }

    /// The supervisor is asked when the page has been read.
    fn ask_with_page(
        &mut self,
        client: ClientId,
        after_ms: u64,
        page: Option<String>,
        ask: impl FnOnce(MaintenancePlan) -> Ask + 'static,
    ) {
        let after = Duration::from_millis(after_ms);
        let Some(path) = page else { return self.ask(client, ask(MaintenancePlan { after, page: None })) };
        self.doors.wait(client, Waiting::Answer);
        self.service.read_page(AskId(client.0), after, path.into(), Box::new(ask), &mut self.shared);
    }

    /// Tells the supervisor of clients that have hung up: it need not keep their asks.
    fn notice_who_left(&mut self) {
        let waiting = self.doors.waiting();
        let is_there = |ask: &AskId| waiting.iter().any(|client| client.0 == ask.0);
        let left: Vec<AskId> = self.service.supervisor.asking().filter(|ask| !is_there(ask)).collect();
        for ask in left {
            self.tell(Event::Left { ask });
        }
    }

    fn answer(&mut self, client: ClientId, reply: Reply) {
        self.doors.answer(client, &reply, self.shared.clock.now());
    }

    // --- what is done -----------------------------------------------------------------------------------------

    fn tell(&mut self, event: Event) {
        self.decide(EventQueue::from([event]));
    }

    /// Tells the supervisor and carries out what it decides. An action may itself be answered by an event.
    fn decide(&mut self, mut events: EventQueue) {
        while let Some(event) = events.pop_front() {
            for action in self.service.supervisor.handle(event, self.shared.clock.now()) {
                events.extend(self.carry_out(action));
            }
        }
    }

    /// For the log, and for whoever counts.
    fn note(&mut self, note: &Note) {
        self.service.counted.note(note);
        self.service.note_proved(note, self.shared.clock.now());
        log::log!(note.level(), "{note}");
        self.doors.tell(note, self.shared.clock.now());
    }

    fn carry_out(&mut self, action: Action) -> Option<Event> {
        let (service, shared) = (&mut self.service, &mut self.shared);
        match action {
            Action::Configure { asker, deploy } => {
                self.doors.look_for_control(&mut shared.sources, shared.clock.now());
                service.configure(asker, deploy, shared);
                self.tell_manager();
            }
            Action::StartTemplate { generation } => {
                if let Err(refusal) = service.start_template(generation, shared) {
                    let event = TemplateEvent::Exited(Exit::NeverBorn(refusal));
                    return Some(Event::Template { generation, event });
                }
            }
            Action::StopTemplate { generation } => service.tell_template(generation, &ToTemplate::Stop),
            Action::KillTemplate { generation } => {
                // It could not even be started.
                if !shared.children.kill(Who::Template(generation)) {
                    let event = TemplateEvent::Exited(Exit::NeverBorn(Refusal::new("it was never started")));
                    return Some(Event::Template { generation, event });
                }
            }
            Action::MoveTemplate { from, to } => service.move_template(from, to, shared),
            Action::DumpTemplate { generation } => service.dump_template(generation, shared),
            Action::GiveUpTemplate { generation } => {
                shared.children.give_up(Who::Template(generation));
                service.forget_template(generation, shared);
            }
            Action::PingTemplate { generation, ping } => {
                service.tell_template(generation, &ToTemplate::Ping { id: ping });
            }
            Action::Spawn { generation, slot, worker, prove, probe, weigh, max_requests } => {
                let order = SpawnOrder { slot, worker, prove, probe, weigh, max_requests };
                if let Err(exit) = service.spawn(generation, order, shared) {
                    return Some(Event::Worker { worker, event: WorkerEvent::Exited(exit) });
                }
            }
            Action::Serve { worker } => service.serve(worker),
            Action::Pause { worker } => service.tell_worker(worker, &ToWorker::Pause),
            Action::Maintenance { worker, page } => {
                let page = page.map(|page| (*page).clone());
                service.tell_worker(worker, &ToWorker::Maintenance { page });
            }
            Action::Probe { worker } => service.tell_worker(worker, &ToWorker::Probe),
            Action::Recall { worker, requests, skip } => {
                service.tell_worker(worker, &ToWorker::Recall { requests, skip });
            }
            Action::Rehearse { worker, number, request } => {
                service.tell_worker(worker, &ToWorker::Rehearse { number, request });
            }
            Action::NameRunning { workers } => {
                return Some(Event::StillRunning { text: service.name_running(&workers) });
            }
            Action::StartService { generation, service: of, name } => {
                return Some(service.start_service(generation, of, &name, shared));
            }
            Action::StopService { service: of, kill } => service.stop_service(of, kill, shared),
            Action::GiveUpService { service: of } => {
                shared.children.give_up(Who::Service(of));
                service.forget_service(of, shared);
            }
            Action::RunCommand { generation } => return service.run_command(generation, shared),
            Action::EndCommand { generation, kill } => service.end_command(generation, kill, shared),
            Action::Drain { worker, keep, yields } => service.tell_worker(worker, &ToWorker::Drain { keep, yields }),
            Action::StandAside { worker } => service.tell_worker(worker, &ToWorker::StandAside),
            Action::Retire { worker } => service.tell_worker(worker, &ToWorker::Retire),
            Action::StopWorker { worker } => {
                service.tell_worker(worker, &ToWorker::Stop { idle_ms: STOP_IDLE.as_millis() as u64 });
            }
            Action::Kill { worker } => service.kill(worker, shared),
            Action::AskStacks { worker } => service.ask_stacks(worker, shared),
            Action::SignalStacks { worker } => service.signal_stacks(worker, shared),
            Action::LookAt { worker } => service.look_at(worker),
            Action::LookAtSlow { worker } => service.look_at_slow(worker),
            Action::TakeStacks { worker } => {
                let event = service.take_stacks(worker, shared)?;
                return Some(Event::Worker { worker, event });
            }
            Action::CheckStuck { worker, stuck } => {
                let event = service.check_stuck(worker, stuck, shared)?;
                return Some(Event::Worker { worker, event });
            }
            Action::OpenListeners { generation } => return Some(service.open_listeners(generation, shared)),
            Action::MeasureRoom { generation } => {
                return Some(Event::Room { generation, room: service.room(), kept_bytes: service.kept_bytes() });
            }
            Action::Compare { generation, against } => return Some(service.compare(generation, against)),
            Action::Commit { generation, close } => service.commit(generation, &close, shared),
            Action::Abandon { generation, close } => {
                service.close_listeners(&close, shared);
                service.abandon_logs(generation, shared);
            }
            Action::CloseAllListeners => shared.listeners.close_all(),
            Action::Forget { generation } => {
                service.remember_served(generation, shared);
                service.forget(generation, shared);
            }
            Action::Concluded(reload) => {
                service.remember_deploy(&reload, shared);
                service.concluded(reload);
                self.tell_manager();
            }
            Action::TryUpgrade => self.look = Look::Due,
            Action::EndTry => self.end_look(),
            Action::UpgradeRefused(reload) => service.upgrade_refused(reload),
            Action::Answer { ask, outcome } => {
                let client = ClientId(ask.0);
                let state = service.supervisor.word();
                self.answer(client, reply(&outcome, state));
                if outcome == Outcome::Stopping {
                    self.doors.wait(client, Waiting::End);
                }
            }
            Action::Note(note) => self.note(&note),
            Action::Exit { code } => {
                service.hook_exit(code);
                self.exit = Some(code);
            }
        }
        None
    }
}

/// Nothing that holds a listener outlives the master: the next start would find the address in use.
pub fn end_all(children: &mut Children, lifeline: &OwnedFd) {
    let swept = children.sweep(lifeline, Instant::now() + SWEPT_WITHIN);
    for pid in swept.undying {
        log::error!("pid={pid} is still there after SIGKILL: the kernel itself holds it, or a debugger");
    }
    for pid in swept.others {
        log::info!("pid={pid} was started by the application and lives on");
    }
}

/// An outcome as the control socket says it, and the word for the service.
fn reply(outcome: &Outcome, state: &'static str) -> Reply {
    let state = Word::Borrowed(state);
    match outcome {
        Outcome::Reload(reload) => Reply::Reload(Reloaded { last: reload.shown(), state }),
        Outcome::Begun { generation } => Reply::Proving(Proving { generation: *generation }),
        Outcome::Ready => Reply::Ready {},
        Outcome::Scaled { workers } => Reply::Scaled(Scaled { workers: *workers, state }),
        Outcome::Recycled { slot, pid, kept } => Reply::Recycled(Recycled { slot: *slot, pid: *pid, kept_pid: *kept }),
        Outcome::ServiceScaled { processes } => Reply::ServiceScaled(ServiceScaled { processes: *processes }),
        Outcome::Dumped(workers) => Reply::Dumped(Dumped::of(workers)),
        Outcome::Asked | Outcome::Paused | Outcome::Resumed => Reply::Done(Done { state }),
        Outcome::Stopping => Reply::Stopping(Stopping { pid: std::process::id() }),
        Outcome::Refused(refusal) => {
            Reply::Refused(Refused { reason: refusal.reason.clone(), details: refusal.details.clone() })
        }
    }
}
