//! How a new generation takes over, as clients see it, and what is left over of the old ones.

use std::time::{Duration, Instant};

use crate::harness::cgroup::Cgroup;
use crate::harness::load::Load;
use crate::harness::machine::{can_mount, not_tested};
use crate::harness::site::{app_source, Site};
use crate::harness::wait_for;

/// Each import sleeps: all boots go on at once, and all new workers take over in one step.
#[test]
fn eight_workers_whose_import_takes_half_a_second_take_over_in_one_step() {
    let site = Site::alone("one_step");
    for release in ["1", "2"] {
        site.build(release).import_s(0.5).make();
    }
    site.flip("1");
    site.set("server.workers", "8");
    let master = site.start();
    master.wait_workers(8);
    let load = Load::on(&master.address()).closing(4).start();
    load.wait_answers(20);
    site.flip("2");
    let began = Instant::now();
    let committed = master.reload();
    let took = committed.duration_since(began);
    load.wait_answers(20);
    let report = load.stop();
    report.assert_no_failures();
    master.wait_log("generation gen=2 rolling: 8 at once*");
    let first = report.first_answer_of("2").expect("the new release answers");
    for answer in &report.answers {
        assert!(answer.opened <= first || answer.release == "2", "the old release answered after the new one had");
    }
    // One import for the candidate and one for the others; one after the other they would take 4.5 s.
    assert!(took < Duration::from_secs(4), "{took:?}");
    master.stop();
}

/// The thread keeps the interpreter from ending. It keeps no deploy from anything.
#[test]
fn ten_deploys_of_an_application_with_a_thread_that_runs_on() {
    let site = Site::alone("thread_runs_on");
    site.build("1")
        .file(
            "app.py",
            "import threading\nthreading.Thread(target=threading.Event().wait, name='bg').start()\n\
             def application(environ, start_response):\n    start_response('204 No Content', [])\n    return []\n",
        )
        .make();
    site.flip("1");
    // Whoever waited for a leftover would wait nearly as long.
    let graceful = Duration::from_secs(8);
    site.set("server.graceful_timeout", "'8s'");
    let master = site.start();
    for reload in 0..10 {
        let began = Instant::now();
        master.reload();
        let took = began.elapsed();
        assert!(took < graceful / 2, "reload {reload} took {took:?}");
    }
    assert!(master.log_lines("waits for room").is_empty(), "{}", master.log());
    master.wait_log("worker gen=1 * finishing -> killed*");
    master.wait_log("worker gen=1 *since thread 'bg' is not a daemon: killed");
    wait_for("the leftovers to be gone", || (master.status()?.generations().len() == 1).then_some(()));
    master.stop();
}

/// Room for two workers beside the old ones: they come in waves of two, and the kernel kills nobody.
#[test]
fn a_memory_cgroup_with_room_for_two_more_workers() {
    if !can_mount() {
        return;
    }
    const MIB: u64 = 1 << 20;
    let site = Site::alone("waves");
    let app = app_source("app.py").replacen("import ctypes\n", "import ctypes\nWEIGHT = b'x' * (64 << 20)\n", 1);
    for release in ["1", "2"] {
        site.build(release).file("app.py", &app).make();
    }
    site.flip("1");
    site.set("server.workers", "6");
    let Some(cgroup) = Cgroup::with_limit(&site, 4096 * MIB) else {
        return not_tested("it needs a memory cgroup that can be made");
    };
    let master = site.launch(cgroup.launch());
    master.wait_workers(6);
    master.get("/");
    // The candidate and the template take some 100 MiB of it before the decision. A worker counts a quarter more than it
    // has, and a tenth of what is free is kept.
    let limit = cgroup.usage() + 100 * MIB + 250 * MIB;
    cgroup.set_limit(limit).expect("it is ours");
    let load = Load::on(&master.address()).closing(2).start();
    load.wait_answers(20);
    site.flip("2");
    master.reload();
    load.wait_answers(20);
    load.stop().assert_no_failures();
    master.wait_log("generation gen=2 rolling: 2 at once (* MiB each, * free): not all 6 fit beside the old ones");
    assert_eq!(cgroup.kills(), 0, "{}", master.log());
    master.wait_serving();
    master.stop();
}
