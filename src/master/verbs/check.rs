//! `check --boot`: a template and one candidate, as a reload would start them, without listeners: the release proves
//! itself, and what it took is told. Unlike the master this may wait: nothing else depends on it.

use std::io;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use forkmaster_wire::channel::{Channel, Received};
use forkmaster_wire::message::{
    Failure, FromTemplate, FromWorker, GenerationId, SlotIndex, Spawn, ToTemplate, WorkerId,
};
use nix::fcntl::OFlag;
use nix::poll::{poll, PollFd, PollFlags, PollTimeout};
use nix::sys::signal::{kill, Signal};
use nix::sys::wait::waitpid;
use nix::unistd::Pid;

use crate::children;
use crate::clock::Clock;
use crate::config::settings::Settings;
use crate::library::Library;
use crate::service::processes::GenerationProcesses;
use crate::service::python;

const EXIT_REFUSED: i32 = 1;

/// Why the release is not proved.
enum Refused {
    Failure(Failure),
    Died(&'static str),
    TooLate(Duration),
    System(io::Error),
}

impl From<io::Error> for Refused {
    fn from(error: io::Error) -> Self {
        Refused::System(error)
    }
}

pub fn run(settings: &Settings) -> i32 {
    let began = Instant::now();
    let mut pids = Vec::new();
    let proved = prove(settings, &mut pids);
    for pid in pids {
        // Not reaped yet, so the pid is still theirs; one that is gone already is no error.
        let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        // Nothing of the check is left behind. A worker whose middle process has not exited yet is not our child
        // (ECHILD); then the middle or init reaps it.
        let _ = waitpid(Pid::from_raw(pid), None);
    }
    match proved {
        Ok(python) => {
            let took = began.elapsed().as_secs_f64();
            println!("the application boots on Python {python}: imported and proved in {took:.2} s");
            return 0;
        }
        Err(Refused::Failure(failure)) => {
            eprintln!("forkmaster: the application does not boot: {}", failure.reason);
            eprint!("{}", failure.details);
        }
        Err(Refused::Died(what)) => eprintln!("forkmaster: the application does not boot: {what} died without a word"),
        Err(Refused::TooLate(limit)) => {
            let limit = limit.as_secs_f64();
            eprintln!("forkmaster: the application does not boot: not ready within boot_timeout ({limit:.1}s)");
        }
        Err(Refused::System(error)) => eprintln!("forkmaster: the check itself failed: {error}"),
    }
    EXIT_REFUSED
}

/// Returns the Python version.
fn prove(settings: &Settings, pids: &mut Vec<i32>) -> Result<String, Refused> {
    children::become_subreaper().map_err(io::Error::from)?;
    let deadline = Instant::now() + settings.server.boot_timeout;
    let library = Library::embed()?;
    let (lifeline, _held) = nix::unistd::pipe2(OFlag::O_CLOEXEC).map_err(io::Error::from)?;
    let processes = GenerationProcesses::new(settings.clone(), Vec::new(), false, Clock::new().now())?;
    let (ours, theirs) = Channel::pair()?;
    ours.send(&ToTemplate::Boot(Box::new(processes.boot(GenerationId(0)))), &[io::stderr().as_fd()])?;
    let app = &settings.app;
    pids.push(python::template(python::Start {
        executable: app.interpreter.executable.clone(),
        directory: app.release.clone(),
        environment: app.environment.clone(),
        identity: settings.server.identity.clone(),
        umask: settings.server.umask,
        channel: &theirs,
        library: library.as_fd(),
        lifeline: lifeline.as_fd(),
    })?);
    drop(theirs);
    let mut python = String::new();
    loop {
        match next(&ours, deadline, settings)? {
            None => return Err(Refused::Died("the interpreter")),
            Some(FromTemplate::Hello(hello)) => python = hello.version,
            Some(FromTemplate::Loaded(_)) => break,
            Some(FromTemplate::Failed(failure)) => return Err(Refused::Failure(failure)),
            Some(FromTemplate::SpawnFailed { .. } | FromTemplate::Pong { .. } | FromTemplate::Broken { .. }) => {}
        }
    }
    let (ours_worker, theirs) = Channel::pair()?;
    let (_stacks, stacks_write) = nix::unistd::pipe2(OFlag::O_CLOEXEC).map_err(io::Error::from)?;
    let spawn = Spawn {
        worker: WorkerId(1),
        slot: SlotIndex(0),
        cell: 0,
        cells: processes.board.cells(),
        listeners: Vec::new(),
        prove: true,
        max_requests: None,
    };
    ours.send(&ToTemplate::Spawn(spawn), &[theirs.as_fd(), processes.board.as_fd(), stacks_write.as_fd()])?;
    drop(theirs);
    loop {
        match next(&ours_worker, deadline, settings)? {
            None => return Err(Refused::Died("the worker")),
            Some(FromWorker::Forked { pid }) => pids.push(pid),
            Some(FromWorker::Ready) => return Ok(python),
            Some(FromWorker::Failed(failure)) => return Err(Refused::Failure(failure)),
            Some(FromWorker::Leaving { .. }) => return Err(Refused::Died("the worker")),
            Some(
                FromWorker::Hello { .. }
                | FromWorker::Serving
                | FromWorker::Draining
                | FromWorker::RequestsServed
                | FromWorker::Stacks { .. },
            ) => {}
        }
    }
}

/// The next message; None at end-of-file.
fn next<M: serde::de::DeserializeOwned>(
    channel: &Channel,
    deadline: Instant,
    settings: &Settings,
) -> Result<Option<M>, Refused> {
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(Refused::TooLate(settings.server.boot_timeout));
        }
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        match poll(&mut [PollFd::new(channel.as_fd(), PollFlags::POLLIN)], timeout) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(error) => return Err(io::Error::from(error).into()),
        }
        match channel.receive(false)? {
            Received::Message(message, _) => return Ok(Some(message)),
            Received::Empty => {}
            Received::Eof => return Ok(None),
        }
    }
}
