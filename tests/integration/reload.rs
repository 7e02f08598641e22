//! A reload loses nothing, and a generation is what `current` pointed at. The zero-loss test has two mutants: masters
//! that are broken on purpose and must make it fail, for a harness that has never failed proves nothing.

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::harness::client::head;
use crate::harness::load::{Load, Report};
use crate::harness::machine::Machine;
use crate::harness::master::{Launch, Master};
use crate::harness::process::{self, fd_count, rss_anon_bytes};
use crate::harness::site::Site;
use crate::harness::{for_each_preload, wait_for, wait_within};

/// Releases 1 and 2, release 1 is current.
/// Deploys the releases 2 to `last` one after the other under load.
fn deploy_under_load(site: &Site, master: &Master, last: usize) -> (Report, Vec<(Instant, String)>) {
    let load = Load::on(&master.address()).closing(8).keeping(12).posting(200_000).start();
    let mut commits = vec![(Instant::now(), "1".to_string())];
    for number in 2..=last {
        site.flip(&number.to_string());
        commits.push((master.reload(), number.to_string()));
        load.wait_answers(10);
    }
    load.wait_answers(40);
    (load.stop(), commits)
}

#[test]
fn twenty_reloads_under_load_lose_nothing() {
    let site = Site::alone("twenty_reloads").releases(21);
    let master = site.start();
    let (report, commits) = deploy_under_load(&site, &master, 21);
    report.assert_no_failures();
    report.assert_releases_follow(&commits);
    master.assert_quiet_log();
}

#[test]
fn twenty_reloads_with_threads_lose_nothing() {
    let site = Site::alone("twenty_reloads_threads").releases(21);
    site.set("server.threads", "4");
    site.set("app.preload", "true");
    let master = site.start();
    let (report, commits) = deploy_under_load(&site, &master, 21);
    report.assert_no_failures();
    report.assert_releases_follow(&commits);
}

/// A master that ends the old workers before the new ones are ready.
#[test]
fn the_mutant_that_kills_old_workers_first_is_found() {
    assert_mutant_is_found("kill-old-first");
}

/// A worker that closes its idle connections when it is told to drain.
#[test]
fn the_mutant_that_closes_idle_connections_is_found() {
    assert_mutant_is_found("drain-closes-idle");
}

fn assert_mutant_is_found(mutant: &str) {
    let site = Site::alone(mutant).releases(6);
    let master = site.launch(Launch::default().env("FORKMASTER_MUTANT", mutant));
    master.wait_serving();
    let (report, _) = deploy_under_load(&site, &master, 6);
    assert!(!report.failures.is_empty(), "the mutant {mutant} was not found: {report}");
}

#[test]
fn code_packages_and_paths_follow_current() {
    let site = Site::with_releases("code_and_packages", 2);
    let master = site.start();
    for release in ["1", "2", "1"] {
        site.flip(release);
        master.reload();
        let info = master.get("/info").json();
        let real = site.release_path(release).canonicalize().expect("the release is there");
        assert_eq!(info["release"], release);
        assert_eq!(info["dep"], release, "the virtualenv's package is of another release");
        assert_eq!(info["cwd"], real.to_str().expect("plain characters"));
        assert_eq!(info["prefix"], real.join("venv").to_str().expect("plain characters"));
        assert_eq!(info["path"][0], real.to_str().expect("plain characters"));
        assert!(!info["path"].to_string().contains("/current"), "sys.path goes through the symlink: {}", info["path"]);
        assert_eq!(info["environ"]["VIRTUAL_ENV"], info["prefix"]);
        assert_eq!(info["environ"]["PWD"], info["cwd"]);
        let path = info["environ"]["PATH"].as_str().expect("PATH is set");
        assert!(path.starts_with(real.join("venv/bin").to_str().expect("plain characters")), "PATH={path}");
    }
}

/// systemd's WorkingDirectory=, Circus and Supervisor enter `current` and leave PWD as it was, or unset.
#[test]
fn a_master_that_was_started_in_current_follows_it_without_pwd() {
    for (name, pwd) in [("unset", None), ("another", Some("/"))] {
        let site = Site::with_releases(&format!("entered_current_{name}"), 2);
        let settings = ["--bind", "127.0.0.1:0", "app:application"];
        let mut launch = Launch { directory: Some(site.path().join("current")), ..Launch::default() }.args(&settings);
        launch.env.extend(pwd.map(|pwd| ("PWD".to_owned(), pwd.to_owned())));
        let master = site.launch(launch);
        master.wait_log("the current directory is taken for */current, which leads to it: reloads follow that link");
        master.wait_log("worker gen=1 * -> serving");
        site.flip("2");
        master.hup();
        let line = master.wait_log("generation gen=2 release=*");
        assert!(line.contains("/releases/2 "), "PWD {name}: {line}");
        master.wait_log("generation gen=2 rolling -> serving");
    }
}

#[test]
fn the_next_release_may_have_another_python() {
    let machine = Machine::get();
    let Some(other) = machine.other_python() else { return };
    let site = Site::new("another_python");
    site.release("1");
    site.build("2").python(other).make();
    site.flip("1");
    let master = site.start();
    assert_eq!(master.get("/info").json()["python"], machine.default_python().minor.as_str());
    site.flip("2");
    master.reload();
    assert_eq!(master.get("/info").json()["python"], other.minor.as_str());
    site.flip("1");
    master.reload();
    assert_eq!(master.get("/info").json()["python"], machine.default_python().minor.as_str());
}

#[test]
fn every_python_of_the_machine_serves_and_reloads() {
    for python in Machine::get().each_minor() {
        for_each_preload(|preload| {
            let site = Site::new(&format!("python_{}_preload_{preload}", python.minor));
            site.build("1").python(python).make();
            site.build("2").python(python).make();
            site.flip("1");
            site.set("app.preload", preload).set("server.threads", "2");
            let master = site.start();
            assert_eq!(master.get("/info").json()["python"], python.minor.as_str());
            site.flip("2");
            master.reload();
            assert_eq!(master.get("/").text(), "2", "Python {}, preload = {preload}", python.minor);
            master.stop_clean();
        });
    }
}

#[test]
fn hup_alone_deploys_and_is_logged() {
    let site = Site::with_releases("hup", 2);
    let master = site.start();
    let before = master.workers();
    site.flip("2");
    let mark = master.mark();
    master.hup();
    master.wait_log_after(mark, "generation gen=2 proving -> rolling");
    master.wait_log_after(mark, "generation gen=2 rolling -> serving");
    master.wait_log_after(mark, "worker gen=2 slot=* pid=* starting -> ready after=");
    master.wait_serving();
    assert_eq!(master.get("/").text(), "2");
    for worker in before {
        master
            .wait_log_after(mark, &format!("worker gen=1 slot={} pid={} serving -> closing", worker.slot, worker.pid));
    }
}

#[test]
fn a_running_request_finishes_on_the_old_release_while_the_new_one_answers() {
    let site = Site::with_releases("running_request", 2);
    let master = site.start();
    let done = site.path().join("done");
    let mut slow = master.connect();
    slow.must_send(head("GET", &format!("/until?file={}", done.display()), &[]));
    // It must be with the old release before the HUP: a second connection is answered after it was accepted.
    master.get("/");
    site.flip("2");
    master.hup();
    // Nobody waits for the request that runs: it ends when this test has seen the commit.
    master.wait_log("generation gen=2 committed");
    let asked = Instant::now();
    // As long as the requests that people complain about.
    while asked.elapsed() < Duration::from_secs(4) {
        assert_eq!(master.get("/").text(), "2", "the old release answered a new connection");
    }
    std::fs::write(&done, "").expect("the file can be written");
    let response = slow.expect_answer();
    assert_eq!(response.text(), "1", "it began on the old release");
    assert!(!response.closes(), "a reload closes no connection");
    assert_eq!(slow.get_ok("/").text(), "2", "the connection goes to the new release");
    drop(slow);
    master.wait_settled();
}

#[test]
fn an_upload_that_spans_the_reload_is_answered() {
    let site = Site::with_releases("upload", 2);
    let master = site.start();
    let body: Vec<u8> = (0..300_000u32).map(|at| at as u8).collect();
    let (first, second) = body.split_at(100_000);
    let mut upload = master.connect();
    upload.must_send(head("POST", "/echo", &[("Content-Length", "300000")]));
    upload.must_send(first);
    let mut chunked = master.connect();
    chunked.must_send(head("POST", "/echo", &[("Transfer-Encoding", "chunked")]));
    chunked.must_send("5\r\nhello\r\n");
    // The queue of a listener is first in, first out: when a later connection is answered, both are accepted.
    master.get("/");

    site.flip("2");
    master.reload();
    assert_eq!(master.get("/").text(), "2");
    let response = upload.ask(second);
    assert_eq!((response.status, response.release()), (200, "1"));
    assert!(response.body == body, "the body came back changed");
    assert_eq!(chunked.ask("6\r\n world\r\n0\r\n\r\n").text(), "hello world");
}

#[test]
fn a_request_head_that_spans_the_reload_is_answered() {
    let site = Site::with_releases("half_head", 2);
    let master = site.start();
    let mut half = master.connect();
    half.must_send("GET /info HTTP/1.1\r\nHos");
    master.get("/");
    site.flip("2");
    master.reload();
    // What had come of it went to the new release with its connection.
    let response = half.ask("t: localhost\r\n\r\n");
    assert_eq!((response.status, response.release(), response.closes()), (200, "2", false));
}

#[test]
fn an_idle_connection_goes_to_the_new_release() {
    let site = Site::with_releases("idle_connection", 2);
    let master = site.start();
    let mut idle = master.connect();
    let first = idle.get_ok("/");
    assert_eq!((first.text().as_str(), first.closes()), ("1", false));
    site.flip("2");
    master.reload();
    let second = idle.get_ok("/");
    assert_eq!((second.text().as_str(), second.closes()), ("2", false));
    master.wait_drained();
}

#[test]
fn pipelined_requests_across_the_reload_are_answered_in_order() {
    let site = Site::with_releases("pipelined", 2);
    let master = site.start();
    let mut connection = master.connect();
    let done = site.path().join("done");
    let first = head("GET", &format!("/until?file={}", done.display()), &[]);
    connection.must_send([first, head("GET", "/echo", &[])].concat());
    master.get("/");
    site.flip("2");
    master.reload();
    std::fs::write(&done, "").expect("the file can be written");
    let first = connection.expect_answer();
    assert_eq!((first.text().as_str(), first.closes()), ("1", false));
    let second = connection.expect_answer();
    assert_eq!((second.status, second.release(), second.closes()), (200, "2", false));
}

#[test]
fn thirty_hups_in_a_storm_end_in_the_last_release() {
    let site = Site::alone("hup_storm").releases(4);
    let master = site.start();
    let load = Load::on(&master.address()).closing(4).keeping(6).posting(20_000).start();
    for number in 0..30 {
        site.flip(&(number % 3 + 1).to_string());
        master.hup();
        // The storm's pace: 30 in 0.6 s.
        std::thread::sleep(Duration::from_millis(20));
    }
    site.flip("4");
    master.hup();
    let last = site.release_path("4");
    wait_for("the last release alone", || {
        let generations = master.status()?.generations();
        (generations.len() == 1 && generations[0].release == last && generations[0].state == "serving").then_some(())
    });
    let workers = master.wait_serving();
    load.wait_answers(50);
    let report = load.stop();
    report.assert_no_failures();
    assert!(report.first_answer_of("4").is_some());
    let template = master.wait_settled().template_pid;
    let mut expected: Vec<i32> = workers.iter().map(|worker| worker.pid).chain([template]).collect();
    let mut children: Vec<i32> = master.children().iter().map(|child| child.pid).collect();
    expected.sort();
    children.sort();
    assert_eq!(children, expected, "exactly the configured workers and one template");
    let all = site.processes();
    assert_eq!(all.len(), 1 + children.len(), "{}", process::table(&all));
}

#[test]
fn two_hundred_reloads_leak_nothing() {
    let site = Site::alone("leaks").releases(2);
    let master = site.start();
    master.wait_settled();
    let pid = master.pid();
    let before = (fd_count(pid), master.children().len());
    let mut rss_at_50 = 0;
    for number in 1..=200 {
        site.flip(if number % 2 == 0 { "1" } else { "2" });
        master.reload();
        if number == 50 {
            master.wait_settled();
            rss_at_50 = rss_anon_bytes(pid);
        }
    }
    master.wait_settled();
    let after = wait_within(Duration::from_secs(10), || {
        let now = (fd_count(pid), master.children().len());
        // Fewer descriptors: a client of the control socket had not gone when they were counted first.
        (now.0 <= before.0 && now.1 == before.1).then_some(now)
    });
    let (fds, children) = (fd_count(pid), master.children());
    assert!(after.is_some(), "before: {before:?} fds and children; after: {fds}\n{}", process::table(&children));
    assert!(children.iter().all(|child| !child.is_zombie()), "{}", process::table(&children));
    let grown = rss_anon_bytes(pid).saturating_sub(rss_at_50);
    assert!(grown < 2 << 20, "the master grew by {} KiB from reload 50 to 200", grown >> 10);
}

#[test]
fn with_surge_100_percent_all_workers_change_in_one_step() {
    let site = Site::alone("surge_all");
    site.build("1").make();
    site.build("2").import_s(0.3).make();
    site.flip("1");
    site.set("reload.max_surge", "'100%'").set("server.workers", "3");
    let master = site.start();
    let load = Load::on(&master.address()).closing(6).keeping(2).start();
    site.flip("2");
    let committed = master.reload();
    load.wait_answers(50);
    let report = load.stop();
    report.assert_no_failures();
    report.assert_releases_follow(&[(report.started, "1".into()), (committed, "2".into())]);
}

#[test]
fn with_surge_0_no_more_workers_run_than_configured_but_the_candidate() {
    let site = Site::alone("surge_0").releases(2);
    site.set("reload.max_surge", "0").set("reload.max_unavailable", "1").set("server.workers", "3");
    let master = site.start();
    let load = Load::on(&master.address()).closing(3).keeping(3).start();
    site.flip("2");
    master.hup();
    let mut most = 0;
    wait_for("the reload", || {
        let status = master.status()?;
        // Workers are counted by what the master says: a child may be a template or a process between two forks.
        let workers = status.generations().iter().map(|generation| generation.workers.len()).sum::<usize>();
        most = most.max(workers);
        (status.serving()?.number == 2).then_some(())
    });
    load.wait_answers(20);
    load.stop().assert_no_failures();
    assert!(most <= 4, "{most} workers at once with 3 configured and surge 0");
}

#[test]
fn a_later_hup_supersedes_one_that_is_still_proving() {
    let site = Site::new("superseded");
    site.release("1");
    site.build("2").import_s(60.0).make();
    site.release("3");
    site.flip("1");
    let master = site.start();
    site.flip("2");
    master.hup();
    master.wait_log("generation gen=2*proving");
    site.flip("3");
    let output = master.cli(&["reload"]);
    assert!(output.ok(), "{output}");
    master.wait_log("generation gen=2 superseded by gen=3");
    assert_eq!(master.get("/").text(), "3");
    assert!(output.took < Duration::from_secs(20), "it waited for the superseded release: {:?}", output.took);
}

#[test]
fn a_deploy_in_place_is_named() {
    let site = Site::with_releases("in_place", 2);
    let master = site.start();
    let mark = master.mark();
    master.reload();
    master.wait_log_after(mark, "in place: code on disk is not pinned; preload = true pins it");
    assert!(master.status().and_then(|status| status.serving()).is_some_and(|serving| serving.in_place));
    site.flip("2");
    let mark = master.mark();
    master.reload();
    assert!(!master.log_after(mark).contains("in place"), "another release is not in place");
}

#[test]
fn more_workers_and_threads_come_with_a_reload() {
    let site = Site::with_releases("scale_by_reload", 2);
    let master = site.start();
    site.set("server.workers", "4").set("server.threads", "3");
    master.reload();
    assert_eq!(master.wait_workers(4).len(), 4);
    site.set("server.workers", "1");
    master.reload();
    assert_eq!(master.wait_workers(1).len(), 1);
    master.stop();
}

#[test]
fn a_worker_that_drains_while_a_reload_proves_itself_ends_though_that_has_fewer_addresses() {
    let site = Site::new("drains_in_proving");
    site.release("1");
    site.build("2").import_s(8.0).make();
    site.flip("1");
    site.set("server.bind", "['127.0.0.1:0', 'unix:second.sock']");
    let master = site.start();
    master.wait_serving();
    site.flip("2");
    site.set("server.bind", "['127.0.0.1:0']");
    master.hup();
    master.wait_log("worker gen=2 slot=0 pid=* -> starting");
    let mark = master.mark();
    master.signal(Signal::SIGTTOU);
    master.wait_log_after(mark, "worker gen=1 slot=1 pid=* finishing -> gone cause=\"exit code 0\"");
    assert!(!master.log().contains("generation gen=2 proved"), "it was the commit that ended the worker");
}
