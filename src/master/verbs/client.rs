//! The verbs that talk to a running master. They wait and tell the truth: the exit code is the outcome, the reason
//! goes to stderr.

use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use serde::de::{DeserializeOwned, IgnoredAny};

use crate::config;
use crate::config::process_context::ProcessContext;
use crate::config::settings::{ControlAddress, ControlSocket};
use crate::doors::control;
use crate::doors::protocol::{read_reply, Proving, Refused, Request, Stopping};
use crate::exit_code::ExitCode;
use crate::facts::snapshot::{LastReload, Snapshot};
use crate::verbs::command_line::{Client, HealthProbe, Waiting};
use crate::verbs::{output, show};

/// The master answers in milliseconds; one that takes longer than this is stuck. Docker gives a probe 30 s, Kubernetes
/// 1 s unless told otherwise, and both end it themselves.
const HEALTH_WITHIN: Duration = Duration::from_secs(5);

/// For what a master answers at once. Longer than a health check waits: a person asks, and would rather have it late.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);

/// Why there is no good answer.
enum NoAnswer {
    Refused(Refused),
    /// The time is over.
    Late,
}

pub fn status(client: &Client, context: &ProcessContext, json: bool) -> ExitCode {
    let mut stream = match connect(client, context) {
        Ok(stream) => stream,
        Err(code) => return code,
    };
    let answer =
        ask(&mut stream, &Request::Status, Some(ANSWER_WITHIN)).and_then(|line| Ok((read::<Snapshot>(&line)?, line)));
    match answer {
        Ok((snapshot, line)) => {
            match json {
                // The master's own words: it may be newer and know fields that are not known here.
                true => output::print(format_args!("{}\n", output::printable_json(&line))),
                false => output::print(show::status(&snapshot)),
            }
            match snapshot.ready {
                true => ExitCode::Done,
                false => ExitCode::Refused,
            }
        }
        Err(no_answer) => told("no status", no_answer),
    }
}

/// Exit 0 or 1 and nothing else: probes know healthy and unhealthy, and Docker reserves 2.
pub fn health(client: &Client, context: &ProcessContext, probe: HealthProbe) -> ExitCode {
    let Ok(mut stream) = connect(client, context) else { return ExitCode::Refused };
    match ask(&mut stream, &Request::Status, Some(HEALTH_WITHIN)).and_then(|line| read::<Snapshot>(&line)) {
        Ok(snapshot) => {
            let state = output::printable(&snapshot.state);
            let healthy = match probe {
                HealthProbe::Live => true,
                HealthProbe::Ready => snapshot.ready,
            };
            match healthy {
                true => output::print(format_args!("{state}\n")),
                false => output::complain(format_args!("{state}, not ready")),
            }
            match healthy {
                true => ExitCode::Done,
                false => ExitCode::Refused,
            }
        }
        Err(NoAnswer::Refused(refused)) => {
            output::complain(format_args!("{}, not ready", output::printable(&refused.reason)));
            ExitCode::Refused
        }
        Err(NoAnswer::Late) => {
            output::complain(format_args!("the master does not answer within {} s", HEALTH_WITHIN.as_secs()));
            ExitCode::Refused
        }
    }
}

pub fn reload(client: &Client, context: &ProcessContext, waiting: Waiting) -> ExitCode {
    let mut stream = match connect(client, context) {
        Ok(stream) => stream,
        Err(code) => return code,
    };
    let outcome = match waiting {
        Waiting::No => ask(&mut stream, &Request::Reload { wait: false }, Some(ANSWER_WITHIN)).and_then(|line| {
            let proving: Proving = read(&line)?;
            Ok(format!("generation {} is being proved\n", proving.generation))
        }),
        Waiting::Until(timeout) => ask(&mut stream, &Request::Reload { wait: true }, timeout).and_then(|line| {
            let last: LastReload = read(&line)?;
            let generation = last.generation.map_or_else(|| "?".to_owned(), |generation| generation.to_string());
            Ok(format!("generation {generation} serves, after {:.2} s\n", last.took_s))
        }),
    };
    match outcome {
        Ok(text) => {
            output::print(text);
            ExitCode::Done
        }
        Err(NoAnswer::Late) => {
            output::complain("no outcome within the time given; the reload goes on");
            ExitCode::Timeout
        }
        Err(no_answer @ NoAnswer::Refused(_)) => told("reload refused", no_answer),
    }
}

pub fn wait_ready(client: &Client, context: &ProcessContext, timeout: Option<Duration>) -> ExitCode {
    let mut stream = match connect(client, context) {
        Ok(stream) => stream,
        Err(code) => return code,
    };
    match ask(&mut stream, &Request::WaitReady, timeout).and_then(|line| read::<IgnoredAny>(&line)) {
        Ok(IgnoredAny) => ExitCode::Done,
        Err(NoAnswer::Late) => {
            output::complain("not ready within the time given");
            ExitCode::Timeout
        }
        Err(no_answer @ NoAnswer::Refused(_)) => told("not ready", no_answer),
    }
}

pub fn stop(client: &Client, context: &ProcessContext, now: bool, waiting: Waiting) -> ExitCode {
    let mut stream = match connect(client, context) {
        Ok(stream) => stream,
        Err(code) => return code,
    };
    let began = Instant::now();
    let asked = ask(&mut stream, &Request::Stop { now }, Some(ANSWER_WITHIN)).and_then(|line| read::<Stopping>(&line));
    if let Err(no_answer) = asked {
        return told("not stopped", no_answer);
    }
    let timeout = match waiting {
        Waiting::No => return ExitCode::Done,
        Waiting::Until(timeout) => timeout.map(|timeout| timeout.saturating_sub(began.elapsed())),
    };
    match control::wait_for_end(&mut stream, timeout.map(|timeout| timeout.max(Duration::from_millis(1)))) {
        Ok(true) => ExitCode::Done,
        Ok(false) => {
            output::complain("not stopped within the time given; it goes on stopping");
            ExitCode::Timeout
        }
        Err(error) => {
            output::complain(error);
            ExitCode::Refused
        }
    }
}

/// Says why there is no good answer.
fn told(what: &str, no_answer: NoAnswer) -> ExitCode {
    match no_answer {
        NoAnswer::Refused(refused) => {
            output::complain(format_args!("{what}: {}", output::printable(&refused.reason)));
            output::quote(&output::printable(&refused.details));
            ExitCode::Refused
        }
        NoAnswer::Late => {
            let within = ANSWER_WITHIN.as_secs();
            output::complain(format_args!(
                "{what}: the master does not answer within {within} s; it is stopped, or stuck"
            ));
            ExitCode::Timeout
        }
    }
}

/// The error is an exit code; stderr has the reason.
fn connect(client: &Client, context: &ProcessContext) -> Result<UnixStream, ExitCode> {
    let socket = match &client.socket {
        Some(ControlAddress::Path(path)) => ControlSocket::Path(path.clone()),
        Some(address @ ControlAddress::Abstract(_)) => ControlSocket::Auto(vec![address.clone()]),
        None => match config::control(&client.source, context) {
            Ok(control) => control.socket,
            Err(problems) => {
                output::complain(&problems);
                return Err(problems.exit_code());
            }
        },
    };
    control::connect(&socket).map_err(|reason| {
        output::complain(reason);
        ExitCode::NotRunning
    })
}

fn ask(stream: &mut UnixStream, request: &Request, timeout: Option<Duration>) -> Result<String, NoAnswer> {
    match control::ask(stream, request, timeout) {
        Ok(Some(line)) => Ok(line),
        Ok(None) => Err(NoAnswer::Late),
        Err(error) => Err(NoAnswer::Refused(Refused::because(error.to_string()))),
    }
}

fn read<T: DeserializeOwned>(line: &str) -> Result<T, NoAnswer> {
    read_reply(line).map_err(NoAnswer::Refused)
}
