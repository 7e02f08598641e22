//! Kept templates: for a while after a reload the way back imports nothing, and whatever becomes of a template that is kept,
//! nothing of it stays behind.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;

use nix::sys::signal::{kill, Signal};
use nix::unistd::Pid;

use crate::harness::cgroup::Cgroup;
use crate::harness::load::Load;
use crate::harness::machine::{can_mount, not_tested};
use crate::harness::master::Master;
use crate::harness::process;
use crate::harness::site::Site;
use crate::harness::{for_each_preload, wait_for};

/// Answers with its release, and leaves a line for each import.
const APP: &str = r#"
import os

RELEASE = os.path.basename(os.getcwd())
with open(os.path.join(os.getcwd(), "..", "..", "imports"), "a") as imports:
    imports.write(RELEASE + "\n")


def application(environ, start_response):
    start_response("200 OK", [("Content-Length", "1"), ("X-Release", RELEASE)])
    return [RELEASE.encode()]
"#;

/// Release 1 was replaced by release 2.
fn site(name: &str, preload: &str, window: &str) -> (Site, Master) {
    let site = Site::new(name);
    for release in ["1", "2"] {
        site.build(release).file("app.py", APP).make();
    }
    site.flip("1");
    site.set("app.preload", preload).set("reload.rollback_window", &format!("'{window}'"));
    let master = site.start();
    site.flip("2");
    master.reload();
    (site, master)
}

fn imports(site: &Site) -> usize {
    fs::read_to_string(site.path().join("imports")).unwrap_or_default().lines().count()
}

/// The process of the template that each generation has, by its number.
fn templates(master: &Master) -> Vec<(u64, i32)> {
    let generations = master.status().expect("it answers").generations();
    generations.iter().map(|generation| (generation.number, generation.template_pid)).collect()
}

/// Only the template of generation 1 is left of it.
#[track_caller]
fn wait_kept(master: &Master, generation: u64) -> i32 {
    master.wait_or_exit("a template that is kept", || {
        let generations = master.status()?.generations();
        let kept = generations.iter().find(|one| one.state == "kept" && one.number == generation)?;
        (kept.template_pid > 0 && generations.len() == 2).then_some(kept.template_pid)
    })
}

#[track_caller]
fn roll_back(master: &Master) {
    let output = master.cli(&["rollback"]);
    assert!(output.ok(), "{output}");
}

#[test]
fn a_rollback_imports_nothing_and_loses_nothing() {
    for_each_preload(|preload| {
        let (site, master) = site(&format!("kept_{preload}"), preload, "10m");
        let first = wait_kept(&master, 1);
        let page = master.cli(&["status"]).stdout;
        assert!(
            page.contains("rollback to generation 1 forks from its template (") && page.contains("generation 1 kept")
        );
        let kept = master.status().expect("it answers").0["kept"].clone();
        assert!(
            kept["generation"] == 1 && kept["given_up"] == false && kept["left_s"].as_f64() > Some(300.0),
            "{kept}"
        );
        let second = templates(&master)[1].1;
        let before = imports(&site);
        let load = Load::on(&master.address()).closing(2).keeping(4).target("/").start();
        roll_back(&master);
        assert_eq!(master.get("/").text(), "1");
        load.wait_answers(20);
        assert_eq!(wait_kept(&master, 2), second, "and forward again");
        assert!(templates(&master).contains(&(3, first)), "the first template forks for generation 3");
        roll_back(&master);
        assert_eq!(master.get("/").text(), "2");
        assert_eq!(wait_kept(&master, 3), first);
        load.stop().assert_no_failures();
        // Without preload each worker imports by itself.
        let workers = if preload == "true" { 0 } else { 2 * 2 };
        assert_eq!(imports(&site) - before, workers);
        let titles: Vec<String> = site.processes().into_iter().map(|process| process.title).collect();
        let workers = titles.iter().filter(|title| title.contains(" worker gen=4 ")).count();
        assert_eq!(workers, 2, "workers are called by the generation that they are of: {titles:?}");
        master.stop_clean();
    });
}

/// What there is besides the pids: how many processes, and descriptors of the master.
fn inventory(site: &Site, master: &Master) -> (usize, usize) {
    (site.processes().len(), process::fd_count(master.pid()))
}

#[test]
fn twenty_reloads_and_rollbacks_leave_nothing_behind() {
    let (site, master) = site("kept_twenty", "true", "10m");
    site.set("service", "[{ name = 'ticker', command = ['sleep', '1000'] }]");
    master.reload();
    site.flip("1");
    master.reload();
    wait_kept(&master, 3);
    let before = inventory(&site, &master);
    let load = Load::on(&master.address()).closing(2).keeping(2).target("/").start();
    let mut release = 1;
    for turn in 0..20 {
        release = 3 - release;
        if turn % 3 == 0 {
            site.flip(&release.to_string());
            let output = master.cli(&["reload", "--force"]);
            assert!(output.ok(), "{output}");
        } else {
            roll_back(&master);
        }
        assert_eq!(master.get("/").text(), release.to_string(), "turn {turn}");
    }
    load.stop().assert_no_failures();
    let serving = master.status().and_then(|status| status.serving()).expect("one serves").number;
    wait_kept(&master, serving - 1);
    wait_for("as many processes and descriptors as before", || (inventory(&site, &master) == before).then_some(()));
    let directories: BTreeSet<PathBuf> = site
        .processes()
        .into_iter()
        .filter(|process| process.title.contains("sleep"))
        .filter_map(|process| fs::read_link(format!("/proc/{}/cwd", process.pid)).ok())
        .collect();
    let serves = site.release_path(&release.to_string()).canonicalize().expect("it is there");
    assert_eq!(directories, BTreeSet::from([serves]), "the service of what serves, and no other");
    master.stop_clean();
}

#[test]
fn it_ends_with_its_time_and_one_that_dies_is_forgotten() {
    let (site, master) = site("kept_ends", "true", "300ms");
    master.wait_settled();
    let before = imports(&site);
    roll_back(&master);
    assert_eq!((master.get("/").text().as_str(), imports(&site) - before), ("1", 1), "from the directories");
    site.set("reload.rollback_window", "'10m'");
    site.flip("2");
    assert!(master.cli(&["reload", "--force"]).ok());
    let kept = wait_kept(&master, 3);
    kill(Pid::from_raw(kept), Signal::SIGKILL).expect("it is there");
    master.wait_settled();
    assert!(master.status().expect("it answers").0["kept"].is_null());
    roll_back(&master);
    assert_eq!(master.get("/").text(), "1");
    // A stopped one cannot fork; the rollback does not fail for it. What was rolled back to has the short window again.
    assert!(master.cli(&["reload", "--force"]).ok());
    let kept = wait_kept(&master, 5);
    kill(Pid::from_raw(kept), Signal::SIGTERM).expect("it is there");
    roll_back(&master);
    assert_eq!(master.get("/").text(), "1");
    master.stop();
}

#[test]
fn memory_that_is_short_comes_from_it_first() {
    if !can_mount() {
        return;
    }
    let site = Site::with_releases("kept_memory", 2);
    site.set("reload.rollback_window", "'10m'");
    let Some(cgroup) = Cgroup::with_limit(&site, 1 << 30) else {
        return not_tested("it needs a memory cgroup that can be made");
    };
    let master = site.launch(cgroup.launch());
    master.wait_serving();
    site.flip("2");
    master.reload();
    wait_kept(&master, 1);
    // Not one more worker fits, and what is there has some room all the same.
    cgroup.set_limit(cgroup.usage() + (3 << 20)).expect("the limit can be set");
    master.wait_log("template gen=1 is kept no longer, since memory is short (");
    let kept = master.status().expect("it answers").0["kept"].clone();
    assert!(kept["given_up"] == true && kept["bytes"].as_u64() > Some(1 << 20), "{kept}");
    let page = master.cli(&["status"]).stdout;
    assert!(page.contains("rollback to generation 1 starts Python anew: memory was short"), "{page}");
    cgroup.set_limit(1 << 30).expect("the limit can be set");
    roll_back(&master);
    assert_eq!(master.get("/").text(), "1");
    master.stop();
}
