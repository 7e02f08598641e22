//! A connection belongs to the service and not to a worker: a reload closes none, and none is answered by the old release
//! once the reload is over. The tests have mutants that must make them fail: a queue that loses a connection now and then,
//! and a worker that goes on watching what it has given away.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use nix::sys::signal::{kill, Signal};
use nix::unistd::Pid;

use crate::harness::client::{head, Address, Connection};
use crate::harness::load::{Load, Report};
use crate::harness::machine::Machine;
use crate::harness::master::{Launch, Master};
use crate::harness::process;
use crate::harness::site::{copy_binary_to, Site};
use crate::harness::{wait_for, wait_within};

/// Twenty deploys under the load of 200 keep-alive clients, most of them idle at any moment.
fn deploy_under_load(site: &Site, master: &Master, last: usize) -> Report {
    let load = Load::on(&master.address()).closing(0).keeping(200).posting(2_000).start();
    let mut commits = vec![(load.started(), "1".to_string())];
    for number in 2..=last {
        site.flip(&number.to_string());
        commits.push((master.reload(), number.to_string()));
        load.wait_answers(50);
    }
    load.wait_answers(400);
    let report = load.stop();
    report.assert_no_failures();
    report.assert_no_connection_ended();
    report.assert_releases_follow_at_once(&commits);
    report
}

#[test]
fn twenty_reloads_close_not_one_of_200_connections() {
    let site = Site::alone("handoff").releases(21);
    let master = site.start();
    deploy_under_load(&site, &master, 21);
    master.wait_settled();
    master.assert_quiet_log();
}

#[test]
fn twenty_reloads_with_threads_close_not_one_of_200_connections() {
    let site = Site::alone("handoff_threads").releases(21);
    site.set("server.threads", "4");
    let master = site.start();
    deploy_under_load(&site, &master, 21);
    master.wait_settled();
    master.assert_quiet_log();
}

fn assert_mutant_is_found(mutant: &str) {
    let site = Site::alone(mutant).releases(6);
    let master = site.launch(Launch::default().env("FORKMASTER_MUTANT", mutant));
    master.wait_serving();
    let load = Load::on(&master.address()).closing(0).keeping(60).start();
    for number in 2..=6 {
        site.flip(&number.to_string());
        master.reload();
        load.wait_answers(60);
    }
    let report = load.stop();
    assert!(!report.failures.is_empty(), "the mutant {mutant} was not found: {report}");
}

/// One connection of ten does not arrive.
#[test]
fn the_mutant_whose_queue_loses_connections_is_found() {
    assert_mutant_is_found("queue-loses");
}

/// The loop of a worker was woken so often by requests on 20 connections that it has given away, and would have been so
/// often in that time without any.
fn woken_by_what_was_given_away(name: &str, mutant: Option<&str>) -> (u64, u64) {
    const REQUESTS: usize = 600;
    let site = Site::with_releases(name, 2);
    site.set("server.workers", "1");
    let launch = Launch::default();
    let master = site.launch(match mutant {
        Some(mutant) => launch.env("FORKMASTER_MUTANT", mutant),
        None => launch,
    });
    let old = master.wait_serving().remove(0);
    let mut clients: Vec<Connection> = (0..20).map(|_| master.connect()).collect();
    for client in &mut clients {
        assert_eq!(client.get_ok("/").release(), "1");
    }
    // It lives on, with its loop, and without a connection but this one.
    let fifo = site.path().join("fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).expect("a FIFO");
    let mut running = master.connect();
    running.must_send(head("GET", &format!("/fifo?file={}", fifo.display()), &[]));
    wait_for("the long request", || (master.status()?.connections() == [21]).then_some(()));
    site.flip("2");
    master.reload();
    for client in &mut clients {
        assert_eq!(client.get_ok("/").release(), "2");
    }
    let (before, began) = (wake_ups_of_the_loop(old.pid), Instant::now());
    for number in 0..REQUESTS {
        let response = clients[number % 20].get_ok("/");
        assert_eq!((response.release(), response.closes()), ("2", false));
    }
    let woken = wake_ups_of_the_loop(old.pid) - before;
    // It turns once in 900 ms where nothing happens, and may be at it twice.
    let by_time = began.elapsed().as_millis() as u64 / 900 + 2;
    std::fs::write(&fifo, "").expect("it is read");
    assert_eq!(running.expect_answer().text(), "1");
    assert_eq!(running.get_ok("/").release(), "2");
    (woken, by_time)
}

/// The voluntary context switches of the thread that runs the loop while the application is busy (proc(5),
/// `/proc/pid/status`).
fn wake_ups_of_the_loop(pid: i32) -> u64 {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).expect("it lives");
    let of = |task: std::fs::DirEntry| {
        let is_monitor = std::fs::read_to_string(task.path().join("comm")).ok()? == "monitor\n";
        let status = is_monitor.then(|| std::fs::read_to_string(task.path().join("status")).ok())??;
        status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"))?.trim().parse::<u64>().ok()
    };
    tasks.filter_map(|task| of(task.ok()?)).next().expect("its monitor")
}

#[test]
fn a_worker_hears_nothing_of_what_it_gave_away() {
    let (woken, by_time) = woken_by_what_was_given_away("given", None);
    assert!(woken <= by_time, "woken {woken} times, {by_time} times by the time");
    let (woken, by_time) = woken_by_what_was_given_away("watched", Some("given-is-watched"));
    assert!(woken > by_time + 100, "the mutant was woken {woken} times, {by_time} times by the time");
}

/// More than the queue holds where the kernel grants no more than its default: senders wait, and read nothing meanwhile.
#[test]
fn a_reload_moves_1200_connections_without_root() {
    let site = Site::new("many_connections");
    for number in ["1", "2", "3", "4"] {
        site.build(number).python(Machine::get().public_python()).make();
    }
    site.flip("1");
    site.set("server.workers", "4");
    let mut through = vec!["prlimit", "--nofile=4096:4096", "--"];
    if nix::unistd::geteuid().is_root() {
        for path in [site.path().to_path_buf(), site.config_path()] {
            std::os::unix::fs::chown(&path, Some(65534), Some(65534)).expect("root may");
        }
        through.extend(["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--"]);
    }
    let through = through.iter().map(|word| (*word).to_string()).collect();
    let master = site.launch(Launch { through, binary: Some(copy_binary_to(&site)), ..Launch::default() });
    master.wait_serving();
    let mut clients: Vec<Connection> = (0..1200).map(|_| master.connect()).collect();
    for client in &mut clients {
        assert_eq!(client.get_ok("/").release(), "1");
    }
    for number in ["2", "3", "4"] {
        site.flip(number);
        master.reload();
        for client in &mut clients {
            client.must_send(head("GET", "/", &[]));
        }
        for client in &mut clients {
            let response = client.expect_answer();
            assert_eq!((response.release(), response.closes()), (number, false));
        }
    }
    master.wait_settled();
    let open = wait_within(Duration::from_secs(5), || {
        (master.status()?.connections().iter().sum::<u64>() == 1200).then_some(())
    });
    assert!(open.is_some(), "not every connection is counted: {:?}", master.status());
    let handoffs = master.status().expect("it answers").0["handoffs"].clone();
    // A worker that drains may give to an old one that is told a moment later.
    assert!(handoffs["given"].as_u64() >= Some(3600), "{handoffs}");
    assert_eq!((&handoffs["taken"], &handoffs["lost"]), (&handoffs["given"], &0.into()), "{handoffs}");
    assert!(handoffs["queue_full"].as_u64() > Some(0), "the queue was never full: {handoffs}");
    master.assert_quiet_log();
}

#[test]
fn workers_that_are_replaced_close_no_connection() {
    let site = Site::with_releases("replaced", 1);
    site.set("server.max_requests", "300").set("server.max_requests_jitter", "100");
    let master = site.start();
    master.wait_serving();
    let load = Load::on(&master.address()).closing(0).keeping(30).start();
    let serves = |pid: i32| master.workers().iter().any(|worker| worker.pid == pid);
    let mut signalled = BTreeSet::new();
    for round in 0..6 {
        let victim = wait_for("a worker", || master.workers().into_iter().find(|worker| worker.slot == round % 2)).pid;
        // It may have reached its limit at this moment.
        let _ = kill(Pid::from_raw(victim), Signal::SIGTERM);
        signalled.insert(victim);
        wait_for("the end of its service", || (!serves(victim)).then_some(()));
        load.wait_answers(400);
    }
    // Whoever has all connections serves no more than these before it is replaced.
    let by_limit = wait_for("workers nobody signalled", || {
        let all: Vec<i32> = master.workers().iter().map(|worker| worker.pid).collect();
        (all.len() == 2 && !all.iter().any(|pid| signalled.contains(pid))).then_some(all)
    });
    wait_for("a worker that has reached its limit", || (!by_limit.iter().all(|pid| serves(*pid))).then_some(()));
    let report = load.stop();
    report.assert_no_failures();
    report.assert_no_connection_ended();
}

/// One worker is all there is: its connections wait in the queue for its successor, as new ones wait in the backlog.
#[test]
fn the_connections_of_the_only_worker_wait_for_its_successor() {
    let site = Site::with_releases("only_worker", 1);
    site.set("server.workers", "1");
    let master = site.start();
    let worker = master.wait_serving().remove(0);
    let mut clients: Vec<Connection> = (0..20).map(|_| master.connect()).collect();
    for client in &mut clients {
        client.get_ok("/");
    }
    kill(Pid::from_raw(worker.pid), Signal::SIGTERM).expect("a serving worker is there");
    for client in &mut clients {
        let response = client.get_ok("/");
        assert!(!response.closes());
    }
    wait_for("the end of the old one", || {
        (!process::Process::of(worker.pid).is_some_and(|old| old.runs())).then_some(())
    });
    assert_ne!(clients[0].get_ok("/").pid(), worker.pid);
}

/// What systemd does with `KillMode=control-group`, the default: nobody is left to take connections from a queue.
#[test]
fn term_to_everybody_cuts_no_request() {
    let site = Site::with_releases("term_everybody", 1);
    let master = site.start();
    master.wait_serving();
    let load = Load::on(&master.address()).closing(0).keeping(30).start();
    load.wait_answers(100);
    for process in site.processes() {
        process.signal(Signal::SIGTERM);
    }
    assert_eq!(master.wait_exit().code(), Some(0));
    let report = load.stop();
    // New ones come too late.
    let cut: Vec<_> = report.failures.iter().filter(|failed| failed.what.contains("kept connection")).collect();
    assert!(cut.is_empty(), "{cut:?}");
    assert!(report.answers.iter().any(|answer| answer.closes));
    master.assert_nothing_left();
}

/// All threads of a process are stopped, or it is gone.
fn stands_still(pid: i32) -> bool {
    let Ok(tasks) = std::fs::read_dir(format!("/proc/{pid}/task")) else { return true };
    let mut states = tasks.filter_map(|task| std::fs::read_to_string(task.ok()?.path().join("stat")).ok());
    states.all(|stat| [") T ", ") Z ", ") X "].iter().any(|state| stat.contains(state)))
}

/// The ports of the clients whose connections a process has, which must not run meanwhile.
fn held_by(pid: i32, server: u16) -> BTreeSet<u16> {
    let Ok(fds) = std::fs::read_dir(format!("/proc/{pid}/fd")) else { return BTreeSet::new() };
    let links = fds.filter_map(|fd| std::fs::read_link(fd.ok()?.path()).ok()?.into_os_string().into_string().ok());
    let inode = |link: String| link.strip_prefix("socket:[")?.strip_suffix(']')?.parse::<u64>().ok();
    let inodes: BTreeSet<u64> = links.filter_map(inode).collect();
    let table = std::fs::read_to_string(format!("/proc/{pid}/net/tcp")).unwrap_or_default();
    let port = |address: &str| u16::from_str_radix(address.rsplit(':').next()?, 16).ok();
    let line = |line: &str| {
        let columns: Vec<&str> = line.split_whitespace().collect();
        let is_held = port(columns.get(1)?)? == server && inodes.contains(&columns.get(9)?.parse().ok()?);
        is_held.then(|| port(columns.get(2)?))?
    };
    table.lines().filter_map(line).collect()
}

/// Workers die by SIGKILL while connections move, and while new ones come. What was in their hands is lost, and nothing
/// else: each is stopped first, so that what it holds can be counted, in whatever it was about to do.
#[test]
fn sigkill_while_connections_move_loses_what_the_killed_had() {
    let site = Site::with_releases("killed_while_moving", 2);
    site.set("server.workers", "3");
    let master = site.start();
    master.wait_serving();
    let Address::Tcp(address) = master.address() else { panic!("a TCP address") };
    let load = Load::on(&master.address()).closing(10).keeping(50).start();
    // A port comes again after some ten thousand connections, so it may have been held twice.
    let (mut killed, mut held, mut held_count, mut seed) = (Vec::new(), BTreeSet::new(), 0, 7u32);
    for round in 0..12 {
        site.flip(if round % 2 == 0 { "2" } else { "1" });
        master.hup();
        for _ in 0..2 {
            seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            // At any moment of the reload: this is the dice and not a wait for something.
            std::thread::sleep(Duration::from_millis(u64::from(seed >> 16) % 400));
            let Some(status) = master.status() else { continue };
            let generations = status.generations();
            let workers: Vec<_> = generations.iter().flat_map(|generation| &generation.workers).collect();
            let victim = workers.get((seed >> 8) as usize % workers.len().max(1)).filter(|victim| victim.pid > 0);
            if let Some(victim) = victim {
                let pid = Pid::from_raw(victim.pid);
                let _ = kill(pid, Signal::SIGSTOP);
                wait_for("a worker that stands still or is gone", || stands_still(victim.pid).then_some(()));
                let theirs = held_by(victim.pid, address.port());
                held_count += theirs.len();
                held.extend(theirs);
                killed.push(victim.pid);
                let _ = kill(pid, Signal::SIGKILL);
            }
        }
        load.wait_answers(60);
    }
    // The last one may still be dying, and the master believe that it serves.
    wait_for("the end of all that were killed", || {
        let is_there = |pid: &i32| std::path::Path::new("/proc").join(pid.to_string()).exists();
        (!killed.iter().any(is_there)).then_some(())
    });
    master.wait_serving();
    load.wait_answers(200);
    let report = load.stop();
    for failed in &report.failures {
        assert!(failed.port.is_some_and(|port| held.contains(&port)), "{:?} was nobody's: {report}", failed.port);
        assert!(!failed.what.contains("no answer within"), "{report}");
    }
    assert!(report.failures.len() <= held_count, "{held_count} were held: {report}");
    assert!(!held.is_empty(), "nobody had anything");
}

/// With one thread each, a client whose worker is busy is answered by the other one.
#[test]
fn a_request_does_not_wait_for_a_busy_worker_while_another_is_free() {
    let site = Site::with_releases("shared", 1);
    let master = site.start();
    master.wait_serving();
    let done = site.path().join("done");
    let mut clients: Vec<Connection> = (0..12).map(|_| master.connect()).collect();
    for client in &mut clients {
        client.get_ok("/");
    }
    let mut busy = clients.pop().expect("there are twelve");
    let held = busy.get_ok("/").pid();
    busy.must_send(head("GET", &format!("/until?file={}", done.display()), &[]));
    // Whoever was at the busy worker is at the other one from then on.
    for client in &mut clients {
        for _ in 0..2 {
            let response = client.get_ok("/");
            assert!(response.pid() != held && !response.closes());
        }
    }
    std::fs::write(&done, "").expect("the file can be written");
    assert_eq!(busy.expect_answer().pid(), held);
    let handoffs = master.status().expect("it answers").0["handoffs"].clone();
    assert_eq!(handoffs["shared"], handoffs["taken"], "{handoffs}");
}
