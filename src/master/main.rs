//! `forkmaster`: arguments, settings, run, exit code.

mod children;
mod chores;
mod clock;
mod config;
mod doors;
mod exit_code;
mod facts;
mod files;
mod footprint;
mod library;
mod listeners;
mod logs;
mod master;
mod pidfile;
mod progress;
mod saved;
mod service;
mod shared;
mod signals;
mod sources;
mod supervisor;
mod upgrade;
mod verbs;
mod watcher;

use std::io;

use children::Children;
use chores::gauges::Gauges;
use chores::{AtStart, NotDone, NotStarted, CONFIGURATION_WITHIN, OPEN_WITHIN};
use config::process_context::ProcessContext;
use config::settings::Identity;
use config::Source;
use exit_code::ExitCode;
use library::Library;
use logs::{LogFile, Opened};
use master::Master;
use pidfile::PidFile;
use service::open_files;
use signals::Signals;
use upgrade::attempt::Handed;
use upgrade::state::State;
use verbs::command_line::{Command, Recycle};
use verbs::{
    act, check, client, command_line, convert, ctl, dev, events, help, history, init, list, look, show, status,
};

fn main() {
    let handed = Handed::take();
    let (context, looks) = (handed.context(), handed.looks());
    let arguments = std::env::args_os().enumerate().filter(|(at, _)| !(looks && *at == 1));
    let command = command_line::parse(arguments.map(|(_, argument)| argument), &context);
    let command = command.unwrap_or_else(|error| error.exit());
    let code = match command {
        Command::Run(source) if looks => look::look(&source, &context, handed),
        // The supervisor says with which code it ends.
        Command::Run(source) => std::process::exit(run(source, context, handed)),
        Command::Dev(source) => {
            let code = dev::develop(&source, &context, || run(source.clone(), context.clone(), Handed::Nothing));
            std::process::exit(code)
        }
        Command::Check { source, boot } => check::run(&source, &context, boot),
        Command::ConfigShow { source, explain } => show::config(&source, &context, explain),
        Command::ConfigSchema => show::schema(),
        Command::ConfigReference => show::reference(),
        Command::ConfigInit(file) => init::run(&file),
        Command::Convert(order) => convert::run(&order, &context),
        Command::List { json } => list::list(json),
        Command::Status { client, wanted } => status::status(&client, &context, wanted),
        Command::Logs { client, wanted } => self::verbs::logs::logs(&client, &context, wanted),
        Command::Ctl { client } => std::process::exit(ctl::shell(&client, &context)),
        Command::Events { client, json, timeout } => events::events(&client, &context, json, timeout),
        Command::Health { client, probe } => client::health(&client, &context, probe),
        Command::Reload { client, force, canary, waiting } => client::reload(&client, &context, force, canary, waiting),
        Command::Promote { client, waiting } => client::promote(&client, &context, waiting),
        Command::Abandon { client } => act::abandon(&client, &context),
        Command::Rollback { client, to, waiting } => client::rollback(&client, &context, to, waiting),
        Command::ReloadPaused { client, force, command, timeout, answering } => {
            client::reload_paused(&client, &context, force, command, timeout, answering.as_ref())
        }
        Command::History { client, json, all } => history::history(&client, &context, json, all),
        Command::Report { client, generation, json } => history::report(&client, &context, generation, json),
        Command::Pause { client, timeout, answering } => act::pause(&client, &context, timeout, answering.as_ref()),
        Command::Upgrade { client, timeout } => act::upgrade(&client, &context, timeout),
        Command::Resume { client, timeout } => act::resume(&client, &context, timeout),
        Command::WaitDown { client, timeout } => act::wait_down(&client, &context, timeout),
        Command::Scale { client, service: Some(name), to, waiting } => {
            act::scale_service(&client, &context, &name, to, waiting)
        }
        Command::Scale { client, service: None, to, waiting } => act::scale(&client, &context, to, waiting),
        Command::Recycle { client, what: Recycle::Slot(slot), keep, waiting } => {
            act::recycle(&client, &context, slot, keep, waiting)
        }
        Command::Recycle { client, what: Recycle::Service { name, number }, keep: _, waiting } => {
            act::recycle_service(&client, &context, &name, number, waiting)
        }
        Command::ReopenLogs { client, timeout } => act::reopen_logs(&client, &context, timeout),
        Command::Dump { client, slot } => act::dump(&client, &context, slot),
        Command::Completions { shell } => help::completions(shell),
        Command::Man => help::man(),
        Command::WaitReady { client, timeout } => client::wait_ready(&client, &context, timeout),
        Command::Stop { client, now, waiting } => client::stop(&client, &context, now, waiting),
    };
    std::process::exit(code.into());
}

fn run(source: Source, context: ProcessContext, handed: Handed) -> i32 {
    footprint::one_arena();
    // Before anything that can take long: a TERM during the start must not be lost.
    let signals = match Signals::install() {
        Ok(signals) => signals,
        Err(error) => return fail("signal handlers cannot be installed", &error),
    };
    let log = match LogFile::start() {
        Ok(log) => log,
        Err(error) => return fail("the log cannot be started", &error),
    };
    let code = match handed {
        Handed::Nothing => serve(source, context, &log, signals),
        Handed::State(state) | Handed::Copy(state) => go_on(*state, source, context, &log, signals),
    };
    log.finish();
    code
}

fn serve(source: Source, context: ProcessContext, log: &LogFile, mut signals: Signals) -> i32 {
    let (from, here) = (source.clone(), context.clone());
    let read = move || config::read(&from, &here, None);
    let reading = AtStart::begin("reading the configuration", CONFIGURATION_WITHIN, read);
    // Copies two megabytes, while the configuration is read.
    let library = Library::embed();
    let loaded = match reading.wait(&mut signals) {
        Ok(Ok(loaded)) => loaded,
        Ok(Err(problems)) => {
            logs::say(&format!("forkmaster: {problems}"));
            return problems.exit_code().into();
        }
        Err(not_started) => return give_up(not_started),
    };
    let settings = &loaded.settings;
    let (error, access) = logs::names(settings);
    let open = move || logs::open(&error, access.as_ref());
    let opened = match AtStart::begin("opening the logs", OPEN_WITHIN, open).wait(&mut signals) {
        Ok(Ok(mut opened)) => {
            opened.keep();
            opened
        }
        Ok(Err(error)) => {
            logs::say(&format!("forkmaster: {error}"));
            return error.exit_code().into();
        }
        Err(not_started) => return give_up(not_started),
    };
    // They are the first generation's, and there is no other log that a refusal could go back to.
    let Opened { error, access } = opened;
    if let Some(error) = error {
        log.turn_to(error);
    }
    log.set_level(settings.log.level);
    log.set_form(settings.log.form);
    open_files::raise_limit();
    if context.uid == 0 && settings.server.identity.is_none() {
        log::warn!("running as root without [server] user: the application gets all rights of this machine");
    }
    let mut pidfile = None;
    if let Some(path) = settings.server.pidfile.clone() {
        let application = settings.server.identity.as_ref().map(Identity::rights);
        let file = path.clone();
        let write = move || PidFile::write(&file, application.as_ref());
        pidfile = match AtStart::begin("writing [server] pidfile", OPEN_WITHIN, write).wait(&mut signals) {
            Ok(Ok(pidfile)) => Some(pidfile),
            Ok(Err(error)) => return fail(&format!("[server] pidfile {} cannot be written", path.display()), &error),
            Err(not_started) => return give_up(not_started),
        };
    }
    let app = &settings.app;
    let rights = settings.server.identity.as_ref().map(Identity::rights);
    if let Some(gauges) = Gauges::of(&app.environment, &app.release, rights) {
        let remove = move || gauges.remove(None);
        match AtStart::begin("removing live gauges", OPEN_WITHIN, remove).wait(&mut signals) {
            Ok(()) => {}
            Err(NotStarted::Stopped) => return give_up(NotStarted::Stopped),
            Err(NotStarted::NotDone(NotDone(sentence))) => log::warn!("{sentence}"),
        }
    }
    log::info!("forkmaster {} name={} pid={}", env!("CARGO_PKG_VERSION"), settings.name, std::process::id());
    if context.cwd_is_found() {
        let cwd = context.cwd.display();
        log::info!("the current directory is taken for {cwd}, which leads to it: reloads follow that link");
    }
    let watched = settings.dev.then(|| dev::watched(settings, &source));
    let control = settings.control.clone();
    let made = library.and_then(|library| Master::new(source, context, log.clone(), signals, &control, library));
    let mut master = match made {
        Ok(master) => master,
        Err(error) => return fail("the master cannot be set up", &error),
    };
    master.keep_pidfile(pidfile);
    if let Err(error) = master.open_status(&loaded.settings.status.bind) {
        logs::say(&format!("forkmaster: [status] bind: {error}"));
        return error.exit_code().into();
    }
    if let Some(Err(reason)) = loaded.settings.server.notify_fd.map(|number| master.open_notify_fd(number)) {
        logs::say(&format!("forkmaster: [server] notify_fd: {reason}"));
        return ExitCode::Configuration.into();
    }
    if let Err(refused) = master.start(loaded, access) {
        log::error!("{}", refused.reason);
        return refused.exit_code.into();
    }
    let _watching = match watched.map(|watched| watcher::start(&watched)).transpose() {
        Ok(watching) => watching,
        Err(error) => return fail("files cannot be watched", &error),
    };
    let code = master.run();
    log::info!("stopped, exit code {code}");
    master.close();
    code
}

/// Another binary has executed this one, which has accepted its state.
fn go_on(
    state: Result<State, String>,
    source: Source,
    context: ProcessContext,
    log: &LogFile,
    signals: Signals,
) -> i32 {
    let lifeline = state.as_ref().ok().and_then(State::lifeline);
    let state = state.map_err(io::Error::other);
    let taken = state.and_then(|state| Master::take_over(state, source, context, log.clone(), signals));
    let mut master = match taken {
        Ok(master) => {
            drop(lifeline);
            master
        }
        Err(error) => {
            let what = "the state of the master before cannot be taken over";
            log::error!("{what}: {error}");
            if let Some(lifeline) = lifeline {
                master::end_all(&mut Children::default(), &lifeline);
            }
            return fail(what, &error);
        }
    };
    let code = master.run();
    log::info!("stopped, exit code {code}");
    master.close();
    code
}

/// A start that something did not let happen in time.
fn give_up(not_started: NotStarted) -> i32 {
    match not_started {
        NotStarted::Stopped => {
            log::info!("stopped before there was anything to stop, exit code 0");
            ExitCode::Done.into()
        }
        NotStarted::NotDone(NotDone(sentence)) => {
            logs::say(&format!("forkmaster: {sentence}"));
            ExitCode::InUse.into()
        }
    }
}

/// A start that failed outside the configuration's own checks: one line and the code for its kind.
fn fail(what: &str, error: &io::Error) -> i32 {
    logs::say(&format!("forkmaster: {what}: {error}"));
    ExitCode::of(error).into()
}
