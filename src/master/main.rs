//! `forkmaster`: arguments, settings, run, exit code.

mod children;
mod clock;
mod config;
mod doors;
mod facts;
mod library;
mod listeners;
mod logs;
mod master;
mod pidfile;
mod service;
mod shared;
mod signals;
mod sources;
mod supervisor;
mod verbs;

use std::io;

use config::process_context::ProcessContext;
use config::Source;
use logs::LogFile;
use master::Master;
use pidfile::PidFile;
use signals::Signals;
use verbs::command_line::Command;
use verbs::{check, client, command_line};

/// Exit codes besides those of the configuration (78) and of listeners, from sysexits.h.
const EXIT_INTERNAL: i32 = 1;
const EXIT_IN_USE: i32 = 75;
const EXIT_PERMISSION: i32 = 77;

fn main() {
    let context = ProcessContext::gather();
    let command = command_line::parse(std::env::args_os(), &context).unwrap_or_else(|error| error.exit());
    let code = match command {
        Command::Run(source) => run(source, context),
        Command::Check { source, boot } => check_settings(&source, &context, boot),
        Command::ConfigShow(source) => show(&source, &context),
        Command::Status { client, json } => client::status(&client, &context, json),
        Command::Health { client, probe } => client::health(&client, &context, probe),
        Command::Reload { client, waiting } => client::reload(&client, &context, waiting),
        Command::WaitReady { client, timeout } => client::wait_ready(&client, &context, timeout),
        Command::Stop { client, now, waiting } => client::stop(&client, &context, now, waiting),
    };
    std::process::exit(code);
}

fn run(source: Source, context: ProcessContext) -> i32 {
    // First of all: a TERM during the start must not be lost.
    let signals = match Signals::install() {
        Ok(signals) => signals,
        Err(error) => return fail("signal handlers cannot be installed", &error),
    };
    let log = LogFile::start();
    let loaded = match config::read(&source, &context) {
        Ok(loaded) => loaded,
        Err(problems) => {
            eprintln!("forkmaster: {problems}");
            return i32::from(problems.exit_code());
        }
    };
    let settings = &loaded.settings;
    if let Err(error) = log.apply(&settings.log.error, settings.log.level) {
        return fail("[log] error cannot be opened", &error);
    }
    raise_open_files_limit();
    if context.uid == 0 && settings.server.identity.is_none() {
        log::warn!("running as root without [server] user: the application gets all rights of this machine");
    }
    let pidfile = settings.server.pidfile.as_deref().map(PidFile::write).transpose();
    let _pidfile = match pidfile {
        Ok(pidfile) => pidfile,
        Err(error) => return fail("[server] pidfile cannot be written", &error),
    };
    log::info!("forkmaster {} name={} pid={}", env!("CARGO_PKG_VERSION"), settings.name, std::process::id());
    let socket = settings.control.socket.clone();
    let mut master = match Master::new(source, context, log, signals, &socket) {
        Ok(master) => master,
        Err(error) => return fail("the master cannot be set up", &error),
    };
    if let Err(refused) = master.start(loaded) {
        log::error!("{}", refused.reason);
        return i32::from(refused.exit_code);
    }
    let code = master.run();
    log::info!("stopped, exit code {code}");
    code
}

fn check_settings(source: &Source, context: &ProcessContext, boot: bool) -> i32 {
    let loaded = match config::read(source, context) {
        Ok(loaded) => loaded,
        Err(problems) => {
            eprintln!("forkmaster: {problems}");
            return i32::from(problems.exit_code());
        }
    };
    for warning in &loaded.warnings {
        eprintln!("forkmaster: warning: {warning}");
    }
    let place = source.file.as_ref().map_or("the command line", |file| file.shown.as_str());
    println!("{place}: the configuration is good");
    match boot {
        true => check::run(&loaded.settings),
        false => 0,
    }
}

fn show(source: &Source, context: &ProcessContext) -> i32 {
    match config::read(source, context) {
        Ok(loaded) => {
            print!("{}", loaded.show());
            0
        }
        Err(problems) => {
            eprintln!("forkmaster: {problems}");
            i32::from(problems.exit_code())
        }
    }
}

/// A start that failed outside the configuration's own checks: one line and the code for its kind.
fn fail(what: &str, error: &io::Error) -> i32 {
    eprintln!("forkmaster: {what}: {error}");
    match error.kind() {
        io::ErrorKind::AddrInUse => EXIT_IN_USE,
        io::ErrorKind::PermissionDenied => EXIT_PERMISSION,
        _ => EXIT_INTERNAL,
    }
}

/// Workers hold a descriptor a connection; the soft limit of 1024 is for select(2)'s sake (getrlimit(2)), which
/// nothing here uses.
fn raise_open_files_limit() {
    use nix::sys::resource::{getrlimit, setrlimit, Resource};
    if let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) {
        if soft < hard {
            if let Err(error) = setrlimit(Resource::RLIMIT_NOFILE, hard, hard) {
                log::warn!("the limit of open files stays at {soft}: {error}");
            }
        }
    }
}
