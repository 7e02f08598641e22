//! The verbs that talk to a running master. They wait and tell the truth: the exit code is the outcome, the reason
//! goes to stderr.

use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use forkmaster_wire::message::GenerationId;
use serde::de::IgnoredAny;

use super::ask::{ask, ask_and_look, read, wait_for_end, Meanwhile, NoAnswer};
use super::find::{NotFound, Target};
use super::held::held;
use crate::config;
use crate::config::process_context::ProcessContext;
use crate::doors::protocol::{Proving, Reloaded, Request, Stopping};
use crate::exit_code::ExitCode;
use crate::facts::snapshot::Snapshot;
use crate::verbs::command_line::{Answering, Canary, Client, HealthProbe, Waiting};
use crate::verbs::{find, output};

/// The master answers in milliseconds; one that takes longer than this is stuck. Docker gives a probe 30 s, Kubernetes
/// 1 s unless told otherwise, and both end it themselves.
const HEALTH_WITHIN: Duration = Duration::from_secs(5);

/// For what a master answers at once. Longer than a health check waits: a person asks, and would rather have it late.
pub const ANSWER_WITHIN: Duration = Duration::from_secs(10);

/// A deploy that takes longer may wait for room: whoever asked for it wants to hear that before the end.
const LOOK_AFTER: Duration = Duration::from_secs(2);

/// How often `wait` looks for a master that is not there yet, or that closes its connections at once.
pub const LOOK_EVERY: Duration = Duration::from_millis(100);

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
        Err(NoAnswer::Ended) => {
            output::complain("the master ended before it answered");
            ExitCode::Refused
        }
        Err(NoAnswer::Late) => {
            output::complain(format_args!("the master does not answer within {} s", HEALTH_WITHIN.as_secs()));
            ExitCode::Refused
        }
    }
}

pub fn reload(
    client: &Client,
    context: &ProcessContext,
    force: bool,
    canary: Option<Canary>,
    waiting: Waiting,
) -> ExitCode {
    let request = |wait| match canary {
        None => Request::Reload { wait, force },
        Some(Canary { workers, hold }) => {
            let hold_ms = hold.map(|hold| hold.as_millis() as u64);
            Request::ReloadCanary { wait, force, workers, hold_ms }
        }
    };
    deploy(client, context, "reload", request, waiting)
}

pub fn promote(client: &Client, context: &ProcessContext, waiting: Waiting) -> ExitCode {
    deploy(client, context, "promote", |wait| Request::Promote { wait }, waiting)
}

/// The master has a deadline for each step, and this waits for all of them.
pub fn reload_paused(
    client: &Client,
    context: &ProcessContext,
    force: bool,
    command: Vec<String>,
    timeout: Duration,
    answering: Option<&Answering>,
) -> ExitCode {
    let timeout_ms = timeout.as_millis() as u64;
    let request = |_| match answering {
        None => Request::ReloadPaused { force, argv: command.clone(), timeout_ms },
        Some(Answering { after, page }) => {
            let (after_ms, page) = (after.as_millis() as u64, page.clone());
            Request::ReloadPausedAnswering { force, argv: command.clone(), timeout_ms, after_ms, page }
        }
    };
    deploy(client, context, "reload", request, Waiting::Until(None))
}

pub fn rollback(client: &Client, context: &ProcessContext, to: Option<GenerationId>, waiting: Waiting) -> ExitCode {
    deploy(client, context, "rollback", |wait| Request::Rollback { wait, to }, waiting)
}

/// Asks for a new generation and tells its outcome.
fn deploy(
    client: &Client,
    context: &ProcessContext,
    verb: &str,
    request: impl Fn(bool) -> Request,
    waiting: Waiting,
) -> ExitCode {
    let target = match target(client, context) {
        Ok(target) => target,
        Err(code) => return code,
    };
    let mut stream = match find::find(&target) {
        Ok(found) => found.stream,
        Err(not_found) => return not_there(&not_found),
    };
    let mut said = false;
    let mut say_what_is_waited_for = || {
        if let Some(room) = waits_for_room(&target).filter(|_| !said) {
            output::complain(format_args!("{verb} waits for {}", output::printable(&room)));
            said = true;
        }
    };
    let meanwhile = Meanwhile { every: LOOK_AFTER, look: &mut say_what_is_waited_for };
    let outcome = match waiting {
        Waiting::No => ask(&mut stream, &request(false), Some(ANSWER_WITHIN)).and_then(|line| {
            let proving: Proving = read(&line)?;
            Ok(format!("generation {} is being proved\n", proving.generation))
        }),
        Waiting::Until(timeout) => {
            ask_and_look(&mut stream, &request(true), timeout, Some(meanwhile)).and_then(|line| {
                let Reloaded { last, state } = read(&line)?;
                let generation = last.generation.map_or_else(|| "?".to_owned(), |generation| generation.to_string());
                let canary = last.canary.map_or_else(String::new, |canary| {
                    output::printable(&format!("canary {}: {}\n{canary}", canary.verdict, canary.why))
                });
                let rehearsal = last
                    .rehearsal
                    .map_or_else(String::new, |words| format!("rehearsal: {}\n", output::printable(&words)));
                let took = last.took_s;
                let end = match held(&state) {
                    None => format!("generation {generation} serves, after {took:.2} s"),
                    Some(why) => format!("generation {generation} has taken over, after {took:.2} s; {why}"),
                };
                Ok(format!("{rehearsal}{canary}{end}\n"))
            })
        }
    };
    match outcome {
        Ok(text) => {
            output::print(text);
            ExitCode::Done
        }
        Err(NoAnswer::Late) => {
            output::complain(format_args!("no outcome within the time given; the {verb} goes on"));
            ExitCode::Timeout
        }
        Err(no_answer @ (NoAnswer::Refused(_) | NoAnswer::Ended)) => told(&format!("{verb} refused"), no_answer),
    }
}

/// Waits for a master that serves, also for one that is not there yet: a service manager or a script may start both
/// at once.
pub fn wait_ready(client: &Client, context: &ProcessContext, timeout: Option<Duration>) -> ExitCode {
    let target = match target(client, context) {
        Ok(target) => target,
        Err(code) => return code,
    };
    let deadline = timeout.map(|timeout| Instant::now() + timeout);
    let left = || deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
    loop {
        let not_found = match find::find(&target) {
            Ok(mut found) => {
                let answer = ask(&mut found.stream, &Request::WaitReady, left());
                return match answer.and_then(|line| read::<IgnoredAny>(&line)) {
                    Ok(IgnoredAny) => ExitCode::Done,
                    Err(NoAnswer::Late) => {
                        let state = status_of(&target).map_or_else(String::new, |now| format!(": {}", now.state));
                        output::complain(format_args!("not ready within the time given{}", output::printable(&state)));
                        ExitCode::Timeout
                    }
                    Err(no_answer @ (NoAnswer::Refused(_) | NoAnswer::Ended)) => told("not ready", no_answer),
                };
            }
            Err(not_found) => not_found,
        };
        match not_found.exit_code {
            ExitCode::NotRunning if left().is_none_or(|left| !left.is_zero()) => {}
            ExitCode::NotRunning => {
                let reason = output::printable(&not_found.reason);
                output::complain(format_args!("not ready within the time given: {reason}"));
                return ExitCode::Timeout;
            }
            other => {
                output::complain(output::printable(&not_found.reason));
                return other;
            }
        }
        // A master may appear in any of several directories, most of which are not there before it, and a tenth of a
        // second is less than any start takes. Not a wait for something that would tell when it comes.
        std::thread::sleep(left().map_or(LOOK_EVERY, |left| left.min(LOOK_EVERY)));
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
    match wait_for_end(&mut stream, timeout) {
        Ok(()) => ExitCode::Done,
        Err(NoAnswer::Late) => {
            output::complain("not stopped within the time given; it goes on stopping");
            ExitCode::Timeout
        }
        Err(no_answer @ (NoAnswer::Refused(_) | NoAnswer::Ended)) => told("not stopped", no_answer),
    }
}

/// Says why there is no good answer.
pub fn told(what: &str, no_answer: NoAnswer) -> ExitCode {
    match no_answer {
        NoAnswer::Refused(refused) => {
            output::complain(format_args!("{what}: {}", output::printable(&refused.reason)));
            output::quote(&output::printable(&refused.details));
            ExitCode::Refused
        }
        NoAnswer::Ended => {
            output::complain(format_args!("{what}: the master ended before it answered"));
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

/// None: it does not answer soon.
fn status_of(target: &Target) -> Option<Snapshot> {
    let mut stream = find::find(target).ok()?.stream;
    let line = ask(&mut stream, &Request::Status, Some(LOOK_AFTER)).ok()?;
    read(&line).ok()
}

/// What keeps a reload from starting its next worker, as the master says it. None: nothing does, or nobody says so.
fn waits_for_room(target: &Target) -> Option<String> {
    let waiting = status_of(target)?.generations.into_iter().filter_map(|generation| generation.waiting);
    waiting.into_iter().find(|waiting| waiting.starts_with("room "))
}

/// The error is an exit code; stderr has the reason.
pub fn connect(client: &Client, context: &ProcessContext) -> Result<UnixStream, ExitCode> {
    find::find(&target(client, context)?).map(|found| found.stream).map_err(|not_found| not_there(&not_found))
}

fn not_there(not_found: &NotFound) -> ExitCode {
    output::complain(output::printable(&not_found.reason));
    not_found.exit_code
}

pub fn target(client: &Client, context: &ProcessContext) -> Result<Target, ExitCode> {
    match &client.socket {
        Some(path) => Ok(Target::Socket(path.clone())),
        None => config::control(&client.source, context).map(Target::Configured).map_err(|problems| {
            output::complain(&problems);
            problems.exit_code()
        }),
    }
}
