//! The verbs that talk to a running master. They wait and tell the truth: the exit code is the outcome, the reason
//! goes to stderr.

use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::cli::{Client, Waiting};
use crate::config;
use crate::config::settings::{ControlAddress, ControlSocket};
use crate::config::surroundings::Surroundings;
use crate::control::{self, Request};
use crate::status;

/// Refused, or not ready.
const EXIT_REFUSED: i32 = 1;
/// As LSB says for `status`, and supervisorctl with it.
const EXIT_NOT_RUNNING: i32 = 3;
/// As timeout(1): the work goes on.
const EXIT_TIMEOUT: i32 = 124;

pub fn status(client: &Client, surroundings: &Surroundings, json: bool) -> i32 {
    let mut stream = match connect(client, surroundings) {
        Ok(stream) => stream,
        Err(code) => return code,
    };
    let Some(answer) = ask(&mut stream, &Request::Status, Some(Duration::from_secs(10))) else { return EXIT_TIMEOUT };
    if json {
        println!("{answer}");
    } else {
        print!("{}", status::text(&answer));
    }
    match answer["ready"] == true {
        true => 0,
        false => EXIT_REFUSED,
    }
}

pub fn reload(client: &Client, surroundings: &Surroundings, waiting: Waiting) -> i32 {
    let mut stream = match connect(client, surroundings) {
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

pub fn wait_ready(client: &Client, surroundings: &Surroundings, timeout: Option<Duration>) -> i32 {
    let mut stream = match connect(client, surroundings) {
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

pub fn stop(client: &Client, surroundings: &Surroundings, now: bool, waiting: Waiting) -> i32 {
    let mut stream = match connect(client, surroundings) {
        Ok(stream) => stream,
        Err(code) => return code,
    };
    let began = Instant::now();
    if ask(&mut stream, &Request::Stop { now }, Some(Duration::from_secs(10))).is_none() {
        eprintln!("forkmaster: the master does not answer");
        return EXIT_TIMEOUT;
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
fn connect(client: &Client, surroundings: &Surroundings) -> Result<UnixStream, i32> {
    let socket = match &client.socket {
        Some(ControlAddress::Path(path)) => ControlSocket::Path(path.clone()),
        Some(address @ ControlAddress::Abstract(_)) => ControlSocket::Auto(vec![address.clone()]),
        None => match config::control(&client.source, surroundings) {
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
