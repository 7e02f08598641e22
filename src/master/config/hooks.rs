//! `[hooks]`: functions of the release, which only Python can find, and commands, which are looked for here: a name that is
//! wrong should not wait for the day on which it is needed. Nothing is run.

use std::ffi::{OsStr, OsString};
use std::path::Path;

use forkmaster_wire::message::Application;

use super::callable::{parse_application, show_application};
use super::file::{quoted, Value};
use super::interpreter;
use super::process_context::absolute;
use super::resolver::Resolver;
use super::settings::{App, Commands, Hooks};
use super::values::string;

impl Resolver<'_> {
    pub fn hooks(&mut self, app: &App) -> Hooks {
        Hooks {
            worker_start: self.function("worker_start"),
            worker_exit: self.function("worker_exit"),
            commands: Commands {
                on_ready: self.command("on_ready", app),
                on_reload: self.command("on_reload", app),
                on_exit: self.command("on_exit", app),
                timeout: self.get("hooks", "command_timeout"),
            },
        }
    }

    fn function(&mut self, key: &'static str) -> Option<Application> {
        self.optional("hooks", key, parse_function, |function| quoted(&show_application(function)))
    }

    fn command(&mut self, key: &'static str, app: &App) -> Vec<String> {
        let command = self.list("hooks", key, |word| Ok(word.to_owned()), |word: &String| quoted(word));
        if let Some(reason) = command.first().and_then(|program| wrong(program, &app.release, &app.environment)) {
            self.refuse(("hooks", key), &reason);
        }
        command
    }
}

fn parse_function(value: &Value) -> Result<Application, String> {
    let text = string(value)?;
    let function = parse_application(text)?;
    if !text.contains(':') {
        return Err(format!("which function? Write \"{text}:start\""));
    }
    match function.call {
        None => Ok(function),
        Some(_) => Err(format!("it is called by the worker; write \"{}\"", text.split('(').next().unwrap_or_default())),
    }
}

/// Why a program cannot be run.
fn wrong(program: &str, release: &Path, environment: &[(OsString, OsString)]) -> Option<String> {
    if program.contains('/') {
        return interpreter::check_executable(&absolute(release, Path::new(program))).err();
    }
    let path = environment.iter().find(|(name, _)| name == "PATH").map(|(_, path)| path.as_os_str());
    let path = path.unwrap_or(OsStr::new(""));
    if program.trim().is_empty() {
        return Some("a command is missing; write [\"/usr/local/bin/announce\", \"shop\"]".to_owned());
    }
    let words: Vec<String> = program.split_whitespace().map(quoted).collect();
    match interpreter::find_on_path(program, path) {
        Some(_) => None,
        None if words.len() > 1 => Some(format!("no shell takes it apart; write [{}]", words.join(", "))),
        None => Some(format!("there is no {program} on PATH ({})", path.to_string_lossy())),
    }
}
