//! Going back: what served before serves again, from its own directories, with its own Python and settings, whatever the
//! symlink and the configuration say meanwhile; and nothing brings back by itself what was rolled back from.

use std::fs;
use std::process::Command;
use std::thread;

use crate::harness::for_each_preload;
use crate::harness::load::Load;
use crate::harness::master::{run, Master, Worker};
use crate::harness::site::Site;

/// Goes back, and says which generation serves now.
#[track_caller]
fn roll_back(master: &Master, args: &[&str]) -> String {
    let output = master.cli(&[&["rollback"], args].concat());
    assert_eq!(output.code, Some(0), "{}", output.stderr);
    output.stdout.split_whitespace().nth(1).expect("`generation N serves`").to_owned()
}

#[track_caller]
fn refused(master: &Master, args: &[&str], why: &str) {
    let output = master.cli(args);
    let told = format!("forkmaster: {} refused: {why}\n", args[0]);
    assert_eq!((output.code, output.stderr.as_str()), (Some(1), told.as_str()));
}

/// Release 2 with three workers instead of two, after release 1.
fn second_release_serves(site: &Site) -> Master {
    let master = site.start();
    site.flip("2");
    site.set("server.workers", "3");
    master.reload();
    assert_eq!(master.get("/info").json()["dep"], "2");
    master
}

#[test]
fn what_served_before_serves_again_and_no_request_is_lost() {
    for_each_preload(|preload| {
        let site = Site::with_releases(&format!("rollback_preload_{preload}"), 2);
        site.set("app.preload", preload).set("server.workers", "2");
        let master = second_release_serves(&site);
        let load = Load::on(&master.address()).closing(2).keeping(2).start();
        for (generation, release, workers) in [("3", "1", 2), ("4", "2", 3), ("5", "1", 2)] {
            load.wait_answers(20);
            assert_eq!(roll_back(&master, &[]), generation, "the one before, which may be the one rolled back from");
            let info = master.get("/info").json();
            assert_eq!((info["release"].as_str(), info["dep"].as_str()), (Some(release), Some(release)));
            assert_eq!(master.wait_settled().workers.len(), workers, "its settings are back, too");
        }
        load.stop().assert_no_failures();
        // It is what serves already, by another number.
        refused(&master, &["rollback", "--to", "1"], "generation 1: it serves already, as generation 5");
        assert_eq!(roll_back(&master, &["--to", "2"]), "6");
        assert_eq!(master.get("/info").json()["dep"], "2");
    });
}

#[test]
fn a_reload_does_not_bring_back_what_was_rolled_back_from() {
    let site = Site::with_releases("rollback_barred", 3);
    let master = second_release_serves(&site);
    assert_eq!(roll_back(&master, &[]), "3");
    let (real, current) = (|name: &str| site.release_path(name).canonicalize().unwrap(), site.path().join("current"));
    let line = format!("ln -sfn {} {}", real("1").display(), current.display());
    let why = format!(
        "{}: generation 3 was made to get rid of it, and `release` still leads there; point it back with `{line}`, or at a \
         new release, or deploy it again with `forkmaster reload --force`",
        real("2").display()
    );
    refused(&master, &["reload"], &why);
    // As logrotate and certbot do.
    let mark = master.mark();
    master.hup();
    master.wait_log_after(mark, "ln -sfn");
    assert_eq!(master.get("/").text(), "1");
    // The line is right.
    assert!(Command::new("sh").args(["-c", &line]).status().expect("sh is there").success());
    master.reload();
    assert_eq!(master.get("/").text(), "1");
    // After a reload nothing is barred any more.
    site.flip("2");
    master.reload();
    assert_eq!(roll_back(&master, &["--to", "1"]), "6");
    let output = master.cli(&["reload", "--force"]);
    assert_eq!((output.code, master.get("/").text().as_str()), (Some(0), "2"), "{}", output.stderr);
    assert_eq!(roll_back(&master, &[]), "8");
    site.flip("3");
    master.reload();
    assert_eq!(master.get("/").text(), "3", "a new release needs no force");
}

/// The link still leads there, and the machine has been started anew.
#[test]
fn a_start_from_what_was_rolled_back_from_says_so() {
    let site = Site::with_releases("rollback_start", 2);
    site.set("control.history", "'history.jsonl'");
    let master = second_release_serves(&site);
    roll_back(&master, &[]);
    let (real, current) = (|name: &str| site.release_path(name).canonicalize().unwrap(), site.path().join("current"));
    let again = format!("{} serves again, which was rolled back from at ", real("2").display());
    let mend = format!(
        ": rollback); if that is a mistake, point `release` back with `ln -sfn {} {}`, or at a new release, and reload",
        real("1").display(),
        current.display()
    );
    let restarted = |master: Master| {
        master.stop();
        drop(master);
        let master = site.start();
        master.cli(&["history"]);
        master
    };
    let mut master = restarted(master);
    for _ in 0..2 {
        let line = master.wait_log(&format!("{again}*{mend}"));
        assert!(line.contains(" WARN "), "{line}");
        assert_eq!(master.get("/info").json()["dep"], "2", "it serves all the same");
        master = restarted(master);
    }
    // Somebody wants it.
    master.wait_log(&again);
    assert!(master.cli(&["reload", "--force"]).ok());
    master = restarted(master);
    let read = |master: &Master| master.cli(&["history"]).stdout.contains("by start");
    crate::harness::wait_for("the history to be read", || read(&master).then_some(()));
    assert!(master.log_lines(&again).is_empty(), "{}", master.log());
}

#[test]
fn a_rollback_that_cannot_be_is_refused_with_the_reason() {
    let site = Site::with_releases("rollback_refused", 3);
    let master = site.start();
    refused(&master, &["rollback"], "generation 1: it is the first that serves, so there is none to go back to");
    refused(
        &master,
        &["rollback", "--to", "9"],
        "generation 1: it is the first that serves, so there is none to go back to",
    );
    master.reload();
    let release = |name: &str| site.release_path(name).canonicalize().unwrap();
    let why = format!(
        "generation 1: it had the same directory as generation 2, which serves ({}): the deploy was in place, and the \
         code before it is gone; give each release a directory of its own",
        release("1").display()
    );
    refused(&master, &["rollback"], &why);
    site.flip("2");
    master.reload();
    refused(&master, &["rollback", "--to", "9"], "generation 9: it is not one that has served before; these are: 1, 2");
    refused(&master, &["rollback", "--to", "3"], "generation 3: it serves already");
    let gone = release("1");
    fs::rename(&gone, site.path().join("elsewhere")).expect("a release can be moved away");
    let output = master.cli(&["rollback"]);
    assert_eq!(output.code, Some(1));
    let missing = format!("{}: it is gone, and the release cannot run without it", gone.display());
    assert!(output.stderr.contains(&missing), "{}", output.stderr);
    // A release of the same name that was made anew.
    let status = Command::new("cp").arg("-a").args([&release("2"), &gone]).status().expect("cp runs");
    assert!(status.success());
    let output = master.cli(&["rollback"]);
    assert_eq!(output.code, Some(1));
    let another = format!(
        "{}: another directory has this name by now, and the code that served is gone; deploy it with `forkmaster reload`",
        gone.display()
    );
    assert!(output.stderr.contains(&another), "{}", output.stderr);
    assert_eq!(master.get("/").text(), "2", "a refused rollback changes nothing");
}

/// Each import leaves a line; where a file asks for it, it goes on only when so many are under way, or when it must fail.
const IMPORTS: &str = r#"
import os
import time

RELEASE = os.path.basename(os.getcwd())
SITE = os.path.join(os.getcwd(), "..", "..")


def lines(name):
    try:
        with open(os.path.join(SITE, name)) as file:
            return file.read().splitlines()
    except FileNotFoundError:
        return []


with open(os.path.join(SITE, "imports"), "a") as imports:
    imports.write(RELEASE + "\n")
for wanted in lines("together"):
    for _ in range(2000):
        if len(lines("imports")) >= int(wanted):
            break
        time.sleep(0.01)
    else:
        raise RuntimeError("nobody else imports")
if RELEASE in lines("broken"):
    import missing


def application(environ, start_response):
    start_response("200 OK", [("Content-Length", "1")])
    return [RELEASE.encode()]
"#;

/// Release 2 serves with two workers; release 1 has served before.
fn imports(name: &str) -> (Site, Master) {
    let site = Site::new(name);
    for release in ["1", "2"] {
        site.build(release).file("app.py", IMPORTS).make();
    }
    site.flip("1");
    site.set("server.workers", "2");
    let master = site.start();
    site.flip("2");
    master.reload();
    site.write("imports", "");
    (site, master)
}

#[test]
fn a_rollback_pays_for_the_import_once() {
    let (site, master) = imports("rollback_once");
    // Nobody is ready before both import.
    site.write("together", "2");
    let load = Load::on(&master.address()).closing(2).keeping(2).target("/").start();
    load.wait_answers(20);
    assert_eq!(roll_back(&master, &[]), "3");
    assert_eq!(master.get("/").text(), "1");
    load.wait_answers(20);
    load.stop().assert_no_failures();
    assert_eq!(fs::read_to_string(site.path().join("imports")).expect("it is there"), "1\n1\n");
    master.wait_log("generation gen=3 has served before: its workers boot without a candidate");
    assert!(master.log_lines("generation gen=3 proved *").is_empty());
    master.stop_clean();
}

#[test]
fn one_that_does_not_boot_any_more_is_refused_and_touches_nothing() {
    let (site, master) = imports("rollback_broken");
    site.write("broken", "1\n");
    let before = master.wait_serving();
    let load = Load::on(&master.address()).closing(2).keeping(2).target("/").start();
    load.wait_answers(20);
    let output = master.cli(&["rollback"]);
    assert_eq!(output.code, Some(1), "{output}");
    assert!(output.stderr.contains("No module named 'missing'"), "{output}");
    load.wait_answers(20);
    load.stop().assert_no_failures();
    let pids = |workers: &[Worker]| workers.iter().map(|worker| worker.pid).collect::<Vec<_>>();
    assert_eq!(pids(&master.wait_serving()), pids(&before), "the workers are the same");
    assert_eq!(fs::read_to_string(site.path().join("imports")).expect("it is there"), "1\n1\n", "each has tried once");
    fs::remove_file(site.path().join("broken")).expect("it is there");
    assert_eq!(roll_back(&master, &[]), "4");
    assert_eq!(master.get("/").text(), "1");
    master.stop();
}

#[test]
fn while_a_release_is_on_its_way_nobody_goes_back_too_far_by_mistake() {
    let (site, master) = imports("rollback_early");
    // Another deploy of release 2, which imports for as long as the test likes.
    site.write("together", "9");
    let directory = site.path().to_path_buf();
    let asks = thread::spawn(move || run(&directory, &["reload", "-c", "app.toml"]));
    master.wait_log("worker gen=3 slot=0 pid=* -> starting");
    let why = "generation 3: it does not serve yet, and generation 2 does; `forkmaster abandon` gives up a canary, and `--to` \
               names the generation to go back to";
    refused(&master, &["rollback"], why);
    assert_eq!(master.get("/").text(), "2");
    site.write("together", "");
    assert_eq!(roll_back(&master, &["--to", "1"]), "4");
    assert_eq!(master.get("/").text(), "1");
    let output = asks.join().expect("the client does not panic");
    assert!(output.stderr.contains("superseded"), "{output}");
    master.stop();
}
