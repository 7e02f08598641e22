//! A reload that is refused changes nothing: not for `stat`, not for `ss`, not for `status --json`, not in the log.

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::process::Command;

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::harness::master::Master;
use crate::harness::site::Site;
use crate::harness::{wait_for, wait_within, WAIT};

/// All that can be seen of a service from outside and that stays the same while nobody uses it.
#[derive(Debug, PartialEq)]
struct Seen {
    files: Vec<String>,
    sockets: Vec<String>,
    status: Value,
}

fn look(site: &Site, master: &Master) -> Option<Seen> {
    let mut status = master.status()?.0;
    let object = status.as_object_mut()?;
    // The refusal is told, and time goes on.
    for grows in ["last_reload", "last_refusal", "requests", "accepted", "uptime_s"] {
        object.remove(grows);
    }
    for generation in object["generations"].as_array_mut()? {
        generation.as_object_mut()?.remove("age_s");
        for worker in generation["workers"].as_array_mut()? {
            for moves in ["age_s", "resident_bytes", "private_bytes", "pss_bytes"] {
                worker.as_object_mut()?.remove(moves);
            }
        }
    }
    let mut files = Vec::new();
    // The test itself flips `current`.
    for entry in fs::read_dir(site.path()).ok()?.flatten().filter(|entry| entry.file_name() != "current") {
        let stat = entry.path().symlink_metadata().ok()?;
        let (name, mode, owner) = (entry.file_name(), stat.mode(), (stat.uid(), stat.gid()));
        files.push(format!("{name:?} {mode:o} {owner:?} inode {}", stat.ino()));
    }
    files.sort();
    // With the backlog, as Send-Q.
    let output = Command::new("ss").args(["-Hlntx"]).output().expect("tests/run has seen to it that there is ss");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let site_text = site.path().to_string_lossy().into_owned();
    let listening = object["listeners"].as_array()?.iter().filter_map(|listener| listener["address"].as_str());
    let listening: Vec<&str> = listening.collect();
    let ours = |line: &&str| line.contains(&site_text) || listening.iter().any(|address| line.contains(address));
    // The columns' width depends on all sockets that there are.
    let plain = |line: &str| line.split_whitespace().collect::<Vec<&str>>().join(" ");
    let mut sockets: Vec<String> = text.lines().filter(ours).map(plain).collect();
    sockets.sort();
    Some(Seen { files, sockets, status })
}

/// What was made for the refused generation is removed a moment after the answer.
#[track_caller]
fn assert_unchanged(site: &Site, master: &Master, before: &Seen, why: &str) {
    if wait_within(WAIT, || (look(site, master).as_ref() == Some(before)).then_some(())).is_none() {
        panic!("{why}: before {before:#?}\nafter {:#?}", look(site, master));
    }
}

/// The tests' application, and the import of every worker after the first fails.
fn release_whose_second_worker_fails(site: &Site) -> PathBuf {
    let once = "import os\n_once = os.open(os.path.join(os.path.dirname(os.path.abspath(__file__)), 'once'), os.O_CREAT | os.O_EXCL)\n";
    let app = crate::harness::site::app_source("app.py");
    let (head, body) = app.split_once("import ctypes\n").expect("its first import");
    site.build("second_fails").file("app.py", &format!("{head}{once}import ctypes\n{body}")).make()
}

#[test]
fn a_refused_reload_changes_nothing_that_can_be_seen() {
    let site = Site::with_releases("unchanged", 1);
    site.build("slow").import_s(600.0).make();
    let second_fails = release_whose_second_worker_fails(&site);
    let text = |name: &str| fs::read_to_string(site.path().join(name)).unwrap_or_default();
    let good = || {
        site.flip("1");
        site.set("app.module", "'app:application'").set("server.bind", "['127.0.0.1:0', 'unix:app.sock']");
        site.set("server.socket_mode", "'0660'").set("server.backlog", "100").set("server.threads", "1");
        site.set("log.error", "'a.log'").unset("log.access").set("log.level", "'info'");
        site.unset("reload.max_surge");
    };
    good();
    let master = site.start();
    let before = look(&site, &master).expect("it runs");
    assert_eq!(before.sockets.len(), 3, "an address, a socket and the control socket: {before:?}");
    let taken = TcpListener::bind("127.0.0.1:0").expect("some port is free");
    let taken = taken.local_addr().expect("it is bound");
    let other = || {
        site.set("server.bind", "['127.0.0.1:0', 'unix:app.sock', 'unix:new.sock']");
        site.set("server.socket_mode", "'0600'").set("server.backlog", "50").set("server.threads", "3");
        site.set("log.error", "'b.log'").set("log.access", "'c.log'").set("log.level", "'error'");
    };
    let refused = |why: &str, words: &str| {
        let output = master.cli(&["reload"]);
        assert_eq!(output.code, Some(1), "{why}: {output}");
        assert!(output.text().contains(words), "{why}: {output}");
        assert_unchanged(&site, &master, &before, why);
        good();
    };

    other();
    site.set("app.module", "'no_such_module'");
    refused("the proof fails", "No module named 'no_such_module'");

    other();
    site.set("server.bind", &format!("['127.0.0.1:0', 'unix:app.sock', 'unix:new.sock', '{taken}']"));
    refused("an address is taken", &taken.to_string());

    other();
    site.set("log.access", "'app.sock'");
    let why = format!("[log] access {} cannot be opened", site.path().join("app.sock").display());
    refused("the second log cannot be opened", &why);

    other();
    site.flip("second_fails");
    refused("it fails before it takes over", "FileExistsError");

    // The first of two makes the files, the second one finds them.
    other();
    site.flip("slow");
    master.hup();
    wait_for("a generation that proves", || {
        let generations = master.status()?.generations();
        generations.iter().any(|generation| generation.state == "proving").then_some(())
    });
    assert!(site.path().join("b.log").exists(), "logs are opened before the proof");
    site.flip("1");
    site.set("app.module", "'no_such_module'");
    refused("superseded, then refused", "No module named 'no_such_module'");

    // One worker of it has served: the other one's successor is another process.
    other();
    fs::remove_file(second_fails.join("once")).expect("the first worker has made it");
    site.flip("second_fails");
    site.set("reload.max_surge", "1");
    assert_eq!(master.cli(&["reload"]).code, Some(1));
    good();
    wait_for("the files and sockets to be as before", || {
        let now = look(&site, &master)?;
        (now.files == before.files && now.sockets == before.sockets).then_some(())
    });
    master.wait_settled();
    master.wait_serving();
    let before = look(&site, &master).expect("it runs");

    // The level, and the names that USR1 opens.
    let mark = text("a.log").len();
    master.signal(Signal::SIGUSR1);
    wait_for("the log's reopening", || text("a.log")[mark..].contains("log reopened").then_some(()));
    assert_unchanged(&site, &master, &before, "the logs are reopened");

    // What a reload changes is told against what serves, not against what was refused.
    site.set("server.workers", "3");
    master.reload();
    let changes: Vec<String> = text("a.log")
        .lines()
        .filter_map(|line| line.split_once(" changes "))
        .map(|(_, rest)| rest.to_owned())
        .collect();
    assert_eq!(changes.last().map(String::as_str), Some("[server] workers = 2 -> 3"), "{changes:#?}");

    // What a commit has made stays, also after a refusal that names the same files.
    other();
    master.reload();
    site.set("app.module", "'no_such_module'");
    assert!(!master.cli(&["reload"]).ok());
    assert!(site.path().join("b.log").exists() && site.path().join("c.log").exists());
    good();
    master.reload();
    wait_for("the old generations' end", || (master.status()?.generations().len() == 1).then_some(()));
    assert!(site.path().join("b.log").exists() && site.path().join("c.log").exists());
    master.stop();
}
