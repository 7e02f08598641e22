//! A new binary of the master looks at a copy of the state that it is to go on with, and says what it thinks of it. It is no
//! verb of a person's: a master that is to be upgraded starts it (`upgrade::attempt`).

use forkmaster_wire::json;

use super::output;
use crate::config::process_context::ProcessContext;
use crate::config::{self, Source};
use crate::exit_code::ExitCode;
use crate::upgrade::attempt::{Handed, Verdict, STATE};
use crate::upgrade::state::State;

/// The configuration is read, too: where this binary cannot read it the next reload would be refused.
pub fn look(source: &Source, context: &ProcessContext, handed: Handed) -> ExitCode {
    let state = match handed {
        Handed::State(state) | Handed::Copy(state) => *state,
        Handed::Nothing => Err(format!("{STATE} does not say where the state is")),
    };
    let read = |_: State| match config::read(source, context, None) {
        Ok(_) => Ok(()),
        Err(problems) => Err(format!("the configuration: {problems}")),
    };
    let refused = state.and_then(read).err();
    let code = if refused.is_none() { ExitCode::Done } else { ExitCode::Refused };
    let version = env!("CARGO_PKG_VERSION").to_owned();
    output::print(format!("{}\n", json::value(&Verdict { version, refused })));
    code
}
