//! What was deployed when, by whom, and how it went: over restarts, kills, full disks and directories that cannot be written.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::harness::load::Load;
use crate::harness::master::Master;
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
        let directory = site.path().join("closed");
        fs::create_dir(&directory).expect("a directory can be made");
        fs::set_permissions(&directory, fs::Permissions::from_mode(0o555)).expect("it is ours");
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
