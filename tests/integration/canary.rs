//! Canaries: the first workers of a release serve beside the old ones, and the release takes over only if it is no worse.

use std::thread::{self, JoinHandle};
use std::time::Duration;

use nix::sys::signal::{kill, Signal};
use nix::unistd::Pid;
use serde_json::Value;

use crate::harness::client::{get, head, Connection};
use crate::harness::load::{Load, Running};
use crate::harness::master::{run, Master, Output};
use crate::harness::site::Site;
use crate::harness::wait_for;

/// Answers with its release; in one of so many requests of the second release it fails.
fn app(fails_every: u32) -> String {
    format!(
        r#"
import itertools
import os
import time

RELEASE = os.path.basename(os.getcwd())
NUMBER = itertools.count(1)


def application(environ, start_response):
    if environ["PATH_INFO"] == "/until":
        files = environ["QUERY_STRING"]
        open(os.path.join(files, "running-%d" % os.getpid()), "w").close()
        for _ in range(3000):
            if os.path.exists(os.path.join(files, RELEASE)):
                break
            time.sleep(0.01)
    fails = {fails_every} and RELEASE == "2" and next(NUMBER) % {fails_every} == 0
    status = "500 Internal Server Error" if fails else "200 OK"
    start_response(status, [("Content-Length", "1"), ("X-Release", RELEASE), ("X-Pid", str(os.getpid()))])
    return [RELEASE.encode()]
"#,
        fails_every = fails_every
    )
}

/// Release 1 serves with four workers, 2 is on disk, and a canary serves for so long.
fn site(name: &str, fails_every: u32, hold: &str) -> (Site, Master) {
    let site = Site::new(name);
    for release in ["1", "2"] {
        site.build(release).file("app.py", &app(fails_every)).make();
    }
    site.flip("1");
    site.set("server.workers", "4");
    site.set("reload.canary", &format!("{{ workers = 1, hold = '{hold}', min_requests = 20 }}"));
    let master = site.start();
    site.flip("2");
    (site, master)
}

fn load(master: &Master) -> Running {
    Load::on(&master.address()).closing(6).keeping(2).target("/").start()
}

/// `forkmaster reload`, in a thread, until its canary serves.
fn reload_to_canary(site: &Site, master: &Master) -> JoinHandle<Output> {
    let directory = site.path().to_path_buf();
    let asking = thread::spawn(move || run(&directory, &["reload", "-c", "app.toml"]));
    master.wait_log("canary gen=2 serves: 1 workers beside the old ones");
    asking
}

/// The worker of the canary, and what `status` says of it.
fn canary(master: &Master) -> (i32, Value) {
    wait_for("a canary in `status`", || {
        let status = master.status()?;
        let generation = status.0["generations"].as_array()?.iter().find(|one| one["generation"] == 2)?.clone();
        let pid = generation["workers"][0]["pid"].as_i64()? as i32;
        (!generation["canary"].is_null()).then_some((pid, generation))
    })
}

#[track_caller]
fn release_1_serves_alone(master: &Master) {
    let generation = master.wait_settled();
    assert_eq!((generation.number, generation.workers.len()), (1, 4));
    assert_eq!(master.get("/").text(), "1");
}

#[test]
fn a_good_release_takes_over_and_nothing_is_lost() {
    let (site, master) = site("canary_good", 0, "2s");
    let load = load(&master);
    let asking = reload_to_canary(&site, &master);
    let (_, shown) = canary(&master);
    assert_eq!((&shown["state"], &shown["waiting"]), (&"rolling".into(), &"the verdict on its canary".into()));
    assert_eq!(shown["canary"]["verdict"], "running");
    let page = master.cli(&["status"]);
    assert!(page.stdout.contains("canary running\n") && page.stdout.contains("share of them"), "{page}");
    let output = asking.join().expect("it ends");
    assert!(
        output.ok() && output.stdout.starts_with("canary good: it is no worse than the old generation\n"),
        "{output}"
    );
    assert!(output.stdout.contains("generation 2 serves, after "), "{output}");
    load.wait_answers(20);
    let report = load.stop();
    report.assert_no_failures();
    assert_eq!(master.get("/").text(), "2");
    // Its share was that of a worker, more or less: it is not the one that is always woken first.
    let entry = master.cli(&["history", "--json"]);
    let deploy: Value = serde_json::from_str(entry.stdout.lines().nth(1).expect("two deploys")).expect("JSON");
    let answered = |side: &str| deploy["canary"][side]["answered"].as_f64().expect("a number");
    let share = answered("new") / (answered("new") + answered("old"));
    assert!((0.01..0.8).contains(&share), "{}", deploy["canary"]);
    assert!(master.cli(&["history"]).stdout.contains("canary good: it is no worse"));
    master.stop_clean();
}

#[test]
fn a_release_that_fails_more_is_given_up_and_whoever_asked_sees_the_table() {
    // Long enough for a verdict however busy the machine is: it comes as soon as there is no doubt.
    let (site, master) = site("canary_worse", 3, "60s");
    let load = load(&master);
    let output = reload_to_canary(&site, &master).join().expect("it ends");
    assert_eq!(output.code, Some(1), "{output}");
    for words in
        ["the canary was abandoned: ", " % of its requests failed, and 0.0 % of the old", "gen 2 (canary)", "+1pp"]
    {
        assert!(output.stderr.contains(words), "{words}: {output}");
    }
    release_1_serves_alone(&master);
    load.wait_answers(20);
    // Its clients saw what it failed, and nothing else.
    let report = load.stop();
    assert!(report.failures.iter().all(|failed| failed.what.starts_with("status 500")), "{report}");
    let log = master.log();
    assert!(log.contains("canary gen=2 worse: ") && log.contains("generation gen=2 refused: the canary"), "{log}");
    let status = master.status().expect("it answers").0;
    assert_eq!(status["last_refusal"]["canary"]["verdict"], "worse");
    master.stop();
}

#[test]
fn the_death_of_one_worker_is_enough() {
    let (site, master) = site("canary_death", 0, "60s");
    let asking = reload_to_canary(&site, &master);
    let (pid, _) = canary(&master);
    kill(Pid::from_raw(pid), Signal::SIGKILL).expect("it is there");
    let output = asking.join().expect("it ends");
    assert_eq!(output.code, Some(1), "{output}");
    let why = format!("the canary was abandoned: worker gen=2 slot=0 pid={pid} died");
    assert!(output.stderr.contains(&why), "{output}");
    release_1_serves_alone(&master);
    // The next one is another.
    let output = master.cli(&["reload", "--canary", "0"]);
    assert!(output.ok() && output.stdout.starts_with("generation 3 serves"), "{output}");
}

/// Its requests never end, so there are no answers to compare.
#[test]
fn one_that_hangs_in_each_request_is_given_up_and_the_old_generation_serves() {
    let (site, master) = site("canary_hangs", 0, "60s");
    let hangs = "import time\n\n\ndef application(environ, start_response):\n    time.sleep(600)\n";
    site.build("hangs").file("app.py", hangs).make();
    site.flip("hangs");
    site.set("server.request_timeout", "'1s'").set("server.graceful_timeout", "'1s'");
    let asking = reload_to_canary(&site, &master);
    // Whoever gets to the canary hears so in time, and nobody waits for ever.
    let clients: Vec<JoinHandle<Vec<u16>>> = (0..6)
        .map(|_| {
            let address = master.address();
            let answer = move || get(&address, "/").map_or(0, |answer| answer.status);
            thread::spawn(move || std::iter::repeat_with(answer).take(40).collect())
        })
        .collect();
    let output = asking.join().expect("it ends");
    assert!(
        output.code == Some(1) && output.stderr.contains("the canary was abandoned: worker gen=2 slot=0"),
        "{output}"
    );
    assert!(output.stderr.contains("hung in a request; the log has its stacks"), "{output}");
    let statuses: Vec<u16> = clients.into_iter().flat_map(|client| client.join().expect("it ends")).collect();
    let by_canary = statuses.iter().filter(|status| **status == 504).count();
    assert!((1..20).contains(&by_canary), "{statuses:?}");
    assert!(statuses.iter().all(|status| [200, 504].contains(status)), "{statuses:?}\n{}", master.log());
    release_1_serves_alone(&master);
    let log = master.log();
    assert!(log.contains("canary gen=2 died: ") && log.contains("generation gen=2 refused: the canary"), "{log}");
    let status = master.status().expect("it answers").0;
    assert_eq!(status["last_refusal"]["canary"]["verdict"], "died");
    master.stop();
}

#[test]
fn an_operator_promotes_or_abandons_it() {
    let (site, master) = site("canary_verbs", 0, "60s");
    for verb in ["promote", "abandon"] {
        let output = master.cli(&[verb]);
        assert_eq!((output.code, output.text().contains("there is no canary")), (Some(1), true), "{output}");
    }
    let asking = reload_to_canary(&site, &master);
    let output = master.cli(&["abandon"]);
    assert!(output.ok() && output.stdout.starts_with("the canary is given up"), "{output}");
    let output = asking.join().expect("it ends");
    assert!(output.code == Some(1) && output.stderr.contains("an operator has abandoned it"), "{output}");
    release_1_serves_alone(&master);
    let mark = master.mark();
    let asking = {
        let directory = site.path().to_path_buf();
        let words = ["reload", "--canary", "2", "--hold", "50s", "-c", "app.toml"];
        thread::spawn(move || run(&directory, &words))
    };
    master.wait_log_after(mark, "canary gen=3 serves: 2 workers beside the old ones for 50.0s");
    let output = master.cli(&["promote"]);
    assert!(output.ok() && output.stdout.contains("canary promoted: an operator"), "{output}");
    assert!(asking.join().expect("it ends").stdout.contains("generation 3 serves"));
    assert_eq!(master.get("/").text(), "2");
}

/// A keep-alive connection that is at the canary does not wait for it while an old worker has nothing to do, and the other
/// way round.
#[test]
fn a_busy_worker_gives_its_line_to_whoever_is_free_in_either_generation() {
    let (site, master) = site("canary_line", 0, "60s");
    let asking = reload_to_canary(&site, &master);
    let mut clients: Vec<Connection> = Vec::new();
    let (mut at_canary, mut at_old) = (0, 0);
    for _ in 0..300 {
        let mut client = master.connect();
        match client.get_ok("/").text() == "2" {
            true => at_canary += 1,
            false => at_old += 1,
        }
        clients.push(client);
        if at_canary >= 4 && at_old >= 4 {
            break;
        }
    }
    assert!(at_canary >= 4 && at_old >= 4, "{at_canary} of {} are at the canary", clients.len());
    // Each round has all five workers run a request that ends when there is a file for its release.
    for (round, free) in ["1", "2"].into_iter().enumerate() {
        let files = site.path().join(format!("round-{round}"));
        std::fs::create_dir(&files).expect("it can be made");
        let target = format!("/until?{}", files.display());
        let mut held: Vec<Connection> = (0..5)
            .map(|_| {
                let mut client = master.connect();
                client.must_send(head("GET", &target, &[]));
                client
            })
            .collect();
        wait_for("five running requests", || {
            (std::fs::read_dir(&files).map_or(0, |found| found.count()) == 5).then_some(())
        });
        std::fs::write(files.join(free), "").expect("it can be written");
        for client in &mut clients {
            assert_eq!(client.get_ok("/").text(), free);
        }
        for release in ["1", "2"] {
            std::fs::write(files.join(release), "").expect("it can be written");
        }
        let answers: Vec<String> = held.iter_mut().map(|client| client.expect_answer().text()).collect();
        assert_eq!(answers.iter().filter(|answer| *answer == "2").count(), 1, "{answers:?}");
    }
    assert!(master.cli(&["abandon"]).ok());
    assert_eq!(asking.join().expect("it ends").code, Some(1));
}

#[test]
fn a_hup_supersedes_it_and_a_term_ends_it() {
    let (site, master) = site("canary_hup", 0, "60s");
    let load = load(&master);
    let asking = reload_to_canary(&site, &master);
    site.set("reload.canary", "{ hold = '60s' }");
    master.hup();
    master.wait_log("generation gen=3 committed");
    let output = asking.join().expect("it ends");
    assert!(output.code == Some(1) && output.stderr.contains("superseded by a later reload"), "{output}");
    load.wait_answers(10);
    load.stop().assert_no_failures();
    let mark = master.mark();
    let asking = {
        let directory = site.path().to_path_buf();
        thread::spawn(move || run(&directory, &["reload", "--canary", "1", "-c", "app.toml"]))
    };
    master.wait_log_after(mark, "canary gen=4 serves");
    master.stop();
    assert_eq!(asking.join().expect("it ends").code, Some(1));
}

#[test]
fn too_little_traffic_is_said_and_the_release_takes_over() {
    let (_site, master) = site("canary_quiet", 0, "300ms");
    let output = master.cli(&["reload"]);
    assert!(output.ok() && output.took < Duration::from_secs(30), "{output}");
    let said =
        "canary too_little_traffic: too little traffic for a verdict: the canary has 0 requests that can be compared";
    assert!(output.stdout.contains(said), "{output}");
    assert_eq!(master.get("/").text(), "2");
}

#[test]
fn beside_fewer_than_four_workers_there_is_none() {
    let (site, master) = site("canary_few", 0, "60s");
    assert!(master.cli(&["scale", "3"]).ok());
    let output = master.cli(&["reload"]);
    let why = "a canary needs at least 4 workers beside it, and 3 are wanted; `forkmaster reload --canary 0` deploys \
               without one";
    assert!(output.code == Some(1) && output.stderr.contains(why), "{output}");
    // The file says so before anything is deployed.
    site.set("server.workers", "3");
    let output = master.cli(&["check"]);
    assert!(output.code == Some(78) && output.text().contains("[reload] canary"), "{output}");
    assert_eq!(master.get("/").text(), "1");
}

/// An operator who tries one verb after the other hears of each what it does or why it cannot be, and no client notices.
#[test]
fn verbs_that_come_while_it_serves_are_done_or_refused_with_the_reason() {
    let (site, master) = site("canary_any_order", 0, "60s");
    let load = load(&master);
    let asking = reload_to_canary(&site, &master);
    let refused = |args: &[&str], words: &str| {
        let output = master.cli(args);
        assert!(output.code == Some(1) && output.stderr.contains(words), "{args:?}: {output}");
    };
    let state = || master.status().expect("it answers").0["state"].clone();
    let waits = "generation 2 is rolling, and waits for the verdict on its canary";
    refused(&["upgrade", "--timeout", "300ms"], waits);
    refused(&["rollback"], "generation 2: it does not serve yet, and generation 1 does; `forkmaster abandon` gives up");
    refused(&["rollback", "--to", "2"], "generation 1: it is the first that serves, so there is none to go back to");
    assert!(master.cli(&["recycle", "0"]).ok());
    // Told when they serve, and not when the canary has ended.
    assert_eq!(master.cli(&["scale", "+1"]).stdout, "5 workers serve\n");
    assert_eq!(state(), "reloading");
    // Paused: nobody is asked, and that is what is told, though a reload is under way.
    assert!(master.cli(&["pause"]).ok());
    assert_eq!(state(), "paused");
    let health = master.cli(&["health"]);
    assert!(health.code == Some(1) && health.stderr.contains("paused, not ready"), "{health}");
    refused(&["upgrade"], "the service is paused; `forkmaster resume` first");
    refused(&["recycle", "0"], "the service is paused");
    assert!(master.cli(&["resume"]).ok());
    assert_eq!(state(), "reloading");
    load.wait_answers(20);
    assert!(master.cli(&["abandon"]).ok());
    assert_eq!(asking.join().expect("it ends").code, Some(1));
    for verb in ["promote", "abandon"] {
        refused(&[verb], "there is no canary");
    }
    // A paused reload comes instead of one, and has none itself, whatever the settings say.
    let mark = master.mark();
    let directory = site.path().to_path_buf();
    let asking = thread::spawn(move || run(&directory, &["reload", "-c", "app.toml"]));
    master.wait_log_after(mark, "canary gen=3 serves: ");
    let output = master.cli(&["reload", "--pause", "--", "true"]);
    assert!(output.ok() && output.stdout.starts_with("generation 4 serves"), "{output}");
    let output = asking.join().expect("it ends");
    assert!(output.code == Some(1) && output.stderr.contains("superseded by a later reload"), "{output}");
    assert!(master.log_lines("canary gen=4 *").is_empty());
    // What a canary was tried in and did not serve is nothing to go back to; what was promoted is.
    refused(&["rollback", "--to", "3"], "generation 3: it is not one that has served before; these are: 1");
    let output = master.cli(&["rollback", "--to", "1"]);
    assert!(output.ok() && output.stdout.contains("generation 5 serves"), "{output}");
    load.wait_answers(20);
    load.stop().assert_no_failures();
    assert_eq!(master.get("/").text(), "1");
    master.stop();
}

#[test]
fn a_generation_that_was_a_canary_can_be_had_back() {
    let (site, master) = site("canary_back", 0, "60s");
    let asking = reload_to_canary(&site, &master);
    assert!(master.cli(&["promote"]).ok() && asking.join().expect("it ends").ok());
    assert!(master.cli(&["rollback"]).ok());
    assert_eq!(master.get("/").text(), "1");
    let output = master.cli(&["rollback", "--to", "2"]);
    assert!(output.ok() && output.stdout.contains("generation 4 serves"), "{output}");
    assert_eq!(master.get("/").text(), "2");
    assert!(master.log_lines("canary gen=4 *").is_empty(), "a rollback has none");
    master.stop_clean();
}

/// One that ends, however, ends as it does at any other time: whoever runs and whoever waits is answered, by one of both.
#[test]
fn at_a_stop_or_the_masters_death_nobody_is_lost_while_it_serves() {
    let waits = r#"
import os
import time

RELEASE = os.path.basename(os.getcwd())


def application(environ, start_response):
    while environ["PATH_INFO"] == "/runs" and not os.path.exists("../../go"):
        time.sleep(0.01)
    start_response("200 OK", [("Content-Length", "1")])
    return [RELEASE.encode()]
"#;
    for signal in [Signal::SIGTERM, Signal::SIGKILL] {
        let (site, master) = site(&format!("canary_{signal}"), 0, "60s");
        for release in ["a", "b"] {
            site.build(release).file("app.py", waits).make();
        }
        site.set("reload.canary", "{ hold = '60s' }");
        site.flip("a");
        master.reload();
        site.flip("b");
        let directory = site.path().to_path_buf();
        let asking = thread::spawn(move || run(&directory, &["reload", "--canary", "2", "-c", "app.toml"]));
        master.wait_log("canary gen=3 serves: 2 workers beside the old ones");
        let mut clients: Vec<Connection> = (0..16).map(|_| master.connect()).collect();
        for client in &mut clients {
            client.get_ok("/");
        }
        for client in &mut clients {
            client.must_send(head("GET", "/runs", &[]));
        }
        wait_for("requests in both generations", || {
            let status = master.status()?.0;
            let busy = |of: &Value| of["workers"].as_array().is_some_and(|of| of.iter().any(|one| one["busy"] == 1));
            (status["generations"].as_array()?.iter().filter(|of| busy(of)).count() == 2).then_some(())
        });
        master.signal(signal);
        assert_eq!(asking.join().expect("it ends").code, Some(1));
        site.write("go", "");
        for mut client in clients {
            let answer = client.expect_answer();
            assert!(answer.status == 200 && ["a", "b"].contains(&answer.text().as_str()), "{signal}: {answer:?}");
        }
        master.wait_exit();
        master.assert_nothing_left();
    }
}
