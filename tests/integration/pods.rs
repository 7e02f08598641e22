//! Containers of a pod as strict ones are: uid 12345 without a passwd entry, a read-only root, and nothing writable but
//! /dev/shm, which the containers of a pod share, as they share the network.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use crate::harness::client::{self, Address, Connection};
use crate::harness::machine::{can_mount, not_tested, Machine};
use crate::harness::master::{Launch, Master};
use crate::harness::site::{copy_binary_to, Site};
use crate::harness::wait_for;

const UID: &str = "12345";

/// Every mount becomes read-only but the one at /dev/shm, which is the pod's own.
const CONTAINER: &str = "set -e
mount --make-rprivate /
mount --bind \"$1\" /dev/shm
while read -r _ _ _ _ place _; do
    case $place in /dev/shm|/proc|/proc/*|/sys|/sys/*) ;; *) mount -o remount,bind,ro \"$place\" 2>/dev/null || true;; esac
done < /proc/self/mountinfo
shift
cd /
exec setpriv --reuid 12345 --regid 12345 --clear-groups --no-new-privs -- \"$@\"
";

fn container(shared: &Path, binary: &Path) -> Launch {
    let unshare = Machine::get().program("unshare").to_str().expect("plain characters");
    let shared = shared.to_str().expect("plain characters");
    let through = [
        unshare,
        "--mount",
        "--pid",
        "--fork",
        "--kill-child=TERM",
        "--mount-proc",
        "sh",
        "-c",
        CONTAINER,
        "sh",
        shared,
    ];
    let through = through.iter().map(|word| (*word).to_owned()).collect();
    Launch { through, binary: Some(binary.to_owned()), directory: Some("/".into()), ..Launch::default() }
}

/// As `kubectl exec` would, and as kubelet's exec probe does.
fn inside(master: &Master, binary: &Path, args: &[&str]) -> Output {
    let pid = master.children().first().map(|child| child.pid.to_string()).expect("unshare has a child");
    let mut command = Command::new("nsenter");
    command.args(["--target", &pid, "--mount", "--pid", "--setuid", UID, "--setgid", UID, "--"]).arg(binary).args(args);
    command.env_clear().env("PATH", "/usr/bin:/bin").current_dir("/").output().expect("nsenter can be started")
}

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

#[test]
fn a_container_in_which_only_shared_memory_is_writable_serves_and_hears_its_verbs() {
    if !can_mount() {
        return;
    }
    if nix::unistd::User::from_uid(12345.into()).ok().flatten().is_some() {
        return not_tested("uid 12345 has a passwd entry here");
    }
    let site = Site::new("read_only_pod");
    site.build("1").python(Machine::get().public_python()).make();
    site.flip("1");
    site.unset("control.socket").set("server.health_path", "'/-/healthz'").set("status.bind", "['127.0.0.1:0']");
    let copy = copy_binary_to(&site);
    let shared = site.path().join("shm");
    fs::create_dir(&shared).expect("it is our directory");
    fs::set_permissions(&shared, fs::Permissions::from_mode(0o1777)).expect("it is our directory");
    let (first, second) = (site.launch(container(&shared, &copy)), site.launch(container(&shared, &copy)));
    let config = site.config_path();
    let with_config = |words: &[&'static str]| [words, &["-c", config.to_str().expect("plain characters")]].concat();
    for master in [&first, &second] {
        master.wait_log("generation gen=1 rolling -> serving");
        let info = client::get(&master.address(), "/info").expect("it serves").json();
        assert_eq!((&info["uid"], &info["gid"]), (&12345.into(), &12345.into()));
    }
    // Whoever asks, it is the master of the same container that answers.
    let sockets: Vec<PathBuf> = fs::read_dir(shared.join("forkmaster-12345"))
        .expect("both have their control sockets there")
        .map(|entry| entry.expect("it can be read").path())
        .filter(|path| path.extension().is_some_and(|suffix| suffix == "sock"))
        .collect();
    assert_eq!(sockets.len(), 2, "{sockets:?}");
    for (master, other) in [(&first, &second), (&second, &first)] {
        let mark = other.mark();
        for words in [&["health"][..], &["health", "--live"], &["reload"], &["wait", "ready"]] {
            let output = inside(master, &copy, &with_config(words));
            assert_eq!(output.status.code(), Some(0), "{words:?}: {}", text(&output));
        }
        master.wait_log("generation gen=2 rolling -> serving");
        assert!(!other.log_after(mark).contains("-> proving"), "the reload went next door");
        let output = inside(master, &copy, &with_config(&["status", "--json"]));
        let status: serde_json::Value = serde_json::from_slice(&output.stdout).expect("it is JSON");
        assert_eq!((&status["pid"], &status["ready"]), (&1.into(), &true.into()), "{status}");
        // No directory for large bodies, which is told wherever it can be.
        let serving = status["generations"].as_array().and_then(|all| all.last()).expect("one serves");
        assert_eq!(serving["bodies_in_memory"], true, "{status}");
        let output = text(&inside(master, &copy, &with_config(&["status"])));
        assert!(
            output.contains("no temporary directory is writable: large request bodies have only memory"),
            "{output}"
        );
        let output = text(&inside(master, &copy, &with_config(&["check"])));
        let words =
            "warning: no temporary directory is writable (/var/tmp, /tmp): request bodies lie in memory, 64MiB of";
        assert!(output.contains(words) && output.contains("emptyDir"), "{output}");
        let door = master.wait_log("status at *: /livez, /readyz, /metrics");
        let door = door.split("status at ").nth(1).and_then(|rest| rest.split(": /livez").next()).expect("it is there");
        let metrics = client::get(&Address::Tcp(door.parse().expect("an address")), "/metrics").expect("it answers");
        assert!(metrics.text().contains("\nforkmaster_bodies_in_memory 1\n"), "{}", metrics.text());
        assert_eq!(client::get(&master.address(), "/-/healthz").expect("it serves").status, 200);
        let body = vec![b'x'; 3_000_000];
        let mut connection = Connection::to(&master.address());
        assert_eq!(connection.post("/echo", &body).expect("it has memory").body, body);
    }
    // The end of one is not the other's.
    let output = inside(&first, &copy, &with_config(&["stop"]));
    assert!(output.status.success(), "{}: {}", output.status, text(&output));
    first.wait_exit();
    assert_eq!(client::get(&second.address(), "/").expect("it serves").text(), "1");
    let output = inside(&second, &copy, &with_config(&["stop"]));
    assert!(output.status.success(), "{}: {}", output.status, text(&output));
    second.wait_exit();
    wait_for("nothing to be left of either", || {
        let left = fs::read_dir(shared.join("forkmaster-12345")).ok()?;
        let left: Vec<PathBuf> = left.flatten().map(|entry| entry.path()).collect();
        left.iter().all(|path| path.extension().is_none_or(|suffix| suffix != "sock")).then_some(())
    });
}
