//! Whatever comes in whichever phase of a paused reload: no request of those that wait is lost, and afterwards one release serves
//! alone. A phase lasts until the test lets it go on: the import, a request, the command and the probe each wait for a file, and in
//! the step one of the new workers is stopped.

use std::thread;

use nix::sys::signal::Signal;

use crate::harness::client::{head, Connection};
use crate::harness::master::{run, Master, Output};
use crate::harness::process::{self, Process};
use crate::harness::site::Site;
use crate::harness::wait_for;

const APP: &str = r#"
import os
import time

RELEASE = os.path.basename(os.getcwd())
SITE = os.path.join(os.getcwd(), "..", "..")


def wait(gate):
    for _ in range(2000):
        if os.path.exists(os.path.join(SITE, gate)):
            return
        time.sleep(0.01)


if RELEASE != "1":
    wait("boot")


def application(environ, start_response):
    if RELEASE != "1" and environ["PATH_INFO"] == "/probe":
        wait("probe")
    if environ["PATH_INFO"] == "/runs":
        wait("pausing")
    start_response("200 OK", [("Content-Length", "1")])
    return [RELEASE.encode()]
"#;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Boot,
    Pausing,
    Command,
    Probe,
    Step,
}

impl Phase {
    /// The file that ends it.
    fn gate(self) -> &'static str {
        match self {
            Phase::Boot => "boot",
            Phase::Pausing => "pausing",
            // The worker is stopped while the command runs.
            Phase::Command | Phase::Step => "command",
            Phase::Probe => "probe",
        }
    }

    /// From here on a later reload waits.
    fn is_beyond_return(self) -> bool {
        match self {
            Phase::Boot | Phase::Pausing => false,
            Phase::Command | Phase::Probe | Phase::Step => true,
        }
    }
}

/// A paused reload that stands still in a phase.
struct Standing {
    phase: Phase,
    site: Site,
    master: Master,
    asks: thread::JoinHandle<Output>,
    /// A request that runs, and those that wait.
    runs: Connection,
    waiting: Vec<Connection>,
    stopped: Option<Process>,
}

impl Standing {
    fn in_phase(phase: Phase, event: &str) -> Standing {
        let site = Site::new(&format!("phases_{phase:?}_{event}").to_lowercase());
        for release in ["1", "2"] {
            site.build(release).file("app.py", APP).make();
        }
        site.flip("1");
        site.set("app.probe", "'/probe'").set("server.graceful_timeout", "'3s'");
        for gate in ["boot", "pausing", "command", "probe"] {
            if gate != phase.gate() {
                site.write(gate, "");
            }
        }
        let master = site.start();
        let mut runs = master.connect();
        runs.get_ok("/");
        let mut waiting: Vec<Connection> = (0..2).map(|_| master.connect()).collect();
        for client in &mut waiting {
            client.get_ok("/");
        }
        site.flip("2");
        runs.must_send(head("GET", "/runs", &[]));
        let directory = site.path().to_path_buf();
        let command = "while ! test -e ../../command; do sleep 0.01; done";
        let words = ["reload", "--pause", "-c", "app.toml", "--", "sh", "-c", command];
        if phase == Phase::Pausing {
            wait_for("the request to run", || master.cli(&["status", "--json"]).stdout.contains("/runs").then_some(()));
        }
        let asks = thread::spawn(move || run(&directory, &words));
        let mut standing = Standing { phase, site, master, asks, runs, waiting, stopped: None };
        standing.reach();
        standing
    }

    fn reach(&mut self) {
        let master = &self.master;
        let line = match self.phase {
            Phase::Boot => "generation gen=2 -> proving",
            // The other worker has heard of it, and begins nothing any more.
            Phase::Pausing => "worker gen=1 slot=* pid=* pausing -> paused",
            Phase::Command | Phase::Step => "command gen=2 pid=* started",
            Phase::Probe => "command gen=2 ended: exit code 0",
        };
        master.wait_log(line);
        self.waiting.extend((0..2).map(|_| master.connect()));
        for client in &mut self.waiting {
            client.must_send(head("GET", "/", &[]));
        }
        if self.phase == Phase::Step {
            let last = master.wait_log("worker gen=2 slot=1 pid=* starting -> ready");
            let pid =
                last.split("pid=").nth(1).and_then(|rest| rest.split(' ').next()).and_then(|pid| pid.parse().ok());
            let pid = pid.unwrap_or_else(|| panic!("no pid in {line}"));
            let worker = Process::of(pid).expect("it is ready");
            worker.signal(Signal::SIGSTOP);
            self.stopped = Some(worker);
            self.site.write("command", "");
            // The old workers are drained, and in a moment the new ones are told to serve.
            master.wait_log("worker gen=1 slot=* pid=* paused -> closing");
        }
    }

    /// The phase goes on.
    fn let_go(&self) {
        self.site.write(self.phase.gate(), "");
        if let Some(worker) = &self.stopped {
            worker.signal(Signal::SIGCONT);
        }
    }

    /// Everybody is answered, by one of these releases.
    #[track_caller]
    fn all_are_answered(&mut self, by: &[&str]) {
        assert_eq!(self.runs.expect_answer().text(), "1", "{:?}", self.phase);
        for client in &mut self.waiting {
            let answer = client.expect_answer();
            let text = answer.text();
            assert!(
                answer.status == 200 && by.contains(&text.as_str()),
                "{:?}: {answer:?}\n{}",
                self.phase,
                self.master.log()
            );
        }
    }

    /// What whoever asked for the reload hears.
    #[track_caller]
    fn asker_hears(self, code: Option<i32>, words: &str) -> (Site, Master) {
        let output = self.asks.join().expect("the client does not panic");
        assert!(output.code == code && output.stderr.contains(words), "{:?}: {output}", self.phase);
        (self.site, self.master)
    }
}

/// Another reload wins while nothing was run; else it waits, and both commit.
fn a_later_reload(phase: Phase) {
    let mut standing = Standing::in_phase(phase, "later");
    let directory = standing.site.path().to_path_buf();
    let mark = standing.master.mark();
    let asks = thread::spawn(move || run(&directory, &["reload", "-c", "app.toml"]));
    standing.master.wait_log_after(mark, "asked by * reload");
    standing.master.hup();
    if phase.is_beyond_return() {
        standing.master.wait_log("reload waits: the command of gen=2");
    } else {
        standing.master.wait_log("generation gen=3 -> proving");
    }
    standing.let_go();
    let by: &[&str] = match phase {
        Phase::Boot | Phase::Pausing => &["1"],
        Phase::Command | Phase::Probe | Phase::Step => &["2"],
    };
    standing.all_are_answered(by);
    let later = asks.join().expect("the client does not panic");
    assert!(later.ok() || later.stderr.contains("superseded"), "{phase:?}: {later}");
    let (code, words) = if phase.is_beyond_return() { (0, "") } else { (1, "superseded") };
    let (_site, master) = standing.asker_hears(Some(code), words);
    let serves = master.wait_settled();
    assert!(serves.number >= 3 && master.get("/").text() == "2", "{phase:?}: {}", serves.number);
    master.stop_clean();
}

/// The asker is gone, and the reload goes on.
fn an_asker_that_leaves(phase: Phase) {
    let mut standing = Standing::in_phase(phase, "left");
    let asks = process::belonging_to(standing.site.path());
    for process in asks.iter().filter(|process| process.title.contains("--pause")) {
        process.signal(Signal::SIGKILL);
    }
    wait_for("the end of the client", || standing.asks.is_finished().then_some(()));
    standing.let_go();
    let by: &[&str] = if phase == Phase::Boot { &["1"] } else { &["2"] };
    standing.all_are_answered(by);
    let (_site, master) = standing.asker_hears(None, "");
    assert_eq!((master.wait_settled().number, master.get("/").text().as_str()), (2, "2"), "{phase:?}");
    master.stop_clean();
}

fn a_stop(phase: Phase) {
    let mut standing = Standing::in_phase(phase, "stop");
    standing.master.term();
    standing.master.wait_log("stopping: ");
    standing.let_go();
    let by: &[&str] = if phase == Phase::Step { &["1", "2"] } else { &["1"] };
    standing.all_are_answered(by);
    assert_eq!(standing.master.wait_exit().code(), Some(0), "{phase:?}");
    let (_site, master) = standing.asker_hears(Some(1), "stop");
    master.assert_nothing_left();
}

/// Its workers answer whoever waits, and end.
fn a_killed_master(phase: Phase) {
    let mut standing = Standing::in_phase(phase, "killed");
    standing.master.signal(Signal::SIGKILL);
    standing.let_go();
    let by: &[&str] = if phase == Phase::Step { &["1", "2"] } else { &["1"] };
    standing.all_are_answered(by);
    let (_site, master) = standing.asker_hears(Some(1), "");
    master.assert_nothing_left();
}

const PHASES: [Phase; 5] = [Phase::Boot, Phase::Pausing, Phase::Command, Phase::Probe, Phase::Step];

#[test]
fn a_later_reload_in_each_phase() {
    PHASES.into_iter().for_each(a_later_reload);
}

#[test]
fn an_asker_that_leaves_in_each_phase() {
    PHASES.into_iter().for_each(an_asker_that_leaves);
}

#[test]
fn a_stop_in_each_phase() {
    PHASES.into_iter().for_each(a_stop);
}

#[test]
fn a_killed_master_in_each_phase() {
    PHASES.into_iter().for_each(a_killed_master);
}
