//! Who may do what: what the processes of a release may, and who may ask the master.

use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Output};

use crate::harness::machine::{can_change_users, Machine};
use crate::harness::master::{Launch, Master};
use crate::harness::process::status_field;
use crate::harness::site::{copy_binary_to, Site};
use crate::harness::wait_for;

const SETS: [&str; 4] = ["CapEff", "CapPrm", "CapInh", "CapAmb"];

fn public_site(name: &str) -> Site {
    let site = Site::new(name);
    site.build("1").python(Machine::get().public_python()).make();
    site.flip("1");
    site.set("server.workers", "1");
    site
}

fn set_of(pid: i32, name: &str) -> u64 {
    u64::from_str_radix(&field(pid, name), 16).expect("hexadecimal")
}

fn field(pid: i32, name: &str) -> String {
    let field = status_field(pid, &format!("{name}:")).expect("proc_pid_status(5)");
    field.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Template and workers.
fn processes_of_release(master: &Master) -> [i32; 2] {
    [master.wait_settled().template_pid, master.wait_serving()[0].pid]
}

#[test]
fn the_processes_of_a_release_are_its_user_and_nothing_more() {
    if !can_change_users() {
        return;
    }
    let site = public_site("rights");
    site.set("server.user", "'nobody'").set("server.group", "'10007'");
    // Programs of the release that are no workers are held to the same.
    site.set("service", "[{ name = 'sleeper', command = ['/bin/sleep', '600'] }]");
    let master = site.start();
    let [template, worker] = processes_of_release(&master);
    let sleeper = wait_for("the service", || {
        master.children().into_iter().find(|child| child.title.contains("sleep 600")).map(|child| child.pid)
    });
    for pid in [template, worker, sleeper] {
        assert_eq!(field(pid, "Uid"), "65534 65534 65534 65534");
        assert_eq!(field(pid, "Gid"), "10007 10007 10007 10007");
        assert_eq!(field(pid, "Groups"), "10007", "none of root's");
        for name in SETS.into_iter().chain(["CapBnd"]) {
            assert_eq!(set_of(pid, name), 0, "{name}");
        }
        assert_eq!(field(pid, "NoNewPrivs"), "1");
    }
    // Who needs sudo says so, and has it with the next reload.
    site.set("server.no_new_privileges", "false");
    master.reload();
    for pid in processes_of_release(&master) {
        assert_eq!(field(pid, "NoNewPrivs"), "0");
        assert_eq!(SETS.map(|name| set_of(pid, name)), [0; 4]);
        assert_ne!(set_of(pid, "CapBnd"), 0, "sudo could do nothing");
    }
    master.stop();
}

/// systemd's AmbientCapabilities= let a master without root bind port 80. The application is not the master.
#[test]
fn what_a_master_may_without_root_its_workers_may_not() {
    if !can_change_users() {
        return;
    }
    const NET_BIND_SERVICE: u64 = 1 << 10;
    let site = public_site("rights_ambient");
    for path in [site.path().to_path_buf(), site.config_path()] {
        nix::unistd::chown(&path, Some(65534.into()), Some(65534.into())).expect("root may");
    }
    let caps = ["--inh-caps=+net_bind_service", "--ambient-caps=+net_bind_service"];
    let ids = ["--reuid=65534", "--regid=65534", "--clear-groups"];
    let words = ["setpriv"].iter().chain(&ids).chain(&caps).chain(&["--"]).map(|word| (*word).to_owned());
    let launch = Launch { through: words.collect(), binary: Some(copy_binary_to(&site)), ..Launch::default() };
    let master = site.launch(launch);
    let pids = processes_of_release(&master);
    assert_eq!(SETS.map(|name| set_of(master.pid(), name)), [NET_BIND_SERVICE; 4], "the test shows nothing");
    for pid in pids {
        assert_eq!(SETS.map(|name| set_of(pid, name)), [0; 4]);
        assert_eq!((field(pid, "Uid"), field(pid, "NoNewPrivs")), ("65534 65534 65534 65534".into(), "1".into()));
    }
    master.stop();
}

/// Runs a verb as another user.
fn ask_as(site: &Site, uid: u32, group: Option<u32>, verb: &[&str]) -> Output {
    let mut command = Command::new(Machine::get().program("setpriv"));
    command.args(["--reuid", &uid.to_string(), "--regid", &uid.to_string()]);
    match group {
        Some(group) => command.args(["--groups", &group.to_string(), "--"]),
        None => command.args(["--clear-groups", "--"]),
    };
    command.arg(site.path().join("forkmaster")).args(verb).arg("--socket").arg(site.path().join("control.sock"));
    command.env_clear().current_dir("/").output().expect("setpriv can be started")
}

#[test]
fn readers_may_look_and_change_nothing() {
    if !can_change_users() {
        return;
    }
    let site = Site::with_releases("readers", 1);
    site.set("control.readers", "['10001', 'group:10005']");
    let master = site.start();
    copy_binary_to(&site);
    let mode = std::fs::metadata(site.path().join("control.sock")).expect("it is there").permissions().mode();
    assert_eq!(mode & 0o777, 0o666);
    for (uid, group) in [(10001, None), (10002, Some(10005))] {
        for verb in [&["status", "--json"][..], &["health"], &["history"], &["wait", "ready"]] {
            let output = ask_as(&site, uid, group, verb);
            assert!(output.status.success(), "{verb:?} as {uid}: {output:?}");
        }
        for verb in [&["reload"][..], &["stop"], &["scale", "0"], &["recycle", "0"], &["dump"], &["pause"]] {
            let output = ask_as(&site, uid, group, verb);
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            let no = format!("uid {uid} may only look ([control] readers); `{}", verb.join(" "));
            assert!(!output.status.success() && said.contains(&no) && said.contains("is for root"), "{verb:?}: {said}");
        }
    }
    // Their number or group is another one's.
    for group in [None, Some(10001)] {
        let output = ask_as(&site, 10006, group, &["status"]);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        let no = "uid 10006 may not ask this master; root may, and look [control] readers (10001, group:10005)";
        assert!(!output.status.success() && said.contains(no), "{output:?}");
    }
    assert_eq!((master.get("/").text(), master.workers().len()), ("1".to_owned(), 2));
    assert!(!master.log().contains("asked by uid=100"), "{}", master.log());
    master.stop();
}
