//! `config show`, `config schema` and `config reference`. It only prints.

use crate::config::process_context::ProcessContext;
use crate::config::{self, Source};
use crate::exit_code::ExitCode;
use crate::verbs::output;

pub fn config(source: &Source, context: &ProcessContext, explain: bool) -> ExitCode {
    match config::read(source, context, None) {
        Ok(loaded) => {
            for warning in &loaded.warnings {
                output::complain(format_args!("warning: {warning}"));
            }
            output::print(loaded.show(explain));
            ExitCode::Done
        }
        Err(problems) => {
            output::complain(&problems);
            problems.exit_code()
        }
    }
}

pub fn schema() -> ExitCode {
    output::print(config::schema::schema());
    ExitCode::Done
}

pub fn reference() -> ExitCode {
    output::print(config::reference::markdown());
    ExitCode::Done
}
