//! The template: a generation's first process. It runs the release's interpreter, with `preload` it has imported
//! the application, and it forks the workers. It serves nothing and holds no listener for longer than a fork takes:
//! those travel in `Spawn`.
//!
//! It ends with its channel, with `Stop`, or by KILL; in a fork the same call goes on as a worker.

use std::io;
use std::os::fd::{AsRawFd, IntoRawFd, OwnedFd, RawFd};
use std::time::Instant;

use forkmaster_wire::channel::{Channel, Received};
use forkmaster_wire::limits;
use forkmaster_wire::log_line;
use forkmaster_wire::message::{
    Boot, Failure, FromTemplate, Hello, Loaded, LogLevel, ProofStep, Spawn, ToTemplate, WorkerId, EXIT_CHANNEL_CLOSED,
};
use forkmaster_wire::WIRE_HASH;
use log::LevelFilter;
use pyo3::prelude::*;

use crate::birth::{Birth, Born, Legacy};
use crate::failure::{failure, from_exception};
use crate::fork::{fork, not_forked, reap, Forked, Inbox, Reaped};
use crate::logs::{self, Logs};
use crate::pinned::Pinned;
use crate::signals::{enable_crash_dumps, exit_now, flush, register_stack_dumps, Signals};
use crate::title::Title;
use crate::{logger, sockets, stacks, startup, threads, worker};

struct Template {
    channel: Channel,
    boot: Box<Boot>,
    logs: Logs,
    /// The imported application, with `preload`.
    application: Option<Py<PyAny>>,
    pinned: Pinned,
    signals: Signals,
    frozen: bool,
    /// None: it has become a worker.
    legacy: Option<Legacy>,
    /// Its stacks go to the error log, so they follow it when it is opened again.
    stacks_in_log: Option<RawFd>,
    inbox: Inbox,
}

/// What it has of its release once that is loaded.
struct Entered {
    signals: Signals,
    pinned: Pinned,
    application: Option<Py<PyAny>>,
}

/// The life of a template, and in its forks that of a worker.
pub fn run(py: Python<'_>, channel: Channel, lifeline: OwnedFd) -> PyResult<()> {
    logger::start(LevelFilter::Info);
    let title = Title::find();
    title.set("forkmaster: template starting");
    tell(&channel, &FromTemplate::Hello(hello(py)?));
    let (boot, fds) = match receive(py, &channel)? {
        Some((ToTemplate::Boot(boot), fds)) => (boot, fds),
        Some((other, _)) => {
            let reason = format!("the first message was not Boot but {other:?}");
            refuse(py, &channel, failure(ProofStep::Start, reason, ""));
        }
        None => exit_now(py, 0),
    };
    logger::start(level(boot.log_level));
    log_line::set_form(boot.log_form);
    title.set(&format!("forkmaster: {} template gen={}", boot.name, boot.generation));
    let mut template = match Template::load(py, channel, boot, fds, title, lifeline) {
        Ok(template) => template,
        Err((channel, failure)) => refuse(py, &channel, failure),
    };
    let born = template.serve(py)?;
    // Only a worker comes here. Its copy of the template's channel goes, so that its end is the template's end.
    let Template { channel, boot, application, pinned, mut signals, inbox, .. } = template;
    drop((channel, inbox));
    stacks::allow();
    signals.restore(py)?;
    worker::live(py, &boot, born, application, &pinned, &signals)
}

impl Template {
    /// Imports what `preload` asks for and says that it is ready to fork.
    fn load(
        py: Python<'_>,
        channel: Channel,
        boot: Box<Boot>,
        fds: Vec<OwnedFd>,
        title: Title,
        lifeline: OwnedFd,
    ) -> Result<Template, (Channel, Failure)> {
        let mut fds = fds.into_iter();
        let (error, access) = (fds.next(), boot.access.as_ref().and_then(|_| fds.next()));
        let logs = Logs::new(error, access);
        let (stacks, stacks_in_log) = match fds.next().map_or_else(logger::duplicate, |pipe| Ok((pipe, false))) {
            Ok((stacks, in_log)) => (stacks.into_raw_fd(), in_log),
            Err(error) => return Err((channel, failure(ProofStep::Start, format!("a place for stacks: {error}"), ""))),
        };
        let socket = sockets::identity(channel.as_raw_fd());
        let load = || -> Result<(Entered, Loaded), Failure> {
            let broken = |error: PyErr| from_exception(py, ProofStep::Start, "while it was started", &error);
            // Here and not where it is first needed: `threading` takes the thread that imports it for the main one,
            // and stacks are read by a thread of the control thread's.
            py.import("threading").map_err(broken)?;
            let pinned = startup::enter_release(py, &boot)?;
            enable_crash_dumps(py, logger::fd()).map_err(broken)?;
            // Inherited by the workers: see `Birth::begin`.
            register_stack_dumps(py, stacks).map_err(broken)?;
            let mut signals = Signals::install(py).map_err(broken)?;
            let mut loaded = Loaded { import_ms: 0, threads: Vec::new(), sockets: Vec::new() };
            let mut application = None;
            if boot.preload {
                let (began, before) = (Instant::now(), sockets::open());
                application = Some(startup::import(py, &boot, &pinned)?.unbind());
                loaded.import_ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
                loaded.threads = threads::besides_main(py).map_err(broken)?;
                loaded.sockets = sockets::opened_since(&before);
            }
            signals.mute(py).map_err(broken)?;
            Ok((Entered { signals, pinned, application }, loaded))
        };
        let loading = load();
        if sockets::identity(channel.as_raw_fd()) != socket {
            channel_closed(py);
        }
        match loading {
            Ok((Entered { signals, pinned, application }, loaded)) => {
                tell(&channel, &FromTemplate::Loaded(loaded));
                let legacy = Some(Legacy { title, lifeline, stacks });
                let (stacks_in_log, inbox) = (stacks_in_log.then_some(stacks), Inbox::new());
                Ok(Template {
                    channel,
                    boot,
                    logs,
                    application,
                    pinned,
                    signals,
                    frozen: false,
                    legacy,
                    stacks_in_log,
                    inbox,
                })
            }
            Err(failure) => Err((channel, failure)),
        }
    }

    /// Obeys the master. Returns in a forked worker only.
    fn serve(&mut self, py: Python<'_>) -> PyResult<Born> {
        loop {
            let message = match self.inbox.pop_front() {
                Some(message) => Some(message),
                None => receive(py, &self.channel)?,
            };
            match message {
                Some((ToTemplate::Spawn(spawn), fds)) => {
                    if let Some(born) = self.spawn(py, spawn, fds)? {
                        return Ok(born);
                    }
                }
                Some((ToTemplate::Ping { id }, _)) => tell(&self.channel, &FromTemplate::Pong { id }),
                Some((ToTemplate::Logs, fds)) => self.take_logs(&fds),
                Some((ToTemplate::Boot(_), _)) => log::error!("a template was told to boot twice"),
                // Without the interpreter's own end: what the application registered with `atexit` is for the
                // processes that serve.
                Some((ToTemplate::Stop, _)) | None => exit_now(py, 0),
            }
        }
    }

    fn take_logs(&self, fds: &[OwnedFd]) {
        self.logs.replace(fds);
        if let Some((log, stacks)) = fds.first().zip(self.stacks_in_log) {
            logs::replace(log, stacks);
        }
    }

    /// Forks one worker, which it returns in the fork.
    fn spawn(&mut self, py: Python<'_>, spawn: Spawn, fds: Vec<OwnedFd>) -> PyResult<Option<Born>> {
        let worker = spawn.worker;
        // Where nobody is born it is dropped when the master has been told why: with it the worker's channel ends, and who dies
        // without a word is another case.
        let mut birth = match Birth::new(spawn, fds, self.logs) {
            Ok(birth) => Some(birth),
            Err(reason) => {
                self.spawn_failed(worker, reason, false);
                return Ok(None);
            }
        };
        // Workers find what they import where it lies now.
        self.pinned.follow(py)?;
        // What is buffered would be written by both.
        flush(py);
        if self.boot.preload && !self.frozen {
            // The collector would write into the shared pages of all that was imported. No collection before:
            // freed memory leaves holes that workers fill, and unshare (gc.freeze in the Python manual).
            py.import("gc")?.call_method0("freeze")?;
            self.frozen = true;
        }
        let Template { boot, legacy, channel, inbox, .. } = self;
        let forked = fork(py, || {
            let legacy = legacy.take().expect("a template becomes a worker once, and forks no more then");
            birth.take().expect("this is the fork, which begins once").begin(boot, legacy)
        });
        let (failed, no_room) = match forked {
            Ok(Forked::Worker(born)) => return Ok(Some(born)),
            Ok(Forked::Template(middle)) => match py.detach(|| reap(middle, channel, inbox)) {
                Reaped::Well => return Ok(None),
                Reaped::MustEnd => exit_now(py, 0),
                Reaped::Failed { reason, no_room } => (reason, no_room),
            },
            Err(errno) => {
                let error = io::Error::from(errno);
                (not_forked(&error), limits::is_no_room(&error))
            }
        };
        self.spawn_failed(worker, failed, no_room);
        Ok(None)
    }

    fn spawn_failed(&self, worker: WorkerId, reason: String, no_room: bool) {
        tell(&self.channel, &FromTemplate::SpawnFailed { worker, reason, no_room });
    }
}

/// Waits for a message without the interpreter's lock. None: the master is gone.
fn receive(py: Python<'_>, channel: &Channel) -> PyResult<Option<(ToTemplate, Vec<OwnedFd>)>> {
    loop {
        match py.detach(|| channel.receive_large(true)) {
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
            // A message of a later version, as in a worker.
            Err(error) if error.kind() == io::ErrorKind::Other => {
                log::debug!("a message of the master was not understood, as after an upgrade: {error}");
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

/// The application has closed what is not its own. What can still be told is in the exit status, and on stderr.
pub fn channel_closed(py: Python<'_>) -> ! {
    logger::write_to(libc::STDERR_FILENO);
    log::error!(
        "the application closed the file descriptors of its server while it was imported (os.closerange, \
         os.closefrom?); it may close those that it has opened itself"
    );
    exit_now(py, EXIT_CHANNEL_CLOSED)
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
