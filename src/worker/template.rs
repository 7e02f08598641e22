//! The template: a generation's first process. It runs the release's interpreter, with `preload` it has imported
//! the application, and it forks the workers. It serves nothing and holds no listener: those travel in `Spawn`.
//!
//! It ends with its channel, with `Stop`, or by KILL; in a fork the same call goes on as a worker.

use std::io;
use std::os::fd::OwnedFd;
use std::time::Instant;

use forkmaster_wire::channel::{Channel, Received};
use forkmaster_wire::message::{
    Boot, Failure, FromTemplate, Hello, Loaded, LogLevel, ProofStep, Spawn, ToTemplate, WorkerId,
};
use forkmaster_wire::WIRE_HASH;
use log::LevelFilter;
use pyo3::prelude::*;

use crate::failure::{failure, from_exception};
use crate::fork::{fork, Forked};
use crate::logs::Logs;
use crate::signals::{enable_crash_dumps, exit_now, flush, Signals};
use crate::title::Title;
use crate::worker::{self, Birth};
use crate::{logger, startup};

/// Middle processes that hung in a row: one may have been unlucky, two are a broken template.
const HUNG_FORKS_MAX: u32 = 2;

struct Template {
    channel: Channel,
    boot: Box<Boot>,
    logs: Logs,
    /// The imported application, with `preload`.
    application: Option<Py<PyAny>>,
    signals: Signals,
    frozen: bool,
    hung_forks: u32,
}

/// The life of a template, and in its forks that of a worker.
pub fn run(py: Python<'_>, channel: Channel, lifeline: OwnedFd) -> PyResult<()> {
    logger::start(LevelFilter::Info);
    let title = Title::find();
    title.set("forkmaster: template starting");
    tell(&channel, &FromTemplate::Hello(hello(py)?));
    let (boot, logs) = match receive(py, &channel)? {
        Some((ToTemplate::Boot(boot), fds)) => (boot, Logs::new(fds)),
        Some((other, _)) => {
            let reason = format!("the first message was not Boot but {other:?}");
            refuse(py, &channel, failure(ProofStep::Start, reason, ""));
        }
        None => exit_now(py, 0),
    };
    logger::start(level(boot.log_level));
    title.set(&format!("forkmaster: {} template gen={}", boot.name, boot.generation));
    let mut template = match Template::load(py, channel, boot, logs) {
        Ok(template) => template,
        Err((channel, failure)) => refuse(py, &channel, failure),
    };
    let birth = template.serve(py)?;
    // Only a worker comes here. Its copy of the template's channel goes, so that its end is the template's end.
    let Template { channel, boot, application, mut signals, .. } = template;
    drop(channel);
    signals.restore(py)?;
    worker::live(py, &boot, birth, application, &signals, lifeline, title)
}

impl Template {
    /// Imports what `preload` asks for and says that it is ready to fork.
    fn load(py: Python<'_>, channel: Channel, boot: Box<Boot>, logs: Logs) -> Result<Template, (Channel, Failure)> {
        let load = || -> Result<(Signals, Option<Py<PyAny>>, Loaded), Failure> {
            let broken = |error: PyErr| from_exception(py, ProofStep::Start, "while it was started", &error);
            // Here and not where it is first needed: `threading` takes the thread that imports it for the main one,
            // and stacks are read by a thread of the control thread's.
            py.import("threading").map_err(broken)?;
            startup::enter_release(py, &boot)?;
            enable_crash_dumps(py, logger::fd()).map_err(broken)?;
            let mut signals = Signals::install(py).map_err(broken)?;
            let mut loaded = Loaded { import_ms: 0, threads: Vec::new() };
            let mut application = None;
            if boot.preload {
                let began = Instant::now();
                application = Some(startup::import(py, &boot)?.unbind());
                loaded.import_ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
                loaded.threads = thread_names(py).map_err(broken)?;
            }
            signals.mute(py).map_err(broken)?;
            Ok((signals, application, loaded))
        };
        match load() {
            Ok((signals, application, loaded)) => {
                tell(&channel, &FromTemplate::Loaded(loaded));
                Ok(Template { channel, boot, logs, application, signals, frozen: false, hung_forks: 0 })
            }
            Err(failure) => Err((channel, failure)),
        }
    }

    /// Obeys the master. Returns in a forked worker only.
    fn serve(&mut self, py: Python<'_>) -> PyResult<Birth> {
        loop {
            match receive(py, &self.channel)? {
                Some((ToTemplate::Spawn(spawn), fds)) => {
                    if let Some(birth) = self.spawn(py, spawn, fds)? {
                        return Ok(birth);
                    }
                }
                Some((ToTemplate::Ping { id }, _)) => tell(&self.channel, &FromTemplate::Pong { id }),
                Some((ToTemplate::Logs, fds)) => self.logs.replace(fds),
                Some((ToTemplate::Boot(_), _)) => log::error!("a template was told to boot twice"),
                // Without the interpreter's own end: what the application registered with `atexit` is for the
                // processes that serve.
                Some((ToTemplate::Stop, _)) | None => exit_now(py, 0),
            }
        }
    }

    /// Forks one worker; the birth is returned in the fork.
    fn spawn(&mut self, py: Python<'_>, spawn: Spawn, fds: Vec<OwnedFd>) -> PyResult<Option<Birth>> {
        let worker = spawn.worker;
        let birth = match Birth::new(spawn, fds, self.logs) {
            Ok(birth) => birth,
            Err(reason) => {
                self.spawn_failed(worker, reason);
                return Ok(None);
            }
        };
        // What is buffered would be written by both.
        flush(py);
        if self.boot.preload && !self.frozen {
            // The collector would write into the shared pages of all that was imported. No collection before:
            // freed memory leaves holes that workers fill, and unshare (gc.freeze in the Python manual).
            py.import("gc")?.call_method0("freeze")?;
            self.frozen = true;
        }
        match fork(py, birth.channel()) {
            Ok(Forked::Worker) => Ok(Some(birth)),
            Ok(Forked::Template) => {
                self.hung_forks = 0;
                Ok(None)
            }
            Err(error) => {
                self.hung_forks = if error.hung { self.hung_forks + 1 } else { 0 };
                let broken = (self.hung_forks >= HUNG_FORKS_MAX).then(|| error.reason.clone());
                self.spawn_failed(worker, error.reason);
                if let Some(reason) = broken {
                    tell(&self.channel, &FromTemplate::Broken { reason });
                }
                Ok(None)
            }
        }
    }

    fn spawn_failed(&self, worker: WorkerId, reason: String) {
        tell(&self.channel, &FromTemplate::SpawnFailed { worker, reason });
    }
}

/// Waits for a message without the interpreter's lock. None: the master is gone.
fn receive(py: Python<'_>, channel: &Channel) -> PyResult<Option<(ToTemplate, Vec<OwnedFd>)>> {
    loop {
        match py.detach(|| channel.receive(true)) {
            Ok(Received::Message(message, fds)) => return Ok(Some((message, fds))),
            Ok(Received::Eof) => return Ok(None),
            // Only a receive that does not wait is empty.
            Ok(Received::Empty) => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {
                // Handlers that the application installed for other signals than ours. What they raise would end
                // a program; a template is not theirs to end.
                if let Err(error) = py.check_signals() {
                    log::error!("a signal handler raised in the template: {}", crate::failure::summary(py, &error));
                }
            }
            Err(error) if error.kind() == io::ErrorKind::Other => {
                log::error!("a message of the master was not understood: {error}");
            }
            Err(error) => return Err(error.into()),
        }
    }
}

/// Sends without waiting. A master that is gone is noticed at the next receive.
fn tell(channel: &Channel, message: &FromTemplate) {
    match channel.send(message, &[]) {
        Ok(()) => {}
        Err(error) if matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset) => {}
        Err(error) => log::error!("the master cannot be told {message:?}: {error}"),
    }
}

fn refuse(py: Python<'_>, channel: &Channel, failure: Failure) -> ! {
    tell(channel, &FromTemplate::Failed(failure));
    exit_now(py, 1)
}

fn hello(py: Python<'_>) -> PyResult<Hello> {
    let sys = py.import("sys")?;
    let version: String = sys.getattr("version")?.extract()?;
    Ok(Hello {
        wire_hash: WIRE_HASH,
        executable: sys.getattr("executable")?.extract()?,
        prefix: sys.getattr("prefix")?.extract()?,
        version: version.split_whitespace().next().unwrap_or_default().to_owned(),
    })
}

/// Threads do not survive a fork: those that the import started are missing in every worker.
fn thread_names(py: Python<'_>) -> PyResult<Vec<String>> {
    let threading = py.import("threading")?;
    let main = threading.call_method0("main_thread")?;
    let mut names = Vec::new();
    for thread in threading.call_method0("enumerate")?.try_iter()? {
        let thread = thread?;
        if !thread.is(&main) {
            names.push(thread.getattr("name")?.str()?.to_string_lossy().into_owned());
        }
    }
    Ok(names)
}

fn level(level: LogLevel) -> LevelFilter {
    match level {
        LogLevel::Error => LevelFilter::Error,
        LogLevel::Warn => LevelFilter::Warn,
        LogLevel::Info => LevelFilter::Info,
        LogLevel::Debug => LevelFilter::Debug,
        LogLevel::Trace => LevelFilter::Trace,
    }
}
