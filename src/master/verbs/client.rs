//! The verbs that talk to a running master. They wait and tell the truth: the exit code is the outcome, the reason
//! goes to stderr.

use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::config;
use crate::config::process_context::ProcessContext;
use crate::config::settings::{ControlAddress, ControlSocket};
use crate::doors::control::{self, Request};
use crate::facts::snapshot;
use crate::verbs::command_line::{Client, HealthProbe, Waiting};

/// The master answers in milliseconds; one that takes longer than this is stuck. Docker gives a probe 30 s, Kubernetes
/// 1 s unless told otherwise, and both end it themselves.
const HEALTH_WITHIN: Duration = Duration::from_secs(5);

/// Refused, or not ready.
const EXIT_REFUSED: i32 = 1;
/// As LSB says for `status`, and supervisorctl with it.
const EXIT_NOT_RUNNING: i32 = 3;
/// As timeout(1): the work goes on.
const EXIT_TIMEOUT: i32 = 124;

pub fn status(client: &Client, context: &ProcessContext, json: bool) -> i32 {
    let mut stream = match connect(client, context) {
        Ok(stream) => stream,
        Err(code) => return code,
    };
    let Some(answer) = ask(&mut stream, &Request::Status, Some(Duration::from_secs(10))) else { return EXIT_TIMEOUT };
    if json {
        println!("{answer}");
    } else {
        print!("{}", snapshot::text(&answer));
    }
    match answer["ready"] == true {
        true => 0,
        false => EXIT_REFUSED,
    }
}

/// Exit 0 or 1 and nothing else: probes know healthy and unhealthy, and Docker reserves 2.
pub fn health(client: &Client, context: &ProcessContext, probe: HealthProbe) -> i32 {
    let Ok(mut stream) = connect(client, context) else { return EXIT_REFUSED };
    let Some(answer) = ask(&mut stream, &Request::Status, Some(HEALTH_WITHIN)) else {
        eprintln!("forkmaster: the master does not answer within {} s", HEALTH_WITHIN.as_secs());
        return EXIT_REFUSED;
    };
    let healthy = match probe {
        HealthProbe::Live => answer["ok"] == true,
        HealthProbe::Ready => answer["ready"] == true,
    };
    let state = answer["state"].as_str().or(answer["reason"].as_str()).unwrap_or("no state given");
    match healthy {
        true => println!("{state}"),
        false => eprintln!("forkmaster: {state}, not ready"),
    }
    i32::from(!healthy)
}

pub fn reload(client: &Client, context: &ProcessContext, waiting: Waiting) -> i32 {
    let mut stream = match connect(client, context) {
        Ok(stream) => stream,
        Err(code) => return code,
    };
    let (wait, timeout) = match waiting {
        Waiting::No => (false, None),
        Waiting::Until(timeout) => (true, timeout),
    };
    let Some(answer) = ask(&mut stream, &Request::Reload { wait }, timeout) else {
        eprintln!("forkmaster: no outcome within the time given; the reload goes on");
        return EXIT_TIMEOUT;
    };
    if answer["ok"] == true {
        match wait {
            true => println!(
                "generation {} serves, after {:.2} s",
                answer["generation"],
                answer["took_s"].as_f64().unwrap_or_default()
            ),
            false => println!("generation {} is being proved", answer["generation"]),
        }
        return 0;
    }
    eprintln!("forkmaster: reload refused: {}", answer["reason"].as_str().unwrap_or("no reason given"));
    if let Some(details) = answer["details"].as_str().filter(|details| !details.is_empty()) {
        eprintln!("{}", details.trim_end());
    }
    EXIT_REFUSED
}

pub fn wait_ready(client: &Client, context: &ProcessContext, timeout: Option<Duration>) -> i32 {
    let mut stream = match connect(client, context) {
        Ok(stream) => stream,
        Err(code) => return code,
    };
    match ask(&mut stream, &Request::WaitReady, timeout) {
        Some(answer) if answer["ok"] == true => 0,
        Some(_) => EXIT_REFUSED,
        None => {
            eprintln!("forkmaster: not ready within the time given");
            EXIT_TIMEOUT
        }
    }
}

pub fn stop(client: &Client, context: &ProcessContext, now: bool, waiting: Waiting) -> i32 {
    let mut stream = match connect(client, context) {
        Ok(stream) => stream,
        Err(code) => return code,
    };
    let began = Instant::now();
    match ask(&mut stream, &Request::Stop { now }, Some(Duration::from_secs(10))) {
        Some(answer) if answer["ok"] == true => {}
        Some(answer) => {
            eprintln!("forkmaster: not stopped: {}", answer["reason"].as_str().unwrap_or("no reason given"));
            return EXIT_REFUSED;
        }
        None => {
            eprintln!("forkmaster: the master does not answer");
            return EXIT_TIMEOUT;
        }
    }
    let timeout = match waiting {
        Waiting::No => return 0,
        Waiting::Until(timeout) => timeout.map(|timeout| timeout.saturating_sub(began.elapsed())),
    };
    match control::wait_for_end(&mut stream, timeout.map(|timeout| timeout.max(Duration::from_millis(1)))) {
        Ok(true) => 0,
        Ok(false) => {
            eprintln!("forkmaster: not stopped within the time given; it goes on stopping");
            EXIT_TIMEOUT
        }
        Err(error) => {
            eprintln!("forkmaster: {error}");
            EXIT_REFUSED
        }
    }
}

/// The error is an exit code; stderr has the reason.
fn connect(client: &Client, context: &ProcessContext) -> Result<UnixStream, i32> {
    let socket = match &client.socket {
        Some(ControlAddress::Path(path)) => ControlSocket::Path(path.clone()),
        Some(address @ ControlAddress::Abstract(_)) => ControlSocket::Auto(vec![address.clone()]),
        None => match config::control(&client.source, context) {
            Ok(control) => control.socket,
            Err(problems) => {
                eprintln!("forkmaster: {problems}");
                return Err(i32::from(problems.exit_code()));
            }
        },
    };
    match control::connect(&socket) {
        Ok(stream) => Ok(stream),
        Err(reason) => {
            eprintln!("forkmaster: {reason}");
            Err(EXIT_NOT_RUNNING)
        }
    }
}

/// None: the time is over. What the master cannot answer becomes a refusal with its reason.
fn ask(stream: &mut UnixStream, request: &Request, timeout: Option<Duration>) -> Option<Value> {
    let refused = |reason: String| serde_json::json!({"ok": false, "reason": reason});
    match control::ask(stream, request, timeout) {
        Ok(Some(line)) => Some(serde_json::from_str(&line).unwrap_or_else(|error| refused(error.to_string()))),
        Ok(None) => None,
        Err(error) => Some(refused(error.to_string())),
    }
}
