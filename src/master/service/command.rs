//! The command of a paused reload: a program of the *new* release that runs while nobody serves. It starts, is ended, and
//! says why it failed. Decides nothing.

use mio::Token;

use super::output::{Output, Pass};
use super::program::{self, Given, Start};
use super::Service;
use crate::children::{Proof, Who};
use crate::facts::outcome::Refusal;
use crate::shared::Shared;
use crate::sources::Source;
use crate::supervisor::worker::Exit;
use crate::supervisor::Event;
use forkmaster_wire::limits;
use forkmaster_wire::message::GenerationId;

/// The command of a generation, while it runs.
pub struct CommandProcess {
    output: Output,
    token: Token,
    start: Start,
}

impl Service {
    /// Some: it could not be started.
    pub fn run_command(&mut self, generation: GenerationId, shared: &mut Shared) -> Option<Event> {
        let refusal = self.try_command(generation, shared).err()?;
        let (exit, output) = (Exit::NeverBorn(refusal), String::new());
        Some(Event::CommandEnded { generation, exit, output })
    }

    fn try_command(&mut self, generation: GenerationId, shared: &mut Shared) -> Result<(), Refusal> {
        let forgotten = || failure("its generation is gone".to_owned());
        let processes = self.generations.get_mut(&generation).ok_or_else(forgotten)?;
        let started = program::start(&processes.pause_command, &processes.settings, &Given::default());
        let started = started.map_err(|not_started| failure(not_started.to_string()))?;
        let who = Who::Command(generation);
        let claimed = shared.children.claim(who, Proof::OwnChild { pid: started.pid });
        claimed.map_err(|claim| failure(format!("the books are wrong: {claim}")))?;
        let output = Output::new(started.output);
        let token = shared.sources.add(&output, Source::Command(generation)).map_err(|error| {
            shared.children.disown(who);
            failure(format!("its output cannot be watched: {}", limits::explain(&error)))
        })?;
        processes.command = Some(CommandProcess { output, token, start: started.start });
        log::info!("command gen={generation} pid={} started: {}", started.pid, processes.pause_command.join(" "));
        Ok(())
    }

    pub fn read_command(&mut self, generation: GenerationId, shared: &mut Shared) {
        let command = self.generations.get_mut(&generation).and_then(|processes| processes.command.as_mut());
        let Some(command) = command else { return };
        match command.output.read(|line| log::info!("command gen={generation}: {line}")) {
            Pass::Empty => {}
            Pass::More => shared.sources.mark_unread(command.token),
            // Its exit follows, or it has closed its output.
            Pass::Ended => {
                shared.sources.remove(command.token, &command.output);
            }
        }
    }

    /// To it and all that it has started, which are in a session of its own.
    pub fn end_command(&self, generation: GenerationId, kill: bool, shared: &Shared) {
        let signal = if kill { libc::SIGKILL } else { libc::SIGTERM };
        shared.children.signal_group(Who::Command(generation), signal);
    }

    /// It has been reaped.
    pub fn command_ended(&mut self, generation: GenerationId, exit: Exit, shared: &mut Shared) -> Event {
        let command = self.generations.get_mut(&generation).and_then(|processes| processes.command.take());
        let failed = command.as_ref().and_then(|command| command.start.failure());
        let exit = failed.map_or(exit, |not_started| Exit::NeverBorn(failure(not_started.to_string())));
        let output = command.map_or_else(String::new, |command| {
            shared.sources.remove(command.token, &command.output);
            command.output.finish(|line| log::info!("command gen={generation}: {line}"))
        });
        match exit {
            Exit::Code(0) => log::info!("command gen={generation} ended: {exit}"),
            Exit::Code(_)
            | Exit::Signal { .. }
            | Exit::OutOfMemory(_)
            | Exit::NeverBorn(_)
            | Exit::NoRoom(_)
            | Exit::LostAtBirth => {
                log::error!("command gen={generation} ended: {exit}")
            }
        }
        Event::CommandEnded { generation, exit, output }
    }
}

fn failure(reason: String) -> Refusal {
    Refusal::new(format!("the command could not be run: {reason}"))
}
