//! The limit of open files: the master knows what it needs, says so where it is short, and never meets it half-way.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::chown;
use std::process::{Child, Command, Stdio};

use nix::sys::signal::Signal;
use nix::unistd::geteuid;

use crate::harness::machine::{can_change_users, Machine};
use crate::harness::master::{Launch, Master};
use crate::harness::site::{copy_binary_to, Site};
use crate::harness::wait_for;

/// A user that no other test has: what is on its way between processes is counted for a user (unix(7), ETOOMANYREFS), except
/// for root.
fn launch(site: &Site, limit: u32, uid: u32) -> Master {
    let limit = format!("--nofile={limit}:{limit}");
    let ids = [format!("--reuid={uid}"), format!("--regid={uid}")];
    let mut through = vec!["prlimit", &limit, "--"];
    if geteuid().is_root() {
        for path in [site.path().to_path_buf(), site.config_path()] {
            chown(&path, Some(uid), Some(uid)).expect("root may");
        }
        through.extend(["setpriv", &ids[0], &ids[1], "--clear-groups", "--"]);
    }
    let through = through.iter().map(|word| (*word).to_string()).collect();
    site.launch(Launch { through, binary: Some(copy_binary_to(site)), ..Launch::default() })
}

fn site(name: &str, workers: &str) -> Site {
    let site = Site::new(name);
    for number in ["1", "2"] {
        site.build(number).python(Machine::get().public_python()).make();
    }
    site.flip("1");
    site.set("server.workers", workers);
    site
}

/// As found: the old workers and the new ones together were too many, and the release was refused half-way.
#[test]
fn a_reload_keeps_to_the_open_files_that_there_are() {
    let site = site("few_open_files", "20");
    let master = launch(&site, 132, 24017);
    master.wait_serving();
    let warned = master.log_lines("*: the limit of 132 open files has room for *");
    assert_eq!(warned.len(), 1, "{warned:?}");
    assert!(warned[0].contains(" WARN ") && warned[0].contains("LimitNOFILE=1"), "{warned:?}");
    let refused = master.cli(&["scale", "40"]);
    assert!(!refused.ok() && refused.text().contains("the limit of 132 open files has room for"), "{}", refused.text());
    site.flip("2");
    master.reload();
    assert_eq!(master.get("/").release(), "2");
    assert!(master.log_lines("* ERROR *").is_empty(), "{}", master.log());
    // What cannot be had is refused before anything is touched.
    site.set("server.workers", "60");
    let refused = master.cli(&["reload"]);
    assert!(!refused.ok() && refused.text().contains("and its limit is 132; raise it"), "{}", refused.text());
}

#[test]
fn more_workers_than_open_files_do_not_start() {
    let site = site("no_open_files", "60");
    let master = launch(&site, 132, 24018);
    assert_eq!(master.wait_exit().code(), Some(78));
    let log = master.log();
    assert!(log.contains(" ERROR [server] workers = 60: the master needs ") && log.contains("ulimit -n"), "{log}");
}

/// As found: a worker that could not be told of the new log wrote to the old one for the rest of its life, and one that could
/// not be forked was a failed boot.
#[test]
fn what_could_not_be_sent_for_want_of_room_is_sent_when_there_is_room() {
    const UID: u32 = 24019;
    if !can_change_users() {
        return;
    }
    let site = site("no_room_on_the_way", "1");
    let log = site.path().join("access.log");
    site.set("log.access", "'access.log'");
    let master = launch(&site, 132, UID);
    let worker = master.wait_serving().remove(0).pid;
    let other = OnTheWay::of(UID);
    let mark = master.mark();
    assert!(master.cli(&["scale", "2", "--no-wait"]).ok());
    let line = master.wait_log_after(mark, "* generation gen=1 tries again to make a worker: *");
    assert!(line.contains(" WARN ") && line.contains("LimitNOFILE="), "{line}");
    let old = site.path().join("access.old");
    fs::rename(&log, &old).expect("logrotate renames it");
    master.signal(Signal::SIGUSR1);
    wait_for("the new log", || log.exists().then_some(()));
    drop(other);
    master.wait_workers(2);
    wait_for("the worker to leave the old file", || {
        let open = fs::read_dir(format!("/proc/{worker}/fd")).ok()?;
        let left = !open.flatten().filter_map(|fd| fs::read_link(fd.path()).ok()).any(|path| path == old);
        left.then_some(())
    });
    assert!(master.log_lines("* ERROR *").is_empty(), "{}", master.log());
}

/// A process of that user with 500 descriptors on their way.
struct OnTheWay(Child);

impl OnTheWay {
    fn of(uid: u32) -> OnTheWay {
        const SENDS: &str = "import socket, array, sys\n\
                             one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)\n\
                             rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array('i', [0] * 250))]\n\
                             for _ in range(2): one.sendmsg([b'x'], rights)\n\
                             print('sent', flush=True)\n\
                             sys.stdin.read()\n";
        let (user, group) = (format!("--reuid={uid}"), format!("--regid={uid}"));
        let mut command = Command::new(Machine::get().program("setpriv"));
        command.args([&user, &group, "--clear-groups", "--"]).arg(&Machine::get().public_python().executable);
        let mut child = command
            .args(["-c", SENDS])
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("setpriv can be started");
        let mut line = String::new();
        BufReader::new(child.stdout.as_mut().expect("it is a pipe")).read_line(&mut line).expect("it says a line");
        assert_eq!(line, "sent\n");
        OnTheWay(child)
    }
}

impl Drop for OnTheWay {
    fn drop(&mut self) {
        // Its input ends, and it does.
        drop(self.0.stdin.take());
        self.0.wait().expect("it is our child");
    }
}
