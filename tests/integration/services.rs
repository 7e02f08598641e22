//! Services belong to the deploy: they run the code of the generation that serves, begin with its commit, end with the next
//! one, and never hurt what serves.

use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::harness::client::Address;
use crate::harness::load::Load;
use crate::harness::machine::Machine;
use crate::harness::master::Master;
use crate::harness::process::Process;
use crate::harness::site::Site;
use crate::harness::wait_for;

/// Says which release and which package it runs, works until it is told to stop, and says that as well.
const TASKS: &str = r#"
import os, signal, sys, time
import dep

def stop(number, frame):
    print("stops in", os.path.basename(os.getcwd()), flush=True)
    sys.exit(0)

signal.signal(signal.SIGTERM, stop)
print("works in", os.path.basename(os.getcwd()), "with dep", dep.VERSION, flush=True)
while True:
    time.sleep(0.05)
"#;

fn site(name: &str, releases: u32, settings: &str) -> Site {
    let site = Site::new(name);
    for release in 1..=releases {
        let path = site.build(&release.to_string()).make();
        fs::write(path.join("tasks.py"), TASKS).expect("a release can be written to");
    }
    site.flip("1");
    add(&site, &format!("[[service]]\nname = 'tasks'\ncommand = ['python', 'tasks.py']\n{settings}"));
    site
}

/// To what the configuration has already.
fn add(site: &Site, text: &str) {
    let before = fs::read_to_string(site.config_path()).expect("it was written");
    site.config(&(before + text));
}

fn services(master: &Master) -> Vec<Value> {
    let output = master.cli(&["status", "--json"]);
    let status: Value = serde_json::from_str(&output.stdout).expect("it is JSON");
    let of = |generation: &Value| generation["services"].as_array().cloned().unwrap_or_default();
    status["generations"].as_array().expect("generations").iter().flat_map(of).collect()
}

fn running(master: &Master, count: usize) -> Vec<Value> {
    wait_for("the services to run", || {
        let found = services(master);
        let run = found.len() == count && found.iter().all(|of| of["state"] == "running" && of["pid"].is_number());
        run.then_some(found)
    })
}

fn pid(service: &Value) -> i32 {
    service["pid"].as_i64().expect("a pid") as i32
}

#[test]
fn they_run_the_release_that_serves_and_change_with_it() {
    let site = site("services_deploy", 2, "count = 2\n");
    site.build("3").app("broken/missing_dependency.py").make();
    let master = site.start();
    let old = running(&master, 2);
    master.wait_log("service tasks gen=1: works in 1 with dep 1");
    // A release that is refused leaves them alone.
    site.flip("3");
    assert_eq!(master.cli(&["reload"]).code, Some(1));
    assert_eq!(services(&master), old);
    let load = Load::on(&master.address()).closing(2).keeping(2).start();
    site.flip("2");
    master.reload();
    load.wait_answers(10);
    load.stop().assert_no_failures();
    master.wait_log("service tasks gen=3: works in 2 with dep 2");
    master.wait_log("service tasks gen=1: stops in 1");
    let new = running(&master, 2);
    assert!(old.iter().all(|old| Process::of(pid(old)).is_none_or(|process| process.is_zombie())), "{old:?}");
    assert!(new.iter().all(|new| !old.contains(new)));
    // None of the new began before the commit, and none of the old after it.
    let log = master.log();
    let at = |words: &str| log.find(words).unwrap_or_else(|| panic!("{words}:\n{log}"));
    let commit = at("generation gen=3 rolling -> serving");
    assert!(at("service tasks gen=3 number=0") > commit && log.rfind("gen=1: works in 1") < Some(commit));
    assert!(master.cli(&["status"]).stdout.contains("service tasks 1 pid "));
    master.stop();
    master.assert_nothing_left();
}

/// Each process of a service began while its generation served: not before its commit, and not after the next one.
#[track_caller]
fn each_began_while_its_generation_served(master: &Master) -> usize {
    let (mut serves, mut begun) = (0, 0);
    for line in master.log().lines() {
        let generation = || line.split("gen=").nth(1)?.split([' ', ':']).next()?.parse::<u32>().ok();
        if line.contains(" generation gen=") && line.contains(" -> serving") {
            serves = generation().expect("a number");
        }
        if line.contains(" service ")
            && (line.ends_with(" -> running") || line.contains(" pid=") && line.contains(" -> starting"))
        {
            begun += 1;
            assert_eq!(generation(), Some(serves), "{line}\n{}", master.log());
        }
    }
    begun
}

#[test]
fn those_that_die_around_a_commit_never_begin_for_a_release_that_does_not_serve() {
    let site = site("services_commits", 2, "");
    // What is set writes the configuration anew.
    site.set("server.workers", "4").set("app.preload", "true").set("reload.rollback_window", "'10m'");
    add(&site, "[[service]]\nname = 'tasks'\ncommand = ['python', 'tasks.py']\ncount = 2\n");
    add(&site, "[[service]]\nname = 'often'\ncommand = ['python', '-c', 'pass']\nevery = '1s'\n");
    add(&site, "[[service]]\nname = 'loop'\ncommand = ['python', '-c', 'import sys; sys.exit(3)']\n");
    let master = site.start();
    master.wait_log("service tasks gen=1 number=1 pid=* -> running");
    let load = Load::on(&master.address()).closing(2).keeping(4).start();
    let (over, mut told) = (AtomicBool::new(false), Vec::new());
    let killed = std::thread::scope(|scope| {
        // Whichever process of `tasks` there is dies again and again.
        let kills = scope.spawn(|| {
            let mut killed = 0;
            while !over.load(Ordering::Relaxed) {
                for service in services(&master).iter().filter(|of| of["name"] == "tasks") {
                    if let Some(pid) = service["pid"].as_i64() {
                        Process::of(pid as i32).into_iter().for_each(|process| process.signal(Signal::SIGKILL));
                        killed += 1;
                    }
                }
            }
            killed
        });
        let mut release = 1;
        for turn in 0..12 {
            release = 3 - release;
            let deploy: &[&str] = match turn % 4 {
                0 => &["reload", "--force"],
                1 => &["rollback"],
                2 => &["reload", "--force", "--canary", "1", "--hold", "300ms"],
                _ => &["reload", "--force", "--pause", "--", "sh", "-c", "sleep 0.2"],
            };
            site.flip(&release.to_string());
            told.push((release.to_string(), master.cli(deploy), master.get("/").text()));
        }
        over.store(true, Ordering::Relaxed);
        kills.join().expect("it does not panic")
    });
    for (release, output, answer) in told {
        assert!(output.ok() && answer == release, "{answer}: {output}");
    }
    load.wait_answers(20);
    load.stop().assert_no_failures();
    assert!(killed >= 12, "{killed}");
    let begun = each_began_while_its_generation_served(&master);
    assert!(begun > 12, "{begun}");
    master.stop();
    master.assert_nothing_left();
}

#[test]
fn a_command_that_is_written_through_the_link_stays_with_its_release() {
    let site = site("services_link", 2, "");
    let link = site.path().join("current").display().to_string();
    let before = fs::read_to_string(site.config_path()).expect("it was written");
    let command = format!("command = ['{link}/venv/bin/python', '{link}/tasks.py']");
    site.config(&before.replace("command = ['python', 'tasks.py']", &command));
    let master = site.start();
    let service = running(&master, 1).remove(0);
    site.flip("2");
    let mark = master.mark();
    Process::of(pid(&service)).expect("it lives").signal(Signal::SIGKILL);
    let line = master.wait_log_after(mark, "service tasks gen=1: works in * with dep *");
    assert!(line.ends_with("works in 1 with dep 1"), "{line}");
    master.reload();
    master.wait_log("service tasks gen=2: works in 2 with dep 2");
}

#[test]
fn one_that_dies_begins_again_and_the_site_serves() {
    let site = site("services_death", 1, "");
    let master = site.start();
    let service = running(&master, 1).remove(0);
    // The code on disk has changed meanwhile; the generation's directory has not.
    Process::of(pid(&service)).expect("it lives").signal(Signal::SIGKILL);
    master.wait_log("service tasks gen=1 number=0 pid=* running -> resting cause=\"SIGKILL\": it begins again in 0.0s");
    let again =
        wait_for("another process", || running(&master, 1).into_iter().find(|again| pid(again) != pid(&service)));
    assert_eq!(again["restarts"], 1);
    assert_eq!(master.get("/").text(), "1");
    master.stop();
}

/// `mv app app.old; mv app.new app`, and the service dies before the reload.
#[test]
fn one_whose_release_was_renamed_for_the_next_one_does_not_run_that() {
    let site = site("services_renamed", 2, "");
    site.set("app.release", "'releases/1'");
    add(&site, "[[service]]\nname = 'tasks'\ncommand = ['python', 'tasks.py']\n");
    let master = site.start();
    let old = running(&master, 1);
    let releases = site.path().join("releases");
    fs::rename(releases.join("1"), releases.join("old")).expect("it is there");
    fs::rename(releases.join("2"), releases.join("1")).expect("it is there");
    Process::of(pid(&old[0])).expect("it lives").signal(Signal::SIGKILL);
    master.wait_log("service tasks gen=1*another directory has the name */releases/1 by now*");
    assert!(!master.log().contains("with dep 2"));
    master.reload();
    master.wait_log("service tasks gen=2: works in 1 with dep 2");
}

#[test]
fn one_that_cannot_run_rests_longer_each_time_and_hurts_nobody() {
    let site = site("services_broken", 1, "");
    add(&site, "[[service]]\nname = 'broken'\ncommand = ['python', '-c', 'import sys; sys.exit(\"no database\")']\n");
    add(&site, "[[service]]\nname = 'missing'\ncommand = ['no-such-program']\n");
    let master = site.start();
    master.wait_log("service broken gen=1: no database");
    master.wait_log("service broken * it begins again in 0.2s");
    master.wait_log("service missing * no-such-program");
    assert_eq!(master.get("/").text(), "1");
    assert!(master.cli(&["health"]).ok());
    master.stop();
    master.assert_nothing_left();
}

#[test]
fn one_that_does_not_stop_is_killed_and_a_killed_master_leaves_none() {
    let site = site("services_stubborn", 1, "");
    let stubborn = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf', flush=True); time.sleep(600)";
    add(
        &site,
        &format!("[[service]]\nname = 'deaf'\nstop_timeout = '300ms'\ncommand = ['python', '-c', \"{stubborn}\"]\n"),
    );
    let master = site.start();
    master.wait_log("service deaf gen=1: deaf");
    let before = running(&master, 2);
    // Nor do old and new run side by side for longer.
    master.reload();
    master.wait_log("service deaf gen=1 number=0 * did not stop within stop_timeout: killed");
    wait_for("the end of the old ones", || before.iter().all(|old| Process::of(pid(old)).is_none()).then_some(()));
    master.wait_log("service deaf gen=2: deaf");
    running(&master, 2);
    master.term();
    assert_eq!(master.wait_exit().code(), Some(0));
    master.wait_log("service deaf gen=2 * did not stop within stop_timeout: killed");
    master.assert_nothing_left();
    let master = site.start();
    running(&master, 2);
    master.signal(Signal::SIGKILL);
    master.wait_exit();
    master.assert_nothing_left();
}

/// Writes a line into a file each time, and fails the second time.
const CLEAN: &str = "
import os, sys
with open('runs', 'a+') as file:
    file.write(os.path.basename(os.getcwd()))
    file.seek(0)
    sys.exit(len(file.read()) == 2 and 7)
";

#[test]
fn one_that_runs_every_so_often_says_how_it_has_ended() {
    let site = Site::with_releases("services_every", 1);
    fs::write(site.release_path("1").join("clean.py"), CLEAN).expect("a release can be written to");
    add(&site, "[[service]]\nname = 'clean'\ncommand = ['python', 'clean.py']\nevery = '1s'\n");
    add(&site, "[status]\nbind = ['unix:status.sock']\n");
    let master = site.start();
    assert!(master.cli(&["status"]).stdout.contains("service clean 0 pid "));
    master.wait_log(
        "service clean gen=1 number=0 pid=* running -> waiting cause=\"exit code 0\" after=*: it runs again in *s",
    );
    master.wait_log("ERROR service clean * running -> waiting cause=\"exit code 7\"");
    // It is not tried again before its time, and each run is one.
    wait_for("a third run", || {
        let text = fs::read_to_string(site.release_path("1").join("runs")).unwrap_or_default();
        text.starts_with("111").then_some(())
    });
    let told = wait_for("the third run to be told", || {
        let runs = services(&master)[0]["runs"].clone();
        (runs["ended"].as_u64() >= Some(3)).then_some(runs)
    });
    assert_eq!((&told["failed"], &told["last"], &told["every_s"]), (&1.into(), &"exit code 0".into(), &1.0.into()));
    // One more, asked for.
    let again = master.cli(&["recycle", "clean"]);
    assert_eq!(again.stdout, "clean runs anew\n", "{again}");
    let page =
        crate::harness::client::get(&Address::Unix(site.path().join("status.sock")), "/metrics").expect("a page");
    for line in [
        "forkmaster_service_processes_desired{service=\"clean\"} 1\n",
        "forkmaster_service_runs_total{service=\"clean\",result=\"failed\"} 1\n",
        "forkmaster_service_runs_total{service=\"clean\",result=\"skipped\"} ",
    ] {
        assert!(page.text().contains(line), "{line}: {}", page.text());
    }
    assert_eq!(master.get("/").text(), "1");
    master.stop();
    master.assert_nothing_left();
}

#[test]
fn processes_are_scaled_and_recycled_by_the_name_of_their_service() {
    let site = site("services_verbs", 2, "count = 2\n");
    let master = site.start();
    let before = running(&master, 2);
    let said = |args: &[&str]| {
        let output = master.cli(args);
        assert!(output.ok(), "{output}");
        output.stdout
    };
    assert_eq!(said(&["scale", "tasks", "+1"]), "tasks: 3 processes run\n");
    assert_eq!(said(&["recycle", "tasks:1"]), "tasks runs anew\n");
    let now = running(&master, 3);
    let kept: Vec<bool> = before.iter().map(|old| now.iter().any(|new| pid(new) == pid(old))).collect();
    assert_eq!(kept, [true, false]);
    // What was scaled survives reloads.
    site.flip("2");
    master.reload();
    wait_for("the old ones to end", || {
        (running(&master, 3)[0]["number"] == 0 && !master.log_lines("service tasks gen=1 number=2 * gone *").is_empty())
            .then_some(())
    });
    assert_eq!(said(&["scale", "tasks", "-1"]), "tasks: 2 processes run\n");
    assert_eq!(said(&["scale", "tasks", "1"]), "tasks: 1 process runs\n");
    assert_eq!(said(&["scale", "tasks", "0", "--no-wait"]), "tasks: 0 processes are wanted\n");
    wait_for("nobody", || services(&master).is_empty().then_some(()));
    let refused = |args: &[&str], words: &str| {
        let output = master.cli(args);
        assert!(output.code == Some(1) && output.stderr.contains(words), "{output}");
    };
    refused(&["recycle", "tasks"], "no process of tasks is wanted; `scale tasks 1` brings one");
    refused(&["scale", "celery", "2"], "there is no service celery; there is tasks");
    refused(&["scale", "tasks", "65"], "65 processes are too many for a service; at most 64");
    master.wait_log("asked by uid=*: scale tasks +1");
    assert_eq!(master.get("/").text(), "2");
    master.stop();
}

#[test]
fn what_is_wrong_with_a_service_is_told_at_once_and_all_of_it() {
    let site = Site::with_releases("services_settings", 1);
    add(
        &site,
        "[[service]]\nname = '7'\ncommand = 'celery worker'\ncount = 0\nstop_signal = 'KILL'\nwhen = '5m'\nready_timeout = '3s'\nbind = ['127.0.0.1:x']\n[[service]]\n[[service]]\nname = 'a b'\n\
          command = ['x']\n[[service]]\nname = 'c'\ncommand = ['x']\nevery = '0s'\n[[service]]\nname = 'd'\n\
          command = ['x']\nevery = '5m'\ncount = 2\n[[service]]\nname = '-1'\n",
    );
    let output = master_check(&site);
    for words in [
        "[[service]] name: a number is no name",
        "[[service]] command: no shell reads it: write a list, as [\"celery\", \"worker\"]",
        "[[service]] count: a number from 1 to 64",
        "[[service]] stop_signal: one of TERM, INT",
        "[[service]] when: there is no such key",
        "[[service]] ready_timeout: it is for a program that says when it is ready; write notify = true",
        "[[service]] bind: `x` is not a port",
        "[[service]] name: it stands in the log",
        "[[service]] name: write up to 40 letters",
        "[[service]] name: it must begin with a letter, a digit or `_`",
        "[[service]] every: it must be more than zero",
        "[[service]] count: it is for a program that runs all the time",
    ] {
        assert!(output.contains(words), "{words}: {output}");
    }
}

#[test]
fn an_address_of_a_service_is_nobody_elses() {
    let site = Site::with_releases("services_addresses", 1);
    site.set("server.bind", "['127.0.0.1:0', '127.0.0.1:18231']");
    let service =
        |name: &str, bind: &str| format!("[[service]]\nname = '{name}'\ncommand = ['x']\nbind = ['{bind}']\n");
    add(&site, &(service("a", "0.0.0.0:18231") + &service("b", "127.0.0.1:18232") + &service("c", "0.0.0.0:18232")));
    let output = master_check(&site);
    let of = |words: &str| output.contains(&format!("[[service]] bind: {words}; choose another address"));
    assert!(of("0.0.0.0:18231 overlaps 127.0.0.1:18231 of [server] bind"), "{output}");
    assert!(of("0.0.0.0:18232 overlaps 127.0.0.1:18232 of [[service]] b"), "{output}");
}

#[test]
fn config_show_has_them_as_they_would_be_written() {
    let site = Site::with_releases("services_shown", 1);
    let of = "command = ['celery', '-A', 'shop', 'worker']\nnotify = true\nbind = ['127.0.0.1:18233']\n";
    add(&site, &format!("[[service]]\nname = 'celery'\n{of}[[service]]\nname = 'beat'\ncommand = ['beat']\n"));
    let output = crate::harness::master::run(site.path(), &["config", "show", "-c", "app.toml"]);
    let plain: Vec<&str> =
        output.stdout.lines().map(|line| line.split("  #").next().unwrap_or("").trim_end()).collect();
    let text = plain.join("\n");
    let celery = "\n[[service]]\nname = \"celery\"\ncommand = [\"celery\", \"-A\", \"shop\", \"worker\"]\ncount = 1\n\
                  bind = [\"127.0.0.1:18233\"]\nnotify = true\nready_timeout = \"30s\"\nstop_timeout = \"25s\"\n\
                  stop_signal = \"TERM\"\n\n[[service]]\nname = \"beat\"\n";
    assert!(text.contains(celery), "{output}");
    // What it prints is a configuration.
    site.config(&text);
    let again = crate::harness::master::run(site.path(), &["check", "-c", "app.toml"]);
    assert_eq!(again.code, Some(0), "{again}");
}

fn master_check(site: &Site) -> String {
    let config = site.config_path();
    let output = crate::harness::master::run(site.path(), &["check", "-c", &config.to_string_lossy()]);
    assert_eq!(output.code, Some(78), "{output}");
    output.stderr
}

/// A task queue in the file system, which needs no server: the web application puts tasks into it, and whichever worker takes
/// one says which release it runs.
const CELERY: &str = r#"
import os
from celery import Celery

RELEASE = os.path.basename(os.getcwd())
ROOT = os.path.abspath(os.path.join("..", ".."))
QUEUE = os.path.join(ROOT, "queue")
os.makedirs(QUEUE, exist_ok=True)

celery = Celery("app", broker="filesystem://")
celery.conf.update(
    broker_transport_options={"data_folder_in": QUEUE, "data_folder_out": QUEUE},
    worker_hijack_root_logger=False,
    broker_connection_retry_on_startup=True,
)


@celery.task(name="done")
def done(number):
    with open(os.path.join(ROOT, "done"), "a") as file:
        file.write(f"{number} {RELEASE}\n")


def application(environ, start_response):
    done.delay(environ["QUERY_STRING"])
    start_response("202 Accepted", [("Content-Length", "0")])
    return []
"#;

#[test]
fn celery_works_for_the_release_that_serves() {
    let Some(venv) = Machine::get().agent("celery") else { return };
    let site = Site::new("services_celery");
    for release in ["1", "2"] {
        site.build(release).bare().file("app.py", CELERY).make();
    }
    site.flip("1");
    site.set("app.venv", &format!("{:?}", venv.display().to_string()));
    let worker =
        "'celery', '-A', 'app', 'worker', '-P', 'solo', '--without-gossip', '--without-mingle', '-l', 'WARNING'";
    add(&site, &format!("[[service]]\nname = 'celery'\ncommand = [{worker}]\n"));
    let master = site.start();
    let done = |line: &str| {
        let text = fs::read_to_string(site.path().join("done")).unwrap_or_default();
        text.lines().any(|found| found == line).then_some(())
    };
    assert_eq!(master.get("/?first").status, 202);
    wait_for("the first task", || done("first 1"));
    site.flip("2");
    master.reload();
    // The old worker has ended, so whoever takes the next task is of the new release.
    master.wait_log("service celery gen=1 number=0 pid=* stopping -> gone cause=\"exit code 0\"");
    assert_eq!(master.get("/?second").status, 202);
    wait_for("the second task", || done("second 2"));
    master.stop();
    master.assert_nothing_left();
}
