//! `config init`: writes a commented configuration for the application that lies beside it. It never changes a file that
//! is there.

use std::fs::File;
use std::io::{self, Write};
use std::path::Path;

use crate::config::{discovery, starter, ConfigFile};
use crate::exit_code::ExitCode;
use crate::verbs::output;

pub fn run(file: &ConfigFile) -> ExitCode {
    let found = file.path.parent().and_then(discovery::find);
    match write(&file.path, &starter::text(found.as_ref())) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            output::complain(format_args!("{}: it is there already, and was left alone", file.shown));
            return ExitCode::Refused;
        }
        Err(error) => {
            output::complain(format_args!("{} cannot be written: {error}", file.shown));
            return ExitCode::of(&error);
        }
    }
    match found {
        Some(found) => output::print(format_args!(
            "{}: written for {}, {}; now `forkmaster -c {}` serves it\n",
            file.shown, found.module, found.how, file.shown
        )),
        None => output::print(format_args!(
            "{}: written; no application was found beside it, so write its name as `module`\n",
            file.shown
        )),
    }
    ExitCode::Done
}

fn write(path: &Path, text: &str) -> io::Result<()> {
    let mut file = File::options().write(true).create_new(true).open(path)?;
    file.write_all(text.as_bytes())
}
