//! Starting processes: a template by fork and exec, a worker by telling its template.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use forkmaster_wire::channel::Channel;
use forkmaster_wire::limits;
use forkmaster_wire::message::{GenerationId, SlotIndex, Spawn, ToTemplate, WorkerId};
use nix::fcntl::OFlag;

use super::birth::Birth;
use super::not_started::NotStarted;
use super::processes::{GenerationProcesses, Said, TemplateProcess, WorkerProcess};
use super::{python, Service};
use crate::children::{Proof, Who};
use crate::facts::outcome::Refusal;
use crate::shared::Shared;
use crate::sources::Source;
use crate::supervisor::worker::Exit;

/// Which worker a template is to fork.
pub struct SpawnOrder {
    pub slot: SlotIndex,
    pub worker: WorkerId,
    pub prove: bool,
    pub probe: bool,
    pub weigh: bool,
    pub max_requests: Option<u64>,
}

impl Service {
    /// Executes the release's interpreter. What goes wrong is the reason that the asker hears.
    pub fn start_template(&mut self, generation: GenerationId, shared: &mut Shared) -> Result<(), Refusal> {
        let failure = |reason: String| Refusal::new(reason);
        let failed = |what: &str, error: &io::Error| Refusal::new(format!("{what}: {}", limits::explain(error)));
        let Some(processes) = self.generations.get_mut(&generation) else {
            return Err(failure("forgotten".to_owned()));
        };
        let (ours, theirs) = Channel::pair().map_err(|error| failed("no channel", &error))?;
        // The first message waits in the channel before the interpreter has even started.
        let boot = ToTemplate::Boot(Box::new(processes.boot(generation)));
        ours.prove_senders().map_err(|error| failed("no channel", &error))?;
        let error_log = shared.log.fd().map_err(|error| failed("no log", &error))?;
        ours.send(&boot, &processes.logs(&error_log)).map_err(|error| failed("no boot message", &error))?;
        let app = &processes.settings.app;
        let started = python::template(python::Start {
            executable: app.interpreter.executable.clone(),
            directory: app.release.clone(),
            directory_id: app.release_id,
            environment: app.environment.clone(),
            identity: processes.settings.server.identity.clone(),
            umask: processes.settings.server.umask,
            no_new_privileges: processes.settings.server.no_new_privileges,
            with_stdin: processes.settings.dev,
            channel: &theirs,
            library: shared.library.as_fd(),
            lifeline: shared.lifeline.0.as_fd(),
        });
        let Birth { pid, failure: why } = started.map_err(refusal)?;
        let who = Who::Template(generation);
        if let Err(claim) = shared.children.claim(who, Proof::OwnChild { pid }) {
            return Err(failure(format!("the books are wrong: {claim}")));
        }
        let token = shared.sources.add(&ours, Source::Template(generation)).map_err(|error| {
            shared.children.disown(who);
            failed("its channel cannot be watched", &error)
        })?;
        processes.template =
            Some(TemplateProcess { pid, channel: ours, token, failure: Some(why), said: Said::Nothing });
        Ok(())
    }

    /// It has been reaped: how it ended.
    pub fn template_ended(&mut self, generation: GenerationId, exit: Exit, shared: &mut Shared) -> Exit {
        let processes = self.generations.get(&generation);
        let failure = processes
            .and_then(|processes| python::failure(processes.template.as_ref()?.failure.as_ref()?, &processes.settings));
        let silent = processes.and_then(|processes| ended_in_silence(processes, &exit));
        let exit = self.explain_template_death(generation, exit, shared.clock.now());
        self.forget_template(generation, shared);
        failure.map(refusal).or(silent).map_or(exit, Exit::NeverBorn)
    }

    /// The template of one generation is another's from now on, with what is known of it and that one's logs.
    pub fn move_template(&mut self, from: GenerationId, to: GenerationId, shared: &mut Shared) {
        let Some(processes) = self.generations.get_mut(&from) else { return };
        let (template, interpreter) = (processes.template.take(), processes.interpreter.clone());
        let bodies_in_memory = processes.bodies_in_memory;
        let (Some(mut template), Some(processes)) = (template, self.generations.get_mut(&to)) else { return };
        shared.children.rename(Who::Template(from), Who::Template(to));
        shared.sources.remove(template.token, &template.channel);
        match shared.sources.add(&template.channel, Source::Template(to)) {
            Ok(token) => template.token = token,
            Err(error) => {
                log::error!("template gen={to}: its channel cannot be watched: {error}");
                shared.children.kill(Who::Template(to));
            }
        }
        match shared.log.fd() {
            Ok(error_log) => template.tell_with(&ToTemplate::Logs, &processes.logs(&error_log)),
            Err(error) => log::error!("workers go on with the old log: {error}"),
        }
        (processes.template, processes.interpreter) = (Some(template), interpreter);
        processes.bodies_in_memory = bodies_in_memory;
    }

    /// Has the template fork a worker.
    pub fn spawn(&mut self, generation: GenerationId, order: SpawnOrder, shared: &mut Shared) -> Result<(), Exit> {
        let (id, slot) = (order.worker, order.slot);
        self.try_spawn(generation, order, shared).map_err(|error| {
            if let Some(processes) = self.generations.get_mut(&generation) {
                processes.free_cell_of(id);
            }
            // Its channel is full.
            if error.kind() == io::ErrorKind::WouldBlock {
                return Exit::NoRoom(Refusal::new(
                    "the worker could not be forked: the template does not read what it is told",
                ));
            }
            let refusal = Refusal::new(format!("the worker could not be forked: {}", limits::explain(&error)));
            if limits::is_no_room(&error) {
                return Exit::NoRoom(refusal);
            }
            log::error!("worker gen={generation} slot={slot} cannot be forked: {error}");
            Exit::NeverBorn(refusal)
        })
    }

    /// Leaves it to `spawn` to free the cell. Telling the template is the last thing that can fail.
    fn try_spawn(&mut self, generation: GenerationId, order: SpawnOrder, shared: &mut Shared) -> io::Result<()> {
        let SpawnOrder { slot, worker: id, prove, probe, weigh, max_requests } = order;
        let processes = self.generations.get_mut(&generation).ok_or(io::ErrorKind::NotFound)?;
        let cell = processes.take_cell(id).ok_or_else(|| io::Error::other("the scoreboard has no cell left"))?;
        let template = processes.template.as_ref().ok_or(io::ErrorKind::NotFound)?;
        let (channel, theirs) = Channel::pair()?;
        channel.prove_senders()?;
        let (stacks, stacks_write) = nix::unistd::pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK)?;
        let listeners = shared.listeners.wire(&processes.listeners, &processes.settings.server.proxy_protocol);
        let message = ToTemplate::Spawn(Spawn {
            generation,
            worker: id,
            slot,
            cell,
            cells: processes.board.cells(),
            listeners: listeners.iter().map(|(listener, _)| listener.clone()).collect(),
            prove,
            probe,
            weigh,
            max_requests,
        });
        let mut fds: Vec<BorrowedFd<'_>> = vec![theirs.as_fd(), processes.board.as_fd(), stacks_write.as_fd()];
        fds.extend(shared.queue.ends());
        fds.extend(listeners.iter().map(|(_, fd)| *fd));
        let token = shared.sources.add(&channel, Source::Worker(id))?;
        let told = shared.sources.add(&stacks, Source::Stacks(id)).and_then(|stacks_token| {
            let told = template.channel.send(&message, &fds);
            if told.is_err() {
                shared.sources.remove(stacks_token, &stacks);
            }
            told.map(|()| stacks_token)
        });
        let stacks_token = told.inspect_err(|_| {
            shared.sources.remove(token, &channel);
        })?;
        let listeners = processes.listeners.clone();
        let worker = WorkerProcess {
            generation,
            slot,
            pid: None,
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
            growth: None,
            beside: None,
            listeners,
        };
        self.workers.insert(id, worker);
        Ok(())
    }
}

fn refusal(not_started: NotStarted) -> Refusal {
    Refusal { exit_code: not_started.exit_code(), ..Refusal::new(not_started.to_string()) }
}

/// An interpreter that ends by itself before it runs anything of ours does so in what it runs first.
fn ended_in_silence(processes: &GenerationProcesses, exit: &Exit) -> Option<Refusal> {
    processes.template.as_ref().filter(|template| template.said == Said::Nothing)?;
    python::stillborn(exit, &processes.settings).map(Refusal::new)
}
