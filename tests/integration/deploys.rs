//! No deploy waits for what an earlier one left behind, and a roll takes as long as one boot, not as many as there are
//! workers.

use std::time::{Duration, Instant};

use crate::harness::client::{head, Connection};
use crate::harness::load::Load;
use crate::harness::master::Master;
use crate::harness::process;
use crate::harness::site::{app_source, Site};
use crate::harness::{for_each_preload, wait_for, wait_within};

/// What a deploy may take beyond the boot of its workers.
const BEYOND_THE_BOOT: Duration = Duration::from_secs(1);

const RELOADS: usize = 10;

/// The site of an application that this test's releases share, deployed in place by `RELOADS` reloads.
fn site(name: &str, module: &str) -> Site {
    let site = Site::new(name);
    let app = format!("{module}\nfrom good import application\n");
    site.build("1").file("good.py", &app_source("app.py")).file("app.py", &app).make();
    site.flip("1");
    site
}

/// How long this generation's workers took to boot, as the log says it: the longest of them, from fork to ready, and
/// the start of their template before it.
fn boot_time(master: &Master, generation: u64) -> Duration {
    let ready = master.log_lines(&format!("worker gen={generation} slot=* starting -> ready after="));
    let longest = ready.iter().filter_map(|line| after_ms(line)).max();
    let proving = time_of(&master.wait_log(&format!("generation gen={generation} -> proving")));
    let first = time_of(&master.wait_log(&format!("worker gen={generation} slot=* -> starting")));
    Duration::from_millis(longest.expect("a worker was ready") + first.saturating_sub(proving))
}

/// `after=212ms` at the end of a line.
fn after_ms(line: &str) -> Option<u64> {
    let (_, rest) = line.rsplit_once("after=")?;
    rest.split("ms").next()?.parse().ok()
}

/// The time of a log line in milliseconds of its day.
fn time_of(line: &str) -> u64 {
    let clock = line.split_once('T').map_or("", |(_, rest)| rest);
    let parts: Vec<u64> =
        clock.split('Z').next().unwrap_or("").split([':', '.']).filter_map(|part| part.parse().ok()).collect();
    assert_eq!(parts.len(), 4, "no time in {line:?}");
    ((parts[0] * 60 + parts[1]) * 60 + parts[2]) * 1000 + parts[3]
}

/// Reloads, and holds the time that it took against the boot of the generation that it made.
#[track_caller]
fn reload_in_time(master: &Master) -> u64 {
    let output = master.cli(&["reload"]);
    assert!(output.ok(), "{output}");
    let generation = master.status().and_then(|status| status.serving()).expect("it serves").number;
    let committed = master.wait_log(&format!("generation gen={generation} committed after="));
    let took = Duration::from_millis(after_ms(&committed).expect("it has a time"));
    // A second boot is allowed for: whatever `max_surge` says, the first worker proves the release before the others.
    let allowed = boot_time(master, generation) * 2 + BEYOND_THE_BOOT;
    assert!(took <= allowed, "generation {generation} was committed after {took:?}, allowed are {allowed:?}");
    generation
}

/// Such a worker has answered everything and cannot end: Python waits for the thread.
#[test]
fn ten_reloads_of_an_application_with_a_thread_that_is_no_daemon() {
    let module = "import threading, time\n\
                  threading.Thread(target=lambda: time.sleep(600), name='clockwork').start()";
    let site = site("no_daemon", module);
    site.set("server.graceful_timeout", "'3s'");
    let master = site.start();
    for _ in 0..RELOADS {
        reload_in_time(&master);
    }
    // They are named, and their time is not that of a request.
    master.wait_log("worker gen=1 * finishing -> killed*");
    master.wait_log("worker gen=1 *since thread 'clockwork' is not a daemon: killed");
    assert!(master.log_lines("waits for room").is_empty(), "{}", master.log());
    master.wait_settled();
    let asked = Instant::now();
    master.stop();
    assert!(asked.elapsed() < Duration::from_secs(15), "the end took {:?}", asked.elapsed());
}

/// Each deploy leaves a worker in which a request runs. More than three times as many as there are workers are not
/// kept: the oldest get `graceful_timeout`.
#[test]
fn ten_reloads_of_an_application_with_requests_of_a_minute() {
    let site = site("long_requests", "");
    site.set("server.graceful_timeout", "'2s'").set("server.request_timeout", "'none'");
    let master = site.start();
    let mut running = Vec::new();
    for _ in 0..RELOADS {
        running.push(long_request(&master));
        reload_in_time(&master);
    }
    let bound = 3 * master.configured_workers();
    let settled = wait_within(Duration::from_secs(20), || {
        let generations = master.status()?.generations();
        let left: usize =
            generations.iter().filter(|other| other.state != "serving").map(|old| old.workers.len()).sum();
        (left <= bound).then_some(left)
    });
    assert!(settled.is_some(), "more than {bound} workers are left over:\n{}", process::table(&site.processes()));
    assert!(settled > Some(0), "nothing is left over: the requests did not run");
}

/// A deploy that fails while it rolls leaves a worker that has taken a request.
#[test]
fn a_reload_after_three_failed_deploys_that_left_workers_behind() {
    let site = Site::with_releases("after_failed_deploys", 1);
    // One worker after the other: with all in one step no new worker serves before every one has booted.
    site.set("reload.max_surge", "1").set("server.graceful_timeout", "'2s'").set("server.request_timeout", "'none'");
    for number in 2..=4 {
        // The first process of the release serves; the second waits until the test has had an answer, and fails.
        let app = "import os, time\nhere = os.path.dirname(os.path.abspath(__file__))\n\
                   try:\n\
                   \x20   os.mkdir(os.path.join(here, 'first'))\n\
                   except FileExistsError:\n\
                   \x20   while not os.path.exists(os.path.join(here, 'fail')):\n\
                   \x20       time.sleep(0.01)\n\
                   \x20   raise RuntimeError('there is no place for a second one')\n\
                   from good import application\n";
        site.build(&number.to_string()).file("good.py", &app_source("app.py")).file("app.py", app).make();
    }
    site.release("5");
    let master = site.start();
    let mut running = Vec::new();
    for number in 2..=4 {
        let release = number.to_string();
        site.flip(&release);
        let mark = master.mark();
        master.hup();
        let request = wait_for("a request that the new release runs", || {
            let mut connection = master.connect();
            connection.must_send(head("GET", "/stream?pieces=2&pause=60", &[]));
            let begun = connection.read_past(" 0\n");
            begun.contains(&format!("{release} 0\n")).then_some(connection)
        });
        running.push(request);
        site.write(&format!("releases/{release}/fail"), "");
        master.wait_log_after(mark, &format!("generation gen={number} refused: "));
    }
    site.flip("5");
    reload_in_time(&master);
    assert_eq!(master.get("/").text(), "5");
}

/// The one who asked hears what is waited for while it is, not only at the end.
#[test]
fn a_reload_that_waits_for_room_says_so_to_whoever_asked() {
    let site = site("room", "");
    site.set("server.workers", "1").set("server.max_processes", "2").set("server.graceful_timeout", "'6s'");
    let master = site.start();
    let _request = long_request(&master);
    let first = master.cli(&["reload"]);
    assert!(first.ok() && first.stderr.is_empty(), "{first}");
    let second = master.cli(&["reload"]);
    assert!(second.ok(), "{second}");
    assert!(second.stderr.contains("reload waits for room for a worker, behind 1 processes that leave"), "{second}");
    assert_eq!(second.stderr.matches("waits for room").count(), 1, "{second}");
}

/// A request that runs for a minute, on a worker of the serving generation.
fn long_request(master: &Master) -> Connection {
    let mut connection = master.connect();
    connection.must_send(head("GET", "/stream?pieces=2&pause=60", &[]));
    connection.read_past(" 0\n");
    connection
}

/// With the default `max_surge` all workers but the one that proves the release boot at the same time, and all take
/// over in one step.
#[test]
fn eight_workers_with_a_slow_import_take_over_in_one_step() {
    for_each_preload(|preload| {
        let site = Site::alone("one_step");
        site.build("1").import_s(0.5).make();
        site.build("2").import_s(0.5).make();
        site.flip("1");
        site.set("server.workers", "8").set("app.preload", preload);
        let master = site.start();
        let load = Load::on(&master.address()).closing(4).keeping(0).start();
        site.flip("2");
        reload_in_time(&master);
        load.wait_answers(100);
        let report = load.stop();
        report.assert_no_failures();
        master.wait_log("generation gen=2 rolling: 8 at once*");
        let first = report.first_answer_of("2").expect("the new release answers");
        let late = report.answers.iter().filter(|answer| answer.sent > first && answer.release == "1").count();
        assert_eq!(late, 0, "{late} requests were begun after the first new answer and answered by the old release");
        let longest = report.answers.iter().map(|answer| answer.received - answer.opened).max();
        println!("preload = {preload}: the longest wait for an answer was {longest:?}");
        assert!(longest < Some(Duration::from_secs(2)), "accepting paused: {longest:?}");
    });
}

/// More processes than a socket buffer holds messages for.
#[test]
fn hundreds_of_workers_are_committed() {
    let site = Site::alone("hundreds");
    site.build("1")
        .file(
            "app.py",
            "def application(environ, start_response):\n    start_response('204 No Content', [])\n    return []\n",
        )
        .make();
    site.flip("1");
    site.set("server.workers", "1").set("app.preload", "true").set("server.boot_timeout", "'10m'");
    let master = site.start();
    for (workers, surge) in [(280, "'100%'"), (400, "'auto'")] {
        site.set("server.workers", &workers.to_string()).set("reload.max_surge", surge);
        let output = master.cli(&["reload"]);
        assert!(output.ok(), "{workers} workers, max_surge = {surge}: {output}");
        assert_eq!(master.wait_workers(workers).len(), workers);
        // Down again, so that two large generations are never there at the same time.
        site.set("server.workers", "1").set("reload.max_surge", "1");
        master.reload();
        master.wait_drained();
    }
    master.stop();
}
