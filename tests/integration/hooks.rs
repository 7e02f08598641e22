//! `[hooks]`: functions that each worker calls, and commands that the master runs beside everything else. And the live
//! gauges of prometheus_client, which teams had a hook of Gunicorn's for.

use std::fs;
use std::os::unix::fs::{chown, symlink, PermissionsExt};
use std::path::Path;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::harness::machine::can_change_users;
use crate::harness::process::Process;
use crate::harness::site::Site;
use crate::harness::{for_each_preload, wait_for};

const WORKER_HOOKS: &str = "
import os

EVENTS = os.path.join(os.environ['PLACE'], 'events')
STATE = []

def tell(what):
    with open(EVENTS, 'a') as file:
        file.write('%s %d\\n' % (what, os.getpid()))

class Life:
    @staticmethod
    def start():
        STATE.append(os.getpid())
        tell('start')

def stop():
    tell('exit')

def fail():
    raise ValueError('the key is not there')

def leave():
    raise SystemExit(3)

async def later():
    pass

def fail_late():
    raise RuntimeError('too late')

nothing = 7
";

const APP: &str = "
import shop_hooks

def application(environ, start_response):
    start_response('200 OK', [])
    return [str(shop_hooks.STATE[-1:]).encode()]
";

fn site(name: &str) -> Site {
    let site = Site::new(name);
    site.build("1").file("app.py", APP).file("shop_hooks.py", WORKER_HOOKS).make();
    site.flip("1");
    site.set("env.PLACE", &format!("'{}'", site.path().display()));
    site
}

fn events(site: &Site) -> Vec<String> {
    let text = fs::read_to_string(site.path().join("events")).unwrap_or_default();
    text.lines().map(str::to_owned).collect()
}

#[test]
fn each_worker_calls_its_functions_before_its_first_request_and_after_its_last() {
    for_each_preload(|preload| {
        let site = site(&format!("hooks_worker_{preload}"));
        site.set("app.preload", preload).set("server.workers", "2");
        site.set("hooks.worker_start", "'shop_hooks:Life.start'").set("hooks.worker_exit", "'shop_hooks:stop'");
        let master = site.start();
        let mut workers: Vec<i32> = master.wait_serving().iter().map(|worker| worker.pid).collect();
        workers.sort_unstable();
        let started: Vec<String> = workers.iter().map(|pid| format!("start {pid}")).collect();
        let mut seen = events(&site);
        seen.sort();
        let mut expected = started.clone();
        expected.sort();
        assert_eq!(seen, expected);
        let answer = master.get("/").text();
        assert!(workers.iter().any(|pid| answer == format!("[{pid}]")), "{answer}");
        master.reload();
        master.wait_drained();
        for pid in workers {
            assert_eq!(events(&site).iter().filter(|line| **line == format!("exit {pid}")).count(), 1);
        }
        master.stop_clean();
        let of = |what: &str| events(&site).iter().filter(|line| line.starts_with(what)).count();
        assert_eq!((of("start"), of("exit")), (4, 4));
    });
}

#[test]
fn a_function_that_fails_refuses_the_release_and_says_so() {
    let site = site("hooks_worker_fails");
    let master = site.start();
    for (key, function, words) in [
        ("start", "shop_hooks:fail", "[hooks] worker_start = \"shop_hooks:fail\": ValueError: the key is not there"),
        ("start", "shop_hooks:leave", "the application called sys.exit(3) in it"),
        ("start", "shop_hooks:later", "is a coroutine function, which nobody awaits here; write `def`"),
        ("exit", "shop_hooks:later", "[hooks] worker_exit = \"shop_hooks:later\" is a coroutine function"),
        ("start", "shop_hooks:nothing", "cannot be called; it is a function without arguments"),
        (
            "exit",
            "shop_hooks:gone",
            "[hooks] worker_exit = \"shop_hooks:gone\": AttributeError: module 'shop_hooks' has no",
        ),
        (
            "exit",
            "nowhere:stop",
            "[hooks] worker_exit = \"nowhere:stop\": ModuleNotFoundError: No module named 'nowhere'",
        ),
    ] {
        site.unset("hooks.worker_start").unset("hooks.worker_exit");
        site.set(&format!("hooks.worker_{key}"), &format!("'{function}'"));
        let output = master.cli(&["reload"]);
        assert_eq!(output.code, Some(1), "{output}");
        assert!(output.stderr.contains(words), "{function}: {output}");
        assert_eq!(master.get("/").status, 200);
    }
    // What the end raises is said, and ends nothing.
    site.unset("hooks.worker_exit").set("hooks.worker_start", "'shop_hooks:Life.start'");
    site.set("hooks.worker_exit", "'shop_hooks:fail_late'");
    master.reload();
    master.stop();
    let line =
        master.wait_log("worker gen=* [hooks] worker_exit = \"shop_hooks:fail_late\" raised RuntimeError: too late");
    assert!(line.contains(" ERROR "), "{line}");
    assert!(master.log().contains("raise RuntimeError('too late')"));
}

/// A command that writes down what it was told.
fn script(site: &Site, name: &str, then: &str) -> String {
    let text = format!(
        "#!/bin/sh\necho \"$FORKMASTER_HOOK $FORKMASTER_HOOK_RESULT gen=$FORKMASTER_HOOK_GENERATION $1 cwd=$PWD \
         reason=$FORKMASTER_HOOK_REASON\" >> {}/events\n{then}\n",
        site.path().display()
    );
    let path = site.write(name, &text);
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("it is our file");
    path.display().to_string()
}

#[test]
fn commands_hear_of_the_start_of_reloads_and_of_the_end() {
    let site = Site::with_releases("hooks_commands", 2);
    let command = script(&site, "announce", "");
    for key in ["on_ready", "on_reload", "on_exit"] {
        site.set(&format!("hooks.{key}"), &format!("['{command}', 'shop']"));
    }
    let master = site.start();
    let expect =
        |count: usize| wait_for("the command to run", || (events(&site).len() == count).then(|| events(&site)));
    let cwd = |release: &str| site.release_path(release).canonicalize().expect("it is there").display().to_string();
    assert_eq!(expect(1)[0], format!("on_ready ready gen=1 shop cwd={} reason=", cwd("1")));
    master.wait_log("hook on_ready gen=1 result=ready pid=* ended after=*ms");
    site.flip("2");
    master.reload();
    assert_eq!(expect(2)[1], format!("on_reload committed gen=2 shop cwd={} reason=", cwd("2")));
    site.build("3").app("broken/syntax_error.py").make();
    site.flip("3");
    assert_eq!(master.cli(&["reload"]).code, Some(1));
    let told = expect(3)[2].clone();
    assert!(told.starts_with(&format!("on_reload refused gen=3 shop cwd={} reason=SyntaxError", cwd("2"))), "{told}");
    // Before it has a generation.
    site.set("server.workers", "'many'");
    assert_eq!(master.cli(&["reload"]).code, Some(1));
    let told = expect(4)[3].clone();
    assert!(
        told.starts_with("on_reload refused gen= shop") && told.contains("reason=") && told.contains("workers"),
        "{told}"
    );
    master.stop();
    assert_eq!(expect(5)[4], format!("on_exit 0 gen= shop cwd={} reason=", cwd("2")));
}

#[test]
fn a_command_that_hangs_holds_nobody_up_and_is_killed_with_what_it_started() {
    let site = Site::with_releases("hooks_hang", 1);
    let command = script(&site, "hang", &format!("sleep 600 & echo $! > {}/sleeper; wait", site.path().display()));
    site.set("hooks.on_reload", &format!("['{command}']")).set("hooks.command_timeout", "'2s'");
    let master = site.start();
    // Each of these would wait for the one before.
    let began = Instant::now();
    master.reload();
    master.reload();
    assert_eq!(master.get("/").status, 200);
    assert!(master.status().is_some_and(|status| status.ready()));
    let sleeper = wait_for("the command to run", || {
        fs::read_to_string(site.path().join("sleeper")).ok()?.trim().parse::<i32>().ok()
    });
    master.wait_log("hook on_reload gen=2 result=committed pid=* has not ended within command_timeout (2.0s): killed");
    assert!(began.elapsed() >= Duration::from_secs(2));
    wait_for("what it started to end", || Process::of(sleeper).is_none_or(|process| !process.runs()).then_some(()));
    master.wait_log("hook on_reload gen=3 result=committed pid=* has not ended within command_timeout (2.0s): killed");
    master.stop();
}

#[test]
fn the_end_waits_for_its_command_and_a_second_term_does_not() {
    let site = Site::with_releases("hooks_exit", 1);
    let done = site.path().join("done");
    let command = script(&site, "leave", &format!("while ! test -e {}; do sleep 0.05; done", done.display()));
    site.set("hooks.on_exit", &format!("['{command}']")).set("hooks.command_timeout", "'60s'");
    let master = site.start();
    master.term();
    wait_for("the command to run", || (events(&site).len() == 1).then_some(()));
    assert!(master.exited().is_none());
    fs::write(&done, "").expect("it is our directory");
    assert_eq!(master.wait_exit().code(), Some(0));
    drop(master);
    fs::remove_file(&done).expect("it is our file");
    let master = site.start();
    master.term();
    wait_for("the command to run", || (events(&site).len() == 2).then_some(()));
    master.term();
    assert_eq!(master.wait_exit().code(), Some(0));
    assert!(master.log().contains("killed, since the end is in a hurry"), "{}", master.log());
    master.assert_nothing_left();
}

#[test]
fn a_command_that_fails_is_logged_with_its_code_and_changes_nothing() {
    let site = Site::with_releases("hooks_fail", 1);
    let command = script(&site, "fail", "exit 3");
    site.set("hooks.on_ready", &format!("['{command}']"));
    site.set("hooks.on_reload", "['python3', '-c', 'import os; os.abort()']");
    let master = site.start();
    master.wait_log("hook on_ready gen=1 result=ready pid=* failed: exit code 3 after=*ms");
    master.reload();
    master.wait_log("hook on_reload gen=2 result=committed pid=* failed: SIGABRT* after=*ms");
    // Gone since it was checked.
    let gone = script(&site, "gone", "");
    site.set("hooks.on_reload", &format!("['{gone}']"));
    master.reload();
    master.wait_log("hook on_reload gen=3 result=committed pid=* ended*");
    fs::write(site.path().join("fail2"), "").expect("it is our directory");
    site.write("app.toml.next", "");
    fs::remove_file(&gone).expect("it is our file");
    site.build("2").app("broken/syntax_error.py").make();
    site.flip("2");
    site.unset("hooks.on_reload");
    assert_eq!(master.cli(&["reload"]).code, Some(1));
    master.wait_log("hook on_reload gen=4 result=refused pid=* failed: exit code 127 (no such command) after=*ms");
    assert_eq!(master.get("/").status, 200);
}

#[test]
fn a_command_runs_as_the_applications_user() {
    if !can_change_users() {
        return;
    }
    let site = Site::with_source("hooks_user", GAUGES);
    site.set("env.PROMETHEUS_MULTIPROC_DIR", "'.'");
    site.set(
        "app.python",
        &format!("'{}'", crate::harness::machine::Machine::get().public_python().executable.display()),
    );
    site.set("server.user", "12345")
        .set("server.group", "12345")
        .set("hooks.on_ready", "['sh', '-c', 'id -u >> events']");
    let release = site.release_path("1");
    chown(&release, Some(12345), Some(12345)).expect("we are root");
    let master = site.spawn();
    let told = wait_for("the command to run", || {
        fs::read_to_string(release.join("events")).ok().filter(|text| text.ends_with('\n'))
    });
    assert_eq!(told, "12345\n");
    master.stop();
}

fn names(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).expect("it is there");
    let mut names: Vec<String> =
        entries.map(|entry| entry.expect("it can be read").file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

const GAUGES: &str = "
import os

def application(environ, start_response):
    start_response('200 OK', [])
    return []

for kind in ['gauge_livesum', 'gauge_liveall', 'gauge_all', 'counter']:
    open(os.path.join(os.environ['PROMETHEUS_MULTIPROC_DIR'], '%s_%d.db' % (kind, os.getpid())), 'w')
";

#[test]
fn live_gauges_of_dead_processes_go_and_nothing_else() {
    let site = Site::with_source("gauges", GAUGES);
    let directory = site.path().join("metrics");
    fs::create_dir(&directory).expect("it is our directory");
    site.set("env.PROMETHEUS_MULTIPROC_DIR", &format!("'{}'", directory.display())).set("server.workers", "1");
    // Of an earlier run, and what is none.
    for name in ["gauge_livesum_1.db", "gauge_livesum_1.db.old", "gauge_all_1.db", "counter_1.db", "notes.txt"] {
        fs::write(directory.join(name), "").expect("it is our directory");
    }
    symlink(directory.join("notes.txt"), directory.join("gauge_livemax_7.db")).expect("it is our directory");
    let master = site.start();
    let one = master.wait_serving()[0].pid;
    let kept = |pids: &[i32], living: &[i32]| {
        let mut names = vec!["counter_1.db".to_owned(), "gauge_all_1.db".to_owned()];
        names.extend(["gauge_livemax_7.db", "gauge_livesum_1.db.old", "notes.txt"].map(str::to_owned));
        names.extend(pids.iter().flat_map(|pid| [format!("counter_{pid}.db"), format!("gauge_all_{pid}.db")]));
        names.extend(
            living.iter().flat_map(|pid| [format!("gauge_liveall_{pid}.db"), format!("gauge_livesum_{pid}.db")]),
        );
        names.sort();
        names
    };
    assert_eq!(names(&directory), kept(&[one], &[one]));
    Process::of(one).expect("it lives").signal(Signal::SIGKILL);
    let two = wait_for("a successor", || master.workers().iter().map(|worker| worker.pid).find(|pid| *pid != one));
    master.wait_serving();
    wait_for("the dead worker's gauges to go", || (names(&directory) == kept(&[one, two], &[two])).then_some(()));
    master.reload();
    master.wait_drained();
    let three = master.wait_serving()[0].pid;
    wait_for("the drained worker's gauges to go", || {
        (names(&directory) == kept(&[one, two, three], &[three])).then_some(())
    });
}

/// The directory is the application's, and it has put links there.
#[test]
fn live_gauges_are_removed_with_the_applications_rights() {
    if !can_change_users() {
        return;
    }
    let site = Site::with_source("gauges_links", GAUGES);
    let (public, secret) = (site.path().join("metrics"), site.path().join("secret"));
    for directory in [&public, &secret] {
        fs::create_dir(directory).expect("it is our directory");
    }
    fs::write(secret.join("gauge_livesum_1.db"), "").expect("it is our directory");
    fs::remove_dir(&public).expect("it is our directory");
    let own = site.path().join("own");
    fs::create_dir(&own).expect("it is our directory");
    chown(&own, Some(12345), Some(12345)).expect("we are root");
    // A link of that user's to a directory of root's.
    symlink(&secret, own.join("metrics")).expect("we are root");
    std::os::unix::fs::lchown(own.join("metrics"), Some(12345), Some(12345)).expect("we are root");
    site.set("env.PROMETHEUS_MULTIPROC_DIR", &format!("'{}'", own.join("metrics").display()));
    site.set(
        "app.python",
        &format!("'{}'", crate::harness::machine::Machine::get().public_python().executable.display()),
    );
    site.set("server.user", "12345").set("server.group", "12345");
    let master = site.spawn();
    let line = master.wait_log("live gauges of prometheus_client in * cannot be removed: *");
    assert!(line.contains(" WARN "), "{line}");
    assert_eq!(names(&secret), ["gauge_livesum_1.db"]);
    master.signal(Signal::SIGQUIT);
    master.wait_exit();
}
