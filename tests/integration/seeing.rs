//! What an operator sees while it runs: requests, events, memory, the latest refusal.

use std::collections::BTreeSet;
use std::fs::File;
use std::process::{Child, Command, Stdio};

use serde_json::Value;

use crate::harness::client::{head, Connection};
use crate::harness::master::{binary, Master};
use crate::harness::site::Site;
use crate::harness::{wait_for, wait_within, WAIT};

/// A verb that runs on beside the test.
struct Beside {
    child: Child,
    output: std::path::PathBuf,
}

impl Beside {
    fn run(site: &Site, name: &str, args: &[&str]) -> Beside {
        let output = site.path().join(name);
        let file = File::create(&output).expect("a file of the site can be made");
        let mut command = Command::new(binary());
        command.args(args).arg("-c").arg(site.config_path()).current_dir(site.path());
        let child = command.stdin(Stdio::null()).stdout(file).stderr(Stdio::null()).spawn();
        Beside { child: child.expect("the binary can be started"), output }
    }

    fn said(&self) -> String {
        std::fs::read_to_string(&self.output).unwrap_or_default()
    }

    #[track_caller]
    fn exit_code(&mut self) -> Option<i32> {
        let status = wait_within(WAIT, || self.child.try_wait().expect("it is our child"));
        status.expect("it ends").code()
    }
}

impl Drop for Beside {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The whole lines of JSON.
fn objects(text: &str) -> Vec<Value> {
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    whole.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{line}: {error}"))).collect()
}

fn ask_for_long(master: &Master) -> Connection {
    let mut running = Connection::to(&master.address());
    running.must_send(head("GET", "/sleep?s=25", &[]));
    running
}

#[test]
fn requests_that_run_are_shown_with_their_client_and_worker() {
    let site = Site::with_releases("requests", 1);
    let master = site.start();
    assert_eq!(master.cli(&["status", "--requests"]).stdout, "nothing runs\n");
    let _running = ask_for_long(&master);
    let shown = wait_for("the request", || {
        let said = master.cli(&["status", "--requests"]).stdout;
        said.contains("127.0.0.1").then_some(said)
    });
    let lines: Vec<Vec<&str>> = shown.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(lines[0], ["age", "method", "path", "client", "worker", "pid", "generation"]);
    assert_eq!(lines[1][1..5], ["s", "GET", "/sleep", "127.0.0.1"], "{shown}");
    let workers = master.workers();
    let named = workers.iter().any(|worker| lines[1][5..] == [&worker.slot.to_string(), &worker.pid.to_string(), "1"]);
    assert!(named && lines.len() == 2, "{shown}");
}

/// The documentation of `status --json` names every field that there is.
#[test]
fn every_field_of_the_status_is_documented() {
    let site = Site::with_releases("fields", 1);
    let master = site.start();
    let _running = ask_for_long(&master);
    let status = wait_for("a measured worker with a request", || {
        let status = master.status()?.0;
        let runs = |worker: &Value| !worker["running"].as_array().is_none_or(Vec::is_empty);
        // It measures itself a second after its start.
        let is_measured = |worker: &Value| worker["private_bytes"].as_u64() > Some(0);
        let mut workers = status["generations"][0]["workers"].as_array()?.iter();
        workers.any(|worker| runs(worker) && is_measured(worker)).then_some(status)
    });
    fn keys(value: &Value, found: &mut BTreeSet<String>) {
        match value {
            Value::Object(fields) => fields.iter().for_each(|(key, value)| {
                found.insert(key.clone());
                keys(value, found);
            }),
            Value::Array(values) => values.iter().for_each(|value| keys(value, found)),
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
        }
    }
    let mut found = BTreeSet::new();
    keys(&status, &mut found);
    let page = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/status.md")).expect("it is there");
    let missing: Vec<_> = found.iter().filter(|key| !page.contains(&format!("`{key}`"))).collect();
    assert!(found.len() > 30 && missing.is_empty(), "docs/status.md does not tell of {missing:?}");
    let worker = &status["generations"][0]["workers"][0];
    let bytes = |field: &str| worker[field].as_u64().unwrap_or(0);
    assert!(bytes("private_bytes") > 1 << 20, "{worker}");
    assert!(
        bytes("private_bytes") <= bytes("pss_bytes") && bytes("pss_bytes") <= 2 * bytes("resident_bytes"),
        "{worker}"
    );
}

#[test]
fn events_are_told_until_the_master_ends() {
    let site = Site::with_releases("events", 2);
    let master = site.start();
    let mut programs = Beside::run(&site, "events.json", &["events", "--json"]);
    let mut people = Beside::run(&site, "events.txt", &["events"]);
    // Both listen once each has told something.
    wait_for("both to listen", || {
        assert!(master.cli(&["recycle", "0"]).ok());
        (!programs.said().is_empty() && !people.said().is_empty()).then_some(())
    });
    site.flip("2");
    master.reload();
    let is = |event: &Value, to: &str| event["event"] == "generation" && event["generation"] == 2 && event["to"] == to;
    wait_for("the reload's events", || {
        let events = objects(&programs.said());
        ["proving", "rolling", "serving"].iter().all(|to| events.iter().any(|event| is(event, to))).then_some(())
    });
    let refused = master.cli(&["events", "--timeout", "50ms"]);
    assert_eq!(refused.code, Some(124), "{refused}");
    master.stop();
    assert_eq!((programs.exit_code(), people.exit_code()), (Some(0), Some(0)));
    for event in objects(&programs.said()) {
        let text = event["text"].as_str().expect("each has its line").to_owned();
        assert!(event["time"].as_str().is_some_and(|time| time.ends_with('Z')), "{event}");
        // The log has the same words, and so do people.
        assert!(event["level"] == "debug" || master.log().contains(&text), "{text}");
    }
    assert!(people.said().contains(" INFO  generation gen=2 rolling -> serving\n"), "{}", people.said());
}

/// What only looks asks no decision of the supervisor, so its table of verbs and states does not have it.
#[test]
fn whoever_looks_is_answered_in_every_state() {
    let site = Site::new("looking");
    // Its import goes on as long as this file is there.
    let hold = site.write("hold", "");
    let app = crate::harness::site::app_source("app.py");
    let app = format!("import os, time\nwhile os.path.exists('{}'):\n    time.sleep(0.005)\n{app}", hold.display());
    site.build("1").file("app.py", &app).make();
    site.flip("1");
    site.set("server.workers", "1").set("control.history", "'history.jsonl'");
    let master = site.spawn();
    let socket = site.path().join("control.sock");
    wait_for("the control socket", || std::os::unix::net::UnixStream::connect(&socket).ok());
    let ask = |line: &str| {
        let mut stream = std::os::unix::net::UnixStream::connect(&socket).expect("it listens");
        stream.set_read_timeout(Some(crate::harness::WAIT)).expect("a timeout can be set");
        std::io::Write::write_all(&mut stream, line.as_bytes()).expect("it can be sent");
        let mut reader = std::io::BufReader::new(stream);
        let mut answer = String::new();
        std::io::BufRead::read_line(&mut reader, &mut answer).expect("it answers");
        (serde_json::from_str::<Value>(&answer).unwrap_or_else(|error| panic!("{answer}: {error}")), reader)
    };
    let mut listening = Vec::new();
    let mut look = |state: &str| {
        let (status, _) = ask("{\"command\":\"status\"}\n");
        assert_eq!((&status["state"], &status["ok"]), (&state.into(), &true.into()), "{status}");
        for verb in ["history", "reopen_logs"] {
            let (answer, _) = ask(&format!("{{\"command\":\"{verb}\"}}\n"));
            assert_eq!(answer["ok"], true, "{state}, {verb}: {answer}");
        }
        let (answer, reader) = ask("{\"command\":\"events\"}\n");
        assert_eq!(answer["ok"], true, "{state}, events: {answer}");
        listening.push((state.to_owned(), reader));
    };
    look("starting");
    std::fs::remove_file(&hold).expect("it is our file");
    master.wait_serving();
    look("running");
    site.write("hold", "");
    let mark = master.mark();
    assert!(master.cli(&["reload", "--no-wait"]).ok());
    master.wait_log_after(mark, "generation gen=2 -> proving");
    look("reloading");
    std::fs::remove_file(&hold).expect("it is our file");
    master.wait_log_after(mark, "generation gen=2 committed");
    assert!(master.cli(&["scale", "0"]).ok());
    look("off");
    assert!(master.cli(&["scale", "1"]).ok());
    assert!(master.cli(&["pause"]).ok());
    look("paused");
    assert!(master.cli(&["resume"]).ok());
    let end = site.path().join("end");
    let mut busy = master.connect();
    busy.must_send(crate::harness::client::head("GET", &format!("/until?file={}", end.display()), &[]));
    wait_for("it to run", || master.status()?.0["generations"].to_string().contains("/until").then_some(()));
    master.term();
    master.wait_log("stopping: finishing what was begun");
    look("stopping");
    std::fs::write(&end, "").expect("it can be made");
    busy.expect_answer();
    drop(busy);
    assert_eq!(master.wait_exit().code(), Some(0));
    // Whenever they came, they hear of the end, and then the connection ends.
    for (state, mut reader) in listening {
        let mut told = String::new();
        std::io::Read::read_to_string(&mut reader, &mut told).expect("text");
        assert!(told.contains("generation gen=2 serving -> gone"), "{state}: {told}");
    }
}

#[test]
fn a_refusal_is_shown_in_full_until_a_reload_is_good() {
    let site = Site::with_releases("last_refusal", 2);
    site.build("broken").app("broken/missing_dependency.py").make();
    let master = site.start();
    assert_eq!(master.status().expect("it answers").0["last_refusal"], Value::Null);
    site.flip("broken");
    assert!(!master.cli(&["reload"]).ok());
    let said = master.cli(&["status"]).stdout;
    assert!(said.contains("the latest reload was refused: ModuleNotFoundError"), "{said}");
    assert!(said.contains("\n  Traceback (most recent call last):\n"), "{said}");
    site.flip("2");
    master.reload();
    let status = master.status().expect("it answers").0;
    assert!(status["last_refusal"].is_null() && status["last_reload"]["ok"] == true, "{status}");
}

#[test]
fn a_watched_status_comes_again_and_ends_with_the_master() {
    let site = Site::with_releases("watch", 1);
    let master = site.start();
    let mut watching = Beside::run(&site, "watch.txt", &["status", "--watch"]);
    let mut json = Beside::run(&site, "watch.json", &["status", "--watch", "--json"]);
    wait_for("the second look", || {
        let pages = watching.said().matches(": running").count();
        (pages >= 2 && objects(&json.said()).len() >= 2).then_some(())
    });
    assert!(watching.said().contains(" requests/s\n") && !watching.said().contains('\x1b'), "{}", watching.said());
    let late = master.cli(&["status", "--watch", "--timeout", "1ms"]);
    assert_eq!(late.code, Some(124), "{late}");
    master.stop();
    assert_eq!((watching.exit_code(), json.exit_code()), (Some(3), Some(3)));
}

#[test]
fn logs_are_followed_by_their_names() {
    let site = Site::with_releases("follow", 1);
    site.set("log.error", "'error.log'").set("log.access", "'access.log'");
    let master = site.spawn();
    wait_for("the start", || master.status().filter(|status| status.ready()));
    let places = master.cli(&["logs", "--places"]).stdout;
    let path = |name: &str| site.path().join(name).display().to_string();
    assert_eq!(places, format!("error: {}\naccess: {}\n", path("error.log"), path("access.log")));
    let mut following = Beside::run(&site, "followed.txt", &["logs"]);
    wait_for("the last lines", || following.said().contains("error.log: ").then_some(()));
    let address = master.cli(&["status"]).stdout;
    let address = address.lines().find_map(|line| line.strip_prefix("listening on ")).expect("it is shown");
    let address = crate::harness::client::Address::Tcp(address.parse().expect("an address"));
    let ask = || crate::harness::client::get(&address, "/info").expect("it is answered").status;
    assert_eq!(ask(), 200);
    wait_for("the request's line", || following.said().contains("access.log: 127.0.0.1 ").then_some(()));
    // As logrotate does.
    std::fs::rename(path("access.log"), path("access.log.1")).expect("it is our file");
    assert!(master.cli(&["reopen-logs"]).ok());
    assert_eq!(ask(), 200);
    wait_for("a line of the new file", || {
        (following.said().matches("access.log: 127.0.0.1 ").count() == 2).then_some(())
    });
    let last = master.cli(&["logs", "-n", "1", "--no-follow"]);
    assert!(last.ok() && last.stdout.lines().count() == 2, "{last}");
    let late = master.cli(&["logs", "--timeout", "50ms"]);
    assert_eq!(late.code, Some(124), "{late}");
    drop(following.child.kill());
}

#[test]
fn logs_on_stderr_are_said_to_be_there() {
    let site = Site::with_releases("follow_stderr", 1);
    let master = site.start();
    assert_eq!(master.cli(&["logs", "--places"]).stdout, "error: stderr\naccess: none\n");
    let refused = master.cli(&["logs"]);
    assert!(refused.code == Some(1) && refused.stderr.contains(&format!("_PID={}", master.pid())), "{refused}");
}

/// The shell's lines come from a script here; each is a verb.
#[test]
fn a_shell_over_the_verbs() {
    let site = Site::with_releases("ctl", 1);
    let master = site.start();
    let script = |lines: &str| {
        let mut command = Command::new(binary());
        command.arg("ctl").arg("-c").arg(site.config_path()).current_dir(site.path());
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("the binary can be started");
        let mut stdin = child.stdin.take().expect("it was asked for");
        std::io::Write::write_all(&mut stdin, lines.as_bytes()).expect("it reads");
        drop(stdin);
        let output = child.wait_with_output().expect("it ends");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (output.status.code(), text(&output.stdout), text(&output.stderr))
    };
    let (code, said, _) = script("status\nscale 3\nquit\n");
    assert!(code == Some(0) && said.contains(": running") && said.contains("3 workers serve"), "{said}");
    // Without a yes nothing is switched off.
    let (code, ..) = script("stop\nno\n");
    assert_eq!((code, master.workers().len()), (Some(1), 3));
    let (code, said, _) = script("stop\ny\nstart\n");
    assert!(code == Some(0) && said.contains("the sockets are held") && said.contains("3 workers serve"), "{said}");
    let (code, _, complaint) = script("run\n");
    assert!(code == Some(2) && complaint.contains("not for a running master"), "{complaint}");
    let (code, _, complaint) = script("recycle 9\n");
    assert!(code == Some(1) && complaint.contains("no slot 9"), "{complaint}");
    assert_eq!(script("shutdown -y\n").0, Some(0));
    assert_eq!(master.wait_exit().code(), Some(0));
    assert_eq!(script("status\n").0, Some(3));
}
