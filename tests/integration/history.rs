//! What was deployed when, by whom, and how it went: over restarts, kills, full disks and directories that cannot be written.

use std::fs;
use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::harness::load::Load;
use crate::harness::machine::can_mount;
use crate::harness::master::{Launch, Master};
use crate::harness::random::Random;
use crate::harness::site::Site;
use crate::harness::wait_for;

fn entries(master: &Master) -> Vec<Value> {
    let output = master.cli(&["history", "--json"]);
    assert_eq!(output.code, Some(0), "{output}");
    output.stdout.lines().map(|line| serde_json::from_str(line).expect("each line is JSON")).collect()
}

fn deploys(master: &Master) -> Vec<Value> {
    entries(master).into_iter().filter(|entry| entry["what"] == "deploy").collect()
}

fn results(master: &Master) -> Vec<String> {
    let result = |deploy: &Value| format!("{} {}", deploy["generation"], deploy["result"].as_str().unwrap_or("?"));
    deploys(master).iter().map(result).collect()
}

#[test]
fn each_deploy_is_remembered_with_who_asked_and_how_it_ended() {
    let site = Site::with_releases("history_deploys", 2);
    site.build("3").app("broken/missing_dependency.py").make();
    fs::write(site.release_path("2").join("RELEASE"), "shop 1.4\n").expect("a release can be written to");
    let master = site.start();
    site.flip("2");
    site.set("server.workers", "3");
    master.reload();
    site.flip("3");
    master.hup();
    master.wait_log("generation gen=3 refused");
    site.set("server.workers", "'many'");
    assert_eq!(master.cli(&["reload"]).code, Some(1));
    site.set("server.workers", "3");
    assert_eq!(master.cli(&["rollback"]).code, Some(0));
    assert_eq!(results(&master), ["1 committed", "2 committed", "3 refused", "null refused", "4 committed"]);
    let found = deploys(&master);
    assert_eq!((found[0]["asked"].as_str(), found[2]["asked"].as_str()), (Some("start"), Some("signal")));
    for (at, what) in [(1, ": reload"), (3, ": reload"), (4, ": rollback")] {
        let asked = found[at]["asked"].as_str().unwrap();
        assert!(asked.starts_with("uid=") && asked.contains(" pid=") && asked.ends_with(what), "{asked}");
    }
    assert_eq!(found[1]["revision"], "shop 1.4");
    assert!(found[1]["changes"].to_string().contains("[server] workers"), "{}", found[1]);
    assert!(found[1]["proved_s"].as_f64() <= found[1]["took_s"].as_f64() && found[1]["python"].is_string());
    assert!(found[2]["reason"].as_str().unwrap().contains("Error"), "{}", found[2]);
    assert_eq!(found[4]["back"], 1);
    let shown = master.cli(&["history"]).stdout;
    assert!(shown.lines().count() >= 5 && shown.contains("(shop 1.4)") && shown.contains(" as gen 1"), "{shown}");
}

#[test]
fn it_outlives_the_master_and_a_torn_line() {
    let site = Site::with_releases("history_kept", 1);
    let state = site.path().join("state");
    fs::create_dir(&state).expect("a directory can be made");
    site.set("control.history", "'state/history.jsonl'");
    let master = site.start();
    master.reload();
    let file = state.join("history.jsonl");
    let lines = || fs::read_to_string(&file).unwrap_or_default().lines().count();
    wait_for("two deploys in the file", || (lines() >= 2).then_some(()));
    master.signal(Signal::SIGKILL);
    master.wait_exit();
    master.assert_nothing_left();
    let text = fs::read_to_string(&file).expect("it is there");
    fs::write(&file, &text[..text.len() - 7]).expect("it can be written");
    let master = site.start();
    wait_for("what the first master did", || (results(&master).len() == 2).then_some(()));
    assert_eq!(results(&master), ["1 committed", "1 committed"], "the torn line is skipped");
    master.reload();
    wait_for("a whole line after the torn one", || {
        let text = fs::read_to_string(&file).unwrap_or_default();
        let whole = text.lines().filter(|line| serde_json::from_str::<Value>(line).is_ok()).count();
        (whole == 3 && text.ends_with('\n')).then_some(())
    });
    master.stop_clean();
}

#[test]
fn where_it_cannot_be_written_one_line_says_so_and_all_else_goes_on() {
    let full = std::path::Path::new("/dev/full").exists();
    let missing = "missing/history.jsonl";
    for path in [Some(missing), full.then_some("/dev/full")].into_iter().flatten() {
        let site = Site::with_releases("history_unwritten", 1);
        site.set("control.history", &format!("'{path}'"));
        let master = site.start();
        for _ in 0..3 {
            master.reload();
        }
        assert_eq!(results(&master), ["1 committed", "2 committed", "3 committed", "4 committed"]);
        master.wait_log("the history is not written: ");
        assert_eq!(master.log_lines("the history is not written").len(), 1, "{path}");
        master.stop();
    }
}

#[test]
fn a_report_tells_what_a_generation_did_beside_the_one_before() {
    let leak = r#"
KEPT = []
def application(environ, start_response):
    if environ["PATH_INFO"] == "/fails":
        raise ValueError("no")
    KEPT.append(bytearray(b"x" * 50_000))
    start_response("200 OK", [("Content-Length", "1")])
    return [b"x"]
"#;
    let site = Site::with_source("history_report", leak);
    site.build("2").make();
    site.set("server.workers", "1");
    let master = site.start();
    let load = Load::on(&master.address()).closing(0).keeping(6).target("/").start();
    for _ in 0..3 {
        assert_eq!(master.get("/fails").status, 500);
    }
    let report = || -> Value {
        let output = master.cli(&["report", "--json"]);
        serde_json::from_str(&output.stdout).expect("it is JSON")
    };
    let growth = wait_for("a slope", || report()["generation"]["growth_bytes_per_1000"].as_i64());
    assert!(
        (30_000_000..90_000_000).contains(&growth),
        "{growth} bytes in 1,000 requests, of which 50,000,000 are kept"
    );
    let of = report()["generation"].clone();
    assert!(of["exceptions"] == 3 && of["status"][4] == 3 && of["p99_ms"].as_f64() > Some(0.0), "{of}");
    site.flip("2");
    master.reload();
    load.stop();
    master.get("/");
    let beside = wait_for("the end of generation 1", || {
        let report = report();
        (report["predecessor"]["serving"] == false).then_some(report)
    });
    assert_eq!((&beside["generation"]["generation"], &beside["predecessor"]["generation"]), (&2.into(), &1.into()));
    assert_eq!(beside["predecessor"]["exceptions"], 3);
    let shown = master.cli(&["report"]).stdout;
    for words in ["gen 2", "gen 1", "memory per 1,000 requests", "5xx"] {
        assert!(shown.contains(words), "{shown}");
    }
    assert!(master.cli(&["report", "1"]).stdout.contains("gen 1"));
    let unknown = master.cli(&["report", "9"]);
    assert!(unknown.code == Some(1) && unknown.stderr.contains("nothing is known of generation 9"), "{unknown}");
}

/// A master that sees a mount of its own at `state`.
fn launch_with(site: &Site, mount: &str) -> Master {
    let state = site.path().join("state");
    fs::create_dir_all(&state).expect("a directory can be made");
    let mount = format!("cd {} && {mount} && cd {} && exec \"$@\"", state.display(), site.path().display());
    let through = ["unshare", "--mount", "--propagation", "private", "sh", "-c", &mount, "sh"];
    let through = through.iter().map(|word| (*word).to_string()).collect();
    site.set("control.history", "'state/history.jsonl'");
    let master = site.launch(Launch { through, ..Launch::default() });
    master.wait_serving();
    master
}

/// The same file as the master sees it.
fn seen_by(master: &Master, site: &Site, name: &str) -> PathBuf {
    let path = site.path().join("state").join(name);
    PathBuf::from(format!("/proc/{}/root{}", master.pid(), path.display()))
}

/// The generations in a file; what is no whole line is none.
fn generations(text: &str) -> Vec<u64> {
    let entries = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    entries.filter(|entry| entry["what"] == "deploy").filter_map(|entry| entry["generation"].as_u64()).collect()
}

#[test]
fn a_full_disk_costs_one_line_of_the_log_and_what_was_not_written_is_written_later() {
    if !can_mount() {
        return;
    }
    let site = Site::with_releases("history_full", 1);
    // There is room for one page: the first lines, and no more.
    let filled = "mount -t tmpfs -o size=64k none . && cd ../state && head -c 61440 /dev/zero >filler";
    let master = launch_with(&site, filled);
    let mut generation = 1;
    // Until a line is torn, and once more.
    while master.log_lines("the history is not written").is_empty() {
        assert!(generation < 40, "{}", master.log());
        master.reload();
        generation += 1;
    }
    master.reload();
    master.reload();
    generation += 2;
    let file = seen_by(&master, &site, "history.jsonl");
    let text = || fs::read_to_string(&file).unwrap_or_default();
    assert!(generations(&text()).len() < generation, "{}", text());
    master.wait_log("the history is not written: No space left on device");
    assert_eq!(master.log_lines("the history is not written").len(), 1);
    assert_eq!(results(&master).len(), generation);
    // Somebody has made room.
    fs::remove_file(seen_by(&master, &site, "filler")).expect("it is there");
    master.reload();
    generation += 1;
    let all: Vec<u64> = (1..=generation as u64).collect();
    wait_for("what was not written, and the latest", || (generations(&text()) == all).then_some(()));
    assert_eq!(master.log_lines("the history is not written").len(), 1);
    master.stop();
}

#[test]
fn a_directory_that_cannot_be_written_is_read_and_costs_one_line_of_the_log() {
    if !can_mount() {
        return;
    }
    let site = Site::with_releases("history_read_only", 1);
    let state = site.path().join("state");
    fs::create_dir(&state).expect("a directory can be made");
    let before = r#"{"what":"deploy","generation":7,"result":"committed","release":"/srv/before"}"#;
    fs::write(state.join("history.jsonl"), format!("{before}\n")).expect("it can be written");
    let master = launch_with(&site, "mount --bind . . && cd ../state && mount -o remount,ro,bind .");
    for _ in 0..3 {
        master.reload();
    }
    let expected = ["7 committed", "1 committed", "2 committed", "3 committed", "4 committed"];
    wait_for("what was there before", || (results(&master) == expected).then_some(()));
    master.wait_log("the history is not written: Read-only file system");
    assert_eq!(master.log_lines("the history is not written").len(), 1);
    assert_eq!(fs::read_to_string(state.join("history.jsonl")).expect("it is there"), format!("{before}\n"));
    master.stop();
}

#[test]
fn thousands_of_lines_and_what_is_none_do_not_keep_it_from_being_read_and_written() {
    let site = Site::with_releases("history_thousands", 1);
    let mut text = Vec::new();
    for number in 0..5000 {
        let line =
            format!(r#"{{"what":"deploy","generation":{number},"result":"committed","release":"/srv/{number}"}}"#);
        text.extend([line.as_bytes(), b"\n"].concat());
    }
    // Of a later version, of nobody, and torn.
    text.extend(br#"{"what":"deploy","generation":5000,"result":"postponed","why":{"moon":"full"}}"#);
    text.extend(b"\n{\"what\":\"eclipse\"}\n\xff\xfe\0garbage\x1b[31m\n\n[]\n{\"what\":\"deploy\",\"gener");
    fs::write(site.path().join("history.jsonl"), text).expect("it can be written");
    site.set("control.history", "'history.jsonl'");
    let master = site.start();
    master.reload();
    let latest = wait_for("all of it", || {
        let results = results(&master);
        results.contains(&"4999 committed".to_owned()).then_some(results)
    });
    let tail: Vec<&str> = latest.iter().rev().take(4).map(String::as_str).collect();
    assert_eq!(tail, ["2 committed", "1 committed", "5000 postponed", "4999 committed"]);
    let shown = master.cli(&["history"]);
    assert!(shown.ok() && shown.stdout.contains("postponed") && !shown.stdout.contains('\x1b'), "{shown}");
    let file = site.path().join("history.jsonl");
    wait_for("the new lines, after the torn one", || {
        let text = String::from_utf8_lossy(&fs::read(&file).ok()?).into_owned();
        (generations(&text).ends_with(&[5000, 1, 2])).then_some(())
    });
    master.stop_clean();
}

#[test]
fn masters_that_share_a_file_write_each_its_own_lines() {
    let sites = ["history_shared_1", "history_shared_2"].map(|name| Site::with_releases(name, 1));
    let file = sites[0].path().join("history.jsonl");
    for site in &sites {
        site.set("control.history", &format!("{:?}", file.display().to_string()));
    }
    let masters = [sites[0].start(), sites[1].start()];
    thread::scope(|scope| {
        for master in &masters {
            scope.spawn(|| (0..5).for_each(|_| assert!(master.cli(&["reload"]).ok())));
        }
    });
    for master in &masters {
        let own = deploys(master).into_iter().filter(|deploy| deploy["master"] == master.pid());
        assert_eq!(own.count(), 6);
        wait_for("all lines", || {
            let text = fs::read_to_string(&file).ok()?;
            let of = |entry: &Value| entry["master"] == master.pid() && entry["what"] == "deploy";
            let lines: Vec<Value> =
                text.lines().map(|line| serde_json::from_str(line).expect("a line is whole")).collect();
            (lines.iter().filter(|entry| of(entry)).count() == 6).then_some(())
        });
    }
    masters.iter().for_each(Master::stop);
}

#[test]
fn whenever_the_master_is_killed_what_it_had_written_is_read_by_the_next() {
    let site = Site::with_releases("history_killed", 1);
    site.set("control.history", "'history.jsonl'");
    let seed = Random::seed("FORKMASTER_SEED");
    println!("FORKMASTER_SEED={seed}");
    let mut random = Random::new(seed);
    let mut known = 0;
    for _ in 0..6 {
        let master = site.start();
        wait_for("the history", || (results(&master).len() > known).then_some(()));
        let before = results(&master).len();
        assert!(before > known, "the start is one more");
        let killed = thread::scope(|scope| {
            let reloads = scope.spawn(|| while master.cli(&["reload"]).ok() {});
            thread::sleep(Duration::from_millis(random.below(400)));
            master.signal(Signal::SIGKILL);
            master.wait_exit();
            reloads.join()
        });
        killed.expect("it does not panic");
        master.assert_nothing_left();
        let text = fs::read_to_string(site.path().join("history.jsonl")).expect("it is there");
        let lines = text.lines().collect::<Vec<_>>();
        let torn = lines.iter().filter(|line| serde_json::from_str::<Value>(line).is_err()).count();
        assert!(torn <= 6, "{torn} of {}", lines.len());
        known = generations(&text).len();
    }
}

/// As found: for how long the master had stood still before a deploy was told as time that the release took to prove itself.
#[test]
fn time_in_which_the_master_stood_still_is_no_releases() {
    let site = Site::with_releases("history_stood_still", 2);
    let master = site.start();
    master.signal(Signal::SIGSTOP);
    // It waits for a second at most, and this is two more than that: it stood still, and was not busy (`clock`).
    thread::sleep(Duration::from_secs(4));
    master.signal(Signal::SIGCONT);
    master.wait_log("the master did not run for");
    site.flip("2");
    master.reload();
    let deploy = deploys(&master).pop().expect("there was one");
    let seconds = |key: &str| deploy[key].as_f64().unwrap_or(f64::MAX);
    assert!(seconds("proved_s") <= seconds("took_s"), "{deploy}");
}
