//! The verbs that change the engine in flight or look into it: each waits, tells the truth, and has an exit code.

use std::time::Duration;

use nix::sys::signal::Signal;

use crate::harness::client::{self, head, Connection};
use crate::harness::load::Load;
use crate::harness::master::Master;
use crate::harness::process::Process;
use crate::harness::site::Site;
use crate::harness::{wait_for, wait_within};

fn ok(master: &Master, args: &[&str]) -> String {
    let output = master.cli(args);
    assert!(output.ok(), "{args:?}: {output}");
    output.stdout
}

#[test]
fn scale_waits_until_the_workers_serve_and_survives_reloads() {
    let site = Site::with_releases("scale", 2);
    let master = site.start();
    let load = Load::on(&master.address()).closing(2).keeping(2).start();
    assert_eq!(ok(&master, &["scale", "+1"]), "3 workers serve\n");
    assert_eq!(master.workers().len(), 3);
    site.flip("2");
    master.reload();
    assert_eq!(master.workers().len(), 3);
    assert_eq!(ok(&master, &["scale", "-1"]), "2 workers serve\n");
    assert_eq!(ok(&master, &["scale", "1"]), "1 worker serves\n");
    assert_eq!(master.workers().len(), 1);
    load.wait_answers(20);
    load.stop().assert_no_failures();
    let refused = master.cli(&["scale", "5000"]);
    assert!(refused.ended().contains('1') && refused.text().contains("5000 workers are more than"), "{refused}");
    master.wait_log("asked by uid=*: scale +1");
    assert_eq!(master.cli(&["scale", "many"]).code, Some(2));
}

/// Workers off: the sockets are held, and a connection waits for whoever comes.
#[test]
fn scaled_to_nothing_connections_wait_and_are_answered() {
    let site = Site::with_releases("scale_0", 2);
    let master = site.start();
    let address = master.address();
    assert!(ok(&master, &["scale", "0"]).contains("the sockets are held"));
    let status = master.status().expect("the master answers");
    assert!(!status.ready() && status.0["state"] == "off", "{}", status.0);
    assert!(master.workers().is_empty());
    let mut waiting = Connection::to(&address);
    waiting.must_send(client::head("GET", "/", &[]));
    // A deploy meanwhile is proved, and nobody serves it yet.
    site.flip("2");
    assert!(ok(&master, &["reload"]).contains("generation 2 has taken over"));
    assert!(
        waiting.read_available(Duration::from_millis(200)).is_ok_and(|read| read.is_empty()),
        "nobody is there to answer"
    );
    ok(&master, &["scale", "2"]);
    assert_eq!(waiting.expect_answer().text(), "2");
}

#[test]
fn recycle_replaces_one_worker_and_loses_nothing() {
    let site = Site::with_releases("recycle", 1);
    let master = site.start();
    let before = master.wait_serving();
    let load = Load::on(&master.address()).closing(2).keeping(2).start();
    let said = ok(&master, &["recycle", "1"]);
    assert!(said.starts_with("slot 1: pid "), "{said}");
    load.wait_answers(10);
    load.stop().assert_no_failures();
    let after = master.wait_workers(2);
    let pid = |workers: &[crate::harness::master::Worker], slot: u64| {
        workers.iter().find(|worker| worker.slot == slot).map(|worker| worker.pid)
    };
    assert_eq!(pid(&before, 0), pid(&after, 0));
    assert_ne!(pid(&before, 1), pid(&after, 1));
    let refused = master.cli(&["recycle", "7"]);
    assert!(!refused.ok() && refused.text().contains("there is no slot 7"), "{refused}");
}

/// It serves nothing, and a debugger may do with it what it likes: neither a reload nor a stop waits for it.
#[test]
fn a_kept_worker_is_out_of_service_and_stays_alive() {
    let site = Site::with_releases("recycle_keep", 2);
    site.set("server.workers", "1").set("server.graceful_timeout", "'1s'");
    let master = site.start();
    let old = master.wait_serving()[0].pid;
    // What it runs is finished, and its idle connections go to others.
    let (mut idle, mut busy) = (master.connect(), master.connect());
    idle.get_ok("/");
    let end = site.path().join("end");
    busy.must_send(head("GET", &format!("/until?file={}", end.display()), &[]));
    wait_for("it to run", || master.status().filter(|status| status.0["generations"][0]["workers"][0]["busy"] == 1));
    let said = ok(&master, &["recycle", "0", "--keep", "10m"]);
    assert!(said.contains(&format!("pid {old} is out of service and stays alive")), "{said}");
    assert_ne!(idle.get_ok("/").pid(), old);
    std::fs::write(&end, "").expect("it can be made");
    assert_eq!(busy.expect_answer().pid(), old);
    let state = || {
        let generations = master.status()?.generations();
        let worker = generations.into_iter().flat_map(|generation| generation.workers).find(|one| one.pid == old)?;
        Some(worker.state)
    };
    assert_eq!(state().as_deref(), Some("kept"));
    let process = Process::of(old).expect("it lives");
    process.signal(Signal::SIGSTOP);
    site.flip("2");
    assert!(master.cli(&["reload"]).ok(), "{}", master.log());
    assert_eq!(master.get("/").text(), "2");
    assert_eq!((state().as_deref(), process.runs()), (Some("kept"), true));
    master.stop();
    assert!(!process.runs());
}

/// In Python, in C with the interpreter's lock, in a sleep: the dump shows where.
#[test]
fn dump_shows_where_every_thread_is() {
    let site = Site::with_releases("dump", 1);
    site.set("server.threads", "2");
    let master = site.start();
    let address = master.address();
    let asking: Vec<_> = (0..2)
        .map(|_| {
            let address = address.clone();
            std::thread::spawn(move || client::get(&address, "/sleep?s=3"))
        })
        .collect();
    let shown = wait_for("both requests in the stacks", || {
        let said = ok(&master, &["dump"]);
        (said.matches("in sleep").count() >= 2).then_some(said)
    });
    assert!(shown.contains("worker gen=1 slot=0 pid=") && shown.contains("worker gen=1 slot=1 pid="), "{shown}");
    let one = ok(&master, &["dump", "1"]);
    assert!(!one.contains("slot=0"), "{one}");
    for asked in asking {
        assert_eq!(asked.join().expect("it ends").expect("it is answered").status, 200);
    }
    let refused = master.cli(&["dump", "9"]);
    assert!(!refused.ok() && refused.text().contains("there is no worker in slot 9"), "{refused}");
}

#[test]
fn reopen_logs_is_done_when_it_returns() {
    let site = Site::with_releases("reopen", 1);
    site.set("log.error", "'error.log'");
    let master = site.spawn();
    let log = site.path().join("error.log");
    wait_for("the log", || std::fs::read_to_string(&log).ok()?.contains("committed").then_some(()));
    std::fs::rename(&log, site.path().join("error.log.1")).expect("it is our file");
    assert_eq!(ok(&master, &["reopen-logs"]), "the logs were opened again\n");
    assert!(log.exists(), "it returned before there was a new file");
    // Where it cannot be done, whoever asked hears why.
    std::fs::remove_file(&log).expect("it is our file");
    std::fs::create_dir(&log).expect("the name is free");
    let refused = master.cli(&["reopen-logs"]);
    assert!(!refused.ok() && refused.text().contains("cannot be reopened"), "{refused}");
}

#[test]
fn wait_down_returns_with_the_masters_end() {
    let site = Site::with_releases("wait_down", 1);
    site.set("server.shutdown_delay", "'2s'");
    let master = site.start();
    let late = master.cli(&["wait", "down", "--timeout", "200ms"]);
    assert_eq!(late.code, Some(124), "{late}");
    master.term();
    assert!(ok(&master, &["wait", "down", "--timeout", "60s"]).is_empty());
    wait_within(Duration::from_secs(5), || master.exited()).expect("it has ended");
    ok(&master, &["wait", "down"]);
}

#[test]
fn shells_complete_and_man_shows_the_verbs() {
    let site = Site::with_releases("help", 1);
    let run = |args: &[&str]| crate::harness::master::run(site.path(), args);
    let script = run(&["completions", "bash"]);
    assert!(script.ok() && script.stdout.contains("reopen-logs"), "{script}");
    let checked =
        std::process::Command::new("bash").args(["-n", "-c", &script.stdout]).status().expect("bash is there");
    assert!(checked.success(), "bash cannot read the script");
    let page = run(&["man"]);
    assert!(page.ok() && page.stdout.contains(".SH SCALE"), "{page}");
    assert_eq!(run(&["completions", "nonsense"]).code, Some(2));
}
