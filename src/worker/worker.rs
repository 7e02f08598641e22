//! The life of a worker, from its fork to its last request: import and proof where the template has not done
//! them, then the app threads.
//!
//! Starting (signal handlers, import, proof; the control thread runs already: `birth`), ready (app threads wait), serving
//! and draining (states of the server that it drives), and the interpreter's own end.

use std::fmt;
use std::io;
use std::os::fd::{AsRawFd, IntoRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use forkmaster_http::serve::{self, AppThread, Exchange, Reports, Server, Wake};
use forkmaster_wire::handoff::Queue;
use forkmaster_wire::message::{
    Boot, Failure, FromWorker, GenerationId, Http, ProofStep, ProxyProtocol, SlotIndex, Spawn, StreamBodies,
};
use forkmaster_wire::mutant::{self, Mutant};
use forkmaster_wire::scoreboard::{Cell, Finished, Scoreboard};
use pyo3::exceptions::{PyKeyboardInterrupt, PySystemExit};
use pyo3::prelude::*;
use pyo3::types::{PyCFunction, PyDict, PyTuple};

use crate::access::{AccessLog, Origin};
use crate::birth::Born;
use crate::failure::{failure, from_exception, summary, traceback};
use crate::handoff::Handoff;
use crate::lock_watch::LockWatch;
use crate::logs::Logs;
use crate::master_channel::{MasterChannel, Prober};
use crate::metrics::CellMetrics;
use crate::native_threads::start_with_all_blocked;
use crate::pinned::Pinned;
use crate::recall::Recall;
use crate::refusal_recorder::RefusalRecorder;
use crate::signals::{self, exit_now, Signals};
use crate::template::channel_closed;
use crate::wsgi::environ::Common;
use crate::wsgi::forwarded::{Believed, Trusted};
use crate::wsgi::progress::Progress;
use crate::wsgi::Gateway;
use crate::{forked_child, hooks, logger, memory, probe, rehearsal, startup, tempdir, threads};

/// Other Python threads get their turn within CPython's switch interval (sys.setswitchinterval: 5 ms), also where
/// requests follow each other without a wait between them.
const TURN: Duration = Duration::from_millis(5);

/// For the last lines of the access log: a log that takes nothing must not keep a process.
const LOGS_TIMEOUT: Duration = Duration::from_secs(1);

/// A process is a worker once.
static LOCK_WATCH: LockWatch = LockWatch::new();

/// A worker as its threads share it.
pub struct Worker {
    generation: GenerationId,
    slot: SlotIndex,
    pid: u32,
    master: Arc<MasterChannel>,
    board: &'static Scoreboard,
    cell_index: u32,
    cell: &'static Cell,
    /// Counted only where there is a limit.
    answered: AtomicU64,
    max_requests: Option<u64>,
    /// The master wants to know what memory a worker takes before it has others forked.
    weigh: bool,
    /// No temporary directory is writable.
    without_files: AtomicBool,
    /// The application has forked, and this is the child.
    forked_child: AtomicBool,
    /// Descriptors that belong to the worker and not to such a child.
    own: Vec<RawFd>,
    access: Option<Arc<AccessLog>>,
    /// None: nobody will ask what it has answered.
    recall: Option<Arc<Recall>>,
}

impl fmt::Display for Worker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "worker gen={} slot={} pid={}", self.generation, self.slot, self.pid)
    }
}

impl Worker {
    /// A request goes to the application. Called, as `finished` is, with the interpreter's lock: nobody else counts meanwhile.
    pub fn begin(&self) {
        self.cell.busy.store(self.cell.busy.load(Ordering::Relaxed).wrapping_add(1), Ordering::Relaxed);
    }

    /// None: it was counted before, when its client was answered in the application's place.
    pub fn finished(&self, finished: Option<Finished>, raised: bool) {
        self.cell.busy.store(self.cell.busy.load(Ordering::Relaxed).wrapping_sub(1), Ordering::Relaxed);
        if let Some(finished) = finished {
            self.cell.finished(finished);
        }
        if raised {
            self.cell.errors.fetch_add(1, Ordering::Relaxed);
        }
        if let Some(max) = self.max_requests {
            if self.answered.fetch_add(1, Ordering::Relaxed) + 1 == max {
                self.master.tell(&FromWorker::RequestsServed);
            }
        }
    }

    /// See `MasterChannel::leave`.
    pub fn leave(&self, reason: &str) -> bool {
        self.master.leave(reason)
    }

    /// Where answered requests are kept.
    pub fn recall(&self) -> Option<&Recall> {
        self.recall.as_deref()
    }

    /// See `development`.
    pub fn refusal_page(&self, exchange: &Exchange) -> Option<String> {
        self.master.refusal.page_for(exchange)
    }

    pub fn is_forked_child(&self) -> bool {
        self.forked_child.load(Ordering::Relaxed)
    }

    /// Writes what waits for the logs, as far as they take it in time.
    pub fn finish_logs(&self) {
        if let Some(access) = self.access.as_ref().filter(|_| !self.is_forked_child()) {
            access.finish(LOGS_TIMEOUT);
        }
    }

    /// The application is about to fork.
    pub fn will_fork(&self) {
        if let Some(handle) = self.master.handle() {
            handle.forked();
        }
    }

    /// In a child that the application forked without exec (`multiprocessing`): it never serves, beats or
    /// reports. Its copies of our descriptors become /dev/null, since their owners still hold the numbers. Takes
    /// no locks: other threads of the parent may have held them at the fork.
    pub fn forget_in_child(&self) {
        self.forked_child.store(true, Ordering::Relaxed);
        logger::forget_thread();
        self.master.show_child();
        // Without it the counts of a child would be added to its parent's.
        let forgotten = self.board.forget_in_child();
        if let Some(handle) = self.master.handle() {
            handle.forget_in_child();
        }
        let null = std::fs::File::options().read(true).write(true).open("/dev/null");
        match (forgotten, null) {
            (Ok(()), Ok(null)) => {
                for number in &self.own {
                    // SAFETY: replaces a descriptor of ours; the number stays with its owner.
                    unsafe { libc::dup3(null.as_raw_fd(), *number, libc::O_CLOEXEC) };
                }
            }
            (Err(error), _) | (Ok(()), Err(error)) => {
                log::warn!("child of {self}: cannot let go of the worker's files: {error}")
            }
        }
    }
}

/// Runs a worker to its end. Returns when it is drained, so that the interpreter ends in its usual way; where it
/// never came to serve, it says why and exits.
pub fn live(
    py: Python<'_>,
    boot: &Boot,
    born: Born,
    preloaded: Option<Py<PyAny>>,
    pinned: &Pinned,
    signals: &Signals,
) -> PyResult<()> {
    let Born { spawn, master, logs, scoreboard, queue, listeners, mut own, since } = born;
    let started = (|| -> Result<(), Failure> {
        let broken = |error: PyErr| from_exception(py, ProofStep::Start, "while it was started", &error);
        let (wakeup, wakeup_end) = signals::wakeup_pipe().map_err(|error| os_failure("the signal pipe", &error))?;
        // This end stays open for the rest of the process's life: Python knows the number, and so do forked children.
        let wakeup_end = wakeup_end.into_raw_fd();
        own.push(wakeup_end);
        master.prompt.wake_by(wakeup_end);
        let access = access_log(boot, &spawn, logs).map_err(|error| os_failure("the access log", &error))?;
        let worker = Arc::new(Worker::new(boot, &spawn, Arc::clone(&master), scoreboard, own, access)?);
        signals.act_on(&worker);
        signals::set_wakeup(py, wakeup_end).map_err(broken)?;
        forked_child::watch_forks(&worker).map_err(|error| os_failure("the fork handlers", &error))?;
        let application = match preloaded {
            Some(application) => application.into_bound(py),
            None => startup::import(py, boot, pinned)?,
        };
        // The first app thread would keep all others, and this process would never be ready.
        if boot.threads > 1 && threads::are_greenlets(py).map_err(broken)? {
            let reason = "gevent has patched threading, so app threads cannot run beside each other: set threads = 1";
            return Err(failure(ProofStep::Import, reason, ""));
        }
        let at_exit = hooks::start(py, boot)?;
        let common = Arc::new(common(boot));
        prove(py, boot, &spawn, &worker, &application, &common)?;
        master.probe_with(prober(boot, application.clone().unbind(), &common));
        // Once a generation is enough to see how long they take.
        let level = if spawn.prove && spawn.slot.0 == 0 { log::Level::Info } else { log::Level::Debug };
        probe::warm_up(py, &application, &common, boot, &probe::Told { name: &worker, level });
        if !master.is_open() {
            channel_closed(py);
        }
        let server = make_server(boot, &spawn, &worker, &common, queue, listeners)?;
        serve(py, &worker, server, &application, &common, wakeup, since).map_err(broken)?;
        at_exit.run(py, &worker);
        step_back();
        py.detach(|| {
            worker.finish_logs();
            logger::finish();
        });
        Ok(())
    })();
    match started {
        Ok(()) => Ok(()),
        Err(_) if !master.is_open() => channel_closed(py),
        Err(failure) => {
            master.tell(&FromWorker::Failed(failure));
            exit_now(py, 1)
        }
    }
}

impl Worker {
    fn new(
        boot: &Boot,
        spawn: &Spawn,
        master: Arc<MasterChannel>,
        scoreboard: OwnedFd,
        own: Vec<RawFd>,
        access: Option<Arc<AccessLog>>,
    ) -> Result<Worker, Failure> {
        let board = Scoreboard::open(scoreboard, spawn.cells, boot.threads)
            .map_err(|error| os_failure("the scoreboard", &error))?;
        if spawn.cell >= board.cells() {
            return Err(failure(ProofStep::Start, format!("cell {} of {}", spawn.cell, board.cells()), ""));
        }
        // Mapped for the life of the process: app threads and the server's threads hold references into it.
        let board: &'static Scoreboard = Box::leak(Box::new(board));
        let recall = boot.remember.as_ref().map(|remember| Arc::new(Recall::new(remember)));
        if let Some(recall) = &recall {
            master.recall_from(Arc::clone(recall));
        }
        Ok(Worker {
            generation: spawn.generation,
            slot: spawn.slot,
            pid: std::process::id(),
            master,
            board,
            cell_index: spawn.cell,
            cell: board.cell(spawn.cell),
            answered: AtomicU64::new(0),
            max_requests: spawn.max_requests,
            weigh: spawn.weigh,
            without_files: AtomicBool::new(false),
            forked_child: AtomicBool::new(false),
            own,
            access,
            recall,
        })
    }
}

fn access_log(boot: &Boot, spawn: &Spawn, logs: Logs) -> io::Result<Option<Arc<AccessLog>>> {
    let Some((access, fd)) = boot.access.clone().zip(logs.access()) else { return Ok(None) };
    let origin = Origin { generation: spawn.generation.0, slot: spawn.slot.0, pid: std::process::id() };
    start_with_all_blocked(|| AccessLog::start(fd, access, origin)).map(|access| Some(Arc::new(access)))
}

fn prove(
    py: Python<'_>,
    boot: &Boot,
    spawn: &Spawn,
    worker: &Worker,
    application: &Bound<'_, PyAny>,
    common: &Arc<Common>,
) -> Result<(), Failure> {
    let Some(request) = boot.probe.as_ref().filter(|_| spawn.probe) else { return Ok(()) };
    match probe::run(py, application, Arc::clone(common), request) {
        Ok(()) => Ok(()),
        Err(failure) if spawn.prove => Err(failure),
        // A database outage must not empty the slots.
        Err(failure) => {
            log::warn!("{worker}: {}", failure.reason);
            Ok(())
        }
    }
}

fn common(boot: &Boot) -> Common {
    Common {
        script_name: boot.script_name.clone().into_bytes(),
        response_buffer: boot.http.response_buffer,
        multithread: boot.threads > 1,
        multiprocess: boot.workers > 1,
        trusted: Trusted::new(boot.http.forwarded_allow_ips.clone()),
        believed: Believed::new(&boot.http.forwarded_headers),
        secure_schemes: boot.http.secure_scheme_headers.clone(),
        underscored: boot.http.underscore_headers.clone(),
        request_id_header: boot.http.request_id_header.clone(),
    }
}

/// Sends the probe when the master asks for it.
fn prober(boot: &Boot, application: Py<PyAny>, common: &Arc<Common>) -> Prober {
    let (request, common) = (boot.probe.clone(), Arc::clone(common));
    Box::new(move || {
        let request = request.as_ref()?;
        let run = |py: Python<'_>| probe::run(py, application.bind(py), Arc::clone(&common), request).err();
        Python::try_attach(run).unwrap_or_else(|| Some(failure(ProofStep::Probe, "the worker ends", "")))
    })
}

fn make_server(
    boot: &Boot,
    spawn: &Spawn,
    worker: &Arc<Worker>,
    common: &Arc<Common>,
    queue: Queue,
    listeners: Vec<OwnedFd>,
) -> Result<Server, Failure> {
    let http = &boot.http;
    let temp_dir = tempdir::choose(&http.temp_dirs, http.body_memory_alone, spawn.prove);
    worker.without_files.store(temp_dir.is_none(), Ordering::Relaxed);
    let settings = serve::Settings {
        threads: boot.threads as usize,
        connections: http.connections as usize,
        keepalive_timeout: http.keepalive_timeout,
        header_timeout: http.header_timeout,
        body_timeout: http.body_timeout,
        write_timeout: http.write_timeout,
        proxy_write_timeout: http.proxy_write_timeout,
        is_proxy: serve::IsProxy(trusts(http)),
        request_id_header: http.request_id_header.clone(),
        limit_request_line: http.limit_request_line as usize,
        limit_request_fields: http.limit_request_fields as usize,
        limit_request_field_size: http.limit_request_field_size as usize,
        limit_request_head: http.limit_request_head as usize,
        body_memory: http.body_memory,
        stream_bodies: match &http.stream_bodies {
            StreamBodies::Never => serve::StreamBodies::Never,
            StreamBodies::Fast => serve::StreamBodies::Fast,
            StreamBodies::Under(paths) => serve::StreamBodies::Under(paths.clone()),
        },
        live_bytes_per_s_min: if mutant::is(Mutant::BodiesAreFast) { 0 } else { serve::LIVE_BYTES_PER_S_MIN },
        max_body: http.max_body,
        body_memory_alone: http.body_memory_alone,
        temp_dir,
        temp_limit: http.temp_limit,
        response_buffer: http.response_buffer,
        health_path: http.health_path.clone().map(String::into_bytes),
        queue_limit: boot
            .queue_limit_ms
            .map(|time_ms| serve::QueueLimit { time: Duration::from_millis(time_ms), sheds: boot.sheds }),
        // Who is alone would only give them to itself.
        shared_requests_max: if boot.workers > 1 { (boot.workers * boot.threads) as usize } else { 0 },
    };
    let listeners = spawn.listeners.iter().zip(listeners);
    let proxy_of = |version: Option<ProxyProtocol>| {
        let version = match version? {
            ProxyProtocol::V1 => serve::ProxyVersion::V1,
            ProxyProtocol::V2 => serve::ProxyVersion::V2,
        };
        Some(serve::Proxy { version, trusts: trusts(http) })
    };
    let listeners = listeners
        .map(|(listener, fd)| serve::Listener { id: listener.id.0, fd, proxy: proxy_of(listener.proxy) })
        .collect();
    let refusals = worker.access.clone().map(|log| RefusalRecorder::new(log, Arc::clone(common)));
    let metrics = CellMetrics::new(worker.board, worker.cell_index, &LOCK_WATCH, worker.access.clone());
    let metrics = metrics.with_request_ids(http.request_id_header.clone()).with_refusals(refusals);
    let metrics = Arc::new(metrics.one_of(boot.workers).beside(Arc::clone(&worker.master.beside)));
    let reports: Arc<dyn Reports> = Arc::<MasterChannel>::clone(&worker.master);
    let queue = Box::new(Handoff::new(queue));
    Server::new(settings, listeners, Some(queue), metrics, reports).map_err(|error| os_failure("the server", &error))
}

/// Who may say who the client is, by whatever means, is one list.
fn trusts(http: &Http) -> Arc<dyn Fn(&serve::Peer) -> bool + Send + Sync> {
    let trusted = Trusted::new(http.forwarded_allow_ips.clone());
    Arc::new(move |peer: &serve::Peer| match peer {
        serve::Peer::Inet(address) => trusted.trusts(address.ip()),
        serve::Peer::Unix => trusted.trusts_unix(),
    })
}

/// Starts the app threads, says Ready, and is the first app thread itself until the server is done.
fn serve(
    py: Python<'_>,
    worker: &Arc<Worker>,
    server: Server,
    application: &Bound<'_, PyAny>,
    common: &Arc<Common>,
    wakeup: OwnedFd,
    since: Instant,
) -> PyResult<()> {
    let handle = server.handle();
    let mut lives = Vec::new();
    // The server may start native threads.
    for (number, thread) in (0..).zip(start_with_all_blocked(|| server.start(Some(wakeup)))?) {
        let progress = Progress::new(worker.board.thread(worker.cell_index, number));
        // The main thread is the first.
        let rehearses = (number == 0).then(|| (application.clone().unbind(), Arc::clone(common)));
        let (application, worker) = (application.clone().unbind(), Arc::clone(worker));
        let access = worker.access.clone();
        let gateway = Gateway::new(py, application, Arc::clone(common), Arc::clone(&worker), progress, access, number)?;
        lives.push(AppLife { thread, gateway, worker, turn: Instant::now(), rehearses });
    }
    let mut lives = lives.into_iter();
    let mut main = lives.next();
    let mut others = Vec::new();
    for (number, life) in (1..).zip(lives) {
        others.push(start_thread(py, number, life)?);
    }
    let lock_watch = start_with_all_blocked(|| LOCK_WATCH.start(worker.cell))?;
    worker.master.show("ready");
    // `check --boot` ends the worker that has booted.
    logger::settle();
    worker.master.tell(&FromWorker::Ready {
        private_bytes: if worker.weigh { memory::used().private } else { 0 },
        boot_wall_ms: since.elapsed().as_millis() as u64,
        boot_cpu_ms: memory::cpu_time().as_millis() as u64,
        bodies_in_memory: worker.without_files.load(Ordering::Relaxed),
    });
    worker.master.serve_with(handle);
    if let Some(main) = &mut main {
        main.run(py);
    }
    // Before the server closes the other end.
    signals::set_wakeup(py, -1)?;
    for thread in others {
        // Handlers of signals may raise here; the thread is done, so the next try succeeds.
        while let Err(error) = thread.call_method0(py, "join") {
            log::warn!("{worker}: {} while ending", summary(py, &error));
        }
    }
    let threads = threads::waited_for(py).unwrap_or_else(|error| vec![summary(py, &error)]);
    worker.master.show("drained");
    worker.master.tell(&FromWorker::Drained { threads });
    py.detach(|| LOCK_WATCH.end(lock_watch));
    Ok(())
}

/// From here on this thread only takes the interpreter down, which computes for ten milliseconds and more. In a deploy all
/// old workers do that at once, while others of them still finish and the new ones begin: those come first. On Linux this
/// is the calling thread's alone (setpriority(2), "C library/kernel differences"); threads that are still at work keep
/// their priority.
fn step_back() {
    // SAFETY: sets a number of this thread. That it has the lowest priority already is no failure.
    unsafe { libc::nice(STEP_BACK) };
}

/// A tenth of the processor time of one that competes with it; on an idle processor all of it (sched(7), "The nice value").
const STEP_BACK: libc::c_int = 10;

/// App threads are Python's own threads, with one thread state for life: `threading.local` keeps its values, and
/// with it Django its database connection.
fn start_thread(py: Python<'_>, number: usize, life: AppLife) -> PyResult<Py<PyAny>> {
    let life = Mutex::new(Some(life));
    let target = move |arguments: &Bound<'_, PyTuple>, _: Option<&Bound<'_, PyDict>>| {
        let life = life.lock().ok().and_then(|mut life| life.take());
        if let Some(mut life) = life {
            life.run(arguments.py());
        }
    };
    let arguments = PyDict::new(py);
    arguments.set_item("target", PyCFunction::new_closure(py, None, None, target)?)?;
    arguments.set_item("name", format!("forkmaster-app-{number}"))?;
    // As the main thread is: what it starts inherits the flag.
    arguments.set_item("daemon", false)?;
    let thread = py.import("threading")?.getattr("Thread")?.call((), Some(&arguments))?;
    thread.call_method0("start")?;
    Ok(thread.unbind())
}

/// One app thread.
struct AppLife {
    thread: AppThread,
    gateway: Gateway,
    worker: Arc<Worker>,
    /// When the interpreter's lock is to be given up here, if it was not by then.
    turn: Instant,
    /// What the rehearsal needs, in the thread that has it.
    rehearses: Option<(Py<PyAny>, Arc<Common>)>,
}

impl AppLife {
    /// Serves until the server is done. Looks for the next request with the interpreter's lock, which a fast
    /// application needs again at once; waits without it.
    fn run(&mut self, py: Python<'_>) {
        self.gateway.is_of_this_thread();
        loop {
            while let Some(mut exchange) = self.thread.poll() {
                self.gateway.dispatched(&mut exchange);
                let now = self.serve(py, exchange);
                self.take_turns(py, now);
            }
            let AppLife { thread, gateway, .. } = self;
            let woken = py.detach(|| {
                let mut woken = thread.wait();
                if let Wake::Request(exchange) = &mut woken {
                    gateway.dispatched(exchange);
                }
                woken
            });
            match woken {
                Wake::Request(exchange) => self.turn = self.serve(py, exchange) + TURN,
                Wake::Signal => {
                    self.handle_signals(py);
                    self.rehearse(py);
                }
                Wake::Done => return,
            }
            if self.worker.is_forked_child() {
                exit_now(py, 0);
            }
        }
    }

    fn serve(&mut self, py: Python<'_>, exchange: Exchange) -> Instant {
        let ended = self.gateway.serve(py, exchange);
        if self.worker.is_forked_child() {
            // A request that forked has returned in the child too, with our stack but without our server.
            exit_now(py, 0);
        }
        ended
    }

    /// Answers what the master asks before this worker serves.
    fn rehearse(&self, py: Python<'_>) {
        let Some((application, common)) = &self.rehearses else { return };
        let Some((number, request)) = self.worker.master.prompt.take() else { return };
        let answer = rehearsal::answer(py, application.bind(py), common, number, &request);
        // The child of an application that has forked is nobody's candidate.
        if !self.worker.is_forked_child() {
            self.worker.master.tell(&answer);
        }
    }

    fn take_turns(&mut self, py: Python<'_>, now: Instant) {
        if now >= self.turn {
            // CPython hands the lock over here if another thread has asked for it.
            py.detach(|| ());
            self.turn = now + TURN;
        }
    }

    /// Runs the handlers of signals that came outside a request. As in any program SystemExit and
    /// KeyboardInterrupt end the process; here that is a drain.
    fn handle_signals(&self, py: Python<'_>) {
        let Err(error) = py.check_signals() else { return };
        if error.is_instance_of::<PySystemExit>(py) || error.is_instance_of::<PyKeyboardInterrupt>(py) {
            let reason = format!("{} in a signal handler", summary(py, &error));
            self.worker.leave(&reason);
        } else {
            log::error!("{}: exception in a signal handler\n{}", self.worker, traceback(py, &error));
        }
    }
}

fn os_failure(what: &str, error: &io::Error) -> Failure {
    failure(ProofStep::Start, format!("{what}: {error}"), "")
}
