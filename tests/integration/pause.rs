//! Pauses: clients wait and nobody is refused, while an operator works, or while the command of a reload runs with no request
//! in the application; and whatever goes wrong then, the old generation serves.

use std::thread;
use std::time::Duration;

use nix::sys::signal::Signal;

use crate::harness::client::{head, Connection};
use crate::harness::load::Load;
use crate::harness::master::{Master, Output};
use crate::harness::process;
use crate::harness::site::Site;
use crate::harness::{for_each_preload, wait_for};

/// Marks each request in a file, its beginning and its end, and answers with its release.
const MARKS: &str = r#"
import os

RELEASE = os.path.basename(os.getcwd()).encode()
MARKS = os.path.join(os.getcwd(), "..", "..", "marks")


def mark(what):
    file = os.open(MARKS, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    os.write(file, what)
    os.close(file)


def application(environ, start_response):
    mark(b"<")
    start_response("200 OK", [("Content-Length", str(len(RELEASE)))])
    mark(b">")
    return [RELEASE]
"#;

/// Fails where the application has anything to do meanwhile.
const NOBODY: &str = "cp ../../marks before && sleep 1 && cmp before ../../marks && \
    test $(tr -cd '<' <before | wc -c) = $(tr -cd '>' <before | wc -c) && \
    echo in $(basename $PWD) with $(python -c 'import sys; print(sys.prefix)')";

/// The end of what a verb says that would have workers serve, were it not for the pause.
const PAUSED: &str = "; the service is paused, and clients wait for `forkmaster resume`\n";

fn marked(name: &str) -> Site {
    let site = Site::new(name);
    for release in ["1", "2"] {
        site.build(release).file("app.py", MARKS).make();
    }
    site.flip("1");
    site
}

fn paused_reload(master: &Master, options: &[&str], command: &str) -> Output {
    master.cli(&[&["reload", "--pause"], options, &["--", "sh", "-c", command]].concat())
}

/// Release 1 serves, 2 is on disk, and this command of its reload runs.
fn command_runs(name: &str, command: &str) -> (Site, Master, thread::JoinHandle<Output>) {
    let site = Site::with_releases(name, 2);
    site.set("server.graceful_timeout", "'2s'");
    let master = site.start();
    site.flip("2");
    let asks = {
        let words = ["reload", "--pause", "--", "sh", "-c", command].map(str::to_owned);
        let directory = site.path().to_path_buf();
        thread::spawn(move || {
            let words: Vec<&str> = words.iter().map(String::as_str).collect();
            crate::harness::master::run(&directory, &[&words[..2], &["-c", "app.toml"], &words[2..]].concat())
        })
    };
    master.wait_log("command gen=2 pid=* started");
    (site, master, asks)
}

/// Clients whose requests wait.
fn held_clients(master: &Master, mut kept: Vec<Connection>) -> Vec<Connection> {
    kept.extend((0..3).map(|_| master.connect()));
    for client in &mut kept {
        client.must_send(head("GET", "/", &[]));
    }
    kept
}

fn idle_clients(master: &Master) -> Vec<Connection> {
    let mut clients: Vec<Connection> = (0..3).map(|_| master.connect()).collect();
    for client in &mut clients {
        client.get_ok("/");
    }
    clients
}

#[test]
fn the_command_runs_while_nothing_is_in_the_application_and_no_request_is_lost() {
    for_each_preload(|preload| {
        let site = marked(&format!("pause_command_{preload}"));
        site.set("app.preload", preload).set("app.probe", "'/'");
        let master = site.start();
        site.flip("2");
        let load = Load::on(&master.address()).closing(8).keeping(12).target("/").start();
        // The probe of the boot came before; what the application does from the pause on is the command's.
        let output = paused_reload(&master, &[], NOBODY);
        assert_eq!(output.code, Some(0), "{output}\n{}", master.log());
        load.wait_answers(40);
        load.stop().assert_no_failures();
        assert_eq!(master.get("/").text(), "2");
        let prefix = site.release_path("2").canonicalize().unwrap();
        let line = master.wait_log("command gen=2: in 2 with ");
        assert!(line.contains(prefix.to_str().unwrap()), "{line}");
        master.wait_log("paused after=");
        master.stop_clean();
    });
}

/// What a client waits for is the command and the probe, and not the boot.
#[test]
fn two_hundred_clients_wait_for_the_command_and_the_probe_and_none_is_refused() {
    let site = Site::with_releases("pause_many", 2);
    site.set("app.probe", "'/'").set("server.workers", "2");
    let master = site.start();
    site.flip("2");
    let load = Load::on(&master.address()).closing(40).keeping(160).start();
    let command = "date +%s%N >../../began; sleep 2; date +%s%N >../../ended";
    let output = paused_reload(&master, &[], command);
    assert_eq!(output.code, Some(0), "{output}");
    load.wait_answers(400);
    let report = load.stop();
    report.assert_no_failures();
    let at = |name: &str| {
        let text = std::fs::read_to_string(site.path().join(name)).expect("the command has run");
        Duration::from_nanos(text.trim().parse().expect("a number"))
    };
    let command = at("ended") - at("began");
    let waits = report.answers.iter().map(|answer| answer.received - answer.sent);
    let longest = waits.max().expect("there are answers");
    println!("the command took {command:?}, the longest wait {longest:?}, of {} answers", report.answers.len());
    assert!(longest >= command, "{longest:?}: somebody has waited for all of it");
    // A quiet machine needs some 50 ms besides; one that runs all tests at once has other things to do.
    assert!(longest < command + Duration::from_secs(3), "{longest:?}, and the command took {command:?}");
    master.stop_clean();
}

#[test]
fn a_release_that_cannot_be_proved_is_refused_before_anything_is_paused_or_run() {
    let site = Site::with_releases("pause_broken", 1);
    site.build("2").app("broken/missing_dependency.py").make();
    let master = site.start();
    site.flip("2");
    let output = paused_reload(&master, &[], "touch ran");
    assert_eq!(output.code, Some(1), "{output}");
    assert!(!site.release_path("2").join("ran").exists() && master.log_lines("pausing").is_empty());
    assert_eq!(master.get("/").text(), "1");
}

#[test]
fn what_fails_during_the_pause_is_told_and_the_old_generation_serves() {
    let site = Site::with_releases("pause_fails", 2);
    site.set("server.graceful_timeout", "'1s'");
    let master = site.start();
    site.flip("2");
    let load = Load::on(&master.address()).closing(2).keeping(4).start();
    let cases: [(&[&str], &str, &[&str]); 4] = [
        (&[], "echo about to fail; exit 3", &["the command failed: exit code 3", "about to fail"]),
        (&["--timeout", "500ms"], "sleep 60", &["the command did not end within 0.5s (--timeout)"]),
        (
            &["--timeout", "500ms"],
            "trap '' TERM; sleep 60 & while :; do wait; done",
            &["the command did not end within 0.5s (--timeout)"],
        ),
        (&[], "kill -SEGV $$", &["the command failed: SIGSEGV"]),
    ];
    for (options, command, words) in cases {
        let output = paused_reload(&master, options, command);
        assert_eq!(output.code, Some(1), "{output}");
        for word in words {
            assert!(output.stderr.contains(word), "{command}: {output}");
        }
        load.wait_answers(12);
    }
    let output = master.cli(&["reload", "--pause", "--", "no-such-command"]);
    assert!(output.code == Some(1) && output.stderr.contains("no-such-command"), "{output}");
    load.wait_answers(12);
    let report = load.stop();
    report.assert_no_failures();
    assert!(report.answers.iter().all(|answer| answer.release == "1"));
    assert_eq!(master.get("/").text(), "1");
    assert!(process::belonging_to(site.path()).iter().all(|process| !process.title.contains("sleep")));
    // And the next one works.
    assert_eq!(paused_reload(&master, &[], "true").code, Some(0));
    assert_eq!(master.get("/").text(), "2");
    master.stop();
}

#[test]
fn a_release_that_does_not_answer_after_the_command_is_refused() {
    let site = Site::new("pause_probe");
    let app = r#"
import os
def application(environ, start_response):
    ok = os.path.exists("migrated")
    start_response("200 OK" if ok else "500 not migrated", [])
    return [b"2"]
"#;
    site.release("1");
    site.build("2").file("app.py", app).make();
    site.flip("1");
    let master = site.start();
    site.set("app.probe", "'/'");
    site.flip("2");
    let output = paused_reload(&master, &[], "true");
    assert_eq!(output.code, Some(1), "{output}");
    assert!(output.stderr.contains("probe GET / answered 500 not migrated"), "{output}");
    assert_eq!(master.get("/").text(), "1");
    // What the command does is what the probe sees.
    let output = paused_reload(&master, &[], "touch migrated");
    assert_eq!(output.code, Some(0), "{output}");
    assert_eq!(master.get("/").text(), "2");
}

#[test]
fn a_request_that_does_not_end_is_named_and_everything_goes_on() {
    let site = Site::with_releases("pause_stream", 2);
    let master = site.start();
    site.flip("2");
    let mut running = master.connect();
    running.must_send(head("GET", "/sleep?s=20", &[]));
    wait_for("the request to run", || master.cli(&["status", "--json"]).stdout.contains("/sleep").then_some(()));
    for args in [&["pause", "--timeout", "500ms"][..], &["reload", "--pause", "--timeout", "500ms", "--", "true"]] {
        let output = master.cli(args);
        assert_eq!(output.code, Some(1), "{output}");
        for word in ["requests still run after 0.5s, in worker gen=1 slot=", "runs \"GET /sleep\" since"] {
            assert!(output.stderr.contains(word), "{output}");
        }
        assert_eq!(master.get("/").text(), "1");
        assert!(master.cli(&["health"]).ok());
    }
}

#[test]
fn a_reload_that_comes_meanwhile_waits() {
    let (site, master, asks) = command_runs("pause_hup", "while ! test -e ../../go; do sleep 0.05; done");
    master.hup();
    master.wait_log("reload waits: the command of gen=2");
    let clients = held_clients(&master, Vec::new());
    site.write("go", "");
    let output = asks.join().expect("the client does not panic");
    assert_eq!(output.code, Some(0), "{output}");
    for mut client in clients {
        assert_eq!(client.expect_answer().text(), "2");
    }
    master.wait_log("generation gen=3 rolling -> serving");
}

#[test]
fn an_asker_that_leaves_stops_nothing() {
    let (site, master, asks) = command_runs("pause_left", "while ! test -e ../../go; do sleep 0.05; done");
    for process in process::belonging_to(site.path()).iter().filter(|process| process.title.contains("--pause")) {
        process.signal(Signal::SIGKILL);
    }
    assert_eq!(asks.join().expect("the client does not panic").code, None);
    site.write("go", "");
    master.wait_log("generation gen=2 rolling -> serving");
    assert_eq!(master.get("/").text(), "2");
}

#[test]
fn at_a_stop_the_command_ends_first_and_whoever_waits_is_answered_by_the_old_release() {
    let (_site, master, asks) =
        command_runs("pause_term", "trap 'echo cleaned up; exit 1' TERM; echo began; while :; do sleep 0.05; done");
    master.wait_log("command gen=2: began");
    let clients = held_clients(&master, Vec::new());
    master.term();
    for mut client in clients {
        assert_eq!(client.expect_answer().text(), "1");
    }
    assert_eq!(master.wait_exit().code(), Some(0));
    master.wait_log("command gen=2: cleaned up");
    assert_eq!(asks.join().expect("the client does not panic").code, Some(1));
    master.assert_nothing_left();
}

#[test]
fn a_killed_master_takes_the_command_along_and_loses_no_request() {
    let site = Site::with_releases("pause_killed", 2);
    let master = site.start();
    let idle = idle_clients(&master);
    assert_eq!(master.cli(&["pause"]).code, Some(0));
    let clients = held_clients(&master, idle);
    master.signal(Signal::SIGKILL);
    for mut client in clients {
        assert_eq!(client.expect_answer().text(), "1");
    }
    master.assert_nothing_left();
    drop(master);
    let (_site, master, asks) = command_runs("pause_killed_command", "exec sleep 60");
    master.signal(Signal::SIGKILL);
    assert_eq!(asks.join().expect("the client does not panic").code, Some(1));
    master.assert_nothing_left();
}

#[test]
fn an_operator_pauses_and_resumes_and_nobody_is_refused() {
    let site = Site::with_releases("pause_verbs", 2);
    let master = site.start();
    let mut idle = idle_clients(&master);
    let load = Load::on(&master.address()).closing(4).keeping(6).start();
    assert_eq!(master.cli(&["pause"]).code, Some(0));
    let status = master.cli(&["status"]);
    assert!(status.stdout.contains("paused"), "{status}");
    assert!(!master.cli(&["health"]).ok());
    let held: Vec<Connection> = held_clients(&master, idle.split_off(1));
    // A reload commits meanwhile, without anybody serving.
    site.flip("2");
    assert_eq!(master.cli(&["reload"]).code, Some(0));
    let output = master.cli(&["recycle", "0"]);
    assert!(output.code == Some(1) && output.stderr.contains("the service is paused"), "{output}");
    assert_eq!(master.cli(&["resume"]).code, Some(0));
    for mut client in held.into_iter().chain(idle.into_iter().map(|mut client| {
        client.must_send(head("GET", "/", &[]));
        client
    })) {
        assert_eq!(client.expect_answer().text(), "2");
    }
    load.wait_answers(20);
    load.stop().assert_no_failures();
    assert_eq!(master.cli(&["resume"]).code, Some(0), "it serves already");
    master.stop();
}

/// Deploys, ways back and other numbers, one after the other, and nobody who waits notices.
#[test]
fn whatever_an_operator_does_in_a_pause_whoever_waits_is_answered_by_what_serves_then() {
    for_each_preload(|preload| {
        let site = Site::with_releases(&format!("pause_any_order_{preload}"), 3);
        site.set("app.preload", preload).set("reload.rollback_window", "'10m'");
        let master = site.start();
        site.flip("2");
        master.reload();
        let idle = idle_clients(&master);
        let load = Load::on(&master.address()).closing(3).keeping(3).start();
        load.wait_answers(20);
        assert!(master.cli(&["pause"]).ok());
        let clients = held_clients(&master, idle);
        let takes_over = |args: &[&str], generation: u32| {
            let output = master.cli(args);
            let begins = output.stdout.starts_with(&format!("generation {generation} has taken over, after "));
            assert!(begins && output.stdout.ends_with(PAUSED), "{args:?}: {output}");
        };
        takes_over(&["rollback"], 3);
        takes_over(&["rollback"], 4);
        takes_over(&["rollback", "--to", "1"], 5);
        for (amount, ready) in [("-1", "1 worker is"), ("3", "3 workers are")] {
            assert_eq!(master.cli(&["scale", amount]).stdout, format!("{ready} ready{PAUSED}"));
        }
        site.flip("3");
        takes_over(&["reload"], 6);
        takes_over(&["reload", "--pause", "--", "true"], 7);
        for (args, words) in [
            (&["upgrade"][..], "the service is paused; `forkmaster resume` first"),
            (&["promote"], "there is no canary"),
            (&["reload", "--canary", "1"], "the service is paused"),
            (&["recycle", "0"], "the service is paused"),
        ] {
            if args[0] == "reload" {
                assert!(master.cli(&["scale", "4"]).ok());
            }
            let output = master.cli(args);
            assert!(output.code == Some(1) && output.stderr.contains(words), "{args:?}: {output}");
        }
        // A worker and a template that die meanwhile come again.
        let killed: Vec<_> = site.processes().into_iter().filter(|process| process.title.contains(" gen=7")).collect();
        killed.iter().for_each(|process| process.signal(Signal::SIGKILL));
        let killed: Vec<i32> = killed.into_iter().map(|process| process.pid).collect();
        wait_for("other workers", || {
            let workers = master.status()?.serving()?.workers;
            let ready = workers.iter().filter(|worker| worker.state == "ready" && !killed.contains(&worker.pid));
            (ready.count() == 4).then_some(())
        });
        assert!(master.cli(&["pause"]).ok() && master.status().expect("it answers").0["state"] == "paused");
        assert!(master.cli(&["resume"]).ok());
        for mut client in clients {
            assert_eq!(client.expect_answer().text(), "3");
        }
        load.wait_answers(20);
        load.stop().assert_no_failures();
        master.stop();
        master.assert_nothing_left();
    });
}

#[test]
fn what_is_asked_wrongly_is_told_before_anything_happens() {
    let site = Site::with_releases("pause_arguments", 1);
    let master = site.start();
    for args in [&["reload", "--", "true"][..], &["reload", "--pause", "--no-wait", "--", "true"]] {
        assert_eq!(master.cli(args).code, Some(2), "{args:?}");
    }
    master.cli(&["scale", "0"]);
    let output = master.cli(&["reload", "--pause", "--", "true"]);
    assert!(output.code == Some(1) && output.stderr.contains("the workers are switched off"), "{output}");
}

/// As found: a reload, `scale` and `resume` said that workers serve, and nobody did.
#[test]
fn nothing_says_that_workers_serve_while_nobody_does() {
    let site = Site::with_releases("pause_says", 2);
    let master = site.start();
    let said = |args: &[&str]| {
        let output = master.cli(args);
        assert!(output.ok(), "{args:?}: {output}");
        output.stdout
    };
    said(&["pause", "--max", "0s"]);
    let turned_away = "; the service is in maintenance, and clients get 503 until `forkmaster resume`\n";
    assert_eq!(said(&["scale", "1"]), format!("1 worker is ready{turned_away}"));
    site.flip("2");
    let text = said(&["reload"]);
    assert!(text.starts_with("generation 2 has taken over, after ") && text.ends_with(turned_away), "{text}");
    let late = master.cli(&["wait", "ready", "--timeout", "1ms"]);
    assert_eq!(
        (late.code, late.stderr.as_str()),
        (Some(124), "forkmaster: not ready within the time given: maintenance\n")
    );
    said(&["scale", "0"]);
    let off = "; the workers are switched off: `forkmaster scale N` switches them on\n";
    assert_eq!(said(&["resume"]), format!("the pause is over{off}"));
    let text = said(&["reload"]);
    assert!(text.starts_with("generation 3 has taken over, after ") && text.ends_with(off), "{text}");
    assert_eq!(said(&["scale", "1"]), "1 worker serves\n");
    assert_eq!(said(&["resume"]), "all workers serve again\n");
    // What is refused is called what it is.
    let refused = master.cli(&["rollback", "--to", "7"]);
    assert!(refused.stderr.starts_with("forkmaster: rollback refused: "), "{refused}");
    master.wait_log("ERROR rollback refused, nothing has changed: *");
    assert!(master.cli(&["status"]).stdout.contains("\nthe latest rollback was refused: "));
    let status = master.status().expect("it answers").0;
    assert_eq!(
        (&status["last_refusal"]["verb"], &status["last_reload"]["verb"]),
        (&"rollback".into(), &"rollback".into())
    );
}
