//! Upgrades in place: another binary takes over the master's process, and nobody notices but who asks.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::{symlink, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::harness::client::{self, head, Connection};
use crate::harness::load::Load;
use crate::harness::master::{binary, Launch, Master, Output, Worker};
use crate::harness::process::{self, Process};
use crate::harness::site::{copy_binary_as, Site};
use crate::harness::wait_for;

/// The name that the master is called by: through a link, as after a deploy of the server itself.
fn called(site: &Site) -> PathBuf {
    site.path().join("bin/current/forkmaster")
}

/// Makes a directory for a binary, which the caller puts there.
fn place(site: &Site, number: u32) -> PathBuf {
    let directory = site.path().join(format!("bin/{number}"));
    fs::create_dir_all(&directory).expect("a directory of the site");
    directory.join("forkmaster")
}

fn flip_binary(site: &Site, number: u32) {
    let (next, current) = (site.path().join("bin/next"), site.path().join("bin/current"));
    let _ = fs::remove_file(&next);
    symlink(number.to_string(), &next).expect("a link of the site");
    fs::rename(next, current).expect("the link is flipped");
}

/// A program in place of the binary.
fn script(site: &Site, number: u32, text: &str) {
    let path = place(site, number);
    fs::write(&path, format!("#!/bin/sh\n{text}\n")).expect("a file of the site");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("it is ours");
    flip_binary(site, number);
}

fn launch(site: &Site, launch: Launch) -> Master {
    symlink(binary(), place(site, 1)).expect("a link of the site");
    flip_binary(site, 1);
    let master = site.launch(Launch { binary: Some(called(site)), ..launch });
    master.wait_serving();
    master
}

fn start(site: &Site) -> Master {
    launch(site, Launch::default())
}

/// What the process executes at the moment.
fn executed(master: &Master) -> PathBuf {
    fs::read_link(format!("/proc/{}/exe", master.pid())).expect("the master is there")
}

fn pids(workers: &[Worker]) -> Vec<i32> {
    workers.iter().map(|worker| worker.pid).collect()
}

#[track_caller]
fn upgrade(master: &Master) {
    let output = master.cli(&["upgrade"]);
    assert!(output.ok() && output.stdout.contains(&format!("pid {} and its workers", master.pid())), "{output}");
}

#[track_caller]
fn assert_refused(output: &Output, reason: &str) {
    assert!(output.code == Some(1) && output.stderr.contains(reason), "{reason}: {output}");
}

/// How often; a run by hand may want more.
fn upgrades() -> usize {
    std::env::var("FORKMASTER_UPGRADES").ok().and_then(|number| number.parse().ok()).unwrap_or(4)
}

#[test]
fn upgrades_under_load_lose_nothing() {
    let site = Site::with_releases("upgrade_load", 3);
    let master = start(&site);
    copy_binary_as(&place(&site, 2));
    let before = (pids(&master.wait_serving()), process::children(master.pid()).len());
    let load = Load::on(&master.address()).closing(4).keeping(12).posting(50_000).start();
    let descriptors = process::fd_count(master.pid());
    for round in 0..upgrades() {
        flip_binary(&site, 2 - round as u32 % 2);
        upgrade(&master);
        load.wait_answers(30);
        assert_eq!(executed(&master), fs::canonicalize(called(&site)).expect("it is there"));
        assert_eq!((pids(&master.workers()), process::children(master.pid()).len()), before);
    }
    assert!(process::fd_count(master.pid()) <= descriptors, "descriptors are left over");
    // A refused reload, a refused upgrade and a good reload in a row.
    site.write("releases/2/app.py", "raise RuntimeError('broken')");
    site.flip("2");
    assert_refused(&master.cli(&["reload"]), "broken");
    script(&site, 3, "exit 1");
    assert_refused(&master.cli(&["upgrade"]), "exit code 1");
    assert_eq!(pids(&master.workers()), before.0);
    site.flip("3");
    master.reload();
    load.wait_answers(30);
    load.stop().assert_no_failures();
    assert_eq!(master.get("/").text(), "3");
    // What dies comes back from the generation that served before the upgrade as well.
    flip_binary(&site, 2);
    master.wait_drained();
    upgrade(&master);
    site.flip("1");
    let old = pids(&master.wait_serving());
    Process::of(old[0]).expect("it serves").signal(Signal::SIGKILL);
    wait_for("another worker", || pids(&master.workers()).iter().all(|pid| *pid != old[0]).then_some(()));
    assert!(master.wait_workers(2).len() == 2 && master.get("/").text() == "3");
    master.term();
    assert!(master.wait_exit().success());
    master.assert_nothing_left();
}

#[test]
fn the_mutant_that_loses_the_lifeline_is_found() {
    let site = Site::with_releases("upgrade_mutant", 1);
    let master = launch(&site, Launch::default().env("FORKMASTER_MUTANT", "upgrade-loses-lifeline"));
    let (mut kept, mut new) = (master.connect(), master.connect());
    kept.must_send(head("GET", "/", &[]));
    assert_eq!(kept.expect_answer().text(), "1");
    upgrade(&master);
    master.wait_log("the master is gone");
    // Under load, each of these is a failure.
    new.must_send(head("GET", "/", &[]));
    assert!(new.read_available(Duration::from_secs(1)).is_ok_and(|read| read.is_empty()), "the mutant was not found");
}

/// A refusal costs nothing: the same program serves on, and whoever asked hears why.
#[test]
fn a_binary_that_does_not_start_or_accept_leaves_the_old_one_running() {
    let site = Site::with_releases("upgrade_refused", 1);
    let master = start(&site);
    let before = (executed(&master), pids(&master.wait_serving()));
    let real = binary().to_string_lossy().into_owned();
    let refused = |reason: &str, options: &[&str]| {
        let mark = master.mark();
        let output = master.cli(&[&["upgrade"], options].concat());
        assert_refused(&output, reason);
        master.wait_log_after(mark, "not upgraded: ");
        let status = master.status().expect("the master answers");
        assert!(status.0["last_refusal"]["reason"].to_string().contains(reason), "{}", status.0["last_refusal"]);
        assert_eq!((executed(&master), pids(&master.workers())), before);
        assert_eq!(master.get("/").text(), "1");
    };
    script(&site, 2, "echo 'no such library' >&2; exit 1");
    refused("does not say that it accepts the state: exit code 1", &[]);
    assert!(master.cli(&["upgrade"]).stderr.contains("no such library"));
    script(&site, 3, &format!("FORKMASTER_MUTANT=upgrade-refuses-state exec {real} \"$@\""));
    refused("restart the service to change between the two", &[]);
    script(&site, 4, "exec sleep 60");
    refused("has not said within", &["--timeout", "500ms"]);
    assert!(process::children(master.pid()).iter().all(|child| !child.title.contains("sleep")), "it was not ended");
    place(&site, 5);
    flip_binary(&site, 5);
    refused("No such file or directory", &[]);
    let whole = fs::read(binary()).expect("it can be read");
    let cut = place(&site, 6);
    fs::write(&cut, &whole[..whole.len() / 3]).expect("a file of the site");
    fs::set_permissions(&cut, fs::Permissions::from_mode(0o755)).expect("it is ours");
    flip_binary(&site, 6);
    let output = master.cli(&["upgrade"]);
    assert!(output.code == Some(1), "{output}");
    assert_eq!(executed(&master), before.0);
    // It accepts, and is gone when it is to be executed.
    script(&site, 7, &format!("{real} \"$@\"; code=$?; rm \"$0\"; exit $code"));
    refused("cannot be executed: No such file or directory", &[]);
    // The next reload would be refused for it.
    flip_binary(&site, 1);
    let config = fs::read_to_string(site.config_path()).expect("it is there");
    fs::write(site.config_path(), format!("{config}\nnonsense = 1\n")).expect("it is ours");
    refused("nonsense", &[]);
    fs::write(site.config_path(), config).expect("it is ours");
    upgrade(&master);
    let status = master.status().expect("the master answers");
    assert_eq!(status.0["last_refusal"], Value::Null);
    assert_eq!(pids(&master.workers()), before.1);
}

#[test]
fn everything_that_a_master_has_is_there_afterwards() {
    let site = Site::with_releases("upgrade_all", 2);
    let socket = site.path().join("shop.sock");
    let path = |name: &str| format!("\"{}\"", site.path().join(name).display());
    site.set("server.bind", &format!("[\"127.0.0.1:0\", \"unix:{}\"]", socket.display()));
    site.set("server.pidfile", &path("shop.pid"));
    site.set("log.error", &path("error.log")).set("log.access", &path("access.log"));
    site.set("status.bind", "[\"127.0.0.1:0\"]");
    site.write("service.sh", "trap 'exit 0' TERM\necho began\nwhile :; do sleep 0.05; done");
    let config = fs::read_to_string(site.config_path()).expect("it was written");
    let service = format!("[[service]]\nname = \"helper\"\ncommand = [\"sh\", {}]\n", path("service.sh"));
    site.config(&(config + &service));
    let master = start(&site);
    let text = |target: &str| client::get(&first_address(&master), target).expect("it serves").text();
    site.flip("2");
    master.reload();
    assert!(master.cli(&["scale", "+1"]).ok());
    assert_eq!(text("/"), "2");
    let mut kept = Connection::to(&first_address(&master));
    kept.must_send(head("GET", "/", &[]));
    assert_eq!(kept.expect_answer().text(), "2");
    master.wait_drained();
    wait_for("the service", || helper(&master));
    let before = master.status().expect("the master answers").0;
    let service = helper(&master);
    master.signal(Signal::SIGUSR2);
    let error_log = site.path().join("error.log");
    let lines = |text: &str| fs::read_to_string(&error_log).unwrap_or_default().matches(text).count();
    wait_for("the upgrade", || (lines("upgraded from") == 1).then_some(()));
    let after = master.status().expect("the master answers").0;
    for key in ["name", "version", "pid", "state", "executable", "listeners", "logs", "last_reload"] {
        assert_eq!(before[key], after[key], "{key}");
    }
    assert!(after["uptime_s"].as_f64() >= before["uptime_s"].as_f64(), "{after}");
    assert!(after["requests"].as_u64() >= before["requests"].as_u64(), "{after}");
    let generation = |status: &Value| {
        (status["generations"][0]["generation"].clone(), status["generations"][0]["workers_wanted"].clone())
    };
    assert_eq!((generation(&before), generation(&after).1), (generation(&after), 3.into()));
    assert_eq!(helper(&master), service);
    // Connections, both addresses, probes, logs, the history and rollbacks go on.
    kept.must_send(head("GET", "/", &[]));
    assert_eq!(kept.expect_answer().text(), "2");
    let over_unix = client::get(&client::Address::Unix(socket.clone()), "/").expect("the socket is there");
    assert_eq!(over_unix.text(), "2");
    assert!(master.cli(&["history"]).stdout.contains("reload"));
    assert!(master.cli(&["health"]).ok());
    fs::rename(&error_log, site.path().join("error.log.1")).expect("it is ours");
    assert!(master.cli(&["reopen-logs"]).ok());
    wait_for("the log under its name", || (lines("log reopened") == 1).then_some(()));
    assert!(master.cli(&["rollback"]).ok());
    assert_eq!(text("/"), "1");
    let worker = master.wait_workers(3)[0].pid;
    assert!(master.cli(&["recycle", "0"]).ok());
    wait_for("the recycled worker to be gone", || (!pids(&master.workers()).contains(&worker)).then_some(()));
    // A template that dies is started again, with the library of the new binary.
    let template = || {
        let status = master.status()?.0;
        let template = &status["generations"].as_array()?.last()?["template"];
        template["pid"].as_i64().filter(|_| template["state"] == "ready")
    };
    let old = wait_for("the template", template);
    Process::of(old as i32).expect("it is there").signal(Signal::SIGKILL);
    wait_for("another template", || template().filter(|pid| *pid != old));
    assert!(master.cli(&["recycle", "1"]).ok());
    // And the end removes what the start has made.
    master.term();
    assert!(master.wait_exit().success());
    assert!(!socket.exists() && !site.path().join("shop.pid").exists());
    master.assert_nothing_left();
}

/// Where its log is a file of its own, the harness finds no address there.
fn first_address(master: &Master) -> client::Address {
    let status = master.status().expect("the master answers").0;
    let address = status["listeners"][0]["address"].as_str().expect("it listens").parse();
    client::Address::Tcp(address.expect("an address"))
}

/// The pid of the service's process.
fn helper(master: &Master) -> Option<i64> {
    let status = master.status()?.0;
    let generations = status["generations"].as_array()?;
    generations.iter().find_map(|generation| generation["services"][0]["pid"].as_i64())
}

#[test]
fn an_upgrade_waits_for_a_quiet_moment_and_says_what_is_in_its_way() {
    let site = Site::with_releases("upgrade_waits", 2);
    let master = start(&site);
    assert!(master.cli(&["pause"]).ok());
    assert_refused(&master.cli(&["upgrade"]), "the service is paused");
    assert!(master.cli(&["resume"]).ok());
    let mut stream = master.connect();
    stream.must_send(head("GET", "/stream?pieces=2&pause=60", &[]));
    wait_for("the request", || {
        let status = master.status()?.0;
        let workers = status["generations"][0]["workers"].as_array()?.clone();
        workers.iter().any(|worker| worker["busy"].as_u64() == Some(1)).then_some(())
    });
    site.flip("2");
    master.reload();
    assert_refused(&master.cli(&["upgrade", "--timeout", "300ms"]), "generation 1 is draining");
    // It is waited for, and goes on by itself.
    std::thread::scope(|scope| {
        let asking = scope.spawn(|| master.cli(&["upgrade"]));
        master.wait_log("asked by uid=*: upgrade");
        drop(stream);
        // The application sleeps on; its worker is ended in its place.
        let old = master.status().expect("the master answers").generations();
        let draining = old.iter().find(|generation| generation.state == "draining").expect("it drains");
        for worker in &draining.workers {
            Process::of(worker.pid).expect("it drains").signal(Signal::SIGKILL);
        }
        let output = asking.join().expect("it does not panic");
        assert!(output.ok(), "{output}");
    });
    assert_eq!(master.get("/").text(), "2");
}

#[test]
fn a_stop_or_another_upgrade_meanwhile_is_answered_truly() {
    let site = Site::with_releases("upgrade_meanwhile", 1);
    let master = start(&site);
    script(&site, 2, &format!("echo began >> {}; exec sleep 60", site.path().join("began").display()));
    std::thread::scope(|scope| {
        let asking = scope.spawn(|| master.cli(&["upgrade"]));
        wait_for("the new binary", || site.path().join("began").exists().then_some(()));
        assert_refused(&master.cli(&["upgrade"]), "an upgrade is under way already");
        let began = Instant::now();
        master.term();
        assert_refused(&asking.join().expect("it does not panic"), "told to stop");
        assert!(master.wait_exit().success() && began.elapsed() < Duration::from_secs(20));
    });
    master.assert_nothing_left();
}

/// A signal that comes while neither binary has a handler waits for the new one.
#[test]
fn a_term_that_meets_the_exec_stops_the_service_as_always() {
    let site = Site::with_releases("upgrade_term", 1);
    let master = start(&site);
    let mark = master.mark();
    master.signal(Signal::SIGUSR2);
    master.wait_log_after(mark, "executing ");
    master.term();
    assert!(master.wait_exit().success());
    master.assert_nothing_left();
}

/// As `cd /srv/shop/current && .venv/bin/forkmaster -c app.toml` starts it: each name goes through `current` as it is now,
/// also after the release that it was started in was deleted.
#[test]
fn relative_names_go_through_a_flipped_link_after_an_upgrade_as_before() {
    let site = Site::with_releases("upgrade_relative", 4);
    site.set("app.release", "'.'");
    site.set("control.socket", &format!("'{}'", site.path().join("control.sock").display()));
    for number in 1..=4 {
        let release = site.release_path(&number.to_string());
        fs::copy(site.config_path(), release.join("app.toml")).expect("a file of the site");
        symlink(binary(), release.join("forkmaster")).expect("a link of the site");
    }
    let current = site.path().join("current");
    let launch = Launch { binary: Some("./forkmaster".into()), directory: Some(current.clone()), ..Launch::default() };
    let launch = launch.args(&["-c", "app.toml"]).env("PWD", &current.to_string_lossy());
    let master = site.launch(launch);
    master.wait_serving();
    assert_eq!(master.get("/").text(), "1");
    for number in ["2", "3", "4"] {
        site.flip(number);
        master.reload();
        assert_eq!(master.get("/").text(), number);
        master.wait_drained();
        upgrade(&master);
        let status = master.status().expect("the master answers").0;
        assert_eq!(status["executable"], *current.join("forkmaster").to_string_lossy());
        if number == "3" {
            fs::remove_dir_all(site.release_path("1")).expect("it is ours");
        }
    }
}

/// There is no way back after the exec. The log says why, and nobody holds the address.
#[test]
fn a_state_that_cannot_be_taken_over_after_all_ends_everything_and_says_why() {
    let site = Site::with_releases("upgrade_fatal", 1);
    let error_log = site.path().join("error.log");
    site.set("log.error", &format!("'{}'", error_log.display()));
    symlink(binary(), place(&site, 1)).expect("a link of the site");
    flip_binary(&site, 1);
    let master = site.launch(Launch { binary: Some(called(&site)), ..Launch::default() });
    master.wait_serving();
    let spoil = "import json, os, sys; state = open('/proc/self/fd/' + os.environ['FORKMASTER_STATE_FD']); \
                 board = json.load(state)['descriptors']['scoreboard']; os.dup2(0, board); os.execv(sys.argv[1], sys.argv[1:])";
    let real = binary().display().to_string();
    script(
        &site,
        2,
        &format!("[ \"$1\" = --look-at-state ] && exec {real} \"$@\"\nexec python3 -c \"{spoil}\" {real} \"$@\""),
    );
    master.signal(Signal::SIGUSR2);
    assert!(!master.wait_exit().success());
    let log = fs::read_to_string(&error_log).expect("it is there");
    assert!(log.contains("the state of the master before cannot be taken over: "), "{log}");
    master.assert_nothing_left();
}

/// Everybody who is connected to the control socket stays connected.
#[test]
fn who_listens_to_events_hears_of_the_upgrade() {
    let site = Site::with_releases("upgrade_events", 1);
    let master = start(&site);
    let mut listener = UnixStream::connect(site.path().join("control.sock")).expect("the master listens");
    listener.set_read_timeout(Some(Duration::from_secs(30))).expect("it is a socket");
    listener.write_all(b"{\"command\":\"events\"}\n").expect("the master reads");
    let mut lines = BufReader::new(listener).lines().map(|line| line.expect("the connection goes on"));
    assert!(lines.next().is_some_and(|answer| answer.contains("\"ok\":true")));
    for _ in 0..2 {
        upgrade(&master);
        assert!(lines.any(|line| line.contains("\"event\":\"upgraded\"")));
    }
}
