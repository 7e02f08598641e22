//! Under Circus, Supervisor, runit and s6 themselves, with the very files of examples/, and as PID 1 of a container. Each is
//! told the same story: a killed worker, a reload, a crash of the master, a stop with a request in flight, a start.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use nix::sys::signal::{kill, Signal};
use nix::unistd::Pid;
use serde_json::Value;

use crate::harness::client::{self, head, Address, Connection};
use crate::harness::machine::{can_mount, Machine};
use crate::harness::master::{binary, run, Launch, Status};
use crate::harness::process::{belonging_to, children, Process};
use crate::harness::site::Site;
use crate::harness::{wait_for, wait_within};

/// A supervisor: its example, and the lines of shell that an operator types there.
struct Kind {
    example: &'static str,
    supervise: &'static str,
    status: &'static str,
    reload: &'static str,
    stop: &'static str,
    start: &'static str,
    /// What `status` says.
    up: &'static str,
    down: &'static str,
    /// Where the output is.
    log: &'static str,
    /// `start` returns when the service answers, or connections wait for it.
    start_is_ready: bool,
}

const CIRCUS: Kind = Kind {
    example: "circus",
    supervise: "exec circusd circus.ini",
    status: "circusctl --endpoint ipc://$PWD/circus-endpoint.sock status shop",
    reload: "circusctl --endpoint ipc://$PWD/circus-endpoint.sock reload shop",
    stop: "circusctl --endpoint ipc://$PWD/circus-endpoint.sock stop shop",
    start: "circusctl --endpoint ipc://$PWD/circus-endpoint.sock start shop",
    up: "active",
    down: "stopped",
    log: "shop.log",
    start_is_ready: true,
};

const SUPERVISOR: Kind = Kind {
    example: "supervisor",
    supervise: "exec supervisord -n -c supervisord.conf",
    // It exits with 3 for what is stopped.
    status: "supervisorctl -c supervisord.conf status shop || [ $? = 3 ]",
    reload: "supervisorctl -c supervisord.conf signal HUP shop",
    stop: "supervisorctl -c supervisord.conf stop shop",
    start: "supervisorctl -c supervisord.conf start shop",
    up: "RUNNING",
    down: "STOPPED",
    log: "shop.log",
    start_is_ready: false,
};

const RUNIT: Kind = Kind {
    example: "runit",
    supervise: "exec runsv shop",
    status: "sv status ./shop",
    reload: "sv hup ./shop",
    stop: "sv -w 30 stop ./shop",
    start: "sv -w 30 start ./shop",
    up: "run: ",
    down: "down: ",
    log: "shop/log/main/current",
    start_is_ready: true,
};

const S6: Kind = Kind {
    example: "s6",
    supervise: "exec s6-svscan .",
    status: "s6-svstat shop",
    reload: "s6-svc -h shop",
    stop: "s6-svc -wD -T 30000 -d shop",
    start: "s6-svc -wU -T 30000 -u shop",
    up: "up (pid ",
    down: "down (exitcode 0)",
    log: "shop/log/main/current",
    start_is_ready: true,
};

/// A supervisor at work on a site.
struct Supervised<'a> {
    kind: &'static Kind,
    site: &'a Site,
    /// The copy of the example.
    place: PathBuf,
    supervisor: Child,
}

impl<'a> Supervised<'a> {
    fn new(site: &'a Site, kind: &'static Kind) -> Supervised<'a> {
        let place = site.path().join(kind.example);
        let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples").join(kind.example);
        let copied = Command::new("cp").arg("-r").arg(&example).arg(&place).status().expect("cp can be started");
        assert!(copied.success(), "{} can be copied", example.display());
        if kind.example == "circus" {
            // What belongs to the whole machine there.
            let text = fs::read_to_string(place.join("circus.ini")).expect("it was copied");
            let ours = format!("ipc://{}/circus-", place.display());
            assert!(text.contains("ipc:///tmp/circus-") && text.contains("port = 8000"), "{text}");
            let text = text.replace("ipc:///tmp/circus-", &ours).replace("port = 8000", "port = 0");
            fs::write(place.join("circus.ini"), text).expect("it is our copy");
        }
        Supervised::over(site, kind, place)
    }

    fn over(site: &'a Site, kind: &'static Kind, place: PathBuf) -> Supervised<'a> {
        let log = fs::File::create(site.path().join("supervisor.log")).expect("a file of the site can be made");
        let mut command = shell(site, &place, kind.supervise);
        command.stdout(log.try_clone().expect("a descriptor can be duplicated")).stderr(log);
        let supervisor = command.spawn().expect("sh can be started");
        Supervised { kind, site, place, supervisor }
    }

    /// What an operator types.
    fn types(&self, line: &str) -> Output {
        shell(self.site, &self.place, line).output().expect("sh can be started")
    }

    #[track_caller]
    fn ok(&self, line: &str) -> String {
        let output = self.types(line);
        let said = String::from_utf8_lossy(&[&output.stdout[..], &output.stderr].concat()).into_owned();
        assert!(output.status.success(), "{line}: {}: {said}\n{}", output.status, self.log());
        said
    }

    fn log(&self) -> String {
        let text = |path: PathBuf| String::from_utf8_lossy(&fs::read(path).unwrap_or_default()).into_owned();
        text(self.site.path().join("supervisor.log")) + &text(self.place.join(self.kind.log))
    }

    #[track_caller]
    fn wait_log(&self, words: &str) {
        let path = self.place.join(self.kind.log);
        let is_there = || fs::read(&path).is_ok_and(|bytes| String::from_utf8_lossy(&bytes).contains(words));
        let found = wait_within(crate::harness::WAIT, || is_there().then_some(()));
        assert!(found.is_some(), "{words:?} is not in what {} captured:\n{}", self.kind.example, self.log());
    }

    #[track_caller]
    fn wait_status(&self, words: &str) {
        wait_for(words, || self.ok(self.kind.status).contains(words).then_some(()));
    }

    fn address(&self) -> Address {
        if self.kind.example != "circus" {
            return Address::Unix(self.site.path().join("http.sock"));
        }
        self.wait_log("listening on fd://");
        let log = self.log();
        let (_, bound) = log.rsplit_once("listening on fd://").expect("it was waited for");
        let bound = bound.split(['(', ')']).nth(1).expect("the address is in parentheses");
        Address::Tcp(bound.parse().expect("an address"))
    }

    /// Waits until both workers of a generation serve, and returns the state. Another pid than `not`.
    #[track_caller]
    fn wait_serving(&self, not: Option<i32>) -> Status {
        let status = wait_within(crate::harness::WAIT, || {
            status(self.site).filter(|status| serving(status).len() == 2 && pid(status) != not)
        });
        status.unwrap_or_else(|| panic!("two workers do not serve:\n{}", self.log()))
    }
}

impl Drop for Supervised<'_> {
    /// Whatever is left is ended with the site.
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.log());
        }
        let _ = kill(Pid::from_raw(self.supervisor.id() as i32), Signal::SIGKILL);
        let _ = self.supervisor.wait();
    }
}

/// A line of shell as an operator has it, with the service's settings for this site in the environment.
fn shell(site: &Site, place: &Path, line: &str) -> Command {
    let venv = Machine::get().venv("supervisors").join("bin");
    let program = binary().parent().map(Path::to_owned).expect("it lies in a directory");
    let path = format!("{}:{}:/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin", venv.display(), program.display());
    let mut command = Command::new("sh");
    command.args(["-c", line]).current_dir(place).env_clear().env("PATH", path).env("LANG", "C.UTF-8");
    command.env("FORKMASTER_APP__RELEASE", site.path().join("current"));
    command.env("FORKMASTER_CONTROL__SOCKET", site.path().join("control.sock"));
    command.env("FORKMASTER_SERVER__BIND", format!("unix:{}", site.path().join("http.sock").display()));
    command.stdin(Stdio::null());
    command
}

fn status(site: &Site) -> Option<Status> {
    let socket = site.path().join("control.sock");
    let output = run(site.path(), &["status", "--json", "--socket", socket.to_str().expect("plain characters")]);
    serde_json::from_str(output.stdout.trim()).ok().map(Status)
}

fn pid(status: &Status) -> Option<i32> {
    status.0["pid"].as_i64().map(|pid| pid as i32)
}

fn serving(status: &Status) -> Vec<i32> {
    let workers = status.serving().map(|generation| generation.workers).unwrap_or_default();
    workers.iter().filter(|worker| worker.state == "serving").map(|worker| worker.pid).collect()
}

#[track_caller]
fn ask(address: &Address) -> String {
    client::get(address, "/").expect("it serves").text()
}

/// A site with a release that is there at once, and one whose import takes a moment.
fn site(name: &str) -> Site {
    let site = Site::with_releases(name, 1);
    site.build("2").import_s(0.2).make();
    site
}

fn the_story_of(kind: &'static Kind) {
    let site = site(kind.example);
    let mut supervised = Supervised::new(&site, kind);
    let first = supervised.wait_serving(None);
    let address = supervised.address();
    assert_eq!(ask(&address), "1");
    supervised.wait_status(kind.up);
    // Captured: what the master says, and what the application does.
    supervised.wait_log("generation gen=1 committed");
    // A killed worker.
    let killed = serving(&first)[0];
    kill(Pid::from_raw(killed), Signal::SIGKILL).expect("it is a worker");
    let healed = wait_for("another worker", || {
        status(&site).filter(|status| serving(status).len() == 2 && !serving(status).contains(&killed))
    });
    assert_eq!(pid(&healed), pid(&first));
    // A reload, by the supervisor's own verb. It is over when the old workers have left.
    site.flip("2");
    supervised.ok(kind.reload);
    supervised.wait_log("generation gen=2 committed");
    assert_eq!(ask(&address), "2");
    let reloaded = supervised.wait_serving(None);
    assert_eq!(pid(&reloaded), pid(&first), "a reload is no restart");
    // A crash of the master.
    let crashed = pid(&reloaded);
    kill(Pid::from_raw(crashed.expect("it has one")), Signal::SIGKILL).expect("it runs");
    if kind.example == "circus" {
        assert_eq!(ask(&address), "2", "a connection that waits in the socket of Circus");
    }
    supervised.wait_serving(crashed);
    assert_eq!(ask(&address), "2");
    // A stop with a request in flight.
    let end = site.path().join("end");
    let mut busy = Connection::to(&address);
    busy.must_send(head("GET", &format!("/until?file={}", end.display()), &[]));
    wait_for("it to run", || status(&site)?.0["generations"].to_string().contains("/until").then_some(()));
    let mut stopping = shell(&site, &supervised.place, kind.stop).stdout(Stdio::piped()).spawn().expect("sh is there");
    supervised.wait_log("stopping: finishing what was begun");
    fs::write(&end, "").expect("it can be made");
    assert_eq!(busy.expect_answer().text(), "2");
    // An idle connection would be waited for.
    drop(busy);
    let ended = stopping.wait().expect("it is our child");
    let mut said = String::new();
    stopping.stdout.take().expect("it is piped").read_to_string(&mut said).expect("text");
    assert!(ended.success(), "{}: {said}\n{}", kind.stop, supervised.log());
    supervised.wait_log("stopped, exit code 0");
    supervised.wait_status(kind.down);
    assert!(status(&site).is_none(), "it was started again after a stop");
    // And a start.
    supervised.ok(kind.start);
    if kind.start_is_ready {
        assert_eq!(ask(&address), "2", "{} has returned", kind.start);
    }
    supervised.wait_serving(crashed);
    assert_eq!(ask(&address), "2");
    // The end of the supervisor is the end of the service.
    kill(Pid::from_raw(supervised.supervisor.id() as i32), Signal::SIGTERM).expect("it runs");
    wait_for("the supervisor's end", || supervised.supervisor.try_wait().expect("it is our child"));
    wait_for("the service's end", || belonging_to(site.path()).is_empty().then_some(()));
}

#[test]
fn circus_holds_the_socket_and_its_verbs_do_what_they_say() {
    the_story_of(&CIRCUS);
}

#[test]
fn supervisor_restarts_reloads_and_stops_it() {
    the_story_of(&SUPERVISOR);
}

#[test]
fn runit_restarts_reloads_and_stops_it() {
    the_story_of(&RUNIT);
}

#[test]
fn s6_restarts_reloads_and_stops_it_and_hears_when_it_is_ready() {
    the_story_of(&S6);
}

/// The supervisor would start it again and again, and nothing would be mended by it.
#[test]
fn runit_and_s6_keep_down_what_a_restart_does_not_mend() {
    for (kind, down) in [(&RUNIT, "down: "), (&S6, "down (exitcode 78)")] {
        let site = site("kept_down");
        let place = site.path().join(kind.example);
        let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples").join(kind.example);
        assert!(Command::new("cp").arg("-r").arg(example).arg(&place).status().is_ok_and(|done| done.success()));
        let file = place.join("shop/shop.toml");
        let good = fs::read_to_string(&file).expect("it was copied");
        fs::write(&file, format!("{good}wokers = 3\n")).expect("it is our copy");
        let supervised = Supervised::over(&site, kind, place);
        supervised.wait_log("did you mean `workers`?");
        wait_for(down, || {
            let output = supervised.types(kind.status);
            let said = String::from_utf8_lossy(&output.stdout).into_owned();
            // runit's own words for what is not over.
            (said.contains(down) && !said.contains("want up")).then_some(())
        });
        assert_eq!(supervised.log().matches("did you mean").count(), 1, "{}", supervised.log());
        fs::write(&file, good).expect("it is our copy");
        supervised.ok(kind.start);
        assert_eq!(ask(&supervised.address()), "1");
    }
}

/// The protocol by itself: one newline, when the first worker serves, and the end of the pipe.
#[test]
fn a_newline_tells_that_the_first_worker_serves() {
    use std::os::fd::AsRawFd;
    let site = Site::new("notify_fd");
    site.build("1").import_s(0.5).make();
    site.flip("1");
    let (reader, writer) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).expect("a pipe can be made");
    let (number, config) = (writer.as_raw_fd(), site.config_path());
    let (told, config) = (number.to_string(), config.to_str().expect("plain characters"));
    let mut launch = Launch::default().args(&["-c", config, "--notify-fd", &told]);
    launch.before_exec = Some(Box::new(move || {
        // SAFETY: a plain system call with a number that is open. It is left open over exec.
        match unsafe { libc::fcntl(number, libc::F_SETFD, 0) } {
            0 => Ok(()),
            _failed => Err(std::io::Error::last_os_error()),
        }
    }));
    let master = site.launch(launch);
    drop(writer);
    let mut heard = String::new();
    fs::File::from(reader).read_to_string(&mut heard).expect("text");
    assert_eq!(heard, "\n");
    // It was told by somebody who serves.
    assert_eq!(client::get(&master.address(), "/").expect("it serves").text(), "1");
    // Neither a reload nor another binary says it again, whatever the number is by then.
    for verb in ["reload", "upgrade"] {
        let output = master.cli(&[verb]);
        assert!(output.ok(), "{verb}: {output}");
    }
    master.stop();
    // Nobody opened one: told in one line, before anything is started.
    site.set("server.notify_fd", "9");
    let master = site.spawn();
    assert_eq!(master.wait_exit().code(), Some(78));
    let line = "[server] notify_fd: descriptor 9 was not passed to this process; set it to the number";
    assert!(!master.log_lines(line).is_empty(), "{}", master.log());
}

/// A container without an init: what the application leaves behind is reaped, and TERM ends it as `docker stop` wants it.
#[test]
fn as_pid_1_it_reaps_orphans_and_ends_on_term() {
    if !can_mount() {
        return;
    }
    let app = "import os\nimport app_of_tests\n\n\
               def application(environ, start_response):\n\
               \x20   if environ['PATH_INFO'] != '/orphan':\n\
               \x20       return app_of_tests.application(environ, start_response)\n\
               \x20   if os.fork() == 0:\n\
               \x20       # Its parent is gone at once: pid 1 inherits it.\n\
               \x20       pid = os.fork() or os.execv('/bin/sh', ['sh', '-c', 'exit 7'])\n\
               \x20       os._exit(0)\n\
               \x20   os.wait()\n\
               \x20   start_response('200 OK', [('Content-Length', '2')])\n\
               \x20   return [b'ok']\n";
    let site = Site::new("pid_1");
    let tests =
        fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/apps/app.py")).expect("it is there");
    for release in ["1", "2"] {
        site.build(release).file("app.py", app).file("app_of_tests.py", &tests).make();
    }
    site.flip("1");
    let unshare = Machine::get().program("unshare").to_str().expect("plain characters");
    let through = [unshare, "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"];
    let through = through.iter().map(|word| (*word).to_owned()).collect();
    let master = site.launch(Launch { through, ..Launch::default() });
    let old = master.wait_serving();
    let inside = children(master.pid()).first().map(|child| child.pid).expect("unshare has a child");
    let signal = |signal| kill(Pid::from_raw(inside), signal).expect("pid 1 of that namespace runs");
    // Workers die, and strangers.
    for _ in 0..20 {
        assert_eq!(master.get("/orphan").text(), "ok");
    }
    let worker = children(inside).into_iter().find(|child| child.title.contains("worker")).expect("it has workers");
    worker.signal(Signal::SIGKILL);
    wait_for("nothing to be left of the dead", || {
        let all = children(inside);
        let healed = master.workers().len() == old.len() && all.iter().all(|child| child.pid != worker.pid);
        (healed && !all.iter().any(Process::is_zombie)).then_some(())
    });
    site.flip("2");
    signal(Signal::SIGHUP);
    master.wait_log("generation gen=2 committed");
    assert_eq!(master.get("/").text(), "2");
    let end = site.path().join("end");
    let mut busy = master.connect();
    busy.must_send(head("GET", &format!("/until?file={}", end.display()), &[]));
    wait_for("it to run", || {
        let status: Value = master.status()?.0;
        status["generations"].to_string().contains("/until").then_some(())
    });
    signal(Signal::SIGTERM);
    master.wait_log("stopping: finishing what was begun");
    fs::write(&end, "").expect("it can be made");
    assert_eq!(busy.expect_answer().text(), "2");
    drop(busy);
    assert_eq!(master.wait_exit().code(), Some(0));
    master.assert_nothing_left();
}
