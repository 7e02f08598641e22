//! Deploys while processes are killed at random: workers, templates and the processes between two forks, under load.
//! Only requests inside a killed worker may fail, and nothing is left afterwards.
//!
//! `FORKMASTER_STORM_HUPS` says how many deploys (60 by default, in each of the two runs), `FORKMASTER_STORM_SEED`
//! repeats the choices of an earlier run: the seed is printed.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::harness::client::{head, Address, Connection, Failure, Response};
use crate::harness::master::Master;
use crate::harness::process::{self, fd_count};
use crate::harness::random::{number, Random};
use crate::harness::site::Site;
use crate::harness::{for_each_preload, wait_for, wait_within};

/// A kill reaches a client so much later at the most: on a busy machine the client's thread has to be scheduled.
const SEEN_WITHIN: Duration = Duration::from_secs(2);

const CLIENTS: usize = 4;
const WORKERS: usize = 3;

/// Names its process with the first bytes and ends a moment later, so that a kill in between is one that is known.
const APP: &str = r#"
import os, time, release

def application(environ, start_response):
    def pieces():
        yield b"begun "
        time.sleep(0.005)
        yield b"done"
    start_response("200 OK", [("X-Release", release.NAME), ("X-Pid", str(os.getpid()))])
    return pieces()
"#;

struct Killed {
    pid: i32,
    /// Before the signal, and when the process was seen to have ended: it may take a connection in between.
    at: Instant,
    ended: Instant,
}

struct Lost {
    sent: Instant,
    seen: Instant,
    failure: Failure,
    /// The process that had begun to answer.
    pid: Option<i32>,
}

#[test]
fn only_requests_inside_a_killed_worker_fail() {
    let hups = number("FORKMASTER_STORM_HUPS", 60);
    let seed = Random::seed("FORKMASTER_STORM_SEED");
    for_each_preload(|preload| {
        println!("FORKMASTER_STORM_SEED={seed} FORKMASTER_STORM_HUPS={hups}, preload = {preload}");
        let site = Site::alone("storm");
        for release in ["1", "2"] {
            site.build(release).file("app.py", APP).make();
        }
        site.flip("1");
        site.set("server.workers", &WORKERS.to_string()).set("app.preload", preload);
        let master = site.start();
        master.wait_settled();
        let descriptors = fd_count(master.pid());
        storm(&site, &master, hups, Random::new(seed));
        assert_nothing_is_left(&site, &master, descriptors);
        master.stop();
    });
}

fn storm(site: &Site, master: &Master, hups: u64, mut random: Random) {
    let over = Arc::new(AtomicBool::new(false));
    let clients: Vec<JoinHandle<(usize, Vec<Lost>)>> = (0..CLIENTS)
        .map(|_| {
            let (address, over) = (master.address(), over.clone());
            std::thread::spawn(move || ask_until(&address, &over))
        })
        .collect();
    let killer = Killer::start(site, master.pid(), random.clone());
    for round in 0..hups {
        site.flip(if round % 2 == 0 { "2" } else { "1" });
        master.hup();
        // The storm's pace: some deploys are superseded while they prove or roll, some are left to end.
        std::thread::sleep(Duration::from_millis(20 + random.below(300)));
    }
    let killed = killer.stop();
    // The last word: a deploy while nobody is killed any more.
    site.flip("2");
    master.reload();
    wait_for("an answer of the last release", || (master.get("/").release() == "2").then_some(()));
    over.store(true, Ordering::Relaxed);
    let (mut answered, mut lost) = (0, Vec::new());
    for client in clients {
        let (count, failures) = client.join().expect("a client does not panic");
        answered += count;
        lost.extend(failures);
    }
    // The log knows what each was. A process that was chosen by its title may have been a worker by the time it was killed.
    let begun = master.log_lines("worker * -> starting");
    let was_worker = |killed: &Killed| begun.iter().any(|line| line.contains(&format!(" pid={} ", killed.pid)));
    let (workers, others): (Vec<Killed>, Vec<Killed>) = killed.into_iter().partition(was_worker);
    println!(
        "{answered} requests answered, {} lost; killed: {} workers, {} templates or between two forks",
        lost.len(),
        workers.len(),
        others.len()
    );
    assert!(answered > 100, "{answered} answers are no load");
    assert!(!workers.is_empty() && !others.is_empty(), "nobody was killed");
    lost.iter().for_each(|lost| assert_a_kill_explains(lost, &workers));
    assert!(lost.len() <= workers.len() * CLIENTS, "{} lost by {} kills", lost.len(), workers.len());
}

/// One connection a request, without a pause.
fn ask_until(address: &Address, over: &AtomicBool) -> (usize, Vec<Lost>) {
    let (mut answered, mut lost) = (0, Vec::new());
    while !over.load(Ordering::Relaxed) {
        let sent = Instant::now();
        match ask(address) {
            Ok((response, false)) if response.status == 200 && response.text() == "begun done" => answered += 1,
            Ok((response, true)) => {
                let (seen, failure) = (Instant::now(), Failure::Cut(response.body.len()));
                lost.push(Lost { sent, seen, failure, pid: Some(response.pid()) });
            }
            Ok((response, false)) => panic!("status {}: {}", response.status, response.text()),
            Err(failure) => lost.push(Lost { sent, seen: Instant::now(), failure, pid: None }),
        }
    }
    (answered, lost)
}

fn ask(address: &Address) -> Result<(Response, bool), Failure> {
    let mut connection = Connection::open(address)?;
    connection.send(head("GET", "/", &[("Connection", "close")]))?;
    connection.read_partly()
}

/// A failure is the work of a kill where the process that had begun to answer was killed, or, before a byte came, where
/// a worker was killed while the client waited. Nobody is ever refused, and nobody waits for ever.
fn assert_a_kill_explains(lost: &Lost, workers: &[Killed]) {
    let of_kind = matches!(lost.failure, Failure::Reset | Failure::NoAnswer | Failure::Cut(_));
    let explained = match lost.pid {
        Some(pid) => workers.iter().any(|killed| killed.pid == pid),
        None => workers.iter().any(|killed| {
            lost.sent <= killed.ended && killed.at <= lost.seen && lost.seen <= killed.ended + SEEN_WITHIN
        }),
    };
    assert!(of_kind && explained, "no kill explains: {} (begun by {:?})", lost.failure, lost.pid);
}

/// Kills a process of the site every now and then, but never the master.
struct Killer {
    over: Arc<AtomicBool>,
    killed: Arc<Mutex<Vec<Killed>>>,
    thread: JoinHandle<()>,
}

impl Killer {
    fn start(site: &Site, master: i32, mut random: Random) -> Killer {
        let over = Arc::new(AtomicBool::new(false));
        let killed = Arc::new(Mutex::new(Vec::new()));
        let directory = site.path().to_path_buf();
        let (stop, list) = (over.clone(), killed.clone());
        let thread = std::thread::spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                std::thread::sleep(Duration::from_millis(50 + random.below(250)));
                let mut processes = process::belonging_to(&directory);
                processes.retain(|process| process.pid != master && !process.is_zombie());
                // A template forks with its own title: what is between two forks is among the templates here.
                let kind = if random.below(3) == 0 { " template " } else { " worker " };
                processes.retain(|process| process.title.contains(kind));
                if processes.is_empty() {
                    continue;
                }
                let victim = processes.swap_remove(random.below(processes.len() as u64) as usize);
                let at = Instant::now();
                victim.signal(Signal::SIGKILL);
                wait_for("a killed process to end", || (!victim.runs()).then_some(()));
                let mut list = list.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
                list.push(Killed { pid: victim.pid, at, ended: Instant::now() });
            }
        });
        Killer { over, killed, thread }
    }

    fn stop(self) -> Vec<Killed> {
        self.over.store(true, Ordering::Relaxed);
        self.thread.join().expect("the killer does not panic");
        std::mem::take(&mut *self.killed.lock().unwrap_or_else(|poisoned| poisoned.into_inner()))
    }
}

/// One generation, its template, its workers and the master: no other process, no zombie, no descriptor more than at
/// the start.
fn assert_nothing_is_left(site: &Site, master: &Master, descriptors: usize) {
    let generation = master.wait_settled();
    let workers = master.wait_workers(WORKERS);
    let mut expected: Vec<i32> = workers.iter().map(|worker| worker.pid).collect();
    expected.extend([generation.template_pid, master.pid()]);
    expected.sort();
    let settled = wait_within(Duration::from_secs(10), || {
        let mut all: Vec<i32> = site.processes().iter().map(|process| process.pid).collect();
        all.sort();
        (all == expected).then_some(())
    });
    assert!(settled.is_some(), "expected {expected:?}:\n{}", process::table(&site.processes()));
    let settled = wait_within(Duration::from_secs(10), || (fd_count(master.pid()) <= descriptors).then_some(()));
    assert!(settled.is_some(), "{descriptors} descriptors became {}", fd_count(master.pid()));
}
