//! The command line: `forkmaster [run] [MODULE]` and the verbs.
//!
//! A first word that is the name of a verb is the verb; any other is the application's module, so that
//! `forkmaster shop.wsgi` serves. A module that is called like a verb is served with `forkmaster run status`. What is
//! neither a verb nor likely a module is for `words`.

mod amounts;
mod answering;
mod place;

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::error::ErrorKind;
use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;
use forkmaster_wire::message::{GenerationId, SlotIndex};

use amounts::{parse_number, parse_recycle, parse_scale};
pub use amounts::{Recycle, Scale};
pub use answering::Answering;
use answering::AnsweringOptions;
use place::Place;

use crate::config::process_context::ProcessContext;
use crate::config::settings::Bind;
use crate::config::units::parse_duration;
use crate::config::{self, ConfigFile, Source};
use crate::exit_code;
use crate::supervisor::upgrade::QUIET_WITHIN;
use crate::verbs::convert;
use crate::verbs::logs;
use crate::verbs::status::Wanted;
use crate::verbs::words::{self, error};

/// Read where neither `-c` nor a module says otherwise.
const FILE_DEFAULT: &str = "app.toml";

/// A migration that takes longer is better done without a pause: clients and proxies give up after a minute (nginx:
/// `proxy_read_timeout`).
const RELOAD_PAUSE: Duration = Duration::from_secs(60);

/// As long as running requests may take at a stop (`graceful_timeout`), and some more.
const PAUSE: Duration = Duration::from_secs(30);

/// What to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    Run(Source),
    Dev(Source),
    Check { source: Source, boot: bool },
    ConfigShow { source: Source, explain: bool },
    ConfigSchema,
    ConfigReference,
    ConfigInit(ConfigFile),
    Convert(convert::Order),
    Status { client: Client, wanted: Wanted },
    Events { client: Client, json: bool, timeout: Option<Duration> },
    Logs { client: Client, wanted: logs::Wanted },
    Ctl { client: Client },
    List { json: bool },
    Health { client: Client, probe: HealthProbe },
    Reload { client: Client, force: bool, canary: Option<Canary>, waiting: Waiting },
    ReloadPaused { client: Client, force: bool, command: Vec<String>, timeout: Duration, answering: Option<Answering> },
    Promote { client: Client, waiting: Waiting },
    Abandon { client: Client },
    Rollback { client: Client, to: Option<GenerationId>, waiting: Waiting },
    Pause { client: Client, timeout: Duration, answering: Option<Answering> },
    Resume { client: Client, timeout: Option<Duration> },
    Upgrade { client: Client, timeout: Duration },
    History { client: Client, json: bool, all: bool },
    Report { client: Client, generation: Option<GenerationId>, json: bool },
    WaitReady { client: Client, timeout: Option<Duration> },
    WaitDown { client: Client, timeout: Option<Duration> },
    Stop { client: Client, now: bool, waiting: Waiting },
    Scale { client: Client, service: Option<String>, to: Scale, waiting: Waiting },
    Recycle { client: Client, what: Recycle, keep: Option<Duration>, waiting: Waiting },
    ReopenLogs { client: Client, timeout: Option<Duration> },
    Dump { client: Client, slot: Option<SlotIndex> },
    Completions { shell: Shell },
    Man,
}

/// `--canary`: so many workers, 0 for none, and for how long where the settings do not say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Canary {
    pub workers: u32,
    pub hold: Option<Duration>,
}

/// What a container's probe asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HealthProbe {
    /// The master answers.
    Live,
    /// A worker serves.
    Ready,
}

/// How a client finds its master.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Client {
    /// `--socket`.
    pub socket: Option<PathBuf>,
    /// Names the socket where `--socket` does not.
    pub source: Source,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Waiting {
    /// `--no-wait`: only ask.
    No,
    /// Until it is done, at most so long; None: as long as the master's own deadlines last.
    Until(Option<Duration>),
}

/// Reads the arguments. An error knows its text, its stream and its exit code (2; 0 for `--help` and `--version`):
/// `error.exit()`.
pub fn parse(
    arguments: impl IntoIterator<Item = impl Into<OsString> + Clone>,
    context: &ProcessContext,
) -> Result<Command, clap::Error> {
    let arguments: Vec<OsString> = arguments.into_iter().map(Into::into).collect();
    words::check_timeout(&arguments)?;
    let line = match OptionsAlone::parse(&arguments) {
        Some(line) => line,
        None => Line::parse_any(arguments)?,
    };
    let place = Place { config: line.common.config, socket: line.common.socket, context };
    let Some(verb) = line.verb else {
        if line.test {
            place.client_options_unused()?;
            return Ok(Command::Check { source: place.source(line.run)?, boot: false });
        }
        if line.run.module.is_some() {
            words::check_module_or_verb(line.run.module.as_deref().unwrap_or_default())?;
        }
        place.client_options_unused()?;
        return place.source(line.run).map(Command::Run);
    };
    if line.run != RunOptions::default() || line.test {
        return Err(error(ErrorKind::ArgumentConflict, "options of the application go after the verb".to_owned()));
    }
    match verb {
        Verb::Run(options) => {
            place.client_options_unused()?;
            place.source(options).map(Command::Run)
        }
        Verb::Dev(options) => {
            place.client_options_unused()?;
            let mut source = place.source(options)?;
            source.overrides.dev = true;
            Ok(Command::Dev(source))
        }
        Verb::Check { boot, run } => {
            place.client_options_unused()?;
            Ok(Command::Check { source: place.source(run)?, boot })
        }
        Verb::Config { verb: ConfigVerb::Reference } => Ok(Command::ConfigReference),
        Verb::Config { verb: ConfigVerb::Init } => {
            place.client_options_unused()?;
            let path = place.config.clone().unwrap_or_else(|| PathBuf::from(FILE_DEFAULT));
            Ok(Command::ConfigInit(place.file(&path)))
        }
        Verb::Config { verb: ConfigVerb::Schema } => Ok(Command::ConfigSchema),
        Verb::Config { verb: ConfigVerb::Show { explain, options } } => {
            place.client_options_unused()?;
            Ok(Command::ConfigShow { source: place.source(*options)?, explain })
        }
        Verb::Convert { file, python, yes, flags } => {
            place.client_options_unused()?;
            let to = place.config.clone().unwrap_or_else(|| PathBuf::from(FILE_DEFAULT));
            let (from, to) = (file.map(|path| place.file(&path)), place.file(&to));
            let python = python.map(|path| place.context.absolute(&path));
            Ok(Command::Convert(convert::Order { from, to, flags, python, yes }))
        }
        Verb::Status { json, requests, watch, timeout } => {
            let watch = watch.then_some(timeout);
            Ok(Command::Status { client: place.client()?, wanted: Wanted { json, requests, watch } })
        }
        Verb::Logs { places, lines, no_follow, timeout } => {
            let follow = (!no_follow).then_some(timeout);
            Ok(Command::Logs { client: place.client()?, wanted: logs::Wanted { places, lines, follow } })
        }
        Verb::Ctl => Ok(Command::Ctl { client: place.client()? }),
        Verb::Events { json, timeout } => Ok(Command::Events { client: place.client()?, json, timeout }),
        Verb::List { json } => Ok(Command::List { json }),
        Verb::Health { live, ready: _ } => {
            let probe = if live { HealthProbe::Live } else { HealthProbe::Ready };
            Ok(Command::Health { client: place.client()?, probe })
        }
        Verb::Reload { force, pause: true, answering, command, waiting, .. } => {
            let timeout = waiting.timeout.unwrap_or(RELOAD_PAUSE);
            let answering = answering.given(context)?;
            Ok(Command::ReloadPaused { client: place.client()?, force, command, timeout, answering })
        }
        Verb::Reload { force, pause: false, answering, command: _, canary, hold, waiting } => {
            if answering.given(context)?.is_some() {
                let text = "--max and --maintenance are for a pause: `reload --pause`".to_owned();
                return Err(error(ErrorKind::MissingRequiredArgument, text));
            }
            let canary = canary.map(|workers| Canary { workers, hold });
            Ok(Command::Reload { client: place.client()?, force, canary, waiting: waiting.waiting() })
        }
        Verb::Promote { waiting } => Ok(Command::Promote { client: place.client()?, waiting: waiting.waiting() }),
        Verb::Abandon => Ok(Command::Abandon { client: place.client()? }),
        Verb::Rollback { to, waiting } => {
            Ok(Command::Rollback { client: place.client()?, to: to.map(GenerationId), waiting: waiting.waiting() })
        }
        Verb::History { json, all } => Ok(Command::History { client: place.client()?, json, all }),
        Verb::Report { generation, json } => {
            Ok(Command::Report { client: place.client()?, generation: generation.map(GenerationId), json })
        }
        Verb::Pause { timeout, answering } => {
            let (timeout, answering) = (timeout.unwrap_or(PAUSE), answering.given(context)?);
            Ok(Command::Pause { client: place.client()?, timeout, answering })
        }
        Verb::Upgrade { timeout } => {
            Ok(Command::Upgrade { client: place.client()?, timeout: timeout.unwrap_or(QUIET_WITHIN) })
        }
        Verb::Resume { timeout } => Ok(Command::Resume { client: place.client()?, timeout }),
        Verb::Wait { state: State::Ready, timeout } => Ok(Command::WaitReady { client: place.client()?, timeout }),
        Verb::Wait { state: State::Down, timeout } => Ok(Command::WaitDown { client: place.client()?, timeout }),
        Verb::Scale { service, to, waiting } => {
            Ok(Command::Scale { client: place.client()?, service, to, waiting: waiting.waiting() })
        }
        Verb::Recycle { what: Recycle::Service { .. }, keep: Some(_), .. } => {
            let text = "--keep is for a worker: write the number of its slot";
            Err(error(ErrorKind::ArgumentConflict, text.to_owned()))
        }
        Verb::Recycle { what, keep, waiting } => {
            Ok(Command::Recycle { client: place.client()?, what, keep, waiting: waiting.waiting() })
        }
        Verb::ReopenLogs { timeout } => Ok(Command::ReopenLogs { client: place.client()?, timeout }),
        Verb::Dump { slot } => Ok(Command::Dump { client: place.client()?, slot: slot.map(SlotIndex) }),
        Verb::Completions { shell } => Ok(Command::Completions { shell }),
        Verb::Man => Ok(Command::Man),
        Verb::Stop { now, waiting } => Ok(Command::Stop { client: place.client()?, now, waiting: waiting.waiting() }),
    }
}

/// Serves Python WSGI applications, and deploys on SIGHUP.
///
/// `forkmaster -c app.toml` serves what the file says, `forkmaster shop.wsgi` a module of the current directory,
/// `forkmaster` what ./app.toml says.
#[derive(Parser, Debug)]
#[command(name = "forkmaster", version, max_term_width = 100, subcommand_help_heading = "Verbs")]
#[command(override_usage = "forkmaster [OPTIONS] [MODULE]\n       forkmaster [OPTIONS] VERB")]
struct Line {
    #[command(flatten)]
    common: Common,
    #[command(flatten)]
    run: RunOptions,
    /// Check the configuration, as the verb `check` does
    #[arg(short = 't', long = "test")]
    test: bool,
    #[command(subcommand)]
    verb: Option<Verb>,
}

impl Line {
    fn parse_any(arguments: Vec<OsString>) -> Result<Line, clap::Error> {
        let converts = arguments.get(1).is_some_and(|word| word == "convert");
        let matches =
            definition().try_get_matches_from(arguments).map_err(|failed| words::known_elsewhere(failed, converts))?;
        Line::from_arg_matches(&matches)
    }
}

/// A line without a verb and a module, as most masters are started. To define all verbs takes a millisecond, which is part
/// of the time to the first answer.
#[derive(Parser, Debug)]
struct OptionsAlone {
    #[command(flatten)]
    common: Common,
    #[command(flatten)]
    run: RunOptions,
}

impl OptionsAlone {
    /// None: there is more in it, or it is wrong, which the whole definition tells better.
    fn parse(arguments: &[OsString]) -> Option<Line> {
        let OptionsAlone { common, run } = OptionsAlone::try_parse_from(arguments).ok()?;
        run.module.is_none().then_some(Line { common, run, test: false, verb: None })
    }
}

#[derive(Args, Debug)]
struct Common {
    /// Configuration file [default: ./app.toml]
    #[arg(short, long, value_name = "FILE", global = true)]
    config: Option<PathBuf>,
    /// Control socket of the master to talk to [default: as in the configuration]
    #[arg(long, value_name = "PATH", global = true)]
    socket: Option<String>,
}

/// Settings of the command line; they stand above all others.
#[derive(Args, Debug, Default, PartialEq, Eq)]
struct RunOptions {
    /// The application: `shop.wsgi`, `shop.wsgi:app`, `shop:create_app('prod')`
    #[arg(value_name = "MODULE")]
    module: Option<String>,
    /// Address to listen on: HOST:PORT, [v6]:PORT, unix:PATH or fd://N; may be repeated
    #[arg(short, long, value_name = "ADDRESS", value_parser = parse_bind)]
    bind: Vec<String>,
    /// Worker processes: a number, or `auto` for one per CPU
    #[arg(short, long, value_name = "N", value_parser = config::parse_workers)]
    workers: Option<String>,
    /// Threads of each worker that run the application
    #[arg(long, value_name = "N", value_parser = config::parse_count)]
    threads: Option<String>,
    /// Descriptor on which a supervisor waits for a newline: the first worker serves
    #[arg(long, value_name = "N", value_parser = config::parse_descriptor)]
    notify_fd: Option<String>,
    /// Import the application once, before workers are forked
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true", value_parser = ["true", "false"])]
    preload: Option<String>,
    /// Directory of the application
    #[arg(long, value_name = "DIR")]
    release: Option<String>,
    /// Virtual environment that runs it
    #[arg(long, value_name = "DIR", conflicts_with = "python")]
    venv: Option<String>,
    /// Interpreter that runs it
    #[arg(long, value_name = "FILE")]
    python: Option<String>,
    /// Name of this instance, for its control socket and process titles
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// How much is logged
    #[arg(long, value_name = "LEVEL", value_parser = ["error", "warn", "info", "debug", "trace"])]
    log_level: Option<String>,
}

#[derive(Subcommand, Debug)]
enum Verb {
    /// Serve; the default
    Run(RunOptions),
    /// Serve while you work at the application: a saved file is a reload
    ///
    /// One worker, the access log on the terminal, no request timeout, and `breakpoint()` works.
    Dev(RunOptions),
    /// Check the configuration without serving; exit 0 if it is good, 78 if not
    #[command(aliases = ["validate", "configtest"])]
    Check {
        /// Import the application as well, as a worker would, and say how long it took
        #[arg(long)]
        boot: bool,
        #[command(flatten)]
        run: RunOptions,
    },
    /// Look at the configuration
    Config {
        #[command(subcommand)]
        verb: ConfigVerb,
    },
    /// Make a configuration of gunicorn.conf.py, of Gunicorn's flags or of uwsgi.ini: ./app.toml, or the file of -c
    Convert {
        /// What to convert; a gunicorn.conf.py is executed
        #[arg(value_name = "FILE")]
        file: Option<PathBuf>,
        /// The Python that executes it [default: as for a release in its directory]
        #[arg(long, value_name = "PATH")]
        python: Option<PathBuf>,
        /// Execute it also as root
        #[arg(long)]
        yes: bool,
        /// Gunicorn's command line, as in `-- -w 4 shop.wsgi:app`
        #[arg(last = true, value_name = "FLAGS")]
        flags: Vec<String>,
    },
    /// What the master and its workers are doing; exit 0 when a worker serves, 1 when none does
    Status {
        /// As JSON
        #[arg(long)]
        json: bool,
        /// Only the requests that run now, in which worker and for whom, the oldest first
        #[arg(long, conflicts_with = "json")]
        requests: bool,
        /// Again each second, until the master ends
        #[arg(long)]
        watch: bool,
        /// Watch for so long, as in 30s
        #[arg(long, value_name = "DURATION", value_parser = parse_duration, requires = "watch")]
        timeout: Option<Duration>,
    },
    /// The last lines of the log files, and what comes
    Logs {
        /// Only say where they are
        #[arg(long)]
        places: bool,
        /// So many of the last lines
        #[arg(short = 'n', long, value_name = "N", default_value_t = 10, value_parser = parse_number)]
        lines: u32,
        /// Do not wait for more
        #[arg(long)]
        no_follow: bool,
        /// For so long, as in 30s
        #[arg(long, value_name = "DURATION", value_parser = parse_duration, conflicts_with = "no_follow")]
        timeout: Option<Duration>,
    },
    /// A shell over these verbs: Tab completes, `stop` switches the workers off, `start` on again, `quit` leaves
    Ctl,
    /// What happens, as it happens, until the master ends
    Events {
        /// An object a line
        #[arg(long)]
        json: bool,
        /// For so long, as in 30s
        #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
        timeout: Option<Duration>,
    },
    /// The masters of this machine: name, pid, uid, socket, and the state of your own
    #[command(visible_alias = "ps")]
    List {
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// For container probes: exit 0 or 1
    Health {
        /// The master answers
        #[arg(long)]
        live: bool,
        /// A worker serves; the default
        #[arg(long, conflicts_with = "live")]
        ready: bool,
    },
    /// Deploy what is on disk now; exit 0 when it serves, 1 with the reason when it was refused
    Reload {
        /// Also the release that was rolled back from
        #[arg(long)]
        force: bool,
        /// Hold requests back before it takes over: boot it first, then finish what runs, run the command, send the probe,
        /// and go on with the new release; what fails goes on with the old one. --timeout bounds the pause up to the
        /// command's end [default: 60s]
        #[arg(long, conflicts_with = "no_wait")]
        pause: bool,
        #[command(flatten)]
        answering: AnsweringOptions,
        /// The command, in the directory, virtualenv and environment of the new release
        #[arg(last = true, value_name = "COMMAND", requires = "pause")]
        command: Vec<String>,
        /// So many of its workers serve beside the old ones first, and both are compared; 0: none, whatever [reload.canary]
        /// says
        #[arg(long, value_name = "N", conflicts_with = "pause", value_parser = parse_number)]
        canary: Option<u32>,
        /// For so long [default: as [reload.canary] says, 2m]
        #[arg(long, value_name = "DURATION", value_parser = parse_hold, requires = "canary", conflicts_with = "pause")]
        hold: Option<Duration>,
        #[command(flatten)]
        waiting: WaitOptions,
    },
    /// The canary has shown enough: its generation takes over now
    Promote {
        #[command(flatten)]
        waiting: WaitOptions,
    },
    /// The canary has shown enough: its generation is given up, and its reload is refused
    Abandon,
    /// Deploy again what served before: its directories, its Python and its settings, as they were pinned
    Rollback {
        /// The generation to go back to [default: the one that served before this one]
        #[arg(long, value_name = "GEN", value_parser = parse_number)]
        to: Option<u32>,
        #[command(flatten)]
        waiting: WaitOptions,
    },
    /// Which deploys there were, who asked for them, and how they ended
    History {
        /// As JSON, an object a line, with what each generation did
        #[arg(long)]
        json: bool,
        /// All that is remembered, and not only the latest
        #[arg(long)]
        all: bool,
    },
    /// What a generation did, beside the one before it: requests, errors, times, growth of memory
    Report {
        /// The generation [default: the one that serves]
        #[arg(value_name = "GEN", value_parser = parse_number)]
        generation: Option<u32>,
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Finish what runs and begin nothing, until `resume`: clients wait, and none is refused unless you say so
    Pause {
        /// Resume and exit 1 where requests still run after so long [default: 30s]
        #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
        timeout: Option<Duration>,
        #[command(flatten)]
        answering: AnsweringOptions,
    },
    /// Go on after `pause`
    Resume {
        /// Give up waiting after so long, as in 30s; it goes on
        #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
        timeout: Option<Duration>,
    },
    /// Go on as the forkmaster that was installed since: same pid, same workers, nothing is lost
    ///
    /// The master executes what lies under the name that it was called by, once a trial run of that has accepted its state. It
    /// waits until no reload, drain or restart of a worker is under way.
    Upgrade {
        /// Exit 1 where there was no quiet moment for so long, or the new one says nothing [default: 60s]
        #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
        timeout: Option<Duration>,
    },
    /// Wait for a state of the master, also of one that is not there yet
    Wait {
        #[arg(value_name = "STATE")]
        state: State,
        /// Give up after so long, as in 30s
        #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
        timeout: Option<Duration>,
    },
    /// More or fewer workers, or processes of a service; survives reloads
    ///
    /// 0 switches all of them off. Of the workers the sockets are held, and connections wait until there are workers again.
    #[command(allow_missing_positional = true)]
    Scale {
        /// A [[service]]; without a name, the workers
        // What begins with a minus is asked of the first argument, whichever it will be.
        #[arg(value_name = "SERVICE", allow_negative_numbers = true)]
        service: Option<String>,
        /// So many, or with + or - so many more or fewer; such a step ends at one
        #[arg(value_name = "N|+N|-N", required = true, allow_negative_numbers = true, value_parser = parse_scale)]
        to: Scale,
        #[command(flatten)]
        waiting: WaitOptions,
    },
    /// Replace the worker of one slot: its successor serves first, then it finishes. Or the processes of a service, which end
    /// first
    Recycle {
        /// A slot, as `status` numbers them, from 0; or a [[service]], all of it or the process of that number
        #[arg(value_name = "SLOT|SERVICE[:N]", value_parser = parse_recycle)]
        what: Recycle,
        /// The old process stays alive out of service for so long, for gdb or py-spy; an hour at most, three at once
        #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
        keep: Option<Duration>,
        #[command(flatten)]
        waiting: WaitOptions,
    },
    /// Open the log files again by their names, as USR1 does
    ReopenLogs {
        /// Give up waiting after so long, as in 30s; it goes on
        #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
        timeout: Option<Duration>,
    },
    /// The Python stacks of all threads of the workers
    Dump {
        /// Only of the workers in this slot
        #[arg(value_name = "SLOT", value_parser = parse_number)]
        slot: Option<u32>,
    },
    /// A script with which a shell completes verbs and options
    Completions {
        #[arg(value_name = "SHELL")]
        shell: Shell,
    },
    /// The manual page: `forkmaster man | man -l -`
    Man,
    /// Stop serving: running requests finish first
    #[command(visible_alias = "shutdown")]
    Stop {
        /// Do not wait for running requests
        #[arg(long)]
        now: bool,
        #[command(flatten)]
        waiting: WaitOptions,
    },
}

#[derive(Subcommand, Debug)]
enum ConfigVerb {
    /// Print every setting in effect and where it comes from
    Show {
        /// And what each is for
        #[arg(long)]
        explain: bool,
        #[command(flatten)]
        options: Box<RunOptions>,
    },
    /// Print what can be set, as a JSON Schema, for editors
    Schema,
    /// Print what can be set, as Markdown
    Reference,
    /// Write a commented ./app.toml, or the file of -c, for the application beside it
    Init,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum State {
    /// A worker serves
    Ready,
    /// The master is gone
    Down,
}

fn parse_hold(text: &str) -> Result<Duration, String> {
    match parse_duration(text)? {
        Duration::ZERO => Err("nothing can be seen in no time; write 2m".to_owned()),
        hold => Ok(hold),
    }
}

/// The whole definition, for what is made from it.
pub fn definition() -> clap::Command {
    Line::command().after_help(exit_codes())
}

#[derive(Args, Debug)]
struct WaitOptions {
    /// Give up waiting after so long, as in 30s; what was asked for goes on
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    timeout: Option<Duration>,
    /// Only ask, and do not wait for the outcome
    #[arg(long, conflicts_with = "timeout")]
    no_wait: bool,
}

impl WaitOptions {
    fn waiting(self) -> Waiting {
        if self.no_wait {
            Waiting::No
        } else {
            Waiting::Until(self.timeout)
        }
    }
}

fn parse_bind(text: &str) -> Result<String, String> {
    Bind::parse(text, Path::new("/")).map(|_| text.to_owned())
}

/// The end of `--help`.
fn exit_codes() -> String {
    let rows = exit_code::MEANINGS.iter().map(|(code, meaning)| format!("  {:>3}  {meaning}", code.number()));
    format!("Exit codes:\n{}", rows.collect::<Vec<_>>().join("\n"))
}

#[cfg(test)]
mod tests;
