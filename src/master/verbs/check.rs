//! `check`: reads the configuration as a start would. With `--boot` it also starts a template and one candidate, as a reload
//! would but without listeners: the release proves itself, and the time that took is told. Unlike the master this may block:
//! nothing else depends on it.

use std::io;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use forkmaster_wire::channel::{Channel, Packet, Received, Sender};
use forkmaster_wire::handoff::Queue;
use forkmaster_wire::limits;
use forkmaster_wire::message::{
    Failure, FromTemplate, FromWorker, GenerationId, SlotIndex, Spawn, ToTemplate, ToWorker, WorkerId,
};
use nix::fcntl::OFlag;
use nix::poll::{poll, PollFd, PollFlags, PollTimeout};

use crate::children::{Children, FalseClaim, Proof, Who};
use crate::clock::Clock;
use crate::config::process_context::ProcessContext;
use crate::config::settings::{Bind, ControlSocket, Identity, Settings};
use crate::config::units::show_size;
use crate::config::{self, Loaded, Source};
use crate::exit_code::ExitCode;
use crate::files;
use crate::library::Library;
use crate::listeners::{self, ListenError};
use crate::service::birth::Birth;
use crate::service::not_started::NotStarted;
use crate::service::open_files::{self, Verdict};
use crate::service::processes::GenerationProcesses;
use crate::service::python;
use crate::supervisor::worker::Exit;
use crate::verbs::output;

/// Killed processes are gone within this, unless the kernel itself hangs.
const ENDS_WITHIN: Duration = Duration::from_secs(5);

/// How long before its deadline a worker that hangs is asked for its stacks.
const STACKS_WITHIN: Duration = Duration::from_secs(1);

const GENERATION: GenerationId = GenerationId(0);
const WORKER: WorkerId = WorkerId(1);

/// Why the release is not proved.
enum Refused {
    Failure(Failure),
    /// What has ended, and how as far as is known.
    Died(String),
    /// With the worker's Python stacks, if it said them.
    TooLate {
        limit: Duration,
        stacks: String,
    },
    System(io::Error),
    NotStarted(NotStarted),
}

impl From<NotStarted> for Refused {
    fn from(not_started: NotStarted) -> Self {
        Refused::NotStarted(not_started)
    }
}

impl From<io::Error> for Refused {
    fn from(error: io::Error) -> Self {
        Refused::System(error)
    }
}

pub fn run(source: &Source, context: &ProcessContext, with_boot: bool) -> ExitCode {
    let loaded = match config::read(source, context, None) {
        Ok(loaded) => loaded,
        Err(problems) => {
            output::complain(&problems);
            return problems.exit_code();
        }
    };
    for warning in &loaded.warnings {
        output::complain(format_args!("warning: {warning}"));
    }
    let missing = missing_directories(&loaded);
    if !missing.is_empty() {
        missing.iter().for_each(output::complain);
        return ExitCode::Configuration;
    }
    // The master raises its own limit as far as it may.
    open_files::raise_limit();
    match open_files::verdict(&loaded.settings, limits::open_files()) {
        Verdict::Enough => {}
        Verdict::InTurns(sentence) | Verdict::TooFew(sentence) => {
            output::complain(format_args!("warning: {sentence} (this shell's limit; a unit has its own)"));
        }
    }
    warn_of_bodies(&loaded.settings);
    let place = source.file.as_ref().map_or("the command line", |file| file.shown.as_str());
    output::print(format_args!("{place}: the configuration is good\n"));
    match with_boot {
        true => boot(&loaded.settings),
        false => ExitCode::Done,
    }
}

/// Sockets that would have no directory to lie in, each with what to write.
fn missing_directories(loaded: &Loaded) -> Vec<String> {
    let settings = &loaded.settings;
    let control = match &settings.control.socket {
        ControlSocket::Path(path) => vec![Bind::Unix(path.clone())],
        ControlSocket::Auto(_) | ControlSocket::Off => Vec::new(),
    };
    let places = [("server", "bind", &settings.server.bind), ("status", "bind", &settings.status.bind)];
    let places = places.into_iter().chain([("control", "socket", &control)]);
    let mut missing = Vec::new();
    for (section, key, binds) in places {
        let written = loaded.effective.iter().find(|setting| setting.section == section && setting.key == key);
        let place = written.map_or_else(String::new, |setting| format!("{}: ", setting.origin));
        for error in binds.iter().filter_map(listeners::missing_directory) {
            let ListenError { address, reason, fix, .. } = error;
            let address = if section == "control" { address.trim_start_matches("unix:") } else { &address };
            missing.push(format!("{place}[{section}] {key} = \"{address}\": {reason}; {fix}"));
        }
    }
    missing
}

/// Where large bodies find no directory: a read-only root, most often.
fn warn_of_bodies(settings: &Settings) {
    let rights = settings.server.identity.as_ref().map(Identity::rights);
    let directories = &settings.http.temp_dirs;
    if directories.iter().any(|directory| files::may_make(directory, rights.as_ref())) {
        return;
    }
    let names: Vec<String> = directories.iter().map(|directory| directory.display().to_string()).collect();
    output::complain(format_args!(
        "warning: no temporary directory is writable ({}): request bodies lie in memory, {} of them together in each worker \
         ([http] body_memory); mount one, in Kubernetes an emptyDir on /tmp, or set [server] temp_dir",
        names.join(", "),
        show_size(&settings.http.body_memory_alone)
    ));
}

fn boot(settings: &Settings) -> ExitCode {
    let began = Instant::now();
    let mut children = match Children::adopt_orphans() {
        Ok(children) => children,
        Err(error) => return tell(Err(error.into()), began),
    };
    let proved = prove(settings, &mut children);
    // Nothing of the check is left behind.
    children.kill_all();
    children.wait_for_all(Instant::now() + ENDS_WITHIN);
    tell(proved, began)
}

/// Tells the outcome and returns the exit code.
fn tell(proved: Result<String, Refused>, began: Instant) -> ExitCode {
    match proved {
        Ok(python) => {
            let took = began.elapsed().as_secs_f64();
            output::print(format_args!(
                "the application boots on Python {python}: imported and proved in {took:.2} s\n"
            ));
            return ExitCode::Done;
        }
        Err(Refused::Failure(failure)) => {
            output::complain(format_args!("the application does not boot: {}", failure.reason));
            output::quote(&failure.details);
        }
        Err(Refused::Died(how)) => output::complain(format_args!("the application does not boot: {how}")),
        Err(Refused::TooLate { limit, stacks }) => {
            let limit = limit.as_secs_f64();
            output::complain(format_args!(
                "the application does not boot: not ready within boot_timeout ({limit:.1}s)"
            ));
            output::quote(&stacks);
        }
        Err(Refused::NotStarted(not_started)) => {
            output::complain(format_args!("the application does not boot: {not_started}"));
        }
        Err(Refused::System(error)) => output::complain(format_args!("the check itself failed: {error}")),
    }
    ExitCode::Refused
}

/// Returns the Python version.
fn prove(settings: &Settings, children: &mut Children) -> Result<String, Refused> {
    let deadline = Instant::now() + settings.server.boot_timeout;
    let library = Library::embed()?;
    let (lifeline, _held) = nix::unistd::pipe2(OFlag::O_CLOEXEC).map_err(io::Error::from)?;
    let processes = GenerationProcesses::new(settings.clone(), Vec::new(), Vec::new(), false, Clock::new().now())?;
    let (ours, theirs) = Channel::pair()?;
    ours.prove_senders()?;
    ours.send(&ToTemplate::Boot(Box::new(processes.boot(GENERATION))), &[io::stderr().as_fd()])?;
    let app = &settings.app;
    let Birth { pid: template, failure } = python::template(python::Start {
        with_stdin: false,
        executable: app.interpreter.executable.clone(),
        directory: app.release.clone(),
        directory_id: app.release_id,
        environment: app.environment.clone(),
        identity: settings.server.identity.clone(),
        umask: settings.server.umask,
        no_new_privileges: settings.server.no_new_privileges,
        channel: &theirs,
        library: library.as_fd(),
        lifeline: lifeline.as_fd(),
    })?;
    children.claim(Who::Template(GENERATION), Proof::OwnChild { pid: template }).map_err(not_believed)?;
    python::wait_for_exec(&failure, settings)?;
    drop(theirs);
    let mut python = String::new();
    let too_late = |stacks| Refused::TooLate { limit: settings.server.boot_timeout, stacks };
    loop {
        let Next::Message(message, _) = next(&ours, deadline)? else { return Err(too_late(String::new())) };
        match message {
            None => {
                let exit = children.wait_for(Who::Template(GENERATION), Instant::now() + ENDS_WITHIN);
                let stillborn = exit.as_ref().filter(|_| python.is_empty());
                let stillborn = stillborn.and_then(|exit| python::stillborn(exit, settings));
                return Err(Refused::Died(stillborn.unwrap_or_else(|| died("the process", exit))));
            }
            Some(FromTemplate::Hello(hello)) => python = hello.version,
            Some(FromTemplate::Loaded(_)) => break,
            Some(FromTemplate::Failed(failure)) => return Err(Refused::Failure(failure)),
            Some(FromTemplate::SpawnFailed { .. } | FromTemplate::Pong { .. }) => {}
        }
    }
    let (ours_worker, theirs) = Channel::pair()?;
    ours_worker.prove_senders()?;
    let (_stacks, stacks_write) = nix::unistd::pipe2(OFlag::O_CLOEXEC).map_err(io::Error::from)?;
    let spawn = Spawn {
        generation: GENERATION,
        worker: WORKER,
        slot: SlotIndex(0),
        cell: 0,
        cells: processes.board.cells(),
        listeners: Vec::new(),
        prove: true,
        probe: true,
        weigh: false,
        max_requests: None,
    };
    let queue = Queue::create()?;
    let [sender, receiver] = queue.ends();
    let fds = [theirs.as_fd(), processes.board.as_fd(), stacks_write.as_fd(), sender, receiver];
    ours.send(&ToTemplate::Spawn(spawn), &fds)?;
    drop(theirs);
    // Early enough for an answer.
    let mut look_at = Some(deadline - STACKS_WITHIN.min(settings.server.boot_timeout / 2));
    let mut stacks = String::new();
    loop {
        let (message, sender) = match next(&ours_worker, look_at.unwrap_or(deadline))? {
            Next::Message(Some(message), sender) => (message, sender),
            Next::Message(None, _) => return Err(worker_died(children)),
            Next::Late if look_at.take().is_some() => {
                ours_worker.send(&ToWorker::Stacks { id: 1 }, &[])?;
                continue;
            }
            Next::Late => return Err(too_late(stacks)),
        };
        match message {
            FromWorker::Hello { .. } => {
                let Some(sender) = sender else { continue };
                let proof = Proof::Sender { sender, session: template };
                children.claim(Who::Worker(WORKER), proof).map_err(not_believed)?;
            }
            FromWorker::Ready { .. } => return Ok(python),
            FromWorker::Failed(failure) => return Err(Refused::Failure(failure)),
            FromWorker::Leaving { .. } => return Err(worker_died(children)),
            FromWorker::Drained { .. } | FromWorker::Serving | FromWorker::Draining | FromWorker::RequestsServed => {}
            FromWorker::Paused | FromWorker::Probed { .. } => {}
            FromWorker::Remembered { .. } | FromWorker::Rehearsed { .. } => {}
            FromWorker::Stacks { text, .. } => stacks = text,
        }
    }
}

fn worker_died(children: &mut Children) -> Refused {
    let exit = children.wait_for(Who::Worker(WORKER), Instant::now() + ENDS_WITHIN);
    Refused::Died(died("the worker", exit))
}

/// In the words of a refused reload.
fn died(what: &str, exit: Option<Exit>) -> String {
    exit.unwrap_or(Exit::LostAtBirth).refusal(&format!("{what} died while it booted")).reason
}

fn not_believed(claim: FalseClaim) -> Refused {
    Refused::System(io::Error::other(claim.to_string()))
}

enum Next<M> {
    /// And who sent it; None at end-of-file.
    Message(Option<M>, Option<Sender>),
    /// Nothing came until the deadline.
    Late,
}

fn next<M: Packet>(channel: &Channel, deadline: Instant) -> Result<Next<M>, Refused> {
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(Next::Late);
        }
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        match poll(&mut [PollFd::new(channel.as_fd(), PollFlags::POLLIN)], timeout) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(error) => return Err(io::Error::from(error).into()),
        }
        match channel.receive_from(false)? {
            (Received::Message(message, _), sender) => return Ok(Next::Message(Some(message), sender)),
            (Received::Empty, _) => {}
            (Received::Eof, _) => return Ok(Next::Message(None, None)),
        }
    }
}
