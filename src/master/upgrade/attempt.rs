//! The look that a new binary takes at a copy of the state, in a process of its own, before anything is given up: can it be
//! executed, does it read the configuration, does it understand the state. The master goes on meanwhile. What the other side does is `verbs::look`.

use std::ffi::OsString;
use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;

use forkmaster_wire::json;
use forkmaster_wire::limits;
use mio::Token;
use serde::{Deserialize, Serialize};

use super::state::State;
use crate::children::{Proof, Who};
use crate::config::process_context::ProcessContext;
use crate::facts::outcome::Refusal;
use crate::service::birth::{Birth, Failure, Program};
use crate::service::child::Entering;
use crate::service::output::{Output, Pass};
use crate::shared::Shared;
use crate::sources::Source;
use crate::supervisor::worker::Exit;

/// The first argument of a binary that is only to look. An older one refuses it, as it refuses all that it does not know.
pub const LOOK: &str = "--look-at-state";

/// In the environment of a new binary: where the state is.
pub const STATE: &str = "FORKMASTER_STATE_FD";

/// What a new binary says, as its last line.
#[derive(Debug, Serialize, Deserialize)]
pub struct Verdict {
    pub version: String,
    /// None: it accepts the state.
    pub refused: Option<String>,
}

/// A new binary that looks.
pub struct Attempt {
    output: Output,
    token: Token,
    failure: Failure,
}

impl Attempt {
    /// Executes it, and does not wait for the exec.
    pub fn start(state: &State, shared: &mut Shared) -> Result<Attempt, Refusal> {
        let failed = |what: &str, error: io::Error| Refusal::new(format!("{what}: {}", limits::explain(&error)));
        let executable = executable(&shared.context)?;
        let state = state.seal().map_err(|error| failed("the state cannot be written", error))?;
        let mut arguments = std::env::args_os();
        let name = arguments.next().unwrap_or_default();
        let words: Vec<OsString> = [name, LOOK.into()].into_iter().chain(arguments).collect();
        let number = OsString::from(state.as_raw_fd().to_string());
        let environment: Vec<(OsString, OsString)> =
            std::env::vars_os().filter(|(name, _)| name != STATE).chain([(STATE.into(), number)]).collect();
        let environment = environment.iter().map(|(name, value)| (name.as_os_str(), value.as_os_str()));
        let here = Path::new(".");
        let born = Entering::new(None, None, here, &[state.as_raw_fd()])
            .and_then(|entering| Program::new(&words, environment, here, entering))
            .and_then(|program| program.executing(executable)?.without_input()?.with_output())
            .and_then(|(program, output)| Ok((program.start()?, output)));
        let (Birth { pid, failure }, output) = born.map_err(|error| failed("no process", error))?;
        let claimed = shared.children.claim(Who::NewBinary, Proof::OwnChild { pid });
        claimed.map_err(|claim| Refusal::new(format!("the books are wrong: {claim}")))?;
        let output = Output::new(output);
        let token = shared.sources.add(&output, Source::NewBinary).map_err(|error| {
            shared.children.disown(Who::NewBinary);
            failed("its output cannot be watched", error)
        })?;
        Ok(Attempt { output, token, failure })
    }

    pub fn read(&mut self, shared: &mut Shared) {
        match self.output.read(|line| log::debug!("new binary: {line}")) {
            Pass::Empty => {}
            Pass::More => shared.sources.mark_unread(self.token),
            Pass::Ended => {
                shared.sources.remove(self.token, &self.output);
            }
        }
    }

    /// It has been reaped: what it said.
    pub fn ended(self, exit: &Exit, shared: &mut Shared) -> Result<(), Refusal> {
        shared.sources.remove(self.token, &self.output);
        let said = self.output.finish(|line| log::debug!("new binary: {line}"));
        if let Some(error) = self.failure.read() {
            let executable = executable(&shared.context)?;
            return Err(Refusal::new(format!("{} cannot be executed: {error}", executable.display())));
        }
        let last = said.lines().next_back().unwrap_or("");
        let verdict = json::read(last.as_bytes()).ok();
        match (exit, verdict) {
            (Exit::Code(0), Some(Verdict { refused: None, version })) => {
                log::info!("forkmaster {version} accepts the state");
                Ok(())
            }
            (_, Some(Verdict { refused: Some(reason), .. })) => Err(Refusal::new(reason)),
            (exit, _) => Err(Refusal {
                details: said.clone(),
                ..Refusal::new(format!("the new binary does not say that it accepts the state: {exit}"))
            }),
        }
    }

    /// Nobody waits for it any more. Its exit is nobody's.
    pub fn end(self, shared: &mut Shared) {
        shared.sources.remove(self.token, &self.output);
        shared.children.disown(Who::NewBinary);
    }
}

/// What an upgrade executes: the name that this program was called by, so that a link in it leads to what is new.
pub fn executable(context: &ProcessContext) -> Result<&Path, Refusal> {
    let unknown = || Refusal::new("it cannot be told by which name this program was called");
    context.executable.as_deref().ok_or_else(unknown)
}

/// What this process was given by the one before: a state, or why it cannot be read.
pub enum Handed {
    Nothing,
    /// To go on with.
    State(Box<Result<State, String>>),
    /// A copy, which is only to be looked at.
    Copy(Box<Result<State, String>>),
}

impl Handed {
    /// The first thing a process does: nobody else is to see the variable.
    pub fn take() -> Handed {
        let number = std::env::var(STATE).ok().and_then(|number| number.parse().ok());
        std::env::remove_var(STATE);
        let looks = std::env::args_os().nth(1).is_some_and(|argument| argument == LOOK);
        match (number, looks) {
            (None, _) => Handed::Nothing,
            (Some(number), false) => Handed::State(Box::new(State::read(number))),
            (Some(number), true) => Handed::Copy(Box::new(State::read(number))),
        }
    }

    pub fn looks(&self) -> bool {
        matches!(self, Handed::Copy(_))
    }

    /// What this process was started with. The look and the step find the same, and the same as the binary before.
    pub fn context(&self) -> ProcessContext {
        let gathered = ProcessContext::gather();
        match self {
            Handed::Nothing => gathered,
            Handed::State(state) | Handed::Copy(state) => match &**state {
                Ok(state) => state.context(gathered),
                Err(_) => gathered,
            },
        }
    }
}
